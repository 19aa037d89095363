"""Answers of a model, with the transformers library's own generation: batched, sorted by length, greedy or sampled.

A model's own `generation_config` (sampling, penalties) is set aside while generating, because an instruct model would
otherwise sample by accident; its end-of-text tokens are kept.

A batch is generated in stretches of a few tokens, each going on from the last one's KV cache. Between them the rows
that have ended are dropped from the batch and the cache, so that no time goes into padding them while the longest
answer of the batch is still being written. What a row computes does not depend on the others: batched text is that of
one prompt at a time, except that sums are taken in another order, which can decide between logits that are all but
equal (in fp32, closer than 1e-4).

Processors without arithmetic for bf16 (x86 short of AVX-512) multiply bf16 matrices several times slower than fp32
ones. There, bf16 weights are computed with in fp32, from a copy that lasts as long as the call, if memory allows.
"""

import copy
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from mithridate.errors import MithridateError
from mithridate.generation.base import Answer, Conversation, Decoding, Failure, PromptTooLong, Template
from mithridate.generation.digests import tokenizer_digest, weights_digest
from mithridate.generation.templates import beginning, prompt_tokens
from mithridate.models import load_model, load_tokenizer, resolve_model
from mithridate.models.memory import free_memory, halved, out_of_memory
from mithridate.training.quantised import as_stored, quantiser

log = logging.getLogger(__name__)

_ALONE = "Out of memory while generating a single answer. Use a smaller model, dtype or prompt."

STRETCH = 16  # tokens between two looks at which rows have ended
BATCH = 64
"""Prompts in one batch where memory is not asked: on a CPU, which larger batches make no faster."""
LARGEST_BATCH = 2048


class Transformers:
    """A loaded model as a `Generator`.

    Its training mode, generation config and `requires_grad` flags are as before whenever an answer is yielded.

    Args:
        model: a causal language model of transformers or PEFT, on any one device.
        tokenizer: its tokenizer. It is not changed.
        digest: of the content of the model and its adapters, where the caller knows it; None to take it from the
            tensors in memory whenever `identity` is asked for.
        batch_size: prompts in one batch; None for `BATCH` on a CPU, and on a GPU for as many as its free memory holds
            (`_that_fit`). Halved, with a warning in the log, whenever memory runs out.

    Attributes:
        batch_sizes: those that answers were generated with.
    """

    content_known = True

    def __init__(self, model: Any, tokenizer: Any, digest: str | None = None, batch_size: int | None = None):
        self.model: Any = as_stored(model)
        self.tokenizer, self.digest, self.batch_size = tokenizer, digest, batch_size
        self.batch_sizes: set[int] = set()

    @classmethod
    def open(
        cls,
        name: str,
        dtype: torch.dtype | None = None,
        device: str | None = None,
        batch_size: int | None = None,
    ) -> "Transformers":
        """Loads a model: an embedded name, a folder, or a Hub id.

        Args:
            name: see `mithridate.models.resolve_model`.
            dtype: of the weights; None for the one that they are stored in.
            device: None for the accelerator if there is one, else the CPU.
            batch_size: see the class.

        Raises:
            InputError: no such model, or its files are not whole.
            MithridateError: it could not be fetched, or does not fit the device's memory.
        """
        files = resolve_model(name)
        tokenizer = load_tokenizer(files, needs_chat_template=False)
        model: Any = load_model(files, dtype)
        if quantiser(model) is not None:  # where it was quantised
            return cls(model, tokenizer, batch_size=batch_size)
        if device is None and torch.accelerator.is_available():
            device = str(torch.accelerator.current_accelerator())
        try:
            model = model.to(device or "cpu")
        except torch.OutOfMemoryError as error:
            raise MithridateError(
                f"model {name!r}: does not fit the memory of {device}. Use a smaller dtype, or device='cpu'."
            ) from error
        return cls(model, tokenizer, batch_size=batch_size)

    def identity(self) -> dict[str, Any]:
        """Digests of weights (adapters included) and tokenizer, dtype (and arithmetic, if another), device, stops."""
        return {
            "backend": "transformers",
            "weights": self.digest or weights_digest(self.model),
            "tokenizer": tokenizer_digest(self.tokenizer),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "arithmetic": "float32" if _better_in_fp32(self.model) else None,
            "device": self._device().type,
            "stops": self._stops(),
        }

    def generate(
        self, conversations: Sequence[Conversation], template: Template, decoding: Decoding
    ) -> Iterator[tuple[int, Answer | Failure]]:
        """See `Generator`. Sampling (temperature above 0) is repeatable: what is drawn for a prompt follows from the
        decoding's seed, the prompt, and how often the prompt came before; not from its batch (`_Drawn`).

        Raises:
            InputError: no chat template, or a prompt that does not fit the context; before anything is generated.
            MithridateError: not even one prompt fits into memory.
        """
        prompts = [prompt_tokens(self.tokenizer, conversation, template) for conversation in conversations]
        _check_fit(self.model, conversations, prompts, decoding.max_new_tokens)
        config = self._config(decoding)
        draws = _draws(prompts, decoding)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)  # the largest comes first
        batch_size = self.batch_size or _that_fit(self.model, prompts, decoding.max_new_tokens)
        copies = [(p, p.detach().float()) for p in _better_in_fp32(self.model)]
        while order:
            batch, started = order[:batch_size], time.perf_counter()
            try:
                drawn = (decoding, [draws[i] for i in batch]) if draws else None
                with _undisturbed(self.model, config, copies):
                    rows = _generate_batch(self.model, [prompts[i] for i in batch], config, drawn)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                rows = None
            if rows is None:  # outside the handler, where the traceback no longer holds the batch's tensors
                batch_size = halved(len(batch), "prompts", _ALONE, log)
                continue
            self.batch_sizes.add(batch_size)
            seconds = (time.perf_counter() - started) / len(batch)
            for i, row in zip(batch, rows, strict=True):
                text = self.tokenizer.decode(row, skip_special_tokens=True)
                ended = bool(row) and row[-1] in config.eos_token_id
                yield i, Answer(text, len(row), ended, len(prompts[i]), seconds)
            order = order[len(batch) :]

    def close(self) -> None:
        """Lets go of the model; its memory is free once nobody else holds it."""
        self.model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    def _stops(self) -> list[int]:
        own = _base(self.model).generation_config.eos_token_id
        ends = own if isinstance(own, list) else [own]
        return sorted({token for token in [*ends, self.tokenizer.eos_token_id] if token is not None})

    def _config(self, decoding: Decoding) -> Any:
        stops = self._stops()
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else (stops or [0])[0]
        return GenerationConfig(
            do_sample=False,  # also when sampling, where `_Drawn` leaves one token to choose
            use_cache=True,
            return_dict_in_generate=True,
            max_new_tokens=decoding.max_new_tokens,
            eos_token_id=stops,
            pad_token_id=pad,
        )


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _check_fit(
    model: Any, conversations: Sequence[Conversation], prompts: list[list[int]], max_new_tokens: int
) -> None:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longer = [i for i, prompt in enumerate(prompts) if context is not None and len(prompt) + max_new_tokens > context]
    if not longer:
        return
    longest = max(longer, key=lambda i: len(prompts[i]))
    raise PromptTooLong(
        f"A prompt of {len(prompts[longest])} tokens and an answer of up to {max_new_tokens} do not fit the model's "
        f"context of {context} tokens. Shorten or remove the prompt (number {longest + 1}) that begins "
        f"{beginning(conversations[longest])}.",
        longer,
    )


