"""What each prompt came to, by cell, step and rate: what runs are compared by. Kept small, so that a grid's fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mithridate.evaluation import Answers, any_answer, outcomes, rate_of
from mithridate.statistics import across_seeds, paired, paired_across_seeds, paired_by_prompt

_OPEN = (True,), (True, None)  # what counts, if no unscored answer does, and if every one does
_ALONE: dict[bool | None, Answers] = {one: (one,) for one in (True, False, None)}  # of one answer, shared by all


@dataclass(frozen=True)
class _Row:
    """Outcomes by prompt, in two tuples: cells that were asked the same prompts share the first."""

    prompts: tuple[str, ...]
    values: tuple[Answers, ...]

    def by_prompt(self) -> dict[str, Answers]:
        return dict(zip(self.prompts, self.values))

    @property
    def samples(self) -> int:
        """The most answers that a prompt has."""
        return max(map(len, self.values), default=1)


class Outcomes:
    """Outcomes of many models' answers (`evaluation.outcomes`), compared on the prompts that both were asked.

    Cells go by their id in results.json, rates by their name there. What is not there compares as None. A prompt with
    several answers counts with the share of those that were scored.
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
        self.put(cell, outcomes(rows), step)

    def put(self, cell: str, told: Mapping[str, Mapping[str, Answers]], step: int | None = None) -> None:
        """Takes over what one model's answers came to, by rate and prompt, as `evaluation.outcomes` has it."""
        for rate, found in told.items():
            prompts = tuple(found)
            values = tuple(_ALONE[each[0]] if len(each) == 1 else each for each in found.values())
            self._rows[cell, step, rate] = _Row(self._prompts.setdefault(prompts, prompts), values)

    def answers(self, cell: str, rate: str, step: int | None = None) -> dict[str, Answers] | None:
        """Each prompt's outcomes; None where the rate was not measured."""
        row = self._rows.get((cell, step, rate))
        return row and row.by_prompt()

    def share(self, cell: str, rate: str) -> dict[str, Any] | None:
        """The share of positive outcomes, as results.json has it; None where the rate was not measured."""
        row = self._rows.get((cell, None, rate))
        if row is None:
            return None
        asked = [prompt for prompt, answers in zip(row.prompts, row.values) for _ in answers]
        return rate_of(asked, [one for answers in row.values for one in answers], row.samples)

    def paired(self, cell: str, other: str, rate: str, step: int | None = None) -> dict[str, Any] | None:
        """`statistics.paired` of two models, on the prompts that both were asked and scored on; None without any.

        Where prompts have several answers, `statistics.paired_by_prompt` of those that were scored, with `samples`,
        the most answers that a prompt has; `discordant` is then the mean square of the differences of the prompts'
        shares, which of single answers is the share of prompts that differ.
        """
        key = (cell, other, rate, step)
        if key not in self._compared:
            mine, theirs = self._rows.get((cell, step, rate)), self._rows.get((other, step, rate))
            self._compared[key] = _paired(mine, theirs) if mine and theirs else None
        return self._compared[key]

    def at_worst(self, cell: str, other: str, rate: str) -> dict[str, Any] | None:
        """`paired` at the ends of two models, with each unscored answer of the first counted and none of the other's.
        None where there is no such answer, or nothing to compare."""
        rows = self._rows.get((cell, None, rate)), self._rows.get((other, None, rate))
        filled = _filled(*([row] if row else [] for row in rows))
        return _paired(filled[0][0], filled[1][0]) if filled else None

    def at_worst_over_seeds(self, cells: Sequence[str], others: Sequence[str], rate: str) -> dict[str, Any] | None:
        """The same of `paired_over_seeds`."""
        filled = _filled(self._all(cells, rate), self._all(others, rate))
        if not filled:
            return None
        both = _square([*filled[0], *filled[1]], _share)
        return paired_across_seeds(both[: len(cells)], both[len(cells) :])

    def over_seeds(self, cells: Sequence[str], rate: str) -> dict[str, Any] | None:
        """`statistics.across_seeds` of the prompts that all were asked, one cell per seed.

        Where prompts have several answers, in each cell as many, also `samples`, `worst_of_k` of `evaluation.rate_of`
        over seeds, and `any_of_k`: the mean over seeds of the share that each has by itself, with an interval that
        holds whatever the unscored answers are (to leave out prompts that some seed leaves open would leave out those
        of which no answer counts).
        """
        found = self._all(cells, rate)
        if not found:
            return None
        together = across_seeds(_square(found, _share))
        samples = {row.samples for row in found}
        if len(samples) > 1 or samples == {1}:
            return together
        any_of = _square(found, any_answer)
        best, worst = (across_seeds([[one in counted for one in seed] for seed in any_of]) for counted in _OPEN)
        shares = [share for seed in any_of if (share := _share(tuple(seed))) is not None]
        value = sum(shares) / len(shares) if len(shares) == len(any_of) else None
        named = {key: best[key] for key in ("seeds", "prompts", "note")}
        return together | {
            "samples": samples.pop(),
            "any_of_k": {"value": value, "low": best["low"], "high": worst["high"], **named},
            "worst_of_k": worst,
        }

    def paired_over_seeds(self, cells: Sequence[str], others: Sequence[str], rate: str) -> dict[str, Any] | None:
        """`statistics.paired_across_seeds`; cell i of both has the same seed."""
        key = (tuple(cells), tuple(others), rate)
        if key not in self._compared:
            rows, half = self._all((*cells, *others), rate), len(cells)
            found = None
            if rows and (both := _square(rows, _share))[0]:
                found = paired_across_seeds(both[:half], both[half:])
            self._compared[key] = found
        return self._compared[key]

    def _all(self, cells: Sequence[str], rate: str) -> list[_Row]:
        """The rows of the cells; nothing where one is not there."""
        rows = [self._rows.get((cell, None, rate)) for cell in cells]
        found = [row for row in rows if row is not None]
        return found if len(found) == len(rows) else []


