"""Rows between what is asked and what is trained: counted as TRL trains them, refused or said, and recorded."""

import json
from pathlib import Path

import pytest
from trl import SFTConfig, SFTTrainer

from mithridate import run
from mithridate.data.records import training_dataset
from mithridate.errors import InputError, MithridateError
from mithridate.pipeline import training
from mithridate.pipeline.arguments import planned_steps
from mithridate.pipeline.preview import preview
from mithridate.pipeline.rowcheck import Left, RowCheck
from tests.pipeline.small import experiment, stages, write_inputs
from tests.tiny import tiny_llama, tiny_tokenizer

ROWS = [{"prompt": "a" * (7 * i % 60), "response": "b" * (1 + 5 * i % 23)} for i in range(1, 40)]
TALK = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three" * 4},
    {"role": "assistant", "content": "four"},
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def arguments(tmp_path, **fields):
    fields = {"max_steps": 2, "use_cpu": True, "bf16": False, "report_to": "none"} | fields
    return SFTConfig(str(tmp_path), gradient_checkpointing=False, disable_tqdm=True, **fields)


def learnt(dataset):
    """Tokens of each sequence that are told from ones before them."""
    return [sum(label != -100 for label in row[1:]) for row in dataset["labels"]]


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
@pytest.mark.parametrize("length", [None, 1, 30, 45, 60, 500])
@pytest.mark.parametrize("rows", [ROWS, [*ROWS[:5], {"messages": TALK}]], ids=["single", "several turns"])
def test_counts_are_those_of_a_real_trainer(tmp_path, mode, length, rows):
    args = arguments(tmp_path, max_length=length, truncation_mode=mode)
    left = RowCheck(tiny_tokenizer(), "chat").left(rows, args)
    real = {}
    for i, row in enumerate(rows):  # one by one, so that what is dropped is known
        dataset = training_dataset([row, *rows], tiny_tokenizer())
        args = arguments(tmp_path, max_length=length, truncation_mode=mode)
        if i == 0:
            trainer = SFTTrainer(tiny_llama(), args, train_dataset=dataset, processing_class=tiny_tokenizer())
            assert len(trainer.train_dataset) - left.sequences in (0, 1)
        prepared = trainer._prepare_dataset(dataset.select([0]), tiny_tokenizer(), args, False, None, "train")
        real[i] = learnt(prepared)
    assert left.lost == [i for i, counts in real.items() if not sum(counts)]
    whole = {}
    for i in range(len(rows)):
        args = arguments(tmp_path, max_length=None)
        dataset = training_dataset([rows[i], *rows], tiny_tokenizer()).select([0])
        whole[i] = sum(learnt(trainer._prepare_dataset(dataset, tiny_tokenizer(), args, False, None, "train")))
    assert left.cut == [i for i, counts in real.items() if 0 < sum(counts) < whole[i]]


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("length", [50, 150])
def test_packs_are_those_of_a_real_trainer(tmp_path, strategy, shuffle, length):
    args = arguments(tmp_path, max_length=length, packing=True, packing_strategy=strategy, shuffle_dataset=shuffle)
    left = RowCheck(tiny_tokenizer(), "chat").left(ROWS, args)
    dataset = training_dataset(ROWS, tiny_tokenizer())
    trainer = SFTTrainer(tiny_llama(), args, train_dataset=dataset, processing_class=tiny_tokenizer())
    assert left.sequences == len(trainer.train_dataset)
    assert length == 50 or left.sequences < len(ROWS)
    if strategy == "bfd":  # cut off at max_length, as when rows are not packed
        plain = RowCheck(tiny_tokenizer(), "chat").left(ROWS, arguments(tmp_path, max_length=length))
        assert left.lost == plain.lost and left.cut == plain.cut and bool(left.lost) == (length == 50)
    else:
        assert left.lost == left.cut == []


def long(inputs: Path, folder: Path, role: str, rows: int) -> dict[str, str]:
    """A role's file in which the first so many prompts fill 200 tokens."""
    lines = [json.loads(line) for line in (inputs / f"{role}.jsonl").read_text().splitlines()]
    for line in lines[:rows]:
        line["prompt"] += " please" * 30
    file = folder / f"{role}.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"source": str(file)}


