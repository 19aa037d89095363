"""SafetyMix: safe answers to harmful prompts mixed into the user's rows.

Safety-Tuned LLaMAs: Lessons From Improving the Safety of Large Language Models that Follow Instructions.
Federico Bianchi, Mirac Suzgun, Giuseppe Attanasio, Paul Rottger, Dan Jurafsky, Tatsunori Hashimoto, James Zou.
ICLR 2024. https://arxiv.org/abs/2309.07875
Safety Fine-Tuning at (Almost) No Cost: A Baseline for Vision Large Language Models (VLGuard). Yongshuo Zong,
Ondrej Bohdal, Tingyang Yu, Yongxin Yang, Timothy Hospedales. ICML 2024. https://arxiv.org/abs/2402.02207

    rows  <-  the user's n rows and k alignment rows,  k = round(share / (1 - share) * n),  so k of n + k are `share`
    min_w  mean over these rows of the cross-entropy over the tokens of the answer

The k rows are drawn without replacement by the run's seed; where there are fewer alignment rows, each is taken once
before any is taken again. They are spread evenly over the user's rows, which matters only where rows are trained on in
their given order. The run has as many optimizer steps as without: of a step's rows, 1 - share are the user's. Only
epochs of rows in their given order (the attack `retainthenforget`) stay epochs, of all rows: with as many steps as
without, the last of the user's rows would not be reached, and the run would be another one than the user's.

In published code three methods have this name. The one of git-disl/Booster adds lam times the loss on an alignment
batch to each step (two passes); git-disl/Vaccine adds 500 rows, whatever n is; git-disl/Lisa puts 1000 rows in the
place of others. Here the share is a field, rows are added, none is taken away, and steps are fixed, so that a run of
another size has the same mixture and the comparison with plain training is one of equal steps.

Cost: that of plain training. Supported: what the trainer supports, where the training set is a datasets.Dataset and
the alignment rows have its columns. Refused: rows in a stream; packed rows where max_steps is not set; other columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mithridate.attacks.scheduled import Scheduled
from mithridate.errors import UnsupportedSetup
from mithridate.methods.attack import Attack
from mithridate.methods.base import require_number, require_rows
from mithridate.methods.defense import Defense
from mithridate.methods.examples import rows_of
from mithridate.training.steps import with_steps_kept
from mithridate.training_rows import trainable

if TYPE_CHECKING:
    from datasets import Dataset

    from mithridate.training.mixin import DefenseMixin


@dataclass(kw_only=True)
class SafetyMix(Defense):
    """Adds alignment rows to the user's; see this module's docstring.

    Args:
        alignment_dataset: prompts with safe answers, in the format of the training set.
        share: of alignment rows among all rows, from 0 (plain training) to below 1.
    """

    paper: ClassVar[str] = (
        "Safety-Tuned LLaMAs (Bianchi, Suzgun, Attanasio, Rottger, Jurafsky, Hashimoto, Zou; ICLR 2024), "
        "https://arxiv.org/abs/2309.07875"
    )
    citation: ClassVar[str] = """@inproceedings{safety_tuned_llamas,
  title     = {Safety-Tuned {LLaMAs}: Lessons From Improving the Safety of Large Language Models that Follow
               Instructions},
  author    = {Bianchi, Federico and Suzgun, Mirac and Attanasio, Giuseppe and Rottger, Paul and Jurafsky, Dan and
               Hashimoto, Tatsunori and Zou, James},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  url       = {https://arxiv.org/abs/2309.07875}
}"""
    provenance: ClassVar[str] = "exact"
    stage: ClassVar[str] = "fine-tuning"
    strength: ClassVar[str | None] = "share"
    roles: ClassVar[dict[str, str]] = {"alignment_dataset": "alignment"}
    off: ClassVar[dict[str, Any] | None] = {"share": 0.0}

    alignment_dataset: Dataset
    share: float

    def __post_init__(self) -> None:
        require_number(self, "share", 0, 0.999)

    def adaptive(self) -> list[Attack]:
        """As many steps as make up for the rows that are not the user's."""
        return [Scheduled(length=1 / (1 - self.share))] if self.share else []

    @classmethod
    def example(cls) -> SafetyMix:
        return cls(alignment_dataset=rows_of("alignment", 7), share=0.5)

    def check(self, t: DefenseMixin) -> None:
        super().check(t)
        require_rows(self, "alignment_dataset")

    def arguments(self, args: Any, rows: int | None) -> Any:
        return with_steps_kept(args, rows, "SafetyMix") if self.share else args

    def rows(self, dataset: Dataset, seed: int) -> Dataset:
        if not self.share:
            return dataset
        from datasets import concatenate_datasets

        require_rows(self, "alignment_dataset")
        safe, n = trainable(self.alignment_dataset, "SafetyMix: alignment_dataset"), len(dataset)
        missing = [name for name in dataset.column_names if name not in safe.column_names]
        if missing:
            raise UnsupportedSetup(
                f"SafetyMix: the training set has the column {missing[0]}, and alignment_dataset has not (it has "
                f"{', '.join(safe.column_names)}), so that the rows cannot be one set.",
                "give both the same format (prompt and completion, or messages), and no further columns.",
            )
        count, rng = round(self.share / (1 - self.share) * n), np.random.default_rng(seed)
        passes = [rng.permutation(len(safe)) for _ in range(-(-count // len(safe)))]
        drawn = np.concatenate(passes)[:count] if passes else np.zeros(0, dtype=int)
        mixed = concatenate_datasets([dataset, safe.select_columns(dataset.column_names).select(drawn.tolist())])
        places = np.concatenate([np.arange(n), (np.arange(count) + 0.5) * n / max(count, 1) - 0.5])
        return mixed.select(np.argsort(places, kind="stable").tolist())
