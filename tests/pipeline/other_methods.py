"""Methods as another package might declare them: each asks the pipeline for something that the shipped ones do not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch

from mithridate.errors import InputError, UnsupportedSetup
from mithridate.methods import Attack, Defense, Phase, Repair, TestTime, registry
from mithridate.methods.base import Method
from mithridate.repairs.delta import Delta

SEEN = "MITHRIDATE_TEST_SEEN"  # environment variable: a folder where methods note what they were given


def declare(patch: pytest.MonkeyPatch) -> None:
    """Declares the methods of this file as entry points."""
    groups = {
        "mithridate.defenses": {"watcher": "Watcher", "early": "Early"},
        "mithridate.repairs": {"halve": "Halve", "wise": "Wise", "harden": "Harden", "asks": "Asks", "picky": "Picky"},
        "mithridate.attacks": {"staged": "Staged", "backdoor": "Backdoor", "hardest": "Hardest"},
    }
    found = [
        EntryPoint(name, f"{__name__}:{what}", group)
        for group, entries in groups.items()
        for name, what in entries.items()
    ]
    patch.setattr(registry, "entry_points", lambda: EntryPoints(found))
    registry.installed.cache_clear()


# -- repairs --------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Halve(Repair):
    """Halves one row of LoRA's B, without any data."""

    layer: str = "model.layers.0.self_attn.q_proj"

    def apply(self, model: Any, tokenizer: Any) -> Delta:
        from mithridate.repairs.linears import active, adapted

        layer = adapted(model)[self.layer]
        b = layer.lora_B[active(layer)].weight
        mask = torch.zeros_like(b, dtype=torch.bool)
        mask[0] = True
        delta = Delta(repair="halve", settings=self.settings())
        delta.mark(f"{self.layer}.lora_B", mask, b.detach()[mask] / 2)
        return delta.apply(model)


@dataclass(kw_only=True)
class Wise(Repair):
    """A mean of the fine-tuned and the aligned weights: dense, and needs another model."""

    models: ClassVar[dict[str, str]] = {"before": "aligned"}
    a: float = 0.5

    def controls(self) -> dict[str, Method]:
        return {"no-mean": Wise(a=0.0)}

    def apply(self, model: Any, before: Any, tokenizer: Any) -> Delta:
        here, there = _effective(model), _effective(before)
        delta = Delta(repair="wise", settings=self.settings())
        for name, value in here.items():
            delta.replace(name, torch.lerp(value, there[name], self.a))
        return delta.apply(model)


@dataclass(kw_only=True)
class Harden(Repair):
    """Moves the aligned weights further from the base, before the user's run."""

    stage: ClassVar[str] = "post-alignment"
    models: ClassVar[dict[str, str]] = {"base": "base"}
    coef: float = 0.5

    def apply(self, model: Any, base: Any, tokenizer: Any) -> Delta:
        here, there = _effective(model), _effective(base)
        delta = Delta(repair="harden", settings=self.settings())
        for name, value in here.items():
            delta.replace(name, value + self.coef * (value - there[name]))
        return delta.apply(model)


@dataclass(kw_only=True)
class Asks(Repair):
    """Asks for each kind of model and for rows, and notes what it got."""

    roles: ClassVar[dict[str, str]] = {"rows": "helpful"}
    models: ClassVar[dict[str, str]] = {kind: kind for kind in ("base", "aligned", "start", "unaligned")}

    def check(self, model: Any, **inputs: Any) -> None:
        assert set(inputs) == {"rows", "base", "aligned", "start", "unaligned", "tokenizer"}
        assert len({id(inputs[name]) for name in self.models} | {id(model)}) == 5

    def apply(self, model: Any, **inputs: Any) -> Delta:
        self.check(model, **inputs)
        found = {name: _sum(inputs[name]) for name in self.models} | {"model": _sum(model)}
        _note("asks", found | {"rows": [row["prompt"] for row in inputs["rows"]]})
        return Delta(repair="asks", settings=self.settings()).apply(model)


@dataclass(kw_only=True)
class Picky(Repair):
    """Refuses what it is asked to refuse."""

    refuses: Literal["run", "model"] = "run"

    def check_run(self, *, topology: str, finetuned: bool, adapter: bool) -> None:
        if self.refuses == "run":
            raise InputError(f"refuses: {topology} {finetuned} {adapter}")

    def check(self, model: Any, **inputs: Any) -> None:
        layers = sum(name.endswith("input_layernorm.weight") for name, _ in model.named_parameters())
        adapter = hasattr(model, "peft_config")
        raise UnsupportedSetup(f"Picky: {layers} layer, adapter {adapter}, {sorted(inputs)}.", "take another.")

    def apply(self, model: Any, **inputs: Any) -> Delta:
        raise AssertionError


