"""What makes the cells of an experiment at the same time: processes of this machine, a Ray cluster, a Slurm cluster.

Each is a thin adapter over the same call, `make_cell` of `mithridate.pipeline.executors.cells`, against the shared
store; the command's own process then writes the table from what the store holds, as it does without any of them.

    run("sweep.yaml", executor=Local(workers=8))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from mithridate.errors import InputError
from mithridate.experiment.config import Experiment
from mithridate.methods.fields import field_problems
from mithridate.pipeline.executors.base import Executor
from mithridate.pipeline.executors.local import Local
from mithridate.pipeline.executors.ray import Ray
from mithridate.pipeline.executors.slurm import Slurm
from mithridate.problems import error_of, nearest

EXECUTORS: dict[str, type[Executor]] = {"local": Local, "ray": Ray, "slurm": Slurm}

__all__ = ["EXECUTORS", "Executor", "Local", "Ray", "Slurm", "executor_of"]


def executor_of(
    name: str | None, workers: int | None, options: Mapping[str, Any], experiment: Experiment
) -> Executor | None:
    """The executor that the command line asks for; None where all is to be done in the command's own process.

    Args:
        name: local, ray, slurm or none. If not given: local with `workers`, or for a sweep where torch sees GPUs for
            several cells.
        workers: how many cells at a time.
        options: the executor's further fields; of Slurm, also submitit's parameters.
        experiment: what is to be run.

    Raises:
        InputError: no such executor, or a setting that it has not or that has no meaning.
    """
    if name is None:
        name = "local" if workers is not None or _gpus_for_several(experiment) else "none"
    if name == "none":
        if workers is not None or options:
            raise InputError(
                "--workers and --executor-option need an executor to be for: --executor local, ray or slurm"
            )
        return None
    if name not in EXECUTORS:
        raise InputError(f"--executor: no such executor `{name}`{nearest(name, [*EXECUTORS, 'none'])}")
    if workers is not None and workers < 1:
        raise InputError(f"--workers: expected at least 1, got {workers}")
    kind = EXECUTORS[name]
    own = [field.name for field in fields(kind) if field.init and field.name not in ("workers", "parameters")]
    free = {key: value for key, value in options.items() if kind is Slurm and key not in own}
    settings = {key: value for key, value in options.items() if key not in free}
    problems = field_problems("--executor-option", settings, kind, own)
    if problems:
        raise error_of(f"--executor {name}", problems)
    return Slurm(workers=workers, parameters=free, **settings) if kind is Slurm else kind(workers=workers, **settings)


def _gpus_for_several(experiment: Experiment) -> bool:
    if not experiment.sweep and not experiment.variants:
        return False
    import torch

    gpus = torch.cuda.device_count()
    each = 1 if experiment.accelerate == "none" else experiment.processes or gpus
    return gpus > 1 and gpus >= 2 * each
