"""What fits a GPU by the product's own estimate: for `mithridate doctor`, and for a training that does not.

Llama's shapes are taken for what a size means. Micro-batches of one row and checkpointed activations are the least
that a training can do with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mithridate.errors import InputError, MithridateError
from mithridate.estimate import estimate
from mithridate.estimate.trace import SIZES, Setup, config_of
from mithridate.pipeline.checkpointing import FIELDS, asked

if TYPE_CHECKING:
    from mithridate.pipeline.precheck import Part
    from mithridate.pipeline.stages import ExperimentStages

GIB = 2**30
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
LEAST = Setup(batch=1, length=512, checkpointing=True)
KINDS: Mapping[str, Setup] = {
    "LoRA": LEAST,
    "QLoRA (4 bit)": replace(LEAST, quantization=NF4),
    "all weights": replace(LEAST, full=True),
}
# Bytes of a weight, whatever else a training needs: as it is held; and its gradient and AdamW's moments, in float32.
_LEAST_BYTES = {"LoRA": 2, "QLoRA (4 bit)": 0.5, "all weights": 16}
ASSUMED = f"by estimate: Llama's shapes, {LEAST.batch} x {LEAST.length} tokens, activations checkpointed"
# Of a card's memory, what a plan should fill: steps took up to 1.05 times their estimate on an H200 (1B), and CUDA
# itself and the allocator's fragments come on top.
SHARE = 0.9
# An estimate was up to 1.11 times what was taken (135M, LoRA), so a training is refused only beyond that.
OVER = 1.15


def largest(memory: int) -> dict[str, str | None]:
    """Of each kind of training, the largest size of model that a GPU of so many bytes trains; None: not even the
    smallest. Passes are looked at from the largest size on whose weights alone leave room: one or two a kind, which
    takes seconds."""
    found: dict[str, str | None] = {}
    for kind, setup in KINDS.items():
        room = [size for size in SIZES if weights_of(size) * _LEAST_BYTES[kind] <= SHARE * memory]
        fitting = (size for size in reversed(room) if estimate(config_of(size), setup).total <= SHARE * memory)
        found[kind] = next(fitting, None)
    return found


def weights_of(size: str) -> int:
    """How many weights a size has."""
    config: Any = config_of(size)
    kv = config.num_key_value_heads / config.num_attention_heads
    layer = config.hidden_size * (2 * config.hidden_size * (1 + kv) + 3 * config.intermediate_size + 2)
    ends = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return round(config.num_hidden_layers * layer + ends + config.hidden_size)


def in_words(memory: int) -> str:
    """`largest` in one line."""
    found = largest(memory)
    return "; ".join(f"{kind}: {f'up to {size.upper()}' if size else 'none'}" for kind, size in found.items())


def card_memory(i: int) -> int:
    """Bytes of the memory of GPU `i`."""
    import torch

    return torch.cuda.get_device_properties(i).total_memory


def smallest_card(processes: int | None = None) -> int | None:
    """Bytes of the smallest of the GPUs that so many processes get, one each, from the first on; None: of all. None
    where torch sees none."""
    import torch

    if not torch.cuda.is_available():
        return None
    cards = torch.cuda.device_count()
    return min(map(card_memory, range(min(processes or cards, cards))))


def require(chain: ExperimentStages, part: Part) -> None:
    """Whether a training can fit the GPUs here at all, before anything is loaded.

    Raises:
        InputError: it needs more than a GPU has, with what would fit.
    """
    from mithridate.pipeline.arguments import LIBRARY_ERRORS

    memory = smallest_card(chain.launch.processes if chain.launch else 1)
    if memory is None:
        return
    said = asked(part.job.training)
    try:
        needed = _needs(chain, part, checkpointed=said is not False)
        if needed <= OVER * memory:
            return
        remedies = [f"{what} ({_gib(size)})" for what, size in _smaller(chain, part) if size <= SHARE * memory]
    except (MithridateError, *LIBRARY_ERRORS):  # not to be counted; what is wrong with it, if anything, others tell
        return
    advice = f"It would fit with {', or '.join(remedies)}" if remedies else "Take a smaller model, or a larger GPU"
    raise InputError(
        f"{part.path}: needs about {_gib(needed)} on a GPU by the estimate, and the one here has {_gib(memory)}. "
        f"{advice}. Such a GPU trains {in_words(memory)} ({ASSUMED})"
    )


def _needs(chain: ExperimentStages, part: Part, checkpointed: bool, **training: Any) -> int:
    from mithridate.pipeline.planning import of_part

    job = replace(part.job, training=part.job.training | training)
    return of_part(chain, replace(part, job=job), checkpointed).total


def _smaller(chain: ExperimentStages, part: Part) -> list[tuple[str, int]]:
    """What would need less, and how much that is: each alone, then together."""
    found = []
    if asked(part.job.training) is False:
        found.append((f"training.{FIELDS[1]}: true", _needs(chain, part, True)))
    one = {"per_device_train_batch_size": 1}
    if (rows := part.args.per_device_train_batch_size) > 1:
        more = rows * part.args.gradient_accumulation_steps
        words = f"training.per_device_train_batch_size: 1 and gradient_accumulation_steps: {more}"
        found.append((words, _needs(chain, part, True, **one)))
    if part.job.adapter is None:
        return found
    if not part.job.base.quantization:
        quantised = replace(part, job=replace(part.job, base=replace(part.job.base, quantization=NF4)))
        found.append(("quantization: {load_in_4bit: true, bnb_4bit_quant_type: nf4}", _needs(chain, quantised, True)))
        if rows > 1:
            found.append(("both together", _needs(chain, quantised, True, **one)))
    return found


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
