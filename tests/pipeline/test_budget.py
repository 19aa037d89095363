"""A repair within a budget of accuracy: which strength is taken, what is kept of the tries, what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file

from mithridate import run
from mithridate.cli import main
from mithridate.errors import InputError, MithridateError
from mithridate.experiment.config import canonical, load_experiment, with_defaults
from mithridate.methods import registry
from mithridate.pipeline import budgets
from mithridate.pipeline.cell_export import export_cell
from mithridate.pipeline.experiments import undefended
from mithridate.pipeline.planning import of_experiment
from mithridate.results.folder import RunFolder
from mithridate.results.release.evidence import _misstated
from tests.pipeline import other_methods
from tests.pipeline.small import experiment, stages, write_inputs, write_rows

HALVES = [0.8, 0.4, 0.2, 0.1, 0.05, 0.025]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    write_rows(folder, "task_test", 48)
    return folder


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def asked(inputs, budget, **changes):
    short = {"align__training__max_steps": 1, "finetune__training__max_steps": 1, "repair": {"wiseft": {"a": 0.8}}}
    made = experiment(inputs, **short | changes, budget=budget)
    made["data"]["task"]["validation_share"] = 0.5
    return made


@pytest.fixture
def losing(monkeypatch):
    """Makes the repaired model's answers wrong as often as the strength says; the unrepaired one's are right."""
    seen = []

    def rig(lost):
        from mithridate import evaluation

        real, around = evaluation.answers, budgets.repair_within

        def within(chain, budget, name, repair, repaired, work):
            def noting(one):
                seen.append(getattr(one, one.strength))
                return repaired(one)

            return around(chain, budget, name, repair, noting, work)

        def answers(generator, sets, *given, **named):
            rows = real(generator, sets, *given, **named)
            if list(sets) == ["task:sentiment"]:  # a try
                wrong = lost[seen[-1]] if seen else 0
                rows = [{**row, "correct": number >= wrong} for number, row in enumerate(rows)]
            return rows

        monkeypatch.setattr(evaluation, "answers", answers)
        monkeypatch.setattr("mithridate.pipeline.building.repair_within", within)
        return seen

    return rig


def test_the_strongest_setting_within_the_budget_is_taken(inputs, store, tmp_path, losing):
    """Of 24 or so prompts: 12 lost are too many, 1 lost is within 0.3, and what is weaker is not tried."""
    seen = losing(dict.fromkeys(HALVES, 12) | {0.2: 1, 0.1: 0})
    finished = run(asked(inputs, {"accuracy": 0.3}), out=tmp_path / "out", until="evaluate", progress=False)
    assert seen == HALVES[:3]
    cell = finished.results["cells"][-1]
    assert cell["settings"]["wiseft"] == {"a": {"accuracy": 0.3, "strengths": HALVES}}
    found = cell["budget"]
    assert (found["taken"], found["strength"], found["unrepaired"]) == (0.2, "a", 1.0)
    assert [one["fits"] for one in found["tries"]] == [False, False, True]
    assert [one["a"] for one in found["tries"]] == HALVES[:3]
    n = found["tries"][0]["loss"]["n"]
    assert found["tries"][2]["loss"]["difference"] == pytest.approx(1 / n) and found["tries"][2]["loss"]["high"] <= 0.3
    assert all(one["loss"]["high"] > 0.3 for one in found["tries"][:2])
    [folder] = stages(store, "repair")
    assert sorted(path.name for path in (store / folder / "tries").iterdir()) == [
        *("1.parquet", "2.parquet", "3.parquet", "unrepaired.parquet")
    ]
    assert json.loads((store / folder / "stage.json").read_text())["data"].keys() == {"task_validation"}
    # what is kept is the repair at that strength
    assert same_weights(store / folder, repaired_at(inputs, tmp_path, 0.2))
    assert finished.results["notes"] == []
    assert "; a taken: 0.2" in (tmp_path / "out" / "report.html").read_text()
    assert _misstated(cell, RunFolder(tmp_path / "out").recipe(cell["id"]), finished.results["model"]) is None


def repaired_at(inputs, tmp_path, a):
    """The artefact of the same repair without a budget."""
    run(asked(inputs, None, repair={"wiseft": {"a": a}}), out=tmp_path / "at", until="repair", progress=False)
    [folder] = [path for path in (tmp_path / "store").glob("repair-*") if not (path / budgets.FILE).exists()]
    return folder


def same_weights(one, other):
    a, b = (load_file(folder / "model" / "delta.safetensors") for folder in (one, other))
    return a.keys() == b.keys() and len(a) > 0 and all(torch.equal(a[name], b[name]) for name in a)


def test_where_nothing_fits_the_model_is_left_unrepaired_and_the_command_fails(
    inputs, store, tmp_path, losing, capsys
):
    losing(dict.fromkeys(HALVES, 12))
    made = asked(inputs, {"accuracy": 0.3})
    file = tmp_path / "budget.yaml"
    file.write_text(json.dumps(made))
    assert main(["repair", str(file), "--out", str(tmp_path / "repair")]) == 1
    said = capsys.readouterr().err
    assert "wiseft, seed 0: none of 6 strengths stays within the budget of 0.3" in said
    assert said.count("too much") == 6
    finished = run(made, out=tmp_path / "out", progress=False)
    *_, before, after = finished.results["cells"]
    assert after["budget"]["taken"] is None and len(after["budget"]["tries"]) == 6
    assert any("left unrepaired" in note for note in finished.results["notes"])
    assert "left unrepaired" in (tmp_path / "out" / "report.html").read_text()
    assert after["repair"] == "wiseft" and after["rates"] == before["rates"]
    plain = [export_cell(tmp_path / "out", cell["id"], tmp_path / cell["id"]) for cell in (before, after)]
    one, other = (load_file(folder / "model.safetensors") for folder in plain)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_too_few_prompts_for_so_small_a_budget_are_said(inputs, tmp_path, losing):
    losing(dict.fromkeys(HALVES, 0))
    with pytest.raises(MithridateError, match=r"cannot show less than 0\.1\d* even where every answer stays the same"):
        run(asked(inputs, {"accuracy": 0.02}), out=tmp_path / "out", until="repair", progress=False)


def test_seeds_that_took_other_strengths_are_one_arm(inputs, tmp_path, losing):
    seen = losing(dict.fromkeys(HALVES, 12) | {0.2: 0, 0.1: 0})
    made = asked(inputs, {"accuracy": 0.3, "strengths": [0.4, 0.2]}, sweep={"seed": [0, 1]})
    finished = run(made, out=tmp_path / "out", until="evaluate", progress=False)
    assert seen == [0.4, 0.2, 0.4, 0.2]
    assert [len(group["cells"]) for group in finished.results["across_seeds"] if group["repair"] == "wiseft"] == [2]


def test_the_budget_is_in_the_key_of_the_repair_alone(inputs, store, tmp_path, losing):
    losing(dict.fromkeys(HALVES, 0))
    for number, budget in enumerate(({"accuracy": 0.3}, {"accuracy": 0.4}, {"accuracy": 0.4, "strengths": [0.8]})):
        run(asked(inputs, budget), out=tmp_path / str(number), until="repair", progress=False)
    assert (len(stages(store, "finetune")), len(stages(store, "repair"))) == (1, 3)
    made = asked(inputs, {"accuracy": 0.4, "strengths": [0.8]})
    made["data"]["task"]["validation_share"] = 0.4  # other validation prompts are another choice
    run(made, out=tmp_path / "other", until="repair", progress=False)
    assert len(stages(store, "repair")) == 4


def test_strengths_are_tried_from_the_strongest_down(inputs):
    made = with_defaults(load_experiment(asked(inputs, {"accuracy": 0.3, "strengths": [0.1, 0.7, 0.4]})))
    assert made.budget.strengths == [0.7, 0.4, 0.1] and made.repair["wiseft"]["a"] == 0.7
    assert with_defaults(made) == made
    assert with_defaults(load_experiment(asked(inputs, {"accuracy": 0.3}))).budget.strengths == HALVES
    assert undefended(made).budget is None
    assert "budget" not in canonical(load_experiment(asked(inputs, None)))


@pytest.mark.parametrize(
    ("budget", "changes", "said"),
    [
        ({"accuracy": 0.1}, {"repair": "none"}, "budget: there is no repair after the fine-tune"),
        ({"accuracy": 0.1}, {"repair": {"lox": {"coef": 0.5}}}, "budget: there is no repair after the fine-tune"),
        ({"accuracy": 0.1}, {"repair": "halve"}, "budget: repair.halve has no strength"),
        ({"accuracy": 2}, {}, "budget.accuracy: expected a fraction from 0 to 1, got 2"),
        ({}, {}, "budget.accuracy: missing"),
        ({"accuracy": 0.1, "strength": 1}, {}, "budget.strength: no such field; did you mean `strengths`?"),
        ({"accuracy": 0.1, "strengths": [0.5, 1.5]}, {}, "budget.strengths: 1.5: WiSEFT: a must be a number"),
        ({"accuracy": 0.1, "strengths": [0.5, 0.5]}, {}, "budget.strengths: expected different values"),
        ({"accuracy": 0.1, "strengths": [0.5, 0]}, {}, "budget.strengths: 0 changes nothing"),
        ({"accuracy": 0.1}, {"repair": {"wiseft": {"a": 0}}}, "repair.wiseft.a: 0 changes nothing"),
        (
            {"accuracy": 0.1},
            {"evaluate": {"generator": "vllm"}},
            "budget: models that are only tried are answered for",
        ),
    ],
)
def test_what_cannot_be_held_is_refused_before_any_compute(
    inputs, store, tmp_path, monkeypatch, budget, changes, said
):
    other_methods.declare(monkeypatch)
    try:
        with pytest.raises(InputError) as refused:
            run(asked(inputs, budget, **changes), out=tmp_path / "out", progress=False)
    finally:
        registry.installed.cache_clear()
    assert said in str(refused.value)
    assert stages(store) == []


def test_a_budget_needs_a_task_with_a_validation_part(inputs, store, tmp_path):
    made = asked(inputs, {"accuracy": 0.1})
    del made["data"]["task"]["validation_share"]
    with pytest.raises(InputError, match=r"budget\.accuracy: data.task has no validation part; set validation_share"):
        run(made, out=tmp_path / "out", progress=False)
    made = asked(inputs, {"accuracy": 0.1}, finetune=None, repair={"antidote": {"targets": "merged"}})
    del made["data"]["task"]
    with pytest.raises(InputError, match=r"budget\.accuracy: the experiment has no data.task"):
        run(made, out=tmp_path / "out", progress=False)
    assert stages(store) == []


def test_the_estimate_counts_every_try(inputs):
    def flops(budget):
        made = load_experiment(asked(inputs, budget, repair={"antidote": {"ratio": 0.4, "targets": "merged"}}))
        return of_experiment(made, inputs, gpu=False)[-1].flops

    once, four, eight = (
        flops(budget)
        for budget in (None, *({"accuracy": 0.1, "strengths": [i / 10 for i in range(1, n)]} for n in (4, 8)))
    )
    answered = (eight - four) // 4 - once
    assert answered > 0 and four == pytest.approx(3 * once + 4 * answered, rel=1e-6)
