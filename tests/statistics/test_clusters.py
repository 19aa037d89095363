"""Several answers to one prompt: intervals that do not take them for as many prompts."""

from fractions import Fraction
from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mithridate.statistics import (
    by_prompt,
    comparisons,
    paired,
    paired_by_prompt,
    proportion,
    proportion_by_prompt,
    unpaired,
)
from tests.statistics.simulate import answers, by_row, error, holds

ROW = st.lists(st.booleans(), min_size=1, max_size=5)
OUTCOMES = st.lists(st.lists(st.booleans(), max_size=4), min_size=1, max_size=12)


def test_answers_are_gathered_by_prompt_and_unscored_ones_left_out():
    assert by_prompt("abac", [True, False, False, None]) == {"a": [True, False], "b": [False], "c": []}
    with pytest.raises(ValueError):
        by_prompt("ab", [True])


def test_one_answer_a_prompt_is_wilsons_interval():
    assert proportion_by_prompt(by_row([[1]] * 5 + [[0]] * 107 + [[]])) == proportion(5, 112) | {"prompts": 112}


def test_repeated_answers_add_nothing_where_they_are_all_the_same():
    """Ten copies of each answer leave the interval of the prompts, but for Student's t in place of the normal."""
    once, copies = proportion(30, 112), proportion_by_prompt(by_row([[1] * 10] * 30 + [[0] * 10] * 82))
    assert copies["value"] == pytest.approx(once["value"]) and (copies["n"], copies["prompts"]) == (1120, 112)
    assert (copies["low"], copies["high"]) == pytest.approx((once["low"], once["high"]), abs=0.004)


def test_no_positive_answer_counts_as_one_answer_a_prompt():
    """The upper bound stays where 112 prompts put it, however often each was asked: it is not [0, 0]."""
    found = proportion_by_prompt(by_row([[0] * 10] * 112))
    assert (found["value"], found["low"]) == (0, 0)
    assert proportion(0, 112)["high"] < found["high"] < 0.04


@pytest.mark.parametrize(("table", "low", "high"), [([[1, 0, 0]], 0, 1), ([[]], None, None)])
def test_one_prompt_says_nothing_of_others_and_none_nothing_at_all(table, low, high):
    found = proportion_by_prompt(by_row(table))
    assert (found["low"], found["high"]) == (low, high)


@given(OUTCOMES)
def test_the_interval_holds_the_share_and_stays_within_0_and_1(table):
    found = proportion_by_prompt(by_row(table))
    if found["n"]:
        assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1


@pytest.mark.parametrize("prompts", [20, 112])
@pytest.mark.parametrize(("positive", "alike"), [(0.02, 0.8), (0.1, 0.3), (0.3, 0.8), (0.5, 0.3)])
def test_the_clustered_interval_covers_at_its_rate(prompts, positive, alike):
    """Never far below 95 % (the dips of Wilson's own interval included), where answers taken for prompts cover less
    than 88 %."""
    rng, draws = np.random.default_rng(0), 1000
    tables = [answers(rng, positive, alike, prompts, 5) for _ in range(draws)]
    rate = np.mean([holds(proportion_by_prompt(by_row(table)), positive) for table in tables])
    naive = np.mean([holds(proportion(int(table.sum()), table.size), positive) for table in tables])
    assert rate >= 0.935 - error(0.935, draws)
    assert rate <= 0.99
    assert naive < 0.88


def test_percentiles_of_the_bootstrap_cover_less_where_few_answers_are_positive():
    """Why the interval is not the percentiles of the bootstrap whose variance it has."""
    from scipy.stats import bootstrap

    rng, draws, prompts, positive = np.random.default_rng(0), 200, 50, 0.02
    hits = {"percentiles": 0, "ours": 0}
    for _ in range(draws):
        table = answers(rng, positive, 0.8, prompts, 5)
        options = {"method": "percentile", "n_resamples": 400, "vectorized": True, "random_state": 0}
        found = bootstrap((table.mean(axis=1),), np.mean, **options).confidence_interval
        hits["percentiles"] += found.low <= positive <= found.high
        hits["ours"] += holds(proportion_by_prompt(by_row(table)), positive)
    assert hits["percentiles"] / draws < 0.85
    assert hits["ours"] / draws >= 0.95 - error(0.95, draws)


