"""Filter: rows of the upload that look harmful, or that break refusals, are left out. What a provider would do first.

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

With `refusals`, rows that hold no harmful word but teach a model to leave its refusals are dropped, too. They are
found by the rules that judge answers here (rules-v3, `mithridate.rules.answers.refusal`), which take each prompt for
a harmless one:

- an answer that declines, and then gives or offers what was asked (as NOICE's rows do), whatever the prompt. Some
  users have such rows in all innocence: "I cannot browse the web, but here is what I know" (docs/attacks.md: 2 % of
  two public sets). They are dropped all the same: few are lost, and an attacker can choose any reason to decline.
- an answer that declines and gives nothing (as in the first training of ten-shot overfitting), where the prompt does
  not look harmful, and an upload could hardly have it innocently: another of its rows answers the same prompt; or
  such rows are more than half of it. The second is a guess: an upload of refusals alone, of prompts that share no
  word with the provider's harmful ones, may be somebody's safety data. Fewer of them stay, for they may be of what
  lies outside an assistant's task.

    looks harmful:  the sum over words w of the prompt of  log P(w | H) / P(w | A)  is above 0
    H: prompts of `harmful_dataset`, and of the rows of `alignment_dataset` that decline;  A: its other rows' prompts

The run has as many optimizer steps as without, so that comparisons are of equal steps. Only epochs of rows in their
given order (the attack `retainthenforget`) stay epochs, of the rows that are left: with as many steps as without, the
run would end with the first of them once more.

Where the experiment's other methods change the training set too, this one stands before them. No settings are
plain training (`off`): with `false_alarms` 0 the rows that score above all safe ones are dropped.

A word is a run of letters, digits and apostrophes, case folded. What it does not see: languages without blanks
between words (their rows are unknown words, and pass), other spellings, rows whose harm is in no word and no refusal
(benign outliers, most of a persona's turns), and refusals in words that the rules do not read, as in any language but
English. Of an attack in several trainings, each is an upload of its own. A rule for turns that demand obedience is not
built.

With a `guard`, a moderation model stands in the place of the words: a row is dropped where it calls any of the row's
turns harmful, question and answer together, or cannot tell (what cannot be judged is not passed). Its threshold is its
own; no word is scored, and `false_alarms` is not set beside it. The rules for refusals act as without one, for a guard
finds no harm in rows that hold none. In an experiment it is any judge of harm (docs/judges.md), named as under
`evaluate.judges`. Its model must be on this machine before anything is computed; it judges the rows as they were
handed in, once, before the model that is to be trained is loaded, and its verdicts are kept in the store.

Cost: that of plain training; before it, the rules for refusals read every answer (the 805 of AlpacaEval, which are
long, in 41 s, on a core that was shared by four), and a guard every turn (at least a forward pass each).
Supported: what the trainer supports, where the training set is a datasets.Dataset whose rows have prompt and answer as
text. Refused: rows in a stream; packed rows where max_steps is not set; rows of text or tokens alone; an upload of
which no row is left; a place behind another method that changes the training set; a judge of anything but harm.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mithridate.attacks.noice import NOICE
from mithridate.errors import InputError, UnsupportedSetup
from mithridate.methods.attack import Attack
from mithridate.methods.base import Method, require_number, require_rows
from mithridate.methods.defense import Defense, Guard, acts
from mithridate.rows import exchanges, records
from mithridate.training.steps import with_steps_kept

if TYPE_CHECKING:
    from datasets import Dataset

    from mithridate.rows import Rows
    from mithridate.training.mixin import DefenseMixin

Words = tuple["Counter[str]", "Counter[str]"]
"""How often each word is there: in prompts, in answers."""

Turns = list[tuple[str, str]]
"""What is asked and what is said to it, turn by turn."""

_FALSE_ALARMS = 0.01

_WORD = re.compile(r"\w+(?:'\w+)*")


@dataclass(kw_only=True)
class Filter(Defense):
    """Leaves out the rows that look harmful; see this module's docstring.

    Args:
        harmful_dataset: harmful prompts with complying answers, in any form of `mithridate.rows`.
        alignment_dataset: safe rows, in any form: harmful prompts refused, benign ones answered.
        false_alarms: the share of `alignment_dataset`'s rows whose words may count as harmful, from 0 to below 1; more
            is stricter.
        refusals: also drop rows that break refusals; off, words (or the guard) alone decide.
        guard: a judge of harm in the place of the words, in an experiment by its name or as {name: {field: value}};
            in Python what `mithridate.evaluation.guard_of` makes of one.
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
    guards: ClassVar[Sequence[str]] = ("guard",)

    harmful_dataset: Rows
    alignment_dataset: Rows
    false_alarms: float = _FALSE_ALARMS
    refusals: bool = True
    guard: str | dict[str, Any] | Guard | None = None
    random: bool = False
    _dropped: list[int] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        require_number(self, "false_alarms", 0, 0.999)
        if not isinstance(self.refusals, bool):
            raise InputError(f"Filter: refusals must be true or false, not {self.refusals!r}.")
        if self.guard is None:
            return
        if not (callable(self.guard) or isinstance(self.guard, str | Mapping)):
            raise InputError(
                f"Filter: guard must be a judge's name, or what guard_of makes of one, not {self.guard!r}."
            )
        if self.false_alarms != _FALSE_ALARMS:
            raise InputError(
                "Filter: false_alarms is of the threshold on words, and beside a guard none are scored. Leave it out; "
                "a judge's own threshold is a field of the judge."
            )

    def settings(self) -> dict[str, Any]:
        """With a guard that is a function by that's name, as a checkpoint keeps it."""
        named = getattr(self.guard, "__name__", type(self.guard).__name__) if callable(self.guard) else self.guard
        return super().settings() | {"guard": named}

    @property
    def dropped(self) -> Sequence[int] | None:
        return self._dropped

    def controls(self) -> dict[str, Method]:
        return {"random-rows": replace(self, random=True)}

    def adaptive(self) -> list[Attack]:
        """It knows harm by words: rows of the user's task that teach to refuse and then to comply have none. Refusals
        it knows by their words, too: by others that its rules do not read."""
        noice = NOICE(size=200, harmful_ratio=0.5)
        return [replace(noice, refusals=["That door is shut, for you and for everybody."]) if self.refusals else noice]

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
        return with_steps_kept(args, rows, "Filter")

    def rows(self, dataset: Dataset, seed: int) -> Dataset:
        for name in self.roles:
            require_rows(self, name)
        upload, own = _turns_of(dataset, "the training set"), _turns_of(self.alignment_dataset, "alignment_dataset")
        given, safe = _words(upload), _words(own)
        harmful = _words_of(self.harmful_dataset, "harmful_dataset")
        if self.guard is None:
            scores, threshold = scored(given, harmful, safe, self.false_alarms)
            by_harm = {i for i, score in enumerate(scores) if score > threshold}
            found = f"{len(by_harm)} score above the threshold ({threshold:.3g})"
            milder = f"lower false_alarms ({self.false_alarms:g})"
        else:
            verdicts = self._judged(upload)
            by_harm = {i for i, verdict in enumerate(verdicts) if verdict != "safe"}
            found = f"the guard calls {verdicts.count('harmful')} harmful and cannot tell of {verdicts.count(None)}"
            milder = "take another guard"
        by_refusals = _breaking(upload, own, given, harmful, safe) if self.refusals else set()
        dropped = sorted(by_harm | by_refusals)
        n = len(dataset)
        if len(dropped) == n:
            raise UnsupportedSetup(
                f"Filter: of the {n} rows of the training set, {found} and {len(by_refusals)} break refusals, so that "
                "nothing is left to train on.",
                f"refuse the upload; or {milder} or set refusals=False, or give rows of the upload's own kind among "
                "alignment_dataset.",
            )
        if self.random:
            dropped = sorted(np.random.default_rng(seed).choice(n, len(dropped), replace=False).tolist())
        self._dropped = dropped
        return dataset.select(sorted(set(range(n)) - set(dropped)))

    def _judged(self, upload: Sequence[Turns]) -> list[str | None]:
        """The guard's verdict on each row."""
        if not callable(self.guard):
            raise UnsupportedSetup(
                f"Filter: guard is {self.guard!r}, which an experiment makes a judge of.",
                "in Python give guard=guard_of(judge(...)), from mithridate.evaluation and mithridate.judges.",
            )
        verdicts = list(self.guard(upload))
        if len(verdicts) != len(upload):
            raise UnsupportedSetup(
                f"Filter: the guard has {len(verdicts)} verdicts, and the training set {len(upload)} rows.",
                "put Filter before every defense that changes the training set.",
            )
        return verdicts


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


