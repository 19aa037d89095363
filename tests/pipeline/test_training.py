"""One training stage: its arguments, its checkpoints, its bar."""

import json
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from mithridate.data.records import training_dataset
from mithridate.errors import InputError, MithridateError
from mithridate.pipeline import training
from mithridate.pipeline.arguments import planned_steps, training_arguments
from mithridate.pipeline.training import build_trainer, train
from tests.tiny import tiny_llama, tiny_tokenizer

FEW = {"learning_rate": 0.01, "max_steps": 4, "per_device_train_batch_size": 2, "logging_steps": 1}


def trainer(work, progress=False, settings=FEW, lora=True):
    tokenizer = tiny_tokenizer()
    rows = [{"prompt": f"A longer question with the number {i}?", "response": f"No {i}."} for i in range(8)]
    return build_trainer(
        work,
        model=tiny_llama(),
        tokenizer=tokenizer,
        dataset=training_dataset(rows, tokenizer),
        defense=[],
        training=settings,
        peft_config=LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM") if lora else None,
        seed=3,
        bf16=False,
        progress=progress,
    )


# -- arguments --------------------------------------------------------------------------------------------


def test_the_users_values_go_over_the_defaults(tmp_path):
    args = training_arguments(FEW, tmp_path, seed=3, bf16=False, progress=False)
    assert (args.seed, args.data_seed, args.report_to, args.output_dir) == (3, 3, [], str(tmp_path))
    assert (args.save_steps, args.save_total_limit, args.learning_rate) == (10, None, 0.01)
    assert training_arguments({"max_steps": 90}, tmp_path, 0, False, False).save_steps == 23
    assert training_arguments({}, tmp_path, 0, False, False).save_steps == 0.25
    own = training_arguments({"save_steps": 7, "logging_steps": 2}, tmp_path, 0, False, False)
    assert (own.save_steps, own.logging_steps) == (7, 2)


def test_what_sftconfig_refuses_is_bad_input(tmp_path):
    with pytest.raises(InputError, match=r"training: .*load_best_model_at_end"):
        training_arguments({"load_best_model_at_end": True}, tmp_path, 0, False, False)
    with pytest.raises(InputError, match=r"training: .*no_such_field"):
        training_arguments({"no_such_field": 1}, tmp_path, 0, False, False)


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({"max_steps": 3}, 8),
        ({"num_train_epochs": 1}, 8),
        ({"num_train_epochs": 1}, 7),
        ({"num_train_epochs": 2, "gradient_accumulation_steps": 3}, 8),
        ({"num_train_epochs": 0.5}, 8),
        ({"num_train_epochs": 3, "dataloader_drop_last": True}, 7),
        ({"num_train_epochs": 2, "dataloader_drop_last": True, "gradient_accumulation_steps": 3}, 7),
    ],
)
def test_planned_steps_are_the_trainers(tmp_path, settings, rows):
    settings = {"per_device_train_batch_size": 2, "save_strategy": "no", "learning_rate": 0.0} | settings
    made = trainer(tmp_path, settings=settings)
    made.train_dataset = made.train_dataset.select(range(rows))
    made.train()
    assert planned_steps(made.args, rows) == made.state.global_step


def test_packed_rows_need_max_steps(tmp_path):
    args = training_arguments({"packing": True, "max_length": 128}, tmp_path, 0, False, False)
    with pytest.raises(InputError, match=r"training\.packing: .*set max_steps"):
        planned_steps(args, 20)
    args = training_arguments({"packing": True, "max_steps": 5}, tmp_path, 0, False, False)
    assert planned_steps(args, 20) == 5


# -- checkpoints ------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoints(tmp_path):
    for step in (2, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"w": torch.zeros(3)}, folder / "adapter_model.safetensors")
        torch.save({"state": torch.zeros(3)}, folder / "optimizer.pt")
        torch.save({"state": torch.zeros(3)}, folder / "rng_state.pth")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return tmp_path


def test_the_newest_whole_checkpoint_is_taken(checkpoints):
    assert training._last_whole(checkpoints) == str(checkpoints / "checkpoint-10")
    assert {path.name for path in checkpoints.iterdir()} == {"checkpoint-2", "checkpoint-10"}