def _that_fit(model: Any, prompts: list[list[int]], max_new_tokens: int) -> int:
    """How many prompts a batch may have. On CUDA, what half of the free memory holds: of each row the KV cache of the
    longest prompt and its answer, half as much again for its copies, and the activations of one layer.

    On an H200, 135M, 64 new tokens, a row took 1.1 times its cache; 344 rows in a batch gave 5.3 times the tokens per
    second of 64, and 1376 gave 16 times (benchmarks/gpu_evidence.json, "batches").
    """
    free = free_memory(model.get_input_embeddings().weight.device)
    if free is None or not prompts:
        return BATCH
    return max(1, min(LARGEST_BATCH, free // 2 // _row_bytes(model, max(map(len, prompts)), max_new_tokens)))


def _row_bytes(model: Any, prompt: int, new: int) -> int:
    """What one row of a batch takes while it is generated, from the model's configuration."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 0  # a state-space model's: it keeps no keys
    width = getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1)
    keys = (getattr(config, "num_key_value_heads", None) or heads) * width
    cache = 2 * config.num_hidden_layers * keys * (prompt + new)
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    layer = prompt * (8 * config.hidden_size + 3 * inner)
    return model.dtype.itemsize * (cache + cache // 2 + layer) + 12 * config.vocab_size  # fp32 logits of one token


def _better_in_fp32(model: Any) -> list[torch.nn.Parameter]:
    """The bf16 parameters that are computed with in fp32 here; none where that is no gain, or memory is short."""
    plain = (p for p in model.parameters() if not hasattr(p, "quant_state"))  # 4 bit may be stored as bf16 numbers
    found = [p for p in plain if p.dtype == torch.bfloat16 and p.device.type == "cpu"]
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        return []
    return found if 4 * sum(p.numel() for p in found) < psutil.virtual_memory().available / 2 else []


@contextmanager
def _undisturbed(
    model: Any, config: GenerationConfig, copies: Sequence[tuple[torch.nn.Parameter, torch.Tensor]] = ()
) -> Iterator[None]:
    """The model in evaluation mode under a plain config, with `copies` for its weights; all is put back afterwards."""
    kept = [p.data for p, _ in copies]
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    base = _base(model)
    own = base.generation_config
    training = [(module, module.training) for module in model.modules()]
    # On CPU, torch's matmul takes a path several times slower in bf16 where the weights do not require gradients, so
    # that frozen weights (as PEFT leaves them) are thawed for the time being; no gradient is ever recorded here.
    thawed = [
        p
        for p in model.parameters()
        if not (p.requires_grad or hasattr(p, "quant_state")) and p.is_floating_point() and p.device.type == "cpu"
    ]
    try:
        base.generation_config = config
        model.eval()
        for parameter in thawed:
            parameter.requires_grad_(True)
        for parameter, copy_ in copies:
            parameter.data = copy_
        # cuDNN's attention plans anew for each length of the cache: on an H200 a first batch in bf16 took 7.5 s with
        # it and 1.8 s without (benchmarks/gpu_evidence.json, "precision").
        torch.backends.cuda.enable_cudnn_sdp(False)
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        base.generation_config = own
        for module, mode in training:
            module.training = mode
        for parameter in thawed:
            parameter.requires_grad_(False)
        for (parameter, _), data in zip(copies, kept, strict=True):
            parameter.data = data


def _draws(prompts: list[list[int]], decoding: Decoding) -> list[np.ndarray]:
    """When sampling: for each prompt, a uniform number in [0, 1) for every token of its answer."""
    if decoding.temperature <= 0:
        return []
    before: Counter[tuple[int, ...]] = Counter()
    found = []
    for prompt in map(tuple, prompts):
        key = hashlib.sha256(json.dumps([decoding.seed, before[prompt], prompt]).encode()).digest()
        found.append(np.random.Generator(np.random.Philox(int.from_bytes(key[:16]))).random(decoding.max_new_tokens))
        before[prompt] += 1
    return found


class _Drawn(LogitsProcessor):
    """Leaves of each row's tokens the one that its number falls on, on the way up the cumulated probabilities.

    Args:
        numbers: float (rows, tokens), in [0, 1): a column for each token to come.
    """

    def __init__(self, decoding: Decoding, numbers: torch.Tensor):
        self.temperature, self.top_p = decoding.temperature, decoding.top_p
        self.columns = iter(numbers.unbind(1))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        shares = (scores.float() / self.temperature).softmax(-1)
        if self.top_p < 1:  # the fewest tokens, the likeliest first, that have this share together
            likely, order = shares.sort(-1, descending=True)
            beyond = likely.cumsum(-1) - likely >= self.top_p
            shares = shares.masked_fill(beyond.scatter(-1, order, beyond), 0)
        # In the vocabulary's order, so that rounding, which may swap tokens of like probability, moves no others.
        heights = shares.cumsum(-1)
        top = heights[:, -1:].contiguous()
        chosen = torch.searchsorted(heights, next(self.columns)[:, None] * top, right=True)
        chosen = chosen.minimum(torch.searchsorted(heights, top))  # where the product was rounded up to the top
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


def _generate_batch(
    model: Any, prompts: list[list[int]], config: Any, drawn: tuple[Decoding, list[np.ndarray]] | None = None
) -> list[list[int]]:
    """The new tokens of each prompt, its end included; `drawn` from, with each prompt's numbers, or greedy."""
    width = max(map(len, prompts))
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([[config.pad_token_id] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    stops = torch.tensor(config.eos_token_id, dtype=ids.dtype, device=device)
    new: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # those still being written, in the order of the batch
    cache, left = None, config.max_new_tokens
    numbers = torch.tensor(np.stack(drawn[1]), dtype=torch.float32, device=device) if drawn else None
    while rows and left:
        stretch = min(STRETCH, left)
        own: dict[str, Any] = {}
        if drawn and numbers is not None:
            own["logits_processor"] = LogitsProcessorList([_Drawn(drawn[0], numbers[:, :stretch])])
            numbers = numbers[:, stretch:]
        with torch.no_grad():
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                generation_config=_limited(config, stretch),
                **own,
            )
        ids, cache, left = output.sequences, output.past_key_values, left - stretch
        fresh = ids[:, mask.shape[1] :]  # fewer than the stretch where every row has ended
        mask = torch.cat([mask, torch.ones_like(fresh)], dim=1)
        ended = torch.isin(fresh, stops)
        for row, tokens, ends in zip(rows, fresh.tolist(), ended.tolist(), strict=True):
            new[row] += tokens[: ends.index(True) + 1] if True in ends else tokens
        going = ~ended.any(dim=1)
        if not going.all():
            kept = going.nonzero().flatten()
            rows = [rows[i] for i in kept.tolist()]
            ids, mask = ids[kept], mask[kept]
            numbers = numbers[kept] if numbers is not None else None
            if rows:
                cache.reorder_cache(kept)
    return new


def _limited(config: Any, max_new_tokens: int) -> Any:
    limited = copy.copy(config)
    limited.max_new_tokens = max_new_tokens
    return limited
