"""Cells as jobs of a Slurm cluster, through submitit (extra `[slurm]`).

Cells that can be made at the same time are submitted as one array. A job that runs out of time or is preempted is
requeued by submitit and goes on from the last checkpoint in the store; so the time limit need not be that of a cell,
only longer than the time between two checkpoints (`save_steps`). The command stays until all is done, as `srun` does;
when it is interrupted, its jobs are cancelled. All machines see the store, the model, the data and the run's folder at
the same paths.

submitit hands a function over as a pickle, and takes its result back as one: files that it writes and reads itself, in
`slurm/` of the run's folder, beside the jobs' logs. No other file is ever read as a pickle. Who can write into a run's
folder can have code run by it: keep it to yourself, as you do your home folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mithridate.errors import InputError, MithridateError
from mithridate.pipeline.executors.base import Executor, Lost, Pool
from mithridate.pipeline.executors.cells import CellTask, attempt

logger = logging.getLogger(__name__)

_DEFAULTS = {"timeout_min": 240, "name": "mithridate"}
_PAUSE = 30.0  # seconds until what Slurm did not take is handed to it again: it may be busy or starting anew
_ARRAY = 1000  # jobs in the queue at a time: the longest array that Slurm takes, as it comes


@dataclass(kw_only=True)
class Slurm(Executor):
    """A Slurm cluster.

    Args:
        workers: how many jobs are in the queue at a time, at most; 1000 by default.
        cluster: `slurm`, or `local`: jobs are processes of this machine, to try settings out.
        max_timeouts: how often a job that ran out of time is requeued.
        parameters: submitit's: `timeout_min` (240 by default), `gpus_per_node` (by default one for each process that a
            cell trains in), `cpus_per_task`, `mem_gb`, `slurm_partition`, `slurm_account`, `slurm_qos`,
            `slurm_array_parallelism`, `slurm_setup` (a list of commands), ...
    """

    elsewhere: ClassVar[bool] = True

    cluster: str = "slurm"
    max_timeouts: int = 10
    parameters: dict[str, Any] = field(default_factory=dict)

    def check(self, chains: Sequence[Any]) -> None:
        if importlib.util.find_spec("submitit") is None:
            raise InputError(
                "--executor slurm needs submitit, which is not installed: pip install 'mithridate[slurm]'"
            )
        if self.cluster not in ("slurm", "local"):
            raise InputError(f"--executor slurm: cluster: expected slurm or local, got {self.cluster}")
        if self.cluster == "slurm" and not (shutil.which("srun") and shutil.which("sbatch")):
            raise InputError(
                "--executor slurm: there are no sbatch and srun here: start the run on a machine that jobs are "
                "submitted from (or set cluster=local to try it out)"
            )
        super().check(chains)
        with tempfile.TemporaryDirectory() as folder:
            self._submitit(1, Path(folder))

    @contextlib.contextmanager
    def pool(self, processes: int, cells: int, folder: Path) -> Iterator[Pool]:
        pool = _Jobs(self._submitit(processes, folder), self.workers or _ARRAY)
        try:
            yield pool
        finally:
            pool.close()

    def _submitit(self, processes: int, folder: Path) -> Any:
        import submitit

        timeouts = {f"{self.cluster}_max_num_timeout": self.max_timeouts}
        made = submitit.AutoExecutor(folder=(folder / "slurm").absolute(), cluster=self.cluster, **timeouts)
        try:
            made.update_parameters(**{**_DEFAULTS, "gpus_per_node": processes, **self.parameters})
        except (AssertionError, NameError, TypeError, ValueError) as error:
            raise InputError(f"--executor slurm: {' '.join(str(error).split())}") from error
        return made


class Resumable:
    """What a job runs. That it can be begun again at any time is what `checkpoint` tells submitit."""

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        return attempt(CellTask(**task))

    def checkpoint(self, task: dict[str, Any]) -> Any:
        """Called before a time-out or preemption ends the job: what is to be done after it. The store has the rest."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, task)


class _Jobs:
    """The pool."""

    retries = 2

    def __init__(self, executor: Any, limit: int):
        self.limit, self._executor = limit, executor
        self._running: list[tuple[Any, CellTask]] = []
        self._refused: list[tuple[CellTask, str, float]] = []  # with why, and when they count as lost
        self._taken = False  # whether any was taken

    def submit(self, tasks: Sequence[CellTask]) -> None:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            jobs = self._executor.map_array(Resumable(), [asdict(task) for task in tasks])
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            said = " ".join(str(error).split())
            if not self._taken:
                raise MithridateError(
                    f"--executor slurm: the jobs were refused: {said}. Give what this cluster asks for, as in "
                    "--executor-option slurm_partition=gpu (slurm_account, slurm_qos, timeout_min, mem_gb, "
                    "gpus_per_node)"
                ) from error
            until = time.monotonic() + _PAUSE
            self._refused += [(task, f"it was not taken ({said})", until) for task in tasks]
            return
        self._taken = True
        for job, task in zip(jobs, tasks):
            logger.info("%s: job %s", task.label, job.job_id)
            self._running.append((job, task))

    def wait(self, seconds: float) -> list[tuple[CellTask, dict[str, Any] | Lost, str]]:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        until = time.monotonic() + seconds
        while True:
            done = [(job, task) for job, task in self._running if job.done()]
            now = time.monotonic()
            refused = [one for one in self._refused if now >= one[2]]
            if done or refused or now > until:
                break
            time.sleep(0.1)
        ended: list[tuple[CellTask, dict[str, Any] | Lost, str]] = []
        for one in refused:
            self._refused.remove(one)
            ended.append((one[0], Lost(one[1]), "no job"))
        for job, task in done:
            self._running.remove((job, task))
            try:
                outcome = job.result()
            except (UncompletedJobError, FailedJobError) as error:
                logger.debug("%s", error)
                outcome = Lost(f"it ended without a result ({job.state}); its log is {job.paths.stderr}")
            ended.append((task, outcome, f"job {job.job_id}"))
        return ended

    def close(self) -> None:
        """Cancels what still runs or waits."""
        for job, _ in self._running:
            job.cancel(check=False)
        if self._running:
            logger.info("%d jobs were cancelled", len(self._running))
