"""Stages in two processes, through the real `accelerate launch` (CPU, gloo): same result, one error, nothing left."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import yaml
from accelerate import DistributedType, PartialState
from safetensors.torch import load_file

from mithridate import progress
from mithridate.errors import InputError, MithridateError, UnsupportedSetup
from mithridate.experiment.config import load_experiment
from mithridate.experiment.processes import with_processes
from mithridate.models import resolve_model
from mithridate.pipeline import launch, training
from mithridate.pipeline.launch import SHIPPED, Launch, launch_of
from mithridate.pipeline.runner import run
from mithridate.pipeline.training import Job, _is_whole, _last_whole, run_job
from tests.pipeline.small import experiment, stages, weights, write_inputs

pytestmark = pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes need two GPUs, or a CPU")
TWO, SHARDED = Launch(SHIPPED["ddp"], "ddp", 2), Launch(SHIPPED["fsdp2"], "fsdp2", 2)
ROOT = Path(__file__).parents[2]
LISA = {"align_steps": 1, "finetune_steps": 2, "rho": 0.5, "proximal_start": 0.0}
STEPS, SAVED = 120, 10


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def job(inputs):
    """Lisa, which has a state of its own, over enough steps to be disturbed in the middle."""

    def rows(role):
        return [json.loads(line) for line in (inputs / f"{role}.jsonl").read_text().splitlines()]

    return Job(
        base=resolve_model(str(inputs / "model")),
        layers=[],
        dtype="float32",
        adapter={"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
        rows=rows("task"),
        defense={"lisa": LISA},
        side_rows={role: rows(role) for role in ("alignment", "defender_harmful")},
        training={
            "learning_rate": 0.003,
            "max_steps": STEPS,
            "save_steps": SAVED,
            "per_device_train_batch_size": 2,
            "optim": "sgd",
        },
        seed=3,
        snapshots=[7],
        progress=True,
    )


@pytest.fixture(scope="module")
def undisturbed(job, tmp_path_factory):
    work = tmp_path_factory.mktemp("undisturbed")
    return work, launch.run(job, TWO, work)


def adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


def apart(one, other):
    """How far two adapters are from each other, relative to the first one's size."""
    assert one.keys() == other.keys()
    far = sum((one[name] - other[name]).square().sum() for name in one).sqrt()
    return float(far / sum(value.square().sum() for value in one.values()).sqrt())


def children(process):
    """The processes that train, by rank."""
    found = {}
    for child in process.children(recursive=True):
        try:
            if "mithridate.pipeline.launch" in child.cmdline() and "RANK" in child.environ():
                found[int(child.environ()["RANK"])] = child
        except psutil.Error:
            continue
    return found


def wait_for(what, seconds=180):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)
    return found


# -- the same result -----------------------------------------------------------------------------------------


def equals_one_process(job, work, tmp_path):
    """Two processes with 2 rows each took the steps that one takes with 4."""
    alone = replace(job, training=job.training | {"per_device_train_batch_size": 4}, progress=False)
    run_job(alone, tmp_path)
    assert apart(adapter(tmp_path / "model"), adapter(work / "model")) < 1e-4
    assert apart(adapter(tmp_path / "snapshots/step-7"), adapter(work / "snapshots/step-7")) < 1e-5
    other = replace(alone, seed=4, training=alone.training | {"max_steps": 8})
    run_job(other, tmp_path / "other")
    reordered = adapter(tmp_path / "other/snapshots/step-7")
    assert apart(adapter(tmp_path / "snapshots/step-7"), reordered) > 1e-2  # so the rows and their order matter
    logs = [json.loads((folder / "history.json").read_text()) for folder in (tmp_path, work)]
    assert [log["step"] for log in logs[0]] == [log["step"] for log in logs[1]]
    assert logs[0][0]["loss"] == pytest.approx(logs[1][0]["loss"], rel=1e-3)


def test_two_processes_equal_one(job, undisturbed, tmp_path):
    work, recorded = undisturbed
    equals_one_process(job, work, tmp_path)
    assert recorded["launch"] == {"kind": "ddp", "processes": 2}
    assert len(recorded["ranks"]) == 2 and all(rank["peak_memory_bytes"] > 10**8 for rank in recorded["ranks"])
    assert sorted(path.name for path in work.iterdir()) == ["history.json", "model", "snapshots"]


