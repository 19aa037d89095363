"""Cells as submitit's jobs, with its own local executor in Slurm's place: preempted, out of time, lost, refused."""

import importlib.util
import os
import stat
import threading
import time
from pathlib import Path

import psutil
import pytest

from mithridate import run
from mithridate.errors import InputError, MithridateError
from mithridate.pipeline.executors import Slurm, slurm
from mithridate.pipeline.executors.base import Lost
from mithridate.pipeline.executors.cells import CellTask
from mithridate.pipeline.executors.slurm import _Jobs
from tests.pipeline.small import experiment, stages, weights, without_costs

LONG = {"learning_rate": 0.001, "max_steps": 60, "per_device_train_batch_size": 2, "save_steps": 5}


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"cluster": "chronos"}, "cluster: expected slurm or local, got chronos"),
        ({"cluster": "local", "parameters": {"slurm_partitoin": "gpu"}}, "Unknown argument 'partitoin'"),
        ({"cluster": "local", "parameters": {"gpus": 1}}, "'gpus' need to be prefixed"),
        ({"cluster": "local", "parameters": {"timeout_min": "1h"}}, '"timeout_min" expected type'),
    ],
)
def test_settings_that_mean_nothing_are_refused(parameters, said):
    with pytest.raises(InputError, match=said):
        Slurm(**parameters).check([])


def test_without_slurm_or_submitit_it_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"no sbatch and srun here: .*\(or set cluster=local"):
        Slurm().check([])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    with pytest.raises(InputError, match=r"pip install 'mithridate\[slurm\]'"):
        Slurm().check([])


def test_what_is_submitted_to_slurm(inputs, store, tmp_path, monkeypatch):
    """With an sbatch that only keeps what it is given: cells that start from nothing are one array, as was asked."""
    for name, script in (
        ("sbatch", f'cp "$1" {tmp_path}/submitted; echo Submitted batch job 77'),
        ("srun", "exit 1"),
        ("sacct", "echo 'JobID|State|NodeList'; for i in 0 1; do echo \"77_$i|FAILED|n\"; done"),
        ("scancel", f'echo "$@" >> {tmp_path}/cancelled'),
    ):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(_Jobs, "wait", lambda self, seconds: (_ for _ in ()).throw(InputError("seen enough")))
    options = {"slurm_partition": "gpu", "slurm_array_parallelism": 8, "mem_gb": 64, "slurm_setup": ["module load x"]}
    with pytest.raises(InputError, match="seen enough"):
        run(
            experiment(inputs, sweep={"seed": [0, 1]}, accelerate="ddp", processes=4),
            out=tmp_path / "out",
            progress=False,
            executor=Slurm(parameters=options),
        )
    said = (tmp_path / "submitted").read_text()
    for line in (
        "#SBATCH --array=0-1%2",
        "#SBATCH --partition=gpu",
        "#SBATCH --mem=64GB",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --time=240",
        "#SBATCH --signal=USR2@90",
        "module load x",
    ):
        assert line in said.splitlines(), said
    assert sorted((tmp_path / "cancelled").read_text().split()) == ["77_0", "77_1"]
    assert stages(store) == []


def test_a_job_that_ends_without_a_result_is_lost(tmp_path, monkeypatch, caplog):
    """With a job that dies at once: its interpreter does not start."""
    import submitit

    monkeypatch.setattr(submitit.Job, "_results_timeout_s", 0)
    executor = submitit.LocalExecutor(tmp_path, python="false")
    jobs, task = _Jobs(executor, 1), CellTask("A", {}, "", "", ["key"])
    jobs.submit([task])
    while not (ended := jobs.wait(0.1)):
        pass
    [(which, lost, where)] = ended
    assert which == task and where.startswith("job ")
    assert isinstance(lost, Lost) and "without a result (FINISHED); its log is " in lost.reason
    assert jobs.wait(0) == []


def test_jobs_that_are_refused_name_the_options_and_later_ones_are_lost(tmp_path, monkeypatch):
    import submitit
    from submitit.core.utils import FailedJobError

    def refusing(*given):
        raise FailedJobError("sbatch: error: invalid partition\nsbatch: error: failed")

    executor = submitit.LocalExecutor(tmp_path, python="false")
    jobs, task = _Jobs(executor, 2), CellTask("A", {}, "", "", ["key"])
    with monkeypatch.context() as patch:
        patch.setattr(executor, "map_array", refusing)
        with pytest.raises(
            MithridateError, match=r"refused: sbatch: error: invalid partition sbatch: .*slurm_partition"
        ):
            jobs.submit([task])
    monkeypatch.setattr(slurm, "_PAUSE", 0.2)
    jobs.submit([CellTask("B", {}, "", "", ["other"])])
    monkeypatch.setattr(executor, "map_array", refusing)
    jobs.submit([task])
    ended = []
    while task not in [one[0] for one in ended]:
        ended += jobs.wait(0.1)
    [lost] = [outcome for which, outcome, _ in ended if which == task]
    assert isinstance(lost, Lost) and "it was not taken (sbatch: error: invalid partition" in lost.reason
    jobs.close()


def jobs_of(folder: Path):
    """The jobs' own processes, below submitit's controllers."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if {"submitit.core._submit", str(folder)} <= set(child.cmdline())
    ]


@pytest.mark.slow
def test_a_job_that_is_preempted_goes_on(inputs, store, tmp_path, monkeypatch, caplog):
    """The signal that Slurm sends before it takes a machine away: the job is requeued, and resumes its training."""
    from submitit.local.local import LocalJobEnvironment

    asked = experiment(inputs, align__training=LONG, finetune="none")
    sent = []

    def preempt():
        until = time.monotonic() + 120
        while not list(store.glob("work/align-*/trainer/checkpoint-*/trainer_state.json")):
            if time.monotonic() > until:
                return
            time.sleep(0.005)
        for child in jobs_of((tmp_path / "out" / "slurm").absolute()):
            child.send_signal(LocalJobEnvironment._usr_sig())
            sent.append(child.pid)

    thread = threading.Thread(target=preempt)
    thread.start()
    with caplog.at_level("INFO", "mithridate"):
        made = run(asked, out=tmp_path / "out", progress=False, executor=Slurm(cluster="local"))
    thread.join()
    logs = "".join(path.read_text() for path in (tmp_path / "out" / "slurm").glob("*_log.*"))
    assert len(sent) == 1 and "this job is preempted" in logs and "Requeued job" in logs
    assert caplog.text.count("resuming from step") == 1 and "[1/1]" in caplog.text
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "other"))
    plain = run(asked, out=tmp_path / "plain", progress=False)
    assert weights(tmp_path / "other") == weights(store)
    assert without_costs(plain.results) == without_costs(made.results)