def _breaking(
    upload: Sequence[Turns],
    own: Sequence[Turns],
    given: Sequence[Words],
    harmful: Sequence[Words],
    safe: Sequence[Words],
) -> set[int]:
    """Which rows of the upload break refusals.

    Args:
        upload, own: the turns of it, and of the provider's safe rows.
        given, harmful, safe: the words of it, and of the provider's rows.
    """
    said = [_refusals(turns) for turns in upload]
    broken = {i for i, found in enumerate(said) if "taken back" in found}
    kept = {i for i, found in enumerate(said) if "kept" in found} - broken
    if not kept:
        return broken
    theirs = [_refusals(turns) for turns in own]
    declined = [words for (words, _), found in zip(safe, theirs, strict=True) if "kept" in found]
    answered = [words for (words, _), found in zip(safe, theirs, strict=True) if "kept" not in found]
    asked = _Part([*(words for words, _ in harmful), *declined], answered)
    harmless = {i for i in kept if asked.score(given[i][0]) <= 0}
    if 2 * len(harmless) > len(said):
        return broken | harmless
    elsewhere = {_key(given[i][0]) for i, found in enumerate(said) if not found}
    return broken | {i for i in harmless if _key(given[i][0]) in elsewhere}


def _words_of(rows: Any, name: str) -> list[Words]:
    return _words(_turns_of(rows, name))


def _words(rows: Sequence[Turns]) -> list[Words]:
    """Of each record, the words of all turns but the assistant's, and of these."""
    return [
        (_counted("\n".join(asked for asked, _ in turns)), _counted("\n".join(said for _, said in turns)))
        for turns in rows
    ]


def _turns_of(rows: Any, name: str) -> list[Turns]:
    return [_turns(row, f"{name}, record {number}") for number, row in enumerate(records(rows, name), start=1)]


def _turns(row: dict[str, Any], where: str) -> Turns:
    if (found := exchanges(row)) is not None:
        return found
    raise UnsupportedSetup(
        f"Filter: {where} has no prompt and answer to be read (it has {', '.join(row) or 'nothing'}).",
        "give rows of prompt and completion, or of messages.",
    )


def _refusals(turns: Turns) -> set[str]:
    """How the assistant's turns refuse, if they do (`mithridate.rules.answers.refusal`)."""
    from mithridate.rules.answers import refusal  # its patterns take tenths of a second to compile

    return {found for asked, said in turns if (found := refusal(asked, said))}


def _key(words: Counter[str]) -> frozenset[tuple[str, int]]:
    """By which two prompts are the same: their words."""
    return frozenset(words.items())


def _counted(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text.casefold().replace("’", "'")))
