"""The experiments that a benchmark consists of: tries, attacks by who knows a rule, and final runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mithridate.experiment.config import Experiment
from mithridate.experiment.methods import method_of, named
from mithridate.methods.registry import by_name
from mithridate.studies.benchmarks.knowing import KnowingTry, attacks_on, knowing_runs, under
from mithridate.studies.benchmarks.settings import UNDEFENDED, Arm, BenchmarkFile, kind_of, place_of
from mithridate.studies.benchmarks.tries import MeanScores, TriedSetting


@dataclass(frozen=True)
class Final:
    """What is run on the test parts under one name: its experiments by seed, and there by point of the grid."""

    name: str
    topology: str
    settings: Mapping[str, Any]
    experiments: list[list[Experiment]]
    of: str | None = None
    knowing: str | None = None
    """The attack, in words, of a method that meets one which its rule suggests."""
    defended: bool = True
    """Whether the method is there; else the undefended model meets that attack."""


def all_runs(
    given: BenchmarkFile, experiment: Experiment, arms: Sequence[Arm], points: Sequence[Mapping[str, Any]]
) -> tuple[list[Experiment], list[Experiment]]:
    """Of tries and final runs, before it is known what is chosen."""
    tries = [one for made in tried_runs(given, experiment, arms, points).values() for one in made]
    chosen = settings_of(arms, ())
    if given.knowing:
        under = attacked_runs(given, experiment, chosen, points)
        tries += [one for attacks in under.values() for made in attacks.values() for one in made]
    finals = final_runs(
        given, experiment, chosen, points, _each_first(chosen, experiment.paired) if given.knowing else ()
    )
    return tries, [one for final in finals for seed in final.experiments for one in seed]


def settings_of(arms: Sequence[Arm], tries: Sequence[TriedSetting]) -> list[tuple[Arm, Mapping[str, Any]]]:
    """Each arm with the settings that it is run at: those chosen of its tries, else its first."""
    chosen = {(one.method, one.topology): one.settings for one in tries if one.chosen}
    return [(arm, chosen.get((arm.method, arm.topology), arm.settings[0])) for arm in arms]


def _each_first(chosen: Sequence[tuple[Arm, Mapping[str, Any]]], paired: bool) -> Iterator[KnowingTry]:
    """What stands, before anything is computed, for the attacks that will be chosen."""
    nothing = MeanScores(None, None, None, None)
    for arm, settings in chosen:
        for attack in attacks_on(arm, settings, paired)[:1]:
            yield KnowingTry(arm.method, arm.topology, 1, attack.in_words(), nothing, None, True, chosen=True)


def attacked_runs(
    given: BenchmarkFile,
    experiment: Experiment,
    chosen: Sequence[tuple[Arm, Mapping[str, Any]]],
    points: Sequence[Mapping[str, Any]],
) -> dict[tuple[str, str], dict[int, list[Experiment]]]:
    """By method and topology, the experiments on validation parts under the attacks that its rule suggests; none of a
    method that suggests none, which is not shown as having met one."""
    at = experiment.with_values({"seed": given.seed_of_tries, "evaluate.part": "validation"})
    runs = {(arm.method, arm.topology): knowing_runs(arm, own, at, points) for arm, own in chosen}
    return {key: made for key, made in runs.items() if made.keys() != {0}}


def tried_runs(
    given: BenchmarkFile, experiment: Experiment, arms: Sequence[Arm], points: Sequence[Mapping[str, Any]]
) -> dict[tuple[str, str, int], list[Experiment]]:
    """The experiments of the tries: by method, topology and number of the try (0: the undefended run)."""
    at = experiment.with_values({"seed": given.seed_of_tries, "evaluate.part": "validation"})
    found = {}
    for topology in dict.fromkeys(arm.topology for arm in arms if arm.tuned):
        found[UNDEFENDED, topology, 0] = [at.with_values({"topology": topology, **point}) for point in points]
    for arm in arms:
        for number, settings in enumerate(arm.settings if arm.tuned else (), 1):
            made = [arm.defended(at, settings).with_values(point) for point in points]
            found[arm.method, arm.topology, number] = made
    return found


def final_runs(
    given: BenchmarkFile,
    experiment: Experiment,
    chosen: Sequence[tuple[Arm, Mapping[str, Any]]],
    points: Sequence[Mapping[str, Any]],
    known: Iterable[KnowingTry] = (),
) -> Iterator[Final]:
    """The runs on the test parts, of each topology the undefended one first."""
    worst = {(one.method, one.topology): one for one in known if one.chosen}

    def runs(topology: str, values: Mapping[str, Any]) -> list[list[Experiment]]:
        return [
            [experiment.with_values({"topology": topology, **values, **point, "seed": seed}) for point in points]
            for seed in given.seeds
        ]

    for topology in dict.fromkeys(arm.topology for arm, _ in chosen):
        yield Final(UNDEFENDED, topology, {}, runs(topology, {}))
        for arm, settings in chosen:
            if arm.topology != topology:
                continue
            yield Final(arm.method, topology, settings, runs(topology, {place_of(arm.method): {arm.method: settings}}))
            for name, place, method, own in _controls(arm.method, settings) if given.controls else ():
                values = {place: {method: own}}
                yield Final(f"{arm.method}, {name}", topology, own, runs(topology, values), of=arm.method)
            if attack := worst.get((arm.method, topology)):
                made = [
                    knowing_runs(arm, settings, experiment.with_values({"seed": seed}), points)[attack.number]
                    for seed in given.seeds
                ]
                name = f"{arm.method}, knowing"
                yield Final(name, topology, settings, made, of=arm.method, knowing=attack.attack)
                plain = runs(topology, {})
                if attack.number:
                    suggested = attacks_on(arm, settings, experiment.paired)[attack.number - 1]
                    plain = [[under(one, suggested) for one in seed] for seed in plain]
                name = f"{UNDEFENDED}, {name}"
                yield Final(name, topology, {}, plain, of=arm.method, knowing=attack.attack, defended=False)


def _controls(method: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Name, place, method and settings of the controls of a method that is none itself."""
    made = method_of(by_name(kind_of(method))[method], settings)
    for name, control in made.controls().items():
        lowered, own = named(control)
        if (lowered, own) != (method, named(made)[1]):
            yield name, place_of(lowered), lowered, own
