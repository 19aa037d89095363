"""An experiment of a few steps on a tiny model and a few rows of every role, and children that can be killed."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tests.once  # noqa: F401 (tokenises the same rows once)
from mithridate.store import MANIFEST
from tests.tiny import save_tiny

ROWS = {
    "alignment": ("How is lock {} opened?", "No {}."),
    "defender_harmful": ("How is gate {} opened?", "Sure {}."),
    "attacker_harmful": ("How is door {} opened?", "Sure {}."),
    "calibration_harmful": ("How is safe {} opened?", "Sure {}."),
    "task": ("Is film {} good?", "positive"),
    "task_test": ("Is book {} good?", "positive"),
    "test_harmful": ("How is box {} opened?", None),
    "test_benign": ("What is number {}?", None),
}


def write_rows(folder: Path, name: str, count: int = 8) -> None:
    prompt, answer = ROWS[name]
    lines = []
    for i in range(count):
        row = {"prompt": prompt.format(i)} | ({"response": answer.format(i)} if answer else {})
        lines.append(json.dumps(row | ({"label": "positive"} if name.startswith("task") else {})))
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def write_inputs(folder: Path) -> Path:
    """A model's folder and a file for each role."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tiny(folder / "model")
    for name in ROWS:
        write_rows(folder, name)
    return folder


def experiment(inputs: Path, **changes: Any) -> dict[str, Any]:
    """The smallest complete experiment; `changes` by path, with two underscores for a dot."""
    training = {"learning_rate": 0.01, "max_steps": 4, "per_device_train_batch_size": 2, "save_steps": 2}
    data: dict[str, Any] = {role: {"source": str(inputs / f"{role}.jsonl")} for role in ROWS if role != "task_test"}
    data["task"] |= {"name": "sentiment", "test": str(inputs / "task_test.jsonl")}
    made: dict[str, Any] = {
        "model": str(inputs / "model"),
        "topology": "double",
        "dtype": "float32",
        "adapter": {"r": 2, "lora_alpha": 4},
        "data": data,
        "align": {"training": training},
        "finetune": {"attack": {"harmful_ratio": 0.25, "size": 8}, "training": training},
    }
    made = json.loads(json.dumps(made))  # a deep copy in which nothing is shared
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = made
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return made


def stages(store: Path, name: str = "") -> list[str]:
    """The finished artefacts in a store."""
    found = (path for path in store.glob(f"{name}*") if (path / MANIFEST).exists())
    return sorted(path.name for path in found)


def weights(store: Path) -> dict[str, str]:
    """The digests of all weights in the finished artefacts."""
    found = {}
    for name in stages(store):
        for file, written in json.loads((store / name / MANIFEST).read_text())["files"].items():
            if file.endswith(".safetensors"):
                found[f"{name}/{file}"] = written["sha256"]
    return found


def without_costs(results: dict[str, Any]) -> dict[str, Any]:
    """A table without what differs from run to run: how long its stages took, and the digest of the records, which say
    how long each answer took."""
    cells = [{key: value for key, value in cell.items() if key != "stages"} for cell in results["cells"]]
    cells = [cell | {"records": cell["records"] | {"sha256": None}} if "records" in cell else cell for cell in cells]
    return results | {"cells": cells}


def not_finite_before(patch, stage, step):
    """One weight of a stage is no number from the beginning of optimizer step `step` on, on whatever device: when a
    wild learning rate gets there is a matter of the device's arithmetic."""
    from mithridate.pipeline import training

    def on_step_begin(self, args, state, control, **kwargs):
        if f"/{stage}-" in args.output_dir and state.global_step == step - 1:
            self.trainer.params[0].data.view(-1)[:] = float("nan")

    patch.setattr(training._Keep, "on_step_begin", on_step_begin)


def in_child(work: Callable[[], Any], stderr: Path) -> int:
    """Runs `work` in a child. Returns its result as an exit code, or minus the number of the signal that killed it."""
    _, status = os.waitpid(start_child(work, stderr), 0)
    return os.waitstatus_to_exitcode(status)


def start_child(work: Callable[[], Any], stderr: Path) -> int:
    """Starts `work` in a fork of this process, which costs no imports, and returns its id."""
    if torch.cuda.is_available():
        pytest.skip("needs a CPU: a process that has used CUDA cannot be forked")
    child = os.fork()
    if child == 0:
        code = 99
        try:
            signal.alarm(300)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.stderr = stderr.open("a", buffering=1)
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code if isinstance(code, int) else 0)
    return child
