"""What a training or a repair will need, before money is spent: memory, passes, operations, disk. No weights are read.

The passes of one micro-batch are run on fake tensors (`fakemodel.py`), through the layers' own code, so the counts
hold for any architecture that transformers has, and follow its code, not a formula for Llama.

Memory of one process, in bytes, with N weights, n trained ones, c bytes a weight of the base (2 in bfloat16, else 4):

    weights      c N (adapters: c N + 4 n);  all weights trained: 4 N; 4 for each frozen weight of an adapter, and
                 for each of an adapter that a quantised base carries into the next stage as factors
                 of L weights in quantised linear layers: 4 bit, (1/2 + 4/64) L; quantised twice, (1/2 + 1/64 +
                 4/64/256) L; 8 bit, L + 4 for each row
    gradients    4 n
    optimizer    8 n                          AdamW's two moments, in float32; others: `optimizer_bytes`
    method       4 n                          for each copy of the trained weights that its `cost` states
                                              and where it asks for gradients of activations, what a pass more that
                                              does so needs beyond plain training's, as the passes show
                 4 s V, 4 B T h, 4 W          for each tensor of logits, of states and of the changed linear layers'
                                              size W that it states (of a micro-batch of B rows and T tokens)
                 DDP     4 n                  the buckets in which gradients are exchanged
    activations  the highest sum A of all tensors that are alive at once in the passes, as the fake passes show. Where
                 no gradient is there before, those grow while the activations shrink: max(A, 4 n + A of a layer) - 4 n
                 Over quantised weights, c for each weight of the largest linear layer: it is dequantised in passing.
                 Over 8 bit, A has each linear layer's input, which its product keeps, checkpointed or not. Carried
                 factors compute in float32, which the passes show
    head         h s (c + 4) + t (32768 c + 4 x min(V, 32768))      s scored positions a micro-batch, t = min(s, 4096),
                                          h the hidden size, V the vocabulary; x = 0 on GPUs, 5 elsewhere (TRL's fused
                                          head, with and without its kernel)

FSDP2 over k processes divides weights, gradients, optimizer and method's copies by k, and adds the two largest units
(layers, or the embeddings) whole, in the dtype that computes. Every process needs the whole model in the host's memory
while it loads.

Operations (FLOPs) are those of the matrix products and of attention (counted whole, not halved for the causal mask),
by torch's own counter or, for the guess of a dry run, by the weights (within a tenth of that); the LM head adds
2 s h V a product: one in the forward, two in the backward pass (its tiles are computed again), one more where it is
trained. Passes relative to plain training are the ratio of these, so time is only as good as the assumption that all
products run at one speed.

What a method adds is stated by its own `cost()`: passes, copies, data seen once (`mithridate.methods.Cost`).

Disk: the weights that a stage leaves (4 n, and 4 for each frozen one), once for itself and once for each snapshot, and
while it trains two checkpoints of these and the optimizer's state, and 4 n more for each copy that a method saves.

Not counted: models that a method reads beside its own, unless a repair holds them; what the libraries and the device's
driver need, the allocator's fragments, and anything else on the machine. docs/scale.md has predicted and measured
figures side by side.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mithridate.errors import InputError
from mithridate.estimate.trace import (
    Counts,
    Passes,
    Setup,
    build,
    decoder_of,
    fake_tensors,
    layers_before,
    live_bytes,
    passes,
    shortened,
    whole,
)
from mithridate.methods.base import Cost, Method
from mithridate.methods.index import index
from mithridate.methods.registry import by_name

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from mithridate.methods.defense import Defense

PLAIN = "plain"
_NEEDED = {entry["name"]: tuple(entry["required"]) for entry in index() if entry["kind"] == "defenses"}
METHODS = (PLAIN, *(name for name, fields in _NEEDED.items() if not fields))
"""Plain training, and that with each defense of this package whose fields all have defaults."""
NEEDING = {name: fields for name, fields in _NEEDED.items() if fields}
"""The other defenses of this package, with the fields that have none."""
REPAIRS = tuple(entry["name"] for entry in index() if entry["kind"] == "repairs")

_FP32 = 4
_TILE_ROWS, _TILE_COLUMNS = 4096, 32768  # of TRL's fused LM head


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes of one process, operations of one optimizer step on all processes, bytes on disk.

    Attributes:
        once: operations that are made once in the training, beside those of its steps.
    """

    method: str
    counts: Counts
    weights: int
    gradients: int
    optimizer: int
    extra: int
    activations: int
    head: int
    flops: int
    plain_flops: int
    once: int
    passes: str
    kept: int
    checkpoints: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.extra + self.activations + self.head

    @property
    def ratio(self) -> float:
        """Operations relative to plain training."""
        return self.flops / self.plain_flops


