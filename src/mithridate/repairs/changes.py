"""What a repair makes of one tensor (some entries, a whole tensor, both factors of a LoRA layer), and how that is put
in its place in a model, told from another's, and taken back bit for bit. `mithridate.repairs.delta` holds them all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mithridate.repairs.linears import active, effective_weight, merge

_SAMPLE = 64  # entries of a weight by which it is known again


@dataclass
class Entries:
    """Some entries of a tensor.

    Attributes:
        shape: of the whole tensor.
        bits: one bit an entry, row by row, packed into uint8.
        values: what the marked entries become, row by row: [marked]; None: zero.
    """

    shape: tuple[int, ...]
    bits: np.ndarray = field(repr=False)
    values: Tensor | None = field(default=None, repr=False)

    def mask(self) -> Tensor:
        """Bool, of the tensor's shape, on the CPU."""
        flat = np.unpackbits(self.bits, count=math.prod(self.shape)).astype(bool)
        return torch.from_numpy(flat).reshape(self.shape)

    def count(self) -> tuple[int, int]:
        return int(np.unpackbits(self.bits).sum()), math.prod(self.shape)

    def parts(self) -> dict[str, Tensor]:
        bits = {"mask": torch.from_numpy(self.bits)}
        return bits if self.values is None else bits | {"values": self.values}


@dataclass
class Dense:
    """A whole tensor: `value` takes its place."""

    value: Tensor = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    def count(self) -> tuple[int, int]:
        return self.value.numel(), self.value.numel()

    def parts(self) -> dict[str, Tensor]:
        return {"dense": self.value}


@dataclass
class Factors:
    """Both factors of a LoRA layer, of any rank.

    Attributes:
        a: [rank, in].
        b: [out, rank].
        scaling: of B A; None: as the layer has it.
        alpha: LoRA's alpha, from which PEFT computes the scaling; known once applied.
    """

    a: Tensor = field(repr=False)
    b: Tensor = field(repr=False)
    scaling: float | None = None
    alpha: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.b), len(self.a), self.a.shape[1])

    def count(self) -> tuple[int, int]:
        entries = self.a.numel() + self.b.numel()
        return entries, entries

    def parts(self) -> dict[str, Tensor]:
        return {"lora_A": self.a, "lora_B": self.b}


Change = Entries | Dense | Factors
NOTHING = Entries((0,), np.zeros(0, np.uint8))
"""Of a weight under an adapter that is merged with the others."""


@dataclass(frozen=True)
class Place:
    """Where a change goes.

    Attributes:
        tensor: what is changed; of both factors, A.
        layer: the LoRA layer over it, or whose two factors are changed.
        beneath: of factors, the weight that they add to.
    """

    tensor: nn.Parameter
    layer: Any
    beneath: Tensor | None


@dataclass
class Undo:
    """What takes a change back.

    Attributes:
        values: what stood there: "values" (marked entries), "dense", or "lora_A" and "lora_B".
        after: checksum of the tensors as the repair left them.
        lora: of factors: rank, alpha and the config's patterns before.
        unmerged: the weight beneath an adapter that `apply` merged into it.
        merged: checksum of that adapter's factors.
    """

    values: dict[str, Tensor]
    after: int = 0
    lora: dict[str, Any] = field(default_factory=dict)
    unmerged: Tensor | None = None
    merged: int = 0


def makes_nothing(change: Change) -> bool:
    return isinstance(change, Entries) and not change.bits.any()


def lies_unmerged(change: Change, place: Place) -> bool:
    """Whether a weight lies under an adapter that is not merged."""
    return not isinstance(change, Factors) and place.layer is not None and not place.layer.merged


def _current(change: Change, place: Place, merged: bool) -> Tensor:
    """The tensor at a place, in its own dtype; with the adapter merged, where it is going to be."""
    if merged and lies_unmerged(change, place):
        return effective_weight(place.layer).to(place.tensor.dtype)
    return place.tensor.detach()


def known_by(change: Change, place: Place, merged: bool) -> dict[str, Tensor]:
    """By what a tensor is known again, part by part: size and some entries; each [n], fp64."""
    parts = {} if place.beneath is None else {"beneath": _sketch(place.beneath)}
    if isinstance(change, Factors) or (merged and lies_unmerged(change, place)):
        parts["factors"] = torch.cat([_sketch(part) for part in _pair(place)])
    if isinstance(change, Factors):
        return parts
    now = _current(change, place, merged)
    parts["weight" if place.beneath is None else "factors"] = _sketch(now)
    if isinstance(change, Entries):
        parts["marked"] = _sketch(now[change.mask().to(now.device)])
    return parts


