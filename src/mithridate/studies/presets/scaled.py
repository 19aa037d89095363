"""A preset as experiments that can be run: with your model and data, scaled down where asked, every deviation said.

Scaling takes a share of the rows (of the alignment and of the roles whose number the preset gives; of the attack) and
of the prompts of each test set. Epochs stay, so that optimizer steps shrink with the rows. What a method is set to
never changes; a case that is too small for its method, or for a single harmful row, is left out, and said to be.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mithridate.data.embedded import embedded_records
from mithridate.errors import InputError, nearest
from mithridate.experiment.config import Experiment, load_experiment
from mithridate.experiment.places import put_all
from mithridate.experiment.roles import ROLES, TESTS
from mithridate.experiment.yaml12 import parse_yaml
from mithridate.methods.registry import by_name
from mithridate.methods.steps import optimizer_steps
from mithridate.protocols import protocol
from mithridate.studies.presets.book import SFT, Preset

EMBEDDED = "hs/embedded-v1"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a user wants of a preset.

    Attributes:
        model: in place of the preset's.
        scale: share of the rows and prompts, above 0 and at most 1.
        data: sources in place of the preset's, by role: a file's path or a Hub id, or a source's fields.
        overrides: `path.to.field=value`; one of a method's fields goes to the arms that have it.
        embedded: rehearse on the embedded data.
        arms: only these.
    """

    model: str | None = None
    scale: float = 1.0
    data: Mapping[str, Any] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    embedded: bool = False
    arms: Sequence[str] = ()


@dataclass(frozen=True)
class Case:
    """One experiment: an arm at some values of the sweep (without the seed), with one seed."""

    arm: str
    at: dict[str, Any]
    experiment: Experiment


@dataclass
class PresetPlan:
    """All cases of a preset, and in what they depart from it."""

    preset: Preset
    cases: list[Case]
    deviations: list[str]


def plan(preset: Preset, asked: Asked) -> PresetPlan:
    """The cases that are asked for.

    Raises:
        InputError: an unknown arm or role, a bad scale or override, or nothing left to run.
    """
    if not 0 < asked.scale <= 1:
        raise InputError(f"--scale: expected a share above 0 and at most 1, got {asked.scale:g}")
    for arm in asked.arms:
        if arm not in preset.variants:
            raise InputError(f"--arm {arm}: {preset.name} has no such arm{nearest(arm, preset.variants)}")
    arms = [arm for arm in preset.variants if not asked.arms or arm in asked.arms]
    sweep, overrides = _sweep(preset, asked.overrides)
    by_arm = {arm: _of_arm(preset, arm, overrides) for arm in arms}
    raws, scaled = {}, []
    for arm in arms:
        raws[arm], scaled = _raw(preset, arm, asked, sweep)
    cases: list[Case] = []
    left_out: dict[tuple[str, str], list[str]] = {}
    for arm in arms:
        for values in itertools.product(*sweep.values()):
            at = dict(zip(sweep, values))
            experiment = load_experiment(put_all(raws[arm], at), by_arm[arm])
            at.pop("seed", None)
            if reason := unfit(experiment):
                left_out.setdefault((arm, reason), []).append(label("", at))
            else:
                cases.append(Case(arm, at, experiment))
    omitted = [f"left out: {arm} at {'; '.join(where)}: {why}" for (arm, why), where in left_out.items()]
    if not cases or (all(case.arm == SFT for case in cases) and set(arms) != {SFT}):
        raise InputError(f"{preset.name} at --scale {asked.scale:g}: nothing of it can be run. {'; '.join(omitted)}")
    deviations = [*_model(preset, cases[0].experiment), *scaled, *(f"override: {text}" for text in asked.overrides)]
    return PresetPlan(preset, cases, [*deviations, *omitted])


def label(arm: str, at: Mapping[str, Any]) -> str:
    """An arm at its values, in short: `sft, harmful_ratio 0.1`."""
    return ", ".join([*filter(None, [arm]), *(f"{path.rpartition('.')[2]} {value}" for path, value in at.items())])


def unfit(experiment: Experiment) -> str | None:
    """Why an experiment is too small to be what it claims to be, or None."""
    finetune = experiment.finetune
    if finetune is None:
        return None
    attack = finetune.harmful
    if attack.harmful_ratio and not round(attack.harmful_ratio * attack.size):
        return f"of {attack.size} rows none would be harmful"
    length = optimizer_steps(finetune.training, attack.size)
    for name, settings in finetune.defense.items():
        least = by_name("defenses")[name].without_data(**settings).least_steps()
        if length < least:
            return f"{length} steps are too few for {name}, which needs {least}"
    return None


# -- one arm --------------------------------------------------------------------------------------


def _sweep(preset: Preset, overrides: Sequence[str]) -> tuple[dict[str, list[Any]], list[str]]:
    """The swept values, and the overrides that are none of them. An override of a swept field fixes it."""
    sweep, rest = {path: list(given.value) for path, given in preset.sweep.items()}, []
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"-o {text}: expected path.to.field=value")
        if path.startswith("sweep."):
            values = parse_yaml(value, f"-o {text}", lines=False)
            if not isinstance(values, list) or not values:
                raise InputError(f"-o {text}: expected a list of values")
            sweep[path.removeprefix("sweep.")] = values
            continue
        sweep.pop(path, None)
        rest.append(text)
    return sweep, rest


