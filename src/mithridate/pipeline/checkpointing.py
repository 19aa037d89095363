"""Activation checkpointing only where memory is short: where it is not, it makes a step up to twice as long.

On a CPU it stays off unless a file asks for it. On GPUs a stage that leaves it open is estimated without it
(`planning.py`), and has it where the estimate does not fit. It changes no value but by rounding, so it is no part of a
stage's key; `stage.json` says what was chosen, and from which figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mithridate.errors import MithridateError

if TYPE_CHECKING:
    from mithridate.pipeline.precheck import Part
    from mithridate.pipeline.stages import ExperimentStages

FIELDS = ("activation_checkpointing", "gradient_checkpointing")  # SFTConfig's newer name and its older one
# What a step really took was up to 1.40 times its estimate without checkpointing (135M, all weights, on an H200:
# benchmarks/gpu_evidence.json, "checkpointing"), so that much more must be free, and a little.
ROOM = 1.5


@dataclass(frozen=True)
class Chosen:
    """What was chosen for a stage.

    Attributes:
        used: whether activations are checkpointed.
        estimated_bytes: of one process without it, the fullest of the stage's trainings; None: it cannot be estimated.
        free_bytes: of the fullest GPU, before the model is on it.
    """

    used: bool
    estimated_bytes: int | None
    free_bytes: int

    def training(self) -> dict[str, bool]:
        """SFTConfig's field."""
        return {FIELDS[1]: self.used}

    def record(self) -> dict[str, Any]:
        """As `stage.json` has it."""
        return asdict(self)


def asked(training: Any) -> bool | None:
    """What the fields of a training say; None where they leave it open."""
    return next((bool(training[name]) for name in FIELDS if training.get(name) is not None), None)


def chosen(chain: ExperimentStages, parts: Sequence[Part]) -> Chosen | None:
    """What is right for a stage here; None on a CPU, or where all of its trainings say themselves.

    Args:
        parts: the trainings of the stage.
    """
    from mithridate.pipeline.arguments import LIBRARY_ERRORS
    from mithridate.pipeline.planning import of_part

    open_ones = [part for part in parts if asked(part.job.training) is None]
    free = free_on_each(chain.launch.processes if chain.launch else 1) if open_ones else None
    if free is None:
        return None
    try:
        needed = max(of_part(chain, part, checkpointing=False).total for part in open_ones)
    except (MithridateError, *LIBRARY_ERRORS):  # not to be counted
        return Chosen(True, None, free)
    return Chosen(needed * ROOM > free, needed, free)


def free_on_each(processes: int) -> int | None:
    """Bytes that a training can have on the fullest GPU that it uses; None on a CPU. Of several GPUs all of the
    smallest: what others have on them is not asked, which would take memory on each."""
    import torch

    from mithridate.models.memory import free_memory

    if not torch.cuda.is_available():
        return None
    if processes > 1:
        return min(torch.cuda.get_device_properties(i).total_memory for i in range(processes))
    return free_memory(torch.device("cuda", torch.cuda.current_device()))
