"""DeepenedRefusals: alignment in which refusals also follow the beginning of a harmful answer.

Safety Alignment Should Be Made More Than Just a Few Tokens Deep. Xiangyu Qi, Ashwinee Panda, Kaifeng Lyu, Xiao Ma,
Subhrajit Roy, Ahmad Beirami, Prateek Mittal, Peter Henderson. ICLR 2025. https://arxiv.org/abs/2406.05946

Idea: a model that refuses by its first tokens alone complies once these are other ones. So refusals are trained behind
the first tokens of a harmful answer a. Each time that an alignment row (prompt x, refusal r) comes up:

    with probability share:   x, a_1 .. a_k, r      k uniform in 1 .. min(tokens, length of a)
    else:                     x, r
    min_w  mean over the tokens of r of the cross-entropy

a is the answer that `harmful_dataset` has to the very prompt, as published (in an experiment: `paired: true` on
defender_harmful). Where it has none to it, a is drawn from all its answers, which is a variant: the beginning then
belongs to another request. Logged are the share of rows that were joined (deepenedrefusals/joined), and that of rows
which were joined as published (deepenedrefusals/paired). Of content-free answers it is the form alone that is met: k
tokens of compliance before the refusal.

What is drawn is a function of (the run's seed, the step, the row), so that accumulation, processes and a resumption
change nothing. A row is as long as max_length at most: k is no more than what is left of it, and a row without room
stays as it is. So do rows of several answers, and those whose prompt is trained on too. The control is share = 0: the
same rows without such beginnings.

Which it is, of paper and code: the data augmentation of the authors' code (Unispac/shallow-vs-deep-alignment), with
its constants: a share of 1/2 by a coin, tokens = 100. There 4 such rows stand beside a batch of 16 utility rows in
each step, and the loss is a mean over the tokens of both; here the training set is the alignment rows alone. (A
helpful row in it would get the beginning of a harmful answer too.) The paper's text was not compared.

Differs from the authors' code in:
- there k counts the token that ends a (</s>), so that of answers shorter than 100 tokens some rows go on after the
  answer's end; here a ends before its first special token;
- there all tokens that equal the padding's have no loss; where that is the end of a turn, as with many tokenizers, the
  end of the refusal is never learned. Here it is;
- there the start of an answer is searched for by Llama 2's own token ids; here by the chat template's mask;
- there the draws are Python's, one stream for each process.

Cost: that of plain training, over rows that are share * k tokens longer (share * tokens / 2 at most on average,
about).
Supported: LoRA and full weights, gradient accumulation (exact), activation checkpointing, mixed precision,
data parallelism, FSDP2, torch.compile, padding-free and packed batches. Refused: another defense that chooses the
batches; models that are not causal.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from datasets import Dataset

from mithridate.attacks.noice import NOICE
from mithridate.attacks.scheduled import Scheduled
from mithridate.errors import UnsupportedSetup
from mithridate.methods.attack import Attack
from mithridate.methods.base import require_number, require_rows, require_whole
from mithridate.methods.defense import Defense
from mithridate.training.setups import refuse_other_than_causal
from mithridate.training.side_data import require_own_labels, rows_of_batch

if TYPE_CHECKING:
    from mithridate.rows import Rows
    from mithridate.training.mixin import DefenseMixin

_NO_LABEL = -100


@dataclass(kw_only=True)
class DeepenedRefusals(Defense):
    """Trains refusals behind the beginning of a harmful answer; see this module's docstring.

    Args:
        harmful_dataset: harmful prompts, best those of the training set, with complying answers, in any form of
            `mithridate.rows`.
        share: of rows that get such a beginning, in [0, 1]; 0 is plain training.
        tokens: of the longest beginning.
    """

    paper: ClassVar[str] = (
        "Deepened refusals (Qi, Panda, Lyu, Ma, Roy, Beirami, Mittal, Henderson; ICLR 2025), "
        "https://arxiv.org/abs/2406.05946"
    )
    citation: ClassVar[str] = """@inproceedings{deepened_refusals,
  title     = {Safety Alignment Should Be Made More Than Just a Few Tokens Deep},
  author    = {Qi, Xiangyu and Panda, Ashwinee and Lyu, Kaifeng and Ma, Xiao and Roy, Subhrajit and Beirami, Ahmad and
               Mittal, Prateek and Henderson, Peter},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  url       = {https://arxiv.org/abs/2406.05946}
}"""
    provenance: ClassVar[str] = "port of the data augmentation in Unispac/shallow-vs-deep-alignment"
    stage: ClassVar[str] = "alignment"
    strength: ClassVar[str | None] = "share"
    off: ClassVar[dict[str, Any] | None] = {"share": 0.0}
    roles: ClassVar[dict[str, str]] = {"harmful_dataset": "defender_harmful"}

    harmful_dataset: Rows
    share: float = 0.5
    tokens: int = 100
    _answers: dict[tuple[int, ...], list[int]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        require_number(self, "share", 0, 1)
        require_whole(self, "tokens", 1, "number of tokens")

    def adaptive(self) -> list[Attack]:
        """Answers that began as harmful ones are refused: rows that refuse first and then answer, or more steps."""
        return [NOICE(size=200, harmful_ratio=0.5), Scheduled(length=3.0)]

    def check(self, t: DefenseMixin) -> None:
        super().check(t)
        require_rows(self, "harmful_dataset")
        refuse_other_than_causal(t, "DeepenedRefusals")
        require_own_labels(t.side_data(self.harmful_dataset, "harmful_dataset").dataset, "DeepenedRefusals")
        if not self._harmful(t):
            raise UnsupportedSetup(
                "DeepenedRefusals: no row of harmful_dataset has a prompt and an answer of one token or more.",
                "give it rows with prompt and completion (or response), or messages, and max_length room for them.",
            )
        rows = t.train_dataset
        if not isinstance(rows, Dataset) or "labels" not in rows.column_names or getattr(t.args, "packing", False):
            return  # what a row is shows in its batch only
        if self.share and not any(_answer(labels)[0] for labels in rows["labels"]):
            raise UnsupportedSetup(
                "DeepenedRefusals: no row of the training set has a prompt and one answer after it, so that there is "
                "nothing to begin otherwise.",
                "give it rows with prompt and completion, or messages.",
            )

    def on_train_begin(self, t: DefenseMixin) -> None:
        self._answers = self._harmful(t) if self.share else {}

    def batches(self, t: DefenseMixin, batches: list[Any]) -> list[Any]:
        return [self._deepened(t, batch) for batch in batches] if self._answers else batches

    def on_train_end(self, t: DefenseMixin) -> None:
        self._answers = {}

    def _harmful(self, t: DefenseMixin) -> dict[tuple[int, ...], list[int]]:
        """The answers' tokens, without the end of the turn, by the prompts'."""
        rows = t.side_data(self.harmful_dataset, "harmful_dataset").dataset
        special, found = set(getattr(t.processing_class, "all_special_ids", ())), {}
        for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
            start, end = _answer(labels)
            answer = list(takewhile(lambda token: token not in special, ids[start:end])) if start else []
            if answer:
                found[tuple(ids[:start])] = answer
        return found

    def _deepened(self, t: DefenseMixin, batch: Any) -> Any:
        rows, joined, paired = [(row["input_ids"], row["labels"]) for row in rows_of_batch(batch)], 0, 0
        for number, (ids, labels) in enumerate(rows):
            (start, _), rng = _answer(labels), self._rng(t, ids)
            own = self._answers.get(tuple(ids[:start]))
            wanted, which = rng.random() < self.share, int(rng.integers(len(self._answers)))
            answer = own or list(self._answers.values())[which]
            longest = min(self.tokens, len(answer))
            if (most := getattr(t.args, "max_length", None)) is not None:
                longest = min(longest, most - len(ids))
            if not (start and wanted and longest > 0):
                continue
            prefix = answer[: int(rng.integers(1, longest + 1))]
            rows[number] = (
                [*ids[:start], *prefix, *ids[start:]],
                [_NO_LABEL] * (start + len(prefix)) + labels[start:],
            )
            joined, paired = joined + 1, paired + (own is not None)
        t.record("deepenedrefusals/joined", joined / max(len(rows), 1))  # both always: ranks are to log the same names
        t.record("deepenedrefusals/paired", paired / max(len(rows), 1))
        if not joined:
            return batch
        return t.data_collator([{"input_ids": ids, "labels": labels} for ids, labels in rows])

    def _rng(self, t: DefenseMixin, ids: list[int]) -> np.random.Generator:
        key = f"{t.args.seed} {type(self).__name__} {t.state.global_step} {ids}".encode()
        return np.random.default_rng(list(hashlib.sha256(key).digest()))


def _answer(labels: list[int]) -> tuple[int, int]:
    """Where the one answer begins that is trained on, and where it ends (a template may close the turn after it,
    without a label); 0, 0 where there is none such, or no prompt."""
    start = next((i for i, label in enumerate(labels) if label != _NO_LABEL), 0)
    end = next((i for i in range(len(labels), start, -1) if labels[i - 1] != _NO_LABEL), start)
    return (0, 0) if not start or _NO_LABEL in labels[start:end] else (start, end)
