"""The attacker's file: what is refused, and what an attack changes of an experiment."""

import json
from pathlib import Path

import pytest

from mithridate.errors import InputError
from mithridate.experiment.config import load_experiment
from mithridate.experiment.roles import load_roles
from mithridate.studies.settings import Range, attacked, load_attack
from tests.attacks import toy

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "attacks").glob("*.yaml"))
BASE = {
    "model": "smollm2-135m",
    "data": {role: {"source": "embedded"} for role in ("alignment", "attacker_harmful", "test_harmful")}
    | {"task": {"source": "embedded", "name": "sentiment"}},
    "align": {"training": {"max_steps": 4}},
    "finetune": {
        "attack": {"harmful_ratio": 0.1, "size": 200},
        "defense": {"lisa": {"align_steps": 1, "finetune_steps": 1}},
        "training": {"max_steps": 30, "lr_scheduler_type": "constant"},
    },
    "evaluate": {"resistance": [10]},
}
CHOSEN = {
    "finetune.attack.harmful_ratio": 0.2,
    "finetune.attack.size": 100,
    "finetune.training.learning_rate": 1e-3,
    "finetune.training.max_steps": 20,
    "finetune.training.per_device_train_batch_size": 4,
}
RATIO, SIZE, STEPS = "finetune.attack.harmful_ratio", "finetune.attack.size", "finetune.training.max_steps"
LR, EPOCHS = "finetune.training.learning_rate", "finetune.training.num_train_epochs"


def test_values_lists_and_ranges():
    given = load_attack({"sweep": {STEPS: [20], LR: {"low": 1e-5, "high": 1e-3}, RATIO: [0.1, 0.2]}})
    assert given.searched == [LR, RATIO] and given.sweep[LR] == Range(low=1e-5, high=1e-3)
    assert given.attack({LR: 1e-4, RATIO: 0.2}) == {STEPS: 20, LR: 1e-4, RATIO: 0.2}


@pytest.mark.parametrize(
    ("low", "high", "log"), [(1e-5, 1e-4, True), (1e-5, 9e-5, False), (0, 5, False), (5, 50, True)]
)
def test_a_range_of_a_power_of_ten_is_on_a_log_scale(low, high, log):
    assert Range(low=low, high=high).log == log


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ({}, "sweep, variants: name what the attacker chooses"),
        ({"sweep": {STEPS: [1], EPOCHS: [1.0]}}, "give one of the two"),
        ({"sweep": {LR: {"low": 1.0, "high": 1.0}}}, "low 1 is not below high 1"),
        ({"sweep": {LR: {"low": 1.0, "hihg": 1.0}}}, f"sweep.{LR}"),
        ({"sweep": {STEPS: 5}}, f"sweep.{STEPS}: expected list or fields, got 5"),
        ({"sweep": {STEPS: []}}, "expected different values"),
        ({"sweep": {SIZE: [8, 8]}}, "expected different values"),
        ({"sweep": {LR: [1, 1.0]}}, "expected different values"),
        ({"sweep": {"align.training.max_steps": [8]}}, "sweep.align.training.max_steps: not the attacker's to choose"),
        ({"variants": {"a": {"repair": "none"}}}, "variants.a.repair: not the attacker's to choose"),
        ({"swep": {STEPS: [5]}}, "did you mean `sweep`"),
        ({"sweep": {STEPS: [5]}, "search": {"trails": 3}}, "did you mean `trials`"),
        ({"sweep": {STEPS: [5]}, "search": {"trials": 0}}, "search.trials: expected at least 1"),
        ({"sweep": {STEPS: [5]}, "search": {"max_accuracy_loss": 2.0}}, "search.max_accuracy_loss"),
        (
            {"sweep": {STEPS: [5]}, "search": {"max_capability_loss": -0.1}},
            "search.max_capability_loss: expected a frac",
        ),
        ({"sweep": {STEPS: [5]}, "curve": {"steps": [3, 2]}}, "curve.steps: expected ascending"),
        ({"sweep": {STEPS: [5]}, "curve": {"threshold": 1.0}}, "curve.threshold"),
        ({"sweep": {STEPS: [5]}, "steps": 5}, f"so must steps: write `{STEPS}`"),
        ({"harmful_ratio": 0.1}, "steps, epochs: give one of the two"),
        ({"steps": 5, "data": "poison"}, "data: expected harmful, identity, benign, got poison"),
        ({"steps": 5, "data": "benig"}, "did you mean `benign`"),
        ({"steps": 5, "rank": 0}, "rank: expected same, full or a number from 1 up, got 0"),
    ],
)
def test_what_is_refused(file, words):
    with pytest.raises(InputError, match=words):
        load_attack(file)


