"""What a repair changed in a model: saved, applied to a fresh copy, undone bit for bit.

A repair computes new values, notes them in a `Delta`, and applies that:

    delta = Delta(repair="mine", settings=self.settings())
    delta.mark("model.layers.0.mlp.up_proj.weight", mask, values)      # some entries of a weight
    delta.replace("model.norm.weight", tensor)                         # a whole weight
    delta.replace_factors("model.layers.0.self_attn.q_proj", a, b)     # LoRA's factors, of any rank
    return delta.apply(model)

Weights go by their names in the plain model, factors of the active adapter by "LAYER.lora_A" and "LAYER.lora_B".
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mithridate.errors import InputError, MithridateError
from mithridate.files import replacing
from mithridate.repairs.changes import (
    NOTHING,
    Change,
    Dense,
    Entries,
    Factors,
    Place,
    Undo,
    alike,
    as_left,
    known_by,
    lies_unmerged,
    make,
    makes_nothing,
    put_back,
)
from mithridate.repairs.linears import (
    active,
    adapted,
    base_linear,
    check_adapters,
    factors,
    weights,
)
from mithridate.training.quantised import as_stored

FILE = "delta.safetensors"
_FORMAT = "mithridate-delta/1"
# How far off they may be, as a share of their size: merging rounds a little differently on another device.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 4e-3}

_CHANGED_SINCE = (
    "not as this repair left it: undone already, never repaired, trained or repaired again since, its adapter "
    "unmerged or its dtype changed since, or another model. Undo it on the model that it repaired, and what came "
    "after it first."
)


_KINDS = {"entries": Entries, "dense": Dense, "factors": Factors}


@dataclass
class Delta:
    """What a repair changed.

    Attributes:
        repair: its name.
        settings: its settings.
        notes: what a reader of the numbers should know.
        merged: whether the new values are those of weights with the adapter merged into them: `apply` merges it first.
            Where no weight under an adapter is changed it is False once applied.
        dequantised: whether it was made on the plain model of a quantised one, and fits no other (4 and 8 bits hold no
            new values).
        changes: by name, what became of each tensor.
    """

    repair: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    merged: bool = True
    dequantised: bool = False
    changes: dict[str, Entries | Dense | Factors] = field(default_factory=dict, repr=False)
    _before: dict[tuple[str, str], Tensor] = field(default_factory=dict, repr=False)  # how each is known again
    _undo: dict[str, Undo] | None = field(default=None, repr=False)
    _patterns: list[Any] = field(default_factory=list, repr=False)  # ranks and alphas in LoRA's config: before, after

    # -- made by a repair ---------------------------------------------------------------------------

    def mark(self, name: str, mask: Tensor, values: Tensor | None = None) -> None:
        """Entries of a tensor become `values`.

        Args:
            name: of a weight, or of a LoRA factor.
            mask: bool, of its shape.
            values: [marked entries], row by row; None: zero.
        """
        if values is not None:
            values = _own(values)
            if values.shape != (int(mask.sum()),):
                raise InputError(f"{name}: {tuple(values.shape)} values for {int(mask.sum())} marked entries")
            values = values if bool(values.any()) else None
        self.changes[name] = Entries(tuple(mask.shape), np.packbits(mask.flatten().cpu().numpy()), values)

    def replace(self, name: str, value: Tensor) -> None:
        """A tensor becomes `value`, of its shape."""
        self.changes[name] = Dense(_own(value))

    def replace_factors(self, layer: str, a: Tensor, b: Tensor, scaling: float | None = None) -> None:
        """The factors of the active adapter at a layer become A [rank, in] and B [out, rank].

        Args:
            layer: name of the linear layer.
            a, b: of any rank, the same in both.
            scaling: of B A; None: as it is.
        """
        if a.dim() != 2 or b.dim() != 2 or b.shape[1] != a.shape[0]:
            raise InputError(f"{layer}: factors of shape {tuple(a.shape)} and {tuple(b.shape)} have no product B A")
        self.changes[layer] = Factors(_own(a), _own(b), scaling)

    def rounded(self, dtype: torch.dtype) -> Self:
        """For a model in `dtype`: new values of weights that were made in a wider one are rounded to it. Those of
        LoRA's factors, which are in float32 over any model, are left. Returns itself."""
        for name, change in self.changes.items():
            if isinstance(change, Factors) or _of_a_factor(name):
                continue
            if isinstance(change, Dense):
                change.value = _narrowed(change.value, dtype)
            elif change.values is not None:
                change.values = _narrowed(change.values, dtype)
        return self

    # -- what it says -------------------------------------------------------------------------------

    @property
    def mask(self) -> Self:
        """Itself: a repair's report once held a mask of its own."""
        return self

    def __getitem__(self, name: str) -> Tensor:
        """Which entries of a tensor were changed: bool, of its shape, on the CPU."""
        change = self.changes[name]
        return change.mask() if isinstance(change, Entries) else torch.ones(change.shape, dtype=torch.bool)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each changed tensor; of factors (out, rank, in)."""
        return {name: change.shape for name, change in self.changes.items()}

    @property
    def bits(self) -> dict[str, np.ndarray]:
        """The masks, packed: one bit an entry."""
        return {name: change.bits for name, change in self.changes.items() if isinstance(change, Entries)}

    @property
    def only_factors(self) -> bool:
        """Whether it changed nothing but LoRA's factors, so that the weights beneath are as they were."""
        return all(
            isinstance(change, Factors) or _of_a_factor(name) or not change.count()[0]
            for name, change in self.changes.items()
        )

    def counts(self) -> dict[str, tuple[int, int]]:
        """Changed entries and all entries of each tensor."""
        return {name: change.count() for name, change in self.changes.items()}

    @property
    def total(self) -> tuple[int, int]:
        """Changed entries and all entries of the tensors that it acted on."""
        counts = self.counts().values()
        return sum(changed for changed, _ in counts), sum(entries for _, entries in counts)

    @property
    def digest(self) -> str:
        """SHA-256 over names, shapes and new values: the same change has the same digest, whoever computed it."""
        whole = hashlib.sha256()
        for name, change in sorted(self.changes.items()):
            whole.update(json.dumps([name, change.shape, getattr(change, "alpha", None)]).encode())
            for part, tensor in sorted(change.parts().items()):
                whole.update(part.encode() + _bytes(tensor))
        return whole.hexdigest()

    def table(self) -> str:
        """Shape, changed entries and their share for each tensor and in all, as text; the notes below."""
        counts = self.counts()
        rows = [(n, "x".join(map(str, self.shapes[n])), *counts[n]) for n in counts] + [("all", "", *self.total)]
        width = max(len("weight"), *(len(name) for name, *_ in rows))
        lines = [f"{'weight':<{width}}  {'shape':>12}  {'changed':>12}  {'share':>7}"]
        lines += [f"{n:<{width}}  {shape:>12}  {k:>12,}  {k / of if of else 0:>7.2%}" for n, shape, k, of in rows]
        return "\n".join([*lines, *self.notes])

    # -- on a model ---------------------------------------------------------------------------------

    @torch.no_grad()
    def apply(self, model: Any, aligned: Any = None) -> Self:
        """Changes the model in place; needs no other model. Returns itself, which can then be undone.

        The first time, the model is the one that the repair was made on, and is remembered by some of its entries;
        after that, only the same model is taken.

        Args:
            model: changed in place, or left as it is where this raises.
            aligned: not used: it was needed when masks held no values.

        Raises:
            InputError: the model lacks a changed tensor, has it in another shape or dtype, or is another model than
                the one that this was made for (repaired already, or trained further).
            UnsupportedSetup: its adapters are of a kind that `check_adapters` refuses.
        """
        places = self._places(model)
        first = not self._before
        if first:
            changed = (name for name, change in self.changes.items() if not makes_nothing(change))
            self.merged = self.merged and any(lies_unmerged(self.changes[name], places[name]) for name in changed)
        before = {}
        for name, change in self.changes.items():
            before |= {(name, part): known for part, known in known_by(change, places[name], self.merged).items()}
        if first:
            self._fit(places)
            self._before = before
        else:
            for (name, part), known in self._before.items():
                if part == "factors" and places[name].beneath is None and (name, part) not in before:
                    continue  # the adapter was merged before: its weight tells
                # Factors are stored, never merged: they are the same everywhere.
                tolerance = 1e-6 if part == "factors" else _TOLERANCE.get(places[name].tensor.dtype, 1e-4)
                if not alike(known, before.get((name, part)), tolerance):
                    raise InputError(
                        f"{name}: this repair was made for other weights: the model is another one, is repaired "
                        "already, or was trained since. Apply it to the model it was made on, or run the repair on "
                        "this one."
                    )
        undo, changes = {}, self.changes
        if self.merged:  # the rest of the adapter too
            rest = {n: w for n, w in weights(model).items() if w.lora is not None and n not in changes}
            places |= {name: Place(weight.tensor, weight.lora, None) for name, weight in rest.items()}
            changes = changes | dict.fromkeys(rest, NOTHING)
        try:
            for name, change in changes.items():
                undo[name] = make(change, places[name], self.merged)
        except BaseException:  # out of memory, interrupted
            for name in undo:
                put_back(changes[name], undo[name], places[name])
            raise
        self._undo, self._patterns = undo, []
        if any(isinstance(change, Factors) for change in self.changes.values()):
            before = _patterns(model)
            _set_patterns(model, _each_layer(model))
            self._patterns = [before, _patterns(model)]
        return self

    @torch.no_grad()
    def undo(self, model: Any) -> None:
        """Puts everything back, bit for bit: values, factors and their rank, adapters that `apply` merged.

        With a delta that was read from a file, on a model that was saved with its adapter merged, the adapter stays
        merged.

        Raises:
            InputError: there is nothing to undo, or the model is not exactly as the repair left it. Nothing is changed
                then.
        """
        if self._undo is None:
            raise InputError(
                "there is nothing to undo: this repair was not applied yet, is undone already, or was saved without "
                "the values that it replaced (save(folder, undo=True) keeps them)"
            )
        lost = [name for name, undo in self._undo.items() if undo.unmerged is not None and name not in _lora(model)]
        if lost:
            raise InputError(
                f"{lost[0]}: the adapter that this repair merged is gone (merge_and_unload), so it cannot be taken "
                "out again. Undo before merge_and_unload(), or load base and adapter anew. To take the repair alone "
                "out of a merged model: save(folder, undo=True), then Delta.load(folder).undo(model)."
            )
        places, found = self._places(model), weights(model)
        rest = [name for name in self._undo if name not in self.changes]
        places |= {name: Place(found[name].tensor, found[name].lora, None) for name in rest}
        changes = self.changes | dict.fromkeys(rest, NOTHING)
        for name, undo in self._undo.items():
            if not as_left(changes[name], undo, places[name]):
                raise InputError(f"{name}: {_CHANGED_SINCE}")
        if self._patterns and _patterns(model) != self._patterns[1]:
            raise InputError(f"The ranks in the adapter's config: {_CHANGED_SINCE}")
        for name, undo in self._undo.items():
            put_back(changes[name], undo, places[name])
        if self._patterns:
            _set_patterns(model, self._patterns[0])
        self._undo, self._patterns = None, []

    def _places(self, model: Any) -> dict[str, Place]:
        """Where each change goes. Raises InputError where the model has no such place."""
        check_adapters(as_stored(model))
        found, parts, over = weights(model), factors(model), adapted(model)
        places = {}
        for name, change in self.changes.items():
            tensor: Any
            factor = name in parts or isinstance(change, Factors)
            if factor:
                layer = over.get(name if isinstance(change, Factors) else name.rpartition(".")[0])
                if layer is None or layer.merged:
                    what = "has no LoRA adapter there" if layer is None else "has its adapter merged: unmerge it first"
                    raise InputError(f"{name}: the repair changed LoRA's factors, and the model {what}")
            if isinstance(change, Factors):
                assert layer is not None
                beneath = base_linear(layer)
                if change.a.shape[1] != beneath.in_features or change.b.shape[0] != beneath.out_features:
                    raise InputError(f"{name}: factors {change.shape} do not fit the model's layer")
                places[name] = Place(layer.lora_A[active(layer)].weight, layer, beneath.weight)
                continue
            if factor:
                beneath, tensor, layer = base_linear(layer).weight, parts[name].weight, None
            elif name in found:
                beneath, tensor, layer = None, found[name].tensor, found[name].lora
            else:
                raise InputError(
                    f"{name}: the model has no such weight. Apply the repair to the model it was made on."
                )
            if tuple(tensor.shape) != change.shape:
                raise InputError(
                    f"{name}: the repair is for shape {change.shape} and the model has it with shape "
                    f"{tuple(tensor.shape)}"
                )
            known = change.value if isinstance(change, Dense) else change.values
            if self._before and known is not None and known.dtype != tensor.dtype and not factor:
                raise InputError(
                    f"{name}: the repair was made in {known.dtype} and the model is in {tensor.dtype}. Load it in "
                    f"{known.dtype}."
                )
            places[name] = Place(tensor, layer, beneath)
        twice = [n for n, c in Counter(id(place.tensor) for place in places.values()).items() if c > 1]
        if twice:
            names = [name for name, place in places.items() if id(place.tensor) == twice[0]]
            raise InputError(
                f"{' and '.join(names)} are one tensor (tied): a repair changes it under one of its names"
            )
        return places

    def _fit(self, places: dict[str, Place]) -> None:
        """New values in the dtype of what they replace, so that a saved delta gives the very same model."""
        for name, change in self.changes.items():
            dtype = places[name].tensor.dtype
            if isinstance(change, Factors):
                layer = places[name].layer
                adapter, rank = active(layer), len(change.a)
                scaling = layer.scaling[adapter] if change.scaling is None else change.scaling
                change.alpha = scaling * (math.sqrt(rank) if layer.use_rslora.get(adapter) else rank)
                change.a, change.b = change.a.to(dtype), change.b.to(dtype)
            elif isinstance(change, Dense):
                change.value = change.value.to(dtype)
            elif change.values is not None:
                change.values = change.values.to(dtype)

    # -- on disk ------------------------------------------------------------------------------------

    def save(self, folder: str | Path, undo: bool = False) -> None:
        """Writes `delta.safetensors` and `report.json` into a folder.

        Args:
            folder: made where it is missing.
            undo: whether the values that were replaced are kept too, so that the file alone can undo the repair.

        Raises:
            InputError: `undo` is asked for, and nothing was applied yet.
            MithridateError: it cannot be written.
        """
        if undo and self._undo is None:
            raise InputError("undo values are there only after apply(), and before undo()")
        tensors = {f"{n}:{part}": t for n, change in self.changes.items() for part, t in change.parts().items()}
        tensors |= {f"{name}:before:{part}": known for (name, part), known in self._before.items()}
        kept = {n: one for n, one in (self._undo or {}).items() if undo and n in self.changes}
        for name, one in kept.items():
            tensors |= {f"{name}:undo:{part}": t.detach().cpu().contiguous() for part, t in one.values.items()}
        kinds = {cls: kind for kind, cls in _KINDS.items()}
        facts: dict[str, Any] = {
            "format": _FORMAT,
            "repair": self.repair,
            "settings": self.settings,
            "notes": self.notes,
            "merged": self.merged,
            "dequantised": self.dequantised,
            "changes": {
                name: {"kind": kinds[type(change)], "shape": change.shape, "alpha": getattr(change, "alpha", None)}
                for name, change in self.changes.items()
            },
            "undo": {name: {"after": one.after, "lora": one.lora} for name, one in kept.items()},
            "patterns": self._patterns if kept else [],
        }
        facts = json.loads(json.dumps(facts, default=str))
        facts["sha256"] = _checksum(facts, tensors)
        changed, entries = self.total
        report = {
            "repair": self.repair,
            "settings": facts["settings"],
            "mask": self.digest,
            "removed": changed,
            "entries": entries,
            "weights": {name: list(count) for name, count in self.counts().items()},
            "notes": self.notes,
        }
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # One key, so that equal changes make equal files (the library orders several keys at random).
            with replacing(folder / FILE) as aside:
                save_file(tensors, aside, metadata={"mithridate": json.dumps(facts, sort_keys=True)})
            (folder / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        except Exception as error:  # OSError, or safetensors' own
            reason = getattr(error, "strerror", None) or error
            raise MithridateError(
                f"{folder}: cannot be written ({reason}). Make room, or give another one."
            ) from error

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads a delta from the folder that it was saved to.

        Raises:
            InputError: the file is missing, damaged, of another version, or no delta.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise InputError(f"{path}: no such file. {_older(path.parent)}Save it again, or run the repair again.")
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})["mithridate"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            form = facts["format"]
            whole = form != _FORMAT or _checksum(facts, tensors) == facts.pop("sha256")
        except Exception as error:  # a file or header that is not ours: KeyError, ValueError, the library's own
            raise InputError(
                f"{path}: damaged, or not of this project. Save it again, or run the repair again."
            ) from error
        if form != _FORMAT:
            raise InputError(f"{path}: of another version ({form}). Run the repair again.")
        if not whole:
            raise InputError(f"{path}: damaged: its content is not what was saved. Run the repair again.")
        delta = cls(facts["repair"], facts["settings"], facts["notes"], facts["merged"])
        undo = {}
        for name, fact in facts["changes"].items():
            delta.changes[name] = _read(name, fact, tensors)
            delta._before |= {(name, part): known for part, known in _under(f"{name}:before:", tensors).items()}
            if name in facts["undo"]:
                values = _under(f"{name}:undo:", tensors)
                undo[name] = Undo(values, facts["undo"][name]["after"], facts["undo"][name]["lora"])
        delta.dequantised = facts.get("dequantised", not delta.only_factors)  # older ones do not say it
        delta._patterns = facts["patterns"]
        delta._undo = undo if undo or (facts["undo"] and not delta.changes) else None
        return delta


def _of_a_factor(name: str) -> bool:
    return name.endswith((".lora_A", ".lora_B"))


def _narrowed(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype) if torch.finfo(dtype).bits < torch.finfo(values.dtype).bits else values


def _lora(model: Any) -> set[str]:
    return {f"{name}.weight" for name in adapted(model)}


def _patterns(model: Any) -> list[dict[str, Any]]:
    """The ranks and alphas of single layers in the active adapter's config."""
    config = _config(model)
    return [dict(config.rank_pattern), dict(config.alpha_pattern)]


def _set_patterns(model: Any, patterns: list[dict[str, Any]]) -> None:
    config = _config(model)
    config.rank_pattern, config.alpha_pattern = (dict(pattern) for pattern in patterns)


def _each_layer(model: Any) -> list[dict[str, Any]]:
    """Such patterns with every layer by its whole name: of several that fit one, PEFT takes any."""
    layers = adapted(model)
    return [
        {name: layer.r[active(layer)] for name, layer in layers.items()},
        {name: layer.lora_alpha[active(layer)] for name, layer in layers.items()},
    ]


def _config(model: Any) -> Any:
    return model.peft_config[active(next(iter(adapted(model).values())))]


def _under(start: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}


def _read(name: str, fact: dict[str, Any], tensors: dict[str, Tensor]) -> Change:
    if fact["kind"] == "dense":
        return Dense(tensors[f"{name}:dense"])
    if fact["kind"] == "factors":
        return Factors(tensors[f"{name}:lora_A"], tensors[f"{name}:lora_B"], alpha=fact["alpha"])
    return Entries(tuple(fact["shape"]), tensors[f"{name}:mask"].numpy(), tensors.get(f"{name}:values"))


def _own(tensor: Tensor) -> Tensor:
    """A copy on the CPU, which nobody else writes to."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _checksum(facts: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 over all that a file says: a flipped bit must not become another model."""
    said = {name: value for name, value in facts.items() if name != "sha256"}
    whole = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(tensors):
        whole.update(name.encode() + _bytes(tensors[name]))
    return whole.hexdigest()


def _older(folder: Path) -> str:
    """What to say of a folder that an earlier release saved."""
    return (
        "Its mask.safetensors is of an earlier release and holds no new values. "
        * (folder / "mask.safetensors").is_file()
    )
