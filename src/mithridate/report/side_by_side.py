"""Two runs beside each other, for the terminal: 80 columns, unless the numbers alone are wider."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from mithridate.results.comparison import Comparison, Difference
from mithridate.statistics.text import between, interval, p_value, percent, points

_WIDTH = 80
_HEADING = ("", "a", "b", "b − a", "p", "", "n")
_NAMES = {
    "harmful_score": "harmful score",
    "incoherent": "incoherent",
    "benign_refusal": "benign refused",
    "benign_other": "benign other",
    "benign_incoherent": "benign incoh.",
    "accuracy": "accuracy",
}


def lines(found: Comparison) -> Iterator[str]:
    """The comparison as lines of text."""
    about = found.about
    by = "judge" if about["judge"] else "rules"
    rules = f", {by} {about[by]}" if about[by] else ""
    for side, folder in (("a", found.a), ("b", found.b)):
        yield from _folded(f"{side}: {folder} ({about[side]['model']})", "   ")
    yield from _folded(f"protocol {about['protocol']}{rules}; b − a in points, 95% intervals, p by Holm", "  ")
    widths = [max(map(len, column)) for column in zip(_HEADING, *map(_cells, found.differences))]
    for model, rates in groupby(found.differences, key=lambda each: each.model):
        yield ""
        yield from _folded(model, "  ")
        yield _line(_HEADING, widths)
        for each in rates:
            yield _line(_cells(each), widths)
    if found.notes:
        yield ""
    for note in found.notes:
        yield from _folded(note, "  ")


def _cells(found: Difference) -> tuple[str, ...]:
    return (
        _NAMES.get(found.rate, found.rate),
        *(f"{percent(share['value'])} {interval(share)}" for share in (found.a, found.b)),
        "" if found.difference is None else f"{points(found.difference)} {between(vars(found))}",
        p_value(found.p_holm).removeprefix("p ").removeprefix("= "),
        "" if found.way == "paired" else "unpaired",
        str(found.n),
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    *words, n = [cell.ljust(width) for cell, width in zip(cells, widths)]
    gap = "  " if sum(widths) + 2 * len(words) <= _WIDTH else " "
    return gap.join([*words, cells[-1].rjust(len(n))])


def _folded(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent=indent, break_on_hyphens=False)
