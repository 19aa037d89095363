"""What a preset is, and how its file is read.

A preset's file (`recipes/presets/NAME.yaml`) holds no bare value: a field of the experiment stands under its dotted
path with the mark of where it is known from and, in words, the place. The marks are those of the protocols: P the
paper (or its authors' own page or logs), C read in the authors' released code, S quoted by others, I our inference or
choice, NF looked for and not found.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter

from mithridate.errors import InputError, nearest
from mithridate.experiment.places import put_all
from mithridate.experiment.yaml12 import parse_yaml

Mark = Literal["P", "C", "S", "I", "NF"]
MARKS: dict[Mark, str] = {
    "P": "the paper, or its authors' own page or logs",
    "C": "read in the authors' released code",
    "S": "quoted by others",
    "I": "our inference, or our choice",
    "NF": "looked for, not found",
}
NAMES = (
    *("vaccine-2024", "lisa-2024", "booster-2025", "booster-2025-gsm8k", "antidote-2025"),
    *("unified-v1", "baselines-v1"),
)
SFT = "sft"
"""The arm without any defense."""


@dataclass(frozen=True)
class Sourced:
    """A value, and where it is from."""

    value: Any
    mark: Mark
    source: str


@dataclass(frozen=True)
class Note:
    """Something that a reader has to know to compare, and where it is known from."""

    text: str
    mark: Mark


@dataclass(frozen=True)
class Numbers:
    """One table of a paper, in fractions.

    Attributes:
        table: which one.
        mark: where its cells are known from.
        over, at: the path that its columns vary, and their values.
        harmful_score, accuracy: of an arm, one value a column.
        means: the averages that the paper prints.
    """

    table: str
    mark: Mark
    over: str
    at: list[float]
    harmful_score: dict[str, list[float]]
    accuracy: dict[str, list[float]]
    means: dict[str, dict[str, float]]

    def cell(self, measure: str, arm: str, at: Any) -> float | None:
        """A paper's value: `measure` is harmful_score or accuracy."""
        values = getattr(self, measure).get(arm)
        return values[self.at.index(at)] if values and at in self.at else None


@dataclass(frozen=True)
class Tuning:
    """How each defense's settings are chosen, on validation parts and with the same number of tries for each.

    Attributes:
        at: the sweep's values at which the tries are made.
        max_accuracy_loss, max_benign_refusal: what a setting may cost against the undefended run.
        tries: for each arm, the values of its method's fields.
    """

    at: dict[str, Any]
    max_accuracy_loss: Sourced
    max_benign_refusal: Sourced
    tries: dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Preset:
    """One experiment with its sources.

    Attributes:
        title: the question, in one line.
        method: the method that it is about, or `all`.
        fields: of every arm, by dotted path.
        variants: what is compared, the arms: further fields by name, over those of all.
        sweep: the values that each arm is run at, by path.
        differences: what the released scripts do differently from the paper, and what is different here.
        numbers: the paper's table.
        tuning: how settings are chosen, where they are.
        paper, code: addresses.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    title: str
    method: str
    fields: dict[str, Sourced]
    variants: dict[str, dict[str, Sourced]]
    sweep: dict[str, Sourced]
    differences: list[Note] = field(default_factory=list)
    numbers: Numbers | None = None
    tuning: Tuning | None = None
    paper: str | None = None
    code: str | None = None
    name: str = ""

    def sources(self) -> dict[str, Sourced]:
        """Every value of the preset by where it stands in the file."""
        found = dict(self.fields)
        for arm, own in self.variants.items():
            found |= {f"{arm}: {path}": value for path, value in own.items()}
        found |= {f"sweep: {path}": value for path, value in self.sweep.items()}
        if self.tuning:
            for name in ("max_accuracy_loss", "max_benign_refusal"):
                found[f"tuning: {name}"] = getattr(self.tuning, name)
        return found

    def experiment(self, arm: str) -> dict[str, Any]:
        """An arm as an experiment file would say it, without the sweep."""
        given = {**self.fields, **self.variants[arm]}
        return copy.deepcopy(put_all({}, {path: one.value for path, one in given.items()}))


@cache
def preset(name: str) -> Preset:
    """The preset of that name. Raises `InputError`, naming the nearest, where there is none."""
    if name not in NAMES:
        raise InputError(f"no such preset {name!r}{nearest(name, NAMES)}")
    text = resources.files("mithridate.resources.recipes").joinpath(f"presets/{name}.yaml").read_text(encoding="utf-8")
    raw = parse_yaml(text, f"{name}.yaml")
    return TypeAdapter(Preset).validate_json(json.dumps(raw | {"name": name}), strict=True)
