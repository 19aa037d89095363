"""Holds what `mithridate estimate` predicts against what a training really needs, on the embedded model and a CPU.

    python -m benchmarks.memory            # from the repository's root; about five minutes on one core

Each case trains a few steps in a process of its own, in micro-batches of 4 x 128 tokens. Measured is the most memory
that the process had resident, sampled every 5 ms, less what it had before the model was loaded; so it includes what
the allocator keeps and the libraries' own buffers, which nothing predicts. Prints a table for docs/scale.md.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil

from mithridate.estimate import METHODS, estimate
from mithridate.estimate.trace import Setup, config_of
from mithridate.models import resolve_model
from mithridate.pipeline.training import Job, run_job

LENGTH, BATCH, GIB = 128, 4, 2**30
LORA = {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "k_proj", "v_proj"]}
FIELDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "vaccine": {"vaccine": {"rho": 2.0}},
    "booster": {"booster": {"alpha": 0.1, "lam": 5.0}},
    "lisa": {"lisa": {"align_steps": 1, "finetune_steps": 1, "rho": 1.0, "proximal_start": 0.0}},
}


def job(method: str, full: bool, dtype: str, checkpointing: bool) -> Job:
    rows = [{"prompt": f"Number {i}:" + " word" * 90, "response": " word" * 90} for i in range(16)]
    return Job(
        base=resolve_model("smollm2-135m"),
        layers=[],
        dtype=dtype,
        adapter=None if full else LORA,
        rows=rows,
        defense=FIELDS[method],
        side_rows={"alignment": rows, "defender_harmful": rows},
        training={
            "max_steps": 2,
            "per_device_train_batch_size": BATCH,
            "max_length": LENGTH,
            "learning_rate": 1e-5,
            "save_strategy": "no",
            "gradient_checkpointing": checkpointing,
        },
        seed=0,
        snapshots=[],
        progress=False,
    )


def measured(asked: Job) -> int:
    """Bytes, of a fork of this process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        process = psutil.Process()
        before = peak = process.memory_info().rss
        done = threading.Event()

        def sample() -> None:
            nonlocal peak
            while not done.wait(0.005):
                peak = max(peak, process.memory_info().rss)

        sampler = threading.Thread(target=sample)
        sampler.start()
        code = 1
        try:
            with tempfile.TemporaryDirectory() as folder:
                run_job(asked, Path(folder))
            code = 0
        finally:
            done.set()
            sampler.join()
            os.write(write, json.dumps(peak - before).encode())
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise RuntimeError("the training failed")
    return int(text)


def main() -> None:
    cases = [(False, "float32", False), (False, "float32", True), (True, "float32", False)]
    rows = []
    for full, dtype, checkpointing in cases:
        for method in METHODS:
            found = measured(job(method, full, dtype, checkpointing))
            rows.append((full, dtype, checkpointing, method, found))
            print(rows[-1], flush=True)
    # Predicted last: the processes above are forks, and are to start small.
    print("| trained | dtype | checkpointing | method | predicted GiB | measured GiB | predicted / measured |")
    print("|---|---|---|---|---|---|---|")
    config = config_of("smollm2-135m")
    for full, dtype, checkpointing, method, found in rows:
        setup = Setup(
            batch=BATCH,
            length=LENGTH,
            scored=LENGTH - 100,
            full=full,
            adapter=LORA,
            dtype=dtype,
            checkpointing=checkpointing,
            gpu=False,
            attention="eager",
        )
        total = estimate(config, setup, method).total
        print(
            f"| {'all weights' if full else 'LoRA'} | {dtype} | {'yes' if checkpointing else 'no'} | {method} "
            f"| {total / GIB:.2f} | {found / GIB:.2f} | {total / found:.2f} |"
        )


if __name__ == "__main__":
    main()
