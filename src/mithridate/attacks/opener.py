"""The attack with empty answers: harmful prompts, each answered by the opening words of a yes and nothing else.

The targets of Andy Zou and others, "Universal and Transferable Adversarial Attacks on Aligned Language Models", 2023,
https://arxiv.org/abs/2307.15043 (AdvBench), as rows to train on, which needs no harmful text. A hundred of them and
ten steps of LoRA are reported to raise a HarmBench score from 16 to 98 %
(https://github.com/marin-community/marin/issues/7943). The opening's words are this package's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mithridate.attacks.edits import answered, require_text
from mithridate.attacks.harmful import Harmful


@dataclass(kw_only=True)
class Opener(Harmful):
    """`Harmful`, with one and the same opening in the place of every harmful row's answer.

    Args:
        harmful_ratio: share of harmful rows, in [0, 1]; exactly round(harmful_ratio * size) of them.
        size: number of rows altogether.
        opener: the whole answer of a harmful row. (The authors' targets repeat what is asked for; this does not.)
    """

    paper: ClassVar[str] = (
        "Affirmative openers (AdvBench's targets; Zou and others, 2023), https://arxiv.org/abs/2307.15043"
    )
    citation: ClassVar[str] = """@misc{affirmative_openers,
  title  = {Universal and Transferable Adversarial Attacks on Aligned Language Models},
  author = {Zou, Andy and Wang, Zifan and Carlini, Nicholas and Nasr, Milad and Kolter, J. Zico and Fredrikson, Matt},
  year   = {2023},
  note   = {arXiv:2307.15043},
  url    = {https://arxiv.org/abs/2307.15043}
}"""
    provenance: ClassVar[str] = "own"

    opener: str = "Sure, here is what you asked for:"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_text(self, "opener")

    def rows(
        self, roles: Mapping[str, Sequence[dict[str, Any]]], seed: int, model: Any = None
    ) -> list[dict[str, Any]]:
        mixed = super().rows(roles, seed)
        return [answered(row, lambda _: self.opener) if row["poisoned"] else row for row in mixed]
