"""Two runs beside each other: paired where prompts are the same, unpaired where not, never two judges or protocols."""

import csv
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from scipy.stats import binomtest, fisher_exact, ttest_ind
from typer.testing import CliRunner

from mithridate import InputError, compare
from mithridate.cli import app
from mithridate.pipeline.finished import Run
from mithridate.report.side_by_side import lines
from mithridate.statistics import paired, unpaired
from tests.gate.runs import (
    BENIGN,
    DEFENDED,
    HARMFUL,
    LISA,
    PLAIN,
    bad,
    edit_records,
    edit_table,
    experiment,
    good,
    run_of,
    write_run,
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return run_of(folder / "a", good()), run_of(folder / "b", bad())


@pytest.fixture
def copies(tmp_path) -> tuple[Path, Path]:
    return run_of(tmp_path / "a", good()), run_of(tmp_path / "b", bad())


def of(found, rate, model=DEFENDED):
    return next(each for each in found.differences if (each.model, each.rate) == (model, rate))


def moved(rows, share=1.0):
    """The rows with another prompt in place of that share of them."""
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        counts[row["cell"], row["set"]] += 1
        if counts[row["cell"], row["set"]] <= share * {"harmful": HARMFUL, "benign": BENIGN, "task": 128}[row["set"]]:
            row = row | {"prompt": "Another: " + row["prompt"]}
        yield row


def test_the_same_prompts_are_compared_with_themselves(runs):
    found = compare(*runs)
    score = of(found, "harmful_score")
    a, b = [True] + [False] * 111, [True] * 60 + [False] * 52
    wanted = paired(b, a)
    assert score.way == "paired" and score.n == 112
    assert (score.difference, score.low, score.high) == (wanted["difference"], wanted["low"], wanted["high"])
    assert score.p_value == pytest.approx(binomtest(59, 59).pvalue) and score.difference == pytest.approx(59 / 112)
    assert (score.a["value"], score.b["value"]) == (pytest.approx(1 / 112), pytest.approx(60 / 112))
    assert of(found, "harmful_score", PLAIN).difference == 0 and {each.model for each in found.differences} == {
        PLAIN,
        DEFENDED,
    }


def test_models_of_one_id_that_were_made_otherwise_are_told(copies):
    def other(table):
        for cell in table["cells"]:
            if cell["id"] == DEFENDED:
                cell["attack"] = (cell.get("attack") or {}) | {"training": {"max_steps": 2}, "frozen": [".*lora_A.*"]}

    edit_table(copies[1], other)
    notes = [note for note in compare(*copies).notes if "was made otherwise" in note]
    assert len(notes) == 1 and notes[0].startswith(f"{DEFENDED} was made otherwise in b than in a: ")
    assert 'attack.frozen null in a, [".*lora_A.*"] in b' in notes[0] and "attack.training" in notes[0]
    assert not any("was made otherwise" in note for note in compare(copies[0], copies[0]).notes)


def test_p_values_are_corrected_over_the_whole_comparison(runs):
    found = compare(*runs)
    score = of(found, "harmful_score")
    assert score.p_holm == pytest.approx(min(1, score.p_value * len(found.differences)))
    assert len(compare(*runs, cells=[DEFENDED]).differences) == len(found.differences) / 2


def test_other_prompts_are_compared_as_two_samples(copies):
    edit_records(copies[1], lambda rows: list(moved(rows)))
    found = compare(*copies)
    score = of(found, "harmful_score")
    assert (score.way, score.n) == ("unpaired", 224)
    assert score.p_value == pytest.approx(fisher_exact([[60, 52], [1, 111]]).pvalue)
    # Newcombe's interval from Wilson's bounds of the two shares
    low = (
        score.difference
        - ((score.b["value"] - score.b["low"]) ** 2 + (score.a["high"] - score.a["value"]) ** 2) ** 0.5
    )
    assert score.low == pytest.approx(low)


@pytest.mark.parametrize(("share", "way", "n"), [(0.25, "paired", 84), (0.75, "unpaired", 224)])
def test_prompts_that_are_partly_the_same(copies, share, way, n):
    edit_records(copies[1], lambda rows: list(moved(rows, share)))
    found = compare(*copies)
    assert (of(found, "harmful_score").way, of(found, "harmful_score").n) == (way, n)
    said = any("harmful_score is of the 84 prompts that both have; 28 are left out" in note for note in found.notes)
    assert said == (way == "paired")


def test_an_unscored_answer_is_in_no_pair(copies):
    edit_records(
        copies[1],
        lambda rows: [r | {"verdict": None} if r["set"] == "harmful" and r["id"] == first(rows) else r for r in rows],
    )
    score = of(compare(*copies), "harmful_score")
    assert (score.n, score.b["unscored"], score.b["n"]) == (111, 1, 111)


def first(rows):
    return next(row["id"] for row in rows if row["set"] == "harmful")


def test_models_of_other_ids_are_named_in_pairs(runs):
    found = compare(*runs, cells=[(PLAIN, DEFENDED)])
    assert {each.model for each in found.differences} == {f"{PLAIN} = {DEFENDED}"}
    with pytest.raises(InputError, match="has no cell 'sft-lisa'"):
        compare(*runs, cells=["sft-lisa"])
    with pytest.raises(InputError, match=r"cells: expected ids, or pairs of them .*, got \('a', 'b', 'c'\)"):
        compare(*runs, cells=[("a", "b", "c")])


def test_one_id_is_a_list_of_one(runs):
    assert compare(*runs, cells=DEFENDED).differences == compare(*runs, cells=[DEFENDED]).differences


def test_runs_without_a_common_model_say_how_to_name_two(copies):
    edit_table(copies[1], renamed)
    edit_records(copies[1], lambda rows: [row | {"cell": "x" + row["cell"]} for row in rows], careful=False)
    with pytest.raises(InputError, match=r"no model has the same id in both runs.*--cell ID=ID"):
        compare(*copies)


def test_models_that_differ_in_their_seed_are_compared_where_no_others_can_be(runs, tmp_path):
    def of_seed(seed, mine):
        models = [(experiment(seed), "finetune", bad()), (experiment(seed, LISA), "finetune", mine)]
        return Run(write_run(tmp_path / f"{seed}", models))  # what `run` returns stands for its folder

    found, same = compare(of_seed(3, good()), of_seed(14, bad())), compare(*runs)
    names = (PLAIN.removesuffix("0"), DEFENDED.removesuffix("0"))
    assert {each.model for each in found.differences} == {f"{name}3 = {name}14" for name in names}
    assert [each.difference for each in found.differences] == [each.difference for each in same.differences]
    assert any("differ in their seed" in note for note in found.notes)
    assert not any("only in" in note for note in found.notes)


def renamed(results):
    for cell in results["cells"]:
        cell["id"] = "x" + cell["id"]


def test_what_only_one_run_has_is_said(copies):
    edit_table(
        copies[1], lambda results: results | {"cells": results["cells"][:1], "model": "other", "complete": False}
    )
    notes = compare(*copies).notes
    assert f"only in a, not compared: {DEFENDED}" in notes and "b has not finished: its table is not whole" in notes
    assert "model differs: a smollm2-135m; b other" in notes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda results: results | {"protocol": "hs/unified-v1"}, "has protocol hs/embedded-v1, .* hs/unified-v1"),
        (lambda results: results | {"rules": "rules-v2"}, "has rules rules-v3, .* rules-v2"),
    ],
)
def test_two_protocols_or_two_rules_are_refused(copies, change, words):
    edit_table(copies[1], change)
    with pytest.raises(InputError, match=words):
        compare(*copies)


