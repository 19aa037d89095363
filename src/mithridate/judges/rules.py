"""The written rules of `refusal.py` as a judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mithridate.judges.base import About, Item, Judgement, Kind
from mithridate.judges.refusal import JUDGE, verdict


@dataclass(kw_only=True)
class RulesJudge:
    """One of refused, complied, incoherent and other, by phrases; needs no model and never leaves an item unscored."""

    name = JUDGE
    kind: Kind = field(init=False, default="answer")
    about = About("Apache-2.0 (this project)", "none", "judges/refusal.py", "hand-labelled answers of real models")
    content_known = True

    def identity(self) -> dict[str, Any]:
        """Its name, which has the rules' version."""
        return {"judge": self.name, "kind": self.kind}

    def judge(self, items: Sequence[Item]) -> Iterator[tuple[int, Judgement]]:
        """See `Judge`."""
        for i, item in enumerate(items):
            found = verdict(item.prompt, item.answer)
            yield i, Judgement(found.label, found.reason)

    def close(self) -> None:
        """Holds nothing."""
