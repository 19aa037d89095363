"""LowerLR: the user's run with a smaller learning rate. The plainest rival of every defense of that run.

No paper proposes it as a defense; that safety is lost faster at larger learning rates is measured in
Fine-tuning Aligned Language Models Compromises Safety, Even When Users Do Not Intend To! Xiangyu Qi, Yi Zeng,
Tinghao Xie, Pin-Yu Chen, Ruoxi Jia, Prateek Mittal, Peter Henderson. ICLR 2024. https://arxiv.org/abs/2310.03693

    learning rate  <-  factor * learning rate        of all steps: the schedule keeps its shape

What a defense gains over the undefended run it must gain over this one too: a smaller step keeps the model nearer to
the aligned one, for nothing. It is the run that an experiment with that learning rate would make, bit for bit. Under
optimizers with decoupled weight decay (AdamW) the decay of a step is smaller by the same factor.

Cost: that of plain training. Supported: what the trainer supports, whatever the optimizer, where it is made from the
training's arguments. Refused: an optimizer that was made beforehand, with a rate of its own; a schedule that ends at
an absolute rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mithridate.attacks.scheduled import Scheduled
from mithridate.errors import UnsupportedSetup
from mithridate.methods.attack import Attack
from mithridate.methods.base import require_number
from mithridate.methods.defense import Defense

if TYPE_CHECKING:
    from mithridate.training.mixin import DefenseMixin

_ABSOLUTE = ("min_lr", "lr_end")  # of lr_scheduler_kwargs


@dataclass(kw_only=True)
class LowerLR(Defense):
    """Multiplies the learning rate by a factor; see this module's docstring.

    Args:
        factor: of the learning rate, above 0 and at most 1; 1 is plain training.
    """

    paper: ClassVar[str] = (
        "baseline; the effect is in Fine-tuning Compromises Safety (Qi and others; ICLR 2024), "
        "https://arxiv.org/abs/2310.03693"
    )
    provenance: ClassVar[str] = "own"
    stage: ClassVar[str] = "fine-tuning"
    strength: ClassVar[str | None] = "factor"
    off: ClassVar[dict[str, Any] | None] = {"factor": 1.0}

    factor: float

    def __post_init__(self) -> None:
        require_number(self, "factor", 0, 1, open_low=True)

    def adaptive(self) -> list[Attack]:
        """Where the user says the learning rate: one that makes up for the factor."""
        return [Scheduled(rate=1 / self.factor)] if 0 < self.factor < 1 else []

    @classmethod
    def example(cls) -> LowerLR:
        return cls(factor=0.5)

    def arguments(self, args: Any, rows: int | None) -> Any:
        absolute = [name for name in _ABSOLUTE if (args.lr_scheduler_kwargs or {}).get(name)]
        if absolute and self.factor != 1:
            raise UnsupportedSetup(
                f"LowerLR: the schedule ends at {absolute[0]}={args.lr_scheduler_kwargs[absolute[0]]}, a rate that "
                "no factor changes.",
                "give the schedule's end as a share (min_lr_rate), or take another schedule.",
            )
        args.learning_rate = self.factor * args.learning_rate
        return args

    def check(self, t: DefenseMixin) -> None:
        super().check(t)
        groups = t.optimizer.param_groups if t.optimizer is not None else []
        if any(group.get("initial_lr", group.get("lr")) != t.args.learning_rate for group in groups):
            raise UnsupportedSetup(
                "LowerLR: the optimizer was made beforehand and has a learning rate of its own.",
                "lower that rate, or let the trainer make the optimizer (args.optim, args.learning_rate).",
            )
