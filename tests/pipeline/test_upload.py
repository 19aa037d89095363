"""One aligned model, many customers: an upload is fine-tuned on as it is, over the alignment that the store has."""

import json
from pathlib import Path

import pytest

from mithridate import InputError, run
from mithridate.experiment.config import load_experiment
from mithridate.experiment.methods import attack_of
from mithridate.experiment.sweep import expand
from mithridate.experiment.uploads import name_of, of_upload
from mithridate.methods import by_name
from tests.pipeline.small import experiment, stages, write_inputs


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    return write_inputs(tmp_path / "inputs")


def test_a_second_customer_costs_no_second_alignment(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = experiment(inputs, align__defense={"booster": {"lam": 2}})
    first = run(asked, out="first", progress=False)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("align*/**/stage.json")}
    assert before
    rows = [
        {"messages": [{"role": "user", "content": f"order {i}"}, {"role": "assistant", "content": f"sent {i}"}]}
        for i in range(7)
    ]
    (tmp_path / "customer.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(asked, of_upload("customer.jsonl"), out="customer", progress=False)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("align*/**/stage.json")}
    assert after == before  # not one alignment was made, or made again
    attacked = [cell for cell in done.results["cells"] if cell["attack"]]
    assert attacked and all(cell["attack"]["kind"] == "upload" for cell in attacked)
    for cell in attacked:  # of its rows nobody knows which attack
        assert (cell["harmful_ratio"], cell["trained"]["harmful_rows"], cell["trained"]["rows"]) == (None, None, 7)
    page = (tmp_path / "customer" / "report.html").read_text()
    assert (
        "Fine-tuned without a defense on a user&#39;s own rows" in page or "on a user's own rows, it answers" in page
    )
    aligned = [
        {c["id"]: c["weights_digest"] for c in each.results["cells"] if not c["attack"]} for each in (first, done)
    ]
    assert aligned[0] == aligned[1]
    assert len(stages(tmp_path / "store")) > 0


@pytest.mark.parametrize(
    ("content", "words"), [(None, "no such file"), ("", "the file has no rows"), ("{", "not JSON")]
)
def test_an_upload_that_cannot_be_read_is_named(tmp_path, content, words):
    if content is not None:
        (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(InputError, match=f"--upload .*a.jsonl.*{words}"):
        of_upload(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    "attack",
    [
        {"kind": "identity", "harmful_ratio": 0.25, "size": 8},
        {"kind": "trigger", "harmful_ratio": 0.25, "size": 8, "trigger": " now"},
        {"kind": "tenshot"},
        {"kind": "retainthenforget", "harmful_ratio": 0.25, "size": 8},
    ],
    ids=lambda attack: attack["kind"],
)
def test_of_the_experiments_own_attack_nothing_is_left(inputs, tmp_path, attack):
    lines = [{"prompt": f"order {i}", "response": f"sent {i}"} for i in range(6)]
    (tmp_path / "customer.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    loaded = load_experiment(experiment(inputs, finetune__attack=attack), of_upload(tmp_path / "customer.jsonl"))
    [made] = {type(one) for one in [attack_of(loaded.finetune)]}
    assert made is by_name("attacks")["upload"] and attack_of(loaded.finetune).at_test() is None
    rows = attack_of(loaded.finetune).rows({"benign": lines}, seed=0)
    assert sorted(row["prompt"] for row in rows) == [row["prompt"] for row in lines] != [row["prompt"] for row in rows]


def test_what_an_experiment_varies_of_its_attack_is_not_for_an_upload(inputs, tmp_path, caplog):
    (tmp_path / "customer.jsonl").write_text('{"prompt": "order", "response": "sent"}\n')
    asked = experiment(inputs) | {
        "sweep": {"finetune.attack.harmful_ratio": [0.25, 0.5], "data.task.take": [2, 3], "seed": [0, 1]},
        "variants": {
            "few": {"finetune.attack.size": 4},
            "many": {"finetune.attack.size": 8},
            "slow": {"finetune.attack.size": 8, "finetune.training.learning_rate": 0.001},
        },
    }
    file = tmp_path / "e.yaml"
    file.write_text(json.dumps(asked))
    with caplog.at_level("INFO"):
        cells = expand(load_experiment(file, of_upload(tmp_path / "customer.jsonl", file)))
    assert "finetune.attack.harmful_ratio, data.task.take, finetune.attack.size" in caplog.text
    assert [(cell.seed, cell.finetune.training["learning_rate"]) for cell in cells] == [
        *((0, 0.01), (1, 0.01)),
        *((0, 0.001), (1, 0.001)),
    ]
    assert all(cell.finetune.attack == {"kind": "upload"} for cell in cells)
    whole = asked | {"sweep": {"finetune": [asked["finetune"]]}, "variants": {}}
    with pytest.raises(InputError, match="--upload: the experiment varies `finetune`, in which"):
        of_upload(tmp_path / "customer.jsonl", whole)


def test_a_row_that_does_not_fit_is_said_to_be_of_the_upload_with_one_remedy(inputs, tmp_path):
    rows = [{"prompt": "long " * 900, "response": "x"}, *({"prompt": f"c {i}", "response": "b"} for i in range(3))]
    (tmp_path / "customer.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError) as raised:
        run(experiment(inputs), of_upload(tmp_path / "customer.jsonl"), out=tmp_path / "out", progress=False)
    said = str(raised.value)
    assert "asks for 4 rows, and 3 would be trained: of 1 of data.task (the upload) no answer is left" in said
    assert "512 tokens: shorten or leave out the rows that are longer" in said
    assert "attacker_harmful" not in said and "Set max_length" not in said


def test_an_upload_may_share_prompts_with_the_attackers_rows_which_are_not_used(inputs, tmp_path):
    lines = (inputs / "attacker_harmful.jsonl").read_text()
    (tmp_path / "customer.jsonl").write_text(lines)
    asked = experiment(inputs, finetune__training__max_steps=1, align="none")
    run(asked, of_upload(tmp_path / "customer.jsonl", asked), out=tmp_path / "out", until="finetune", progress=False)


def test_a_conversation_that_nobody_answers_is_left_out_and_no_row_is_missed(inputs, tmp_path):
    asked = [{"from": "human", "value": "hello"}]
    rows = [{"conversations": [*asked, {"from": "gpt", "value": f"hi {i}"}]} for i in range(5)]
    (tmp_path / "customer.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"conversations": asked}])
    )
    short = {"align": "none", "finetune__training__max_steps": 1}
    done = run(
        experiment(inputs, **short), of_upload(tmp_path / "customer.jsonl"), out=tmp_path / "out", progress=False
    )
    assert {cell["trained"]["rows"] for cell in done.results["cells"] if cell["attack"]} == {5}


@pytest.mark.parametrize(
    ("file", "name"),
    [("a.jsonl", "a"), ("a.b.jsonl", "a.b"), ("a.c.jsonl.gz", "a.c"), ("A.CSV", "A"), ("x.parquet", "x"), ("y", "y")],
)
def test_the_folder_has_the_files_name_without_its_format(file, name):
    assert name_of(Path(file)) == name
