"""`template`: a paper's plain-text template in training, the very tokens in which its protocol asks the test."""

import json
from types import SimpleNamespace

import pytest

from mithridate.data.records import asked, training_dataset
from mithridate.data.tasks.sst2 import record
from mithridate.errors import InputError
from mithridate.experiment.config import load_experiment
from mithridate.experiment.roles import load_roles
from mithridate.generation.templates import TEMPLATES, prompt_tokens
from mithridate.pipeline.planning import _lengths
from mithridate.pipeline.runner import run
from mithridate.pipeline.stages import ExperimentStages
from mithridate.repairs.input_norms import token_ids
from tests.pipeline.small import experiment, stages, write_inputs
from tests.tiny import tiny_tokenizer

ROWS = [{"prompt": "How is lock 1 opened?", "response": "No 1."}, record({"sentence": "a fine film", "label": 1})]


@pytest.mark.parametrize("name", ["alpaca", "alpaca-newline"])
def test_a_row_is_the_question_as_the_test_asks_it_then_the_answer_and_its_end(name):
    tokenizer = tiny_tokenizer()
    made = training_dataset(ROWS, tokenizer, name)
    for row, given in zip(ROWS, made, strict=True):
        question = prompt_tokens(tokenizer, asked(row), TEMPLATES[name])
        answer = tokenizer(row["response"], add_special_tokens=False)["input_ids"]
        assert given["input_ids"] == [*question, *answer, tokenizer.eos_token_id]
        assert given["labels"] == [-100] * len(question) + [*answer, tokenizer.eos_token_id]
    assert "### Input:\na fine film\n\n### Response:" in tokenizer.decode(made[1]["input_ids"])
    assert token_ids(made, tokenizer) == list(made["input_ids"])
    assert _lengths(ROWS, tokenizer, name) == [
        (len(row["input_ids"]), sum(label >= 0 for label in row["labels"])) for row in made
    ]


def test_several_turns_have_no_place_in_it():
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]
    with pytest.raises(InputError, match="takes a single user turn"):
        training_dataset([{"messages": turns}], tiny_tokenizer(), "alpaca")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A base model: its tokenizer has no chat template."""
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    (folder / "model" / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder / "model")
    return folder


def test_every_stage_takes_it_and_needs_no_chat_template(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    made = experiment(
        inputs,
        template="alpaca",
        align__defense={"booster": {}},
        repair={"antidote": {"targets": "adapters"}},
        evaluate__protocol="hs/vaccine-2024",
    )
    del made["data"]["test_harmful"]
    run(made, out=tmp_path / "out", until="repair", progress=False)
    for name in ("align", "finetune", "repair"):
        [stage] = stages(tmp_path / "store", name)
        assert json.loads((tmp_path / "store" / stage / "stage.json").read_text())["config"]["template"] == "alpaca"


def test_a_base_model_is_refused_before_training_where_the_test_asks_in_a_chat_template(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    with pytest.raises(InputError, match="no chat template"):
        run(experiment(inputs, template="alpaca"), out=tmp_path / "out", progress=False)
    assert stages(tmp_path / "store") == []


def test_a_base_model_is_measured_offline_in_plain_text(inputs, tmp_path, monkeypatch):
    """No chat template, no judge's model: `hs/embedded-alpaca-v1`."""
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    made = experiment(inputs, template="alpaca", evaluate__protocol="hs/embedded-alpaca-v1")
    found = run(made, out=tmp_path / "out", progress=False)
    rates = found.results["cells"][-1]["rates"]
    assert found.results["protocol"] == "hs/embedded-alpaca-v1"
    assert rates["harmful_score"]["n"] == 8 and rates["accuracy"]["n"] == 8
    assert not any(each.startswith("template") for each in found.results["deviations"])


def test_it_is_in_the_keys_of_training_and_repair(inputs):
    def keys(template):
        loaded = load_experiment(experiment(inputs, template=template, repair={"antidote": {}}))
        shop = SimpleNamespace(
            base=SimpleNamespace(digest="base", remote_code=False), roles=load_roles(loaded.data), dtype="float32"
        )
        return [(stage.key, stage.config.get("template")) for stage in ExperimentStages(loaded, shop).stages()]

    chat, alpaca = keys("chat"), keys("alpaca")
    assert [template for _, template in chat + alpaca] == [None] * 3 + ["alpaca"] * 3
    assert not {key for key, _ in chat} & {key for key, _ in alpaca}
