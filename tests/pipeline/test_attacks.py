"""Attacks in whole runs: their rows where these need the model, their own length, and another adapter than the one
that a defense has seen."""

import json

import pytest
from safetensors.torch import load_file

from mithridate import run
from mithridate.errors import InputError
from mithridate.experiment.config import canonical, load_experiment
from mithridate.pipeline.experiments import stages_of
from tests.pipeline.small import experiment, stages, write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def test_benign_outliers_of_an_adapter_model_are_rows_of_their_own_stage(inputs, tmp_path, store):
    attack = {"kind": "benignoutliers", "size": 3}
    asked = experiment(inputs, topology="single", align__training__max_steps=2, finetune__attack=attack)
    run(asked, out=tmp_path / "out", until="finetune", progress=False)
    [made] = stages(store, "attack-rows")
    rows = json.loads((store / made / "rows.json").read_text())
    assert len({row["prompt"] for row in rows}) == 3 and all(row["prompt"].startswith("Is film") for row in rows)
    [tuned] = stages(store, "finetune")
    trained = json.loads((store / tuned / "stage.json").read_text())["trained"]
    assert trained == {"rows": 3, "harmful_rows": 3, "steps": 4, "dropped": 0}


@pytest.mark.parametrize(
    ("attack", "changes", "said"),
    [
        (
            {"size": 100},
            {},
            r"finetune\.attack: BenignOutliers: 100 rows asked for, but there are only \d+ with an answer",
        ),
        (
            {"size": 2},
            {"evaluate__resistance": [1, 5], "finetune__training": {"num_train_epochs": 2, "learning_rate": 0.01}},
            r"evaluate\.resistance: expected steps below \d, the attack's last, got 5",
        ),
    ],
    ids=["rows", "steps"],
)
def test_what_needs_no_model_is_said_before_there_is_one(inputs, tmp_path, store, attack, changes, said):
    asked = experiment(inputs, finetune__attack={"kind": "benignoutliers"} | attack, **changes)
    with pytest.raises(InputError, match=said):
        run(asked, out=tmp_path / "out", progress=False)
    assert not stages(store)


def test_retain_then_forget_is_one_pass_whatever_the_training_says(inputs, tmp_path, store):
    attack = {"kind": "retainthenforget", "size": 6}
    asked = experiment(inputs, align="none", finetune__attack=attack, finetune__training__max_steps=1)
    run(asked, out=tmp_path / "out", until="finetune", progress=False)
    [tuned] = stages(store, "finetune")
    trained = json.loads((store / tuned / "stage.json").read_text())["trained"]
    assert trained == {"rows": 6, "harmful_rows": 2, "steps": 3, "dropped": 0}


SHUFFLED = {"kind": "harmful", "size": 6, "harmful_ratio": 1 / 3}
IN_ORDER = {"kind": "retainthenforget", "size": 6}
HALF = IN_ORDER | {"harmful_ratio": 0.5}


@pytest.mark.parametrize(
    ("finetune", "reached"),
    [
        ({"attack": SHUFFLED}, {"rows": 4, "of": 6, "harmful_rows": None}),
        ({"attack": SHUFFLED, "training": {"max_steps": 3}}, None),
        ({"attack": SHUFFLED, "training": {"dataloader_drop_last": True, "max_steps": 3}}, None),
        ({"attack": SHUFFLED, "defense": {"safetymix": {"share": 0.5}}}, {"rows": 4, "of": 12, "harmful_rows": None}),
        ({"attack": SHUFFLED | {"kind": "scheduled", "leap": 2.0}, "training": {"max_steps": 3}}, None),
        ({"attack": IN_ORDER}, None),
        ({"attack": IN_ORDER, "defense": {"safetymix": {"share": 0.5}}}, None),
        ({"attack": IN_ORDER, "defense": {"fewersteps": {"share": 0.5}}}, {"rows": 4, "of": 6, "harmful_rows": 0}),
        ({"attack": HALF, "defense": {"fewersteps": {"share": 0.5}}}, {"rows": 4, "of": 6, "harmful_rows": 1}),
    ],
)
def test_where_steps_end_before_the_rows_do_the_record_says_how_many_were_reached(
    inputs, tmp_path, store, finetune, reached
):
    asked = experiment(inputs, align="none")
    training = asked["finetune"]["training"] | {"max_steps": 2} | finetune.get("training", {})
    asked["finetune"] |= finetune | {"training": training}
    run(asked, out=tmp_path / "out", until="finetune", progress=False)
    [tuned] = stages(store, "finetune")
    trained = json.loads((store / tuned / "stage.json").read_text())["trained"]
    assert trained.get("reached") == reached
    assert (trained["rows"], trained["harmful_rows"]) == (
        6,
        3 if finetune["attack"].get("harmful_ratio") == 0.5 else 2,
    )