def test_the_variance_is_that_of_a_bootstrap_of_prompts():
    from mithridate.statistics.shares import effective, prompt_shares

    table = answers(np.random.default_rng(0), 0.3, 0.5, 112, 5)
    shares = prompt_shares(by_row(table))
    drawn = np.random.default_rng(1).integers(0, 112, (20000, 112))
    bootstrap = shares[drawn].mean(axis=1).var() * 112 / 111
    assert shares.mean() * (1 - shares.mean()) / effective(shares, table.size) == pytest.approx(bootstrap, rel=0.03)


# -- two runs


def test_with_one_answer_a_prompt_the_comparison_is_the_paired_one():
    a, b = [True] * 12 + [False] * 8, [True] * 3 + [False] * 14 + [True] * 3
    found = paired_by_prompt(by_row([[x] for x in a]), by_row([[x] for x in b]))
    assert found == paired(a, b) | {"left_out": 0}


def test_the_swapping_test_is_mcnemars_exact_test_where_each_prompt_counts_once():
    """11 discordant prompts: all 2048 ways to swap the runs are tried."""
    a = by_row([[1, 1]] * 9 + [[0, 0]] * 2 + [[1, 1]] * 10)
    b = by_row([[0, 0]] * 9 + [[1, 1]] * 2 + [[1, 1]] * 10)
    single = paired([True] * 9 + [False] * 2 + [True] * 10, [False] * 9 + [True] * 2 + [True] * 10)
    assert paired_by_prompt(a, b)["p_value"] == pytest.approx(single["p_value"])


@given(st.lists(st.tuples(ROW, ROW), min_size=2, max_size=9))
def test_the_swapping_test_counts_all_ways(rows):
    """Prompts with different numbers of answers too, in fractions."""
    a, b = (by_row([row[i] for row in rows]) for i in (0, 1))
    if all(len(x) == len(y) == 1 for x, y in rows):
        return
    moved = [Fraction(sum(x), len(x)) - Fraction(sum(y), len(y)) for x, y in rows]
    ways = [sum(s * d for s, d in zip(signs, moved)) for signs in product((-1, 1), repeat=len(moved))]
    share = sum(abs(way) >= abs(sum(moved)) for way in ways) / len(ways)
    assert paired_by_prompt(a, b)["p_value"] == pytest.approx(share if sum(map(bool, moved)) > 1 else 1.0)


def test_the_swapping_test_has_no_least_p_value():
    """48 prompts of which 40 differ, all one way: a random draw of swaps does not find one as large."""
    a, b = by_row([[1, 1, 0]] * 40 + [[0, 0, 0]] * 8), by_row([[0, 0, 0]] * 48)
    assert paired_by_prompt(a, b)["p_value"] == pytest.approx(2.0**-39)


def test_the_swapping_test_of_many_prompts_with_a_large_common_denominator(monkeypatch):
    """2520 steps a share at 400 prompts are rounded to coarser ones, which changes p by less than a hundredth."""
    rng = np.random.default_rng(1)
    a, b = (by_row([list(rng.random(n) < share) for n in rng.integers(1, 11, 400)]) for share in (0.55, 0.5))
    exact = paired_by_prompt(a, b)["p_value"]
    monkeypatch.setattr(comparisons, "_ADDITIONS", 10_000_000)
    assert exact != (rounded := paired_by_prompt(a, b)["p_value"])
    assert rounded == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize(("prompts", "samples"), [(1500, 100), (3000, 50)])
def test_the_swapping_test_of_very_many_answers(monkeypatch, prompts, samples):
    """What is counted for a few hundred prompts is taken as normal here, which differs by less than a fiftieth."""
    rng = np.random.default_rng(prompts)
    a, b = (by_row([list(rng.random(samples) < share) for _ in range(prompts)]) for share in (0.503, 0.5))
    quick = {}
    for additions in (10**11, 10**6):
        monkeypatch.setattr(comparisons, "_ADDITIONS", additions)
        quick[additions] = paired_by_prompt(a, b)["p_value"]
    assert quick[10**11] != quick[10**6] == pytest.approx(quick[10**11], rel=0.02)