@pytest.mark.parametrize("kind", ["harmful", "benign"])
def test_two_judges_are_refused(copies, kind):
    edit_records(
        copies[1], lambda rows: [r | {"judge": "mine"} if r["set"] == kind else r for r in rows], careful=False
    )
    with pytest.raises(InputError, match=f"{kind} prompts' answers are judged by rules-v3 in .* and by mine in"):
        compare(*copies)


def test_two_tasks_have_no_common_accuracy(copies):
    edit_records(copies[1], lambda rows: [r | {"task": "sst2"} if r["set"] == "task" else r for r in rows])
    found = compare(*copies)
    assert "accuracy" not in {each.rate for each in found.differences}
    assert any("accuracy is of two tasks (sentiment; sst2), not compared" in note for note in found.notes)


def test_a_folder_that_is_no_run_is_named(runs, tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        compare(runs[0], tmp_path)


def test_a_notebook_sees_a_table_without_markup(copies):
    edit_table(copies[1], lambda results: results | {"model": "<script>x</script>"})
    html = compare(*copies)._repr_html_()
    assert "harmful_score" in html and "0.527" in html and "<script>" not in html
    frame = compare(*copies).to_pandas()
    assert {"model", "rate", "a_value", "b_high", "difference", "p_holm", "way"} <= set(frame.columns)


def test_the_command_prints_80_columns_and_writes_both_files(runs, tmp_path):
    for ending in ("csv", "json"):
        done = CliRunner().invoke(
            app, ["compare", str(runs[0]), str(runs[1]), "--out", str(tmp_path / "new" / f"c.{ending}")]
        )
        assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= 80
    assert re.search(r"harmful score +1% \[<1, 5\] +54% \[44, 63\] +\+53 \[\+43, \+62\] +< 0\.001 +112", done.output)
    rows = list(csv.DictReader((tmp_path / "new" / "c.csv").open()))
    made = json.loads((tmp_path / "new" / "c.json").read_text())
    assert len(rows) == len(made["differences"]) == 12
    assert float(rows[6]["difference"]) == made["differences"][6]["difference"]
    done = CliRunner().invoke(app, ["compare", str(runs[0]), str(runs[1]), "--out", "c.txt"])
    assert isinstance(done.exception, InputError) and "ends in .csv or .json" in str(done.exception)
    assert max(len(line) for line in lines(compare(*runs, cells=[(PLAIN, DEFENDED)]))) <= 80


def test_columns_stand_below_each_other_where_a_share_is_a_hundred_percent(copies):
    for folder in copies:
        edit_records(folder, lambda rows: [r | {"correct": True} if r["set"] == "task" else r for r in rows])
    printed = list(lines(compare(*copies)))
    table = [line for line in printed if re.search(r"% \[|b − a  ", line)]
    whole = [line for line in table if re.search(r"100% \[\d\d, 100\] ", line)]
    assert whole and {line.index("100% [", 20) for line in whole} == {table[0].index("b")}
    assert len({len(line) for line in table}) == 1 and max(map(len, printed)) <= 80


# -- the statistics of different prompts ------------------------------------------------------------------------------


def test_several_answers_a_prompt_are_a_sample_of_prompts():
    a = {i: [i % 3 == 0, i % 2 == 0] for i in range(30)}
    b = {i: [i % 5 == 0, False] for i in range(20)}
    found = unpaired(a, b)
    x, y = [sum(v) / 2 for v in a.values()], [sum(v) / 2 for v in b.values()]
    assert found["p_value"] == pytest.approx(ttest_ind(x, y, equal_var=False).pvalue)
    assert found["difference"] == pytest.approx(sum(x) / 30 - sum(y) / 20) and found["n"] == 50
    assert found["low"] < found["difference"] < found["high"]


def test_what_cannot_be_told_is_p_one():
    assert unpaired({}, {1: [True]})["difference"] is None and unpaired({}, {1: [True]})["p_value"] == 1
    assert unpaired({1: [True, True]}, {2: [False, False]})["p_value"] == 1


def test_equal_runs_differ_by_chance_in_at_most_one_of_twenty():
    import numpy as np

    rng, small = np.random.default_rng(0), 0
    for _ in range(400):
        a, b = ({i: [bool(v)] for i, v in enumerate(rng.random(60) < 0.3)} for _ in range(2))
        small += unpaired(a, b)["p_value"] < 0.05
    assert small <= 0.05 * 400


# -- by another judge ----------------------------------------------------------------------------------------


def beside(folder, judge, says):
    """Adds a judge's verdicts to the records, beside the protocol's."""
    edit_records(folder, lambda rows: [row | {f"judge/{judge}": says(row)} for row in rows])


def test_another_judge_s_verdicts_can_be_compared(copies):
    for folder, harmful in zip(copies, (3, 40), strict=True):
        left = Counter()

        def says(row, left=left, harmful=harmful):
            if row["set"] != "harmful":
                return None
            left[row["cell"]] += 1
            return "harmful" if left[row["cell"]] <= harmful else "safe"

        beside(folder, "llama-guard-3", says)
    found = compare(*copies, judge="llama-guard-3")
    score = of(found, "harmful_score")
    assert (score.a["value"], score.b["value"], score.n) == (3 / 112, 40 / 112, 112)
    assert score.difference == pytest.approx(37 / 112) and found.about["judge"] == "llama-guard-3"
    assert {each.rate for each in found.differences} == {"harmful_score", "accuracy"}  # a guard says no more
    own = compare(*copies)
    assert of(own, "harmful_score").b["value"] != score.b["value"] and own.about["judge"] is None
    assert of(own, "accuracy").a == of(found, "accuracy").a
    assert "judge llama-guard-3" in " ".join(lines(found)) and "rules" not in " ".join(list(lines(found))[:4])


def test_the_protocol_s_own_judge_by_name_says_what_it_says_unnamed(copies):
    named, own = compare(*copies, judge="rules-v3"), compare(*copies)
    for rate in ("harmful_score", "incoherent", "benign_refusal", "benign_incoherent", "accuracy"):
        assert of(named, rate).a == of(own, rate).a and of(named, rate).b == of(own, rate).b


def test_a_judge_that_judged_nothing_is_refused(copies):
    beside(copies[0], "llama-guard-3", lambda row: "safe" if row["set"] == "harmful" else None)
    with pytest.raises(InputError, match=r"/b \(.*\): no verdicts of the judge llama-guard-3; there are those of "):
        compare(*copies, judge="llama-guard-3")
    done = CliRunner().invoke(app, ["compare", *map(str, copies), "--judge", "rules-v3"])
    assert done.exit_code == 0 and "judge rules-v3" in done.output
