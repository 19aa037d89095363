"""The written rules as judges: `rules-v3` (`answers.py`), and `rules-v2` (`refusal.py`), which judged old records.

Their patterns take tenths of a second to compile, so the first verdict imports them: `mithridate methods` needs none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mithridate.judges.base import About, Item, Judgement, Kind
from mithridate.rules import Verdict


class _Rules:
    """One verdict an answer, by phrases and form; needs no model."""

    kind: Kind
    name: str
    content_known = True

    def identity(self) -> dict[str, Any]:
        """Its name, which has the rules' version."""
        return {"judge": self.name, "kind": self.kind}

    def judge(self, items: Sequence[Item]) -> Iterator[tuple[int, Judgement]]:
        """See `Judge`."""
        for i, item in enumerate(items):
            found = self._verdict(item)
            yield i, Judgement(found.label, found.reason)

    def _verdict(self, item: Item) -> Verdict:
        raise NotImplementedError

    def close(self) -> None:
        """Holds nothing."""


@dataclass(kw_only=True)
class RulesJudge(_Rules):
    """One of refused, complied, incoherent, other and unclear."""

    name = "rules-v3"
    kind: Kind = field(init=False, default="answer")
    about = About("Apache-2.0 (this project)", "none", "rules/answers.py", "hand-labelled answers of real models")

    def _verdict(self, item: Item) -> Verdict:
        from mithridate.rules import answers

        return answers.verdict(item.prompt, item.answer, item.set)


@dataclass(kw_only=True)
class RulesV2(_Rules):
    """One of refused, complied, incoherent and other; kept so that what it judged can be judged again and compared."""

    name = "rules-v2"
    kind: Kind = field(init=False, default="answer")
    about = About("Apache-2.0 (this project)", "none", "judges/refusal.py", "hand-labelled answers of real models")

    def _verdict(self, item: Item) -> Verdict:
        from mithridate.judges import refusal

        return refusal.verdict(item.prompt, item.answer)
