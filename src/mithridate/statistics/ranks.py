"""Ranks with their uncertainty, from tests of every pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def rank_intervals(names: Sequence[str], lower: Mapping[tuple[str, str], bool]) -> dict[str, tuple[int, int]]:
    """The best and the worst rank that each of `names` may have, 1 being the lowest share.

    Every other that is shown to be lower must come before, every other that is shown to be higher must come after;
    where neither is shown, either may. If the tests of all pairs together are wrong with a chance of at most 5 % (as
    `holm` makes them), all these intervals together hold the true ranks with a chance of at least 95 % (Mogstad,
    Romano, Shaikh, Wilhelm; Review of Economic Studies 2024).

    Args:
        lower: of pairs (a, b), whether a's share is shown to lie below b's; a pair that is not there is not shown.
    """
    found = {}
    for name in names:
        others = [other for other in names if other != name]
        before = sum(lower.get((other, name), False) for other in others)
        after = sum(lower.get((name, other), False) for other in others)
        found[name] = (1 + before, len(names) - after)
    return found
