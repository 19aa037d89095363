"""One cell made against the shared store: what every executor asks of a worker process, a task or a job."""

from __future__ import annotations

import json
import logging
import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mithridate.environment import use_huge_pages
from mithridate.errors import InputError, MithridateError
from mithridate.experiment.config import canonical, load_experiment

if TYPE_CHECKING:
    from mithridate.experiment.config import Experiment
    from mithridate.pipeline.context import RunContext
    from mithridate.pipeline.graph import Batch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CellTask:
    """One cell to make, in JSON types: it is sent to other processes and machines.

    Attributes:
        label: the cell's name in the table; with what sets it apart, where several have that (`told_apart`).
        experiment: the cell's experiment, whole (`canonical`), with the dtype that it is computed in.
        base: folder in which its relative paths are looked for; the same on every machine.
        store: the shared store's folder; the same on every machine.
        keys: of the stages to make, in order. Those that the store has are not made again.
        report_to, remote_code: what the command line allowed (`context.Allowed`).
    """

    label: str
    experiment: dict[str, Any]
    base: str
    store: str
    keys: list[str]
    report_to: list[str] = field(default_factory=list)
    remote_code: bool = False


def attempt(task: CellTask) -> dict[str, Any]:
    """`make_cell`, its errors as data, for these come back whole from any machine, and through any library.

    Returns:
        error: None, or `kind` (input, known or other), `message` and `traceback`.
        messages: what the cell had to say, as [level, text].
        seconds: what it took.
    """
    began, ours, said = time.perf_counter(), logging.getLogger("mithridate"), _Messages()
    ours.addHandler(said)
    ours.setLevel(min(ours.level or logging.INFO, logging.INFO))
    error = None
    try:
        make_cell(task)
    except Exception as problem:
        known = isinstance(problem, MithridateError)
        kind = "input" if isinstance(problem, InputError) else "known" if known else "other"
        message = str(problem) if known else f"{type(problem).__name__}: {problem}"
        error = {"kind": kind, "message": message, "traceback": traceback.format_exc()}
    finally:
        ours.removeHandler(said)
    return {"error": error, "messages": said.kept, "seconds": time.perf_counter() - began}


def make_cell(task: CellTask) -> None:
    """Makes the stages that the task names in the shared store, and what judges that are models say of the answers.

    Raises:
        MithridateError: (or InputError) a stage failed, or this machine reads another experiment out of the task than
            the one that sent it did.
    """
    from mithridate.pipeline.building import make
    from mithridate.pipeline.graph import Graph
    from mithridate.pipeline.scored import judged_rows
    from mithridate.pipeline.stages import ExperimentStages
    from mithridate.progress import quiet_libraries

    use_huge_pages()
    os.environ["MITHRIDATE_STORE"] = task.store
    experiment = load_experiment(task.experiment)  # as resolved where the run was started
    context = _context(experiment, task)
    chain = ExperimentStages(experiment, context)
    found = {stage.key: stage for stage in chain.stages()}
    if not found.keys() >= set(task.keys):
        found = {key: node.stage for key, node in Graph([chain]).nodes.items()}
    if not found.keys() >= set(task.keys):
        raise MithridateError(
            "what this cell depends on is not the same here as where the run was started: its model, its data, or the "
            "version of Mithridate. All machines need the same of each, at the same paths."
        )
    stages = [found[key] for key in task.keys]
    if chain.launch:
        chain.launch.check()
    try:
        with quiet_libraries():
            for stage in stages:
                logger.debug("%s", chain.label(stage))
                make(chain, stage)
            context.engine.close()  # a judge may be as large as what it judges
            answers = [stage for stage in stages if stage.name == "evaluate"]
            if answers and chain.judged_by_models:
                for stage in answers:
                    judged_rows(chain, stage)
    finally:
        context.close()


_opened: dict[tuple[str, ...], RunContext] = {}  # the one in use: reading and digesting model and data takes a while


def _context(experiment: Experiment, task: CellTask) -> RunContext:
    from mithridate.pipeline.context import Allowed, context_key, contexts_of

    allowed = Allowed(tuple(task.report_to), task.remote_code)
    key = (context_key(experiment), task.base, task.store, str(allowed))
    if key not in _opened:
        _opened.clear()
        [_opened[key]] = contexts_of([experiment], Path(task.base), progress=False, allowed=allowed)
    return _opened[key]


class _Messages(logging.Handler):
    """Keeps messages as data."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.kept: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append((record.levelno, record.getMessage()))


def task_of(batch: Batch, base: Path) -> CellTask:
    """What a worker is sent for a batch; `base` is the folder of relative paths."""
    from mithridate.results.table import Cell

    chain, context = batch.chain, batch.chain.context
    # The name in the table, as far as it is known before the cell is made.
    cell = Cell(chain.experiment, batch.upto, rows=[], key="", aligned="", undefended="")
    return CellTask(
        label=cell.name(),
        experiment=canonical(replace(chain.experiment, dtype=context.dtype)),
        base=str(base),
        store=str(context.store.root),
        keys=batch.keys,
        report_to=list(context.report_to),
        remote_code=context.base.remote_code,
    )


def told_apart(tasks: Sequence[CellTask]) -> list[CellTask]:
    """The tasks, the labels that several share followed by the values in which those differ: a name in the table has
    no place for a repair's strength, and messages name a cell by its label alone."""
    from mithridate.report.words import flatten

    sharing: dict[str, list[CellTask]] = {}
    for task in tasks:
        sharing.setdefault(task.label, []).append(task)
    labels = {}
    for label, shared in sharing.items():
        fields = [flatten(task.experiment) for task in shared]
        paths = dict.fromkeys(path for one in fields for path in one)
        differing = [path for path in paths if any(one.get(path) != fields[0].get(path) for one in fields)]
        for task, one in zip(shared, fields):
            values = ", ".join(f"{path}={json.dumps(one[path])}" for path in differing if path in one)
            labels[task.keys[-1]] = f"{label} ({values})" if values else label
    return [replace(task, label=labels[task.keys[-1]]) for task in tasks]
