"""The attack that waits: first all of the user's own rows, in order, then all of the harmful ones.

The adversary of that name in Rishub Tamirisa and others, "Tamper-Resistant Safeguards for Open-Weight LLMs", ICLR
2025, https://arxiv.org/abs/2408.00761: of its steps the first M are on benign rows and the rest on harmful ones, M a
share of the steps that is drawn from Beta(6, 3). Here the share is a setting, by default that distribution's mean, so
that a run repeats and the table knows how many rows were harmful.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mithridate.attacks.harmful import Harmful
from mithridate.methods.attack import Phase


@dataclass(kw_only=True)
class RetainThenForget(Harmful):
    """`Harmful`, with its harmful rows last, in one pass over all rows, one optimizer and one schedule throughout.

    It is one pass whatever the experiment says of its length: fewer steps would not reach the harmful rows, and a
    second pass would begin with the harmless ones again.

    Args:
        harmful_ratio: share of harmful rows, in [0, 1]; exactly round(harmful_ratio * size) of them.
        size: number of rows altogether.
    """

    paper: ClassVar[str] = (
        "Retain-then-forget (TAR's adversary; Tamirisa and others, ICLR 2025), https://arxiv.org/abs/2408.00761"
    )
    citation: ClassVar[str] = """@inproceedings{retain_then_forget,
  title     = {Tamper-Resistant Safeguards for Open-Weight {LLMs}},
  author    = {Tamirisa, Rishub and Bharathi, Bhrugu and Phan, Long and others},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  url       = {https://arxiv.org/abs/2408.00761}
}"""
    provenance: ClassVar[str] = "own"
    off: ClassVar[dict[str, Any] | None] = None  # without harmful rows it is a training in another order

    harmful_ratio: float = 1 / 3

    def rows(
        self, roles: Mapping[str, Sequence[dict[str, Any]]], seed: int, model: Any = None
    ) -> list[dict[str, Any]]:
        return sorted(super().rows(roles, seed), key=lambda row: row["poisoned"])  # which keeps the order of equals

    def phases(self) -> list[Phase]:
        return [Phase(order="given", training={"num_train_epochs": 1, "max_steps": -1})]
