"""`mithridate benchmark`: methods at equal tuning budgets, under attacks that the attacker fixes.

    validation parts    every try of every method, and the undefended run, at every point of the attacker's grid; with
                        `knowing`, the attacks that the chosen settings suggest
    test parts          the chosen setting of each, once, over seeds; the undefended run; the controls; with `knowing`,
                        each method under the worst of those attacks

All training goes through the ordinary store, so a second call goes on from what was finished. The folder holds what a
run's folder holds (of the test parts), besides `tuning/` (the same of the tries) and `benchmark.json`, `.csv`, `.md`.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

from mithridate.errors import InputError
from mithridate.experiment.config import Experiment
from mithridate.experiment.methods import method_of
from mithridate.files import replace_file
from mithridate.methods.registry import by_name
from mithridate.pipeline.context import quiet_libraries
from mithridate.pipeline.executors import Executor
from mithridate.pipeline.experiments import stages_of
from mithridate.pipeline.forecast import Forecast
from mithridate.pipeline.graph import Graph
from mithridate.pipeline.inventory import inventory
from mithridate.pipeline.preflight import preflight
from mithridate.pipeline.runner import run_cells
from mithridate.problems import Findings
from mithridate.report.groups import ArmCost, costs
from mithridate.results.filtered import filtered, in_words
from mithridate.results.folder import RunFolder
from mithridate.results.ownership import identity, open_study
from mithridate.results.relations import arm as arm_of
from mithridate.statistics.text import between, interval, p_value, whole
from mithridate.statistics.text import points as in_points
from mithridate.studies.benchmarks.knowing import KnowingTry, attacks_on, choose_attack, knowing_runs
from mithridate.studies.benchmarks.settings import (
    UNDEFENDED,
    Arm,
    BenchmarkFile,
    arms_of,
    kind_of,
    load_benchmark,
    place_of,
)
from mithridate.studies.benchmarks.standings import Entrant, Standing, UnderKnowing, standings, under_knowing
from mithridate.studies.benchmarks.tries import RULE, MeanScores, TriedSetting, choose, scores_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that was run.

    Attributes:
        folder: where it is written.
        points: the attacker's grid.
        tries: every setting that was tried, on validation parts.
        knowing: every attack by somebody who knows a method's rule, on validation parts.
        standings: the tables, of each topology in order.
        costs: time and memory against the undefended run, by topology and method.
        filtered: rows left out over grid and seeds (`results.filtered`), by topology and method, where one may.
    """

    folder: Path
    given: BenchmarkFile
    points: list[dict[str, Any]]
    tries: list[TriedSetting]
    knowing: list[KnowingTry]
    standings: list[Standing]
    costs: dict[tuple[str, str], ArmCost]
    filtered: dict[tuple[str, str], dict[str, int]]


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


def benchmark(
    file: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    executor: Executor | None = None,
    replace: bool = False,
) -> Benchmark:
    """Runs a benchmark's file; see docs/benchmark.md.

    Args:
        file: its path, or the same as a dict.
        out: the folder; `runs/NAME` by default.
        executor: what makes the stages; this process if not given.
        replace: whether a folder that holds something else is written to all the same; what commands wrote there goes.

    Raises:
        InputError: the file, a setting, the data or the model is bad; nothing has been computed then.
        MithridateError: a stage failed; the next call goes on from what was finished.
    """
    given, experiment, base = load_benchmark(file)
    folder = Path(out) if out else Path("runs") / ("benchmark" if isinstance(file, Mapping) else Path(file).stem)
    arms, points = arms_of(given, experiment), given.points()
    _checked(given, experiment, arms, points, base, executor)
    _within_limit(given, experiment, arms, points, base)
    file_of = {name: value for name, value in asdict(given).items() if name != "knowing"}  # which extends a folder
    owner = {"command": "benchmark", "file": file_of, "experiment": identity(experiment, ())}
    open_study(folder, experiment, owner, replace)
    tries = _tried(given, experiment, arms, points, folder / "tuning", base, owner, executor)
    for one in tries:
        if one.chosen:
            bound = "" if one.within else ", the least beyond the bounds"
            logger.info("chosen for %s, %s: %s%s", one.method, one.topology, one.settings, bound)
    chosen = settings_of(arms, tries)
    known = _attacked(given, experiment, chosen, points, folder / "knowing", base, owner, executor)
    finals = list(final_runs(given, experiment, chosen, points, known))
    everything = [one for final in finals for seed in final.experiments for one in seed]
    log = "".join(json.dumps(one) + "\n" for one in [*map(_logged, tries), *map(_known, known)])
    run_cells(everything, folder, base, owner=owner, executor=executor, files={"tuning.jsonl": log} if log else {})
    found = _measured(folder, given, points, tries, known, finals)
    _write(found)
    return found


