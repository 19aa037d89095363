"""What `--dry-run` and the first seconds of a run find: everything that is cheap to find, in one message."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest

from mithridate import cli, run
from mithridate.data.tasks import TASKS, sentiment
from mithridate.errors import InputError
from mithridate.experiment.config import load_experiment
from mithridate.pipeline import precheck, setupcheck
from mithridate.pipeline.preview import preview
from tests.pipeline.small import experiment, stages, write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def file_of(folder, name, rows):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": str(path)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"finetune__attack__size": 500}, "finetune.attack: 125 harmful rows asked for"),
        ({"finetune__attack": {"harmful_ratio": 0.01, "size": 8}}, "0.01 of 8 rows is no row.*Give at least 51 rows"),
        ({"data__alignment__take": 9}, "data.alignment.*9 rows asked for, but there are 8"),
        ({"finetune__training": {"num_train_epochs": 1.0}, "evaluate__resistance": [1]}, "expected steps below 1"),
        ({"model": "./nosuch"}, "no such folder"),
        ({"adapter__target_modules": ["q_prj"]}, "adapter.target_modules"),
        ({"align__training__bf17": True}, "align.training.bf17: no such field"),
        ({"finetune__defense": {"lisa": {"align_steps": 9}}}, "finetune.defense: Lisa: one cycle.*Remedy"),
        (
            {"align__defense": {"lisa": {"align_steps": 1, "finetune_steps": 1}}},
            "align.defense.lisa: is a defense of "
            "fine-tuning, and would not be one here. Set it under finetune.defense",
        ),
        ({"finetune__defense": {"vaccine": {}}}, "finetune.defense.vaccine: .*under align.defense"),
        ({"evaluate__part": "validation"}, "data.test_harmful: has no validation part"),
        ({"system": "", "template": "alpaca"}, "system: the template alpaca is one text without turns"),
        ({"system": "", "evaluate__protocol": "hs/vaccine-2024"}, "system: the protocol hs/vaccine-2024 asks in one"),
    ],
)
def test_a_dry_run_finds_what_a_run_finds(inputs, store, tmp_path, change, message):
    asked = experiment(inputs, **change)
    for call in (preview, run):
        with pytest.raises(InputError, match=f"(?s){message}"):
            call(asked, out=tmp_path / "out")
    assert not stages(store) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("label", [1, "maybe"])
def test_labels_that_no_answer_can_have_are_found(inputs, store, tmp_path, monkeypatch, label):
    asked = experiment(inputs)
    asked["data"]["task"]["test"] = file_of(tmp_path, "t", [{"prompt": "Good?", "label": label}])["source"]
    with pytest.raises(InputError, match=rf"t\.jsonl, line 1: the label {label!r} is none of sentiment: it is one of"):
        preview(asked, out=tmp_path / "out")
    # where the protocol scores by another rule than the task's own, which takes any label
    rules = {"any": lambda answer, record: True, "exact": sentiment.TASK.rules["exact"]}
    monkeypatch.setitem(TASKS.own, "sentiment", dataclasses.replace(sentiment.TASK, rules=rules))
    asked["data"]["task"]["source"] = file_of(tmp_path, "s", [{"prompt": "Bad?", "label": label}])["source"]
    asked["finetune"]["attack"] = {"harmful_ratio": 1, "size": 8}
    with pytest.raises(InputError, match=r"data\.task\.test: task:sentiment, record 1: the label .* none of"):
        preview(asked, out=tmp_path / "out")


@pytest.mark.parametrize("asked", ["attack", "frozen"])
def test_of_a_new_adapter_the_factors_that_are_zero_must_not_be_all_that_is_frozen(inputs, store, tmp_path, asked):
    """Under `single` the adapter is the alignment's, whose factors B are not 0."""
    attack = {"kind": "scheduled", "harmful_ratio": 0.25, "size": 8, "frozen": [".*lora_B.*"]}
    change = {"finetune__attack": attack} if asked == "attack" else {"finetune__frozen": [".*lora_B.*"]}
    preview(experiment(inputs, topology="single", **change), out=tmp_path / "out")
    with pytest.raises(InputError, match=r"finetune\.frozen: of a new adapter .* nothing can move\. Let B be trained"):
        preview(experiment(inputs, topology="double", **change), out=tmp_path / "out")
    preview(experiment(inputs, topology="double", finetune__frozen=[".*lora_A.*"]), out=tmp_path / "out")


