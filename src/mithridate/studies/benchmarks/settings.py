"""The file of a benchmark: which methods, what is tried of each, against which attacks, within which bounds.

Reading and checking it imports no torch.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from mithridate.errors import InputError
from mithridate.experiment.config import Experiment, load_experiment
from mithridate.experiment.yaml12 import read_yaml
from mithridate.methods.index import facts
from mithridate.methods.registry import by_name
from mithridate.problems import error_of, explained, nearest
from mithridate.studies.settings import different

PLACES = {"alignment": "align.defense", "fine-tuning": "finetune.defense"}
REPAIR = "repair"
UNDEFENDED = "undefended"


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How much a setting may cost against the undefended run, as fractions; null: as much as it likes.

    Attributes:
        accuracy: of task accuracy lost.
        benign_refusal: of benign prompts refused more.
        incoherent: of answers to harmful prompts that are broken, more.
    """

    accuracy: float | None = 0.05
    benign_refusal: float | None = 0.1
    incoherent: float | None = 0.1


@dataclass(kw_only=True)
class BenchmarkFile:
    """One benchmark.

    Attributes:
        experiment: the undefended experiment: its file, or its content. It has no defense, no repair, no sweep.
        methods: of each, its settings with `tries` values of its strength (a list, or `{low, high}`, spread evenly,
            on a log scale where high is ten times low or more), or a list of `tries` settings.
        as_given: methods that are not tuned, with their settings: what has no strength, and what should be shown at
            the settings of its paper. They get no try.
        attack: the attacker's grid: paths of the experiment with their values. Every setting meets every point of it.
        tries: how many settings each method may try in each topology.
        topologies: the experiment's own, if not given.
        seeds: of the final runs.
        tuning_seed: of the tries; one that no final run has, so that no run is chosen for its luck. By default 1000
            above the highest of `seeds`.
        controls: whether the controls of the chosen settings are run too.
        knowing: whether each chosen setting meets, besides, the attacks that its own rule suggests.
        store_limit: GB that the store may come to hold; null is no limit.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    experiment: str | dict[str, Any]
    methods: dict[str, dict[str, Any] | list[dict[str, Any]]]
    as_given: dict[str, dict[str, Any]] = field(default_factory=dict)
    attack: dict[str, list[Any]] = field(default_factory=dict)
    tries: int = 3
    bounds: Bounds = field(default_factory=Bounds)
    topologies: list[Literal["single", "double", "full"]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    tuning_seed: int | None = None
    controls: bool = True
    knowing: bool = False
    store_limit: float | None = None

    @property
    def seed_of_tries(self) -> int:
        return max(self.seeds) + 1000 if self.tuning_seed is None else self.tuning_seed

    def points(self) -> list[dict[str, Any]]:
        """The attacker's grid, as values by path."""
        return [dict(zip(self.attack, values)) for values in itertools.product(*self.attack.values())]


@dataclass(frozen=True)
class Arm:
    """A method in a topology, and the settings that it may try; one that is as given has one, and tries nothing."""

    method: str
    topology: str
    settings: tuple[dict[str, Any], ...]
    tuned: bool

    def defended(self, experiment: Experiment, settings: Mapping[str, Any]) -> Experiment:
        """The experiment with the method at these settings, in this topology."""
        return experiment.with_values({"topology": self.topology, place_of(self.method): {self.method: settings}})


def place_of(method: str) -> str:
    """The path of an experiment at which a method stands."""
    return PLACES.get(_facts(method)["stage"], REPAIR)