def estimate(
    config: PretrainedConfig,
    setup: Setup,
    method: str | Sequence[Defense] = PLAIN,
    rows: int = 0,
    *,
    memory: bool = True,
) -> Estimate:
    """What a training with a method, or with several together, needs.

    Args:
        method: the name of a defense, with its defaults, or "plain"; or the defenses themselves, which act together.
        rows: of the methods' own data, for what they see of it once.
        memory: whether the activations are wanted. Where they are not, they count as 0, no pass is run, and the
            operations are counted from the weights, which takes next to no time.

    Raises:
        InputError: no such method, one whose fields have no defaults, an adapter that does not fit the model, or a
            value that means nothing.
        UnsupportedSetup: the model does not declare its attention modules, where a method asks for their gradients.
    """
    if isinstance(method, str):
        method = [] if method == PLAIN else [made("defenses", method)]
    cost = sum((one.cost() for one in method), Cost())
    _check(setup)
    probes = bool(cost.activations)
    counts, traced = passes(config, setup, probes, memory)
    own, own_rows = traced, setup
    if cost.batch_factor != 1:  # the step's own passes see other rows
        own_rows = replace(setup, batch=math.ceil(setup.batch * cost.batch_factor))
        own = passes(config, own_rows, probes, memory)[1]
    n, width = counts.trained, 2 if setup.dtype == "bfloat16" else _FP32
    share = setup.processes if setup.sharded else 1
    left = _FP32 * (n + counts.frozen)  # what the training leaves, its frozen weights too
    held = base_bytes(counts, setup) + left + _FP32 * counts.carried
    weights = (_FP32 * counts.all if setup.full else held) // share
    state = optimizer_bytes(counts, setup)
    gradients, optimizer = _FP32 * n // share, state // share
    passing = round(cost.passing_copies * _FP32 * n) // share
    extra = round((cost.copies + cost.passing_copies) * _FP32 * n) // share
    # Gradients that are not there before grow as activations shrink: the first or the last layer's pass is fullest.
    fresh = max(own.activations, gradients + own.layer) - gradients
    activations = own.activations if setup.accumulation > 1 else fresh
    more = cost.passes - 1 - cost.activations
    passing_weight = width * counts.largest_linear if setup.quantization else 0  # dequantised for its product
    if more > 0:  # its own gradients are taken beside the passing copies, then the step's are added to beside none
        activations = max(fresh, own.activations - passing)
    if cost.activations:
        extra += own.probed - own.activations
    extra += _beside(cost, counts, own_rows)
    if share > 1:
        weights += width * 2 * max(counts.layer, counts.embeddings)
    elif setup.processes > 1:
        extra += _FP32 * n
    step = setup.accumulation * setup.processes
    plain, (ahead, probe) = _training_flops(counts, traced, setup), _forward_and_probe(counts, traced, setup)
    added = more * plain + cost.activations * probe + cost.forwards * ahead
    return Estimate(
        method="+".join(type(one).__name__.lower() for one in method) or PLAIN,
        counts=counts,
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        extra=extra,
        activations=activations + passing_weight,
        head=_head_bytes(counts, own_rows),
        flops=(_training_flops(counts, own, own_rows) + round(added)) * step,
        plain_flops=plain * step,
        once=sum(_once(one.cost(), plain, ahead, rows) // setup.batch for one in method),
        passes=f"{cost.passes + cost.forwards:.3g} forward, {cost.passes:.3g} backward",
        kept=left * (1 + setup.snapshots),
        checkpoints=2 * (left + state + round(cost.saved * _FP32 * n)),
    )


def _beside(cost: Cost, counts: Counts, setup: Setup) -> int:
    """Bytes of the logits, states and matrices that a method states."""
    logits = (cost.logits + cost.layer_logits * counts.layers) * _scored(setup) * counts.vocabulary
    states = cost.layer_states * counts.layers * setup.batch * setup.length * counts.width
    return round(_FP32 * (logits + states + cost.matrices * counts.changed_linear))


def _once(cost: Cost, passed: int, ahead: int, rows: int) -> int:
    """Operations of what a method does once, times the rows of a micro-batch.

    Args:
        passed, ahead: operations of a micro-batch's forward and backward pass, and of a forward pass.
        rows: that the methods have of their own.
    """
    seen = rows if cost.once_rows is None else min(rows, cost.once_rows)
    return round((cost.once_passes * passed + cost.once_forwards * ahead) * seen)


def made(kind: str, name: str) -> Any:
    """The method of a kind ("defenses", "repairs") with its defaults.

    Raises:
        InputError: there is no such method, or it has fields without a default.
    """
    known = by_name(kind)
    if name not in known:
        others = [other for other in REPAIRS if kind == "defenses"]
        hint = f" (and {', '.join(others)}, which are repairs)" if others else ""
        raise InputError(f"method: no such method {name!r}; there are: {', '.join([PLAIN, *known])}{hint}")
    try:
        return known[name].without_data()
    except TypeError as error:
        raise InputError(f"method: {name} has no defaults ({error}); estimate an experiment file with it") from error


def _check(setup: Setup) -> None:
    if setup.quantization and setup.full:
        raise InputError("quantization: all weights are trained, and quantised ones hold no steps; train an adapter")
    for name in ("batch", "length", "accumulation", "steps", "processes"):
        if getattr(setup, name) < 1:
            raise InputError(f"{name}: expected at least 1, got {getattr(setup, name)}")


def base_bytes(counts: Counts, setup: Setup) -> int:
    """Of the weights under an adapter, as they are held."""
    width, fields = 2 if setup.dtype == "bfloat16" else _FP32, setup.quantization
    if not fields:
        return width * counts.all
    if fields.get("load_in_8bit"):
        held = counts.linear + _FP32 * counts.linear_rows
    else:  # in blocks of 64 with a float32 scale each; twice quantised, scales of 1 byte, in blocks of 256
        scale = 1 / 64 + _FP32 / 64 / 256 if fields.get("bnb_4bit_use_double_quant") else _FP32 / 64
        held = round(counts.linear * (1 / 2 + scale))
    return width * (counts.all - counts.linear) + held


_NUMBERS = {"sgd": 0, "adafactor": 1 / 8, "schedule_free_sgd": 1, "lion": 1, "adagrad": 1, "rmsprop": 1, "ademamix": 3}
"""How many numbers an optimizer keeps of each trained weight, by the beginning of its name; Adam and all others two.
Adafactor keeps one of each row and column: an eighth at most of LoRA's factors from rank 8 on, less of whole
layers."""


def optimizer_bytes(counts: Counts, setup: Setup) -> int:
    """Of an optimizer's state. What may be paged into the host's memory counts too: it is in the card's whenever there
    is room. Of input embeddings the Trainer has bitsandbytes keep it in 32 bit."""
    name = setup.optimizer.removeprefix("paged_")
    numbers = next((count for start, count in _NUMBERS.items() if name.startswith(start)), 2)
    width = 1 if "8bit" in name else 0.5 if "4bit" in name else _FP32
    wide = counts.vocabulary * counts.width if setup.full and "8bit" in name and "torch" not in name else 0
    return round(numbers * (width * (counts.trained - wide) + _FP32 * wide))


def _scored(setup: Setup) -> int:
    return setup.batch * min(setup.scored or setup.length, setup.length)


def _head_bytes(counts: Counts, setup: Setup) -> int:
    width = 2 if setup.dtype == "bfloat16" else _FP32
    tile = _TILE_COLUMNS * width + (0 if setup.gpu else 5 * _FP32 * min(counts.vocabulary, _TILE_COLUMNS))
    return _scored(setup) * counts.width * (width + _FP32) + min(_scored(setup), _TILE_ROWS) * tile


def _head_flops(counts: Counts, setup: Setup, products: int) -> int:
    return products * 2 * _scored(setup) * counts.width * counts.vocabulary


def _training_flops(counts: Counts, traced: Passes, setup: Setup) -> int:
    """Of a micro-batch's forward and backward pass."""
    return traced.forward + traced.backward + _head_flops(counts, setup, 4 if counts.head_trained else 3)


def _forward_and_probe(counts: Counts, traced: Passes, setup: Setup) -> tuple[int, int]:
    """Of a forward pass alone, and of a forward and backward pass that gives gradients of activations only."""
    ahead = traced.forward + _head_flops(counts, setup, 1)
    return ahead, traced.forward + traced.probe + _head_flops(counts, setup, 3)


@dataclass(frozen=True, kw_only=True)
class RepairNeeds:
    """What a repair needs: bytes of one process, operations in all, bytes on disk."""

    method: str
    weights: int
    activations: int
    norms: int
    flops: int
    passes: str
    kept: int

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.norms


def repair(
    config: PretrainedConfig, setup: Setup, method: str | Method, rows: int, *, memory: bool = True
) -> RepairNeeds:
    """What a repair needs: its passes over `rows` rows of its own data, `setup.batch` at a time, without the LM head.

    It holds the model and each further one that it asks for, and what its `cost` states for the weights that it may
    change (of an adapter's, those of its linear layers). Arguments otherwise, and errors, as of `estimate`.
    """
    import torch

    acting: Method = made("repairs", method) if isinstance(method, str) else method
    cost, plain = acting.cost(), replace(setup, checkpointing=False)
    _check(setup)
    counts, traced = passes(config, plain, probes=False, memory=memory)
    model = whole(config, plain)
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    ours = [m for m in linears if m.weight.requires_grad or cost.changes != "adapter"]
    sizes = [m.weight.numel() for m in ours]
    features = sum(m.in_features for m in ours)
    pairs = sum(m.in_features**2 for m in ours)
    if cost.changes == "all":
        sizes = [p.numel() for p in model.parameters()]
    width = 2 if setup.dtype == "bfloat16" else _FP32
    plainly = setup.full or cost.changes != "adapter"  # quantised weights are dequantised to be changed
    one = width * counts.all if plainly else base_bytes(counts, setup) + _FP32 * counts.carried
    one += 0 if setup.full else _FP32 * counts.trained
    activations = traced.activations
    if not cost.once_passes:
        activations = _forward_bytes(config, plain, layers_before(model)) if memory and cost.once_forwards else 0
    per_batch = cost.once_passes * (traced.forward + traced.backward) + cost.once_forwards * traced.forward
    ahead, back = cost.once_forwards + cost.once_passes, cost.once_passes
    said = [f"{count:.3g} {what}" for count, what in ((ahead, "forward"), (back, "backward")) if count]
    return RepairNeeds(
        method=type(acting).__name__.lower(),
        weights=one * (1 + len(acting.model_inputs())),
        activations=activations,
        norms=round(cost.per_input * features + cost.per_pair * pairs + cost.working * max(sizes, default=0)),
        flops=round(per_batch * math.ceil(rows / setup.batch)),
        passes=f"{', '.join(said)} in all" if said else "none",
        kept=math.ceil(cost.kept * sum(sizes)),
    )


def _forward_bytes(config: PretrainedConfig, setup: Setup, before: int) -> int:
    """Bytes that a forward pass alone has alive at most, which more layers do not raise."""
    import torch

    with fake_tensors(), torch.no_grad():
        decoder = decoder_of(build(shortened(config, before + 2), setup).eval())
        ids = torch.zeros(setup.batch, setup.length, dtype=torch.long)
        mask = torch.ones_like(ids)
        with live_bytes()([ids, mask, *decoder.parameters(), *decoder.buffers()]) as counted:
            decoder(input_ids=ids, attention_mask=mask, use_cache=False)
    return counted.peak