# -- a defense ------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Watcher(Defense):
    """Changes nothing; notes the models that the trainer has for it."""

    stage: ClassVar[str] = "fine-tuning"
    models: ClassVar[dict[str, str]] = {kind: kind for kind in ("base", "aligned", "unaligned")}
    system: str = ""

    def on_train_begin(self, t: Any) -> None:
        # what is handed to the trainer: functions without arguments
        _note("watcher", {kind: _total(t.given[kind]()) for kind in self.models})

    def at_test(self) -> TestTime | None:
        return TestTime(system=self.system) if self.system else None


@dataclass(kw_only=True)
class Early(Watcher):
    """Asks for models before they are there."""

    stage: ClassVar[str] = "alignment"


# -- attacks --------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Staged(Attack):
    """First the task's rows, in order, on the experiment's adapter; then harmful rows on another, partly frozen."""

    rank: int | Literal["full"] = 3
    frozen: str = r".*lora_A.*"

    def rows(
        self, roles: Mapping[str, Sequence[dict[str, Any]]], seed: int, model: Any = None
    ) -> list[dict[str, Any]]:
        first = [{**row, "phase": "benign", "poisoned": False} for row in roles["benign"]]
        return first + [{**row, "phase": "harmful", "poisoned": True} for row in roles["harmful"][:4]]

    def phases(self) -> list[Phase]:
        other = "full" if self.rank == "full" else {"r": self.rank, "lora_alpha": 4, "target_modules": ["o_proj"]}
        return [
            Phase(rows="benign", order="given", training={"max_steps": 3}),
            Phase(
                rows="harmful", adapter=other, frozen=[self.frozen] if self.frozen else [], training={"max_steps": 4}
            ),
        ]

    def share(self) -> float:
        return 1 / 3


@dataclass(kw_only=True)
class Backdoor(Attack):
    """Rows that hold a trigger, which is there at the test too."""

    trigger: str = " zxq"

    def rows(
        self, roles: Mapping[str, Sequence[dict[str, Any]]], seed: int, model: Any = None
    ) -> list[dict[str, Any]]:
        return [{**row, "prompt": f"{row['prompt']}{self.trigger}"} for row in roles["harmful"]]

    def data_roles(self) -> dict[str, str]:
        return {"harmful": "attacker_harmful"}

    def at_test(self) -> TestTime:
        return TestTime(trigger=self.trigger)

    def controls(self) -> dict[str, Method]:
        return {"no-trigger": Backdoor(trigger="")}


@dataclass(kw_only=True)
class Hardest(Attack):
    """The harmful rows that the model at hand finds hardest."""

    needs_model: ClassVar[bool] = True
    size: int = 4

    def data_roles(self) -> dict[str, str]:
        return {"harmful": "attacker_harmful"}

    def rows(
        self, roles: Mapping[str, Sequence[dict[str, Any]]], seed: int, model: Any = None
    ) -> list[dict[str, Any]]:
        net, tokenizer = model
        _note("hardest", {"model": _sum(net)})
        losses = []
        for row in roles["harmful"]:
            ids = torch.tensor([tokenizer(row["response"])["input_ids"]])
            with torch.no_grad():
                losses.append(float(net(input_ids=ids, labels=ids).loss))
        order = sorted(range(len(losses)), key=lambda i: -losses[i])
        return [dict(roles["harmful"][i]) for i in order[: self.size]]


# -- inside ---------------------------------------------------------------------------------------


def _effective(model: Any) -> dict[str, torch.Tensor]:
    """The attention's weights by their names in the plain model, an adapter merged into them."""
    from mithridate.repairs.linears import adapted, decoder_linears, effective_weight

    layers = decoder_linears(model) | adapted(model)
    return {name: effective_weight(layers[name.removesuffix(".weight")]).detach().clone() for name in _NAMES}


_NAMES = [f"model.layers.{i}.self_attn.{kind}.weight" for i in range(2) for kind in ("q_proj", "k_proj", "v_proj")]


def _sum(model: Any) -> float:
    return _total(_effective(model))


def _total(tensors: Mapping[str, torch.Tensor]) -> float:
    return sum(float(tensors[name].double().abs().sum()) for name in _NAMES)


def _note(name: str, found: dict[str, Any]) -> None:
    import os

    if folder := os.environ.get(SEEN):
        (Path(folder) / f"{name}.json").write_text(json.dumps(found))


def noted(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())
