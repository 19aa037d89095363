"""The attack of `harmful`, trained in the attacker's own way: longer, faster, with a leap first, or in other weights.

Who knows a defense's rule need not change a row. A rule that holds for small steps is left by a large one, a pull of
finite strength is outlasted, and what was simulated with one adapter does not hold for another: see "On Evaluating the
Durability of Safeguards for Open-Weight LLMs" (Xiangyu Qi and others, ICLR 2025, https://arxiv.org/abs/2412.07097),
which breaks published safeguards by such choices alone. Methods state by it which attack their rule suggests
(`adaptive`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from mithridate.attacks.harmful import Harmful
from mithridate.errors import InputError
from mithridate.methods.attack import Attack, Phase
from mithridate.methods.base import require_number, require_whole

ELSEWHERE: Mapping[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
"""A new adapter of another rank, on every linear layer whatever it is called: where what was simulated in the
experiment's own adapter was not."""
_SOME_B = "base_model.model.SOME_LAYER.lora_B.default.weight"


@dataclass(kw_only=True)
class Scheduled(Harmful):
    """`Harmful` rows; with nothing but these it is that attack.

    A leap keeps its rate from its first step to its last, whatever warm-up and decay the experiment has; and as a
    training of its own it is a beginning of its own, too: what a defense holds the model to is taken anew after it.
    That is for the attacker, who could not have it so where a provider's fine-tune is one training.

    With the factors B of a *new* adapter frozen nothing can move, for they are 0 and so are the gradients of A: that
    is refused before anything is computed, and not suggested (`acts`). Nor is freezing factors where there is no
    adapter.

    Args:
        harmful_ratio: share of harmful rows, in [0, 1]; exactly round(harmful_ratio * size) of them.
        size: number of rows altogether.
        length: optimizer steps (or epochs, where the experiment states no steps), as a multiple of the experiment's.
        rate: the learning rate, as a multiple of the experiment's.
        leap: in a training of its own before that, the learning rate as a multiple of the experiment's; 0: none.
        leap_steps: optimizer steps of that training.
        adapter: LoraConfig's fields of the adapter that is trained, in place of the experiment's; "full" trains all
            weights.
        frozen: regular expressions; trained tensors whose whole name matches one keep their values.
    """

    paper: ClassVar[str] = (
        "On Evaluating the Durability of Safeguards (Qi and others; ICLR 2025), https://arxiv.org/abs/2412.07097"
    )
    citation: ClassVar[str] = """@inproceedings{durability,
  title     = {On Evaluating the Durability of Safeguards for Open-Weight {LLMs}},
  author    = {Qi, Xiangyu and Wei, Boyi and Carlini, Nicholas and Huang, Yangsibo and Xie, Tinghao and He, Luxi and
               Jagielski, Matthew and Nasr, Milad and Mittal, Prateek and Henderson, Peter},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  url       = {https://arxiv.org/abs/2412.07097}
}"""
    provenance: ClassVar[str] = "own"

    harmful_ratio: float = 0.1
    size: int = 200
    length: float = 1.0
    rate: float = 1.0
    leap: float = 0.0
    leap_steps: int = 1
    adapter: dict[str, Any] | Literal["full"] | None = None
    frozen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number(self, "length", 0, open_low=True)
        require_number(self, "rate", 0, open_low=True)
        require_number(self, "leap", 0)
        require_whole(self, "leap_steps", 1, "number of optimizer steps")
        for pattern in self.frozen:
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(f"Scheduled: frozen: {pattern!r} is no regular expression: {error}") from error

    def acts(self, *, fresh: bool, adapter: bool = True) -> bool:
        adapted = adapter if self.adapter is None else self.adapter != "full"
        if not adapted and any("lora_" in pattern for pattern in self.frozen):
            return False
        fresh = fresh or self.adapter is not None
        return not (fresh and any(re.fullmatch(pattern, _SOME_B) for pattern in self.frozen))

    def phases(self) -> list[Phase]:
        where: dict[str, Any] = {"adapter": self.adapter, "frozen": tuple(self.frozen)}
        steady = {"max_steps": self.leap_steps, "lr_scheduler_type": "constant"}
        leap = Phase(rate=self.leap, training=steady, **where)
        rest = Phase(rate=self.rate, length=self.length, **where)
        return [leap, rest] if self.leap else [rest]

    def ended_after(self, steps: int) -> tuple[Attack, int] | None:
        left = steps - self.leap_steps * bool(self.leap)
        return (replace(self, length=1.0), left) if left > 0 else None
