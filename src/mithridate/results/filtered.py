"""Rows that were handed in and left out by a defense that chooses among them: `trained.filtered` of results.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_COUNTS = ("harmful", "of_harmful", "benign", "of_benign")


def filtered(cells: Iterable[Mapping[str, Any]]) -> dict[str, int] | None:
    """The counts of cells together: attack rows left out, of how many, and the same of the others. None where no cell
    has a defense that chooses."""
    found = [counts for cell in cells if (counts := (cell.get("trained") or {}).get("filtered"))]
    return {name: sum(counts[name] for counts in found) for name in _COUNTS} if found else None


def in_words(counts: Mapping[str, int]) -> str:
    """ "12 of 12 attack rows, 5 of 108 others"; an attack's rows need not be harmful to read."""
    said = [f"{counts['harmful']} of {counts['of_harmful']} attack rows"] if counts["of_harmful"] else []
    rest = "others" if said else "rows"
    return ", ".join([*said, f"{counts['benign']} of {counts['of_benign']} {rest}"] if counts["of_benign"] else said)
