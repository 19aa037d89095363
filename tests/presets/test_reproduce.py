"""`mithridate reproduce` on a tiny model and the embedded data: the paper's numbers beside ours, what differs."""

import json

import pytest

from mithridate.errors import InputError
from mithridate.studies.presets import preset
from mithridate.studies.presets.reproduce import compare, prepare, reproduce
from mithridate.studies.presets.scaled import Asked, PresetPlan
from mithridate.studies.presets.tuning import tries, tuned
from tests.tiny import save_tiny

SHORT = ["align.training.num_train_epochs=1", "finetune.training.num_train_epochs=1", "dtype=float32"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("model") / "tiny"))


def test_offline_without_data_the_remedy_is_said(model, tmp_path):
    with pytest.raises(InputError) as error:
        reproduce("booster-2025", Asked(model=model, scale=0.05), out=tmp_path / "out")
    for words in (
        "alignment, attacker_harmful, defender_harmful, task, test_harmful",
        "--data ROLE=FILE",
        "--embedded",
    ):
        assert words in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_judge_that_is_not_at_hand_is_missed_before_anything_is_trained(model, tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    data = {}
    for role in ("alignment", "defender_harmful", "attacker_harmful", "test_harmful", "task"):
        rows = [
            {"prompt": f"{role} {i}", "response": "positive", "is_safe": False, "label": "positive"} for i in range(8)
        ]
        (tmp_path / f"{role}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        data[role] = {"source": str(tmp_path / f"{role}.jsonl")}
    data["task"] |= {"name": "sst2", "test": str(tmp_path / "task_test.jsonl")}
    rows = [{"prompt": f"test {i}", "response": "positive", "label": "positive"} for i in range(8)]
    (tmp_path / "task_test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = Asked(model=model, data=data, overrides=["finetune.attack.size=4"], arms=("booster",))
    with pytest.raises(InputError, match=r"beaver-dam-7b.*-o evaluate\.judges=.*-o evaluate\.protocol="):
        reproduce("booster-2025", asked, out=tmp_path / "out")
    assert not (tmp_path / "store").exists() and not (tmp_path / "out").exists()


def test_each_arm_gets_the_undefended_run_of_its_topology():
    cases = prepare("booster-2025", Asked()).cases
    arms = {}
    for case in cases:
        arms.setdefault(case.arm, set()).add(case.experiment.topology)
    assert arms.pop("booster") == arms.pop("sft, topology single") == {"single"}
    assert set(arms) == {"sft", "lisa", "vaccine"} and all(found == {"double"} for found in arms.values())
    assert len(cases) == 25
    alone = prepare("booster-2025", Asked(arms=("vaccine",))).cases
    assert {case.arm for case in alone} == {"sft", "vaccine"}, "it is the paper's own undefended arm"


@pytest.mark.slow
def test_a_scaled_rehearsal(model, tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    asked = Asked(
        model=model,
        scale=0.02,
        embedded=True,
        arms=("sft", "booster"),
        overrides=[*SHORT, "sweep.finetune.attack.harmful_ratio=[0, 0.1]"],
    )
    found = reproduce("booster-2025", asked, out=tmp_path / "out")
    lines = {(line.arm, line.at): line for line in found.lines}
    assert set(lines) == {
        (arm, f"harmful_ratio {at}") for arm in ("sft", "sft, topology single", "booster") for at in ("0", "0.1")
    }
    line = lines["booster", "harmful_ratio 0.1"]
    assert (line.paper, line.mark) == ({"harmful_score": 0.083, "accuracy": 0.9323}, "P")
    assert line.ours["harmful_score"]["n"] == 20 and line.ours["harmful_score"]["low"] is not None
    assert lines["sft, topology single", "harmful_ratio 0"].mark is None
    said = "\n".join(found.deviations)
    for words in (
        "model: ",
        "scale 0.02: 100 rows of alignment",
        "rehearsal",
        "override: dtype=float32",
        "one seed",
        "(mark I): ",
    ):
        assert words in said
    page = (tmp_path / "out" / "reproduce.md").read_text()
    assert "8.3 [P]" in page and all(text in page for text in found.deviations)
    saved = json.loads((tmp_path / "out" / "reproduce.json").read_text())
    assert len(saved["lines"]) == 6 and saved["deviations"] == found.deviations


@pytest.mark.slow
def test_unified_chooses_settings_on_validation_parts_with_equal_tries(model, tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    asked = Asked(
        model=model,
        scale=0.02,
        embedded=True,
        arms=("sft", "antidote"),
        overrides=[*SHORT, "finetune.attack.harmful_ratio=0.1", "topology=double", "sweep.seed=[0, 1, 2]"],
    )
    found = reproduce("unified-v1", asked, out=tmp_path / "out")
    assert [one.arm for one in found.tries] == ["antidote"] * 4
    best = min(found.tries, key=lambda one: one.rank)
    tuning = json.loads((tmp_path / "out" / "tuning" / "results.json").read_text())
    assert any("validation" in text for text in tuning["deviations"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert not any("validation" in text for text in results["deviations"])
    ratios = {cell["settings"]["antidote"]["ratio"] for cell in results["cells"] if cell["repair"] == "antidote"}
    assert ratios == {best.values["repair.antidote.ratio"]}
    lines = {line.arm: line for line in found.lines}
    assert lines["antidote"].seeds == 3 and lines["antidote"].ours["harmful_score"]["seeds"] == 3
    assert lines["antidote"].ours["harmful_score"]["high"] is not None


def test_unified_tries_are_as_many_for_each_defense_and_topology():
    made = prepare("unified-v1", Asked())
    counts = {}
    for case, _, experiment in tries(made):
        assert experiment.evaluate.part == "validation" and experiment.seed == 0
        assert experiment.finetune.attack.harmful_ratio == 0.1
        counts[case.arm, experiment.topology] = counts.get((case.arm, experiment.topology), 0) + 1
    assert counts == {
        (arm, topology): 4 for arm in ("vaccine", "booster", "lisa", "antidote") for topology in ("double", "single")
    }
    assert len(made.cases) == 5 * 2 * 4 * 3


class FakeTable:
    """A run's table with one made-up score for each case."""

    def __init__(self, cases):
        share = {"low": 0.1, "high": 0.3, "n": 100}
        self.rows = {
            id(case.experiment): {
                "id": str(i),
                "harmful_score": {"value": i / 100, **share},
                "accuracy": {"value": 0.9, **share},
            }
            for i, case in enumerate(cases)
        }
        self.results = {"across_seeds": []}

    def final(self, experiment):
        return self.rows[id(experiment)]


def test_the_comparison_and_its_means():
    cases = [case for case in prepare("lisa-2024", Asked()).cases if case.arm == "lisa"]
    lines = compare(preset("lisa-2024"), cases, FakeTable(cases))
    assert [line.cells()[2:6] for line in lines[:2]] == [
        ["34.9 [P]", "0.0 [10.0, 30.0]", "-", "90.0 [10.0, 30.0]"],
        ["36.6 [P]", "1.0 [10.0, 30.0]", "-", "90.0 [10.0, 30.0]"],
    ]
    assert lines[-1].cells()[1:6] == ["mean of these", "39.6 [P]", "2.0", "94.8 [P]", "90.0"]


def test_without_a_tuning_nothing_is_tried(tmp_path):
    made = prepare("booster-2025", Asked())
    assert tuned(PresetPlan(made.preset, made.cases, []), tmp_path, tmp_path) == (made.cases, [])
    assert list(tmp_path.iterdir()) == []
