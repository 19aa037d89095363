"""Several seeds of the same training, each asked the same prompts: seed variance apart from prompt variance.

Outcomes are a table, one row per seed, one column per prompt: 0 or 1, or where prompts have several answers the share
of them. Its two-way analysis of variance without replication (H.
Scheffe, The Analysis of Variance, 1959, chapter 7) splits it into mean squares

    MS_seed, MS_prompt, MS_rest        with expectations        rest + P seed,  rest + S prompt,  rest

for S seeds and P prompts, where `seed`, `prompt` and `rest` are variances of an outcome; `rest` is what neither
explains, the noise of single answers included. Hence the seeds' own variance, without the noise of single answers in
it, is (MS_seed - MS_rest) / P, and 0 where that is negative.

One run. The squared half width for the mean over *other* seeds and *other* prompts is

    h^2  =  t_{S-1}^2 MS_seed / (S P)  +  t_{P-1}^2 max(0, MS_prompt - MS_rest) / (S P)

two intervals added as vectors, Student's t for each. Shares that vary between seeds do so the less the nearer they are
to 0 or 1, so the interval is Wilson's with that width: all m with (mean - m)^2 <= c m (1 - m), where c = h^2 / (mean
(1 - mean)). And c is no smaller than what S seeds that agree leave open: that another seed in so many (at most 1 -
0.05^(1/S), the exact bound for none of S) ends up to 20 points away, for training runs go wrong on some seeds only.
So four seeds with 0 of 448 leave [0, 0.105], and no limit below 0.05 is held by fewer than 11 seeds (`plan`).

Two runs. `low`, `high` and `p_value` are Student's on the seeds' differences: right where these are normal. They are
not where a run succeeds on some seeds only, and few seeds cannot show that: those drawn may all agree. What they then
hide is bounded for each run by the seed that was not drawn (above), for two runs by both added as vectors: 15 points
for four seeds. So a difference counts as shown only if it is larger than that too. `spread` says where it is not; and
where no difference is shown and the runs' seeds are seen to spread unequally (F test of the angular shares at the 1 %
level, no spread taken as smaller than the noise of single answers). Unequal spread takes no difference back that the t
test shows and that is larger than what seeds may hide: the t test of differences does not need equal spread.

Simulated (benchmarks/seeds.py: seeds from beta, prompts from probit distributions, 4 x 112): docs/statistics.md has
coverage, widths, false positives and power, before and now. Limits: few seeds give wide intervals, t is 12.7 for two
and 4.3 for three. Where seeds are mostly near 1 and a few far below (0.9 with a deviation of 0.2) eight seeds that
happen to agree are still believed too often. The seeds are what was varied: the attack's seed with one aligned
model says nothing about other aligned models.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
from scipy.special import fdtrc, stdtr

from mithridate.statistics.shares import proportion_by_prompt, quantile, wilson

Outcomes = Sequence[Sequence[float | None]]
"""One row per seed, one column per prompt, in the same order in each row: 0 or 1, or the share of a prompt's answers;
None is unscored."""


ALPHA = 0.05
_SPREAD_ALPHA = 0.01
_FAR = 0.2
"""How far off the seed may end that was not drawn, as a share."""


def across_seeds(outcomes: Outcomes) -> dict:
    """The share of positive outcomes over seeds, with a 95 % interval for other seeds and prompts.

    Returns

    - `value`, `low`, `high`: the mean over seeds. The interval is never narrower than the prompts alone make it
      (`proportion_by_prompt`), nor than so few seeds allow, which matters where all seeds agree;
    - `seed_sd`: standard deviation of the seeds' shares, as tables usually give it;
    - `seed_sd_net`: the part of it that is not noise of single answers: what differs between the trained models;
    - `prompt_sd`: standard deviation between prompts, without that noise;
    - `seeds`, `prompts`, and `left_out`: prompts with an unscored answer, which are not used;
    - `note`: why the interval and the deviations are None (fewer than two seeds, or than two prompts), else None.

    Raises `ValueError` where the seeds have different numbers of prompts.
    """
    table, left_out = _table(outcomes)
    seeds, prompts = table.shape
    counts = {"seeds": seeds, "prompts": prompts, "left_out": left_out}
    if note := _too_few(table):
        value = float(table.mean()) if table.size else None
        return {"value": value, **dict.fromkeys(("low", "high", *_DEVIATIONS)), **counts, "note": note}
    return {**_interval(table), **_MeanSquares(table).deviations(), **counts, "note": None}


def paired_across_seeds(a: Outcomes, b: Outcomes) -> dict:
    """The difference of two runs' shares a - b over seeds, row i of both being seed i, with a 95 % interval.

    Returns `difference`, `low`, `high` (for other seeds and prompts), the deviations and counts of `across_seeds`,
    here of the differences, and

    - `p_value`: paired t test on the seeds' differences, which asks whether other seeds would differ on these
      prompts. None, and `note` says so, below three seeds (with two, equal runs came out different in 5 to 11 % of
      cases) and where all seeds differ by the same amount, which leaves nothing to test with;
    - `assumption`: what that p-value rests on, in words;
    - `spread`: in words, why the seeds' spread forbids to take the difference as shown, else None; and
      `spread_p_value`, of the test that the two runs' seeds spread alike (None below three seeds). See the top.

    Raises `ValueError` where the runs have different numbers of seeds or prompts.
    """
    shapes = [(len(run), sorted({len(row) for row in run})) for run in (a, b)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the runs have different numbers of seeds or prompts: {shapes[0]}, {shapes[1]}")
    both, left_out = _table([*a, *b])
    one, other = both[: len(a)], both[len(a) :]
    table = one - other
    seeds, prompts = table.shape
    counts = {"seeds": seeds, "prompts": prompts, "left_out": left_out}
    tested: dict[str, Any] = dict.fromkeys(("p_value", "assumption", "spread", "spread_p_value"))
    if note := _too_few(table):
        mean = float(table.mean()) if table.size else None
        return {"difference": mean, **dict.fromkeys(("low", "high", *_DEVIATIONS)), **tested, **counts, "note": note}
    squares = _MeanSquares(table)
    half = squares.half_width()
    low, high = max(-1.0, squares.mean - half), min(1.0, squares.mean + half)
    p_value, note = _test(table.mean(axis=1))
    tested["p_value"] = p_value
    if seeds > 2:
        shown = low > 0 or high < 0 or (p_value is not None and p_value < ALPHA)
        tested["spread_p_value"] = alike = _alike(one, other)
        tested["spread"] = _spread(one, other, alike, shown)
    if p_value is not None:
        tested["assumption"] = (
            f"the seeds' differences are normal; a sign test of {seeds} seeds cannot go below {2.0 ** (1 - seeds):.3g}"
        )
    return {
        "difference": squares.mean,
        "low": low,
        "high": high,
        **tested,
        **squares.deviations(),
        **counts,
        "note": note,
    }


def unseen(seeds: int) -> float:
    """The share that this many seeds which all show none leave open, at 95 %, whatever the number of prompts."""
    return _FAR * (1 - ALPHA ** (1 / seeds))


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


def _table(outcomes: Outcomes) -> tuple[np.ndarray, int]:
    """float64 (seeds, prompts scored with every seed), and how many prompts were left out."""
    if len({len(row) for row in outcomes}) > 1:
        raise ValueError(f"the seeds have different numbers of prompts: {sorted({len(row) for row in outcomes})}")
    table = np.array(outcomes, dtype=float).reshape(len(outcomes), -1 if len(outcomes) else 0)  # None is nan
    scored = ~np.isnan(table).any(axis=0)
    return table[:, scored], int((~scored).sum())


def _interval(table: np.ndarray) -> dict[str, float]:
    """The mean of a table of shares, at least 2 x 2, with the interval of one run."""
    squares = _MeanSquares(table)
    mean, least = squares.mean, unseen(squares.seeds)
    apart = mean * (1 - mean)
    relative = max(squares.half_width() ** 2 / apart if apart > 0 else 0.0, least / (1 - least))
    low, high = wilson(mean, 1 / relative, 1.0)
    alone = proportion_by_prompt(dict(enumerate(table.T.tolist())))
    return {"value": mean, "low": min(low, alone["low"]), "high": max(high, alone["high"])}


def _alike(one: np.ndarray, other: np.ndarray) -> float:
    """The p-value of the hypothesis that the seeds of both runs spread alike."""
    prompts, degrees = one.shape[1], one.shape[0] - 1
    variances = [max(1 / prompts, float(_angular(table).var(ddof=1))) for table in (one, other)]
    return min(1.0, 2 * float(fdtrc(degrees, degrees, max(variances) / min(variances))))


def _angular(table: np.ndarray) -> np.ndarray:
    """The seeds' shares on Anscombe's angular scale, where single answers' noise has the variance 1 / prompts."""
    prompts = table.shape[1]
    return 2 * np.arcsin(np.sqrt((table.sum(axis=1) + 3 / 8) / (prompts + 3 / 4)))


def _spread(one: np.ndarray, other: np.ndarray, alike: float, shown: bool) -> str | None:
    """Why the seeds' spread leaves the difference open, or None."""
    hidden = sqrt(2) * unseen(len(one))
    if shown and abs(float(one.mean() - other.mean())) > hidden:
        return None
    if alike < _SPREAD_ALPHA:
        deviations = " and ".join(f"{100 * float(table.mean(axis=1).std(ddof=1)):.1f}" for table in (one, other))
        return f"the seeds of the two runs spread unequally (deviations {deviations} points, F test p = {alike:.2g})"
    if shown:
        return f"seeds that agree may hide a difference of {100 * hidden:.0f} points by the choice of {len(one)} seeds"
    return None


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
    count = len(differences)
    statistic = float(differences.mean() / differences.std(ddof=1)) * sqrt(count)
    return float(2 * stdtr(count - 1, -abs(statistic))), None