def planned(file: str | Path | Mapping[str, Any]) -> Iterator[str]:
    """What `benchmark` with the same file would run, and what that would take, in lines. Computes nothing.

    The settings of the final runs are not known yet: the first try of each stands for them.

    Raises:
        InputError: as `benchmark`.
    """
    given, experiment, base = load_benchmark(file)
    arms, points = arms_of(given, experiment), given.points()
    tuned = [arm for arm in arms if arm.tuned]
    yield f"{len(points)} attacks: {'; '.join(map(_point, points))}"
    yield f"{len(tuned)} methods and topologies with {given.tries} tries each on validation parts: {RULE}"
    for arm in arms:
        settings = "; ".join(", ".join(f"{key} {value}" for key, value in one.items()) for one in arm.settings)
        yield f"  {arm.method}, {arm.topology}: {settings}{'' if arm.tuned else ' (not tuned)'}"
    if given.knowing:
        yield "each method, at what was chosen, under the attacks that its rule suggests, on validation parts:"
        for arm, settings in settings_of(arms, ()):
            words = [attack.in_words() for attack in attacks_on(arm, settings)]
            yield f"  {arm.method}, {arm.topology}: {'; '.join(words) or 'none'}"
    tries, finals = _all_runs(given, experiment, arms, points)
    yield f"then {len(finals)} models, over {len(given.seeds)} seeds, on the test parts"
    yield from forecast_of([*tries, *finals], base).lines


@dataclass(frozen=True)
class Need:
    """What the stages that are not in the store would take, in lines, and all that the store would hold then."""

    lines: list[str]
    store_bytes: int


def forecast_of(experiments: Sequence[Experiment], base: Path) -> Need:
    """What is left of these experiments to compute."""
    graph = Graph(stages_of(list(experiments), base, "benchmark", False))
    store = graph.store
    forecast = Forecast(store, base)
    missing = [node for node in graph.wanted if not store.whole(node.stage.name, node.key)]
    left = [forecast.of(node.chain, node.stage) for node in missing]
    more = sum(guess.bytes or 0 for guess in left)
    there = sum(artefact.bytes for artefact in inventory(store))
    return Need([f"{len(left)} stages to make", *forecast.in_words(left)], there + more)


def _all_runs(
    given: BenchmarkFile, experiment: Experiment, arms: Sequence[Arm], points: Sequence[Mapping[str, Any]]
) -> tuple[list[Experiment], list[Experiment]]:
    """Of tries and final runs, before it is known what is chosen."""
    tries = [one for made in tried_runs(given, experiment, arms, points).values() for one in made]
    chosen = settings_of(arms, ())
    if given.knowing:
        under = attacked_runs(given, experiment, chosen, points)
        tries += [one for attacks in under.values() for made in attacks.values() for one in made]
    finals = final_runs(given, experiment, chosen, points, _each_first(chosen) if given.knowing else ())
    return tries, [one for final in finals for seed in final.experiments for one in seed]


def settings_of(arms: Sequence[Arm], tries: Sequence[TriedSetting]) -> list[tuple[Arm, Mapping[str, Any]]]:
    """Each arm with the settings that it is run at: those chosen of its tries, else its first."""
    chosen = {(one.method, one.topology): one.settings for one in tries if one.chosen}
    return [(arm, chosen.get((arm.method, arm.topology), arm.settings[0])) for arm in arms]


def _each_first(chosen: Sequence[tuple[Arm, Mapping[str, Any]]]) -> Iterator[KnowingTry]:
    """What stands, before anything is computed, for the attacks that will be chosen."""
    nothing = MeanScores(None, None, None, None)
    for arm, settings in chosen:
        for attack in attacks_on(arm, settings)[:1]:
            yield KnowingTry(arm.method, arm.topology, 1, attack.in_words(), nothing, None, True, chosen=True)


