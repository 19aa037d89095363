"""The record finds what changed, and its script writes what the kept record has."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import record

ROOT = Path(__file__).parents[2]
KEPT = json.loads((ROOT / "benchmarks" / "results" / "record.json").read_text())
CELL = "sft-sft-none-double-0.5-s0"


@pytest.fixture
def newer():
    return copy.deepcopy(KEPT)


def found(newer):
    """[(path, before, after)] and the new paths."""
    differences, new = record.compare(KEPT, newer)
    return [(d.path, d.before, d.after) for d in differences], new


def test_a_record_does_not_differ_from_itself_nor_by_what_it_was_made_with(newer):
    newer["made_with"] = {"threads": 7}
    assert found(newer) == ([], [])


@pytest.mark.parametrize(("factor", "near"), [(1 + 1e-9, True), (1 + 1e-5, False)])
def test_a_changed_number_is_found_and_told_from_rounding(newer, factor, near):
    update = newer["rules"]["lora: vaccine"]["update"]
    was = update["norm"]
    update["norm"] *= factor
    [difference], new = record.compare(KEPT, newer)
    assert difference == record.Difference("rules / lora: vaccine / update / norm", was, was * factor)
    assert difference.near is near and new == []


def test_a_missing_cell_is_found_and_a_new_one_listed(newer):
    cells = newer["experiment"]["cells"]
    cells["another"] = was = cells.pop(CELL)
    path = "experiment / cells"
    assert found(newer) == ([(f"{path} / {CELL}", was, record.MISSING)], [f"{path} / another"])


def test_cells_are_matched_by_name_whatever_their_order(newer):
    cells = newer["experiment"]["cells"]
    newer["experiment"]["cells"] = dict(reversed(cells.items()))
    assert found(newer) == ([], [])


def test_changed_verdicts_are_found_of_an_answer_the_gate_and_the_page(newer):
    experiment = newer["experiment"]
    answers = experiment["cells"][CELL]["answers"]["end"]["harmful"]
    gate = experiment["gate"]["cells"][CELL]["harmful score"]
    defended, word = next(iter(experiment["page"].items()))
    changed = [
        (f"experiment / cells / {CELL} / answers / end / harmful / 2", answers[2], "unclear"),
        (f"experiment / gate / cells / {CELL} / harmful score / outcome", gate["outcome"], "undecided now"),
        (f"experiment / page / {defended}", word, "another word"),
    ]
    answers[2], gate["outcome"], experiment["page"][defended] = (after for *_, after in changed)
    assert found(newer) == (changed, [])


def test_what_only_looks_equal_differs(newer):
    """A number is no truth value, nothing is not null, and a shorter list has lost something."""
    cell = newer["experiment"]["cells"][CELL]
    cell["final"] = int(cell["final"])
    del cell["control"]
    cell["answers"]["end"]["task"].pop()
    assert len(found(newer)[0]) == 3


def test_new_fields_are_listed_and_are_no_difference(newer):
    newer["experiment"]["cells"][CELL]["later"] = {"word": "helped"}
    assert found(newer) == ([], [f"experiment / cells / {CELL} / later"])


def test_the_command_says_what_differs_and_exits_with_1(newer, tmp_path):
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(json.dumps(KEPT))

    def compared():
        after.write_text(json.dumps(newer))
        command = [sys.executable, "-m", "benchmarks.record", "--compare", before, after]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert compared().returncode == 0
    newer["rules"]["full: sft"]["update"]["norm"] += 1
    newer["rules"]["another"] = {}
    done = compared()
    assert done.returncode == 1
    was, now = (one["rules"]["full: sft"]["update"]["norm"] for one in (KEPT, newer))
    new, difference, count = done.stdout.splitlines()
    assert new == "new: rules / another"
    assert difference == f"rules / full: sft / update / norm: {was} -> {now}"
    assert count == "1 differences, 0 of them numbers within 1e-06 relative; 1 new"


# -- the script -------------------------------------------------------------------------------------------------------


def paths(value, path=()):
    """The paths of all leaves."""
    if not isinstance(value, dict):
        return {path}
    return {found for key, one in value.items() for found in paths(one, (*path, key))}


def test_the_kept_record_has_every_rule_defense_repair_and_control():
    assert {name.partition(": ")[2] for name in KEPT["rules"]} <= set(record.rules())
    cells = KEPT["experiment"]["cells"]
    used = {part for name in cells for part in name.split(" ")[0].replace("+", "-").split("-")}
    assert {"vaccine", "booster", "lisa", "antidote", "double", "single", "full", "s0", "s1"} <= used
    assert {cell["control"] for cell in cells.values()} == {None, "random-mask", "no-proximal-term"}
    whole_run = set(KEPT["experiment"]["gate"]["cells"]) - set(cells)
    assert whole_run == {"(all)"} and set(cells) <= set(KEPT["experiment"]["gate"]["cells"])


def test_a_rules_step_is_written_as_in_the_kept_record(tmp_path):
    """On any machine: the numbers themselves are compared by hand, on one."""
    made, more = record.rules()["vaccine + booster"]
    one = record.trained("lora", made(), tmp_path, more)
    assert paths(one) == paths(KEPT["rules"]["lora: vaccine + booster"])
    again = record.trained("lora", made(), tmp_path, more)
    assert one == again


def test_every_antidote_is_written_as_in_the_kept_record_and_is_undone(tmp_path):
    made = record.all_antidotes(tmp_path)
    assert paths(made) == paths(KEPT["antidote"])
    assert all(one["undone"] for one in made.values() if "refused" not in one)
    assert [name for name, one in made.items() if "refused" in one] == ["full: update, global, wanda"]


@pytest.mark.slow
def test_the_experiment_is_written_as_in_the_kept_record(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "TOPOLOGIES", {"double": [record.SOME[-1]]})
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    made, kept = record.whole_experiment(tmp_path), KEPT["experiment"]
    assert len(made["cells"]) == 6 and len(made["across_seeds"]) == 3 and len(made["page"]) == 3
    for part in ("cells", "across_seeds"):
        for name, one in made[part].items():
            # Fewer runs: those over seeds lack the controls that the kept experiment compares them with.
            differ = paths(kept[part][name]) ^ paths(one)
            assert {path for path in differ if path[0] != "control_difference"} == set()
    assert made["gate"]["cells"].keys() - made["cells"].keys() == kept["gate"]["cells"].keys() - kept["cells"].keys()
    assert made["cells"].keys() <= made["gate"]["cells"].keys()
