"""Worker processes on this machine: who gets which GPU, and that one of them, or all, can be killed at any time."""

import json
import os
import signal
import threading
import time

import psutil
import pytest

from mithridate import cli, run
from mithridate.errors import InputError, MithridateError
from mithridate.experiment.config import load_experiment
from mithridate.pipeline.executors import EXECUTORS, Local, Ray, Slurm, executor_of, local
from tests.pipeline.small import experiment, in_child, stages, weights, without_costs

LONG = {"learning_rate": 0.001, "max_steps": 60, "per_device_train_batch_size": 2, "save_steps": 5}


@pytest.fixture
def gpus(monkeypatch):
    """Pretends that torch sees so many GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return lambda count: monkeypatch.setattr("torch.cuda.device_count", lambda: count)


# -- which executor, and with what ----------------------------------------------------------------------------------


def chosen(inputs, name=None, workers=None, options=None, **changes):
    return executor_of(name, workers, options or {}, load_experiment(experiment(inputs, **changes)))


def test_the_executor_that_is_meant(inputs, gpus):
    sweep = {"seed": [0, 1]}
    gpus(0)
    assert chosen(inputs, sweep=sweep) is None
    assert chosen(inputs, workers=2) == Local(workers=2)
    gpus(8)
    assert chosen(inputs) is None  # one experiment
    assert chosen(inputs, sweep=sweep) == Local()
    assert chosen(inputs, sweep=sweep, accelerate="ddp", processes=4) == Local()
    assert chosen(inputs, sweep=sweep, accelerate="ddp", processes=8) is None  # one cell has them all
    assert chosen(inputs, sweep=sweep, accelerate="fsdp2") is None
    assert chosen(inputs, "none", sweep=sweep) is None
    assert chosen(inputs, "ray", 3, {"num_gpus": 0.5}) == Ray(workers=3, num_gpus=0.5)
    slurm = chosen(inputs, "slurm", None, {"cluster": "local", "slurm_partition": "gpu", "mem_gb": 64})
    assert slurm == Slurm(cluster="local", parameters={"slurm_partition": "gpu", "mem_gb": 64})
    assert all(kind.__doc__ and "Args:" in kind.__doc__ for kind in EXECUTORS.values())


@pytest.mark.parametrize(
    ("name", "workers", "options", "said"),
    [
        ("slrum", None, {}, "no such executor `slrum`.*did you mean `slurm`"),
        ("local", 0, {}, "--workers: expected at least 1, got 0"),
        ("none", 2, {}, "need an executor"),
        (None, None, {"num_gpus": 1}, "need an executor"),
        ("local", 2, {"num_gpus": 1}, "num_gpus: no such field"),
        ("ray", None, {"num_gpus": "one"}, "num_gpus: .*number"),
        ("ray", None, {"num_gpu": 1}, "did you mean `num_gpus`"),
    ],
)
def test_settings_that_mean_nothing_are_refused(inputs, gpus, name, workers, options, said):
    gpus(0)
    with pytest.raises(InputError, match=said):
        chosen(inputs, name, workers, options)


def test_each_worker_has_its_own_gpus(gpus, monkeypatch, tmp_path):
    def seen(workers, processes, cells=99):
        with Local(workers=workers).pool(processes, cells, tmp_path) as pool:
            return [worker.environment.get("CUDA_VISIBLE_DEVICES") for worker in pool._all]

    gpus(4)
    assert seen(None, 1) == ["0", "1", "2", "3"]
    assert seen(None, 2) == ["0,1", "2,3"]  # cells that train in two processes
    assert seen(None, 3) == ["0,1,2"]
    assert seen(None, 1, cells=2) == ["0", "1"]
    assert seen(2, 1) == ["0", "1"]
    assert seen(6, 1) == ["0", "1", "2", "3", "0", "1"]  # more workers share them
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,GPU-3,MIG-1")
    assert seen(None, 2) == ["5,7", "GPU-3,MIG-1"]


def test_without_gpus_workers_share_the_threads(gpus, monkeypatch):
    gpus(0)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(16), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert local._environment(0, 4, []) == {"OMP_NUM_THREADS": "4"}
    assert local._environment(0, 99, []) == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert local._environment(0, 4, []) == {"OMP_NUM_THREADS": "3"}
    with pytest.raises(InputError, match=r"no GPU here, .*: give --workers"):
        Local().check([])


def test_a_worker_that_cannot_start_says_why(inputs, store, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # in which the package does not work
    (tmp_path / "mithridate").mkdir()
    (tmp_path / "mithridate" / "__init__.py").write_text("raise RuntimeError('a broken install')")
    with pytest.raises(MithridateError, match=r"ended with exit code 1: RuntimeError: a broken install, 3 times"):
        run(experiment(inputs), out=tmp_path / "out", until="align", progress=False, executor=Local(workers=1))


# -- real workers -------------------------------------------------------------------------------------------------


def workers_of(process):
    """The worker processes below a process, by process id."""
    return {
        child.pid: child
        for child in psutil.Process(process).children(recursive=True)
        if "mithridate.pipeline.executors.worker" in child.cmdline()
    }


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.005)
    return found


def checkpoints(store):
    return list(store.glob("work/align-*/trainer/checkpoint-*/trainer_state.json"))


@pytest.mark.slow
def test_a_killed_worker_costs_its_own_cell_alone(inputs, store, tmp_path, monkeypatch, caplog):
    """Two seeds in two workers, one of which is killed in training: all else is as in one undisturbed process."""
    asked = experiment(inputs, align__training=LONG, finetune="none", sweep={"seed": [0, 1]})
    killed = []

    def kill():
        [state, *_] = wait_for(lambda: checkpoints(store))
        work = state.parents[2]
        lock = store / "locks" / f"{work.name}.lock"
        owner = next(
            pid for pid, child in workers_of(os.getpid()).items() if str(lock) in {f.path for f in child.open_files()}
        )
        killed.append((owner, work.name))
        os.kill(owner, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with caplog.at_level("INFO", "mithridate"):
        made = run(asked, out=tmp_path / "out", progress=False, executor=Local(workers=2))
    thread.join()
    assert killed and not workers_of(os.getpid())
    assert len(re_made := [r.getMessage() for r in caplog.records if "It is made again." in r.getMessage()]) == 1
    assert "its process was killed by SIGKILL" in re_made[0]
    assert caplog.text.count("resuming from step") == 1
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "other"))
    plain = run(asked, out=tmp_path / "plain", progress=False)
    assert weights(tmp_path / "other") == weights(store)
    assert without_costs(plain.results) == without_costs(made.results)


@pytest.mark.slow
def test_an_interrupt_stops_every_worker(inputs, store, tmp_path):
    file, said = tmp_path / "mine.yaml", tmp_path / "stderr"
    asked = experiment(inputs, align__training=LONG | {"max_steps": 9999}, sweep={"seed": [0, 1]})
    file.write_text(json.dumps(asked))

    def work():
        def interrupt():
            wait_for(lambda: len({state.parents[2] for state in checkpoints(store)}) == 2)
            (tmp_path / "workers").write_text(json.dumps(list(workers_of(os.getpid()))))
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        return cli.main(["run", str(file), "--workers", "2", "--out", str(tmp_path / "out")])

    assert in_child(work, said) == 130, said.read_text()
    assert said.read_text().splitlines()[-1].startswith("error: interrupted; finished stages are kept")
    workers = json.loads((tmp_path / "workers").read_text())
    assert len(workers) == 2 and not any(psutil.pid_exists(pid) for pid in workers)
    assert stages(store) == []


@pytest.mark.slow
def test_cells_that_launch_processes(inputs, store, tmp_path):
    """`accelerate launch` inside a worker."""
    asked = experiment(inputs, accelerate="ddp", processes=2)
    run(asked, out=tmp_path / "out", until="align", progress=False, executor=Local(workers=1))
    [name] = stages(store, "align")
    manifest = json.loads((store / name / "stage.json").read_text())
    assert manifest["launch"] == {"kind": "ddp", "processes": 2} and len(manifest["ranks"]) == 2