def attacked_runs(
    given: BenchmarkFile,
    experiment: Experiment,
    chosen: Sequence[tuple[Arm, Mapping[str, Any]]],
    points: Sequence[Mapping[str, Any]],
) -> dict[tuple[str, str], dict[int, list[Experiment]]]:
    """By method and topology, the experiments on validation parts under the attacks that its rule suggests."""
    at = experiment.with_values({"seed": given.seed_of_tries, "evaluate.part": "validation"})
    return {(arm.method, arm.topology): dict(knowing_runs(arm, own, at, points)) for arm, own in chosen}


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
                    dict(knowing_runs(arm, settings, experiment.with_values({"seed": seed}), points))[attack.number]
                    for seed in given.seeds
                ]
                name = f"{arm.method}, knowing"
                yield Final(name, topology, settings, made, of=arm.method, knowing=attack.attack)


def _checked(
    given: BenchmarkFile,
    experiment: Experiment,
    arms: Sequence[Arm],
    points: Sequence[Mapping[str, Any]],
    base: Path,
    executor: Executor | None,
) -> None:
    """Raises InputError for what would stop the final runs after all tries were made; other seeds change nothing."""
    chosen = settings_of(arms, ())
    first = [final.experiments[0] for final in final_runs(given, experiment, chosen, points)]
    if given.knowing:
        under = attacked_runs(given, experiment, chosen, points)
        first += [made for attacks in under.values() for made in attacks.values()]
    findings = Findings()
    chains = stages_of([one for made in first for one in made], base, "benchmark", False, findings=findings)
    with quiet_libraries():
        preflight(Graph(chains, None, findings), executor, findings)
    findings.settle("benchmark")


def _within_limit(
    given: BenchmarkFile,
    experiment: Experiment,
    arms: Sequence[Arm],
    points: Sequence[Mapping[str, Any]],
    base: Path,
) -> None:
    if given.store_limit is None:
        return
    tries, finals = _all_runs(given, experiment, arms, points)
    need = forecast_of([*tries, *finals], base).store_bytes / 1e9
    if need > given.store_limit:
        raise InputError(
            f"store_limit: the store would come to hold about {need:.1f} GB, and may hold {given.store_limit:g}. "
            "Raise the limit, make room (`mithridate store gc`), or ask for fewer tries, seeds or attacks"
        )


