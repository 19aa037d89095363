"""Kills, interrupts, full disks and broken losses in every stage: nothing half-written, and the next run goes on."""

import json
import logging
import os
import shutil
import signal
from pathlib import Path

import pytest
from transformers import TrainerState

import mithridate.generation.hf as generation
from mithridate import cli, run
from mithridate.errors import MithridateError
from mithridate.pipeline import training
from mithridate.repairs.antidote import RepairReport
from mithridate.results import folder as run_folder
from tests.pipeline.small import experiment, in_child, not_finite_before, stages, weights, without_costs, write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def asked(inputs):
    """Every stage, with the defenses that keep a state of their own."""
    return experiment(
        inputs,
        align__defense={"booster": {}},
        finetune__defense={"lisa": {"align_steps": 1, "finetune_steps": 2}},
        repair={"antidote": {"ratio": 0.2, "targets": "update"}},
        evaluate={"resistance": [1, 3]},
    )


@pytest.fixture(scope="module")
def undisturbed(asked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MITHRIDATE_STORE", str(folder / "store"))
        return run(asked, out=folder / "out", until="evaluate", progress=False).results, weights(folder / "store")


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def kill(sent=signal.SIGKILL):
    os.kill(os.getpid(), sent)


def at_step(patch, stage, step, act=kill):
    """Does `act` after the optimizer step `step` of a stage, before anything of it is saved."""
    original = training._Keep.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        original(self, args, state, control, **kwargs)
        if f"/{stage}-" in args.output_dir and state.global_step == step:
            act()

    patch.setattr(training._Keep, "on_step_end", on_step_end)


def within_a_checkpoint(patch, step):
    original = TrainerState.save_to_json

    def save_to_json(self, path):
        original(self, path)
        if self.global_step == step:
            whole = Path(path).read_bytes()
            Path(path).write_bytes(whole[: len(whole) // 2])
            kill()

    patch.setattr(TrainerState, "save_to_json", save_to_json)


def within_the_evaluation(patch, batch):
    original, calls = generation._generate_batch, []

    def generate_batch(*args):
        calls.append(1)
        if len(calls) == batch:
            kill()
        return original(*args)

    patch.setattr(generation, "_generate_batch", generate_batch)


def within_the_save(patch, call):
    original, calls = training.save_weights, []

    def save_weights(model, folder):
        calls.append(1)
        original(model, folder)
        if len(calls) == call:
            (folder / "adapter_model.safetensors").write_bytes(b"half")
            kill()

    patch.setattr(training, "save_weights", save_weights)


def within_the_repair(patch):
    original = RepairReport.save

    def save(self, folder):
        original(self, folder)
        kill()

    patch.setattr(RepairReport, "save", save)


def within_the_table(patch, cells):
    original = run_folder.replace_file

    def replace_file(path, text):
        if path.name == "results.json" and len(json.loads(text)["cells"]) == cells:
            path.with_name(f".{path.name}.part").write_text(text[:50])
            kill()
        original(path, text)

    patch.setattr(run_folder, "replace_file", replace_file)


def killed(asked, tmp_path, disturb, *where):
    """Runs the experiment in a child that is killed on the way; returns what it had said until then."""
    log = tmp_path / "log"
    log.unlink(missing_ok=True)

    def work():
        handler = logging.FileHandler(log)
        logger = logging.getLogger("mithridate")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        with pytest.MonkeyPatch.context() as patch:
            disturb(patch, *where)
            run(asked, out=tmp_path / "out", until="evaluate", progress=False)

    code = in_child(work, tmp_path / "stderr")
    assert code == -signal.SIGKILL, (tmp_path / "stderr").read_text()
    return log.read_text()


def test_kills_in_every_stage_one_after_the_other(asked, undisturbed, store, tmp_path, caplog):
    def finished():
        return [name.partition("-")[0] for name in stages(store)]

    def cells():
        return len(json.loads((tmp_path / "out" / "results.json").read_text())["cells"])

    said = killed(asked, tmp_path, at_step, "align", 1)
    assert "resuming" not in said and finished() == []
    said = killed(asked, tmp_path, at_step, "align", 3)
    assert "resuming" not in said and finished() == []  # there was no checkpoint yet
    [work] = (store / "work").iterdir()
    assert [path.name for path in (work / "trainer").glob("checkpoint-*")] == ["checkpoint-2"]

    said = killed(asked, tmp_path, within_a_checkpoint, 4)
    assert "resuming from step 2" in said and finished() == []
    assert {path.name for path in (work / "trainer").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}

    said = killed(asked, tmp_path, within_the_save, 1)  # the half checkpoint is not used
    assert "resuming from step 2" in said and finished() == []
    said = killed(asked, tmp_path, within_the_evaluation, 2)
    assert "resuming from step 4" in said and finished() == ["align"]
    assert not (tmp_path / "out" / "results.json").exists()

    said = killed(asked, tmp_path, within_the_save, 2)  # in the second snapshot of the fine-tune
    assert "resuming" not in said and finished() == ["align", "evaluate"]
    assert cells() == 1
    said = killed(asked, tmp_path, at_step, "finetune", 4)
    assert "resuming from step 2" in said and finished() == ["align", "evaluate"]
    said = killed(asked, tmp_path, within_the_table, 2)
    assert "resuming from step 2" in said and cells() == 1  # the table before this one, whole

    said = killed(asked, tmp_path, within_the_repair)
    assert "resuming" not in said and sorted(set(finished())) == ["align", "evaluate", "finetune"]

    results, digests = undisturbed
    with caplog.at_level("INFO", "mithridate"):
        last = run(asked, out=tmp_path / "out", until="evaluate", progress=False)
    assert "resuming" not in caplog.text
    assert without_costs(last.results) == without_costs(results)
    assert weights(store) == digests
    assert not list((store / "work").iterdir())


def test_an_interrupt_is_exit_code_130_and_one_line(asked, undisturbed, store, tmp_path):
    file, said = tmp_path / "experiment.yaml", tmp_path / "stderr"
    file.write_text(json.dumps(asked))

    def work():
        with pytest.MonkeyPatch.context() as patch:
            at_step(patch, "finetune", 3, lambda: kill(signal.SIGINT))
            return cli.main(["evaluate", str(file), "--out", str(tmp_path / "out")])

    assert in_child(work, said) == 130
    lines = said.read_text().splitlines()
    assert lines[-1] == "error: interrupted; finished stages are kept, and the next run continues from them"
    assert "Traceback" not in said.read_text()
    assert [name.partition("-")[0] for name in stages(store)] == ["align", "evaluate"]
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["cells"]) == 1
    again = run(asked, out=tmp_path / "out", until="evaluate", progress=False)
    assert without_costs(again.results) == without_costs(undisturbed[0])
    assert weights(store) == undisturbed[1]


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_last_good_checkpoint(
    inputs, store, tmp_path, monkeypatch
):
    often = {"learning_rate": 0.01, "max_steps": 4, "per_device_train_batch_size": 2, "save_steps": 1}
    asked = experiment(inputs, finetune__training=often)
    not_finite_before(monkeypatch, "finetune", 2)
    for _ in range(2):  # the second run goes on from the checkpoint, and says the same
        with pytest.raises(MithridateError, match=r"not finite at step 2; .*Lower learning_rate") as error:
            run(asked, out=tmp_path / "out", progress=False)
        assert error.value.exit_code == 1
        assert [name.partition("-")[0] for name in stages(store)] == ["align", "evaluate"]
        [work] = (store / "work").iterdir()
        assert [path.name for path in (work / "trainer").glob("checkpoint-*")] == ["checkpoint-1"]


def test_weights_that_are_not_finite_are_refused_too(inputs, store, tmp_path):
    from tests.tiny import tiny_llama

    broken = shutil.copytree(inputs / "model", tmp_path / "broken")
    model = tiny_llama()
    model.lm_head.weight.data[5] = float("nan")
    model.save_pretrained(broken)
    with pytest.raises(MithridateError, match="not finite at step 1"):
        run(experiment(inputs, model=str(broken)), out=tmp_path / "out", progress=False)
    assert stages(store) == []


def test_a_full_disk_keeps_the_work(inputs, store, tmp_path, monkeypatch, caplog):
    asked, save = experiment(inputs), training.save_weights

    def full(model, folder):
        if folder.name == "model":
            raise OSError(28, "No space left on device")
        save(model, folder)

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_weights", full)
        with pytest.raises(MithridateError, match=r"no space left on the disk of .*MITHRIDATE_STORE") as error:
            run(asked, out=tmp_path / "out", until="align", progress=False)
    assert error.value.exit_code == 1 and stages(store) == []
    with caplog.at_level("INFO", "mithridate"):
        run(asked, out=tmp_path / "out", until="align", progress=False)
    assert "resuming from step 4" in caplog.text and len(stages(store)) == 1
