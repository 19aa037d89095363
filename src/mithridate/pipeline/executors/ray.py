"""Cells as tasks of a Ray cluster (extra `[ray]`).

Nothing is uploaded: every machine of the cluster has this package and its own copy of Python installed, and sees the
store, the model and the data at the same paths. A task that dies with its process or machine is started anew by Ray,
on another machine if need be, and goes on from the last checkpoint in the store.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from mithridate.errors import InputError, MithridateError
from mithridate.pipeline.executors.base import Executor, Lost, Pool
from mithridate.pipeline.executors.cells import CellTask, attempt

logger = logging.getLogger(__name__)

_OBJECTS = 80 << 20  # bytes of shared memory of a Ray started here: tasks and their results are small


@dataclass(kw_only=True)
class Ray(Executor):
    """A Ray cluster; one that the program is connected to already is used as it is.

    Args:
        workers: how many cells are given to Ray at a time, at most. By default all that can be made; Ray queues them.
        address: of the cluster (`auto`, `HOST:PORT`). By default RAY_ADDRESS, else a Ray on this machine alone.
        num_gpus: GPUs of a cell. By default one for each process that it trains in where the cluster has GPUs, else
            none.
        num_cpus: CPUs of a cell, which are its threads.
        max_retries: how often a cell is started anew after its process or machine died.
    """

    elsewhere: ClassVar[bool] = True

    address: str | None = None
    num_gpus: float | None = None
    num_cpus: float = 1
    max_retries: int = 3

    def check(self, chains: Sequence[Any]) -> None:
        if importlib.util.find_spec("ray") is None:
            raise InputError("--executor ray needs Ray, which is not installed: pip install 'mithridate[ray]'")
        super().check(chains)

    @contextlib.contextmanager
    def pool(self, processes: int, cells: int, folder: Path) -> Iterator[Pool]:
        import ray

        ours = not ray.is_initialized()
        if ours:
            self._connect()
        pool = None
        try:
            gpus = self.num_gpus
            if gpus is None:
                gpus = processes if ray.cluster_resources().get("GPU", 0) else 0
            needs = {"num_cpus": self.num_cpus, "num_gpus": gpus}
            for kind, need in (("CPU", self.num_cpus), ("GPU", gpus)):
                most = max((node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]), default=0)
                if need > most:
                    logger.warning(
                        "a cell asks for %g %s and no machine of the Ray cluster has more than %g now: cells wait for "
                        "one that has (num_%ss sets what they ask for)",
                        *(need, kind, most, kind.lower()),
                    )
            pool = _Tasks(needs | {"max_retries": self.max_retries}, self.workers or cells)
            yield pool
        finally:
            if pool:
                pool.close()
            if ours:
                ray.shutdown()

    def _connect(self) -> None:
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        address = self.address or os.environ.get("RAY_ADDRESS")
        own: dict[str, Any] = {} if address else {"include_dashboard": False, "object_store_memory": _OBJECTS}
        try:
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            said = str(error).splitlines() or [type(error).__name__]
            raise MithridateError(f"--executor ray: no Ray could be reached or started ({said[0]})") from error


def _run(task: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """In a worker of Ray's: `attempt`, and the machine that it was done on."""
    import ray

    return attempt(CellTask(**task)), ray.get_runtime_context().get_node_id()[:8]


class _Tasks:
    """The pool. Ray itself makes again what is lost, up to `max_retries`."""

    retries = 0

    def __init__(self, options: dict[str, Any], limit: int):
        import ray

        self.limit = limit
        self._remote = ray.remote(**options)(_run)
        self._running: dict[Any, CellTask] = {}

    def submit(self, tasks: Sequence[CellTask]) -> None:
        for task in tasks:
            self._running[self._remote.remote(asdict(task))] = task

    def wait(self, seconds: float) -> list[tuple[CellTask, dict[str, Any] | Lost, str]]:
        import ray
        from ray.exceptions import RayError

        ended = []
        done, _ = ray.wait(list(self._running), num_returns=1, timeout=seconds)
        for reference in done:
            task = self._running.pop(reference)
            try:
                outcome, node = ray.get(reference)
                ended.append((task, outcome, f"node {node}"))
            except RayError as error:
                said = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
                ended.append((task, Lost(f"Ray lost it: {said[0]}"), "Ray"))
        return ended

    def close(self) -> None:
        """Stops what still runs."""
        import ray

        for reference in self._running:
            ray.cancel(reference, force=True)