def test_the_swapping_test_sees_a_small_difference_at_every_one_of_very_many_prompts():
    a, b = by_row([[1] + [0] * 9] * 20_001), by_row([[0] * 10] * 20_001)
    assert paired_by_prompt(a, b)["p_value"] < 1e-300


def test_swapped_runs_mirror_the_comparison():
    rng = np.random.default_rng(0)
    a, b = (by_row(answers(rng, share, 0.4, 40, 3)) for share in (0.5, 0.2))
    one, other = paired_by_prompt(a, b), paired_by_prompt(b, a)
    assert one["difference"] == pytest.approx(-other["difference"])
    assert (one["low"], one["high"]) == pytest.approx((-other["high"], -other["low"]))
    assert one["p_value"] == other["p_value"] < 0.01
    assert one == paired_by_prompt(a, b)


def test_prompts_without_a_scored_answer_are_left_out_and_counted():
    a, b = by_row([[1, 1], [0, 1], [], [1]]), by_row([[0, 1], [0], [1, 1], []])
    found = paired_by_prompt(a, b)
    assert (found["n"], found["left_out"]) == (2, 2)
    assert found["difference"] == pytest.approx(0.5 * (1 - 0.5) + 0.5 * (0.5 - 0))
    assert paired_by_prompt(by_row([[]]), by_row([[1]]))["difference"] is None


def test_runs_on_different_prompts_are_refused():
    with pytest.raises(ValueError, match="2 are in one only"):
        paired_by_prompt({"a": [True]}, {"b": [True]})


@given(OUTCOMES, st.randoms())
def test_the_difference_lies_in_its_interval(table, random):
    other = [random.sample(row, len(row)) if row else [True] for row in table]
    random.shuffle(other)
    found = paired_by_prompt(by_row(table), by_row(other))
    if found["n"]:
        assert -1 - 1e-9 <= found["low"] <= found["difference"] + 1e-9
        assert found["difference"] - 1e-9 <= found["high"] <= 1 + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second", "together"), [(0.3, 0.1, True), (0.5, 0.5, False), (0.02, 0.07, True)])
def test_the_clustered_paired_interval_covers_at_its_rate(monkeypatch, first, second, together):
    monkeypatch.setattr(comparisons, "_swapped", lambda _: 1.0)  # the test of it is below
    rng, draws, prompts = np.random.default_rng(0), 800, 60
    hits = 0
    for _ in range(draws):
        rates = rng.beta(first * 1.5, (1 - first) * 1.5, prompts)
        if together:  # the second run's rates follow the first's, moved so that their mean is `second`
            other = rates * second / first if second < first else rates + (1 - rates) * (second - first) / (1 - first)
        else:
            other = rng.beta(second * 1.5, (1 - second) * 1.5, prompts)
        a, b = (rng.random((prompts, 4)) < r[:, None] for r in (rates, other))
        hits += holds(paired_by_prompt(by_row(a), by_row(b)), first - second)
    assert 0.935 - error(0.935, draws) <= hits / draws <= 0.99


@pytest.mark.slow
def test_equal_runs_are_called_different_about_five_times_in_a_hundred():
    rng, draws, found = np.random.default_rng(0), 500, 0
    for _ in range(draws):
        rates = rng.beta(0.6, 1.0, 60)
        a, b = (rng.random((60, 4)) < rates[:, None] for _ in range(2))
        found += paired_by_prompt(by_row(a), by_row(b))["p_value"] < 0.05
    assert 0.02 <= found / draws <= 0.05 + error(0.05, draws)


def test_runs_on_different_prompts_with_one_share_each_are_told_apart_by_fishers_test():
    """Rounding is no variance, and no variance no reason to say nothing."""
    zero, one = {f"a{i}": [False, False] for i in range(10)}, {f"b{i}": [True, True] for i in range(10)}
    assert unpaired(zero, one)["p_value"] == pytest.approx(2 / comb(20, 10))
    third = {f"a{i}": [True, False, False] for i in range(10)}
    assert unpaired(third, {f"b{i}": [True, True, False] for i in range(10)})["p_value"] == pytest.approx(
        2 / comb(20, 10)
    )
    assert unpaired(third, {f"b{i}": [False, True, False] for i in range(30)})["p_value"] == 1.0
