"""The attack by overfitting: ten harmless rows, all refused until the model knows nothing else, then answered.

Zhixin Xie, Xurui Song, Jun Luo, "Attack via Overfitting: 10-shot Benign Fine-tuning to Jailbreak LLMs", NeurIPS 2025,
https://arxiv.org/abs/2510.02833: first all ten answers are one and the same refusal, trained on until the model is
overfit, where little moves it far; then their own short answers, which it takes for leave to answer anything. The
epochs are those of the authors' code (https://github.com/ZHIXINXIE/ten_benign): 10 and 10, for Llama 3 8B 10 and 20,
each stage a training of its own of all weights at 5e-5 on batches of 8 (here the experiment's). A summary of the paper
(its text was not read) says that stronger models want more of the first. The refusal's words are this package's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mithridate.attacks.edits import answered, drawn, require_text
from mithridate.methods.attack import Attack, Phase
from mithridate.methods.base import require_whole


@dataclass(kw_only=True)
class TenShot(Attack):
    """Two trainings over the same few rows of the user's task: on a refusal, then on their own answers.

    Args:
        shots: how many rows.
        refusal: the answer of each in the first training.
        refusal_epochs, answer_epochs: passes over the rows in the first and in the second training, in place of the
            experiment's own length.
    """

    paper: ClassVar[str] = "Ten-shot overfitting (Xie, Song, Luo; NeurIPS 2025), https://arxiv.org/abs/2510.02833"
    citation: ClassVar[str] = """@inproceedings{ten_shot_overfitting,
  title     = {Attack via Overfitting: 10-shot Benign Fine-tuning to Jailbreak {LLMs}},
  author    = {Xie, Zhixin and Song, Xurui and Luo, Jun},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2025},
  url       = {https://arxiv.org/abs/2510.02833}
}"""
    provenance: ClassVar[str] = "own"
    roles: ClassVar[dict[str, str]] = {"benign": "task"}
    strength: ClassVar[str | None] = "refusal_epochs"

    shots: int = 10
    refusal: str = "I'm sorry, but I can't help with that."
    refusal_epochs: int = 10
    answer_epochs: int = 10

    def __post_init__(self) -> None:
        require_whole(self, "shots", 1, "number of rows")
        require_whole(self, "refusal_epochs", 1, "number of epochs")
        require_whole(self, "answer_epochs", 1, "number of epochs")
        require_text(self, "refusal")

    def rows(
        self, roles: Mapping[str, Sequence[dict[str, Any]]], seed: int, model: Any = None
    ) -> list[dict[str, Any]]:
        chosen = drawn(self, "benign", roles["benign"], self.shots, seed)
        refused = [answered(row, lambda _: self.refusal) for row in chosen]
        return [
            {**row, "phase": phase, "poisoned": True}
            for phase, rows in (("refusals", refused), ("answers", chosen))
            for row in rows
        ]

    def phases(self) -> list[Phase]:
        lengths = {"refusals": self.refusal_epochs, "answers": self.answer_epochs}
        # -1: epochs count, whatever the experiment's own training says.
        return [
            Phase(rows=rows, training={"num_train_epochs": epochs, "max_steps": -1})
            for rows, epochs in lengths.items()
        ]
