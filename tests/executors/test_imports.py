"""What a process that trains loads: nothing of the report, which it writes no line of."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict

import pytest

from mithridate.experiment.config import load_experiment
from mithridate.pipeline.executors.cells import task_of
from mithridate.pipeline.experiments import stages_of
from mithridate.pipeline.graph import Graph
from mithridate.pipeline.jobs import job_of
from tests.pipeline.small import experiment, stages

SAY = """
    print(json.dumps(sorted(name for name in sys.modules if name.startswith("mithridate.report"))), flush=True)
    os._exit(0)
"""
WORKER = f"""
import json, os, sys
from mithridate.pipeline.executors import worker
attempt = worker.attempt
def then_say(task):
    assert attempt(task)["error"] is None{SAY}
worker.attempt = then_say
worker.main()
"""
LAUNCHED = f"""
import json, os, sys
from pathlib import Path
from mithridate.pipeline import launch
if launch.main(Path(sys.argv[1])) == 0:{SAY}
"""


def last_line(code, *arguments, given="", **environment):
    """Of what a process says; its stdin stays open, for both kinds end with it."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
    )
    process.stdin.write(given)
    process.stdin.flush()
    said = process.stdout.read()
    process.stdin.close()
    assert process.wait() == 0, said
    return said.splitlines()[-1]


@pytest.fixture
def batch(inputs, store):
    asked = load_experiment(experiment(inputs, finetune="none", dtype="float32"))
    [chain] = stages_of([asked], inputs, "experiment", False)
    [batch] = Graph([chain], "align").batches()
    return batch


@pytest.mark.slow
def test_a_worker_that_trains_imports_no_report_code(batch, inputs, store):
    task = task_of(batch, inputs)
    assert last_line(WORKER, given=json.dumps(asdict(task)) + "\n") == "[]"
    assert len(stages(store, "align")) == 1


@pytest.mark.slow
def test_a_process_that_is_launched_to_train_imports_no_report_code(batch, tmp_path):
    job = job_of(batch.chain, "align", batch.chain.context.roles.alignment, [], [])
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "job.json").write_text(json.dumps(asdict(job), default=str))
    first_of_one = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    assert last_line(LAUNCHED, str(tmp_path), **first_of_one, **address) == "[]"
    assert (tmp_path / "history.json").exists()
