"""The experiment's system turn: the same in training, in the attack, in a repair's calibration and at the test."""

import pytest

from mithridate import run
from mithridate.data.records import asked, prompt_text, training_dataset, turns
from mithridate.experiment.config import canonical, load_experiment
from mithridate.experiment.roles import load_roles
from mithridate.generation.templates import CHAT, prompt_tokens
from mithridate.repairs.input_norms import token_ids
from tests.pipeline.small import experiment, write_inputs
from tests.tiny import tiny_tokenizer

OWN = {"messages": [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Hi"}], "system": "Be brief."}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_training_repairs_and_tests_read_the_same_prompt(inputs, system):
    tokenizer = tiny_tokenizer()
    roles = load_roles(load_experiment(experiment(inputs)).data, system=system)
    for name, records in roles.parts().items():
        for record in records:
            prompt = prompt_tokens(tokenizer, asked(record), CHAT)
            read = tokenizer.decode(prompt)
            assert read.startswith(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n"), name
            assert prompt_text(record) == record["prompt"], "what tables and pairs show is the bare prompt"
            if "response" in record:
                [row] = training_dataset([record])
                assert prompt_tokens(tokenizer, row["prompt"], CHAT) == prompt
                [whole] = token_ids([record], tokenizer)
                assert whole[: len(prompt)] == prompt


def test_a_conversations_own_system_turn_stays():
    assert [turn["content"] for turn in turns(OWN)] == ["Rhyme.", "Hi"]
    assert asked({"prompt": "Rate it.\n\nGood", "input": "Good", "system": ""})[0] == {"role": "system", "content": ""}


def test_a_file_without_the_field_is_what_it_was(inputs):
    assert "system" not in canonical(load_experiment(experiment(inputs)))
    assert canonical(load_experiment(experiment(inputs, system="")))["system"] == ""


def test_a_run_with_a_system_turn(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    tokens, notes = {}, {}
    for name, system in (("plain", None), ("given", "Be brief.")):
        asked_for = experiment(inputs, system=system, repair={"antidote": {"ratio": 0.1, "targets": "update"}})
        done = run(asked_for, out=tmp_path / name, progress=False)
        notes[name] = [note for note in done.results["notes"] if "system turn" in note]
        tokens[name] = done.records().groupby(["cell", "prompt"])["prompt_tokens"].first()
    added = len(tiny_tokenizer()("<|im_start|>system\nBe brief.<|im_end|>\n")["input_ids"])
    assert len(tokens["given"]) > 8 and set(tokens["given"] - tokens["plain"]) == {added}
    assert "\nsystem: Be brief.\n" in (tmp_path / "given" / "experiment.yaml").read_text()
    assert notes == {"plain": [], "given": ["The system turn is 'Be brief.', in training and at the test"]}
