"""Two runs compared: the difference of their shares with its 95 % interval, and a test that they are equal.

- The same prompts, one answer each: the exact McNemar test (a binomial test on the discordant pairs), and Newcombe's
  square-and-add interval for the difference of paired proportions, with his continuity-corrected correlation
  (R. G. Newcombe, Improved confidence intervals for the difference between binomial proportions based on paired data,
  Statistics in Medicine 17, 1998, 2635-2650, method 10).
- The same prompts, several answers each: a test that swaps the two runs prompt by prompt, and the same square-and-add
  of the clustered intervals of `shares`, with the correlation of the prompts' shares.
- Different prompts: Fisher's exact test where prompts have one answer each, Welch's t test of the prompts' shares
  where they have several.
- Two shares with their own intervals: Newcombe's square and add (R. G. Newcombe, Interval estimation for the
  difference between independent proportions, Statistics in Medicine 17, 1998, 873-890, method 10).
- Many comparisons in one table: S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian J. of
  Statistics 6, 1979, 65-70.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import erfc, lcm, sqrt
from typing import Any

import numpy as np
from scipy.special import bdtr

from mithridate.statistics.shares import (
    ByPrompt,
    effective,
    prompt_shares,
    proportion,
    proportion_by_prompt,
    quantile,
    wilson,
)

_ADDITIONS = 200_000_000
"""How many additions the swapping test may take for its count of all sums: half a second."""
_SAME = 1e-9
"""Shares that differ by less than this are one share, rounded."""
_MANY = 1000
"""Prompts from which on the sum of their differences is as good as normal."""


def paired(a: Sequence[bool], b: Sequence[bool]) -> dict:
    """Two runs on the same prompts, in the same order: `difference` of the shares a - b, with its 95 % interval
    (`low`, `high`), the exact McNemar test's two-sided `p_value`, `discordant` (the share of prompts on which they
    differ) and `n`. None, and p = 1, where n = 0.

    The exact test is conservative: at 112 prompts, 30 % of them discordant, equal runs have p < 0.05 in 3.2 % of
    cases.

    Raises `ValueError` where the runs have different lengths.
    """
    pairs = [(bool(x), bool(y)) for x, y in zip(a, b, strict=True)]
    n = len(pairs)
    if n == 0:
        return {"difference": None, "low": None, "high": None, "p_value": 1.0, "discordant": None, "n": 0}
    both, only_a = pairs.count((True, True)), pairs.count((True, False))
    only_b, neither = pairs.count((False, True)), pairs.count((False, False))
    discordant = only_a + only_b
    p_value = min(1.0, 2 * float(bdtr(min(only_a, only_b), discordant, 0.5)))  # of a half, both tails are alike
    interval = difference(
        proportion(both + only_a, n),
        proportion(both + only_b, n),
        _correlation(both, only_a, only_b, neither),
    )
    return interval | {"p_value": p_value, "discordant": discordant / n, "n": n}


def paired_by_prompt(a: ByPrompt, b: ByPrompt) -> dict:
    """Two runs on the same prompts with several answers each (samples, seeds), each prompt counting the same.

    Returns `difference` of the shares a - b with its 95 % interval (`low`, `high`), `p_value` (two-sided, of the test
    that swaps the runs prompt by prompt, over all ways to do that), `n` (prompts compared) and `left_out` (prompts of
    which one run has no scored answer). None, and p = 1, where n = 0. With one answer per prompt it is `paired`.

    Answers of several seeds: the comparison is of these seeds, see `seeds.paired_across_seeds` for others.

    Raises `ValueError` where the runs have different prompts.
    """
    if a.keys() != b.keys():
        raise ValueError(f"the runs have different prompts: {len(a.keys() ^ b.keys())} are in one only")
    prompts = [prompt for prompt in a if a[prompt] and b[prompt]]
    left_out = len(a) - len(prompts)
    if all(len(a[prompt]) == len(b[prompt]) == 1 for prompt in prompts):
        compared = paired([a[prompt][0] for prompt in prompts], [b[prompt][0] for prompt in prompts])
        return compared | {"left_out": left_out}
    x, y = ({prompt: run[prompt] for prompt in prompts} for run in (a, b))
    shares_a, shares_b = (np.array([sum(v) / len(v) for v in run.values()]) for run in (x, y))
    spread = float(shares_a.std() * shares_b.std())
    covariance = float(((shares_a - shares_a.mean()) * (shares_b - shares_b.mean())).mean())
    differences = [Fraction(sum(x[p]), len(x[p])) - Fraction(sum(y[p]), len(y[p])) for p in prompts]
    interval = difference(
        _clustered(x, shares_a),
        _clustered(y, shares_b),
        covariance / spread if spread > 0 else 0.0,
    )
    return interval | {"p_value": _swapped(differences), "n": len(prompts), "left_out": left_out}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values of a table's comparisons, adjusted: calling those below 0.05 different is wrong anywhere in the table
    in at most 5 % of tables. None (no comparison) stays None and does not count.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        adjusted[i] = highest
    return adjusted


def unpaired(a: ByPrompt, b: ByPrompt) -> dict:
    """Two runs on different prompts, with one or several answers each: `difference` of the shares a - b with its 95 %
    interval (`low`, `high`), the two-sided `p_value` and `n`, the prompts of both.

    With one answer a prompt the test is Fisher's exact one, which is conservative; with several it is Welch's t test
    of the prompts' shares, for the prompts are the sample. Where each run has one share at all of its prompts,
    Fisher's test tells the two apart: of all ways to deal the prompts out, how many part them so. None, and p = 1,
    where one run has no scored answer.
    """
    from scipy.stats import fisher_exact, ttest_ind  # takes most of a second

    x, y = prompt_shares(a), prompt_shares(b)
    n = len(x) + len(y)
    if not len(x) or not len(y):
        return {"difference": None, "low": None, "high": None, "p_value": 1.0, "n": n}
    interval = difference(proportion_by_prompt(a), proportion_by_prompt(b))
    if sum(map(len, a.values())) == len(x) and sum(map(len, b.values())) == len(y):
        tested: Any = fisher_exact([[x.sum(), (1 - x).sum()], [y.sum(), (1 - y).sum()]])
        p_value = tested.pvalue
    elif len(x) < 2 or len(y) < 2:
        p_value = 1.0  # no variance is seen, so nothing can be told
    elif np.ptp(x) < _SAME and np.ptp(y) < _SAME:  # rounding is no variance
        other = len(y) * (abs(x[0] - y[0]) >= _SAME)
        tested = fisher_exact([[len(x), 0], [len(y) - other, other]])
        p_value = tested.pvalue
    else:
        tested = ttest_ind(x, y, equal_var=False)
        p_value = tested.pvalue
    return interval | {"p_value": float(p_value), "n": n}


def difference(a: dict, b: dict, correlation: float = 0.0) -> dict:
    """Newcombe's interval for the difference of two shares: `difference`, `low` and `high`.

    Each bound is as far off as the shares' own bounds, added as vectors at the angle that their correlation makes.

    Args:
        a: a share with its interval: `value`, `low` and `high`.
        b: the other.
        correlation: of the two; 0 where they are independent.
    """

    def length(x: float, y: float) -> float:
        return sqrt(max(0.0, x * x - 2 * correlation * x * y + y * y))

    below = length(a["value"] - a["low"], b["high"] - b["value"])
    above = length(a["high"] - a["value"], b["value"] - b["low"])
    middle = a["value"] - b["value"]
    return {"difference": middle, "low": middle - below, "high": middle + above}


def _correlation(both: int, only_a: int, only_b: int, neither: int) -> float:
    """Correlation of the two runs' outcomes; positive ones shrunk by half a pair, as Newcombe advises."""
    n = both + only_a + only_b + neither
    scale = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if scale == 0:
        return 0.0
    determinant = both * neither - only_a * only_b
    if determinant > 0:
        determinant = max(determinant - n / 2, 0.0)
    return determinant / sqrt(scale)