@pytest.mark.slow
def test_booster_in_two_processes_equals_one(job, tmp_path):
    """Which reads other rows in every step; plain training over gloo is in tests/distributed."""
    few = replace(job, defense={"booster": {"alpha": 0.1, "lam": 1.0}}, training=job.training | {"max_steps": 12})
    launch.run(few, TWO, tmp_path / "two")
    equals_one_process(few, tmp_path / "two", tmp_path)


def test_a_process_takes_its_gpu_before_it_loads_the_model(job, tmp_path, monkeypatch):
    """bitsandbytes loads quantised weights onto the current GPU, and Accelerate refuses another one than it gives."""
    (tmp_path / "job.json").write_text(json.dumps(asdict(job), default=str))
    done = []

    class Loaded(Exception):
        pass

    def load(*args, **kwargs):
        done.append("loaded")
        raise Loaded

    monkeypatch.setattr(training, "assemble", load)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: done.append(gpu))
    for place, gpu in ((0, 0), (1, 1), (3, 1)):
        monkeypatch.setenv("LOCAL_RANK", str(place))
        with pytest.raises(Loaded):
            launch._train(tmp_path, tmp_path, place)
        assert done == [gpu, "loaded"]
        done.clear()
    for place, gpu in ((0, 0), (3, 1)):  # whose choice it is
        state = SimpleNamespace(device=None, distributed_type=DistributedType.MULTI_GPU, local_process_index=place)
        PartialState.set_device(state)
        assert str(state.device) == f"cuda:{gpu}" and done.pop() == state.device


