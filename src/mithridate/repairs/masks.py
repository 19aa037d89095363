"""Masks over weights: which entries a repair removed, and what stood there; saved, applied, undone."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mithridate.errors import InputError
from mithridate.models import check_safetensors
from mithridate.repairs.linears import (
    active,
    adapted,
    base_linear,
    check_plain_lora,
    decoder_linears,
    effective_weight,
    merge,
)

FILE = "mask.safetensors"
_FORMAT = "mithridate-mask/1"


def share(ratio: float, entries: int) -> int:
    """ceil(ratio * entries), with the ratio taken as the decimal number that was written: 0.1 of 30 is 3, not 4."""
    return math.ceil(Fraction(repr(float(ratio))) * entries)


def highest(score: Tensor, ratio: float) -> Tensor:
    """Marks the `share(ratio, n)` highest scores in each row of [rows, n]; ties to the lower column."""
    count = share(ratio, score.shape[-1])
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    threshold = score.topk(count, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    marked = score >= threshold
    if bool((marked.sum(-1) == count).all()):  # no ties at the threshold
        return marked
    above, level = score > threshold, score == threshold
    return above | (level & (level.cumsum(-1) <= count - above.sum(-1, keepdim=True)))


@dataclass
class Mask:
    """Entries of weights that a repair removes.

    Attributes:
        settings: of the repair that made it (`targets` says what the entries are set to).
        shapes: of the masked weights, by name: a linear layer's name with ".weight", ".lora_A" or ".lora_B".
        bits: one bit an entry, row by row, packed into uint8.
        removed: the values that stood in the marked entries, row by row, in the weight's dtype; filled by `apply`.
    """

    settings: dict[str, Any]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    bits: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    removed: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _unmerged: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def mark(self, name: str, mask: Tensor) -> None:
        """Sets a weight's mask: a bool tensor of its shape."""
        self.shapes[name] = tuple(mask.shape)
        self.bits[name] = np.packbits(mask.flatten().cpu().numpy())

    def __getitem__(self, name: str) -> Tensor:
        """A weight's mask: bool, of its shape, on the CPU."""
        shape = self.shapes[name]
        return torch.from_numpy(np.unpackbits(self.bits[name], count=math.prod(shape)).astype(bool)).reshape(shape)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Marked entries and all entries of each weight."""
        return {n: (int(np.unpackbits(self.bits[n]).sum()), math.prod(s)) for n, s in self.shapes.items()}

    @property
    def digest(self) -> str:
        """SHA-256 over names, shapes and bits: the same mask has the same digest, whoever computed it."""
        whole = hashlib.sha256()
        for name in sorted(self.shapes):
            whole.update(json.dumps([name, self.shapes[name]]).encode())
            whole.update(self.bits[name].tobytes())
        return whole.hexdigest()

    def _checksum(self) -> str:
        """SHA-256 over the mask and what it removed: a flipped bit in the file must not become an undo."""
        whole = hashlib.sha256(self.digest.encode())
        for name in sorted(self.removed):
            whole.update(self.removed[name].cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return whole.hexdigest()

    @torch.no_grad()
    def apply(self, model: nn.Module, aligned: nn.Module | None = None) -> None:
        """Sets the marked entries to zero (`targets` adapters, merged) or to the aligned model's values (update).

        For "merged" and "update" an adapter that is not merged yet is merged into the weights first.

        Args:
            model: changed in place.
            aligned: the model before its fine-tuning; needed for "update".

        Raises:
            InputError: the model lacks a masked weight, or the mask was made for other weights.
        """
        weights = list(self._weights(model))
        before = {}
        if self.settings["targets"] == "update":
            if aligned is None:
                raise InputError("this mask puts entries back to the aligned model's: pass that model as `aligned`")
            before = layers(aligned)
        for name, layer, weight in weights:  # all checks come before the first change
            home = before.get(name.removesuffix(".weight"))
            if before and (home is None or base_linear(home).weight.shape != weight.shape):
                raise InputError(
                    f"{name}: the aligned model has no such weight, so it is no earlier state of this one"
                )
            if (known := self.removed.get(name)) is not None:
                here = (weight if layer is None else effective_weight(layer))[self[name].to(weight.device)]
                scale = 1e-3 * float(known.float().abs().max()) if known.numel() else 0.0
                # Not bit for bit: merging rounds a little differently on another device.
                if not torch.allclose(here.float().cpu(), known.float().cpu(), rtol=0.02, atol=scale):
                    raise InputError(
                        f"{name}: this mask was made for other weights. Apply it to the model it was made on."
                    )
        for name, layer, weight in weights:
            mask = self[name].to(weight.device)
            if layer is not None and hasattr(layer, "merged_adapters") and not layer.merged:
                self._unmerged[name] = weight.detach().clone()
                merge(layer)
            self.removed[name] = weight[mask].clone()
            if before:
                old = effective_weight(before[name.removesuffix(".weight")])
                weight[mask] = old.to(weight.device)[mask].to(weight.dtype)
            else:
                weight[mask] = 0

    @torch.no_grad()
    def undo(self, model: nn.Module) -> None:
        """Puts the removed values back, bit for bit; an adapter that `apply` merged is taken out again likewise.

        With a mask read from a file, on a model that was saved after its repair, an adapter stays merged.

        Raises:
            InputError: nothing was removed yet, or the model lacks a masked weight.
        """
        if self.removed.keys() != self.shapes.keys():
            raise InputError("this mask was not applied yet, so there is nothing to undo")
        for name, layer, weight in self._weights(model):
            weight[self[name].to(weight.device)] = self.removed[name].to(weight)
            if name in self._unmerged and layer is not None:
                weight.copy_(self._unmerged.pop(name))
                layer.merged_adapters.clear()

    def _weights(self, model: nn.Module) -> Iterator[tuple[str, Any, Tensor]]:
        """Name, layer (None for an adapter's factor) and weight of everything masked."""
        factors = self.settings["targets"] == "adapters"
        found = factor_weights(model) if factors else {f"{n}.weight": m for n, m in layers(model).items()}
        for name, shape in self.shapes.items():
            weight = found.get(name) if factors else getattr(base_linear(found.get(name)), "weight", None)
            if weight is None or tuple(weight.shape) != tuple(shape):
                has = "no such weight" if weight is None else f"it with shape {tuple(weight.shape)}"
                what = "adapter" if factors else "model"
                raise InputError(f"{name}: the mask is for shape {tuple(shape)} and the {what} has {has}")
            yield name, (None if factors else found[name]), weight

    def save(self, folder: str | Path) -> None:
        """Writes the mask with what it removed to `mask.safetensors` in a folder."""
        tensors = {}
        for name in self.shapes:
            tensors[f"{name}:mask"] = torch.from_numpy(self.bits[name])
            if name in self.removed:
                tensors[f"{name}:removed"] = self.removed[name].cpu().contiguous()
        facts = {"format": _FORMAT, "settings": self.settings, "shapes": self.shapes, "sha256": self._checksum()}
        Path(folder).mkdir(parents=True, exist_ok=True)
        # One key, so that equal masks make equal files (the library orders several keys at random).
        save_file(tensors, Path(folder) / FILE, metadata={"mithridate": json.dumps(facts, sort_keys=True)})

    @classmethod
    def load(cls, folder: str | Path) -> Mask:
        """Reads a mask from the folder that it was saved to.

        Raises:
            InputError: the file is missing, damaged, or no mask.
        """
        path = Path(folder) / FILE
        check_safetensors(path)
        with safe_open(path, framework="pt") as file:
            try:
                facts = json.loads((file.metadata() or {})["mithridate"])
                shapes = {name: tuple(shape) for name, shape in facts["shapes"].items()}
                mask = cls(settings=facts["settings"], shapes=shapes)
                mask.bits = {name: file.get_tensor(f"{name}:mask").numpy() for name in shapes}
                stored = set(file.keys())
                mask.removed = {n: file.get_tensor(f"{n}:removed") for n in shapes if f"{n}:removed" in stored}
            except Exception as error:  # a header that is not ours: KeyError, ValueError, the library's own
                raise InputError(
                    f"{path}: not a mask of this project. Give the folder that a report saved."
                ) from error
        if facts["format"] != _FORMAT or mask._checksum() != facts["sha256"]:
            raise InputError(f"{path}: damaged, or of another version ({facts['format']}). Run the repair again.")
        return mask


def layers(model: Any) -> dict[str, Any]:
    """The linear layers that "merged" and "update" may act on: those under an adapter, or all of the decoder."""
    return adapted(model) or decoder_linears(model)


def factor_weights(model: nn.Module) -> dict[str, Tensor]:
    """Both factors of the active adapter: A [r, in] as "NAME.lora_A", B [out, r] as "NAME.lora_B"."""
    found = adapted(model)
    check_plain_lora(model, found)
    return {
        f"{name}.{factor}": getattr(layer, factor)[active(layer)].weight
        for name, layer in found.items()
        for factor in ("lora_A", "lora_B")
    }
