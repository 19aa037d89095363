"""What a training step costs: each method's against plain training's, and activation checkpointing's."""

from __future__ import annotations

import importlib.util
import statistics
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PretrainedConfig, TrainerCallback

from benchmarks.on_gpu import GPU, Figures, NotMeasured, forget_memory, made, now, peak_memory, said, small_llama
from benchmarks.on_gpu.runs import METHODS, defense, rows, trainer_for
from benchmarks.scale import RECIPE, shape_of_7b
from mithridate.estimate import estimate
from mithridate.estimate.trace import Setup, config_of
from mithridate.models.quantisation import quantisation_of
from mithridate.pipeline.training import scoring_labels_only
from tests.tiny import tiny_llama

LORA = {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "k_proj", "v_proj"]}
WARM_UP = 2  # the first steps choose kernels and make the optimizer's state


class Clock(TrainerCallback):
    """The seconds from the end of one optimizer step to the end of the next, the GPU's work included.

    Whatever is done in a step lies in between, at whichever of its places a defense does it, and in whatever order
    callbacks are called.

    Attributes:
        seconds: of each step.
        inside: of these, those of the Trainer's own forward and backward pass, a defense's in the same place included.
    """

    def __init__(self, trainer: Any) -> None:
        self.seconds: list[float] = []
        self.inside: list[float] = []
        trainer.add_callback(self)
        real = trainer.training_step

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = now()
            try:
                return real(*args, **kwargs)
            finally:
                self.inside.append(now() - started)

        trainer.training_step = timed

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._last = now()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        ended = now()
        self.seconds.append(ended - self._last)
        self._last = ended


def least(side: Any) -> float:
    """The least that a defense's step can take, in plain training's passes: a time without its own is not its step's.

    A further pass is at least two thirds of a plain one: it may leave out the gradients of weights.
    """
    return 1.0 if side is None else 1 + 2 / 3 * (side.cost().passes - 1)


class Bench:
    """A model of random weights, and runs of it in which steps are timed.

    Args:
        config: the model's shape.
        full: whether all weights are trained (float32, computed in bfloat16), or an adapter over bfloat16.
        length: characters of a row, in the tiny tokenizer's tokens.
        quantization: bitsandbytes' fields, for an adapter over quantised weights.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        full: bool,
        folder: Path,
        *,
        length: int,
        batch: int,
        steps: int,
        quantization: dict[str, Any] | None = None,
    ):
        self.config, self.full, self.folder, self.quantization = config, full, folder, quantization or {}
        self.length, self.batch, self.steps = length, batch, steps
        dtype = torch.float32 if full else torch.bfloat16
        model = made(config, dtype)
        if quantization:
            model.save_pretrained(folder / "model")
            model = AutoModelForCausalLM.from_pretrained(
                folder / "model", quantization_config=quantisation_of(quantization), dtype=dtype
            )
        self.model = model if full else get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA))
        self.data = rows("user", batch * steps, length)
        self.tokens, self.passes = (0, 0), []

    def run(self, side: Any, checkpointing: bool) -> tuple[list[float], int | None]:
        """Seconds of each step after the first ones, and the peak of memory in bytes. `passes` has the seconds of the
        Trainer's own pass in each of these steps."""
        trainer = trainer_for(
            self.model,
            side,
            self.folder,
            self.data,
            optim="adamw_torch_fused" if GPU else "adamw_torch",
            learning_rate=1e-5,
            bf16=self.full,
            max_steps=self.steps,
            per_device_train_batch_size=self.batch,
            gradient_checkpointing=checkpointing,
        )
        clock = Clock(trainer)
        forget_memory()
        if not checkpointing:
            self.model.gradient_checkpointing_disable()
        try:
            with scoring_labels_only(trainer.model):
                trainer.train()
        finally:
            self.model.zero_grad(set_to_none=True)
        sample = [trainer.train_dataset[i] for i in range(self.batch)]
        self.tokens = (
            max(len(row["input_ids"]) for row in sample),
            max(sum(label != -100 for label in row["labels"]) for row in sample),
        )
        self.passes = clock.inside[WARM_UP:]
        return clock.seconds[WARM_UP:], peak_memory()

    def predicted(self, method: str, checkpointing: bool) -> int:
        """The bytes that `mithridate estimate` says of this set-up."""
        length, scored = self.tokens
        setup = Setup(
            batch=self.batch,
            length=length,
            scored=scored,
            full=self.full,
            adapter=LORA,
            quantization=self.quantization,
            checkpointing=checkpointing,
            gpu=GPU,
        )
        return estimate(self.config, setup, method).total


