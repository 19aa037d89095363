"""One cell made against the shared store: what every executor asks of a worker process, a task or a job."""

from __future__ import annotations

import logging
import os
import time
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mithridate.environment import use_huge_pages
from mithridate.errors import InputError, MithridateError

if TYPE_CHECKING:
    from mithridate.experiment.config import Experiment
    from mithridate.pipeline.stages import Chain, Stage, Workshop

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One cell to make, in JSON types: it is sent to other processes and machines.

    Attributes:
        label: the cell's name in the table.
        experiment: the cell's experiment, whole (`canonical`), with the dtype that it is computed in.
        base: folder in which its relative paths are looked for; the same on every machine.
        store: the shared store's folder; the same on every machine.
        keys: of the stages to make, in order. Those that the store has are not made again.
        report_to, remote_code: what the command line allowed (`runner.Allowed`).
    """

    label: str
    experiment: dict[str, Any]
    base: str
    store: str
    keys: list[str]
    report_to: list[str] = field(default_factory=list)
    remote_code: bool = False


def attempt(task: Task) -> dict[str, Any]:
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


def make_cell(task: Task) -> None:
    """Makes the stages that the task names in the shared store, and what judges that are models say of the answers.

    Raises:
        MithridateError: (or InputError) a stage failed, or this machine reads another experiment out of the task than
            the one that sent it did.
    """
    from mithridate.experiment.config import load_experiment
    from mithridate.pipeline.runner import quiet_libraries
    from mithridate.pipeline.stages import Chain

    use_huge_pages()
    os.environ["MITHRIDATE_STORE"] = task.store
    experiment = load_experiment(task.experiment)  # as resolved where the run was started
    shop = _workshop(experiment, task)
    chain = Chain(experiment, shop)
    stages = _stages(chain, task.keys)
    if chain.launch:
        chain.launch.check()
    try:
        with quiet_libraries():
            for stage in stages:
                logger.debug("%s", chain.label(stage))
                shop.make(stage)
            shop.generators.close()  # a judge may be as large as what it judges
            answers = [stage for stage in stages if stage.name == "evaluate"]
            if answers and any(judge.about.size != "none" for judge in chain.judges()):
                for stage in answers:
                    chain.rows(stage)
    finally:
        shop.close()


_opened: dict[tuple[str, ...], Workshop] = {}  # the one in use: reading and digesting model and data takes a while


def _workshop(experiment: Experiment, task: Task) -> Workshop:
    from mithridate.pipeline.runner import Allowed, shop_key, workshops

    allowed = Allowed(tuple(task.report_to), task.remote_code)
    key = (shop_key(experiment), task.base, task.store, str(allowed))
    if key not in _opened:
        _opened.clear()
        [_opened[key]] = workshops([experiment], Path(task.base), progress=False, allowed=allowed)
    return _opened[key]


def _stages(chain: Chain, keys: list[str]) -> list[Stage]:
    """The chain's stages of these keys, in this order."""
    from mithridate.pipeline.runner import plans_of

    found = {stage.key: stage for stage in chain.stages()}
    if not found.keys() >= set(keys):
        found |= {stage.key: stage for plan in plans_of([chain]) for stage in plan.stages()}
    if not found.keys() >= set(keys):
        raise MithridateError(
            "what this cell depends on is not the same here as where the run was started: its model, its data, or the "
            "version of Mithridate. All machines need the same of each, at the same paths."
        )
    return [found[key] for key in keys]


class _Messages(logging.Handler):
    """Keeps messages as data."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.kept: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append((record.levelno, record.getMessage()))


def tasks_of(stages: list[tuple[Chain, Stage]], base: Path) -> list[tuple[Task, set[Path], set[Path]]]:
    """The cells with something to make, in order; of each, the stages that it makes and those that it waits for.

    A stage that several cells share is made by the first of them.

    Args:
        stages: all stages of a run, each after those that it starts from.
        base: folder of relative paths.

    Returns:
        Of each cell its task, the folders of the artefacts that it makes, and those that others make before it.
    """
    from mithridate.experiment.config import canonical

    cells: dict[int, list[tuple[Chain, Stage]]] = {}
    for chain, stage in stages:
        cells.setdefault(id(chain), []).append((chain, stage))
    made: set[str] = set()
    there: set[str] = set()
    tasks = []
    for pairs in cells.values():
        chain = pairs[0][0]
        store, wanted = chain.shop.store, {stage.key: stage for _, stage in pairs}
        for key, stage in wanted.items():
            if key not in made and key not in there and store.find(stage.name, key):
                there.add(key)
        missing = {key: stage for key, stage in wanted.items() if key not in there}
        own = {key: stage for key, stage in missing.items() if key not in made}
        if not own:
            continue
        made |= own.keys()
        models = [key for key, stage in wanted.items() if stage.name != "evaluate"]
        answers = [key for key, stage in own.items() if stage.name == "evaluate"]
        task = Task(
            label=_label(chain),
            experiment=canonical(replace(chain.experiment, dtype=chain.shop.dtype)),
            base=str(base),
            store=str(store.root),
            keys=[*models, *answers],  # models first: other cells may wait for them
            report_to=list(chain.shop.report_to),
            remote_code=chain.shop.base.remote_code,
        )
        folders = {key: store.folder(stage.name, key) for key, stage in missing.items()}
        waits = {folders[key] for key in models if key in missing and key not in own}
        tasks.append((task, {folders[key] for key in own}, waits))
    return tasks


def _label(chain: Chain) -> str:
    """The cell's name in the table, as far as it is known before it is made."""
    from mithridate.results.table import Cell

    return Cell(chain.experiment, chain.positions()[-1], rows=[], key="", aligned="", undefended="").name()