def _clustered(answers: ByPrompt, shares: np.ndarray) -> dict:
    """The interval of `proportion_by_prompt`, with Student's t also where this run has one answer per prompt."""
    if len(shares) == 1:
        return proportion_by_prompt(answers)
    value = float(shares.mean())
    low, high = wilson(value, effective(shares, sum(map(len, answers.values()))), quantile(len(shares) - 1))
    return {"value": value, "low": low, "high": high}


def _swapped(differences: Sequence[Fraction]) -> float:
    """Of all ways to swap the runs at single prompts, the share that makes the sum of the differences as large.

    Counted, not drawn: prompt by prompt, the chances of each sum in whole steps. (Drawn at random, p is never below 2
    in the number of draws: 9999 of them tell no two of 25 methods apart, which are 300 pairs for `holm`.) Where steps
    of the common denominator take too long, the sum of many differences is taken as normal, and few differences are
    rounded to the finest steps that are quick.
    """
    moved = [d for d in differences if d]
    if len(moved) < 2:  # one prompt that differs may as well differ the other way
        return 1.0
    in_all = float(sum(map(abs, moved)))
    grid, finest = lcm(*(d.denominator for d in moved)), int(_ADDITIONS / (len(moved) * in_all))
    if grid > finest and len(moved) >= _MANY:
        return erfc(abs(float(sum(moved))) / sqrt(2 * float(sum(d * d for d in moved))))
    steps = [step for d in moved if (step := round(d * min(grid, finest)))]
    total = sum(map(abs, steps))
    chances = np.zeros(total + 1)  # of what is added with a plus: half of the whole sum's distance to -total
    chances[0] = 1.0
    for step in map(abs, steps):
        chances[step:] += chances[:-step].copy()
        chances /= 2
    as_large = (total + abs(sum(steps))) // 2
    return min(1.0, 2 * float(chances[as_large:].sum()))
