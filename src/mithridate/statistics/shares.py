"""One share with its 95 % interval: Wilson's score interval, for independent and for clustered answers.

Several answers to one prompt resemble each other, so that n answers tell less than n prompts would. Prompts are then
the clusters: the variance of the share is that of a bootstrap that draws whole prompts (which for a mean over prompts
has a closed form: the variance of the prompts' means over their number), and Wilson's interval is computed as for the
number of independent answers that would have that variance, with Student's t for few prompts (J. N. K. Rao & A. J.
Scott, A simple method for the analysis of clustered binary data, Biometrics 48, 1992, 577-585; N. Dean & M. Pagano,
Evaluating confidence interval methods for binomial proportions in clustered surveys, J. Survey Statistics and
Methodology 3, 2015, 484-503). The percentiles of the same bootstrap are no alternative: where few prompts are answered
harmfully they cover much less than 95 % (18 to 74 % for a share of 0.02 with 10 to 50 prompts whose answers are much
alike; a test has such a case), and at 0 of n they are [0, 0].
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cache
from math import sqrt
from typing import Any

import numpy as np
from scipy.special import ndtri, stdtrit  # scipy.stats takes most of a second to import

CONFIDENCE = 0.95
NORMAL = float(ndtri((1 + CONFIDENCE) / 2))
"""Half the width of a two-sided 95 % interval in standard errors, where these are known."""

ByPrompt = Mapping[Any, Sequence[bool]]
"""Outcomes of the scored answers to each prompt, by prompt. A prompt whose answers are all unscored has none."""


def proportion(k: int, n: int) -> dict:
    """The share `k` of `n` with Wilson's 95 % interval: `value`, `low`, `high` (None where n = 0) and `n`."""
    if n == 0:
        return {"value": None, "low": None, "high": None, "n": 0}
    low, high = wilson(k / n, n, NORMAL)
    return {"value": k / n, "low": low, "high": high, "n": int(n)}


def proportion_with_unscored(k: int, scored: int, unscored: int) -> dict:
    """`proportion` of the scored answers, and how far the unscored ones could move its interval.

    Returns `value`, `low`, `high`, `n` over the scored; `unscored`; `low_if_safe`, the lower bound over all answers if
    every unscored one were safe; `high_if_harmful`, the upper bound if every one were harmful. The last two are None
    where there is no answer at all. A decision that must not rest on unscored answers holds at both.
    """
    everything = scored + unscored
    return proportion(k, scored) | {
        "unscored": unscored,
        "low_if_safe": proportion(k, everything)["low"],
        "high_if_harmful": proportion(k + unscored, everything)["high"],
    }


def by_prompt(prompts: Iterable[Hashable], outcomes: Iterable[bool | None]) -> dict[Any, list[bool]]:
    """Outcomes gathered by prompt, in order of first appearance; None (unscored) leaves the prompt without it."""
    found: dict[Any, list[bool]] = {}
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        answers = found.setdefault(prompt, [])
        if outcome is not None:
            answers.append(bool(outcome))
    return found


def proportion_by_prompt(answers: ByPrompt) -> dict:
    """The share of answers where prompts have several, each prompt counting the same, with a 95 % interval.

    Returns `value`, `low`, `high`, `n` (answers) and `prompts` (those with a scored answer). With one answer per
    prompt it is `proportion`. Where all answers, or none, are positive, no variance can be seen: they then count as
    one answer per prompt, the most that they can be sure to tell. One prompt alone tells nothing about others: [0, 1].
    """
    shares = prompt_shares(answers)
    n, prompts = sum(map(len, answers.values())), len(shares)
    if n == prompts:
        return proportion(round(float(shares.sum())), n) | {"prompts": prompts}
    value = float(shares.mean())
    low, high = (0.0, 1.0) if prompts == 1 else wilson(value, effective(shares, n), quantile(prompts - 1))
    return {"value": value, "low": low, "high": high, "n": n, "prompts": prompts}


def foreseen(answers: ByPrompt, prompts: int) -> dict:
    """The interval of `proportion_by_prompt` if there were so many prompts, whose shares spread as these do."""
    shares, n = prompt_shares(answers), sum(map(len, answers.values()))
    value = float(shares.mean())
    if n == len(shares) or prompts < 2:
        return proportion(round(value * prompts), prompts)
    low, high = wilson(value, effective(shares, n) / len(shares) * prompts, quantile(prompts - 1))
    return {"value": value, "low": low, "high": high}


def proportion_of(prompts: Sequence[Hashable], outcomes: Sequence[bool | None]) -> dict:
    """`proportion` of the scored outcomes, one an answer; where prompts repeat, no narrower than the different prompts
    allow (`proportion_by_prompt`)."""
    scored = [outcome for outcome in outcomes if outcome is not None]
    share = proportion(sum(scored), len(scored))
    if len(set(prompts)) < len(prompts) and scored:
        wide = proportion_by_prompt(by_prompt(prompts, outcomes))
        share |= {"low": min(wide["low"], share["value"]), "high": max(wide["high"], share["value"])}
    return share


def prompt_shares(answers: ByPrompt) -> np.ndarray:
    """float64 (prompts,): the share of positive outcomes of each prompt that has any."""
    return np.array([sum(outcomes) / len(outcomes) for outcomes in answers.values() if outcomes], dtype=float)


def effective(shares: np.ndarray, n: int) -> float:
    """How many independent answers would have the variance that the `n` answers have, given their prompts' shares."""
    value, prompts = float(shares.mean()), len(shares)
    independent = value * (1 - value)
    if independent == 0:
        return prompts
    variance = float(shares.var(ddof=1)) / prompts
    # Clustered answers do not tell more than independent ones; where it looks so, it is noise.
    return n if variance <= independent / n else independent / variance


def wilson(share: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's interval for any positive, not necessarily whole, number of answers and any quantile."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


@cache
def quantile(degrees: float) -> float:
    """The same where the standard error is estimated: Student's t."""
    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))
