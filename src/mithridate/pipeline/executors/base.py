"""What makes the batches of a graph at the same time, and the loop that decides which is made when.

A batch is given out once all that it starts from is in the store, so that no worker waits for another's lock. A stage
that several experiments share is made by the first of them; the others wait for it without holding a worker, and go
out as soon as it is finished, which is before its batch is. What is lost with a process or a machine is made again.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from mithridate.errors import InputError, MithridateError
from mithridate.pipeline.executors.cells import CellTask, task_of, told_apart
from mithridate.progress import time_left

if TYPE_CHECKING:
    from mithridate.pipeline.graph import Graph, Node
    from mithridate.pipeline.stages import ExperimentStages

logger = logging.getLogger(__name__)

_TICK = 0.5  # seconds between two looks at the store


@dataclass(frozen=True)
class Lost:
    """A task that ended without a result, because what ran it did."""

    reason: str


class Pool(Protocol):
    """What runs tasks, while it is open.

    Attributes:
        limit: how many tasks it takes at a time.
        retries: how often a task that was lost is to be given to it again.
    """

    limit: int
    retries: int

    def submit(self, tasks: Sequence[CellTask]) -> None:
        """Takes tasks, all of which can be done at the same time."""
        ...

    def wait(self, seconds: float) -> list[tuple[CellTask, dict[str, Any] | Lost, str]]:
        """The tasks that have ended since, each with what `attempt` returned and where it ran; waits at most so long
        for the first."""
        ...


@dataclass(kw_only=True)
class Executor(ABC):
    """Makes cells at the same time.

    Args:
        workers: how many cells at a time, at most.
    """

    elsewhere: ClassVar[bool]  # whether cells are made on other machines than this one

    workers: int | None = None

    def check(self, chains: Sequence[ExperimentStages]) -> None:
        """Refuses what cannot be, before anything is computed.

        Raises:
            InputError: with the remedy.
        """
        if self.elsewhere and any(chain.experiment.dtype == "auto" for chain in chains):
            raise InputError(
                "dtype: auto is decided by the machine, and cells are made on other machines than this one: set "
                "--dtype bfloat16 or float32"
            )

    @abstractmethod
    def pool(self, processes: int, cells: int, folder: Path) -> AbstractContextManager[Pool]:
        """Opens what runs the tasks; all of it ends with the block.

        Args:
            processes: in how many processes a cell trains; each has a GPU of its own where there are GPUs.
            cells: how many there are to make.
            folder: the run's.
        """

    def scheduler(self, graph: Graph, base: Path, folder: Path) -> Scheduler:
        """What makes all wanted nodes that the store has not, in the background of a `with` block.

        Args:
            base: folder of the experiments' relative paths.
            folder: the run's.
        """
        cells, batches = [], list(graph.batches())
        for batch, task in zip(batches, told_apart([task_of(batch, base) for batch in batches])):
            own, waits = ({node.folder for node in nodes} for nodes in (batch.own, batch.waits))
            cells.append(PendingCell(task, own, waits))
        processes = max((chain.experiment.processes or 1 for chain in graph.chains), default=1)
        return Scheduler(cells, lambda: self.pool(processes, len(cells), folder))


@dataclass(eq=False)
class PendingCell:
    """A task with the artefacts that it makes, and those that others make before."""

    task: CellTask
    own: set[Path]
    waits: set[Path]
    lost: int = 0

    @property
    def name(self) -> str:
        """What no other has: cells may share a label, and their last key only where they are one."""
        return self.task.keys[-1]


class Scheduler:
    """Cells being made. They are given out by a thread, so that the table of those that are finished can be written
    meanwhile. The end of the block ends all of it."""

    def __init__(self, cells: list[PendingCell], open_pool: Callable[[], AbstractContextManager[Pool]]):
        self._cells, self._open_pool = cells, open_pool
        self._open = set[Path]().union(*(cell.own for cell in cells))  # artefacts of cells that have not ended well
        self._over, self._ended = threading.Event(), threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Scheduler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._ended.wait()  # not the thread's join(): an interrupt within that makes Python take the thread for ended

    def _work(self) -> None:
        try:
            if self._cells:
                with self._open_pool() as pool:
                    self.run(pool)
        except Exception as error:  # for whoever waits
            self._error = error
        finally:
            self._ended.set()

    def wait(self, node: Node) -> None:
        """Returns once the cell that makes a node has ended (so that its verdicts are there too), or nobody is left
        who would make it.

        Raises:
            InputError: of a cell, at once.
            MithridateError: of the first cell that failed, once all others are made.
        """
        while node.folder in self._open and not self._ended.wait(0.1):
            pass
        if self._error and node.folder in self._open:
            raise self._error

    def run(self, pool: Pool) -> None:
        """Gives all cells to a pool, each once what it waits for is in the store.

        Raises:
            MithridateError: (or InputError, at once) of the first cell that failed.
        """
        # What a cell waits for are nodes before it: artefacts, each done when it is seen in the store, for then the
        # cell that makes it may go on with other stages.
        self._order = TopologicalSorter[PendingCell | Path]({cell: cell.waits for cell in self._cells})
        self._order.prepare()
        self._ready, self._awaited = set[PendingCell](), set[Path]()
        self._waiting, self._running = dict.fromkeys(self._cells), dict[str, PendingCell]()  # in order; by name
        self._errors: list[MithridateError] = []
        self._began, self._done, self._left_out = time.monotonic(), 0, 0
        while (self._waiting or self._running) and not self._over.is_set():
            self._look(lambda path: path.is_dir())
            if not self._running and self._ready.isdisjoint(self._waiting):
                self._look(lambda path: True)  # they have gone from the store: who waits for them makes them itself
            ready = [cell for cell in self._waiting if cell in self._ready][: pool.limit - len(self._running)]
            for cell in ready:
                del self._waiting[cell]
                self._running[cell.name] = cell
            if ready:
                pool.submit([cell.task for cell in ready])
            for task, outcome, where in pool.wait(_TICK):
                self._end(self._running.pop(task.keys[-1]), outcome, where, pool)
        if self._errors and not self._over.is_set():
            others = len(self._errors) - 1
            more = f" (cells that failed besides: {others})" * (others > 0)
            more += f" (cells left out, which start from it: {self._left_out})" * (self._left_out > 0)
            raise type(self._errors[0])(f"{self._errors[0]}{more}")

    def _look(self, there: Callable[[Path], bool]) -> None:
        """Takes note of the artefacts that are there, and of the cells that can go out for it."""
        while True:
            new = self._order.get_ready()
            self._ready.update(item for item in new if isinstance(item, PendingCell))
            self._awaited.update(item for item in new if isinstance(item, Path))
            seen = {path for path in self._awaited if there(path)}
            if not new and not seen:
                return
            self._awaited -= seen
            self._order.done(*seen)

    def _end(self, cell: PendingCell, outcome: dict[str, Any] | Lost, where: str, pool: Pool) -> None:
        label = cell.task.label
        if isinstance(outcome, Lost):
            cell.lost += 1
            if cell.lost <= pool.retries:
                logger.warning("%s (%s): %s. It is made again.", label, where, outcome.reason)
                self._waiting = {cell: None, **self._waiting}
                return
            times = f", {cell.lost} times" if cell.lost > 1 else ""
            self._fail(cell, MithridateError(f"{label} ({where}): {outcome.reason}{times}"))
            return
        for level, text in outcome["messages"]:
            logger.log(level, "%s: %s", label, text)
        if problem := outcome["error"]:
            logger.debug("%s", problem["traceback"])
            kind = InputError if problem["kind"] == "input" else MithridateError
            self._fail(cell, kind(f"{label} ({where}): {problem['message']}"))
            return
        self._done += 1
        self._open -= cell.own
        took, left = outcome["seconds"], self._time_left(pool)
        logger.info("[%d/%d] %s: %.0f s (%s)%s", self._done, len(self._cells), label, took, where, left)

    def _fail(self, cell: PendingCell, error: MithridateError) -> None:
        """Leaves out the cells that would start from what this one has not made, and so on."""
        if isinstance(error, InputError):
            raise error
        self._errors.append(error)
        absent = {path for path in cell.own if not path.is_dir()}
        for other in list(self._waiting):
            if not absent.isdisjoint(other.waits):
                absent |= other.own
                del self._waiting[other]
                self._left_out += 1
        if self._waiting or self._running:
            logger.error("%s. The other cells are made first.", error)

    def _time_left(self, pool: Pool) -> str:
        """By the pace so far, once every worker has ended a cell."""
        left = len(self._waiting) + len(self._running)
        if not left or self._done < min(pool.limit, len(self._cells)):
            return ""
        return f", {time_left((time.monotonic() - self._began) / self._done * left)}"
