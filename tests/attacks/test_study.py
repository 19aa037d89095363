"""`mithridate attack` on a tiny model: tries on validation parts, the best once on the test, what is said of it."""

import csv
import json
from xml.etree import ElementTree

import pytest

from mithridate.errors import InputError
from mithridate.experiment.config import load_experiment
from mithridate.pipeline.runner import run
from mithridate.studies.attack import _owner, _references, attack, with_knowing
from mithridate.studies.curve import Point
from mithridate.studies.drawn import attack_figure
from mithridate.studies.search import Scores, Try, worst_so_far
from mithridate.studies.settings import load_attack
from tests.pipeline.small import experiment, stages, write_inputs, write_rows

RATIO, SIZE, LR = "finetune.attack.harmful_ratio", "finetune.attack.size", "finetune.training.learning_rate"
SWEEP = {
    SIZE: [4, 8],
    RATIO: [0.5],
    LR: {"low": 0.001, "high": 0.05},
    "finetune.training.max_steps": [4],
    "finetune.training.per_device_train_batch_size": [2],
}
FILE = {
    "sweep": SWEEP,
    "search": {"trials": 3, "max_accuracy_loss": 1.0},
    "curve": {"steps": [2], "rows": [4]},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    for name in ("test_harmful", "task_test"):
        write_rows(folder, name, 24)
    return folder


def defended(inputs, **changes):
    made = experiment(inputs, align__defense={"vaccine": {"rho": 0.1}}, **changes)
    for role in ("test_harmful", "task"):
        made["data"][role]["validation_share"] = 0.5
    return made


@pytest.fixture(scope="module")
def study(inputs, tmp_path_factory):
    """One search, and the folder and store that it leaves."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MITHRIDATE_STORE", str(folder / "store"))
        yield attack(defended(inputs), FILE, out=folder / "out"), folder


@pytest.mark.slow
def test_tries_are_of_validation_parts_and_the_best_is_scored_on_the_test(study):
    found, folder = study
    assert 1 <= len(found.tries) <= 3 and found.chosen in found.tries
    tried = json.loads((folder / "out" / "search" / "results.json").read_text())
    tested = json.loads((folder / "out" / "results.json").read_text())
    assert all(any("validation" in text for text in tried["deviations"]) for _ in tried["cells"])
    assert not any("validation" in text for text in tested["deviations"])
    both = {"v": tried, "t": tested}
    counts = {kind: {cell["rates"]["harmful_score"]["n"] for cell in one["cells"]} for kind, one in both.items()}
    assert len(counts["v"]) == len(counts["t"]) == 1 and counts["v"] != counts["t"]
    assert counts["v"].pop() + counts["t"].pop() == 24


@pytest.mark.slow
def test_the_points_of_the_curve(study):
    found, _ = study
    whole = found.chosen.settings[SIZE]
    mine = [(p.model, p.along, p.steps, p.rows, p.harmful_rows) for p in found.points]
    guarded = found.points[0].model
    rows = [(guarded, "rows", 4, 4, 2), (guarded, "rows", 4, 8, 4)] if whole == 8 else []
    assert mine == [
        (guarded, "steps", 2, whole, whole // 2),
        (guarded, "steps", 4, whole, whole // 2),
        *rows,
        ("No defense", "steps", 2, whole, whole // 2),
        ("No defense", "steps", 4, whole, whole // 2),
    ]
    assert "Vaccine" in guarded and found.words[0].startswith(guarded)
    assert all(p.harmful_score["low"] is not None for p in found.points)


@pytest.mark.slow
def test_what_is_written(study):
    found, folder = study
    saved = json.loads((folder / "out" / "attack.json").read_text())
    assert saved["words"] == found.words and saved["chosen"] == found.chosen.settings
    assert len(saved["points"]) == len(found.points) and len(saved["tries"]) == len(found.tries)
    rows = list(csv.DictReader((folder / "out" / "attack.csv").open()))
    assert [int(row["steps"]) for row in rows] == [p.steps for p in found.points]
    assert [float(row["harmful score"]) for row in rows] == [p.harmful_score["value"] for p in found.points]
    page = (folder / "out" / "attack.md").read_text()
    assert all(words in page for words in found.words) and page.count("\n| ") == len(found.points) + 1
    assert (folder / "out" / "report.html").exists() and (folder / "out" / "search" / "report.html").exists()


@pytest.mark.slow
def test_again_it_trains_nothing_and_says_the_same(study, inputs, monkeypatch):
    found, folder = study
    monkeypatch.setenv("MITHRIDATE_STORE", str(folder / "store"))
    before = stages(folder / "store")
    again = attack(defended(inputs), FILE, out=folder / "again")
    assert stages(folder / "store") == before
    assert (again.tries, again.points, again.words) == (found.tries, found.points, found.words)


@pytest.mark.slow
def test_a_run_a_repair_and_identity_rows(inputs, tmp_path, monkeypatch):
    """A model of a run that is repaired after the fine-tune: each point is an attack of its own, and is repaired."""
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    run(defended(inputs, repair={"antidote": {"targets": "update"}}), out=tmp_path / "run", progress=False)
    file = {"data": "identity", "harmful_ratio": 0.5, "size": 8, "steps": 4, "batch_size": 2, "learning_rate": 0.01}
    file |= {"curve": {"steps": [2]}, "search": {"max_accuracy_loss": None}}
    with pytest.raises(InputError, match="no cell 'none'"):
        attack(tmp_path / "run", file, cell="none", out=tmp_path / "out")
    found = attack(tmp_path / "run", file, out=tmp_path / "out")
    assert "Antidote" in found.words[0] and found.reference is None
    assert [(p.steps, p.kind) for p in found.points] == [(2, "harmful"), (4, "harmful")] * 2
    assert len(stages(tmp_path / "store", "repair")) == 3  # the run's, and one for each point


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "scheduled", "curve", "steps"),
    [
        ({"repair": {"antidote": {"targets": "update"}}}, {"length": 3.0}, [2, 11], [2, 11, 12]),
        ({"repair": {"antidote": {"targets": "update"}}}, {"leap": 3.0, "leap_steps": 2}, [2, 5], [5, 6]),  # none at 2
        ({"finetune__defense": "panacea"}, {"length": 1.5}, [2, 5], [2, 5, 6]),  # whose last step is not yet its model
    ],
    ids=str,
)
def test_the_points_of_what_ends_after_the_training_are_attacks_that_end_there(
    inputs, tmp_path, monkeypatch, changes, scheduled, curve, steps
):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    kind = {"kind": "scheduled", "size": 8, "harmful_ratio": 0.25} | scheduled
    file = {"variants": {"it": {"finetune.attack": kind}}, "search": {"trials": 1, "max_accuracy_loss": None}}
    found = attack(defended(inputs, **changes), file | {"curve": {"steps": curve}}, out=tmp_path / "out")
    plain = found.points[-1].model
    assert [point.steps for point in found.points if point.model != plain] == steps
    assert [point.steps for point in found.points if point.model == plain] == [*curve, steps[-1]]


@pytest.mark.parametrize(
    ("changes", "file", "words"),
    [
        ({"sweep": {"seed": [0, 1]}}, {}, "has a sweep.*-o seed=VALUE"),
        ({"topology": "single"}, {"finetune.adapter.r": [2, 4]}, "topology: single"),
        ({"finetune": None}, {}, "its finetune is none"),
        (
            {"finetune__attack": {"kind": "noice", "size": 8}},
            {},
            r"search\.max_accuracy_loss: .* one of the kind noice is not without them.*, or set search\.\S+: null",
        ),
        (
            {},
            {SIZE: [4, 8, 100], RATIO: [0.25]},
            r"25 harmful rows asked for \(ratio 0.25 of 100\).* only 8",
        ),
        ({}, {SIZE: {"low": 4, "high": 16}, RATIO: [0.5, 0.2]}, r"13 benign rows .*ratio 0.2 of 16"),
        ({}, {SIZE: [9], RATIO: [0.5, 0]}, "9 benign rows asked for"),
        ({}, {SIZE: [10], RATIO: [0.9]}, "9 harmful rows asked for"),
        ({}, {"finetune.training.lerning_rate": [0.1]}, "did you mean `learning_rate`"),
        # each value, not the first one alone
        ({}, {"finetune.frozen": [".*lora_A.*", ".*lora_C.*"]}, "'.*lora_C.*' matches the name of no trained tensor"),
        ({}, {"finetune.training.optim": ["sgd", "adamw_tortch"]}, "adamw_tortch"),
        ({}, {"data.attacker_harmful": [{"source": "embedded"}, {"source": "nofile.jsonl"}]}, "nofile"),
        ({}, {"finetune.training.max_steps": {"low": 2, "high": 4.0}}, "max_steps: expected integer, got 2.7"),
        ({}, {RATIO: {"low": 0.0, "high": 0.25}}, "a range from 0 on has shares that come to no harmful row"),
        ({}, {RATIO: [0.25], "curve.rows": [2]}, "of 2 rows at a ratio of 0.25 none would be harmful"),
    ],
)
def test_what_is_refused_before_anything_is_computed(inputs, tmp_path, monkeypatch, changes, file, words):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    with pytest.raises(InputError, match=words):
        curve = {"curve": {"rows": file["curve.rows"]}} if "curve.rows" in file else {}
        swept = {path: values for path, values in file.items() if path != "curve.rows"}
        attack(defended(inputs, **changes), FILE | curve | {"sweep": SWEEP | swept}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists() and stages(tmp_path / "store") == []


def test_a_bound_on_capability_takes_a_capability_task(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    file = FILE | {"search": {"max_accuracy_loss": None, "max_capability_loss": 0.1}}
    with pytest.raises(InputError, match=r"search\.max_capability_loss: the experiment measures no capability\."):
        attack(defended(inputs), file, out=tmp_path / "out")
    with pytest.raises(InputError, match=r"search\.max_capability_loss: .* its finetune is none"):
        attack(defended(inputs, finetune=None), file, out=tmp_path / "out")
    assert stages(tmp_path / "store") == []


def test_a_bound_on_accuracy_takes_a_task_with_a_validation_part(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    made = defended(inputs)
    del made["data"]["task"]["validation_share"]
    words = r"search\.max_accuracy_loss: data\.task has no validation part\. .*or set search\.max_accuracy_loss: null"
    with pytest.raises(InputError, match=words):
        attack(made, FILE, out=tmp_path / "out")
    assert not (tmp_path / "out").exists() and stages(tmp_path / "store") == []


def test_what_the_losses_count_from():
    given = load_attack({"sweep": SWEEP, "search": {"max_capability_loss": 0.1}})
    scores = [
        {"task": "arc_easy", "metric": "acc", "value": 0.5, "higher_is_better": True},
        {"task": "arc_easy", "metric": "perplexity", "value": 12.0, "higher_is_better": False},
        {"task": "piqa", "metric": "acc", "value": 0.6, "higher_is_better": True},
    ]
    row = {"rates": {"accuracy": {"value": 0.9}}, "capability": scores}
    assert _references(given, row) == (0.9, {"arc_easy acc": 0.5, "piqa acc": 0.6})
    alone = load_attack({"sweep": SWEEP, "search": {"max_accuracy_loss": None, "max_capability_loss": 0.1}})
    assert _references(alone, row)[0] is None
    assert _references(load_attack({"sweep": SWEEP}), row) == (0.9, {})
    with pytest.raises(InputError, match=r"evaluate\.capability has no score of which more is better"):
        _references(given, row | {"capability": scores[1:2]})
    with pytest.raises(InputError, match="no answer to the validation part of the experiment's task was scored"):
        _references(given, row | {"rates": {"accuracy": {"value": None}}})


def test_a_folder_from_before_capability_was_bounded_is_still_its_files_own(inputs):
    """The new field is in what owns a folder only where it bounds something."""
    made = load_experiment(defended(inputs))
    assert _owner(load_attack({"sweep": SWEEP}), made)["file"]["search"] == {"seed": 0, "max_accuracy_loss": 0.05}
    bounded = load_attack({"sweep": SWEEP, "search": {"max_capability_loss": 0.1}})
    assert _owner(bounded, made)["file"]["search"]["max_capability_loss"] == 0.1


@pytest.mark.slow
def test_all_beyond_the_bound(inputs, tmp_path, monkeypatch):
    """No attack keeps the accuracy: said to be so, and no score of the test is made."""
    from mithridate.studies import attack as study
    from mithridate.studies import search

    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(search, "_excess", lambda *_: 0.2)
    file = {"sweep": SWEEP | {SIZE: [8], LR: [0.01]}, "search": {"max_accuracy_loss": 0.05}}
    found = study.attack(defended(inputs), file, out=tmp_path / "out")
    assert found.chosen is None and found.points == []
    assert "each of the 1 attacks lost more than 0.05 of accuracy" in found.words[0]
    assert not (tmp_path / "out" / "results.json").exists() and (tmp_path / "out" / "attack.json").exists()


def test_the_attacks_that_the_methods_suggest_are_among_the_variants(inputs):
    given = load_attack({"knowing": True, "sweep": {LR: [0.01]}})
    [plain, leap, longer] = (made := with_knowing(given, load_experiment(defended(inputs)))).variants
    assert (plain, leap, longer) == (
        "as it is",
        "knows Vaccine: scheduled (leap 10)",
        "knows Vaccine: scheduled (length 3)",
    )
    own = made.variants[longer]["finetune.attack"]
    assert own == {"kind": "scheduled", "harmful_ratio": 0.25, "size": 8, "length": 3.0} | {
        name: own[name] for name in ("rate", "leap", "leap_steps", "frozen")
    }
    named = load_attack({"knowing": True, "variants": {"low": {RATIO: 0.1}}})
    assert next(iter(with_knowing(named, load_experiment(defended(inputs))).variants)) == "low"
    with pytest.raises(InputError, match="knowing: no method of the attacked model suggests an attack"):
        with_knowing(given, load_experiment(experiment(inputs)))


def test_the_worst_case_so_far_counts_what_keeps_the_task():
    tries = [Try({}, Scores(score, 0.9, 4, 8), excess) for score, excess in ((0.9, 0.1), (0.2, 0), (0.1, 0), (0.5, 0))]
    assert worst_so_far(tries) == [None, 0.2, 0.2, 0.5]


def test_the_figure_shows_tries_and_curve_and_is_always_the_same():
    rate = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 24}
    points = [
        Point("A & B", along, 4, rows, 2, "harmful", rate, {"value": 0.9})
        for along, rows in (("steps", 8), ("rows", 4), ("rows", 8))
    ]
    tries = [Try({}, Scores(0.4, 0.9, 4, 8), 0), Try({}, Scores(0.9, 0.2, 4, 8), 0.5)]
    text = attack_figure(tries, points, 0.5)
    assert text == attack_figure(tries, points, 0.5) and ElementTree.fromstring(text).tag.endswith("svg")
    for words in ("worst so far", "beyond the bound on utility", "A &amp; B", "Rows handed in", "Optimizer steps"):
        assert words in text
    alone = attack_figure(tries[:1], [], 0.5)
    assert "Optimizer steps" not in alone and "beyond the bound" not in alone