def test_the_bar_is_shown_once(job, tmp_path, capfd, monkeypatch):
    """Of events as the first process sends them, between the libraries' noise."""
    script = (
        "from mithridate.pipeline.launch import _tell; import sys\n"
        "sys.stdout.write('noise without an end')\n"
        "for step in (1, 2): _tell(sys.stdout, step=step, of=2); print('5/9 noise', file=sys.stderr, flush=True)\n"
        "_tell(sys.stdout, name='mithridate.x', level=30, message='heard')\n"
    )

    def start(launch, work):
        return subprocess.Popen(
            [sys.executable, "-uc", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    monkeypatch.setattr(launch, "_start", start)
    monkeypatch.setattr(progress, "_SHORT", 0.0)  # so that a log, which is no terminal, has its lines at once
    with pytest.raises(FileNotFoundError):  # no process left its figures
        launch.run(job, TWO, tmp_path)
    shown = capfd.readouterr().err
    assert shown.count("training: 2 of 2 steps") == 1 and "noise" not in shown


# -- one error -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_all_processes_say_is_said_once(job, tmp_path):
    """An error of bad input stays one: its text as in one process, its exit code 3."""
    long = [{"prompt": "x" * 600, "response": "No."}]
    nothing = replace(job, training=job.training | {"max_length": 500}, side_rows={"alignment": long})
    with pytest.raises(InputError) as alone:
        run_job(replace(nothing, progress=False), tmp_path / "one")
    with pytest.raises(InputError) as error:
        launch.run(nothing, TWO, tmp_path / "two")
    assert str(error.value) == str(alone.value) and error.value.exit_code == 3
    assert "alignment_dataset has an answer left" in str(alone.value)


def disturbed(job, how, work, caplog):
    """Kills a process in the middle; the next run then goes on from the last checkpoint."""
    checkpoints = work / "trainer"

    def disturb():
        wait_for(lambda: _whole_seen(checkpoints))
        children(psutil.Process())[1].kill()

    helper = threading.Thread(target=disturb)
    helper.start()
    with pytest.raises(MithridateError, match=r"process 1 of 2 was killed by SIGKILL") as error:
        launch.run(job, how, work)
    helper.join()
    assert error.value.exit_code == 1 and not children(psutil.Process())
    assert not (work / "model").exists()

    with caplog.at_level("INFO", "mithridate"):
        launch.run(job, how, work)
    assert "resuming from step" in caplog.text and caplog.text.count("resuming") == 1


def same_adapters(one, other):
    for name in ("model", "snapshots/step-7"):
        first, second = adapter(one / name), adapter(other / name)
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_a_killed_process_ends_all_and_the_next_run_goes_on(job, undisturbed, tmp_path, caplog):
    disturbed(job, TWO, tmp_path, caplog)
    same_adapters(undisturbed[0], tmp_path)


@pytest.mark.slow
def test_sharded_by_accelerates_plugin_a_stage_is_the_same_and_goes_on_like_any_other(
    job, undisturbed, tmp_path, monkeypatch, caplog
):
    """On CPUs, where Accelerate is told of GPUs; what is saved of the shards is whole."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if 'RANK' in os.environ:\n"
        "    from tests.distributed.on_cpus import PartialState, with_gpus\n"
        "    PartialState.__init__ = with_gpus()\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    sharded, other, again = (tmp_path / name for name in ("sharded", "other", "again"))
    assert launch.run(job, SHARDED, sharded)["launch"] == {"kind": "fsdp2", "processes": 2}
    assert 0 < apart(adapter(undisturbed[0] / "model"), adapter(sharded / "model")) < 1e-4
    # plain SGD has no state for torch to bring back
    adam = replace(job, training=job.training | {"optim": "adamw_torch", "max_steps": 40})
    launch.run(adam, SHARDED, other)
    disturbed(adam, SHARDED, again, caplog)
    same_adapters(other, again)


def _whole_seen(folder):
    return [path for path in folder.glob("checkpoint-*") if _is_whole(path, 2)]


def test_a_signal_is_named_before_what_it_made_others_say(tmp_path):
    """The other processes fail for want of the killed one, and may say so first."""
    table = (
        "  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 7)\n  rank      : 0 (x)\n  exitcode  : -15 (pid: 6)"
    )
    (tmp_path / "error-0.json").write_text(
        json.dumps({"kind": "other", "message": "RuntimeError: peer", "rank": 0, "time": 1, "traceback": ""})
    )
    assert "process 1 of 2 was killed by SIGKILL" in str(launch._failure(tmp_path, table, 2, 1))
    assert str(launch._failure(tmp_path, "", 2, 1)) == "process 0 of 2 failed: RuntimeError: peer"
    (tmp_path / "error-1.json").write_text(
        json.dumps({"kind": "input", "message": "too long", "rank": 1, "time": 2, "traceback": ""})
    )
    known = launch._failure(tmp_path, "", 2, 1)  # later, but said on purpose
    assert (str(known), known.exit_code) == ("too long", 3)
    (tmp_path / "error-0.json").unlink()
    (tmp_path / "error-1.json").unlink()
    assert "exit code 2: no such option" in str(launch._failure(tmp_path, "a\nno such option\n", 2, 2))


def test_a_checkpoint_that_one_process_did_not_finish_is_not_used(tmp_path):
    for step, ranks in ((2, 2), (4, 1)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}")
        for rank in range(ranks):
            torch.save({}, folder / f"rng_state_{rank}.pth")
    assert _last_whole(tmp_path, 2) == str(tmp_path / "checkpoint-2")
    assert not (tmp_path / "checkpoint-4").exists()


# -- the command ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_interrupts_and_kills_of_the_command_leave_no_process(inputs, tmp_path, monkeypatch):
    """SIGTERM and SIGKILL in the middle; then the run ends as one that was left alone."""
    training = {"learning_rate": 0.003, "max_steps": STEPS, "save_steps": SAVED, "per_device_train_batch_size": 2}
    asked = experiment(inputs, align__training=training, processes=2)
    file, store = tmp_path / "mine.yaml", tmp_path / "store"
    file.write_text(json.dumps(asked))

    def started(**environment):
        command = [sys.executable, "-m", "mithridate", "align", str(file), "--accelerate", "ddp"]
        return subprocess.Popen(
            [*command, "--out", str(tmp_path / "out")],
            env=os.environ | {"MITHRIDATE_STORE": str(store)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    for sent, code in ((signal.SIGTERM, 130), (signal.SIGKILL, -9)):
        process = started()
        found = wait_for(lambda p=process: children(psutil.Process(p.pid)))
        at = len(_whole_seen_in(store))
        wait_for(lambda at=at: len(_whole_seen_in(store)) > 0 and (at == 0 or _moved_on(store)))
        process.send_signal(sent)
        _, said = process.communicate(timeout=120)
        assert process.returncode == code, said
        assert stages(store) == []
        psutil.wait_procs(list(found.values()), timeout=30)
        assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in found.values())
        if code == 130:
            last = said.splitlines()[-1]
            assert last == "error: interrupted; finished stages are kept, and the next run continues from them"
            assert "Traceback" not in said and "torch.distributed" not in said
    process = started()
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "resuming from step" in said
    [log] = store.glob("align-*/history.json")
    assert json.loads(log.read_text())[-1]["step"] == STEPS
    process = started(MITHRIDATE_STORE=str(tmp_path / "other"))
    assert process.wait(300) == 0
    assert weights(store) == weights(tmp_path / "other")


def _whole_seen_in(store: Path):
    return [path for folder in store.glob("work/*/trainer") for path in _whole_seen(folder)]


def _moved_on(store: Path):
    """Whether the resumed run has written a checkpoint of its own."""
    steps = (int(path.name.rsplit("-", 1)[1]) for path in _whole_seen_in(store))
    return max(steps, default=0) >= 2 * SAVED  # none: the one that was listed has just gone for a newer one


# -- what is asked for ---------------------------------------------------------------------------------------------


def settled(inputs, **changes):
    return with_processes(load_experiment(experiment(inputs, **changes)), inputs)


def test_one_process_is_not_launched(inputs):
    for changes in ({}, {"accelerate": "ddp", "processes": 1}, {"accelerate": "fsdp2", "processes": 1}):
        assert launch_of(settled(inputs, **changes)) is None


def test_the_shipped_files(inputs):
    assert sorted(SHIPPED) == ["ddp", "fsdp2"]
    for kind in ("ddp", "fsdp2"):
        found = launch_of(settled(inputs, accelerate=kind, processes=3))
        assert found == Launch(SHIPPED[kind], kind, 3)
        from accelerate.commands.config.config_args import load_config_from_file

        assert load_config_from_file(str(SHIPPED[kind])).num_machines == 1  # Accelerate takes all of its keys


def test_a_file_of_ones_own_is_looked_for_beside_the_experiment(inputs):
    (inputs / "mine.yaml").write_text(yaml.safe_dump({"distributed_type": "MULTI_GPU", "num_processes": 2}))
    asked = settled(inputs, accelerate="mine.yaml")
    assert launch_of(asked) == Launch(inputs / "mine.yaml", "ddp", 2)


WHOLE = {"fsdp_version": 2, "fsdp_cpu_ram_efficient_loading": False, "fsdp_state_dict_type": "FULL_STATE_DICT"}


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ({"distributed_type": "FSDP", "fsdp_config": WHOLE | {"fsdp_version": 1}}, "FSDP version 1.*fsdp_version: 2"),
        ({"distributed_type": "FSDP", "fsdp_config": {}}, "FSDP version 1"),
        (
            {"distributed_type": "FSDP", "fsdp_config": WHOLE | {"fsdp_cpu_ram_efficient_loading": True}},
            "fsdp_cpu_ram_efficient_loading: false",
        ),
        (
            {"distributed_type": "FSDP", "fsdp_config": WHOLE | {"fsdp_activation_checkpointing": True}},
            "fsdp_activation_checkpointing: false",
        ),
        (
            {"distributed_type": "FSDP", "fsdp_config": WHOLE | {"fsdp_state_dict_type": "SHARDED_STATE_DICT"}},
            "FULL_STATE_DICT",
        ),
        (
            {"distributed_type": "FSDP", "fsdp_config": WHOLE | {"fsdp_offload_params": True}},
            "fsdp_offload_params: false",
        ),
        ({"distributed_type": "DEEPSPEED"}, "DEEPSPEED is not supported"),
        ({"distributed_type": "MULTI_GPU", "num_machines": 2}, "several machines.*scale.md"),
        ({"distributed_type": "MULTI_GPU", "num_processes": 0}, "num_processes: expected at least 1"),
        ({"processes": 2}, "no Accelerate configuration"),
        ("{", "cannot be read"),
    ],
)
def test_files_that_are_not_supported(inputs, tmp_path, file, said):
    path = tmp_path / "a.yaml"
    path.write_text(file if isinstance(file, str) else yaml.safe_dump(file))
    with pytest.raises(InputError, match=said):
        settled(inputs, accelerate=str(path), processes=2)


def test_what_is_missing_is_said(inputs):
    with pytest.raises(InputError, match=r"no such file .*ddpp.*one of none, ddp, fsdp2"):
        settled(inputs, accelerate="ddpp")
    with pytest.raises(InputError, match="need accelerate: ddp"):
        load_experiment(experiment(inputs, processes=2))
    with pytest.raises(InputError, match="processes: expected at least 1"):
        load_experiment(experiment(inputs, processes=0, accelerate="ddp"))
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="Set processes: 2"):
            settled(inputs, accelerate="ddp")


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is supported with GPUs")
def test_fsdp2_without_gpus_is_refused_before_any_compute(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    with pytest.raises(UnsupportedSetup, match=r"GPUs only.*Remedy: set accelerate: ddp"):
        run(experiment(inputs, accelerate="fsdp2", processes=2), out=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists() and stages(tmp_path / "store") == []


def test_a_defense_that_does_not_shard_is_refused_before_any_compute(inputs, tmp_path, monkeypatch):
    """In the command's process, which itself is not sharded."""
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(Launch, "check", lambda self: None)
    asked = experiment(inputs, accelerate="fsdp2", processes=2, finetune__defense={"asft": {"lam": 1.0}})
    with pytest.raises(UnsupportedSetup, match="AsFT: reads whole matrices of the start model, and these are sharded"):
        run(asked, out=tmp_path / "out", progress=False)
    assert stages(tmp_path / "store") == []


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="2 were asked for, and torch sees 1 GPU;"):
        TWO.check()


def test_the_number_of_processes_is_part_of_the_key(inputs):
    from mithridate.pipeline.context import contexts_of
    from mithridate.pipeline.stages import ExperimentStages

    def key(**changes):
        asked = with_processes(load_experiment(experiment(inputs, **changes)), inputs)
        [context] = contexts_of([asked], inputs, progress=False)
        return ExperimentStages(asked, context).align.key

    one, two = key(), key(accelerate="ddp", processes=2)
    assert one == key(accelerate="ddp", processes=1)
    assert len({one, two, key(accelerate="ddp", processes=3), key(accelerate="fsdp2", processes=2)}) == 4


def test_lisas_cycle_is_held_against_the_steps_of_several_processes(inputs, tmp_path, monkeypatch):
    """8 rows, 2 a process: 4 steps an epoch alone, 2 in two processes, which are too few for a cycle of 3."""
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    training = {"num_train_epochs": 1, "per_device_train_batch_size": 2}
    changes = {"finetune__training": training, "finetune__defense": {"lisa": LISA}}
    with pytest.raises(UnsupportedSetup, match="the run has only 2"):
        run(experiment(inputs, accelerate="ddp", processes=2, **changes), out=tmp_path / "out", progress=False)
    assert stages(tmp_path / "store") == []


# -- many machines, as docs/scale.md has it ------------------------------------------------------------------------


@pytest.mark.slow
def test_the_script_for_many_machines(inputs, tmp_path):
    """Two launchers as on two machines, with one process each; the page's own script and line."""
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
    script = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "train.py" in block)
    line = next(block for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if "--machine_rank" in block)
    (tmp_path / "train.py").write_text(script)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = line.split("accelerate launch ")[1].replace("\\\n", " ").split()
    swaps = {"16": "2", "HOST": "127.0.0.1", "29500": str(port), "MODEL": str(inputs / "model"), "OUT": "out"}
    words = [swaps.get(word, word) for word in words]
    started = []
    for rank in "01":
        mine = [*words]
        mine[mine.index("--machine_rank") + 1] = rank
        command = [sys.executable, "-m", "accelerate.commands.launch", *mine]
        env = os.environ | {"ACCELERATE_USE_CPU": "true"}
        started.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said[0][-3000:] + said[1][-3000:]
    assert (tmp_path / "out" / "model.safetensors").exists()
