"""FewerSteps: the user's run cut short. With `LowerLR` the plainest rival of every defense of that run.

No paper proposes it as a defense; that safety is lost with the number of steps is measured in
Fine-tuning Aligned Language Models Compromises Safety, Even When Users Do Not Intend To! Xiangyu Qi, Yi Zeng,
Tinghao Xie, Pin-Yu Chen, Ruoxi Jia, Prateek Mittal, Peter Henderson. ICLR 2024. https://arxiv.org/abs/2310.03693

    optimizer steps  <-  ceil(share * optimizer steps)        in exact arithmetic: 0.1 of 30 is 3

The run is planned as the shorter one: its schedule (warm-up, decay) spans the steps that are made, as if an experiment
had asked for so many; it is that run bit for bit. A run that was asked for in epochs has its steps counted from the
rows as they were given.

Of rows that are trained on in their given order the last are not reached. So it is with the provider of whom this is
the rule, and it is not made up for: the harmful rows of the attack `retainthenforget`, which stand last, are then few
or none of those that were trained on, as the run's record says (`trained.reached`). Who knows the rule would not put
them last.

Cost: share of plain training's. Supported: what the trainer supports. Refused: rows in a stream or packed, where
max_steps is not set; what is asked of steps that are no longer made (checkpoints to score, a cycle of another defense)
is refused where it is asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from mithridate.attacks.scheduled import Scheduled
from mithridate.methods.attack import Attack
from mithridate.methods.base import require_number
from mithridate.methods.defense import Defense
from mithridate.training.steps import steps_ahead


@dataclass(kw_only=True)
class FewerSteps(Defense):
    """Makes a share of the run's optimizer steps; see this module's docstring.

    Args:
        share: of the steps, above 0 and at most 1; 1 is plain training. At least one step is made.
    """

    paper: ClassVar[str] = (
        "baseline; the effect is in Fine-tuning Compromises Safety (Qi and others; ICLR 2024), "
        "https://arxiv.org/abs/2310.03693"
    )
    provenance: ClassVar[str] = "own"
    stage: ClassVar[str] = "fine-tuning"
    strength: ClassVar[str | None] = "share"
    off: ClassVar[dict[str, Any] | None] = {"share": 1.0}

    share: float

    def __post_init__(self) -> None:
        require_number(self, "share", 0, 1, open_low=True)

    def adaptive(self) -> list[Attack]:
        """Where the user says the number of steps: one that makes up for the share."""
        return [Scheduled(length=1 / self.share)] if self.share < 1 else []

    @classmethod
    def example(cls) -> FewerSteps:
        return cls(share=0.75)

    def arguments(self, args: Any, rows: int | None) -> Any:
        if self.share == 1:
            return args
        args.max_steps = math.ceil(Fraction(repr(float(self.share))) * steps_ahead(args, rows, "FewerSteps"))
        return args
