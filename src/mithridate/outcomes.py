"""What each prompt came to, by cell, step and rate: what runs are compared by. Kept small, so that a grid's fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mithridate.evaluation import outcomes
from mithridate.statistics import across_seeds, paired, paired_across_seeds, proportion


@dataclass(frozen=True)
class _Row:
    """Outcomes by prompt, in two tuples: cells that were asked the same prompts share the first."""

    prompts: tuple[str, ...]
    values: tuple[bool | None, ...]

    def by_prompt(self) -> dict[str, bool | None]:
        return dict(zip(self.prompts, self.values))


class Outcomes:
    """Outcomes of many models' answers (`evaluation.outcomes`), compared on the prompts that both were asked.

    Cells go by their id in results.json, rates by their name there. What is not there compares as None.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[str, int | None, str], _Row] = {}
        self._prompts: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._compared: dict[tuple, dict[str, Any] | None] = {}

    def add(self, cell: str, rows: Sequence[Mapping[str, Any]], step: int | None = None) -> None:
        """Takes over one model's rows: of the end of the cell, or of a step of its attack.

        Raises:
            InputError: rows of a protocol that is not known.
        """
        for rate, found in outcomes(rows).items():
            prompts = tuple(found)
            self._rows[cell, step, rate] = _Row(self._prompts.setdefault(prompts, prompts), tuple(found.values()))

    def share(self, cell: str, rate: str) -> dict[str, Any] | None:
        """The share of positive outcomes, as results.json has it; None where the rate was not measured."""
        row = self._rows.get((cell, None, rate))
        if row is None:
            return None
        unscored = row.values.count(None)
        return proportion(row.values.count(True), len(row.values) - unscored) | {"unscored": unscored}

    def paired(self, cell: str, other: str, rate: str, step: int | None = None) -> dict[str, Any] | None:
        """`statistics.paired` of two models, on the prompts that both were asked and scored on; None without any."""
        key = (cell, other, rate, step)
        if key not in self._compared:
            mine, theirs = self._rows.get((cell, step, rate)), self._rows.get((other, step, rate))
            self._compared[key] = _paired(mine, theirs) if mine and theirs else None
        return self._compared[key]

    def over_seeds(self, cells: Sequence[str], rate: str) -> dict[str, Any] | None:
        """`statistics.across_seeds` of the prompts that all were asked, a cell a seed."""
        rows = [self._rows.get((cell, None, rate)) for cell in cells]
        found = [row for row in rows if row is not None]
        return across_seeds(_square(found)) if found and len(found) == len(rows) else None

    def paired_over_seeds(self, cells: Sequence[str], others: Sequence[str], rate: str) -> dict[str, Any] | None:
        """`statistics.paired_across_seeds`; cell i of both has the same seed."""
        key = (tuple(cells), tuple(others), rate)
        if key not in self._compared:
            rows = [self._rows.get((cell, None, rate)) for cell in (*cells, *others)]
            both = _square([row for row in rows if row is not None]) if None not in rows else []
            half = len(cells)
            self._compared[key] = paired_across_seeds(both[:half], both[half:]) if both and both[0] else None
        return self._compared[key]


def _paired(mine: _Row, theirs: _Row) -> dict[str, Any] | None:
    shared = [(own, its) for own, its in _both(mine, theirs) if own is not None and its is not None]
    return paired([own for own, _ in shared], [its for _, its in shared]) if shared else None


def _both(mine: _Row, theirs: _Row) -> Iterator[tuple[bool | None, bool | None]]:
    if mine.prompts is theirs.prompts:
        return zip(mine.values, theirs.values)
    other = theirs.by_prompt()
    return ((own, other[prompt]) for prompt, own in zip(mine.prompts, mine.values) if prompt in other)


def _square(rows: Sequence[_Row]) -> list[list[bool | None]]:
    """One row a run, one column a prompt that all runs were asked."""
    if all(row.prompts is rows[0].prompts for row in rows):
        return [list(row.values) for row in rows]
    found = [row.by_prompt() for row in rows]
    prompts = [prompt for prompt in found[0] if all(prompt in one for one in found)]
    return [[one[prompt] for prompt in prompts] for one in found]