def load_benchmark(source: str | Path | Mapping[str, Any]) -> tuple[BenchmarkFile, Experiment, Path]:
    """Reads a benchmark's file: the file, its experiment, and what the experiment's paths are relative to.

    Args:
        source: path of a YAML file, or the same as a dict.

    Raises:
        InputError: with every problem found, one a line.
    """
    where = "benchmark" if isinstance(source, Mapping) else str(source)
    raw: Any = dict(source) if isinstance(source, Mapping) else read_yaml(Path(source), "a benchmark")
    if not isinstance(raw, dict):
        raise InputError(f"{where}: expected fields (`methods: ...`); see docs/benchmark.md for a whole file")
    try:
        given = TypeAdapter(BenchmarkFile).validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        raise error_of(where, explained(error, raw, {(): BenchmarkFile, ("bounds",): Bounds})) from error
    folder = Path.cwd() if isinstance(source, Mapping) else Path(source).resolve().parent
    if isinstance(given.experiment, str):
        path = folder / given.experiment
        experiment, folder = load_experiment(path), path.parent
    else:
        experiment = load_experiment(given.experiment)
    if problems := [*_problems(given), *_experiment_problems(experiment)]:
        raise error_of(where, problems)
    return given, experiment, folder


def arms_of(given: BenchmarkFile, experiment: Experiment) -> list[Arm]:
    """Every method in every topology, in the file's order."""
    topologies = given.topologies or [experiment.topology]
    return [
        Arm(method, topology, tuple(settings), tuned)
        for topology in topologies
        for tuned, methods in ((True, _tried(given)), (False, {k: [v] for k, v in given.as_given.items()}))
        for method, settings in methods.items()
    ]


def bounded_rates(given: BenchmarkFile, arms: Sequence[Arm]) -> list[str]:
    """The rates whose bounds choose: all that have one where something is tuned, else of `knowing` the accuracy."""
    choosing = [*vars(given.bounds)] if any(arm.tuned for arm in arms) else ["accuracy"] if given.knowing else []
    return [rate for rate in choosing if getattr(given.bounds, rate) is not None]


def _tried(given: BenchmarkFile) -> dict[str, list[dict[str, Any]]]:
    return {name: list(_settings(name, spec, given.tries)) for name, spec in given.methods.items()}


def _settings(name: str, spec: dict[str, Any] | Sequence[dict[str, Any]], tries: int) -> Iterator[dict[str, Any]]:
    if isinstance(spec, list):
        yield from (dict(one) for one in spec)
        return
    assert isinstance(spec, dict)
    strength = _facts(name)["strength"]
    for value in _values(spec[strength], tries):
        yield {**spec, strength: value}


def _values(given: Any, tries: int) -> list[Any]:
    """The values of a strength: those of a list, or of a range, spread evenly."""
    if isinstance(given, list):
        return given
    low, high = given["low"], given["high"]
    shares = [i / (tries - 1) for i in range(tries)] if tries > 1 else [0.5]
    if low > 0 and high / low >= 10:
        values = [exp(log(low) + share * (log(high) - log(low))) for share in shares]
    else:
        values = [low + share * (high - low) for share in shares]
    if isinstance(low, int) and isinstance(high, int):
        return [round(value) for value in values]
    return [float(f"{value:.4g}") for value in values]


_KINDS = ("defenses", "repairs")


def kind_of(method: str) -> str:
    """Of which of the two kinds a method is: "defenses" or "repairs"."""
    return next(kind for kind in _KINDS if method in by_name(kind))


def _facts(name: str) -> dict[str, Any]:
    return facts(kind_of(name), name)


