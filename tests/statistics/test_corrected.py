"""The share corrected for a judge's errors: the formula, what it refuses, and the coverage of its interval."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mithridate.statistics import ErrorRates, corrected, proportion
from tests.statistics.simulate import answers, by_row, error, holds


def rates(sensitivity: float, specificity: float, harmful: int, harmless: int) -> ErrorRates:
    caught, cleared = round(sensitivity * harmful), round(specificity * harmless)
    return ErrorRates(caught, harmful - caught, cleared, harmless - cleared)


def test_the_formula_inverts_what_the_judge_does():
    """30 % harmful, sensitivity 0.8, specificity 0.9: the judge says 0.3 * 0.8 + 0.7 * 0.1 = 31 %."""
    found = corrected(310, 1000, rates(0.8, 0.9, 100, 100))
    assert found["value"] == pytest.approx(0.3) and found["apparent"] == 0.31
    assert found["low"] < 0.3 < found["high"] and found["calibrated_on"] == {"harmful": 100, "harmless": 100}


def test_the_interval_by_its_formula():
    """Lang & Reiczigel 2014, their equations written out with numbers."""
    z2 = 1.959963984540054**2
    p, se, sp = (60 + z2 / 2) / (200 + z2), 41 / 52, 46 / 52
    true = (p + sp - 1) / (se + sp - 1)
    shift = 2 * z2 * (true * se * (1 - se) / 52 - (1 - true) * sp * (1 - sp) / 52)
    variance = p * (1 - p) / (200 + z2) + true**2 * se * (1 - se) / 52 + (1 - true) ** 2 * sp * (1 - sp) / 52
    half = z2**0.5 * variance**0.5 / (se + sp - 1)
    found = corrected(60, 200, ErrorRates(40, 10, 45, 5))
    assert (found["low"], found["high"]) == pytest.approx((true + shift - half, true + shift + half))


def test_a_larger_calibration_set_narrows_the_interval_to_that_of_the_count():
    widths = [
        (found := corrected(300, 1000, rates(0.9, 0.9, n, n)))["high"] - found["low"] for n in (20, 100, 100_000)
    ]
    assert widths[0] > widths[1] > widths[2]
    assert widths[2] == pytest.approx(2 * 1.96 * (0.3 * 0.7 / 1000) ** 0.5 / 0.8, rel=0.02)


@pytest.mark.parametrize(("k", "value"), [(0, 0.0), (1000, 1.0)])
def test_the_share_stays_within_0_and_1(k, value):
    found = corrected(k, 1000, rates(0.8, 0.9, 50, 50))
    assert found["value"] == value and 0 <= found["low"] <= value <= found["high"] <= 1


@pytest.mark.parametrize(
    ("k", "judge"),
    [
        (0, ErrorRates(45, 5, 45, 5)),
        (10, ErrorRates(136, 5, 50, 9)),  # fewer than the judge's false alarms would be
        (200, ErrorRates(45, 5, 45, 5)),
    ],
)
def test_the_interval_is_never_narrower_than_that_of_a_judge_without_errors(k, judge):
    """Before, these three had an interval of width zero, at 0 or at 1."""
    found = corrected(k, 200, judge)
    least = proportion(round(found["value"] * 200), 200)
    assert found["low"] <= least["low"] and found["high"] >= least["high"] and found["high"] - found["low"] > 0.018


@given(st.integers(0, 200), st.integers(1, 40), st.integers(0, 40), st.integers(1, 40), st.integers(0, 40))
def test_no_corrected_interval_is_empty(k, caught, missed, cleared, false_alarms):
    judge = ErrorRates(caught, missed, cleared, false_alarms)
    if judge.unusable is None:
        found = corrected(k, 200, judge)
        assert found["high"] - found["low"] > 0.018


def test_nothing_counted_is_unknown():
    assert corrected(0, 0, rates(0.8, 0.9, 50, 50))["value"] is None


@pytest.mark.parametrize(
    ("judge", "reason"),
    [
        (ErrorRates(0, 0, 9, 1, unscored_harmful=4), "no labelled harmful answer"),
        (ErrorRates(9, 1, 0, 0), "no labelled harmless answer"),
        (ErrorRates(10, 10, 10, 10), "not clearly better than chance"),
        (ErrorRates(2, 18, 2, 18), "not clearly better than chance"),  # worse than chance
        (ErrorRates(3, 1, 2, 2), "calls 3 of 4 harmful and 2 of 4 harmless"),  # better, but not clearly
    ],
)
def test_rates_that_correct_nothing_are_refused(judge, reason):
    assert reason in judge.unusable
    with pytest.raises(ValueError, match=reason):
        corrected(10, 100, judge)


@pytest.mark.parametrize(("harmful", "harmless"), [(25, 25), (10, 40), (100, 100)])
@pytest.mark.parametrize(("sensitivity", "specificity"), [(0.9, 0.95), (0.7, 0.9), (1.0, 1.0)])
def test_the_corrected_interval_covers_at_its_rate(harmful, harmless, sensitivity, specificity):
    """True shares from 0 to 1, the smallest calibration sets included. Wider than need be at the ends, never short."""
    rng, draws, n = np.random.default_rng(0), 700, 500
    for true in (0.0, 0.02, 0.3, 0.95):
        counts = np.column_stack(
            [
                rng.binomial(n, true * sensitivity + (1 - true) * (1 - specificity), draws),
                rng.binomial(harmful, sensitivity, draws),
                rng.binomial(harmless, specificity, draws),
            ]
        )
        held = []
        for k, caught, cleared in counts.tolist():
            judge = ErrorRates(caught, harmful - caught, cleared, harmless - cleared)
            if judge.unusable is None:
                held.append(holds(corrected(k, n, judge), true))
        assert len(held) > 0.9 * draws
        assert np.mean(held) >= 0.94 - error(0.94, draws)
        if true == 0.3 and harmful == 100 and sensitivity < 1:
            assert np.mean(held) <= 0.98


def test_labelled_answers_may_be_a_part_of_those_counted():
    rng, draws, n, true = np.random.default_rng(0), 700, 300, 0.3
    held = 0
    for _ in range(draws):
        harmful = rng.random(n) < true
        called = np.where(harmful, rng.random(n) < 0.85, rng.random(n) < 0.1)
        part = rng.permutation(n)[:100]
        a, b = harmful[part], called[part]
        judge = ErrorRates(int((a & b).sum()), int((a & ~b).sum()), int((~a & ~b).sum()), int((~a & b).sum()))
        held += holds(corrected(int(called.sum()), n, judge), true)
    assert held / draws >= 0.95 - error(0.95, draws)


@pytest.mark.parametrize(("share", "alike", "prompts", "each"), [(0.3, 0.8, 50, 10), (0.2, 0.5, 30, 4)])
def test_answers_to_the_same_prompts_do_not_count_as_so_many(share, alike, prompts, each):
    """Several answers to a prompt are alike: taken for independent ones, they cover 75 and 82 % here."""
    rng, draws, hits = np.random.default_rng(0), 1500, 0
    for _ in range(draws):
        truth = answers(rng, share, alike, prompts, each)
        called = np.where(truth, rng.random(truth.shape) < 0.9, rng.random(truth.shape) < 0.05)
        caught, cleared = rng.binomial(100, 0.9), rng.binomial(100, 0.95)
        judge = ErrorRates(caught, 100 - caught, cleared, 100 - cleared)
        hits += holds(corrected(int(called.sum()), called.size, judge, by_row(called)), share)
    assert hits / draws > 0.95 - error(0.95, draws)


def test_with_one_answer_a_prompt_nothing_is_said_of_prompts():
    judge = ErrorRates(40, 10, 45, 5)
    assert corrected(60, 200, judge, by_row([[i < 60] for i in range(200)])) == corrected(60, 200, judge)


def test_one_prompt_alone_tells_nothing_of_others():
    found = corrected(3, 10, ErrorRates(40, 10, 45, 5), {"a": [True] * 3 + [False] * 7})
    assert (found["low"], found["high"]) == (0.0, 1.0)
