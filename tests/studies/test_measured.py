"""What a bound needs is asked of the data, before anything is computed."""

from pathlib import Path

from mithridate.experiment.config import load_experiment
from mithridate.pipeline.experiments import stages_of
from mithridate.studies.measured import unmeasured
from tests.pipeline.small import experiment, write_inputs


def test_what_is_not_measured_is_said_with_what_to_do(tmp_path):
    inputs = write_inputs(tmp_path)
    made = experiment(inputs, finetune=None, evaluate={"part": "validation"})
    made["data"]["test_harmful"]["validation_share"] = 0.5

    def asked(**part):
        [chain] = stages_of([load_experiment(made | {"evaluate": part})], Path(), "test", False)
        return unmeasured(chain)

    assert asked(part="test") == {}
    lacking = asked(part="validation")
    assert lacking == {
        "accuracy": "data.task has no validation part. Give its validation_share",
        "benign_refusal": "data.test_benign has no validation part. Give its validation_share",
    }
    del made["data"]["task"], made["data"]["test_benign"]
    assert asked(part="test") == {
        "accuracy": "there is no data.task. Give one, with its validation_share",
        "benign_refusal": "there is no data.test_benign. Give one, with its validation_share",
    }