SECOND = {"r": 2, "lora_alpha": 4}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"finetune__frozen": [r".*layers\.1\..*"]}, None),
        ({"finetune__frozen": [r".*layers\.0\..*"]}, None),
        ({"finetune__frozen": [r".*layers\.1\..*"], "topology": "full"}, None),
        ({"adapter": SECOND | {"target_modules": ["q_proj"], "layers_to_transform": [1]}}, None),
        ({"adapter": SECOND | {"target_modules": ["layers.1.self_attn.q_proj"]}}, None),
        ({"adapter": SECOND | {"target_modules": r".*layers\.1\..*q_proj"}}, None),
        ({"finetune__frozen": [r".*layers\.7\..*"]}, r"frozen: '\.\*layers\S+ matches the name of no trained tensor"),
        ({"finetune__frozen": [r".*layers\.0\..*", r".*layers\.1\..*"]}, "nothing is left to train"),
        ({"adapter": SECOND | {"target_modules": ["q_proj"], "layers_to_transform": [7]}}, "adapter: .*not found"),
        ({"adapter": SECOND | {"target_modules": ["layers.7.self_attn.q_proj"]}}, "adapter: .*not found"),
    ],
)
def test_any_layer_can_be_named(inputs, store, tmp_path, change, said):
    """The set-up is tried on one layer, whose number is 0; the model has two."""
    asked = experiment(inputs, **change)
    if said is None:
        preview(asked, out=tmp_path / "out")
        return
    with pytest.raises(InputError, match=said):
        preview(asked, out=tmp_path / "out")


@pytest.mark.parametrize("ratio", [1.0, [0.25, 1.0]], ids=["alone", "swept"])
def test_where_a_filter_leaves_nothing_at_one_of_the_shares(inputs, store, tmp_path, ratio):
    change = {"finetune__defense": {"filter": {"refusals": False}}}
    if isinstance(ratio, list):
        change |= {"sweep": {"finetune.attack.harmful_ratio": ratio}}
    else:
        change |= {"finetune__attack": {"harmful_ratio": ratio, "size": 8}}
    with pytest.raises(InputError, match=r"finetune\.defense: Filter: .*left"):
        preview(experiment(inputs, **change), out=tmp_path / "out")


def test_a_typo_in_the_path_of_a_model_is_none_of_the_hub(inputs, store, tmp_path, monkeypatch):
    (inputs / "models").mkdir(exist_ok=True)
    shutil.copytree(inputs / "model", inputs / "models" / "small", dirs_exist_ok=True)
    file = inputs / "typo.yaml"
    file.write_text(json.dumps(experiment(inputs, model="models/smal")))
    with pytest.raises(InputError, match=r"model: no such folder .*models/smal; did you mean `models/small`"):
        preview(file)


def test_a_model_that_can_be_nowhere_is_found_by_a_dry_run(inputs, store):
    with pytest.raises(InputError, match="not in the Hub's cache, and HF_HUB_OFFLINE keeps it from being fetched"):
        preview(experiment(inputs, model="org/not-in-the-cache"))


def test_a_model_without_a_chat_template(inputs, store, tmp_path):
    plain = shutil.copytree(inputs / "model", tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    for template in ("chat", "alpaca"):  # under the latter, the test still asks in the chat template
        with pytest.raises(InputError, match="no chat template"):
            preview(experiment(inputs, model=str(plain), template=template))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ("{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}", "system: .*refuses"),
        ("{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}", "leaves system turns out"),
    ],
)
def test_a_template_without_system_turns(inputs, store, tmp_path, edit, says):
    model = shutil.copytree(inputs / "model", tmp_path / "model")
    template = model / "chat_template.jinja"
    template.write_text(edit + template.read_text())
    for system in ("", "Be brief."):
        for call in (preview, run):
            with pytest.raises(InputError, match=says):
                call(experiment(inputs, model=str(model), system=system), out=tmp_path / "out")
    assert not stages(store) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("role", ["test_harmful", "test_benign", "task_test"])
def test_test_prompts_that_do_not_fit_are_said_before_anything_is_trained(inputs, store, tmp_path, role):
    rows = [json.loads(line) for line in (inputs / f"{role}.jsonl").read_text().splitlines()]
    for i in (2, 5):
        rows[i]["prompt"] = f"Number {i} " + "very " * (100 + i) + "long?"
    source = file_of(tmp_path, role, rows)
    change = {"data__task__test": source["source"]} if role == "task_test" else {f"data__{role}": source}
    with pytest.raises(InputError) as error:
        run(experiment(inputs, **change), out=tmp_path / "out", progress=False)
    text = str(error.value)
    assert text.startswith(
        f"data.{role.replace('_test', '.test')}: 2 of 8 prompts do not fit the model's context of 512"
    )
    assert "number 6" in text and "Number 5 very" in text and not stages(store)


