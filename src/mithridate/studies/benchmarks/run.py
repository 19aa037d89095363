"""`mithridate benchmark`: methods at equal tuning budgets, under attacks that the attacker fixes.

    validation parts    every try of every method, and the undefended run, at every point of the attacker's grid; with
                        `knowing`, the attacks that the chosen settings suggest
    test parts          the chosen setting of each, once, over seeds; the undefended run; the controls; with `knowing`,
                        each method under the worst of those attacks

All training goes through the ordinary store, so a second call goes on from what was finished. The folder holds what a
run's folder holds (of the test parts), besides `tuning/` (the same of the tries) and `benchmark.json`, `.csv`, `.md`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

from mithridate.errors import InputError
from mithridate.experiment.config import Experiment, with_defaults
from mithridate.pipeline.executors import Executor
from mithridate.pipeline.experiments import stages_of
from mithridate.pipeline.forecast import Forecast
from mithridate.pipeline.graph import Graph
from mithridate.pipeline.inventory import inventory
from mithridate.pipeline.preflight import preflight
from mithridate.pipeline.runner import run_cells
from mithridate.problems import Findings
from mithridate.progress import quiet_libraries
from mithridate.report.groups import costs
from mithridate.results.filtered import filtered
from mithridate.results.folder import RunFolder
from mithridate.results.ownership import identity, open_study, require_own
from mithridate.results.relations import arm as arm_of
from mithridate.studies.benchmarks.experiments import (
    Final,
    all_runs,
    attacked_runs,
    final_runs,
    settings_of,
    tried_runs,
)
from mithridate.studies.benchmarks.knowing import KnowingTry, attacks_on, choose_attack
from mithridate.studies.benchmarks.outcome import Benchmark, logged, logged_attack, point_in_words, write
from mithridate.studies.benchmarks.settings import (
    UNDEFENDED,
    Arm,
    BenchmarkFile,
    arms_of,
    bounded_rates,
    load_benchmark,
)
from mithridate.studies.benchmarks.standings import Entrant, standings, under_knowing
from mithridate.studies.benchmarks.tries import RULE, TriedSetting, choose, scores_of
from mithridate.studies.measured import unmeasured

logger = logging.getLogger(__name__)


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
    arms, points = arms_of(given, experiment), given.points()
    _checked(given, experiment, arms, points, base, executor)
    _within_limit(given, experiment, arms, points, base)
    folder, owner = _place(file, out, given, experiment)
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
    log = "".join(json.dumps(one) + "\n" for one in [*map(logged, tries), *map(logged_attack, known)])
    run_cells(everything, folder, base, owner=owner, executor=executor, files={"tuning.jsonl": log} if log else {})
    found = _measured(folder, given, points, tries, known, finals)
    write(found)
    return found


def _place(
    file: str | Path | Mapping[str, Any], out: str | Path | None, given: BenchmarkFile, experiment: Experiment
) -> tuple[Path, dict[str, Any]]:
    """A benchmark's folder, and what makes it this benchmark's."""
    folder = Path(out) if out else Path("runs") / ("benchmark" if isinstance(file, Mapping) else Path(file).stem)
    file_of = {name: value for name, value in asdict(given).items() if name != "knowing"}  # which extends a folder
    return folder, {"command": "benchmark", "file": file_of, "experiment": identity(experiment, ())}


def planned(
    file: str | Path | Mapping[str, Any], out: str | Path | None = None, replace: bool = False
) -> Iterator[str]:
    """What `benchmark` with the same arguments would run, and what that would take, in lines. Computes nothing.

    The settings of the final runs are not known yet: the first try of each stands for them.

    Raises:
        InputError: as `benchmark`, but for `store_limit`: the lines say how large the store would be.
    """
    given, experiment, base = load_benchmark(file)
    folder, owner = _place(file, out, given, experiment)
    if not replace:
        require_own(folder, experiment, owner)
    arms, points = arms_of(given, experiment), given.points()
    _checked(given, experiment, arms, points, base, None)
    tuned = [arm for arm in arms if arm.tuned]
    yield f"{len(points)} attacks: {'; '.join(map(point_in_words, points))}"
    yield f"{len(tuned)} methods and topologies with {given.tries} tries each on validation parts: {RULE}"
    for arm in arms:
        settings = "; ".join(", ".join(f"{key} {value}" for key, value in one.items()) for one in arm.settings)
        yield f"  {arm.method}, {arm.topology}: {settings}{'' if arm.tuned else ' (not tuned)'}"
    if given.knowing:
        yield "each method, at what was chosen, under the attacks that its rule suggests, on validation parts:"
        for arm, settings in settings_of(arms, ()):
            words = [attack.in_words() for attack in attacks_on(arm, settings, experiment.paired)]
            yield f"  {arm.method}, {arm.topology}: {'; '.join(words) or 'none'}"
    tries, finals = all_runs(given, experiment, arms, points)
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


def _checked(
    given: BenchmarkFile,
    experiment: Experiment,
    arms: Sequence[Arm],
    points: Sequence[Mapping[str, Any]],
    base: Path,
    executor: Executor | None,
) -> None:
    """Raises InputError for what would stop the final runs after all tries were made, and for bounds on what nobody
    measures; other seeds change nothing."""
    _settings_checked(experiment, arms)
    chosen = settings_of(arms, ())
    first = [final.experiments[0] for final in final_runs(given, experiment, chosen, points)]
    bounded = bounded_rates(given, arms)
    if bounded:  # on validation parts, by the undefended run as by all
        place = {"topology": arms[0].topology, "seed": given.seeds[0], "evaluate.part": "validation"}
        first = [[experiment.with_values({**points[0], **place})], *first]
    if given.knowing:
        under = attacked_runs(given, experiment, chosen, points)
        first += [made for attacks in under.values() for made in attacks.values()]
    findings = Findings()
    chains = stages_of([one for made in first for one in made], base, "benchmark", False, findings=findings)
    for rate, missing in unmeasured(chains[0]).items() if bounded else ():
        if rate in bounded:
            with findings.noting():
                raise InputError(f"bounds.{rate}: {missing}, or set bounds.{rate}: null")
    with quiet_libraries():
        preflight(Graph(chains, None, findings), executor, findings)
    findings.settle("benchmark")


def _settings_checked(experiment: Experiment, arms: Sequence[Arm]) -> None:
    """Raises InputError for settings of which no method can be made, any try's, before one is asked what it states."""
    with_defaults(experiment, "experiment")
    findings = Findings()
    for arm in arms:
        place = "methods" if arm.tuned else "as_given"
        for settings in arm.settings:
            with findings.noting():
                with_defaults(arm.defended(experiment, settings), f"{place}.{arm.method}")
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
    tries, finals = all_runs(given, experiment, arms, points)
    need = forecast_of([*tries, *finals], base).store_bytes / 1e9
    if need > given.store_limit:
        raise InputError(
            f"store_limit: the store would come to hold about {need:.1f} GB, and may hold {given.store_limit:g}. "
            "Raise the limit, make room (`mithridate store gc`), or ask for fewer tries, seeds or attacks"
        )


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
    if not jobs:
        return []
    everything = [one for attacks in jobs.values() for made in attacks.values() for one in made]
    run_cells(everything, folder, base, owner=owner, executor=executor)
    table, found = RunFolder(folder), []
    for arm, settings in chosen:
        under = jobs.get((arm.method, arm.topology))
        if under is None:
            continue
        scores = {number: scores_of([table.made_by(one) for one in made]) for number, made in under.items()}
        found += choose_attack(arm, settings, scores, given.bounds, experiment.paired)
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
        met = {(one.of, one.defended): (one.knowing, entrants.pop(one.name)) for one in mine if one.knowing}
        under = under_knowing(
            {
                method: (attack, entrant, met[method, False][1])
                for (method, defended), (attack, entrant) in met.items()
                if method and attack and defended
            },
            table.outcomes,
        )
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
