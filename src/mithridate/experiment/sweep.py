"""The cells of an experiment: its variants, and every combination of the values that its sweep gives to fields."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mithridate.errors import InputError
from mithridate.experiment import places
from mithridate.experiment.model import FULL, Experiment, parsed, plain
from mithridate.files import stable
from mithridate.problems import error_of, kind

# What a table of results has a place for.
_IN_TABLE = (
    *("seed.", "topology.", "align.defense.", "finetune.defense.", "repair.", "budget.", "finetune.adapter."),
    *("finetune.attack.", "finetune.frozen."),
    *("finetune.training.learning_rate.", "finetune.training.max_steps."),
)


def expand(experiment: Experiment, where: str = "experiment") -> list[Experiment]:
    """The cells of an experiment: of each variant, every combination of the swept values, the last path varying
    fastest; the experiment itself where it has neither.

    A variant fixes what it sets: a sweep of the same field is not for it.

    Raises:
        InputError: a cell is not a valid experiment.
    """
    axes = _axes(experiment)
    if not axes and not experiment.variants:
        return [experiment]
    base = {name: value for name, value in plain(experiment).items() if name not in ("sweep", "variants")}
    cells, problems = [], {}
    for name, variant in (experiment.variants or {"": {}}).items():
        sweep = {path: values for path, values in axes.items() if path not in variant}
        for values in itertools.product(*sweep.values()):
            chosen = dict(zip(sweep, values))
            raw, found = base, []
            for key, setting in ((f"variants.{name}", variant), *((f"sweep.{p}", {p: v}) for p, v in chosen.items())):
                try:
                    raw = places.put_all(raw, {path: stable(value, path) for path, value in setting.items()})
                except InputError as error:
                    found.append(f"{key}: {error}")
            cell, more = parsed(raw)
            label = ", ".join(
                [f"variants.{name}"] * bool(name) + [f"{path}={json.dumps(value)}" for path, value in chosen.items()]
            )
            for problem in [*found, *more]:
                problems.setdefault(problem, f"{problem} (with {label})")
            cells.append(cell)
    if problems:
        raise error_of(where, list(problems.values()))
    return cells


def _axes(experiment: Experiment) -> dict[str, list[Any]]:
    """The sweep, and the precisions where they are not the full one alone: a table has no other place for them."""
    asked = experiment.evaluate.precision
    return ({"evaluate.precision": list(asked)} if asked != [FULL] else {}) | experiment.sweep


def sweep_problems(sweep: Mapping[str, Any], variants: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with raw values of `sweep` and (opened) `variants` themselves, and between them."""
    for path, values in sweep.items():
        if not isinstance(values, list) or not values:
            yield f"sweep.{path}: expected a list of values, got {kind(values) if values else 'none'}"
        elif len({json.dumps(stable(value)) for value in values}) < len(values):
            yield f"sweep.{path}: a value appears twice"
        if path.split(".")[0] in ("sweep", "variants"):
            yield f"sweep.{path}: a sweep cannot vary itself"
        for outer in sweep:
            if path.startswith(f"{outer}."):
                yield f"sweep.{path}: lies inside `{outer}`, which is swept too; put both into one list"
    for name, values in variants.items():
        for path, swept in itertools.product(values, sweep):
            if path != swept and overlap(path, swept):
                yield (
                    f"variants.{name}: `{path}` and `{swept}`, which is swept, lie inside each other; name the same "
                    "field in both"
                )
        for path in values:
            if path.split(".")[0] in ("sweep", "variants"):
                yield f"variants.{name}: `{path}` is no field that a variant sets"


def overlap(one: str, other: str) -> bool:
    """Whether two dotted paths are the same, or one holds the other."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def swept_paths(experiment: Experiment) -> list[str]:
    """The dotted paths of all fields that an experiment's variants and sweep vary."""
    varied = [path for values in experiment.variants.values() for path in values]
    return list(dict.fromkeys([*varied, *_axes(experiment)]))


def swept_values(experiment: Experiment, paths: Sequence[str], upto: str) -> dict[str, Any]:
    """A cell's values of swept fields that have no place of their own in a table (as the seed has one), by path.

    Of a single source, its given fields: {"data.task": {"source": "embedded", "name": "sst2"}}.

    Args:
        experiment: the cell's.
        paths: as `swept_paths` gives them.
        upto: the last stage that the cell's model has been through: what later ones were set to is left out.
    """
    later = {"align": ("finetune.", "repair."), "finetune": ("repair.",)}.get(upto, ())
    found = {}
    for path in paths:
        if f"{path}.".startswith((*_IN_TABLE, *later)):
            continue
        value: Any = asdict(experiment)
        for key in path.split("."):
            if isinstance(value, list) and not key.isdigit():
                value = value[0] if len(value) == 1 else None
            if isinstance(value, dict):
                value = value.get(key)
            elif isinstance(value, list):
                value = value[int(key)] if int(key) < len(value) else None
            else:
                value = None
        found[path] = _given(value)
    return found


def _given(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict | str):
        value = value[0]
    return {k: v for k, v in value.items() if v not in (None, 0, False)} if isinstance(value, dict) else value
