"""Runs experiments against the store and fills the run's folder (`folder.py`): what `mithridate run` does."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mithridate.environment import gpu_problem, use_huge_pages
from mithridate.errors import InputError, MithridateError
from mithridate.experiment.config import Experiment, load_cells, swept_paths
from mithridate.experiment.methods import method_of
from mithridate.methods import by_name
from mithridate.pipeline.assembly import weights_digest
from mithridate.pipeline.budgets import unrepaired
from mithridate.pipeline.context import NOTHING_ALLOWED, Allowed, stages_told
from mithridate.pipeline.executors.base import Executor
from mithridate.pipeline.experiments import located, place_of, seeds_asked, stages_of, undefended, with_undefended
from mithridate.pipeline.finished import Run
from mithridate.pipeline.graph import MODEL_STAGES, Graph
from mithridate.pipeline.inventory import register_run
from mithridate.pipeline.making import StageMaker
from mithridate.pipeline.preflight import preflight
from mithridate.pipeline.scored import cell_of, said
from mithridate.pipeline.stages import ExperimentStages
from mithridate.problems import Findings, nearest
from mithridate.progress import quiet_libraries
from mithridate.results.folder import PAGE_CELLS, RunFolder
from mithridate.results.ownership import require_own
from mithridate.results.table import ResultsTable

logger = logging.getLogger(__name__)

__all__ = ["Allowed", "Run", "run", "run_cells", "undefended"]

_UNTIL = (*MODEL_STAGES, "evaluate")


def run(
    experiment: str | Path | dict[str, Any],
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    until: str | None = None,
    progress: bool = True,
    executor: Executor | None = None,
    replace: bool = False,
    report_to: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Run:
    """Runs an experiment file (or the same as a dict), every cell of its sweep, and writes the run's folder.

    Each cell is scored after alignment, after the attack and after the repair; the undefended run of the same
    topology, attack and seed is added where the file itself does not ask for it, for a harmful score says little
    without it. What the store holds already is not computed again.

    Args:
        experiment: path of a YAML file, or its content as a dict.
        overrides: `path.to.field=value` strings, applied before validation.
        out: the run's folder; `runs/<name of the file>` by default.
        until: stop after this stage: `align`, `finetune` or `repair` (nothing is evaluated then), or `evaluate` (the
            undefended run is not added).
        progress: show how far the run is: its stages, and bars on a terminal or lines in a log file.
        executor: what makes the cells at the same time: `Local(workers=8)`, `Ray(...)` or `Slurm(...)` of
            `mithridate.pipeline.executors`. By default this process makes one after the other.
        replace: whether a folder that another experiment, or the user, has filled is written to all the same: what
            commands wrote there goes first.
        report_to: services that are told of the trainings, as SFTConfig's field of that name. An experiment file
            cannot ask for any.
        trust_remote_code: whether Python files that come with the model are run. Stages made with them have keys of
            their own.

    Raises:
        InputError: the file, a field, `until`, the data or the model is bad, or the folder is not this run's; nothing
            has been computed then, and every problem that was found is named.
        MithridateError: a stage failed; what was finished stays in the store and the next run goes on from there. Or
            `until` is `repair`, and a budget has left a model unrepaired, which the store has.
    """
    if not isinstance(experiment, str | Path | Mapping):
        raise InputError(f"experiment: expected a file or its content as a dict, got {type(experiment).__name__}")
    if executor is not None and not hasattr(executor, "check"):
        raise InputError(
            f"executor: expected an executor of `mithridate.pipeline.executors`, as Local(workers=2), got {executor!r}"
        )
    if isinstance(overrides, str):
        raise InputError(f"overrides: expected a list of texts, got one; give [{overrides!r}]")
    if until not in (None, *_UNTIL):
        raise InputError(f"until: no such stage `{until}`{nearest(until, _UNTIL)}")
    loaded, cells = load_cells(experiment, list(overrides))
    base, where, name = place_of(experiment)
    folder = Path(out) if out else Path("runs") / name
    cells = with_undefended(cells) if until is None else cells
    return run_cells(
        cells,
        folder,
        base,
        until=until,
        progress=progress,
        source=loaded,
        where=where,
        executor=executor,
        replace=replace,
        allowed=Allowed(tuple(report_to), trust_remote_code),
    )


def run_cells(
    experiments: list[Experiment],
    folder: Path,
    base: Path,
    *,
    until: str | None = None,
    progress: bool = True,
    source: Experiment | None = None,
    where: str = "experiment",
    notes: Sequence[str] = (),
    notify: Callable[[dict[str, Any]], None] | None = None,
    executor: Executor | None = None,
    passing: bool = False,
    owner: Any = None,
    files: Mapping[str, str] = {},
    replace: bool = False,
    allowed: Allowed = NOTHING_ALLOWED,
) -> Run:
    """Runs `experiments` in order and writes the run's folder after each scored cell.

    Args:
        source: what is written as the resolved experiment (with its sweep); the first experiment if not given.
        where: the experiment file's name, for errors.
        notes: what a reader of the table should know, besides what the data give rise to.
        notify: called with the table (as in results.json) each time it is written: after each cell, unless they
            are quick and many.
        executor: what makes the stages; this process if not given.
        passing: the table is one of several that the folder has in turn (the tries of a search): there is no page of
            it, and what the earlier ones stand on stays in use.
        owner: what the folder belongs to, in JSON types; `source`, if not given.
        files: what is written into the folder besides, by name.
        replace, allowed: as of `run`.

    Raises:
        InputError: with every problem that is cheap to find; nothing has been computed then.
    """
    use_huge_pages()
    if problem := gpu_problem():
        logger.warning("Computing on the CPU: %s", problem)
    source, findings = source or experiments[0], Findings()
    chains = stages_of(experiments, base, where, progress, None, allowed, findings)
    # Where it is one of those that are run, what is written says all that was resolved.
    resolved = (chain.experiment for chain, one in zip(chains, experiments) if one == source)
    source = located(next(resolved, source), base)
    if not replace:
        with findings.noting():
            require_own(folder, source, owner)
    with quiet_libraries(), stages_told(progress), contextlib.ExitStack() as ending:
        for chain in chains:
            ending.callback(chain.context.close)
        graph = Graph(chains, until, findings)
        preflight(graph, executor, findings, page=not passing)
        findings.settle(where)
        filling = RunFolder(folder, base)
        filling.start(source, graph.scored, owner, files, replace)
        notes = [*notes, *_notes(chains)]
        for note in notes:
            logger.info("%s", note)
        register_run(graph.store, folder, [node.folder for node in graph.wanted])
        scheduler = executor.scheduler(graph, base, folder) if executor else None
        maker = StageMaker(graph.wanted, scheduler)
        if scheduler:
            ending.enter_context(scheduler)
        if not graph.scored:
            for node in graph.wanted:
                maker.make(node)
                logger.info("%s: %s", node.stage.name, node.folder)
            if unfit := [text for node in graph.wanted if (text := unrepaired(node.folder))]:
                raise MithridateError("\n".join(unfit))
            return Run(folder)
        # A judge with a model of its own comes last, so that it is loaded once and not beside a model in training.
        if any(chain.judged_by_models for chain in chains):
            for node in graph.wanted:
                maker.make(node)
        shown = _fill(graph, maker, filling, swept_paths(source), notes, notify)
        if passing:
            return Run(folder)
        # Not before: until here, the folder may have an earlier run's table.
        register_run(graph.store, folder, [node.folder for node in graph.wanted], only=True)
        if shown > PAGE_CELLS:
            (folder / "report.html").unlink(missing_ok=True)  # of an earlier, smaller table
            logger.info(
                "%d cells are too many for a page, so none is written: results.json and records/ in %s have them",
                shown,
                folder,
            )
            return Run(folder)
        with filling.writing():
            _report(folder)
        return Run(folder)


def _fill(
    graph: Graph,
    maker: StageMaker,
    filling: RunFolder,
    swept: list[str],
    notes: Sequence[str],
    notify: Callable[[dict[str, Any]], None] | None,
) -> int:
    """Makes each model and writes the table as it grows. Returns its number of rows."""
    first, number = graph.chains[0], len(graph.models)
    asked = seeds_asked([chain.experiment for chain in graph.chains])
    protocol = first.experiment.evaluate.protocol
    table = ResultsTable(first.experiment.model, protocol, list(notes), weights_digest(first, "base"), asked)
    for count, model in enumerate(graph.models, 1):
        for node in model.nodes:
            maker.make(node)
        cell = cell_of(model, maker.costs, swept)
        for note in table.note(said(model.chain, model.upto)):
            logger.info("%s", note)
        filling.add(table.add(cell), cell)
        if count == number or filling.due(count):
            results = filling.write(table, complete=count == number)
            if notify:
                notify(results)
    return len(table)


def _notes(chains: Sequence[ExperimentStages]) -> list[str]:
    """What is particular about a run's data, and about what a repair acts on, in words."""
    notes = []
    for chain in chains:
        roles = chain.context.roles
        shared = ["data.defender_harmful has prompts of data.alignment, as the file allows (paired: true)"]
        notes += roles.notes + shared * roles.paired
        if (system := chain.experiment.system) is not None:
            turn = f"is {system!r}" if system else "is empty, in place of the model's default"
            notes.append(f"The system turn {turn}, in training and at the test")
        facts = {
            "topology": chain.experiment.topology,
            "aligned": bool(chain.align),
            "finetuned": bool(chain.finetune),
        }
        for name, settings in chain.experiment.repair.items():
            repair = method_of(by_name("repairs")[name], settings)
            notes += [f"{name} {note}" for note in repair.run_notes(**facts)]
    return list(dict.fromkeys(notes))


def _report(folder: Path) -> None:
    from mithridate.report.build import build_report

    build_report(folder)


def __getattr__(name: str) -> Any:
    """What users imported from here before it had a module of its own."""
    if name in ("export_cell", "export_log"):
        from mithridate.pipeline import cell_export

        return getattr(cell_export, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