@pytest.mark.parametrize("name", ["trainer_state.json", "adapter_model.safetensors", "optimizer.pt", "rng_state.pth"])
def test_one_that_is_cut_off_is_removed(checkpoints, name):
    file = checkpoints / "checkpoint-10" / name
    file.write_bytes(file.read_bytes()[:-5])
    assert training._last_whole(checkpoints) == str(checkpoints / "checkpoint-2")
    assert [path.name for path in checkpoints.iterdir()] == ["checkpoint-2"]
    (checkpoints / "checkpoint-2" / "trainer_state.json").unlink()  # written last: so nothing else is sure
    assert training._last_whole(checkpoints) is None


@pytest.mark.parametrize("limit", [None, 2])
def test_the_checkpoint_before_goes_only_when_all_processes_have_written_theirs(checkpoints, limit):
    """Killed between the main process's part of the new one and another's, a training goes on from the one before."""

    def wait_for_everyone():
        assert len(list(checkpoints.glob("checkpoint-*"))) == 2
        waited.append(True)

    waited, trainer = [], SimpleNamespace(accelerator=SimpleNamespace(wait_for_everyone=wait_for_everyone))
    args = SimpleNamespace(output_dir=str(checkpoints), save_total_limit=limit)
    for main in (False, True):
        training._Keep(trainer, [], checkpoints).on_save(args, SimpleNamespace(is_world_process_zero=main), None)
        kept = {path.name for path in checkpoints.glob("checkpoint-*")}
        assert kept == ({"checkpoint-10"} if main and limit is None else {"checkpoint-2", "checkpoint-10"})
    assert waited == [True, True]


def test_a_finished_stage_leaves_weights_snapshots_and_its_log(tmp_path):
    made = trainer(tmp_path)
    train(made, tmp_path, [1, 3])
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    folders = ("model", "snapshots/step-1", "snapshots/step-3")
    names = ("adapter_config.json", "adapter_model.safetensors")
    assert files == {"history.json", *(f"{folder}/{name}" for folder in folders for name in names)}
    history = json.loads((tmp_path / "history.json").read_text())
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4]


@pytest.mark.parametrize("passes", [{"max_steps": 3}, {"num_train_epochs": 0.75}, {"num_train_epochs": 1}])
def test_interrupted_after_its_last_checkpoint_a_run_takes_no_further_step(tmp_path, monkeypatch, passes):
    """The Trainer itself takes one, unless the pass ends there."""
    settings = {"learning_rate": 0.01, "lr_scheduler_type": "constant", "per_device_train_batch_size": 2} | passes
    train(trainer(tmp_path / "whole", settings=settings), tmp_path / "whole", [])
    with monkeypatch.context() as patch:
        patch.setattr(training, "_require_steps", lambda trainer: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(trainer(tmp_path / "cut", settings=settings), tmp_path / "cut", [])
    made = trainer(tmp_path / "cut", settings=settings)
    train(made, tmp_path / "cut", [])
    assert made.state.global_step == made.state.max_steps
    whole, cut = (load_file(tmp_path / name / "model" / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_training_of_more_steps_than_planned_is_not_kept(tmp_path, monkeypatch):
    made = trainer(tmp_path)
    monkeypatch.setattr(made, "train", lambda **_: vars(made.state).update(global_step=5, max_steps=4))
    with pytest.raises(MithridateError, match="made 5 optimizer steps, and 4 were planned"):
        train(made, tmp_path, [])
    assert not (tmp_path / "model").exists()


# -- what is shown ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_with_time_left_and_no_line_for_each_log(tmp_path, capfd, progress, monkeypatch):
    monkeypatch.setattr("mithridate.progress.live", lambda: True)  # as on a terminal
    made = trainer(tmp_path, progress)
    capfd.readouterr()  # building a trainer shows the data set's bars; a run turns them off
    train(made, tmp_path, [])
    out, err = capfd.readouterr()
    assert out == "" and "loss" not in err
    assert ("training:" in err and "/4 [" in err) == progress
