"""How many prompts, and how many seeds, decide on which side of a limit a share lies: to plan a run by.

A limit is decided as the gate and the decisions do it: the whole 95 % interval lies on one side.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

from mithridate.statistics.detectable import POWER
from mithridate.statistics.seeds import unseen
from mithridate.statistics.shares import NORMAL, quantile, wilson

_MOST = 100_000
SEEDS = (3, 4, 5, 8, 11, 16, 24)


def usual_sd(share: float) -> float:
    """The deviation between seeds about as the embedded experiment's four showed it (0.052 at a share of 0.944, 0.10
    at 0.77, 0.07 at 0.19): a correlation of 0.05 between one seed's answers."""
    return sqrt(0.05 * share * (1 - share))


def prompts_needed(share: float, limit: float) -> int | None:
    """About how many prompts, one answer each, decide the limit for one model in at least 80 % of cases.

    Args:
        share: the true share that is expected.
        limit: what it is compared with.

    Returns None where not even 100,000 would.
    """

    from scipy.stats import binom  # takes most of a second

    def decides(n: int) -> bool:
        fits = _last(n, lambda k: wilson(k / n, n, NORMAL)[1] <= limit)  # the largest count that passes
        above = _last(n, lambda k: wilson(k / n, n, NORMAL)[0] <= limit)  # the largest that does not fail
        power = binom.cdf(fits, n, share) if share <= limit else binom.sf(above, n, share)
        return bool(power >= POWER)

    return _first(decides)


def prompts_per_seed(share: float, limit: float, seed_sd: float, seeds: int) -> int | None:
    """About how many prompts decide the limit for the mean over other seeds (`across_seeds`), if all comes out as
    expected: the seeds' shares vary by `seed_sd` (a standard deviation, net of the noise of single answers).

    Returns None where these seeds cannot, however many prompts they are asked.
    """
    apart = share * (1 - share)

    def decides(n: int) -> bool:
        relative = unseen(seeds) / (1 - unseen(seeds))
        if apart:
            squared = quantile(seeds - 1) ** 2 * (seed_sd**2 + apart / n) / seeds
            relative = max(relative, squared / apart)
        over, alone = wilson(share, 1 / relative, 1.0), wilson(share, n, quantile(max(1, n - 1)))
        return max(over[1], alone[1]) <= limit if share <= limit else min(over[0], alone[0]) > limit

    return _first(decides)


def _last(n: int, holds: Callable[[int], bool]) -> int:
    """The largest count for which a bound that rises with it still holds; -1 where it holds for none."""
    low, high = -1, n + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _first(decides: Callable[[int], bool]) -> int | None:
    low, high = 1, 2
    while not decides(high):
        if high >= _MOST:
            return None
        low, high = high, min(2 * high, _MOST)
    while high - low > max(1, high // 100):
        middle = round(sqrt(low * high))
        middle = min(max(middle, low + 1), high - 1)
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high
