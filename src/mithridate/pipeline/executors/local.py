"""Worker processes on this machine (`worker.py`), each with GPUs or CPU threads of its own.

A worker ends when its stdin closes, which the death of the command's process does too. One that dies is replaced, and
its cell goes on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

from mithridate.errors import InputError
from mithridate.pipeline.executors.base import Executor, Lost, Pool
from mithridate.pipeline.executors.cells import CellTask

logger = logging.getLogger(__name__)

_PATIENCE = 10  # seconds that workers have to end, once told to


@dataclass(kw_only=True)
class Local(Executor):
    """Worker processes on this machine.

    Args:
        workers: how many. By default one for each GPU, or for each group of GPUs where cells train in several
            processes; more than that share them. Needed where there are no GPUs: then each has its share of the CPU's
            threads.
    """

    elsewhere: ClassVar[bool] = False

    def check(self, chains: Sequence[Any]) -> None:
        if self.workers is None and not _gpus():
            raise InputError(
                "--executor local: torch sees no GPU here, so their number does not say how many worker processes: "
                "give --workers"
            )

    @contextlib.contextmanager
    def pool(self, processes: int, cells: int, folder: Path) -> Iterator[Pool]:
        gpus = _gpus()
        groups = [gpus[i : i + processes] for i in range(0, len(gpus) - processes + 1, processes)]
        count = min(self.workers or max(len(groups), 1), cells)
        pool = _Workers([_environment(i, count, groups) for i in range(count)])
        try:
            yield pool
        finally:
            pool.close()


def _gpus() -> list[str]:
    """The GPUs that are visible here, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]
    return names[: torch.cuda.device_count()]


def _environment(number: int, workers: int, groups: list[list[str]]) -> dict[str, str]:
    """What sets one of the workers apart: its GPUs, or its threads, unless these are given."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // workers))}
    if groups:
        own["CUDA_VISIBLE_DEVICES"] = ",".join(groups[number % len(groups)])
    return own


class _Worker:
    """A process and the task that it has; one line of its stdout is one result."""

    def __init__(self, number: int, environment: dict[str, str], events: queue.Queue[tuple[_Worker, str]]):
        self.number, self.environment = number, environment
        self.task: CellTask | None = None
        self.process: subprocess.Popen[str] | None = None
        self.noise: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        self._events = events

    @property
    def where(self) -> str:
        return f"worker {self.number + 1}"

    def give(self, task: CellTask) -> None:
        """Starts the process where there is none."""
        self.task = task
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mithridate.pipeline.executors.worker"],
                env=os.environ | self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if logger.isEnabledFor(logging.DEBUG) else self.noise,
                text=True,
                start_new_session=True,  # a terminal's interrupt is for the command alone, which then ends its workers
            )
            threading.Thread(target=self._read, args=(self.process,), daemon=True).start()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has just died, which its stdout tells
            self.process.stdin.write(json.dumps(asdict(task)) + "\n")
            self.process.stdin.flush()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._events.put((self, line))
        self._events.put((self, ""))

    def ended(self) -> str:
        """Why the process ended; the next task gets a new one."""
        assert self.process is not None
        code = self.process.wait()
        self.close(0)
        if code < 0:
            short = " (often: the machine has run out of memory)" if code == -signal.SIGKILL else ""
            return f"its process was killed by {signal.Signals(-code).name}{short}"
        self.noise.seek(0)
        last = [line for line in self.noise.read().decode(errors="replace").splitlines() if line.strip()][-1:]
        return f"its process ended with exit code {code}: {(last or ['it said nothing'])[0].strip()}"

    def tell_to_end(self) -> None:
        if self.process and self.process.stdin:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def close(self, patience: float) -> None:
        """Ends the process, by force after `patience` seconds."""
        if self.process is None:
            return
        self.tell_to_end()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None


class _Workers:
    """The pool; a worker starts with its first task."""

    retries = 2

    def __init__(self, environments: list[dict[str, str]]):
        self.limit = len(environments)
        self._events: queue.Queue[tuple[_Worker, str]] = queue.Queue()
        self._all = [_Worker(i, environment, self._events) for i, environment in enumerate(environments)]

    def submit(self, tasks: Sequence[CellTask]) -> None:
        idle = [worker for worker in self._all if worker.task is None]
        for worker, task in zip(idle, tasks, strict=False):
            logger.info("%s: started (%s)", task.label, worker.where)
            worker.give(task)

    def wait(self, seconds: float) -> list[tuple[CellTask, dict[str, Any] | Lost, str]]:
        ended = []
        until = time.monotonic() + seconds
        while not ended and (left := until - time.monotonic()) > 0:
            try:
                worker, line = self._events.get(timeout=left)
            except queue.Empty:
                break
            outcome = json.loads(line) if line else Lost(worker.ended())
            if worker.task is not None:
                ended.append((worker.task, outcome, worker.where))
                worker.task = None
        return ended

    def close(self) -> None:
        for worker in self._all:
            worker.tell_to_end()
        until = time.monotonic() + _PATIENCE
        for worker in self._all:
            worker.close(max(0.0, until - time.monotonic()))
            worker.noise.close()
