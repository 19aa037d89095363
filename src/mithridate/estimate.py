"""What a training or a repair will need, before money is spent: memory, passes, operations, disk. No weights are read.

The passes of one micro-batch are run on fake tensors (`fakemodel.py`), through the layers' own code, so the counts
hold for any architecture that transformers has, and follow its code, not a formula for Llama.

Memory of one process, in bytes, with N weights, n trained ones, c bytes a weight of the base (2 in bfloat16, else 4):

    weights      c N (adapters: c N + 4 n);  all weights trained: 4 N
    gradients    4 n
    optimizer    8 n                          AdamW's two moments, in float32
    method       Booster 8 n                  the step's direction, and the weights before it
                 Lisa    4 n                  the anchor
                 Vaccine                      what its two passes need beyond plain training's, as the passes show
                 DDP     4 n                  the buckets in which gradients are exchanged
    activations  the highest sum A of all tensors that are alive at once in the passes, as the fake passes show. Where
                 no gradient is there before, those grow while the activations shrink: max(A, 4 n + A of a layer) - 4 n
    head         h s (c + 4) + t (32768 c + 4 x min(V, 32768))      s scored positions a micro-batch, t = min(s, 4096),
                                          h the hidden size, V the vocabulary; x = 0 on GPUs, 5 elsewhere (TRL's fused
                                          head, with and without its kernel)

FSDP2 over k processes divides weights, gradients, optimizer and method's copies by k, and adds the two largest units
(layers, or the embeddings) whole, in the dtype that computes. Every process needs the whole model in the host's memory
while it loads.

Operations (FLOPs) are those of the matrix products and of attention (counted whole, not halved for the causal mask),
by torch's own counter; the LM head adds 2 s h V a product: one in the forward, two in the backward pass (its tiles are
computed again), one more where it is trained. Passes relative to plain training are the ratio of these, so time is
only as good as the assumption that all products run at one speed.

Disk: the weights that a stage leaves (4 n), once for itself and once for each snapshot, and while it trains two
checkpoints of 12 n (Lisa: 16 n).

Not counted: what the libraries and the device's driver need, the allocator's fragments, and anything else on the
machine. docs/scale.md has predicted and measured figures side by side.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mithridate.errors import InputError
from mithridate.fakemodel import (
    Counts,
    Setup,
    build,
    decoder_of,
    fake_tensors,
    layers_before,
    live_bytes,
    passes,
    shortened,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig

METHODS = ("plain", "vaccine", "booster", "lisa")

_FP32 = 4
_TILE_ROWS, _TILE_COLUMNS = 4096, 32768  # of TRL's fused LM head


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes of one process, operations of one optimizer step on all processes, bytes on disk."""

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


def estimate(config: PretrainedConfig, setup: Setup, method: str = "plain", every: int = 1) -> Estimate:
    """What a training with a method (one of `METHODS`) needs.

    Args:
        every: the field of Vaccine and Booster: the steps between are plain ones. Memory is that of the others, and
            operations are those of a step on average.

    Raises:
        InputError: no such method, an adapter that does not fit the model, or a value that means nothing.
        UnsupportedSetup: Vaccine on a model that does not declare its attention modules.
    """
    if method not in METHODS:
        raise InputError(
            f"method: no such method {method!r}; there are: {', '.join(METHODS)} (and antidote, a repair)"
        )
    for name in ("batch", "length", "accumulation", "steps", "processes"):
        if getattr(setup, name) < 1:
            raise InputError(f"{name}: expected at least 1, got {getattr(setup, name)}")
    counts, traced = passes(config, setup)
    n, width = counts.trained, 2 if setup.dtype == "bfloat16" else _FP32
    share = setup.processes if setup.sharded else 1
    weights = (_FP32 * counts.all if setup.full else width * counts.all + _FP32 * n) // share
    gradients, optimizer = _FP32 * n // share, optimizer_bytes(n) // share
    copies = {"booster": 2, "lisa": 1}.get(method, 0) * _FP32 * n // share
    # Gradients that are not there before grow as activations shrink: the first or the last layer's pass is fullest.
    fresh = max(traced.activations, gradients + traced.layer) - gradients
    activations = traced.activations if setup.accumulation > 1 else fresh
    if method == "booster":  # its own gradients are taken beside two copies, then the step's are added to beside none
        activations = max(fresh, traced.activations - copies)
    extra = copies + (traced.vaccine - traced.activations if method == "vaccine" else 0)
    if share > 1:
        weights += width * 2 * max(counts.layer, counts.embeddings)
    elif setup.processes > 1:
        extra += _FP32 * n
    plain = (traced.forward + traced.backward + _head_flops(counts, setup)) * setup.accumulation * setup.processes
    probe = (traced.forward + traced.probe + _head_flops(counts, setup, probe=True)) * setup.accumulation
    more = {"vaccine": probe * setup.processes, "booster": 2 * plain}.get(method, 0)
    named = {"vaccine": "2 forward, 2 backward", "booster": "3 forward, 3 backward"}.get(method)
    return Estimate(
        method=method,
        counts=counts,
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        extra=extra,
        activations=activations,
        head=_head_bytes(counts, setup),
        flops=plain + round(more / every),
        plain_flops=plain,
        passes=(named or "1 forward, 1 backward") + (f", 1 step of {every}" if named and every > 1 else ""),
        kept=_FP32 * n * (1 + setup.snapshots),
        checkpoints=2 * (_FP32 * n + optimizer_bytes(n) + (_FP32 * n if method == "lisa" else 0)),
    )