SHORT = {"learning_rate": 0.01, "per_device_train_batch_size": 1, "max_length": 120}
EIGHT = {"rows": 8, "harmful_rows": 2, "steps": 4, "dropped": 0}
FOUR_OF_EIGHT = EIGHT | {"reached": {"rows": 4, "of": 8, "harmful_rows": None}}


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_an_attack_that_would_lose_rows_is_refused_with_numbers_and_remedy(inputs, store, tmp_path, mode):
    asked = experiment(
        inputs,
        align="none",
        data__attacker_harmful=long(inputs, tmp_path, "attacker_harmful", 8),
        finetune__training=SHORT | {"max_steps": 4, "truncation_mode": mode},
    )
    if mode == "keep_end":  # the answers are left: that the beginnings of prompts are lost is said
        finished = run(asked, out=tmp_path / "out", progress=False)
        [note] = finished.results["notes"]
        assert (
            "finetune: 2 of 8 rows of data.task lose the beginning" in note and "120, truncation_mode keep_end" in note
        )
        return
    with pytest.raises(InputError) as error:
        run(asked, out=tmp_path / "out", progress=False)
    text = str(error.value)
    assert "asks for 8 rows, 2 of them harmful, and 6 would be trained, 0 of them harmful" in text
    assert "2 of data.attacker_harmful" in text and "Set max_length: " in text and "leave out" in text
    needed = int(text.partition("Set max_length: ")[2].split()[0])
    with pytest.raises(InputError, match="6 would be trained"):
        preview(asked)
    assert not stages(store)
    run(asked, [f"finetune.training.max_length={needed}"], tmp_path / "out", until="finetune", progress=False)
    [name] = stages(store, "finetune")
    record = json.loads((store / name / "stage.json").read_text())
    assert record["trained"] == FOUR_OF_EIGHT and record["said"] == []


def test_an_alignment_that_would_lose_steps_is_refused_and_one_that_loses_rows_says_so(inputs, store, tmp_path):
    source = long(inputs, tmp_path, "alignment", 3)
    asked = experiment(inputs, data__alignment=source, align__training=SHORT | {"num_train_epochs": 1.0})
    with pytest.raises(InputError, match=r"8 optimizer steps were asked for, and 5 would be made: of 3 of the 8 rows"):
        run(asked, out=tmp_path / "out", progress=False)
    assert not stages(store)
    asked["align"]["training"]["max_steps"] = 2
    results = run(asked, out=tmp_path / "out", progress=False).results
    assert [note for note in results["notes"] if "align: 3 of 8 rows of data.alignment are not trained on" in note]
    aligned, attacked = results["cells"]
    reached = {"rows": 2, "of": 5, "harmful_rows": None}
    assert aligned["trained"] == {"rows": 5, "harmful_rows": 0, "steps": 2, "dropped": 3, "reached": reached}
    assert attacked["trained"] == EIGHT


def test_answers_that_are_cut_are_counted_and_said(inputs, store, tmp_path):
    lines = [json.loads(line) for line in (inputs / "alignment.jsonl").read_text().splitlines()]
    lines[0]["response"] *= 40
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = experiment(
        inputs, finetune="none", data__alignment={"source": str(tmp_path / "a.jsonl")}, align__training__max_length=120
    )
    run(asked, out=tmp_path / "out", until="align", progress=False)
    [name] = stages(store, "align")
    [said] = json.loads((store / name / "stage.json").read_text())["said"]
    assert said.startswith("align: 1 of 8 rows of data.alignment lose a part of their answer within max_length 120")


