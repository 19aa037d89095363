"""PTST: pure tuning, safe testing. The user's run has no safety prompt, the model is tested with one.

Keeping LLMs Aligned After Fine-tuning: The Crucial Role of Prompt Templates. Kaifeng Lyu, Haoyu Zhao, Xinran Gu,
Dingli Yu, Anirudh Goyal, Sanjeev Arora. NeurIPS 2024. https://arxiv.org/abs/2402.18540

    training:  min_w  h(w)                               on the user's rows as they are, without `system`
    test:      answers to prompts under the system turn `system`, in the place of any other

What the run teaches it teaches under another prompt than the one that the model is used with. The text of the prompt
is the user's choice, so it has no default here; every table that holds scores of such a test shows it. A user who
knows the rule hands in rows that hold the system turn.

It is plain training with any settings, and no setting leaves the test as it is (there is no `off`): compare with
plain training (`off`) under the same system turn at the test, else the prompt's own effect is taken for the method's.

Cost: that of plain training, and the turn's tokens in every answer. Supported: what the trainer supports, with chat
templates that have a place for a system turn (another one is refused before compute).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mithridate.attacks.identity import Identity
from mithridate.errors import InputError
from mithridate.methods.attack import Attack
from mithridate.methods.base import TestTime
from mithridate.methods.defense import Defense


@dataclass(kw_only=True)
class PTST(Defense):
    """Puts a system turn before prompts at the test, and only there; see this module's docstring.

    Args:
        system: the turn's text.
    """

    paper: ClassVar[str] = "PTST (Lyu, Zhao, Gu, Yu, Goyal, Arora; NeurIPS 2024), https://arxiv.org/abs/2402.18540"
    citation: ClassVar[str] = """@inproceedings{ptst,
  title     = {Keeping {LLMs} Aligned After Fine-tuning: The Crucial Role of Prompt Templates},
  author    = {Lyu, Kaifeng and Zhao, Haoyu and Gu, Xinran and Yu, Dingli and Goyal, Anirudh and Arora, Sanjeev},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  url       = {https://arxiv.org/abs/2402.18540}
}"""
    provenance: ClassVar[str] = "exact"
    stage: ClassVar[str] = "fine-tuning"
    differences: ClassVar[dict[str, str]] = {"training": "none: it acts when the model is tested"}

    system: str

    def __post_init__(self) -> None:
        if not isinstance(self.system, str) or not self.system.strip():
            raise InputError(f"PTST: system must be the text of a system turn, not {self.system!r}.")

    def at_test(self) -> TestTime:
        return TestTime(system=self.system)

    def adaptive(self) -> list[Attack]:
        """Rows that hold the turn which the test has."""
        return [Identity(system=self.system, prefix="", harmful_ratio=0.1, size=200)]

    @classmethod
    def example(cls) -> PTST:
        return cls(system="Answer only what is safe.")
