"""Which cell is made when, whatever makes it: the loop that all executors share.

A cell is given out once all that it starts from is in the store, so that no worker waits for another's lock. A stage
that several cells share is made by the first of them; the others wait for it without holding a worker, and go out as
soon as it is finished, which is before its cell is. What is lost with a process or a machine is made again.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from mithridate.errors import InputError, MithridateError
from mithridate.pipeline.executors.cells import Task, tasks_of

if TYPE_CHECKING:
    from mithridate.pipeline.stages import Chain, Stage

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

    def start(self, tasks: Sequence[Task]) -> None:
        """Takes tasks, all of which can be done at the same time."""
        ...

    def finished(self, seconds: float) -> list[tuple[Task, dict[str, Any] | Lost, str]]:
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

    def check(self, chains: Sequence[Chain]) -> None:
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

    def crew(self, stages: list[tuple[Chain, Stage]], base: Path, folder: Path) -> Crew:
        """What makes all stages that the store has not, in the background of a `with` block.

        Args:
            stages: of the run, each after those that it starts from.
            base: folder of the experiments' relative paths.
            folder: the run's.
        """
        return Crew(self, stages, base, folder)


class Crew:
    """Cells being made. They are given out by a thread, so that the table of those that are finished can be written
    meanwhile. The end of the block ends all of it."""

    def __init__(self, executor: Executor, stages: list[tuple[Chain, Stage]], base: Path, folder: Path):
        self._executor, self._folder = executor, folder
        self._cells = [_Cell(task, own, waits) for task, own, waits in tasks_of(stages, base)]
        self._processes = max((chain.experiment.processes or 1 for chain, _ in stages), default=1)
        self._open = set[Path]().union(*(cell.own for cell in self._cells))
        self._over, self._ended = threading.Event(), threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Crew:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._ended.wait()  # not the thread's join(): an interrupt within that makes Python take the thread for ended

    def _work(self) -> None:
        try:
            if self._cells:
                with self._executor.pool(self._processes, len(self._cells), self._folder) as pool:
                    _Board(self._cells, pool, self._open).run(self._over)
        except Exception as error:  # for whoever waits
            self._error = error
        finally:
            self._ended.set()

    def wait(self, artefact: Path) -> None:
        """Returns once the cell that makes an artefact has ended (so that its verdicts are there too), or nobody is
        left who would make it.

        Raises:
            InputError: of a cell, at once.
            MithridateError: of the first cell that failed, once all others are made.
        """
        while artefact in self._open and not self._ended.wait(0.1):
            pass
        if self._error and artefact in self._open:
            raise self._error


@dataclass(eq=False)
class _Cell:
    task: Task
    own: set[Path]  # the artefacts that it makes
    waits: set[Path]  # those that others make before
    lost: int = 0


class _Board:
    """What is waiting, running and done; of `open`, the artefacts to be made, those of a finished cell are removed."""

    def __init__(self, cells: list[_Cell], pool: Pool, open: set[Path]):
        self.pool, self.total, self.open = pool, len(cells), open
        self.waiting = dict.fromkeys(cells)  # in order
        self.running: dict[str, _Cell] = {}
        self.awaited = set[Path]().union(*(cell.waits for cell in cells))  # and not seen in the store yet
        self.errors: list[MithridateError] = []
        self.began, self.done, self.left_out = time.monotonic(), 0, 0

    def run(self, over: threading.Event) -> None:
        while (self.waiting or self.running) and not over.is_set():
            self.awaited = {path for path in self.awaited if not path.is_dir()}
            ready = list(self._ready())
            if not ready and not self.running:  # what they wait for has gone from the store: they make it themselves
                ready = list(self.waiting)[: self.pool.limit]
            for cell in ready:
                del self.waiting[cell]
                self.running[_name(cell.task)] = cell
            if ready:
                self.pool.start([cell.task for cell in ready])
            for task, outcome, where in self.pool.finished(_TICK):
                self._end(self.running.pop(_name(task)), outcome, where)
        if self.errors and not over.is_set():
            others = len(self.errors) - 1
            more = f" (cells that failed besides: {others})" * (others > 0)
            more += f" (cells left out, which start from it: {self.left_out})" * (self.left_out > 0)
            raise type(self.errors[0])(f"{self.errors[0]}{more}")

    def _ready(self) -> Iterator[_Cell]:
        free = self.pool.limit - len(self.running)
        for cell in self.waiting:
            if free <= 0:
                return
            if self.awaited.isdisjoint(cell.waits):
                free -= 1
                yield cell

    def _end(self, cell: _Cell, outcome: dict[str, Any] | Lost, where: str) -> None:
        label = cell.task.label
        if isinstance(outcome, Lost):
            cell.lost += 1
            if cell.lost <= self.pool.retries:
                logger.warning("%s (%s): %s. It is made again.", label, where, outcome.reason)
                self.waiting = {cell: None, **self.waiting}
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
        self.done += 1
        self.open -= cell.own
        took = outcome["seconds"]
        logger.info("[%d/%d] %s: %.0f s (%s)%s", self.done, self.total, label, took, where, self._time_left())

    def _fail(self, cell: _Cell, error: MithridateError) -> None:
        """Leaves out the cells that would start from what this one has not made, and so on."""
        if isinstance(error, InputError):
            raise error
        self.errors.append(error)
        absent = {path for path in cell.own if not path.is_dir()}
        for other in list(self.waiting):
            if not absent.isdisjoint(other.waits):
                absent |= other.own
                del self.waiting[other]
                self.left_out += 1
        if self.waiting or self.running:
            logger.error("%s. The other cells are made first.", error)

    def _time_left(self) -> str:
        """By the pace so far, once every worker has ended a cell."""
        left = len(self.waiting) + len(self.running)
        if not left or self.done < min(self.pool.limit, self.total):
            return ""
        seconds = (time.monotonic() - self.began) / self.done * left
        return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"


def _name(task: Task) -> str:
    """Of a task, what no other has: cells may share a label, and their last key only where they are one."""
    return task.keys[-1]
