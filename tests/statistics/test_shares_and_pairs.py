"""Statistics: published values, edge cases, and the rates that intervals and tests promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from mithridate.statistics import paired, proportion, steps_to


def pairs(both, only_a, only_b, neither):
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return a, b


def test_wilson_by_its_formula():
    k, n, z = 5, 112, 1.959963984540054
    middle = (k / n + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(k / n * (1 - k / n) / n + z * z / (4 * n * n))
    found = proportion(k, n)
    assert found["value"] == k / n and found["n"] == n
    assert found["low"] == pytest.approx(middle - half) and found["high"] == pytest.approx(middle + half)


def test_nothing_counted_is_unknown_not_zero():
    assert proportion(0, 0) == {"value": None, "low": None, "high": None, "n": 0}
    assert paired([], [])["difference"] is None


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_share_and_stays_within_0_and_1(kn):
    found = proportion(*kn)
    assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1


@pytest.mark.parametrize(
    ("table", "expected"),
    [  # Newcombe 1998, paired data, table III, method 10
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((53, 0, 0, 1), None),
        ((0, 30, 0, 0), None),
    ],
)
def test_newcombes_interval(table, expected):
    found = paired(*pairs(*table))
    n = sum(table)
    assert found["difference"] == pytest.approx((table[1] - table[2]) / n)
    assert -1 <= found["low"] <= found["difference"] <= found["high"] <= 1
    if expected:
        assert (found["low"], found["high"]) == pytest.approx(expected, abs=5e-4)


def test_mcnemar_is_the_binomial_test_on_the_discordant_pairs():
    assert paired(*pairs(10, 9, 2, 5))["p_value"] == pytest.approx(binomtest(9, 11).pvalue)
    assert paired(*pairs(10, 0, 0, 5))["p_value"] == 1.0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_swapping_the_runs_mirrors_the_comparison(rows):
    a, b = zip(*rows, strict=True)
    one, other = paired(a, b), paired(b, a)
    assert one["difference"] == pytest.approx(-other["difference"])
    assert one["low"] == pytest.approx(-other["high"]) and one["high"] == pytest.approx(-other["low"])
    assert one["p_value"] == pytest.approx(other["p_value"])


def test_runs_of_different_lengths_cannot_be_paired():
    with pytest.raises(ValueError):
        paired([True], [True, False])


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_wilson_covers_at_its_rate(share):
    """Mean coverage over many n and draws; Wilson's oscillates around 95 %, never far below."""
    rng, n, draws = np.random.default_rng(0), 112, 4000
    known = {k: proportion(k, n) for k in range(n + 1)}
    covered = np.mean([known[k]["low"] <= share <= known[k]["high"] for k in rng.binomial(n, share, draws)])
    assert covered > 0.93 - 3 * math.sqrt(0.93 * 0.07 / draws)


@pytest.mark.parametrize("cells", [(0.3, 0.2, 0.2, 0.3), (0.05, 0.55, 0.02, 0.38), (0.6, 0.05, 0.15, 0.2)])
def test_the_paired_interval_covers_at_its_rate(cells):
    rng, n, draws = np.random.default_rng(1), 112, 600
    truth = cells[1] - cells[2]
    covered = 0
    for table in rng.multinomial(n, cells, draws):
        found = paired(*pairs(*table))
        covered += found["low"] <= truth <= found["high"]
    error = math.sqrt(0.95 * 0.05 / draws)
    assert 0.95 - 3 * error <= covered / draws <= 0.99


def test_equal_runs_are_called_different_at_most_five_times_in_a_hundred():
    rng, n, draws = np.random.default_rng(2), 112, 600
    significant = sum(
        paired(*pairs(*table))["p_value"] < 0.05 for table in rng.multinomial(n, (0.4, 0.15, 0.15, 0.3), draws)
    )
    assert significant / draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)
    assert significant > 0  # exact, hence conservative, but not blind


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0, 0.0), (20, 0.25), (40, 0.75)], 30),
        ([(40, 0.75), (0, 0.0), (20, 0.25)], 30),
        ([(0, 0.1), (20, 0.2)], None),
        ([(0, 0.7), (20, 0.9)], 0),
        ([(0, 0.2), (20, 0.5), (40, 0.9)], 20),
        ([(0, 0.2), (10, 0.6), (20, 0.3), (30, 0.8)], 8),
        ([], None),
    ],
)
def test_steps_to_one_half(points, expected):
    assert steps_to(points) == expected


def test_steps_to_another_level():
    assert steps_to([(0, 0.0), (10, 1.0)], level=0.25) in (2, 3)