def test_what_a_defense_does_at_the_end_it_does_once_after_the_last_of_several_trainings(inputs, tmp_path, store):
    """At a learning rate of next to nothing the weights are moved by the perturbation alone, whose length is rho."""
    asked = experiment(
        inputs,
        align="none",
        finetune__attack=SHUFFLED | {"kind": "scheduled", "leap": 2.0},
        finetune__training={"learning_rate": 1e-12, "max_steps": 2, "per_device_train_batch_size": 2},
        finetune__defense={"panacea": {"rho": 0.4, "learned": False}},
    )
    run(asked, out=tmp_path / "out", until="finetune", progress=False)
    [tuned] = stages(store, "finetune")
    first, last = (load_file(store / tuned / f"phase-{i}/model/adapter_model.safetensors") for i in (1, 2))
    assert all(weight.abs().max() < 1e-9 for weight in factors(first, "B").values())
    moved = sum((last[name] - weight).double().square().sum() for name, weight in first.items()).sqrt()
    assert float(moved) == pytest.approx(0.4, abs=1e-4)


def test_a_curve_over_a_pass_whose_length_a_defense_decides_is_refused_first(inputs, tmp_path, store):
    attack = {"kind": "retainthenforget", "size": 6}
    for defense in ({"safetymix": {"share": 0.5}}, {"filter": {}}):
        asked = experiment(inputs, finetune__attack=attack, finetune__defense=defense, evaluate={"resistance": [1]})
        with pytest.raises(InputError, match=r"evaluate\.resistance: finetune\.attack: phase 1: one pass"):
            run(asked, out=tmp_path / "out", progress=False)
    assert not stages(store)


ONE = {"r": 1, "lora_alpha": 2}


def tuned(inputs, tmp_path, store, steps, **finetune):
    """The weights that a fine-tune of so many steps leaves, and its stage's configuration."""
    before = set(stages(store, "finetune"))
    asked = experiment(inputs, align="none", finetune__training__max_steps=steps)
    asked["finetune"] |= finetune
    run(asked, out=tmp_path / f"out-{len(before)}", until="finetune", progress=False)
    [made] = set(stages(store, "finetune")) - before
    folder = store / made
    return load_file(folder / "model" / "adapter_model.safetensors"), json.loads((folder / "stage.json").read_text())


def factors(weights, letter):
    found = {name: weight for name, weight in weights.items() if f"lora_{letter}" in name}
    assert found
    return found


def test_frozen_factors_keep_their_start_and_are_in_the_key(inputs, tmp_path, store):
    asked = {"adapter": ONE, "frozen": ".*lora_A.*"}
    (one, stage), (two, _) = (tuned(inputs, tmp_path, store, steps, **asked) for steps in (1, 3))
    free, plain = tuned(inputs, tmp_path, store, 3, adapter=ONE)
    assert stage["config"]["frozen"] == [".*lora_A.*"] and "frozen" not in plain["config"]
    first = factors(one, "A")
    assert all(weight.shape[0] == 1 for weight in first.values())  # the rank
    assert all((weight == factors(two, "A")[name]).all() for name, weight in first.items())
    assert any((weight != factors(free, "A")[name]).any() for name, weight in first.items())
    assert any((weight != factors(two, "B")[name]).any() for name, weight in factors(one, "B").items())


def test_the_field_is_no_part_of_files_that_do_not_have_it(inputs):
    plain = canonical(load_experiment(experiment(inputs)))
    assert "frozen" not in plain["finetune"]
    made = canonical(load_experiment(experiment(inputs, finetune__frozen=[".*lora_A.*"])))
    assert made["finetune"].pop("frozen") == [".*lora_A.*"] and made == plain
    assert load_experiment(made | {"finetune": made["finetune"] | {"frozen": ["x"]}}).finetune.frozen == ["x"]


@pytest.mark.parametrize(
    ("frozen", "error"),
    [
        ("lora_(", r"finetune\.frozen: 'lora_\(' is no regular expression"),
        ("lora_C", "frozen: 'lora_C' matches the name"),
    ],
)
def test_patterns_that_say_nothing_are_refused_before_compute(inputs, tmp_path, store, frozen, error):
    with pytest.raises(InputError, match=error):
        run(experiment(inputs, finetune__frozen=frozen), out=tmp_path / "out", progress=False)
    assert not stages(store)


@pytest.mark.parametrize(
    ("attack", "defense", "revised"),
    [
        ({"kind": "retainthenforget", "size": 8, "harmful_ratio": 0.25}, {"safetymix": {"share": 0.25}}, 1),
        ({"kind": "retainthenforget", "size": 8, "harmful_ratio": 0.25}, {"kl": {"lam": 0.1}}, None),
        ({"harmful_ratio": 0.25, "size": 8}, {"safetymix": {"share": 0.25}}, None),
        ({"kind": "scheduled", "leap": 2.0}, {"panacea": {"rho": 0.4, "learned": False}}, 1),
        ({"kind": "scheduled", "length": 2.0}, {"panacea": {"rho": 0.4, "learned": False}}, None),
    ],
)
def test_what_a_defense_once_made_otherwise_has_another_key(inputs, attack, defense, revised):
    asked = load_experiment(experiment(inputs, finetune__attack=attack, finetune__defense=defense))
    [chain] = stages_of([asked], inputs, "e", False)
    assert chain.finetune.config.get("revised") == revised