def test_the_old_form_works_and_a_line_says_how_it_is_written_now(caplog):
    old = {"steps": 20, "data": ["harmful", "identity"], "rank": ["same", 4, "full"], "harmful_ratio": [0.1, 0.2]}
    given = load_attack(old | {"learning_rate": {"low": 1e-5, "high": 1e-3}, "curve": {"steps": [3]}})
    assert given.sweep == {
        RATIO: [0.1, 0.2],
        SIZE: [200],
        LR: Range(low=1e-5, high=1e-3),
        "finetune.training.per_device_train_batch_size": [8],
        STEPS: [20],
    }
    assert [*given.variants] == [
        *("harmful", "harmful, rank 4", "harmful, rank full"),
        *("identity", "identity, rank 4", "identity, rank full"),
    ]
    persona = {"data.attacker_harmful": {"source": "embedded", "name": "identity"}}
    assert given.variants["identity, rank 4"] == persona | {"finetune.adapter.r": 4}
    assert given.variants["harmful"] == {} and given.curve.steps == [3]
    [line] = [record.getMessage() for record in caplog.records]
    assert "an old form; write " in line
    written = json.loads(line.partition("write ")[2])
    assert load_attack(written | {"curve": {"steps": [3]}}) == given
    assert load_attack({"steps": 20, "data": "harmful"}).variants == {}


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="cannot be read as an attack's settings"):
        load_attack(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="expected fields"):
        load_attack(tmp_path / "list.yaml")


def test_an_attack_changes_what_the_user_hands_in_and_nothing_of_the_providers():
    experiment = load_experiment(BASE)
    made = attacked(experiment, CHOSEN)
    assert (made.align, made.repair, made.adapter) == (experiment.align, experiment.repair, experiment.adapter)
    assert made.finetune.defense == experiment.finetune.defense
    assert made.finetune.training == {
        "max_steps": 20,
        "lr_scheduler_type": "constant",
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
    }
    assert vars(made.finetune.attack) == {"harmful_ratio": 0.2, "size": 100}
    assert (made.evaluate.part, made.evaluate.resistance) == ("validation", [])
    assert experiment.evaluate.part == "test", "the experiment itself is left as it is"
    in_epochs = attacked(experiment, {RATIO: 0.2, EPOCHS: 2.0}).finetune.training
    assert in_epochs["num_train_epochs"] == 2.0 and "max_steps" not in in_epochs


def test_other_data_and_another_kind():
    experiment = load_experiment(BASE)
    benign = attacked(experiment, CHOSEN | {RATIO: 0})
    assert benign.finetune.attack.harmful_ratio == 0 and benign.data == experiment.data
    shifted = attacked(experiment, CHOSEN | {"data.attacker_harmful": {"source": "embedded", "name": "identity"}})
    [source] = shifted.data["attacker_harmful"]
    assert (source.source, source.name) == ("embedded", "identity")
    other = attacked(experiment, {"finetune.attack": {"kind": "mine", "times": 3}})
    assert other.finetune.attack == {"kind": "mine", "times": 3}


def test_adapters():
    experiment = load_experiment(BASE)
    assert attacked(experiment, CHOSEN).finetune.adapter is None
    assert attacked(experiment, CHOSEN | {"finetune.adapter": "full"}).finetune.adapter == "full"
    smaller = attacked(experiment, CHOSEN | {"finetune.adapter.r": 4}).finetune.adapter
    assert smaller == experiment.adapter | {"r": 4, "lora_alpha": 8}
    louder = attacked(experiment, CHOSEN | {"finetune.adapter.r": 4, "finetune.adapter.lora_alpha": 64})
    assert louder.finetune.adapter == experiment.adapter | {"r": 4, "lora_alpha": 64}
    with pytest.raises(InputError, match=r"finetune.adapter: topology: single"):
        attacked(load_experiment(BASE | {"topology": "single"}), CHOSEN | {"finetune.adapter.r": 4})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({RATIO: 1.5}, "finetune.attack.harmful_ratio: expected a fraction from 0 to 1, got 1.5"),
        ({"finetune.attack.harmful_raito": 0.5}, "did you mean `harmful_ratio`"),
        ({SIZE: 0}, "at least 1 row"),
        ({RATIO: 0.01, SIZE: 10}, r"of 10 rows at a ratio of 0\.01 none would be harmful"),
    ],
)
def test_values_that_no_experiment_has(values, words):
    with pytest.raises(InputError, match=words):
        attacked(load_experiment(BASE), values)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example(path):
    """An example is named after the experiment that it attacks, and searches something of it."""
    given = load_attack(path)
    assert given.searched and load_experiment(path.parents[1] / path.name)


def test_the_toy_of_the_page_is_valid(tmp_path):
    """docs/attacks.md shows what `mithridate attack` makes of it."""
    toy.write(tmp_path)
    loaded, given = load_experiment(tmp_path / "lisa.yaml"), load_attack(tmp_path / "attack.yaml")
    roles = load_roles(loaded.data)
    assert len(roles.test_harmful) + len(roles.test_harmful_validation) == 80
    tried = given.attack({RATIO: 0.2, LR: 1e-3})
    assert attacked(loaded, given.values(tried)).finetune.attack.size == 100


def test_the_ends_of_what_decides_the_rows_are_looked_at():
    given = load_attack({"sweep": {RATIO: [0.1, 0.2], SIZE: {"low": 10, "high": 200}, LR: [1e-4, 1e-3]}})
    assert [*given.extremes()] == [{RATIO: r, SIZE: s, LR: 1e-4} for r in (0.1, 0.2) for s in (10, 200)]
