"""What the benchmarks share: trainings that take turns, the exact peak of a computation's memory, tables of ratios.

Several trainings are compared by letting them run *at the same time, one optimizer step each in turn* (`Relay`): what
slows the machine down for a minute slows all of them down. Each is a whole `Trainer.train()` in a thread of its own,
so what is timed is the real loop, from the end of one optimizer step to the end of the next: drawing the batches,
what a defense does before the step, forward and backward, clipping, the optimizer, logging.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from mithridate.environment import use_huge_pages

sys.path.insert(0, str(Path(__file__).parents[1]))  # for tests.tiny, which --tiny uses
use_huge_pages()  # as the command does


class Relay:
    """Runs several trainings so that exactly one of them computes at any time, handing over after each step.

    Args:
        trainers: by name. They may share a model: only the time of their steps is looked at.

    Attributes:
        seconds: of every optimizer step, by name.
    """

    def __init__(self, trainers: dict[str, Any]):
        self.trainers = trainers
        self.seconds: dict[str, list[float]] = {name: [] for name in trainers}
        self._waiting = list(trainers)
        self._turn = threading.Condition()
        self._error: BaseException | None = None

    def run(self) -> dict[str, list[float]]:
        """Trains them all; an error of one is raised here."""
        for name, trainer in self.trainers.items():
            trainer.add_callback(_HandOver(self, name))
        threads = [threading.Thread(target=self._train, args=(name,), daemon=True) for name in self.trainers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._error is not None:
            raise self._error
        return self.seconds

    def _train(self, name: str) -> None:
        try:
            self.wait(name)
            self.trainers[name].train()
        except BaseException as error:
            self._error = self._error or error
        with self._turn:
            self._waiting.remove(name)
            self._turn.notify_all()

    def wait(self, name: str) -> None:
        """Returns when it is this training's turn."""
        with self._turn:
            self._turn.wait_for(lambda: self._error is not None or self._waiting[0] == name)
        if self._error is not None:
            raise RuntimeError("another training failed")

    def hand_over(self, name: str) -> None:
        with self._turn:
            self._waiting.remove(name)
            self._waiting.append(name)
            self._turn.notify_all()


class _HandOver(TrainerCallback):
    def __init__(self, relay: Relay, name: str):
        self.relay, self.name, self.began = relay, name, 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.relay.seconds[self.name].append(time.perf_counter() - self.began)
        self.relay.hand_over(self.name)
        self.relay.wait(self.name)
        self.began = time.perf_counter()


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most memory that torch's CPU allocator held at once for tensors made while `work` ran, in bytes.

    Counted from the allocator's own events, so it is exact and the same in every run; what lived before is not in it.
    What is freed meanwhile of it makes the count too low: hence the collection of garbage first.
    """
    gc.collect()  # a finished trainer is a ring of references
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        work()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def median_and_spread(values: Iterable[float]) -> dict[str, float]:
    """Median, and the quartiles around it."""
    ordered = sorted(values)
    low, _, high = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else [ordered[0]] * 3
    return {"median": statistics.median(ordered), "low": low, "high": high, "n": len(ordered)}


def ratios(seconds: dict[str, list[float]], base: str, warmup: int) -> dict[str, dict[str, float]]:
    """Each training's step time over the base's step of the same round: median and quartiles of these ratios.

    `fastest` is the ratio of the shortest steps: where a machine is disturbed now and then, the least disturbed one.
    """
    reference = seconds[base][warmup:]
    return {
        name: median_and_spread(a / b for a, b in zip(values[warmup:], reference))
        | {"fastest": min(values[warmup:]) / min(reference)}
        for name, values in seconds.items()
    }


def conditions() -> dict[str, Any]:
    """Where and with what a figure was measured."""
    from mithridate.environment import hardware, versions

    return {
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "bf16_in_hardware": torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
    }


def write(path: Path | None, result: dict[str, Any]) -> None:
    """Writes a result as JSON with the conditions it was measured under."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**result, "conditions": conditions()}, indent=1) + "\n")


def shown(value: dict[str, float]) -> str:
    """ "2.03 (2.01 to 2.06)"."""
    return f"{value['median']:.2f} ({value['low']:.2f} to {value['high']:.2f})"