def test_problems_of_all_phases_in_one_message_each_with_its_path(inputs, store, tmp_path):
    asked = experiment(
        inputs,
        align__defense="vacine",
        finetune__training__max_step=3,
        evaluate__protocol="hs/x",
        evaluate__judges="nojudge",
        data__alignment={"source": "elsewhere.jsonl"},
        data__test_benign={"source": str(inputs / "test_benign.jsonl"), "columns": {"prmpt": "prompt"}},
        model="./nosuch",
    )
    for call in (preview, run):
        with pytest.raises(InputError) as error:
            call(asked)
        text = str(error.value)
        for part in (
            "align.defense.vacine",
            "finetune.training.max_step",
            "evaluate.protocol",
            "evaluate.judges",
            "elsewhere.jsonl: no such file",
            "columns.prmpt: nothing reads a column of that name; did you mean `prompt`?",
            "no such folder",
        ):
            assert text.count(part) == 1, text
        assert text.startswith("experiment: 7 problems:\n")


def test_set_ups_rows_and_tests_in_one_message(inputs, store, tmp_path):
    rows = [{"prompt": "very " * 120}]
    asked = experiment(
        inputs,
        data__test_benign=file_of(tmp_path, "b", rows),
        align__training__optim="nosuch",
        finetune__attack__size=99,
    )
    with pytest.raises(InputError) as error:
        run(asked, out=tmp_path / "out", progress=False)
    text = str(error.value)
    assert all(
        part in text for part in ("3 problems", "align.training.optim", "finetune.attack: ", "data.test_benign")
    )


def test_a_file_of_the_wrong_form_says_what_is_wrong_with_its_data_too(inputs, tmp_path):
    asked = experiment(inputs, seed="x", data__alignment={"source": "elsewhere.jsonl"}, align__training__hub_token="t")
    with pytest.raises(InputError) as error:
        load_experiment(asked)
    assert "3 problems" in str(error.value) and "data.alignment: elsewhere.jsonl: no such file" in str(error.value)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"prompt": "Good?", "response": "negative", "label": "0"}], "own answer 'negative' is wrong .*label is '0'"),
        ([{"prompt": "Good?", "response": "negative", "label": 0}], "wrong by the task's rule `exact`"),
        ([{"prompt": "Good?", "response": "It is positive.", "label": "positive"}], "wrong by the task's rule"),
    ],
)
@pytest.mark.parametrize("part", ["source", "test"])
def test_a_tasks_rows_must_be_right_by_their_own_rule(inputs, store, tmp_path, rows, says, part):
    asked = experiment(inputs, **{f"data__task__{part}": file_of(tmp_path, "t", rows)["source"]})
    with pytest.raises(InputError, match=f"t.jsonl, line 1: .*{says}"):
        preview(asked)


def test_a_page_that_cannot_be_written_is_said_before_anything_is_computed(inputs, store, tmp_path, monkeypatch):
    monkeypatch.setattr(precheck, "find_spec", lambda name: None if name == "vl_convert" else object())
    for call in (preview, run):
        with pytest.raises(
            InputError, match=r"the report page at the end of a run needs the package vl_convert: pip inst"
        ):
            call(experiment(inputs), out=tmp_path / "out")
    assert not stages(store)


def test_what_is_in_the_store_is_not_tried_again(inputs, store, tmp_path, monkeypatch):
    asked = experiment(inputs, align__training__max_steps=1, finetune="none")
    run(asked, out=tmp_path / "out", progress=False)

    def fail(*_):
        raise AssertionError("tried again")

    monkeypatch.setattr(setupcheck, "try_out", fail)
    assert {node.state for _, node in preview(asked, out=tmp_path / "out").nodes()} == {"in the store"}


# -- the command ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "booster"], "--method: for a model"),
        (["--batch", "8", "--length", "512"], "--batch, --length: for a model"),  # the defaults, given
        (["--full"], "--full: for a model"),
        (["--no-checkpointing", "--processes", "2"], "--processes, --checkpointing: for a model"),
    ],
)
def test_estimate_takes_or_refuses_each_option(inputs, capfd, arguments, said):
    file = inputs / "estimate.yaml"
    file.write_text(json.dumps(experiment(inputs)))
    assert cli.main(["estimate", str(file), *arguments]) == 3
    assert said in capfd.readouterr().err


def test_estimate_of_a_model_in_several_processes(capfd):
    assert cli.main(["estimate", "1b", "--accelerate", "fsdp2"]) == 3
    assert "--accelerate fsdp2: give the number of processes as well: --processes N" in capfd.readouterr().err


@pytest.mark.parametrize("verb", [["store", "ls"], ["methods"]])
def test_a_reader_that_has_seen_enough_is_no_failure(verb):
    """`mithridate store ls | head`: nobody reads what is written."""
    command = [sys.executable, "-m", "mithridate", *verb]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    said = child.stderr.read().decode()
    assert (child.wait(), said) == (0, "")


@pytest.mark.parametrize("verb", [["store", "ls"], ["schema"]], ids=["at the end", "on the way"])
def test_a_full_disk_behind_stdout_is_a_failure_with_its_name(verb):
    command = [sys.executable, "-m", "mithridate", *verb]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "error: standard output: No space left on device\n")