def _controls(method: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Name, place, method and settings of the controls of a method that is none itself."""
    made = method_of(by_name(kind_of(method))[method], settings)
    for name, control in made.controls().items():
        own = {key: value for key, value in control.settings().items() if value is not None}
        lowered = type(control).__name__.lower()
        if (lowered, own) != (method, {key: value for key, value in made.settings().items() if value is not None}):
            yield name, place_of(lowered), lowered, own


def _tried(
    given: BenchmarkFile,
    experiment: Experiment,
    arms: Sequence[Arm],
    points: Sequence[Mapping[str, Any]],
    folder: Path,
    base: Path,
    owner: Any,
    executor: Executor | None,
) -> list[TriedSetting]:
    jobs = tried_runs(given, experiment, arms, points)
    if not jobs:
        return []
    run_cells([one for made in jobs.values() for one in made], folder, base, owner=owner, executor=executor)
    table = RunFolder(folder)
    scores = {key: scores_of([table.made_by(one) for one in made]) for key, made in jobs.items()}
    plain = {topology: scores[UNDEFENDED, topology, 0] for name, topology, _ in jobs if name == UNDEFENDED}
    for topology, found in plain.items():
        if found.harmful_score is None:
            raise InputError(
                f"the judge scored no answer of the undefended run ({topology}) on the validation part, so that no "
                f"setting is better than another; see {folder}"
            )
    return choose(arms, scores, plain, given.bounds)


def _attacked(
    given: BenchmarkFile,
    experiment: Experiment,
    chosen: Sequence[tuple[Arm, Mapping[str, Any]]],
    points: Sequence[Mapping[str, Any]],
    folder: Path,
    base: Path,
    owner: Any,
    executor: Executor | None,
) -> list[KnowingTry]:
    if not given.knowing:
        return []
    jobs = attacked_runs(given, experiment, chosen, points)
    everything = [one for attacks in jobs.values() for made in attacks.values() for one in made]
    run_cells(everything, folder, base, owner=owner, executor=executor)
    table, found = RunFolder(folder), []
    for arm, settings in chosen:
        under = jobs[arm.method, arm.topology]
        scores = {number: scores_of([table.made_by(one) for one in made]) for number, made in under.items()}
        found += choose_attack(arm, settings, scores, given.bounds)
    for one in found:
        if one.chosen:
            logger.info("who knows %s, %s: %s", one.method, one.topology, one.attack)
    return found


def _measured(
    folder: Path,
    given: BenchmarkFile,
    points: list[dict[str, Any]],
    tries: list[TriedSetting],
    known: list[KnowingTry],
    finals: Sequence[Final],
) -> Benchmark:
    table = RunFolder(folder)
    ids = {id(final): [[table.made_by(one)["id"] for one in seed] for seed in final.experiments] for final in finals}
    found = []
    for topology in dict.fromkeys(final.topology for final in finals):
        mine = [final for final in finals if final.topology == topology]
        entrants = {one.name: Entrant(one.name, topology, one.settings, ids[id(one)], one.of) for one in mine}
        under = {
            one.of: under_knowing(entrants.pop(one.name), one.knowing, table.outcomes) for one in mine if one.knowing
        }
        found += [
            replaced(one, knowing=under.get(one.entrant.name))
            for one in standings(list(entrants.values()), table.outcomes)
        ]
    timed = {cell for one in finals if not one.knowing for seed in ids[id(one)] for cell in seed}
    rows = [cell for cell in table.results["cells"] if cell["id"] in timed]
    named = {(cost.cell["topology"], arm_of(cost.cell)): cost for cost in costs(rows)}
    spent, out = {}, {}
    for final in finals:
        if final.knowing:
            continue
        mine = [table.cells[cell] for seed in ids[id(final)] for cell in seed]
        if cost := named.get((final.topology, arm_of(mine[0]))):
            spent[final.topology, final.name] = cost
        if counts := filtered(mine):
            out[final.topology, final.name] = counts
    return Benchmark(folder, given, points, tries, known, found, spent, out)


# -- what is written ------------------------------------------------------------------------------------------------

TITLES = (
    *("topology", "method", "settings", "harmful score [95 %]", "to undefended [95 %]", "p (Holm)", "rank"),
    *("rank, these models", "breaks at", "accuracy", "benign refusal", "incoherent", "time", "memory", "bounds"),
)

FILTERED_TITLE = "rows left out"
KNOWING_TITLES = ("harmful score, knowing", "breaks at, knowing", "who knows")


def titles_of(found: Benchmark) -> list[str]:
    """The names of the table's columns."""
    return [*TITLES, *([FILTERED_TITLE] if found.filtered else ()), *(KNOWING_TITLES if found.given.knowing else ())]


def table_of(found: Benchmark) -> list[list[str]]:
    """The rows of the table, as `titles_of`."""
    beyond = {(one.method, one.topology) for one in found.tries if one.chosen and not one.within}
    tuned = {(one.method, one.topology) for one in found.tries}
    return [_row(found, one, beyond, tuned) for one in found.standings]


def _row(found: Benchmark, one: Standing, beyond: set[tuple[str, str]], tuned: set[tuple[str, str]]) -> list[str]:
    entrant = one.entrant
    key, cost = (entrant.name, entrant.topology), found.costs.get((entrant.topology, entrant.name))
    left_out = found.filtered.get((entrant.topology, entrant.name))
    change = one.control if entrant.of else one.against["harmful_score"]
    held = "beyond" if key in beyond else "within" if key in tuned else "" if entrant.of else "not tuned"
    return [
        entrant.topology,
        f"- {entrant.name}" if entrant.of else entrant.name,
        ", ".join(f"{name} {value}" for name, value in entrant.settings.items()),
        _rate(one.rates["harmful_score"]),
        _change(change) + (f" ({entrant.of} to this)" if entrant.of and change else ""),
        p_value(change["p_holm"]) if change and change.get("p_holm") is not None else "",
        _rank(one.rank),
        _rank(one.rank_here),
        "" if one.breaks_at is None else _point(found.points[one.breaks_at]),
        *(_rate(one.rates[rate]) for rate in ("accuracy", "benign_refusal", "incoherent")),
        "" if cost is None or cost.time_ratio is None else f"{cost.time_ratio:.2f} x",
        "" if cost is None or cost.memory_ratio is None else f"{cost.memory_ratio:.2f} x",
        "" if entrant.name == UNDEFENDED else held,
        *([in_words(left_out) if left_out else ""] if found.filtered else ()),
        *(_knowing(found, one.knowing) if found.given.knowing else ()),
    ]


def _knowing(found: Benchmark, under: UnderKnowing | None) -> list[str]:
    if under is None:
        return ["", "", ""]
    broken = "" if under.breaks_at is None else _point(found.points[under.breaks_at])
    return [_rate(under.rates["harmful_score"]), broken, under.attack]


def _rate(share: Mapping[str, Any] | None) -> str:
    if share is None or share.get("value") is None:
        return ""
    return f"{whole(share['value'])} {interval(share)}"


def _change(test: Mapping[str, Any] | None) -> str:
    return f"{in_points(test['difference'])} {between(test)}" if test and test.get("difference") is not None else ""


def _rank(rank: tuple[int, int] | None) -> str:
    return "" if rank is None else str(rank[0]) if rank[0] == rank[1] else f"{rank[0]} to {rank[1]}"


def _point(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in point.items()) or "the attack"


def _logged(one: TriedSetting) -> dict[str, Any]:
    return {
        **{"phase": "tuning", "method": one.method, "topology": one.topology, "number": one.number},
        **{"settings": one.settings, "validation": asdict(one.scores), "beyond the bounds": one.excess},
        "chosen": one.chosen,
    }


def _known(one: KnowingTry) -> dict[str, Any]:
    return {"phase": "knowing", **asdict(one)}


def _write(found: Benchmark) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([titles_of(found), *table_of(found)])
    replace_file(found.folder / "benchmark.csv", text.getvalue())
    replace_file(found.folder / "benchmark.md", markdown(found))
    replace_file(found.folder / "benchmark.json", json.dumps(as_json(found), indent=1))


def as_json(found: Benchmark) -> dict[str, Any]:
    """All that was measured, in JSON's types."""
    return {
        "schema": 1,
        "file": asdict(found.given),
        "rule": RULE,
        "points": found.points,
        "tries": [{**asdict(one), "within": one.within} for one in found.tries],
        "knowing": [asdict(one) for one in found.knowing],
        "standings": [asdict(one) for one in found.standings],
        "costs": [
            {
                **{"topology": topology, "method": name, "seconds": cost.total, "peak_memory_bytes": cost.peak},
                **{"time_ratio": cost.time_ratio, "memory_ratio": cost.memory_ratio},
            }
            for (topology, name), cost in found.costs.items()
        ],
        "filtered": [
            {"topology": topology, "method": name, **counts} for (topology, name), counts in found.filtered.items()
        ],
    }


def markdown(found: Benchmark) -> str:
    """The table, and how it came about, as Markdown."""
    given, tuned = found.given, sorted({one.method for one in found.tries})
    seeds = f"{len(given.seeds)} seeds" if len(given.seeds) > 1 else "1 seed"
    bounds = ", ".join(f"{name} {value:g}" for name, value in vars(given.bounds).items() if value is not None)
    lines = [
        f"{given.tries} tries for each of {len(tuned)} methods in each topology, on validation parts, with a seed of "
        f"their own. Chosen: {RULE} ({bounds or 'none'}). Then once on the test parts, {seeds}.",
        "",
        f"The attacker's grid: {'; '.join(map(_point, found.points))}.",
        "",
        f"| {' | '.join(titles_of(found))} |",
        f"|{'---|' * len(titles_of(found))}",
        *(f"| {' | '.join(cell or '–' for cell in row)} |" for row in table_of(found)),
        "",
        "Harmful scores, accuracy and the rest are means over the grid. Rank: the best and the worst rank that tests "
        "of every pair, corrected by Holm, leave open, for other seeds and for the models at hand. Breaks at: the "
        "first point of the grid at which the harmful score's interval lies above one half. Time and memory: of "
        "training and repair, against the undefended run.",
        "",
    ]
    if found.filtered:
        lines += ["Rows left out: by the method, of what was handed in, over the grid and the seeds.", ""]
    if given.knowing:
        lines += [
            "Knowing: under the attack that the method's own rule suggests, the one of them (and of the plain attack) "
            "with the highest harmful score on the validation parts that keeps the task within the bound; with as "
            "many rows, and as many harmful ones, as the plain attack.",
            "",
        ]
    return "\n".join(lines)
