"""What a gate found: one criterion on one model, and how it came out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["pass", "undecided", "fail"]
EVERY = "(all)"  # in place of a model's id, where a finding is of the run


@dataclass(frozen=True)
class Finding:
    """One criterion on one model: the observed `value` with `low` and `high`, over `n` prompts.

    What speaks against the evidence itself is undecided, and has words and nothing to measure.
    """

    cell: str
    criterion: str
    limit: float | None
    outcome: Outcome
    value: float | None
    low: float | None
    high: float | None
    n: int
    words: str
    unscored: list[str] = field(default_factory=list)


def doubt(cell: str, criterion: str, words: str, unscored: Sequence[str] = (), limit: float | None = None) -> Finding:
    """What cannot be decided, and why."""
    return Finding(cell, criterion, limit, "undecided", None, None, None, 0, words, list(unscored))


def worst(findings: Sequence[Finding]) -> Outcome:
    return worst_of(finding.outcome for finding in findings)


def worst_of(outcomes: Iterable[str]) -> Outcome:
    found = set(outcomes)
    return "fail" if "fail" in found else "undecided" if "undecided" in found else "pass"


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