def optimizer_bytes(trained: int) -> int:
    """Of AdamW's two moments of each trained weight, in float32."""
    return 2 * _FP32 * trained


def _scored(setup: Setup) -> int:
    return setup.batch * min(setup.scored or setup.length, setup.length)


def _head_bytes(counts: Counts, setup: Setup) -> int:
    width = 2 if setup.dtype == "bfloat16" else _FP32
    tile = _TILE_COLUMNS * width + (0 if setup.gpu else 5 * _FP32 * min(counts.vocabulary, _TILE_COLUMNS))
    return _scored(setup) * counts.width * (width + _FP32) + min(_scored(setup), _TILE_ROWS) * tile


def _head_flops(counts: Counts, setup: Setup, probe: bool = False) -> int:
    product = 2 * _scored(setup) * counts.width * counts.vocabulary
    return product * (4 if counts.head_trained and not probe else 3)


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What Antidote needs: bytes of one process, operations in all, bytes on disk."""

    weights: int
    activations: int
    norms: int
    flops: int
    kept: int

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.norms


def antidote(
    config: PretrainedConfig, setup: Setup, rows: int, targets: str = "adapters", ratio: float = 0.2
) -> Repair:
    """What the repair needs: one forward pass over `rows` calibration rows, `setup.batch` at a time.

    Scores (8 bytes an entry) are held for one weight at a time; `targets="update"` holds the aligned model too, and
    scores the difference, in float32. What a mask keeps: one bit an entry, and the values that it removed (4 bytes).
    """
    import torch

    plain = replace(setup, checkpointing=False)
    counts, traced = passes(config, plain)
    with fake_tensors(), torch.no_grad():
        model = build(config, plain)
        decoder = decoder_of(build(shortened(config, layers_before(model) + 2), plain).eval())
        ids = torch.zeros(setup.batch, setup.length, dtype=torch.long)
        mask = torch.ones_like(ids)
        with live_bytes()([ids, mask, *decoder.parameters(), *decoder.buffers()]) as counted:
            decoder(input_ids=ids, attention_mask=mask, use_cache=False)
        linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
        ours = [m for m in linears if m.weight.requires_grad] if targets == "adapters" else linears
        entries = sum(m.weight.numel() for m in ours)
        largest = max((m.weight.numel() for m in ours), default=0)
        features = sum(m.in_features for m in ours)
    width = 2 if setup.dtype == "bfloat16" else _FP32
    one = width * counts.all + (0 if setup.full else _FP32 * counts.trained)
    scores = 8 * largest + (2 * _FP32 * largest if targets != "adapters" else 0)
    return Repair(
        weights=one * (2 if targets == "update" else 1),
        activations=counted.peak,
        norms=8 * features + scores,
        flops=traced.forward * math.ceil(rows / setup.batch),
        kept=entries // 8 + math.ceil(ratio * entries) * _FP32,
    )