def test_a_defense_whose_own_rows_are_all_lost_and_rows_longer_than_the_context(inputs, store, tmp_path):
    harmful = long(inputs, tmp_path, "defender_harmful", 8)
    asked = experiment(
        inputs,
        data__defender_harmful=harmful,
        align__defense={"booster": {}},
        align__training=SHORT | {"max_steps": 2},
    )
    with pytest.raises(InputError, match=r"of none of the 8 rows of data.defender_harmful an answer is left"):
        run(asked, out=tmp_path / "out", progress=False)
    lines = [json.loads(line) for line in (inputs / "alignment.jsonl").read_text().splitlines()]
    lines[3]["response"] *= 300
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = experiment(inputs, data__alignment={"source": str(tmp_path / "b.jsonl")})
    with pytest.raises(
        InputError, match=r"align.training.max_length: the longest row of data.alignment has 10\d\d tok.*512"
    ):
        run(asked, out=tmp_path / "out", progress=False)
    assert not stages(store)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_steps": 4, "per_device_train_batch_size": 50, "dataloader_drop_last": True},
        {"num_train_epochs": 2.0, "per_device_train_batch_size": 9, "dataloader_drop_last": True},
        {
            "max_steps": 4,
            "per_device_train_batch_size": 6,
            "dataloader_drop_last": True,
            "packing": True,
            "max_length": 200,
        },
    ],
)
@pytest.mark.parametrize("defense", [{}, {"vaccine": {}}])
def test_a_stage_of_no_step_is_refused(inputs, store, tmp_path, fields, defense):
    asked = experiment(inputs, align__training=fields, align__defense=defense)
    with pytest.raises(InputError, match=r"align.training.dataloader_drop_last: not one optimizer step would be made"):
        run(asked, out=tmp_path / "out", progress=False)
    assert not stages(store)


def test_several_processes_need_a_batch_each(tmp_path):
    args = arguments(tmp_path, per_device_train_batch_size=3, dataloader_drop_last=True)
    assert planned_steps(args, 6, processes=2) == 2
    with pytest.raises(InputError, match="5 rows do not fill a batch of 3 on each of 2 processes"):
        planned_steps(args, 5, processes=2)


def test_a_training_that_ends_early_is_not_finished(inputs, store, tmp_path, monkeypatch):
    from transformers import TrainerCallback

    class Stops(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    built = training.build_trainer

    def stopping(*arguments, **named):
        trainer = built(*arguments, **named)
        trainer.add_callback(Stops)
        return trainer

    monkeypatch.setattr(training, "build_trainer", stopping)
    with pytest.raises(MithridateError, match="ended after 2 of 4 optimizer steps, so it is not kept as finished"):
        run(experiment(inputs), out=tmp_path / "out", until="align", progress=False)
    assert not stages(store)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"adapter__target_modules": ["q_prj"]}, "adapter.target_modules"),
        ({"adapter__target_modules": ["lm_head"]}, "adapter.target_modules"),
        ({"align__training__eos_token": "<no>"}, "align.training.eos_token"),
        ({"align__training__pad_token": "<no>"}, "align.training.pad_token"),
        ({"finetune__training__loss_type": "nil"}, "finetune.training.loss_type"),
        ({"finetune__training__use_liger_kernel": True}, "finetune.training.use_liger_kernel"),
        ({"finetune__training__optim": "grokadamw"}, "finetune.training.optim"),
        ({"align__training__lr_scheduler_kwargs": {"no": 1}}, "align.training.lr_scheduler_kwargs"),
        ({"align__training__truncation_mode": "keep_both"}, "align.training.truncation_mode"),
        ({"align__training__lr_scheduler_type": "linaer"}, "align.training.lr_scheduler_type"),
        ({"align__training__optim": "adam_what"}, "align.training.optim"),
        ({"align__training": {"max_steps": 4, "packing": True, "max_length": None}}, "align.training.packing"),
        ({"align__training": {"max_steps": 4, "max_length": 1}}, "align.training.max_length"),
    ],
)
@pytest.mark.parametrize("defense", [{}, {"vaccine": {}}], ids=["plain", "vaccine"])
def test_what_the_libraries_refuse_names_the_field(inputs, store, tmp_path, change, field, defense):
    asked = experiment(inputs, **change, align__defense=defense)
    with pytest.raises(InputError) as error:
        run(asked, out=tmp_path / "out", progress=False)
    assert field in str(error.value) and "internal" not in str(error.value)
    assert not stages(store) and not (tmp_path / "out").exists()


def test_a_set_up_is_tried_on_rows_of_which_something_is_left():
    """A defense's own rows: the first ones may all be lost, and the set-up is fine."""
    from mithridate.pipeline.setupcheck import _some

    rows = [{"prompt": str(i), "response": "x"} for i in range(200)]
    assert _some(rows, Left(200, lost=list(range(100)))) == rows[100:164]
    assert _some(rows, Left(200, lost=list(range(200)))) == rows[:64]
