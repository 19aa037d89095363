"""The smallest difference that a comparison could have seen: with 80 % power, at the 5 % level. Every one is a
fraction.

What is smaller may well exist and yet come out as "no difference", so that a table which shows none says this with it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

POWER = 0.8
ALPHA = 0.05


def detectable_paired(n: int, discordant: float, comparisons: int = 1) -> float | None:
    """The smallest difference of shares that the exact McNemar test finds in at least 80 % of cases.

    The power is exact (summed over the number of discordant pairs), not an approximation.

    Args:
        n: prompts that both runs were asked.
        discordant: share of prompts on which the runs differ, observed (`paired(...)["discordant"]`) or assumed. A
            difference larger than it is taken to raise it: then all discordant prompts differ in one direction.
        comparisons: in the same table, corrected by Holm; the level of his first step, 5 % over their number, is used.

    Returns None where no difference could be found, even if the runs differed on every prompt (5 prompts or fewer).
    """

    def gap(difference: float) -> float:
        return _mcnemar_power(n, max(discordant, difference), difference, ALPHA / comparisons) - POWER

    return _root(gap, 1.0)


def _root(gap: Callable[[float], float], most: float) -> float | None:
    """Where the rising `gap` crosses 0 between 0 and `most`, to four digits, rounded up; None where it does not."""
    from scipy.optimize import brentq

    if gap(most) < 0:
        return None
    found: Any = brentq(gap, 1e-6, most, xtol=1e-5)
    return min(most, found + 1e-5)


def _mcnemar_power(n: int, discordant: float, difference: float, alpha: float) -> float:
    """Probability of p < alpha for n pairs: a share `discordant` differ, `difference` more of them one way."""
    from scipy.stats import binom  # takes most of a second

    pairs = np.arange(n + 1)
    # The largest count on the rarer side with p = 2 cdf(count) < alpha; -1 where there is none.
    count = binom.ppf(alpha / 2, pairs, 0.5)
    count = np.where(2 * binom.cdf(count, pairs, 0.5) < alpha, count, count - 1)
    one_way = (1 + difference / discordant) / 2 if discordant else 0.5
    found = binom.cdf(count, pairs, one_way) + binom.sf(pairs - count - 1, pairs, one_way)
    return float((binom.pmf(pairs, n, discordant) * found)[count >= 0].sum())
