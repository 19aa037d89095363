"""Calibration files: what is read, what is refused, and the corrected score that comes out."""

import json

import pandas as pd
import pytest

from mithridate.errors import InputError
from mithridate.evaluation.calibration import corrected_score, error_rates, labelled_items, read_labels
from mithridate.judges.base import Item

ROWS = [{"prompt": "p1", "answer": "a1", "harmful": True}, {"prompt": "p2", "answer": "", "harmful": False}]


def write(folder, name, rows):
    path = folder / name
    if name.endswith("jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif name.endswith("csv"):
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


@pytest.mark.parametrize("name", ["labels.jsonl", "labels.csv", "labels.parquet"])
def test_the_same_labels_from_every_format(tmp_path, name):
    labels = read_labels(write(tmp_path, name, ROWS))
    assert [(label.prompt, label.answer, label.harmful) for label in labels] == [("p1", "a1", True), ("p2", "", False)]
    assert labelled_items(labels) == [Item("p1", "a1"), Item("p2", "")]


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), (0, False), (1.0, True), ("False", False), (" TRUE ", True), ("1", True)]
)
def test_a_label_may_be_written_in_several_ways(tmp_path, value, expected):
    assert read_labels(write(tmp_path, "l.jsonl", [{"id": 3, "harmful": value}]))[0].harmful is expected


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "p", "answer": "a"}, "line 1: has no column `harmful`; give true or false"),
        ({"prompt": "p", "answer": "a", "harmful": "maybe"}, "`harmful` is 'maybe'"),
        ({"prompt": "p", "answer": "a", "harmful": None}, "`harmful` is None"),
        ({"prompt": "p", "answer": "a", "harmful": [1]}, r"`harmful` is \[1\]"),
        ({"prompt": "p", "answer": "a", "harmful": 2}, "`harmful` is 2"),
        ({"prompt": "p", "harmful": True}, "says of no answer"),
        ({"prompt": "p", "answer": 7, "harmful": True}, "`answer` is a int where text is expected"),
    ],
)
def test_a_bad_row_is_refused_with_its_place(tmp_path, row, words):
    with pytest.raises(InputError, match=words):
        read_labels(write(tmp_path, "l.jsonl", [row]))


@pytest.mark.parametrize("again", [ROWS[0], ROWS[0] | {"harmful": False}])
def test_an_answer_labelled_twice_is_refused(tmp_path, again):
    with pytest.raises(InputError, match=r"line 3: labels an answer that .*line 1 labelled already"):
        read_labels(write(tmp_path, "l.jsonl", [*ROWS, again]))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_labels(tmp_path / "labels.jsonl")


def test_answers_are_looked_up_by_id(tmp_path):
    labels = read_labels(write(tmp_path, "l.jsonl", [{"id": "x1", "harmful": True}]))
    record = {"id": "x1", "prompt": "p", "answer": "a"}
    assert labelled_items(labels, [record, record, record | {"id": "x2"}]) == [Item("p", "a")]
    with pytest.raises(InputError, match="line 1: no record has the id 'x1'"):
        labelled_items(labels)
    with pytest.raises(InputError, match="2 different answers in the records have the id 'x1'"):
        labelled_items(labels, [record, record | {"answer": "b"}])


def test_from_a_file_to_a_corrected_score(tmp_path):
    """40 harmful and 40 harmless answers; the judge misses 8, raises 4 false alarms and leaves two unscored."""
    rows = [{"prompt": f"p{i}", "answer": "a", "harmful": i < 40} for i in range(80)]
    judged = [None, *["safe"] * 8, *["harmful"] * 31, None, *["harmful"] * 4, *["safe"] * 35]
    rates = error_rates(read_labels(write(tmp_path, "l.jsonl", rows)), judged, "harm")
    assert (rates.caught, rates.missed, rates.cleared, rates.false_alarms) == (31, 8, 35, 4)
    assert (rates.unscored_harmful, rates.unscored_harmless) == (1, 1)
    found = corrected_score(100, 400, rates)
    assert found["value"] == pytest.approx((0.25 - 4 / 39) / (31 / 39 - 4 / 39))
    assert found["low"] < found["value"] < found["high"] and found["labelled_unscored"] == 2
    assert found["sensitivity"]["value"] == 31 / 39 and found["specificity"]["n"] == 39


def test_complying_counts_as_harmful_where_a_judge_tells_answers_apart(tmp_path):
    labels = read_labels(write(tmp_path, "l.jsonl", ROWS))
    assert error_rates(labels, ["complied", "incoherent"], "answer").sensitivity["value"] == 1


def test_a_judge_of_refusals_has_no_harmful_score_to_correct(tmp_path):
    labels = read_labels(write(tmp_path, "l.jsonl", ROWS))
    with pytest.raises(InputError, match="does not say whether an answer is harmful"):
        error_rates(labels, ["refused", "not_refused"], "refusal")


def test_a_judge_that_cannot_tell_is_refused_with_the_remedy(tmp_path):
    labels = read_labels(write(tmp_path, "l.jsonl", ROWS))
    with pytest.raises(InputError, match=r"not clearly better than chance.*Label more answers"):
        corrected_score(10, 100, error_rates(labels, ["harmful", "safe"], "harm"))
