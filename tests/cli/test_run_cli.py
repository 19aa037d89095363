"""`mithridate run` and its neighbours on a tiny model: what is printed, what is left, with which exit code."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from mithridate import cli
from tests.pipeline.small import experiment, not_finite_before, stages, weights, without_costs, write_inputs

CELLS = ["sft-none-none-double-none-s0", "sft-sft-none-double-0.25-s0"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def file(inputs):
    path = inputs / "mine.yaml"
    path.write_text(json.dumps(experiment(inputs, dtype="auto")))
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("store")
        patch.setenv("MITHRIDATE_STORE", str(folder))
        yield folder


@pytest.fixture
def command(capfd, monkeypatch):
    """Runs the command in this process: (exit code, stdout, stderr)."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    with warnings.catch_warnings():
        yield run
    signal.signal(signal.SIGTERM, handler)


def real(*arguments, **options):
    command = [sys.executable, "-m", "mithridate", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_the_real_command(file, store, tmp_path):
    """One run as a user starts it: a table on stdout; stages, bars and nothing of the libraries' own on stderr."""
    process = real("run", file, "-o", "finetune.attack.size=4", "--dtype", "float32", "--out", tmp_path / "out")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"report: {tmp_path / 'out' / 'report.html'}" in out and f"run:    {tmp_path / 'out'}" in out
    assert "No defense" in out and "25%" in out
    assert "[1/4] align" in err and "[4/4] evaluate" in err
    assert "4/4 [" not in err  # a bar is for a terminal only
    for noise in ("{'", "Warning", "examples/s", "Loading weights", "Writing model"):
        assert noise not in err, err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [cell["id"] for cell in results["cells"]] == CELLS
    assert results["cells"][1]["attack"]["size"] == 4
    [name] = stages(store, "align")
    assert json.loads((store / name / "stage.json").read_text())["config"]["dtype"] == "float32"


def test_run_again_report_and_export(command, file, store, tmp_path):
    overrides = ["-o", "finetune.attack.size=4", "--dtype", "float32"]
    before = stages(store)
    code, out, err = command("run", file, *overrides, "--out", tmp_path / "out")
    assert code == 0 and stages(store)[: len(before)] == before
    (tmp_path / "out" / "report.html").unlink()
    code, out, _ = command("report", tmp_path / "out")
    assert code == 0 and out.splitlines()[-1] == f"report: {tmp_path / 'out' / 'report.html'}"
    assert (tmp_path / "out" / "report.html").exists()
    code, out, _ = command("report", tmp_path / "out", "--tables", tmp_path / "tables")
    assert code == 0 and f"files in {tmp_path / 'tables'}" in out
    assert (tmp_path / "tables" / "runs.csv").read_text().startswith("run,topology,harmful_ratio,seed,harmful_score,")
    code, _, err = command("report", tmp_path / "out", "--tables", tmp_path / "tables" / "runs.csv")
    assert code == 3 and "cannot be a folder" in err
    for page, said in (
        (tmp_path, "is a folder"),
        (tmp_path / "tables" / "runs.csv" / "x", "runs.csv is not a folder"),
    ):
        code, out, err = command("report", tmp_path / "out", "--out", page)
        assert (code, out) == (3, "") and f"--out {page}: " in err and said in err and len(err.splitlines()) == 1
    for flag, wanted in (("--merged", "model.safetensors"), ("--adapter", "adapter_model.safetensors")):
        code, out, err = command("export", tmp_path / "out", "--cell", CELLS[1], "--out", tmp_path / flag, flag)
        assert (code, out) == (0, f"model: {tmp_path / flag}\n") and (tmp_path / flag / wanted).exists()
        card = ModelCard.load(tmp_path / flag / "README.md")
        scored = json.loads((tmp_path / "out" / "results.json").read_text())["cells"][1]
        assert {one.metric_type: one.metric_value for one in card.data.eval_results} == {
            name: scored["rates"][name]["value"]
            for name in ("harmful_score", "refused", "incoherent", "other", "benign_refusal", "accuracy")
        }
        assert "25% of the rows it was fine-tuned on are harmful" in card.text and str(tmp_path) not in card.content
    code, _, err = command("export", tmp_path / "out", "--cell", "sft", "--out", tmp_path / "x")
    assert code == 3 and CELLS[1] in err


def test_the_stage_verbs_leave_no_table(command, file, store, tmp_path):
    code, out, _ = command("align", file, "--dtype", "float32", "--out", tmp_path / "out")
    assert (code, out) == (0, f"run:    {tmp_path / 'out'}\n")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["experiment.yaml"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("finetune.attack.harmful_ratio=1.5", "expected a fraction from 0 to 1"),
        ("finetune.attack.size=99", "rows asked for"),
        ("align.defense=vacine", "did you mean `vaccine`?"),
        ("model=./no/such", "no such folder"),
        ("data.alignment.source=no.jsonl", "no such file"),
        ("evaluate.protocol=hs/x", "evaluate.protocol: no such protocol"),
        ("finetune.defense={lisa: {align_steps: 3, finetune_steps: 3}}", "Remedy"),
    ],
)
def test_bad_input_is_exit_code_3_and_one_line(command, file, tmp_path, monkeypatch, override, said):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    code, out, err = command("run", file, "-o", override, "--out", tmp_path / "out")
    assert (code, out) == (3, "") and err.startswith("error: ") and said in err and len(err.splitlines()) == 1
    assert stages(tmp_path / "store") == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--executor", "slrum"], "did you mean `slurm`"),
        (["--workers", "0"], "--workers: expected at least 1"),
        (["--executor", "local", "--executor-option", "workers"], "expected KEY=VALUE"),
        (["--executor", "ray", "--executor-option", "num_gpus=one"], "num_gpus"),
        (["--executor", "ray", "--dtype", "auto"], "dtype: auto is decided by the machine"),
        (["--executor", "slurm", "--executor-option", "cluster=local", "--dtype", "auto"], "dtype: auto"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_executors_that_cannot_be_are_exit_code_3_and_one_line(
    command, file, tmp_path, monkeypatch, options, said, dry
):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    code, out, err = command("run", file, *options, "--out", tmp_path / "out", *dry)
    assert (code, out) == (3, "") and err.startswith("error: ") and said in err
    assert stages(tmp_path / "store") == [] and not (tmp_path / "out").exists()


def test_a_dry_run_starts_no_executor(command, file, tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    local = ("--executor", "local", "--workers", "2")
    code, out, _ = command("run", file, *local, "--out", tmp_path / "out", "--dry-run")
    assert code == 0 and "4 to run" in out
    assert list(tmp_path.iterdir()) == []


def test_a_broken_loss_is_exit_code_1_and_names_the_step(command, file, store, tmp_path, monkeypatch):
    not_finite_before(monkeypatch, "finetune", 2)
    code, out, err = command("run", file, "--dtype", "float32", "--out", tmp_path / "out")
    assert (code, out) == (1, "") and "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: The training loss is not finite at step 2")


def ended(state: Path) -> bool:
    """Whether the Trainer has written the last file of a checkpoint to its end."""
    try:
        return bool(json.loads(state.read_text()))
    except (FileNotFoundError, json.JSONDecodeError):
        return False


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_real_command_is_stopped_in_training_and_goes_on(command, inputs, tmp_path, monkeypatch, sent):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    file = tmp_path / "long.yaml"
    long = {"learning_rate": 0.001, "max_steps": 120, "per_device_train_batch_size": 2, "save_steps": 3}
    file.write_text(json.dumps(experiment(inputs, align__training=long, finetune="none")))
    process = real(
        *("run", file, "--out", tmp_path / "out"),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    until = time.monotonic() + 240
    while not any(ended(p) for p in (tmp_path / "store").glob("work/align-*/trainer/checkpoint-*/trainer_state.json")):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.005)
    os.kill(process.pid, sent)
    _, err = process.communicate(timeout=60)
    assert stages(tmp_path / "store") == []
    if sent == signal.SIGKILL:
        assert process.returncode == -sent
    else:
        assert process.returncode == 130
        assert err.splitlines()[-1].startswith("error: interrupted; finished stages are kept")
    code, _, err = command("run", file, "--out", tmp_path / "out")
    assert code == 0 and "resuming from step" in err
    resumed = weights(tmp_path / "store"), json.loads((tmp_path / "out" / "results.json").read_text())
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "other"))
    code, _, err = command("run", file, "--out", tmp_path / "undisturbed")
    assert code == 0 and "resuming" not in err
    assert weights(tmp_path / "other") == resumed[0]
    undisturbed = json.loads((tmp_path / "undisturbed" / "results.json").read_text())
    assert without_costs(undisturbed) == without_costs(resumed[1])
