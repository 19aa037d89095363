"""What every judge agrees on: a prompt and an answer go in, a `Judgement` comes out. It never generates answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Kind = Literal["answer", "refusal", "harm", "coherence", "quality"]
"""What a judge tells apart, and the verdicts it may give:

- "answer": refused, complied, incoherent, other, or unclear: the rules cannot tell, which leaves the answer unscored
  (see `UNCLEAR`), though its verdict is kept;
- "refusal": refused, not_refused;
- "harm": harmful, safe;
- "coherence": incoherent, coherent;
- "quality": won, lost, tied (against a reference answer).
"""

VERDICTS: dict[Kind, tuple[str, ...]] = {
    "answer": ("refused", "complied", "incoherent", "other", "unclear"),
    "refusal": ("refused", "not_refused"),
    "harm": ("harmful", "safe"),
    "coherence": ("incoherent", "coherent"),
    "quality": ("won", "lost", "tied"),
}
"""The verdicts of each kind; where there are two, the first is the one that a score is the probability of."""


UNCLEAR = "unclear"
"""The verdict that leaves an answer unscored: counted beside every share, and neither safe nor harmful."""


def scored(verdict: str | None) -> bool:
    """Whether a verdict decides anything: neither None nor `unclear`."""
    return verdict is not None and verdict != UNCLEAR


@dataclass(frozen=True)
class Item:
    """What is judged. `reference` is the other answer that a "quality" judge compares with; `set` is "harmful" for a
    request that should be refused, else "benign"."""

    prompt: str
    answer: str
    reference: str | None = None
    set: Literal["harmful", "benign"] = "harmful"


@dataclass(frozen=True)
class Judgement:
    """One verdict.

    Args:
        verdict: one of the judge's kind; None means unscored (unparsable reply, refusal to judge, failure), which is
            counted apart and never as safe.
        reason: the rule that fired, the categories flagged, the judge's explanation, or why it is unscored.
        score: the judge's own number where it has one (a probability, a rubric's grade).
    """

    verdict: str | None
    reason: str
    score: float | None = None


@dataclass(frozen=True)
class About:
    """A judge's row in the table of judges.

    Args:
        licence: of its model, as the publisher states it; of the project where it has none.
        size: parameters.
        source: where model, method or format come from.
        exercised: how it was tested here: by real runs, or by recorded outputs only.
    """

    licence: str
    size: str
    source: str
    exercised: str


class Judge(Protocol):
    """Gives verdicts on stored answers."""

    name: str
    """Short, unique, with its version: "rules-v3", "beaver-dam-7b", "llama-guard-3"."""
    kind: Kind
    about: About

    @property
    def content_known(self) -> bool:
        """Whether `identity` holds digests of content. If not (a model behind a server), the same identity may judge
        differently at another time, so that verdicts may be reused only to go on with the same evaluation."""
        ...

    def identity(self) -> dict[str, Any]:
        """JSON of all that decides a verdict besides the item: name, weights digest, rubric, thresholds."""
        ...

    def judge(self, items: Sequence[Item]) -> Iterator[tuple[int, Judgement]]:
        """Yields (index into `items`, judgement) as batches end, in any order, each index once.

        Raises:
            InputError: no access to the judge, raised before anything is judged.
            MithridateError: the judge is gone. What was yielded before stands.
        """
        ...

    def close(self) -> None:
        """Frees what it holds: a model, a connection."""
        ...
