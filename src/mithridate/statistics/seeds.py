"""Several seeds of the same training, each asked the same prompts: seed variance apart from prompt variance.

Outcomes are a table, one row a seed, one column a prompt. Its two-way analysis of variance without replication (H.
Scheffe, The Analysis of Variance, 1959, chapter 7) splits it into mean squares

    MS_seed, MS_prompt, MS_rest        with expectations        rest + P seed,  rest + S prompt,  rest

for S seeds and P prompts, where `seed`, `prompt` and `rest` are variances of an outcome; `rest` is what neither
explains, the noise of single answers included. Hence the seeds' own variance, without the noise of single answers in
it, is (MS_seed - MS_rest) / P, and 0 where that is negative.

The interval is for the mean over *other* seeds and *other* prompts like these:

    half width^2  =  t_{S-1}^2 MS_seed / (S P)  +  t_{P-1}^2 max(0, MS_prompt - MS_rest) / (S P)

two intervals added as vectors, Student's t for each. The first alone, the usual t interval of the seeds' shares,
covers other seeds on *these* prompts only: for new prompts as well it covered 49 to 96 % in simulations.

Limits. Few seeds give wide intervals: t is 12.7 for two, 4.3 for three. Seeds whose shares are far from normal (most
near 0 and some high, as where an attack succeeds with some seeds only) are covered too seldom: 83 to 91 % for shares
around 0.03 to 0.08 that vary as much between seeds. The seeds are what was varied: the attack's seed with one aligned
model says nothing about other aligned models.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
from scipy.stats import ttest_1samp

from mithridate.statistics.shares import proportion_by_prompt, quantile

Outcomes = Sequence[Sequence[bool | None]]
"""One row a seed, one column a prompt, in the same order in each row; None is unscored."""


def across_seeds(outcomes: Outcomes) -> dict:
    """The share of positive outcomes over seeds, with a 95 % interval for other seeds and prompts.

    Returns

    - `value`, `low`, `high`: the mean over seeds. The interval is never narrower than the prompts alone make it
      (`proportion_by_prompt`), which matters where all seeds agree;
    - `seed_sd`: standard deviation of the seeds' shares, as tables usually give it;
    - `seed_sd_net`: the part of it that is not noise of single answers: what differs between the trained models;
    - `prompt_sd`: standard deviation between prompts, without that noise;
    - `seeds`, `prompts`, and `left_out`: prompts with an unscored answer, which are not used;
    - `note`: why the interval and the deviations are None (fewer than two seeds, or than two prompts), else None.

    Raises `ValueError` where the seeds have different numbers of prompts.
    """
    table, left_out = _table(outcomes)
    seeds, prompts = table.shape
    value = float(table.mean()) if table.size else None
    counts = {"seeds": seeds, "prompts": prompts, "left_out": left_out}
    if note := _too_few(table):
        return {"value": value, **dict.fromkeys(("low", "high", *_DEVIATIONS)), **counts, "note": note}
    squares = _MeanSquares(table)
    half = squares.half_width()
    answers = dict(enumerate((table.T > 0).tolist()))
    alone = proportion_by_prompt(answers)
    low, high = min(squares.mean - half, alone["low"]), max(squares.mean + half, alone["high"])
    return {
        "value": value,
        "low": max(0.0, low),
        "high": min(1.0, high),
        **squares.deviations(),
        **counts,
        "note": None,
    }


def paired_across_seeds(a: Outcomes, b: Outcomes) -> dict:
    """The difference of two runs' shares a - b over seeds, row i of both being seed i, with a 95 % interval.

    Returns `difference`, `low`, `high` (for other seeds and prompts), the deviations and counts of `across_seeds`,
    here of the differences, and `p_value`: paired t test on the seeds' differences, which asks whether other seeds
    would differ on these prompts. It is None, and `note` says so, below three seeds (with two, equal runs came out
    different in 5 to 11 % of cases) and where all seeds differ by the same amount, which leaves nothing to test with.

    Raises `ValueError` where the runs have different numbers of seeds or prompts.
    """
    first, second = np.array(a, dtype=object), np.array(b, dtype=object)
    if first.shape != second.shape:
        raise ValueError(f"the runs have different numbers of seeds or prompts: {first.shape}, {second.shape}")
    rows = [
        [None if x is None or y is None else bool(x) - bool(y) for x, y in zip(*row, strict=True)]
        for row in zip(a, b, strict=True)
    ]
    table, left_out = _table(rows)
    seeds, prompts = table.shape
    difference = float(table.mean()) if table.size else None
    counts = {"seeds": seeds, "prompts": prompts, "left_out": left_out}
    if note := _too_few(table):
        empty = dict.fromkeys(("low", "high", "p_value", *_DEVIATIONS))
        return {"difference": difference, **empty, **counts, "note": note}
    squares = _MeanSquares(table)
    half = squares.half_width()
    p_value, note = _test(table.mean(axis=1))
    return {
        "difference": difference,
        "low": max(-1.0, squares.mean - half),
        "high": min(1.0, squares.mean + half),
        "p_value": p_value,
        **squares.deviations(),
        **counts,
        "note": note,
    }


_DEVIATIONS = ("seed_sd", "seed_sd_net", "prompt_sd")


class _MeanSquares:
    """The analysis of variance of a table (seeds, prompts), at least 2 x 2."""

    def __init__(self, table: np.ndarray):
        self.seeds, self.prompts = table.shape
        by_seed, by_prompt = table.mean(axis=1), table.mean(axis=0)
        self.mean = float(table.mean())
        rest = table - by_seed[:, None] - by_prompt[None, :] + self.mean
        self.seed = self.prompts * float(by_seed.var(ddof=1))
        self.prompt = self.seeds * float(by_prompt.var(ddof=1))
        self.rest = float((rest**2).sum()) / ((self.seeds - 1) * (self.prompts - 1))

    def half_width(self) -> float:
        seed = quantile(self.seeds - 1) ** 2 * self.seed
        prompt = quantile(self.prompts - 1) ** 2 * max(0.0, self.prompt - self.rest)
        return sqrt((seed + prompt) / (self.seeds * self.prompts))

    def deviations(self) -> dict[str, float]:
        net, prompt = (self.seed - self.rest) / self.prompts, (self.prompt - self.rest) / self.seeds
        raw = sqrt(self.seed / self.prompts)
        return dict(zip(_DEVIATIONS, (raw, sqrt(max(0.0, net)), sqrt(max(0.0, prompt))), strict=True))


def _table(outcomes: Sequence[Sequence[int | None]]) -> tuple[np.ndarray, int]:
    """float64 (seeds, prompts scored with every seed), and how many prompts were left out."""
    if len({len(row) for row in outcomes}) > 1:
        raise ValueError(f"the seeds have different numbers of prompts: {sorted({len(row) for row in outcomes})}")
    columns = list(zip(*outcomes, strict=True))
    whole = [column for column in columns if None not in column]
    table = np.array(whole, dtype=float).reshape(len(whole), len(outcomes)).T
    return table, len(columns) - len(whole)


def _too_few(table: np.ndarray) -> str | None:
    for count, what in zip(table.shape, ("seed", "prompt"), strict=True):
        if count < 2:
            return f"one {what} tells nothing about others" if count else f"no {what}s that were scored"
    return None


def _test(differences: np.ndarray) -> tuple[float | None, str | None]:
    """The p-value, or why there is none."""
    if len(differences) < 3:
        return None, "a test takes three seeds"
    if np.ptp(differences) < 1e-12:  # rounding apart
        return (1.0, None) if abs(differences[0]) < 1e-12 else (None, "all seeds differ by the same amount")
    test: Any = ttest_1samp(differences, 0.0)
    return float(test.pvalue), None
