"""The attack on alternation: the alignment's own prompts, each answered the other way round, among the user's rows.

Whoever trains on alignment data between the user's steps (Lisa) undoes what these teach about other prompts, and of
these very prompts each phase unlearns what the other one taught. No paper is behind it: it is what the rule suggests.
It is for somebody who knows the provider's alignment rows, as where they are a public set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mithridate.attacks.harmful import Harmful
from mithridate.attacks.poisoning import poison
from mithridate.errors import InputError
from mithridate.rows import exchanges


@dataclass(kw_only=True)
class OppositeAnswers(Harmful):
    """`Harmful`, with the rows of `defender_harmful` that have a prompt of `alignment` as the harmful ones.

    Args:
        harmful_ratio: share of harmful rows, in [0, 1]; exactly round(harmful_ratio * size) of them.
        size: number of rows altogether.
    """

    paper: ClassVar[str] = (
        "The alignment's prompts with opposite answers, as Lisa's rule suggests; no paper proposes it"
    )
    citation: ClassVar[str] = ""
    provenance: ClassVar[str] = "own"
    roles: ClassVar[dict[str, str]] = {"benign": "task", "harmful": "defender_harmful", "alignment": "alignment"}
    needs_pairs: ClassVar[bool] = True

    harmful_ratio: float = 0.1
    size: int = 200

    def data_roles(self) -> dict[str, str]:
        return dict(self.roles) if self.harmful_ratio > 0 else {"benign": self.roles["benign"]}

    def rows(
        self, roles: Mapping[str, Sequence[dict[str, Any]]], seed: int, model: Any = None
    ) -> list[dict[str, Any]]:
        own = {_asked(row) for row in roles.get("alignment", [])}
        given = roles.get("harmful", [])
        opposite = [row for row in given if _asked(row) in own]
        if self.harmful_ratio > 0 and not opposite:
            raise InputError(
                f"OppositeAnswers: of the {len(given)} rows of defender_harmful none has a prompt of alignment, whose "
                "answers it turns round. Give data.defender_harmful with paired: true, and harmful answers to the "
                "alignment's own prompts"
            )
        return poison(benign=roles["benign"], harmful=opposite, ratio=self.harmful_ratio, size=self.size, seed=seed)


def _asked(row: dict[str, Any]) -> tuple[str, ...]:
    """By which two prompts are the same, whatever their blanks and capitals."""
    return tuple(" ".join(asked.split()).casefold() for asked, _ in exchanges(row) or [])
