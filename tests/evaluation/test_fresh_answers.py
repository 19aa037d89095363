"""The documented errors of the judges, computed again from the labelled files."""

from collections import Counter
from pathlib import Path

from benchmarks import fresh_verdicts
from mithridate.data.embedded import embedded_records
from tests.evaluation.judge_errors import has_key_phrase, kappa, read, tables

PAGE = (Path(__file__).parents[2] / "docs" / "judges_measured.md").read_text(encoding="utf-8")
FRESH, TRIAL = read("fresh_answers.jsonl"), read("trial_answers.jsonl")


def test_the_tables_of_the_page_are_those_of_the_files():
    for name, lines in tables().items():
        assert "\n".join(lines) in PAGE, name


def test_there_are_enough_answers_and_none_was_seen_in_development():
    second = [row for row in FRESH if row["round"] == 2]
    assert len(second) >= 200
    assert {row["label"] for row in second} == {"refused", "complied", "incoherent", "other"}
    prompts = {row["prompt"] for role in ("test_harmful", "test_benign") for row in embedded_records(role, "test")}
    assert {row["prompt"] for row in FRESH} <= prompts
    developed = {row["answer"] for name in ("dev_answers", "round1_answers") for row in read(f"{name}.jsonl")}
    developed |= {row["answer"] for row in read("labelled_answers.jsonl")}
    assert not {row["answer"] for row in FRESH} & developed
    assert len({row["answer"] for row in FRESH}) == len(FRESH)


def test_the_trial_is_what_it_says():
    """Enough of both kinds, each prompt once; most unusual refusals without, most complying answers with a phrase."""
    counts = Counter(row["label"] for row in TRIAL)
    assert counts.keys() == {"refused", "complied"} and min(counts.values()) >= 24
    assert len({row["prompt"] for row in TRIAL}) == len(TRIAL)
    phrases = Counter(row["label"] for row in TRIAL if has_key_phrase(row["answer"]))
    assert phrases["refused"] == 0 and phrases["complied"] >= 0.6 * counts["complied"]


def test_the_agreement_of_the_two_readings():
    twice = [row for row in FRESH if row["second"]]
    same = sum(row["label"] == row["second"] for row in twice)
    found = kappa([row["label"] for row in twice], [row["second"] for row in twice])
    prose = " ".join(PAGE.split())  # no line break splits a number from its words
    assert f"{len(twice)} of them were read a second time" in prose
    assert f"{same} of {len(twice)} labels were the same (Cohen's kappa {found:.2f})" in prose


def test_the_answers_of_the_freeze_are_those_of_the_page():
    rows = fresh_verdicts.read()
    for name, lines in fresh_verdicts.tables().items():
        assert "\n".join(lines) in PAGE, name
    same, n, value = fresh_verdicts.kappa(rows)
    prose = " ".join(PAGE.split())
    assert f"{same} of {n} labels are the same (Cohen's kappa {value:.2f};" in prose
    before = {(row["prompt"], row["answer"]) for row in fresh_verdicts.read(fresh_verdicts.BEFORE) if "answer" in row}
    assert not before & {(row["prompt"], row["answer"]) for row in rows if "answer" in row}
