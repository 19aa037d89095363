"""A training stage in several processes, through `accelerate launch`.

The command's own process writes the job to `launch/job.json` in the stage's work folder and starts

    accelerate launch --config_file FILE --num_processes K ... -m mithridate.pipeline.launch WORK

In each process `main` reads the job and trains; the first one writes the weights. The command's process shows the
progress and the log messages that the first process sends over its stdout, keeps the library's noise to itself, and
turns the failure of any process into one error. All of them read the stdin that it holds open: when that closes,
because it was interrupted, killed or is done with them, they end at once, and no process trains on by itself.

Does k processes with b rows each equal one with k * b? The rows of a step are the same, and their gradient is averaged
by tokens, so plain training, and methods whose terms are means over a step's rows, take the same step to rounding
(tests hold them to it); where the rows do not divide, the last step of an epoch differs. A norm that is each process's
own makes a strength that is measured by it another one. So the number of processes, and whether weights are sharded,
are part of a stage's key.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from mithridate.environment import gpu_problem
from mithridate.errors import InputError, MithridateError, UnsupportedSetup
from mithridate.experiment.processes import SHIPPED, read_accelerate
from mithridate.files import replace_file
from mithridate.progress import Progress

if TYPE_CHECKING:
    from mithridate.experiment.config import Experiment
    from mithridate.pipeline.training import Job

logger = logging.getLogger(__name__)

_EVENT = "\x1emithridate "  # begins a line that is for the command's process
_PATIENCE = 30  # seconds that processes have to end, once told to


@dataclass(frozen=True)
class Launch:
    """How several processes train together.

    Attributes:
        file: an Accelerate configuration.
        kind: "ddp" (each process has the whole model) or "fsdp2" (weights are sharded).
        processes: how many; at least 2.
    """

    file: Path
    kind: Literal["ddp", "fsdp2"]
    processes: int

    def check(self) -> None:
        """Whether this machine can do it.

        Raises:
            UnsupportedSetup: FSDP2 without GPUs.
            InputError: more processes than GPUs.
        """
        import torch

        gpus = torch.cuda.device_count()
        if self.kind == "fsdp2" and not gpus:
            why = gpu_problem() or "torch sees none here"
            raise UnsupportedSetup(
                f"accelerate: Accelerate shards weights (FSDP2) on GPUs only: {why}.",
                "set accelerate: ddp, which runs on CPUs too, or none.",
            )
        if gpus and self.processes > gpus:
            raise InputError(
                f"processes: {self.processes} were asked for, and torch sees {gpus} GPU{'s' if gpus > 1 else ''}; one "
                f"GPU each. Set processes: {gpus}"
            )


def launch_of(experiment: Experiment) -> Launch | None:
    """The launch of an experiment `with_processes`; None where one process is enough."""
    if experiment.accelerate == "none" or experiment.processes in (None, 1):
        return None
    _, kind = read_accelerate(experiment.accelerate)
    return Launch(SHIPPED.get(experiment.accelerate, Path(experiment.accelerate)), kind, experiment.processes)


# -- in the command's process -------------------------------------------------------------------------------------


def run(job: Job, launch: Launch, work: Path) -> dict[str, Any]:
    """Does a job in several processes. Returns what `stage.json` should say of them: the launch, and each one's peak
    memory (bytes).

    Raises:
        MithridateError: (or InputError) what the first process that failed said.
    """
    folder = work / "launch"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(asdict(job), default=str), encoding="utf-8")
    _free_gpu_memory()
    process = _start(launch, work)
    said: deque[str] = deque(maxlen=400)
    try:
        _follow(process, said, job.progress)
        code = process.wait()
    finally:
        _end(process)
    if code != 0:
        raise _failure(folder, "".join(said), launch.processes, code)
    ranks = [json.loads((folder / f"done-{rank}.json").read_text()) for rank in range(launch.processes)]
    shutil.rmtree(folder)
    return {"launch": {"kind": launch.kind, "processes": launch.processes}, "ranks": ranks}


def _free_gpu_memory() -> None:
    """What this process has cached on a GPU, another one needs now."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _start(launch: Launch, work: Path) -> subprocess.Popen[str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch.file)]
    command += ["--num_processes", str(launch.processes), "--main_process_port", "0"]
    # The experiment's dtype decides; without this, a file's mixed precision would act where the experiment sets none.
    command += ["--mixed_precision", "no"]
    command += ["--num_cpu_threads_per_process", str(max(1, cores // launch.processes))]
    command += ["-m", "mithridate.pipeline.launch", str(work)]
    # A session of its own: a terminal's interrupt is for this process alone, which then ends the others.
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def _follow(process: subprocess.Popen[str], said: deque[str], progress: bool) -> None:
    """Shows what the first process tells, until all have closed their output; the rest goes into `said`."""
    assert process.stdout is not None
    bar = None
    try:
        for line in process.stdout:
            if not line.startswith(_EVENT):
                said.append(line)
                logger.debug("%s", line.rstrip())
                continue
            event = json.loads(line.removeprefix(_EVENT))
            if "message" in event:
                logging.getLogger(event["name"]).log(event["level"], "%s", event["message"])
            elif progress:
                bar = bar or Progress(event["of"], "training", "steps", done=event["step"] - 1)
                bar.advance(event["step"] - bar.done)
    finally:
        if bar is not None:
            bar.close()


def _end(process: subprocess.Popen[str]) -> None:
    """Ends the launcher and all its processes, where they have not ended."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        logger.warning("the launcher did not end by itself and is killed")
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _failure(folder: Path, said: str, processes: int, code: int) -> MithridateError:
    """The one error behind the end of all processes.

    When one dies, the others fail too, for want of it. So a process that a signal killed is named first, then what a
    process said on purpose, then what came first.
    """
    for rank, number in re.findall(r"rank\s*:\s*(\d+).*\n\s*exitcode\s*:\s*-(\d+)", said):
        if int(number) != signal.SIGTERM:  # by which the launcher ends those that are left
            name = signal.Signals(int(number)).name
            short = " (often: the machine has run out of memory)" if int(number) == signal.SIGKILL else ""
            return MithridateError(
                f"process {rank} of {processes} was killed by {name}{short}. The last checkpoint is kept, and the "
                "next run continues from it."
            )
    errors = sorted(
        (json.loads(file.read_text()) for file in folder.glob("error-*.json")),
        key=lambda error: (error["kind"] == "other", error["time"]),
    )
    if errors:
        first = errors[0]
        logger.debug("%s", first["traceback"])
        if first["kind"] == "other":
            return MithridateError(f"process {first['rank']} of {processes} failed: {first['message']}")
        return (InputError if first["kind"] == "input" else MithridateError)(first["message"])
    last = [line for line in said.splitlines() if line.strip()][-1:] or ["it said nothing"]
    return MithridateError(
        f"`accelerate launch` ended with exit code {code}: {last[0].strip()} (run it with --debug for all it said)"
    )


# -- in each of the processes that train -----------------------------------------------------------------------------


def main(work: Path) -> int:
    """Trains as one of several processes. Exit code 0, or 1 with the error in a file."""
    rank = int(os.environ["RANK"])
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    folder = work / "launch"
    try:
        from mithridate.environment import PeakMemory

        with PeakMemory() as peak:
            _train(folder, work, rank)
        peaks = {"peak_memory_bytes": peak.bytes, "peak_gpu_memory_bytes": peak.gpu_bytes}
        (folder / f"done-{rank}.json").write_text(json.dumps(peaks))
        return 0
    except Exception as error:
        kind = "input" if isinstance(error, InputError) else "known" if isinstance(error, MithridateError) else "other"
        text = str(error) if kind != "other" else f"{type(error).__name__}: {error}"
        record = {"kind": kind, "message": text, "rank": rank, "time": time.time()}
        replace_file(folder / f"error-{rank}.json", json.dumps(record | {"traceback": traceback.format_exc()}))
        return 1


def _end_with_the_command() -> None:
    """Waits until the command's process closes its end of stdin, which its death does too."""
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os._exit(1)


def _train(folder: Path, work: Path, rank: int) -> None:
    from pydantic import TypeAdapter
    from transformers import TrainerCallback

    from mithridate.pipeline.training import Job, run_job

    _take_gpu(int(os.environ["LOCAL_RANK"]))
    job = TypeAdapter(Job).validate_json((folder / "job.json").read_bytes())
    channel = sys.stdout

    class Steps(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            _tell(channel, step=state.global_step, of=state.max_steps)

    class Messages(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            _tell(channel, name=record.name, level=record.levelno, message=record.getMessage())

    ours = logging.getLogger("mithridate")
    ours.propagate = False
    ours.setLevel(logging.INFO)
    ours.handlers[:] = [Messages()] if rank == 0 else [logging.NullHandler()]
    run_job(_without_bar(job), work, [Steps()] if rank == 0 else [])


def _take_gpu(place: int) -> None:
    """Makes the GPU that Accelerate gives to the process at this place its current one, before a model is loaded:
    bitsandbytes puts quantised weights there, and they stay. Accelerate's own `PartialState` would do it too, but it
    opens the process group, whose time limit and backend the training's arguments still have to say."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(place % torch.cuda.device_count())


def _without_bar(job: Job) -> Job:
    from dataclasses import replace

    return replace(job, progress=False)


def _tell(channel: IO[str], **event: Any) -> None:
    """One write, so that other processes' output cannot come between."""
    channel.write(f"\n{_EVENT}{json.dumps(event)}\n")
    channel.flush()


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of the libraries', and a process group whose other half is gone, cannot hold it up