def _sketch(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    if hasattr(tensor, "quant_state"):
        flat = flat.view(torch.uint8)  # of a weight in 4 bit, what is stored, which may go by a dtype of floats
    flat = flat if flat.is_floating_point() else flat.float()
    wide = torch.float64 if flat.dtype == torch.float64 else torch.float32
    size = torch.linalg.vector_norm(flat, dtype=wide).double() / max(1, flat.numel()) ** 0.5
    step = max(1, flat.numel() // _SAMPLE)
    return torch.cat([size.reshape(1), flat[::step][:_SAMPLE].double()]).cpu()


def alike(known: Tensor, now: Tensor | None, tolerance: float) -> bool:
    if now is None or known.shape != now.shape:
        return False
    return float((known - now).norm()) <= tolerance * float(known.norm())


def make(change: Change, place: Place, merged: bool) -> Undo:
    """Makes one change. Returns what takes it back."""
    tensor = place.tensor
    if isinstance(change, Factors):
        return _swap_factors(change, place)
    unmerged = None
    if merged and lies_unmerged(change, place):
        unmerged = tensor.detach().clone()
        merge(place.layer)
    if isinstance(change, Dense):
        undo = Undo({"dense": tensor.detach().clone()}, unmerged=unmerged)
        tensor.copy_(change.value)
    elif change is NOTHING:
        undo = Undo({}, unmerged=unmerged)
    else:
        mask = change.mask().to(tensor.device)
        undo = Undo({"values": tensor[mask].clone()}, unmerged=unmerged)
        tensor[mask] = 0 if change.values is None else change.values.to(tensor)
    undo.after = _state(change, place)
    undo.merged = 0 if unmerged is None else _checksum_of(_pair(place))
    return undo


def _swap_factors(change: Factors, place: Place) -> Undo:
    layer, adapter = place.layer, active(place.layer)
    undo = Undo({"lora_A": layer.lora_A[adapter].weight, "lora_B": layer.lora_B[adapter].weight})
    undo.lora = {
        "r": layer.r[adapter],
        "alpha": layer.lora_alpha[adapter],
        "scaling": layer.scaling[adapter],
    }
    _set_factors(layer, change.a.to(place.tensor), change.b.to(place.tensor))
    rank, alpha = len(change.a), change.alpha
    assert alpha is not None
    layer.r[adapter], layer.lora_alpha[adapter] = rank, alpha
    layer.scaling[adapter] = alpha / (math.sqrt(rank) if layer.use_rslora.get(adapter) else rank)
    undo.after = _state(change, place)
    return undo


def _set_factors(layer: Any, a: Tensor, b: Tensor) -> None:
    adapter = active(layer)
    for module, value in ((layer.lora_A[adapter], a), (layer.lora_B[adapter], b)):
        trained = module.weight.requires_grad
        module.weight = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=trained)
        module.out_features, module.in_features = value.shape


def _pair(place: Place) -> list[Tensor]:
    """Both factors of the active adapter at a layer."""
    adapter = active(place.layer)
    return [place.layer.lora_A[adapter].weight.detach(), place.layer.lora_B[adapter].weight.detach()]


def _state(change: Change, place: Place) -> int:
    return _checksum_of(_pair(place) if isinstance(change, Factors) else [place.tensor.detach()])


def _checksum_of(tensors: list[Tensor]) -> int:
    """Exact to the bit, the same on every device."""
    return sum(_sum_of_bits(tensor) * (2 * i + 1) for i, tensor in enumerate(tensors)) % 2**63


def _sum_of_bits(tensor: Tensor) -> int:
    """Sum of each entry's bits as a whole number times its place; whole numbers add up the same in any order."""
    wide = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    flat, total, chunk = tensor.contiguous().view(-1).view(wide), 0, 1 << 22
    for start in range(0, flat.numel(), chunk):
        part = flat[start : start + chunk].to(torch.int64)
        place = torch.arange(start + 1, start + 1 + len(part), device=part.device) % 65_521 + 1
        total += int((part * place).sum())
    return total


def as_left(change: Change, undo: Undo, place: Place) -> bool:
    ours = undo.unmerged is None or (
        place.layer.merged_adapters == [active(place.layer)] and _checksum_of(_pair(place)) == undo.merged
    )
    return ours and _state(change, place) == undo.after


def put_back(change: Change, undo: Undo, place: Place) -> None:
    tensor, layer = place.tensor, place.layer
    if isinstance(change, Factors):
        adapter = active(layer)
        a, b = undo.values["lora_A"], undo.values["lora_B"]
        if not isinstance(a, nn.Parameter):  # read from a file
            a, b = a.to(tensor), b.to(tensor)
        _set_factors(layer, a, b)
        layer.r[adapter], layer.lora_alpha[adapter] = undo.lora["r"], undo.lora["alpha"]
        layer.scaling[adapter] = undo.lora["scaling"]
    elif undo.unmerged is not None:
        tensor.copy_(undo.unmerged)
        layer.merged_adapters.clear()
    elif isinstance(change, Dense):
        tensor.copy_(undo.values["dense"])
    else:
        tensor[change.mask().to(tensor.device)] = undo.values["values"].to(tensor)
