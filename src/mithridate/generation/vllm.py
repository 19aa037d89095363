"""Answers of vLLM inside this process (extra `[vllm]`): one engine for a model and any number of adapters over it.

    engine = Engine("meta-llama/Llama-2-7b-hf", max_lora_rank=32)
    for folder in adapters:
        VLLM(engine, adapter=folder).generate(...)

Prompts are turned into tokens, and tokens into text, by the same code as in the transformers backend; vLLM sees token
ids only, so that no template is applied twice. Its own server is reached through `generation.openai`.

Experimental, and it says so where it is used: this file was written against vLLM's documented interface (`LLM`,
`SamplingParams`, `LoRARequest`) and is tested with a stand-in for it; it has not run on a real engine.
"""

import gc
import hashlib
import logging
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mithridate.errors import InputError, MithridateError, first_line
from mithridate.generation.base import Answer, Conversation, Decoding, Failure, PromptTooLong, Template
from mithridate.generation.templates import beginning, prompt_tokens
from mithridate.models import load_tokenizer, resolve_model
from mithridate.models.folder import check_safetensors, read_json

log = logging.getLogger(__name__)

CHUNK = 512  # prompts given to the engine at once: enough to keep it busy, few enough that a kill loses little
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes for max_lora_rank


class Engine:
    """A model in vLLM's hands, shared by the generators of its adapters.

    Args:
        name: an embedded model, a folder, or a Hub id.
        dtype: vLLM's: "auto", "bfloat16", "float16" or "float32".
        max_lora_rank: the largest rank of the adapters to come; 0 for none.
        **options: of `vllm.LLM`, such as tensor_parallel_size, gpu_memory_utilization or max_model_len.

    Raises:
        InputError: vLLM is missing, or there is no such model.
        MithridateError: the engine does not start.
    """

    def __init__(self, name: str, dtype: str = "auto", max_lora_rank: int = 0, **options: Any):
        try:
            vllm: Any = import_module("vllm")  # the package, not this file, which shares its name
        except ImportError as error:
            raise InputError(
                "The vllm package is missing. Install it (Linux, a GPU): pip install 'mithridate[vllm]'. Or run "
                "vLLM's server elsewhere and use the openai generator."
            ) from error
        if max_lora_rank > _RANKS[-1]:
            raise InputError(f"vLLM takes adapters up to rank {_RANKS[-1]}, not {max_lora_rank}. Merge the adapter.")
        log.warning(
            "The generator vllm is experimental: it has not run on a real engine. The documented way is `vllm serve` "
            "and the generator openai (docs/evaluation.md)."
        )
        self._vllm, self.options = vllm, options
        self.files = resolve_model(name)
        self.tokenizer = load_tokenizer(self.files, needs_chat_template=False)
        self.dtype, self.rank = dtype, next(rank for rank in _RANKS if rank >= max_lora_rank)
        lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": self.rank} if max_lora_rank else {}
        try:
            # With generation_config="vllm" the model's own sampling defaults and penalties are set aside.
            self.llm = vllm.LLM(
                model=str(self.files.path), dtype=dtype, generation_config="vllm", seed=0, **lora, **options
            )
        except Exception as error:  # vLLM raises ValueError, RuntimeError or torch's own, according to where it stops
            raise MithridateError(
                f"vLLM cannot start with {name!r} ({first_line(error)}). If memory is short, lower max_model_len or "
                "gpu_memory_utilization, or raise tensor_parallel_size."
            ) from error
        self.adapters: dict[str, int] = {}  # digest of an adapter -> the number that vLLM keeps it under
        self.has_lora = bool(lora)

    def close(self) -> None:
        """Lets go of the engine and its memory; the generators over it are of no use then."""
        self.llm = None
        gc.collect()