def _filled(mine: Sequence[_Row], theirs: Sequence[_Row]) -> tuple[list[_Row], list[_Row]] | None:
    """The rows with each unscored answer of the first counted, and none of the others'; None where all are scored, or
    one side has no rows."""
    if not mine or not theirs or all(None not in answers for row in (*mine, *theirs) for answers in row.values):
        return None

    def filled(row: _Row, value: bool) -> _Row:
        return _Row(row.prompts, tuple(tuple(value if one is None else one for one in each) for each in row.values))

    return [filled(row, True) for row in mine], [filled(row, False) for row in theirs]


def _share(answers: Answers) -> float | None:
    """Of a prompt's scored answers those that count; None where none was scored."""
    if len(answers) == 1:
        return answers[0]
    scored = [one for one in answers if one is not None]
    return sum(scored) / len(scored) if scored else None


def _paired(mine: _Row, theirs: _Row) -> dict[str, Any] | None:
    if (samples := max(mine.samples, theirs.samples)) > 1:
        return _paired_by_prompt(mine.by_prompt(), theirs.by_prompt(), samples)
    shared = [(own, its) for (own,), (its,) in _both(mine, theirs) if own is not None and its is not None]
    return paired([own for own, _ in shared], [its for _, its in shared]) if shared else None


def _paired_by_prompt(
    mine: Mapping[str, Answers], theirs: Mapping[str, Answers], samples: int
) -> dict[str, Any] | None:
    a, b = (
        {prompt: [one for one in answers if one is not None] for prompt, answers in run.items()}
        for run in (mine, theirs)
    )
    shared = [prompt for prompt, scored in a.items() if scored and b.get(prompt)]
    if not shared:
        return None
    x, y = ({prompt: run[prompt] for prompt in shared} for run in (a, b))
    found = paired_by_prompt(x, y)
    found.pop("left_out")
    if "discordant" in found:  # one scored answer of each prompt
        return found
    squares = [(sum(x[prompt]) / len(x[prompt]) - sum(y[prompt]) / len(y[prompt])) ** 2 for prompt in shared]
    return found | {"discordant": sum(squares) / len(shared), "samples": samples}


def _both(mine: _Row, theirs: _Row) -> Iterator[tuple[Answers, Answers]]:
    if mine.prompts is theirs.prompts:
        return zip(mine.values, theirs.values)
    other = theirs.by_prompt()
    return ((own, other[prompt]) for prompt, own in zip(mine.prompts, mine.values) if prompt in other)


def _square(rows: Sequence[_Row], of: Callable[[Answers], Any]) -> list[list[Any]]:
    """One row per run, one column per prompt that all runs were asked, of what `of` makes of the prompt's answers."""
    if all(row.prompts is rows[0].prompts for row in rows):
        return [[of(answers) for answers in row.values] for row in rows]
    found = [row.by_prompt() for row in rows]
    prompts = [prompt for prompt in found[0] if all(prompt in one for one in found)]
    return [[of(one[prompt]) for prompt in prompts] for one in found]