def timed(seconds: list[float]) -> Figures:
    low, middle, high = statistics.quantiles(seconds, n=4)
    return {"median_ms": 1000 * middle, "spread_ms": 1000 * (high - low), "steps": len(seconds)}


def steps(tiny: bool, folder: Path, figures: Figures) -> None:
    config = tiny_llama().config if tiny else config_of("1b")
    sizes = {"length": 64, "batch": 2, "steps": 6} if tiny else {"length": 512, "batch": 8, "steps": 12}
    for kind in ("lora", "full"):
        found = figures[kind] = {}
        try:
            _steps(Bench(config, kind == "full", folder, **sizes), 2 if tiny else 3, found)
        except Exception as problem:
            found["reason"] = said(problem)
        forget_memory()


def qlora(tiny: bool, folder: Path, figures: Figures) -> None:
    """As `steps`, of an adapter over weights in 4 and in 8 bit."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise NotMeasured("bitsandbytes is not installed")
    config = tiny_llama(hidden_size=64, intermediate_size=128).config if tiny else config_of("1b")
    sizes = {"length": 64, "batch": 2, "steps": 6} if tiny else {"length": 512, "batch": 8, "steps": 8}
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}
    for kind, fields in {"4 bit": four, "8 bit": {"load_in_8bit": True}}.items():
        found = figures[kind] = {}
        try:
            _steps(Bench(config, False, folder / kind, **sizes, quantization=fields), 2, found)
        except Exception as problem:
            found["reason"] = said(problem)
        forget_memory()


def recipe(tiny: bool, folder: Path, figures: Figures) -> None:
    """As `qlora`, of the recipe in docs/scale.md: 7B in 4 bit, twice quantised."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise NotMeasured("bitsandbytes is not installed")
    config = tiny_llama(hidden_size=64, intermediate_size=128).config if tiny else shape_of_7b()
    sizes = {"length": 64, "batch": 2, "steps": 4} if tiny else {"length": 480, "batch": 4, "steps": 6}
    fields = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["quantization"]
    _steps(Bench(config, False, folder, **sizes, quantization=fields), 1, figures)


def _steps(bench: Bench, rounds: int, found: Figures) -> None:
    sides = {method: defense(method, len(bench.data), bench.length) for method in METHODS}
    taken: dict[str, list[float]] = {method: [] for method in METHODS}
    peaks: dict[str, int | None] = {}
    predicted: dict[str, int] = {}
    passes: list[float] = []

    def note() -> None:
        length, scored = bench.tokens
        found["tokens"] = {"batch": bench.batch, "length": length, "answer": scored}
        for method, seconds in taken.items():
            if len(seconds) > 1:
                each = timed(seconds)
                plain = each if method == "plain" else found["plain"]
                each["ratio"] = each["median_ms"] / plain["median_ms"]
                each["floor_ms"] = 1000 * least(sides[method]) * min(passes)
                found[method] = each | {"peak_bytes": peaks[method], "predicted_bytes": predicted.get(method)}

    try:
        for _ in range(rounds):
            for method, side in sides.items():
                seconds, peaks[method] = bench.run(side, checkpointing=True)
                taken[method] += seconds
                passes += bench.passes if side is None else []
                if method not in predicted:
                    predicted[method] = bench.predicted(method, True)
            note()
    finally:  # what was measured when time is over: nothing that takes time itself
        note()


def checkpointing(tiny: bool, folder: Path, figures: Figures) -> None:
    """Plain training with activation checkpointing and without, in turns."""
    shapes = {"135m": small_llama(), "1b": config_of("1b")}
    set_ups = {"tiny, lora": (tiny_llama().config, False)} if tiny else {}
    set_ups |= {} if tiny else {f"{n}, {k}": (c, k == "full") for n, c in shapes.items() for k in ("lora", "full")}
    sizes = {"length": 64, "batch": 2, "steps": 6} if tiny else {"length": 512, "batch": 8, "steps": 10}
    for name, (config, full) in set_ups.items():
        found = figures[name] = {}
        try:
            bench = Bench(config, full, folder, **sizes)
            taken: dict[str, list[float]] = {"on": [], "off": []}
            for _ in range(2):
                for word, seconds in taken.items():
                    more, peak = bench.run(None, checkpointing=word == "on")
                    seconds += more
                    found[word] = {"peak_bytes": peak}
            for word, seconds in taken.items():
                found[word] |= timed(seconds) | {"predicted_bytes": bench.predicted("plain", word == "on")}
            found["on_over_off"] = found["on"]["median_ms"] / found["off"]["median_ms"]
        except Exception as problem:
            found["reason"] = said(problem)
        finally:
            bench = None
            forget_memory()
