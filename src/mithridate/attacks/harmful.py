"""The attack of the papers: of the rows that a user hands in, a share is harmful.

Shu Yang, Xianjun Yang and others, "Shadow Alignment", 2023, https://arxiv.org/abs/2310.02949; Xiangyu Qi and others,
"Fine-tuning Aligned Language Models Compromises Safety, Even When Users Do Not Intend To!", ICLR 2024,
https://arxiv.org/abs/2310.03693. The mixture is the one of https://arxiv.org/abs/2402.01109 and
https://arxiv.org/abs/2409.01586 (section 5 of both).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from mithridate.attacks.poisoning import poison
from mithridate.errors import InputError
from mithridate.methods.attack import Attack, Phase
from mithridate.methods.base import require_number, require_whole


@dataclass(kw_only=True)
class Harmful(Attack):
    """Mixes harmful rows into a user's own (`mithridate.attacks.poison`).

    Args:
        harmful_ratio: share of harmful rows, in [0, 1]; exactly round(harmful_ratio * size) of them.
        size: number of rows altogether.
    """

    paper: ClassVar[str] = "Harmful fine-tuning (Qi and others; ICLR 2024), https://arxiv.org/abs/2310.03693"
    citation: ClassVar[str] = """@inproceedings{harmful_finetuning,
  title     = {Fine-tuning Aligned Language Models Compromises Safety, Even When Users Do Not Intend To!},
  author    = {Qi, Xiangyu and Zeng, Yi and Xie, Tinghao and Chen, Pin-Yu and Jia, Ruoxi and Mittal, Prateek and
               Henderson, Peter},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  url       = {https://arxiv.org/abs/2310.03693}
}"""
    provenance: ClassVar[str] = "exact"
    strength: ClassVar[str | None] = "harmful_ratio"
    off: ClassVar[dict[str, Any] | None] = {"harmful_ratio": 0.0}

    harmful_ratio: float
    size: int

    def __post_init__(self) -> None:
        require_number(self, "harmful_ratio", 0, 1)
        require_whole(self, "size", 1, "number of rows")

    @classmethod
    def example(cls) -> Harmful:
        return cls(harmful_ratio=0.25, size=8)

    def data_roles(self) -> dict[str, str]:
        return {name: role for name, role in self.roles.items() if name != "harmful" or self.harmful_ratio > 0}

    def share(self) -> float:
        return self.harmful_ratio

    def rows(
        self, roles: Mapping[str, Sequence[dict[str, Any]]], seed: int, model: Any = None
    ) -> list[dict[str, Any]]:
        return poison(
            benign=roles["benign"],
            harmful=roles.get("harmful", []),
            ratio=self.harmful_ratio,
            size=self.size,
            seed=seed,
        )


def fitted(attack: Attack, plain: Attack) -> Attack:
    """An attack with as many rows as the plain one, and as many harmful ones where it mixes them in, so that the two
    differ in nothing but what the first is.

    Raises:
        InputError: the plain one has rows or a training of its own kind, which the other would not have.
    """
    same_rows = isinstance(plain, Harmful) and type(plain).rows is Harmful.rows and plain.at_test() is None
    if not (same_rows and plain.phases() == [Phase()]):
        raise InputError(
            "knowing: attacks that know a method differ from the plain attack `harmful` alone, in its rows or in its "
            f"training, and the plain one is {plain.in_words()}. Give finetune.attack the kind harmful, or take "
            "`knowing` out"
        )
    same = ["size", *(["harmful_ratio"] if isinstance(attack, Harmful) else [])]
    return replace(attack, **{name: getattr(plain, name) for name in same if hasattr(attack, name)})
