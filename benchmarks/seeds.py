"""Simulations of the statistics over seeds, before and now: coverage, widths, false positives, power.

    python -m benchmarks.seeds benchmarks/results/seeds.json          # about five minutes of one core
    python -m benchmarks.seeds --draws 500 out.json                   # quicker, and rougher

Seeds' shares are drawn from a beta distribution of a given mean and standard deviation; prompts are probit: outcome
(seed, prompt) is positive with the probability Phi(a_seed + z_prompt), z standard normal and common to all seeds and
both runs, a_seed such that the mean over prompts is the seed's share. The two runs' seeds are independent, which is
the harder case for power. The means and deviations are those seen with four seeds and 112 prompts in the embedded
experiment (deviations net of the noise of single answers), and three in which one run succeeds on some seeds only.

"Before": the t interval and the paired t test alone, as up to rules-v2. "Now": what `mithridate.statistics` does.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from mithridate.results.decisions import shown
from mithridate.statistics import across_seeds, paired_across_seeds, proportion_by_prompt
from mithridate.statistics.seeds import _MeanSquares

PROMPTS = 112
SEEN = [(0.944, 0.052), (0.98, 0.023), (0.033, 0.025), (0.55, 0.23), (0.19, 0.07), (0.77, 0.10), (0.59, 0.16)]
SOME_SEEDS = [(0.05, 0.10), (0.9, 0.20), (0.944, 0.15)]
EQUAL = [(mean, sd, mean, sd) for mean, sd in SEEN[:5]]
UNEQUAL = [(0.944, 0.15, 0.944, 0.05), (0.9, 0.20, 0.9, 0.02), (0.05, 0.10, 0.05, 0.01)]
FALLS = [(0.98, 0.023, 0.77, 0.10), (0.944, 0.052, 0.734, 0.10), (0.944, 0.052, 0.734, 0.052)]
LARGE = [(0.944, 0.052, 0.19, 0.07)]


def beta(rng: np.random.Generator, mean: float, sd: float, seeds: int) -> np.ndarray:
    size = mean * (1 - mean) / sd**2 - 1
    return rng.beta(mean * size, (1 - mean) * size, seeds)


def table(rng: np.random.Generator, shares: np.ndarray, prompts: np.ndarray) -> list[list[bool]]:
    """Outcomes (seeds, prompts) of seeds with these shares."""
    level = norm.ppf(np.clip(shares, 1e-12, 1 - 1e-12)) * sqrt(2)
    return (rng.random((len(shares), len(prompts))) < norm.cdf(level[:, None] + prompts)).tolist()


def runs(means: list[tuple[float, float]], seeds: int, draws: int, prompts: int = PROMPTS) -> Iterator[list[Any]]:
    """Draws of runs that share their prompts."""
    rng = np.random.default_rng(0)
    for _ in range(draws):
        z = rng.standard_normal(prompts)
        yield [table(rng, beta(rng, mean, sd, seeds), z) for mean, sd in means]


def before(outcomes: list[list[bool]]) -> tuple[float, float]:
    """The interval of one run as it was: Student's t, no narrower than the prompts alone."""
    found = np.array(outcomes, dtype=float)
    squares, alone = _MeanSquares(found), proportion_by_prompt(dict(enumerate((found.T > 0).tolist())))
    half = squares.half_width()
    return max(0.0, min(squares.mean - half, alone["low"])), min(1.0, max(squares.mean + half, alone["high"]))


def coverage(mean: float, sd: float, seeds: int, draws: int) -> dict[str, float]:
    """How often the interval of one run holds its mean, and how wide it is."""
    held, width = np.zeros(2), np.zeros(2)
    for [one] in runs([(mean, sd)], seeds, draws):
        now = across_seeds(one)
        for i, (low, high) in enumerate((before(one), (now["low"], now["high"]))):
            held[i] += low <= mean <= high
            width[i] += high - low
    names = ("covers before", "covers now", "width before", "width now")
    return dict(zip(names, (float(x) for x in (*held / draws, *width / draws)), strict=True))


def null(mean: float, sd: float, other: float, other_sd: float, seeds: int, draws: int) -> dict[str, float]:
    """How often equal means are told apart: before; and now, among the draws that are not named for their spread."""
    found = [paired_across_seeds(a, b) for a, b in runs([(mean, sd), (other, other_sd)], seeds, draws)]
    rest = [one for one in found if not one["spread"]]
    return {
        "before": float(np.mean([_told(one) for one in found])),
        "named": 1 - len(rest) / draws,
        "not named": float(np.mean([_told(one) for one in rest])) if rest else 0.0,
    }


def power(mean: float, sd: float, other: float, other_sd: float, seeds: int, draws: int) -> dict[str, float]:
    """How often a real difference is found: before; and now, named ones not counted."""
    found = [paired_across_seeds(a, b) for a, b in runs([(mean, sd), (other, other_sd)], seeds, draws)]
    return {
        "before": float(np.mean([_told(one) for one in found])),
        "named": float(np.mean([bool(one["spread"]) for one in found])),
        "shown": float(np.mean([shown(one) != 0 for one in found])),
    }


def _told(one: dict[str, Any]) -> bool:
    return one["p_value"] is not None and one["p_value"] < 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--draws", type=int, default=1000)
    given = parser.parse_args()
    began = time.monotonic()
    found: dict[str, Any] = {"prompts": PROMPTS}
    for name, measure, setups in (
        ("coverage", coverage, SEEN + SOME_SEEDS),
        ("false positives, equal spread", null, EQUAL),
        ("false positives, unequal spread", null, UNEQUAL),
        ("power, a fall of 21 points", power, FALLS),
        ("power, a fall of 75 points", power, LARGE),
    ):
        found[name] = []
        for seeds in (3, 4, 5):
            for setup in setups:
                draws = given.draws if seeds == 4 else given.draws // 2
                row = {"seeds": seeds, "draws": draws, "setup": list(setup)}
                row |= measure(*setup, seeds=seeds, draws=draws)
                found[name].append(row)
                print(name, {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    found["seconds"] = round(time.monotonic() - began)
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
