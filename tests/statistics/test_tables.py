"""The difference of two shares, Holm's correction, unscored answers, and what a comparison could have seen."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from mithridate.statistics import (
    detectable_paired,
    holm,
    paired,
    proportion,
    proportion_with_unscored,
)
from mithridate.statistics.comparisons import difference
from tests.statistics.simulate import error, share


def test_newcombes_square_and_add():
    # Newcombe 1998, independent proportions, table II (a), method 10: 56/70 - 48/80
    found = difference(proportion(56, 70), proportion(48, 80))
    assert found["difference"] == pytest.approx(0.2)
    assert (found["low"], found["high"]) == pytest.approx((0.0524, 0.3339), abs=5e-5)


@given(a=st.integers(0, 80), b=st.integers(0, 80))
def test_the_difference_of_two_shares_lies_in_its_interval_and_mirrors(a, b):
    x, y = proportion(a, 80), proportion(b, 80)
    one, other = difference(x, y), difference(y, x)
    assert one["low"] - 1e-12 <= x["value"] - y["value"] <= one["high"] + 1e-12
    assert (other["low"], other["high"]) == pytest.approx((-one["high"], -one["low"]))


# -- equal runs


@cache
def called(only_a: int, pairs: int, n: int = 112) -> bool:
    """Whether `paired` finds a difference in n prompts, `pairs` of them discordant, `only_a` of these for a."""
    a = [True] * only_a + [False] * (n - only_a)
    b = [False] * only_a + [True] * (pairs - only_a) + [False] * (n - pairs)
    return paired(a, b)["p_value"] < 0.05


def size(n: int, discordant: float) -> float:
    """How often equal runs come out different, summed over all tables that are not too rare to matter."""
    total = 0.0
    for pairs in range(1, n + 1):
        weights = binom.pmf(pairs, n, discordant) * binom.pmf(np.arange(pairs + 1), pairs, 0.5)
        total += sum(weight for k, weight in enumerate(weights) if weight > 1e-9 and called(k, pairs))
    return total


@pytest.mark.parametrize("discordant", [0.1, 0.3])
def test_equal_runs_are_called_different_as_often_as_the_exact_test_can(discordant):
    """The exact test is conservative: its real rate is below 5 %, the more so with few discordant prompts."""
    rng, draws, n = np.random.default_rng(0), 4000, 112
    real = size(n, discordant)
    moved = rng.binomial(n, discordant, draws)
    tables = np.column_stack([rng.binomial(moved, 0.5), moved])
    assert abs(share(tables, called) - real) <= error(real, draws)
    assert {0.1: 0.02, 0.3: 0.03}[discordant] < real <= 0.05


# -- Holm


def test_holm_by_hand():
    assert holm([0.01, None, 0.04, 0.03, 0.5]) == pytest.approx([0.04, None, 0.09, 0.09, 0.5], nan_ok=True)
    assert holm([]) == [] and holm([None]) == [None]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.none() | st.floats(0, 1), max_size=12))
def test_holm_keeps_order_and_never_lowers_a_p_value(p_values):
    adjusted = holm(p_values)
    pairs = sorted((p, a) for p, a in zip(p_values, adjusted, strict=True) if p is not None)
    assert all(p <= a <= 1 for p, a in pairs)
    assert [a for _, a in pairs] == sorted(a for _, a in pairs)
    assert [i for i, p in enumerate(p_values) if p is None] == [i for i, a in enumerate(adjusted) if a is None]


@pytest.mark.parametrize("real", [0, 4])
def test_holm_errs_in_at_most_five_tables_of_a_hundred(real):
    """Ten comparisons of which some are real differences: a false one is found in 5 % of tables, not in 40 %."""
    rng, tables = np.random.default_rng(0), 4000
    p_values = rng.random((tables, 10))
    p_values[:, :real] *= 1e-4
    wrong = np.mean([min(holm(list(row))[real:]) < 0.05 for row in p_values])
    uncorrected = np.mean(p_values[:, real:].min(axis=1) < 0.05)
    assert 0.05 - error(0.05, tables) - 0.002 <= wrong <= 0.05 + error(0.05, tables)
    assert uncorrected > 0.25


# -- unscored


def test_unscored_answers_move_the_bounds_but_not_the_share():
    found = proportion_with_unscored(5, 100, 12)
    assert {key: found[key] for key in ("value", "low", "high", "n")} == proportion(5, 100)
    assert found["unscored"] == 12
    assert found["low_if_safe"] == proportion(5, 112)["low"]
    assert found["high_if_harmful"] == proportion(17, 112)["high"]


def test_without_unscored_answers_the_bounds_are_the_intervals():
    found = proportion_with_unscored(5, 112, 0)
    assert (found["low_if_safe"], found["high_if_harmful"]) == (found["low"], found["high"])


def test_nothing_scored_is_unknown_but_bounded():
    found = proportion_with_unscored(0, 0, 20)
    assert found["value"] is None and found["low_if_safe"] == 0 and found["high_if_harmful"] == 1
    assert proportion_with_unscored(0, 0, 0)["high_if_harmful"] is None


# -- what could have been seen


@pytest.mark.parametrize(("n", "discordant", "comparisons"), [(112, 0.1, 1), (112, 0.3, 8), (500, 0.05, 1)])
def test_the_detectable_paired_difference_is_found_in_four_of_five_cases(n, discordant, comparisons):
    difference = detectable_paired(n, discordant, comparisons)
    assert difference
    discordant = max(discordant, difference)
    rng, draws = np.random.default_rng(0), 4000
    moved = rng.binomial(n, discordant, draws)
    only_a = rng.binomial(moved, (1 + difference / discordant) / 2)
    power = share(np.column_stack([only_a, moved]), lambda k, m: m > 0 and binomtest(k, m).pvalue < 0.05 / comparisons)
    assert abs(power - 0.8) <= error(0.8, draws)


def test_the_detectable_difference_falls_with_n_and_rises_with_noise_and_comparisons():
    base = detectable_paired(200, 0.1)
    assert base
    assert detectable_paired(800, 0.1) < base < detectable_paired(200, 0.3)
    assert detectable_paired(200, 0.1, comparisons=10) > base


def test_five_prompts_can_show_no_difference_and_eight_only_a_large_one():
    assert detectable_paired(5, 0.5) is None and detectable_paired(0, 0.5) is None
    assert detectable_paired(8, 0.1) > 0.7
