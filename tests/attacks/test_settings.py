"""The attacker's file: what is refused, and what an attack changes of an experiment."""

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
    "data": "harmful",
    "harmful_ratio": 0.2,
    "size": 100,
    "learning_rate": 1e-3,
    "steps": 20,
    "batch_size": 4,
    "rank": "same",
}


def test_values_lists_and_ranges():
    given = load_attack({"steps": 20, "rank": [4, "full"], "learning_rate": {"low": 1e-5, "high": 1e-3}})
    assert given.searched == ["learning_rate", "rank"]
    assert given.learning_rate == Range(low=1e-5, high=1e-3) and given.rank == [4, "full"]
    assert given.fixed == {"data": "harmful", "harmful_ratio": 0.1, "size": 200, "steps": 20, "batch_size": 8}


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ({}, "steps, epochs: give one of the two"),
        ({"steps": 1, "epochs": 1.0}, "steps, epochs: give one of the two"),
        ({"steps": 0}, "steps: expected at least 1 step, got 0"),
        ({"steps": 5, "harmful_ratio": [0.1, 1.5]}, "harmful_ratio: expected a fraction from 0 to 1, got 1.5"),
        ({"steps": 5, "learning_rate": {"low": 1.0, "high": 1.0}}, "low 1 is not below high 1"),
        ({"steps": 5, "learning_rate": 0.0}, "expected a number above 0"),
        ({"steps": 5, "rank": []}, "expected different values"),
        ({"steps": 5, "size": [8, 8]}, "expected different values"),
        ({"steps": 5, "data": "poison"}, "data: expected"),
        ({"steps": 5, "lerning_rate": 0.1}, "did you mean `learning_rate`"),
        ({"steps": 5, "search": {"trails": 3}}, "did you mean `trials`"),
        ({"steps": 5, "search": {"trials": 0}}, "search.trials: expected at least 1"),
        ({"steps": 5, "search": {"max_accuracy_loss": 2.0}}, "search.max_accuracy_loss"),
        ({"steps": 5, "curve": {"steps": [3, 2]}}, "curve.steps: expected ascending"),
        ({"steps": 5, "curve": {"threshold": 1.0}}, "curve.threshold"),
    ],
)
def test_what_is_refused(file, words):
    with pytest.raises(InputError, match=words):
        load_attack(file)


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
    in_epochs = attacked(experiment, {**CHOSEN, "steps": None, "epochs": 2.0}).finetune.training
    assert in_epochs["num_train_epochs"] == 2.0 and "max_steps" not in in_epochs


def test_kinds_of_data():
    experiment = load_experiment(BASE)
    benign = attacked(experiment, {**CHOSEN, "data": "benign"})
    assert benign.finetune.attack.harmful_ratio == 0 and benign.data == experiment.data
    shifted = attacked(experiment, {**CHOSEN, "data": "identity"})
    [source] = shifted.data["attacker_harmful"]
    assert (source.source, source.name) == ("embedded", "identity")
    assert shifted.finetune.attack.harmful_ratio == 0.2


def test_ranks():
    experiment = load_experiment(BASE)
    assert attacked(experiment, CHOSEN).finetune.adapter is None
    assert attacked(experiment, {**CHOSEN, "rank": "full"}).finetune.adapter == "full"
    smaller = attacked(experiment, {**CHOSEN, "rank": 4}).finetune.adapter
    assert smaller == experiment.adapter | {"r": 4, "lora_alpha": 8}
    with pytest.raises(InputError, match=r"rank 4: topology: single"):
        attacked(load_experiment(BASE | {"topology": "single"}), {**CHOSEN, "rank": 4})


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
    assert attacked(loaded, {**given.fixed, "harmful_ratio": 0.3, "learning_rate": 1e-3}).finetune.attack.size == 100


def test_a_search_that_could_propose_no_harmful_row_is_refused():
    given = {"harmful_ratio": {"low": 0.01, "high": 0.2}, "size": {"low": 10, "high": 200}, "steps": 5}
    with pytest.raises(InputError, match=r"of 10 rows at a ratio of 0\.01 none would be harmful"):
        load_attack(given)
    load_attack(given | {"size": {"low": 60, "high": 200}})
    load_attack(given | {"data": "benign"})
