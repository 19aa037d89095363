"""Two runs beside each other, for the terminal: at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from mithridate.results.comparison import Comparison
from mithridate.statistics.text import between, interval, p_value, percent, points

_WIDTH = 80
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
    for model, rates in groupby(found.differences, key=lambda each: each.model):
        yield ""
        yield from _folded(model, "  ")
        yield _line("", "a", "b", "b − a", "p", "", "n")
        for each in rates:
            yield _line(
                _NAMES.get(each.rate, each.rate),
                *(f"{percent(share['value'])} {interval(share)}" for share in (each.a, each.b)),
                "" if each.difference is None else f"{points(each.difference)} {between(vars(each))}",
                p_value(each.p_holm).removeprefix("p ").removeprefix("= "),
                "" if each.way == "paired" else "unpaired",
                str(each.n),
            )
    if found.notes:
        yield ""
    for note in found.notes:
        yield from _folded(note, "  ")


def _line(name: str, *cells: Any) -> str:
    a, b, difference, p, way, n = cells
    return f"{name:<14} {a:<13} {b:<13} {difference:<16} {p:<7} {way:<8} {n:>3}".rstrip()


def _folded(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent=indent, break_on_hyphens=False)