def _problems(given: BenchmarkFile) -> list[str]:
    problems, known = [], [name for kind in _KINDS for name in by_name(kind)]
    if given.tries < 1:
        problems.append(f"tries: expected at least 1, got {given.tries}")
    if not given.methods and not given.as_given:
        problems.append("methods: names none; give at least one with the range of its strength")
    for field_name, methods in (("methods", given.methods), ("as_given", given.as_given)):
        for name in methods:
            if name not in known:
                problems.append(f"{field_name}.{name}: no such method{nearest(name, known)}")
    for name in given.methods.keys() & given.as_given.keys():
        problems.append(f"as_given.{name}: is tuned already (methods.{name}); keep one of the two")
    for name, spec in given.methods.items():
        if name in known and given.tries >= 1:
            problems += _range_problems(name, spec, given.tries)
    if not given.seeds or len(set(given.seeds)) < len(given.seeds):
        problems.append(f"seeds: expected different seeds, got {given.seeds}")
    if given.tuning_seed in given.seeds:
        problems.append(
            f"tuning_seed: {given.tuning_seed} is one of `seeds`, and a final run would be among those that it was "
            "chosen by. Give another, or leave it out"
        )
    if len(set(given.topologies)) < len(given.topologies):
        problems.append(f"topologies: expected different ones, got {given.topologies}")
    for path, values in given.attack.items():
        if path.startswith("evaluate.resistance"):
            problems.append(
                f"attack.{path}: says when a model is scored on the way, and changes no attack. For attacks of "
                "several lengths give finetune.training.max_steps; scores on the way are the experiment's own"
            )
        elif not path.startswith(("finetune.attack", "finetune.training")):
            problems.append(f"attack.{path}: the attacker chooses under finetune.attack and finetune.training only")
        if not (values and different(values)):
            problems.append(f"attack.{path}: expected different values, got {values}")
    for name, value in vars(given.bounds).items():
        if value is not None and not 0 <= value <= 1:
            problems.append(f"bounds.{name}: expected a fraction from 0 to 1, got {value:g}")
    if given.store_limit is not None and given.store_limit <= 0:
        problems.append(f"store_limit: expected GB above 0, got {given.store_limit:g}")
    return problems


def _range_problems(name: str, spec: dict[str, Any] | list[dict[str, Any]], tries: int) -> list[str]:
    path = f"methods.{name}"
    if isinstance(spec, list):
        fields = _facts(name)["fields"]
        found = [{field: schema.get("default") for field, schema in fields.items()} | one for one in spec]
        if len(found) != tries or not different(found):
            got = f"got {len(found)}{'' if different(found) else ', some of them the same (with their defaults)'}"
            return [f"{path}: expected {tries} different settings (tries: {tries}), {got}"]
        return []
    strength = _facts(name)["strength"]
    if strength is None:
        return [
            f"{path}: has no strength to tune. Give a list of {tries} settings, or name it under as_given with the "
            "settings that it is run at"
        ]
    path = f"{path}.{strength}"
    given = spec.get(strength)
    if isinstance(given, dict):
        ends = [given.get(end) for end in ("low", "high")]
        numbers = [one for one in ends if isinstance(one, int | float) and not isinstance(one, bool)]
        if set(given) != {"low", "high"} or len(numbers) < 2 or not numbers[0] < numbers[1]:
            return [f"{path}: expected {{low: ..., high: ...}} with low below high, got {json.dumps(given)}"]
        given = _values(given, tries)
    if not isinstance(given, list):
        return [
            f"{path}: needs {tries} values to try, a list or {{low: ..., high: ...}}; got {json.dumps(given)}. A "
            "method that is not to be tuned is named under as_given"
        ]
    if len(given) != tries or not different(given):
        return [f"{path}: expected {tries} different values (tries: {tries}), got {json.dumps(given)}"]
    return []


def _experiment_problems(experiment: Experiment) -> list[str]:
    problems = []
    if experiment.variants:
        problems.append("experiment: has variants; a benchmark makes its own")
    if experiment.sweep:
        problems.append(
            f"experiment: has a sweep ({next(iter(experiment.sweep))}); what the attacker varies is `attack`"
        )
    if experiment.finetune is None:
        return [*problems, "experiment.finetune: none, and without the user's fine-tune there is no attack"]
    if experiment.finetune.defense or experiment.repair or (experiment.align and experiment.align.defense):
        problems.append("experiment: has a defense or a repair of its own; the methods are named under `methods`")
    if experiment.budget:
        problems.append("experiment: has a budget; strengths are chosen within `bounds`, by the benchmark's one rule")
    return problems
