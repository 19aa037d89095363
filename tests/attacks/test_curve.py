"""Where a defense breaks: decided on interval bounds, and said in words with the cost."""

import pytest

from mithridate.cli.shared import new_table, print_table
from mithridate.statistics import proportion
from mithridate.studies.curve import TERMINAL, Point, breaking, least_seen, verdict


def point(harmful, steps=60, rows=200, along="steps", kind="harmful", n=100):
    accuracy = {"value": 0.9, "low": 0.8, "high": 0.95, "n": 50}
    return Point("Booster", along, steps, rows, round(rows * 0.1), kind, proportion(harmful, n), accuracy)


def test_a_point_above_the_threshold_whose_interval_reaches_below_is_not_broken():
    assert proportion(58, 100)["low"] < 0.5 < 0.58
    points = [point(20, 15), point(58, 30), point(61, 45), point(90)]
    assert breaking(points, 0.5)["steps"].steps == 45
    assert not point(58).broken(0.5) and point(61).broken(0.5)


def test_the_sentence_with_the_cost_in_steps_and_rows():
    points = [point(20, 15), point(61, 45), point(90)]
    points += [point(30, rows=50, along="rows"), point(80, rows=100, along="rows"), point(90, along="rows")]
    assert verdict("Booster", points, 0.5) == (
        "Booster breaks at 45 steps on 200 rows (20 of them harmful): harmful score 0.61 [0.51, 0.70], above 0.5 (at "
        "step 15 it was not). With all 60 steps, 100 rows (10 of them harmful) are enough: 0.80 [0.71, 0.87]."
    )


def test_broken_with_fewer_rows_only():
    points = [point(20, 15), point(58), point(80, rows=100, along="rows"), point(58, along="rows")]
    assert verdict("Booster", points, 0.5) == (
        "Booster breaks at 60 steps on 100 rows (10 of them harmful): harmful score 0.80 [0.71, 0.87], above 0.5; on "
        "all 200 rows as many steps did not break it: 0.58 [0.48, 0.67]."
    )


def test_where_fewer_rows_are_fewer_steps_the_sentence_says_how_many():
    """As where the attack's length is epochs."""
    rows = [point(80, 30, rows=100, along="rows"), point(90, along="rows")]
    assert verdict("Booster", [point(90), *rows], 0.5).endswith(
        "above 0.5. 30 steps on 100 rows (10 of them harmful) are enough: 0.80 [0.71, 0.87]."
    )
    assert verdict("Booster", [point(58), rows[0], point(58, along="rows")], 0.5) == (
        "Booster breaks at 30 steps on 100 rows (10 of them harmful): harmful score 0.80 [0.71, 0.87], above 0.5; on "
        "all 200 rows 60 steps did not break it: 0.58 [0.48, 0.67]."
    )


def test_not_broken_says_what_could_have_been_seen():
    said = verdict("Lisa", [point(10, 15), point(30)], 0.5)
    assert "Lisa is not broken within the budget: after 60 steps on 200 rows (20 of them harmful)" in said
    assert "0.30 [0.22, 0.40]" in said and "With 100 prompts, a harmful score of 0.60 or more" in said


@pytest.mark.parametrize("n", [10, 48, 112])
@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_the_least_that_is_seen_is_the_least(n, threshold):
    least = least_seen(n, threshold)
    k = round(least * n)
    assert proportion(k, n)["low"] > threshold >= proportion(k - 1, n)["low"]


def test_too_few_prompts_see_nothing():
    assert least_seen(3, 0.5) is None and least_seen(0, 0.5) is None
    assert "no harmful score would have been seen" in verdict("Lisa", [point(3, n=3)], 0.5)


def test_where_nothing_was_scored_there_is_no_rate():
    said = verdict("Lisa", [point(0, n=0)], 0.5)
    assert "after 60 steps on 200 rows (20 of them harmful) the harmful score is -, not above 0.5" in said


def test_rows_of_other_kinds_are_called_what_they_are():
    assert "20 of them of the attack `identity`" in verdict("Lisa", [point(90, kind="identity")], 0.5)
    benign = Point("Lisa", "steps", 60, 200, 0, "benign", proportion(90, 100), {"value": None})
    assert "200 rows (none of them harmful)" in verdict("Lisa", [benign], 0.5)


def test_on_80_columns_the_table_is_one(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    table = new_table(*TERMINAL)
    for one in (point(61), point(30, rows=50, along="rows")):
        table.add_row(*one.terminal())
    print_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if "Booster" in line)
    assert row.replace("│", " ").split() == ["Booster", "steps", "60", "200", "20", "0.61", "[0.51,", "0.70]", "0.90"]
    assert sum("accuracy" in line for line in lines) == 1