class VLLM:
    """A `Generator` over a shared engine: the engine's model, or the model with one adapter.

    Args:
        engine: the engine.
        adapter: folder of a LoRA adapter of PEFT; None for the model alone.

    Raises:
        InputError: the adapter's files are missing or damaged, its rank is above the engine's, or the engine was
            started without adapters.
    """

    content_known = True

    def __init__(self, engine: Engine, adapter: Path | None = None):
        self.engine, self.lora, self.adapter_digest = engine, None, None
        if adapter is None:
            return
        settings = read_json(adapter / "adapter_config.json")
        check_safetensors(adapter / "adapter_model.safetensors")
        if not engine.has_lora:
            raise InputError(f"{adapter}: the engine was started without adapters. Give it a max_lora_rank.")
        if settings.get("r", 0) > engine.rank:
            raise InputError(
                f"{adapter}: rank {settings['r']} is above the engine's max_lora_rank of {engine.rank}. Raise that."
            )
        self.adapter_digest = _adapter_digest(adapter)
        # vLLM keeps an adapter under its number: one retrained into the same folder must get a number of its own.
        number = engine.adapters.setdefault(self.adapter_digest, len(engine.adapters) + 1)
        self.lora = _lora_request(self.adapter_digest[:12], number, adapter)

    def identity(self) -> dict[str, Any]:
        """Digests of the model's files (tokenizer included) and the adapter's, the dtype, and the engine's options."""
        return {
            "backend": "vllm",
            "weights": self.engine.files.digest,
            "adapter": self.adapter_digest,
            "dtype": self.engine.dtype,
            "options": {name: repr(value) for name, value in sorted(self.engine.options.items())},
        }

    def generate(
        self, conversations: Sequence[Conversation], template: Template, decoding: Decoding
    ) -> Iterator[tuple[int, Answer | Failure]]:
        """See `Generator`.

        Raises:
            InputError: no chat template, or a prompt that does not fit the context; before anything is generated.
            MithridateError: the engine failed.
        """
        llm = self.engine.llm
        tokenizer: Any = self.engine.tokenizer
        if llm is None:
            raise MithridateError("The vLLM engine has been closed. Open another.")
        prompts = [prompt_tokens(tokenizer, conversation, template) for conversation in conversations]
        context = llm.llm_engine.model_config.max_model_len
        longer = [i for i, prompt in enumerate(prompts) if len(prompt) + decoding.max_new_tokens > context]
        if longer:
            raise PromptTooLong(
                f"A prompt of {len(prompts[longer[0]])} tokens and an answer of up to {decoding.max_new_tokens} do "
                f"not fit the engine's context of {context} tokens. Shorten or remove the prompt (number "
                f"{longer[0] + 1}) that begins {beginning(conversations[longer[0]])}, or raise max_model_len.",
                longer,
            )
        stops = self._stops()
        sampling = {"top_p": decoding.top_p, "seed": decoding.seed} if decoding.temperature > 0 else {}
        params = self.engine._vllm.SamplingParams(
            temperature=decoding.temperature,
            max_tokens=decoding.max_new_tokens,
            stop_token_ids=stops,
            detokenize=False,
            **sampling,
        )
        for start in range(0, len(prompts), CHUNK):
            asked = [{"prompt_token_ids": prompt} for prompt in prompts[start : start + CHUNK]]
            try:
                outputs = llm.generate(asked, params, use_tqdm=False, lora_request=self.lora)
            except Exception as error:  # a dead engine has an exception of its own, out of memory torch's
                raise MithridateError(
                    f"vLLM failed ({first_line(error)}). See its log, then run the same command again: finished "
                    "answers are kept."
                ) from error
            for i, output in enumerate(outputs, start):  # in the order of the prompts
                made = output.outputs[0]
                tokens = list(made.token_ids)
                text = tokenizer.decode(tokens, skip_special_tokens=True)
                yield i, Answer(text, len(tokens), made.finish_reason == "stop", len(prompts[i]))

    def close(self) -> None:
        """Nothing to free: the engine is shared, and has a `close` of its own."""

    def _stops(self) -> list[int]:
        path = self.engine.files.path / "generation_config.json"
        own = read_json(path).get("eos_token_id") if path.exists() else None
        ends = own if isinstance(own, list) else [own]
        return sorted({token for token in [*ends, self.engine.tokenizer.eos_token_id] if token is not None})


def _lora_request(name: str, number: int, folder: Path) -> Any:
    return import_module("vllm.lora.request").LoRARequest(lora_name=name, lora_int_id=number, lora_path=str(folder))


def _adapter_digest(folder: Path) -> str:
    made = hashlib.sha256()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        with (folder / name).open("rb") as file:
            made.update(hashlib.file_digest(file, "sha256").digest())
    return made.hexdigest()
