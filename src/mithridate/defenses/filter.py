"""Filter: rows of the upload that look like harmful ones are left out. What a provider would do first.

No paper proposes this rule; providers say that they screen what is uploaded, and papers on attacks take it for given.
Virus: Harmful Fine-tuning Attack for Large Language Models Bypassing Guardrail Moderation. Tiansheng Huang, Sihao Hu,
Fatih Ilhan, Selim Furkan Tekin, Ling Liu. 2025. https://arxiv.org/abs/2501.17433 shows rows that are optimised until a
guard model passes them.

    score(row)  =  sum over words w of the prompt  log P(w | harmful, prompt) / P(w | safe, prompt)
                +  sum over words w of the answer  log P(w | harmful, answer) / P(w | safe, answer)
    P(w | class, part)  =  (count of w + 1) / (words of the class + words that the part has in either class)
    dropped:  score > threshold

Harmful are `harmful_dataset`'s rows, safe `alignment_dataset`'s: multinomial naive Bayes with add-one smoothing, its
two parts with counts of their own. So a harmful prompt that is answered scores high, and the same prompt refused, as
it stands among the safe rows, does not. System turns are words of the prompt; of a conversation, all turns count. A
word that neither class has in that part says nothing and is left out: with classes of unequal size, add-one smoothing
alone would call every unknown word a sign of the smaller class (measured on the embedded sentiment task at
`false_alarms` 0.01: 33 of 256 rows dropped with unknown words counted, none without).

The threshold is set on the provider's own safe rows, each scored by counts without itself: the (k + 1)th highest of
these scores, k = floor(false_alarms * rows), so that at most k of them lie above it; and 0 where that is below 0: no
row is dropped whose words speak for safe, or of which no word is known, whatever the share. A prior of the classes
would move all scores alike, and is left out. On an upload, which is of another kind than the provider's rows, the
share of false alarms is another one: docs/attacks.md has what was measured.

The run has as many optimizer steps as without, so that comparisons are of equal steps. Where the experiment's other
methods change the training set too, this one stands before them. No settings are plain training (`off`): with
`false_alarms` 0 the rows that score above all safe ones are dropped.

A word is a run of letters, digits and apostrophes, case folded. What it does not see: languages without blanks
between words (their rows are unknown words, and pass), other spellings, rows whose harm is in no word (NOICE's: benign
prompts alone). A guard model in the place of this classifier is not built.

Cost: that of plain training. Supported: what the trainer supports, where the training set is a datasets.Dataset whose
rows have prompt and answer as text. Refused: rows in a stream; packed rows where max_steps is not set; rows of text or
tokens alone; an upload of which no row is left; a place behind another method that changes the training set.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mithridate.attacks.noice import NOICE
from mithridate.errors import UnsupportedSetup
from mithridate.methods.attack import Attack
from mithridate.methods.base import Method, require_number, require_rows
from mithridate.methods.defense import Defense, acts
from mithridate.rows import records
from mithridate.training.steps import steps_ahead

if TYPE_CHECKING:
    from datasets import Dataset

    from mithridate.rows import Rows
    from mithridate.training.trainer import DefenseMixin

Words = tuple["Counter[str]", "Counter[str]"]
"""How often each word is there: in prompts, in answers."""

_WORD = re.compile(r"\w+(?:'\w+)*")


@dataclass(kw_only=True)
class Filter(Defense):
    """Leaves out the rows that look harmful; see this module's docstring.

    Args:
        harmful_dataset: harmful prompts with complying answers, in any form of `mithridate.rows`.
        alignment_dataset: safe rows, in any form: harmful prompts refused, benign ones answered.
        false_alarms: the share of `alignment_dataset`'s rows that it may drop, from 0 to below 1; more is stricter.
        random: drop as many rows, but any (the control).
    """

    paper: ClassVar[str] = (
        "A provider's own screening; attacked by Virus (Huang, Hu, Ilhan, Tekin, Liu; 2025), "
        "https://arxiv.org/abs/2501.17433"
    )
    citation: ClassVar[str] = """@misc{virus,
  title  = {Virus: Harmful Fine-tuning Attack for Large Language Models Bypassing Guardrail Moderation},
  author = {Huang, Tiansheng and Hu, Sihao and Ilhan, Fatih and Tekin, Selim Furkan and Liu, Ling},
  year   = {2025},
  note   = {arXiv:2501.17433},
  url    = {https://arxiv.org/abs/2501.17433}
}"""
    provenance: ClassVar[str] = "own"
    stage: ClassVar[str] = "fine-tuning"
    strength: ClassVar[str | None] = "false_alarms"
    roles: ClassVar[dict[str, str]] = {"harmful_dataset": "defender_harmful", "alignment_dataset": "alignment"}

    harmful_dataset: Rows
    alignment_dataset: Rows
    false_alarms: float = 0.01
    random: bool = False
    _dropped: list[int] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        require_number(self, "false_alarms", 0, 0.999)

    @property
    def dropped(self) -> Sequence[int] | None:
        return self._dropped

    def controls(self) -> dict[str, Method]:
        return {"random-rows": replace(self, random=True)}

    def adaptive(self) -> list[Attack]:
        """It knows harm by words: rows of the user's task that teach to refuse and then to comply have none."""
        return [NOICE(size=200, harmful_ratio=0.5)]

    @classmethod
    def example(cls) -> Filter:
        return cls(
            harmful_dataset=[{"prompt": f"{i}", "response": "Sure."} for i in range(4)],
            alignment_dataset=[{"prompt": f"{i}", "response": f"No{i}."} for i in range(4, 8)],
        )

    def check(self, t: DefenseMixin) -> None:
        super().check(t)
        before = itertools.takewhile(lambda other: other is not self, t.defenses)
        if other := next((type(d).__name__ for d in before if acts(d, "rows")), None):
            raise UnsupportedSetup(
                f"Filter: {other} changes the training set before it, so that what it scores is not the upload.",
                f"put it before {other} in the list.",
            )

    def arguments(self, args: Any, rows: int | None) -> Any:
        args.max_steps = steps_ahead(args, rows, "Filter")
        return args

    def rows(self, dataset: Dataset, seed: int) -> Dataset:
        for name in self.roles:
            require_rows(self, name)
        harmful, safe = (_words_of(getattr(self, name), name) for name in ("harmful_dataset", "alignment_dataset"))
        scores, threshold = scored(_words_of(dataset, "the training set"), harmful, safe, self.false_alarms)
        dropped = [i for i, score in enumerate(scores) if score > threshold]
        n = len(dataset)
        if len(dropped) == n:
            raise UnsupportedSetup(
                f"Filter: all {n} rows of the training set score above the threshold ({threshold:.3g}), so that "
                "nothing is left to train on.",
                f"refuse the upload; or lower false_alarms ({self.false_alarms:g}), or give rows of the upload's own "
                "kind among alignment_dataset.",
            )
        if self.random:
            dropped = sorted(np.random.default_rng(seed).choice(n, len(dropped), replace=False).tolist())
        self._dropped = dropped
        return dataset.select(sorted(set(range(n)) - set(dropped)))


def scored(
    rows: Sequence[Words], harmful: Sequence[Words], safe: Sequence[Words], false_alarms: float
) -> tuple[list[float], float]:
    """The score of each row, and the threshold above which rows are dropped, in natural logarithms.

    Args:
        rows: how often each word is in the prompt and in the answer of each row that is scored.
        harmful, safe: the same of the rows of the two classes.
        false_alarms: the share of the safe rows that may lie above the threshold.
    """
    parts = [_Part([row[i] for row in harmful], [row[i] for row in safe]) for i in (0, 1)]
    scores = [sum(part.score(row[i]) for i, part in enumerate(parts)) for row in rows]
    own = sorted((sum(part.score_without(row[i]) for i, part in enumerate(parts)) for row in safe), reverse=True)
    return scores, max(0.0, own[math.floor(Fraction(repr(float(false_alarms))) * len(own))])


class _Part:
    """The words of prompts, or of answers, in harmful and in safe rows."""

    def __init__(self, harmful: Iterable[Counter[str]], safe: Iterable[Counter[str]]):
        self.harmful, self.safe = _summed(harmful), _summed(safe)
        self.sizes = self.harmful.total(), self.safe.total()
        self.known = len(self.harmful.keys() | self.safe.keys())

    def score(self, row: Counter[str]) -> float:
        return self._score(row, Counter(), self.known)

    def score_without(self, row: Counter[str]) -> float:
        """The score of one of the safe rows by the counts of the others."""
        alone = sum(self.safe[word] == count and not self.harmful[word] for word, count in row.items())
        return self._score(row, row, self.known - alone)

    def _score(self, row: Counter[str], out: Counter[str], known: int) -> float:
        bias = math.log((self.sizes[1] - out.total() + known) / (self.sizes[0] + known)) if known else 0.0
        total = 0.0
        for word, count in row.items():
            harmful, safe = self.harmful[word], self.safe[word] - out[word]
            if harmful or safe:
                total += count * (math.log((harmful + 1) / (safe + 1)) + bias)
        return total


def _summed(rows: Iterable[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for row in rows:
        total.update(row)
    return total


def _words_of(rows: Any, name: str) -> list[Words]:
    return [_words(row, f"{name}, record {number}") for number, row in enumerate(records(rows, name), start=1)]


def _words(row: dict[str, Any], where: str) -> Words:
    """The words of one record: of all turns but the assistant's, and of these."""
    if "messages" in row:
        asked = "\n".join(turn["content"] or "" for turn in row["messages"] if turn["role"] != "assistant")
        said = "\n".join(turn["content"] or "" for turn in row["messages"] if turn["role"] == "assistant")
    elif isinstance(row.get("prompt"), str) and isinstance(row.get("response"), str):
        asked, said = f"{row.get('system') or ''}\n{row['prompt']}", row["response"]
    else:
        raise UnsupportedSetup(
            f"Filter: {where} has no prompt and answer to be read (it has {', '.join(row) or 'nothing'}).",
            "give rows of prompt and completion, or of messages.",
        )
    return _counted(asked), _counted(said)


def _counted(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text.casefold().replace("’", "'")))