def _of_arm(preset: Preset, arm: str, overrides: Sequence[str]) -> list[str]:
    """The overrides for an arm: all but those of the methods that it does not have."""
    methods = {arm: {_method(path) for path in preset.variants[arm]} for arm in preset.variants}
    chosen = []
    for text in overrides:
        path = text.partition("=")[0]
        wanted = _method(path)
        if wanted and not any(wanted in own for own in methods.values()):
            known = sorted({method for own in methods.values() for method in own if method})
            raise InputError(f"-o {text}: no arm of {preset.name} has {wanted}; there are {', '.join(known)}")
        if not wanted or wanted in methods[arm]:
            chosen.append(text)
    return chosen


def _method(path: str) -> str | None:
    """The path of the method that a path lies in: `align.defense.NAME`, `repair.NAME`."""
    parts = path.split(".")
    depth = 2 if parts[0] == "repair" else 3 if parts[1:2] == ["defense"] else 0
    return ".".join(parts[:depth]) if depth and len(parts) >= depth else None


def _raw(preset: Preset, arm: str, asked: Asked, sweep: Mapping[str, list[Any]]) -> tuple[dict[str, Any], list[str]]:
    """An arm as an experiment file would say it, with what is asked for; and the deviations that this makes."""
    raw, found = preset.experiment(arm), []
    if asked.model:
        raw["model"] = asked.model
    full = json.loads(json.dumps(raw))
    rows = {role: given["take"] for role, given in raw["data"].items() if "take" in given}
    size = raw["finetune"]["attack"]["size"]
    for role, count in rows.items():
        raw["data"][role]["take"] = _share(count, asked.scale)
    raw["finetune"]["attack"]["size"] = _share(size, asked.scale)
    if asked.embedded:
        found += _embed(
            raw, sweep.get("finetune.attack.harmful_ratio") or [raw["finetune"]["attack"]["harmful_ratio"]]
        )
    for role, given in asked.data.items():
        found += _own(raw, preset, role, given)
    count = protocol(full["evaluate"]["protocol"]).rows.count
    if asked.scale < 1:
        raw.setdefault("evaluate", {})["limit"] = _share(count, asked.scale)
        found.insert(0, f"scale {asked.scale:g}: {_scaling(full, raw, rows, count)}")
    return raw, found


def _share(count: int, scale: float) -> int:
    return max(1, round(count * scale))


def _scaling(full: dict[str, Any], raw: dict[str, Any], rows: Mapping[str, int], count: int) -> str:
    said = []
    for role, before in rows.items():
        if (now := raw["data"][role].get("take")) is not None:
            said.append(f"{now} rows of {role} in place of {before}")
    said.append(
        f"{raw['finetune']['attack']['size']} rows of the attack in place of {full['finetune']['attack']['size']}"
    )
    said.append(f"at most {raw['evaluate']['limit']} prompts of each test set in place of {count}")
    lengths = []
    for stage, get in (
        ("align", lambda one: one["data"]["alignment"].get("take")),
        ("finetune", lambda one: one["finetune"]["attack"]["size"]),
    ):
        if get(raw) is not None:
            before, now = (optimizer_steps(one[stage]["training"], get(one)) for one in (full, raw))
            lengths.append(f"{stage} {now} in place of {before}")
    return f"{', '.join(said)}; epochs as in the preset, so fewer optimizer steps ({', '.join(lengths)})"


def _embed(raw: dict[str, Any], ratios: Sequence[float]) -> list[str]:
    """Puts the embedded data in place of all roles; no more rows than it has."""
    before, size = raw["data"], raw["finetune"]["attack"]["size"]
    data: dict[str, dict[str, Any]] = {role: {"source": "embedded"} for role in ("task", *TESTS)}
    for role, given in before.items():
        if role not in data:
            paired = {"paired": True} if given.get("paired") else {}
            there = len(embedded_records(role, paired=bool(paired)))
            data[role] = {"source": "embedded", **paired, "take": min(given.get("take", there), there)}
    data["task"]["name"] = "sentiment"
    raw["data"], raw["evaluate"]["protocol"], raw["template"] = data, EMBEDDED, "chat"
    harmful, benign = len(embedded_records("attacker_harmful")), len(embedded_records("task"))
    most = [benign / (1 - ratio) for ratio in ratios if ratio < 1] + [harmful / ratio for ratio in ratios if ratio > 0]
    raw["finetune"]["attack"]["size"] = min(size, int(min(most)))
    taken = ", ".join(f"{role} {given['take']}" for role, given in data.items() if "take" in given)
    return [
        "a rehearsal on the embedded data (docs/embedded_data.md), whose harmful answers are empty of content: its "
        f"scores say nothing about the paper's. Rows: {taken}, attack {raw['finetune']['attack']['size']}",
        f"protocol {EMBEDDED}, and the model's chat template, in place of the preset's",
    ]


def _own(raw: dict[str, Any], preset: Preset, role: str, given: Any) -> list[str]:
    """Puts a user's source into a role: a path or id keeps the preset's number of rows, fields stay as they are."""
    if role not in ROLES:
        raise InputError(f"--data {role}: no such role{nearest(role, ROLES)}")
    before = raw["data"].get(role, {})
    source = given if isinstance(given, dict) else {"source": given}
    kept = {} if isinstance(given, dict) else {key: before[key] for key in ("take", "paired") if key in before}
    raw["data"][role] = {**kept, **source}
    theirs = preset.fields.get(f"data.{role}.source")
    return [f"data.{role}: {source.get('source')} in place of {theirs.value if theirs else 'none'}"]


def _model(preset: Preset, experiment: Experiment) -> list[str]:
    theirs = preset.fields["model"].value
    found = [f"model: {experiment.model} in place of {theirs}"] if experiment.model != theirs else []
    if experiment.accelerate != "none":
        found.append(
            f"accelerate: {experiment.accelerate}: a batch is the preset's on each process, so larger altogether, and "
            "there are fewer steps"
        )
    return found
