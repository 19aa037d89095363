"""Fills the GPU rows in one go: trains, repairs and generates on the GPUs at hand, and writes what it measured.

    python -m benchmarks.gpu                  # from the repository's root; writes benchmarks/gpu_evidence.json
    python -m benchmarks.gpu --only steps     # one section; the others' figures in the file are kept
    python -m benchmarks.gpu --tiny           # the same code on a CPU with tiny models, in a minute; proves nothing

Nothing is downloaded: models have random weights. Each section, and each set-up in it, stands alone: one that fails
leaves its error in the file and the rest goes on; what was not measured is absent or says why. The file:

    {"schema": 1, "tiny": false, "device": {...}, "versions": {...}, "finished": "...",
     "sections": {NAME: {"status": "done" | "failed" | "skipped", "reason": "...", "seconds": 1.0, "figures": {...}}}}

Sections and their figures:

    exactness   {set-up: {method: {"error": e, "plain": p, "exact": true}}}, or {set-up: {"reason": "..."}}.
                e: |update - reference| / |reference| of one SGD step (Lisa: of four); the reference is the papers'
                rules in float64 on a CPU (`tests/defenses/reference.py`). p: the same for plain training in the same
                set-up, which is what its arithmetic costs by itself. exact: e <= 4 p + 1e-6.
    processes   {"ddp" | "fsdp2": {method: {"error": e, "exact": true}}}: two processes with 4 rows each against one
                with 8, in float32; exact: e < 1e-4. Vaccine's norm is each process's own and is left out.
    steps       {"lora" | "full": {method: {"median_ms", "spread_ms", "ratio", "peak_bytes", "predicted_bytes"}}}: the
                time of a step, methods interleaved; spread: the quartiles' distance; ratio to plain training; the peak
                of torch's allocator, and what `mithridate estimate` says.
    antidote    seconds of the repair, of one batched forward pass, and of the reference manner's passes (each row by
                itself, twice); and their ratios.
    generation  tokens per second, batched and one prompt at a time, and their ratio.

Needs the versions that pyproject.toml asks for; QLoRA needs bitsandbytes, FSDP2 two GPUs.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import SFTConfig

from mithridate.defenses.booster import Booster
from mithridate.defenses.lisa import Lisa
from mithridate.defenses.vaccine import Vaccine
from mithridate.environment import hardware, versions
from mithridate.estimate import estimate
from mithridate.fakemodel import Setup, config_of
from mithridate.pipeline.launch import SHIPPED
from mithridate.pipeline.training import scoring_labels_only
from mithridate.repairs.antidote import Antidote
from mithridate.training.trainer import DefenseTrainer
from tests.defenses import reference
from tests.tiny import save_tiny, tiny_llama, tiny_tokenizer

OUT = Path(__file__).with_name("gpu_evidence.json")
METHODS = ("plain", "vaccine", "booster", "lisa")
LISA = {"align_steps": 1, "finetune_steps": 2, "rho": 0.5, "proximal_start": 0.0}
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


class NotMeasured(Exception):
    """Why something cannot be measured here."""


# -- one step ------------------------------------------------------------------------------------------------


def rows(name: str, count: int, length: int = 0) -> Dataset:
    """Prompts with answers; with `length`, of about so many characters, which are tokens of the tiny tokenizer."""
    fill = " lorem ipsum" * (length // 24)
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"{name} {i}{fill}" + "?" * (i % 5)}],
                "completion": [{"role": "assistant", "content": f"{name[::-1]}{fill}{i * i}" + "!" * (i % 3)}],
            }
            for i in range(count)
        ]
    )


def defense(method: str, count: int = 8, length: int = 0) -> Any:
    if method == "vaccine":
        return Vaccine(rho=1.5)
    if method == "booster":
        return Booster(harmful_dataset=rows("harmful!", count, length), alpha=0.3, lam=2.0)
    if method == "lisa":
        return Lisa(alignment_dataset=rows("careful", count, length), **LISA)
    return None


@contextmanager
def unrefused() -> Iterator[None]:
    """Inside, set-ups that are refused because nothing was measured in them are tried."""
    with mock.patch("mithridate.training.setups._untested", lambda trainer: []):
        yield


def trainer_for(model: Any, method: str, folder: Path, data: Dataset, length: int = 0, **args: Any) -> DefenseTrainer:
    """`length`: of the defense's own rows."""
    values = {
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "optim": "sgd",
        "learning_rate": 0.1 if method == "lisa" else 1.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "max_steps": 4 if method == "lisa" else 1,
        "per_device_train_batch_size": 8,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1000,
        "use_cpu": not GPU,
        "seed": 0,
        **args,
    }
    config = SFTConfig(str(folder), **values)
    config._n_gpu = min(config.n_gpu, 1)
    side = defense(method, len(data), length)
    with unrefused():
        return DefenseTrainer(
            model=model, args=config, train_dataset=data, processing_class=tiny_tokenizer(), defense=side
        )


def weights(model: Any) -> dict[str, torch.Tensor]:
    found = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return {n: getattr(p, "full_tensor", lambda p=p: p)().detach().double().cpu().clone() for n, p in found.items()}


def trained(model: Any, method: str, folder: Path, **args: Any) -> list[torch.Tensor]:
    """What the run did to the weights, before - after, in float64 on the CPU."""
    before = weights(model)
    trainer = trainer_for(model, method, folder, rows("user", 8), **args)
    scaler = trainer.accelerator.scaler
    if scaler is not None:
        scaler._init_scale = 128.0  # the usual first scale overflows at once, and the one step would be skipped
    trainer.train()
    after = weights(trainer.accelerator.unwrap_model(trainer.model))
    return [before[n] - after[n] for n in before]


def expected(model: Any, method: str, folder: Path) -> list[torch.Tensor]:
    """What the papers' rule does to the same weights, in float64."""
    plain = copy.deepcopy(model).cpu().double()
    batch, harmful, careful = (batch_of(name, folder) for name in ("user", "harmful!", "careful"))
    if method == "vaccine":
        return reference.vaccine(plain, [batch], 1.5)
    if method == "booster":
        return reference.booster(plain, batch, harmful, 0.3, 2.0)
    if method == "lisa":
        before = weights(plain)
        reference.lisa(plain, careful, batch, steps=4, lr=0.1, **LISA)
        return [before[n] - after for n, after in weights(plain).items()]
    return reference.gradient(plain, batch)


def batch_of(name: str, folder: Path) -> dict[str, torch.Tensor]:
    """All rows as one batch, as the trainer makes it."""
    t = trainer_for(tiny_llama(), "plain", folder, rows(name, 8))
    return t.data_collator([t.train_dataset[i] for i in range(8)])


def error(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    far = sum(((a - b.double()) ** 2).sum() for a, b in zip(got, wanted, strict=True))
    return float((far / sum((b.double() ** 2).sum() for b in wanted)) ** 0.5)


def adapted(base: Any) -> Any:
    """Both factors of the adapter non-zero, in float32."""
    torch.manual_seed(1)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"]))
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = p.data.float()
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.2)
    return model


# -- sections ------------------------------------------------------------------------------------------------


def exactness(tiny: bool, folder: Path) -> dict[str, Any]:
    compiler = {"torch_compile": True, "torch_compile_backend": "aot_eager" if tiny else "inductor"}
    set_ups: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
        "float32": (tiny_llama, {}),
        "LoRA over a bfloat16 base": (lambda: adapted(tiny_llama(torch.bfloat16)), {}),
        "bf16 mixed precision": (tiny_llama, {"bf16": True}),
        "fp16 mixed precision": (tiny_llama, {"fp16": True}),
        "activation checkpointing": (tiny_llama, {"gradient_checkpointing": True}),
        "torch.compile": (tiny_llama, compiler),
        "QLoRA (4 bit)": (lambda: quantised(folder / "quantised"), {}),
    }
    found: dict[str, Any] = {}
    for name, (make, args) in set_ups.items():
        figures: dict[str, Any] = {}
        try:
            if name.startswith("fp16") and not GPU:
                raise NotMeasured("loss scaling needs a GPU")
            for method in METHODS:
                model = make()
                wanted = expected(unquantised(model), method, folder)
                placed = model if is_quantised(model) else model.to(DEVICE)
                off = error(trained(placed, method, folder, **args), wanted)
                figures[method] = {"error": off}
            plain = figures["plain"]["error"]
            for each in figures.values():
                each |= {"plain": plain, "exact": each["error"] <= 4 * plain + 1e-6}
        except Exception as problem:
            figures["reason"] = said(problem)
        found[name] = figures
    return found


def quantised(folder: Path) -> Any:
    if not GPU:
        raise NotMeasured("quantised layers need a GPU")
    try:
        import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports]
        from transformers import BitsAndBytesConfig
    except ImportError as missing:
        raise NotMeasured("bitsandbytes is not installed") from missing
    if not folder.exists():
        save_tiny(folder, hidden_size=64, intermediate_size=128)
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    return adapted(AutoModelForCausalLM.from_pretrained(folder, quantization_config=four, device_map={"": 0}))


def is_quantised(model: Any) -> bool:
    return bool(getattr(model, "is_quantized", False) or getattr(model.base_model, "is_quantized", False))


def unquantised(model: Any) -> Any:
    """The same weights as a plain model, for the reference."""
    if not is_quantised(model):
        return model
    plain = adapted(copy.deepcopy(model.get_base_model()).dequantize())
    plain.load_state_dict({n: p for n, p in model.state_dict().items() if "lora_" in n}, strict=False)
    return plain


def processes(tiny: bool, folder: Path) -> dict[str, Any]:
    """Two processes, through the shipped configurations."""
    found: dict[str, Any] = {}
    for kind in ("ddp", "fsdp2"):
        try:
            if kind == "fsdp2" and torch.cuda.device_count() < 2:
                raise NotMeasured(f"Accelerate shards over two GPUs or more; here are {torch.cuda.device_count()}")
            if kind == "ddp" and GPU and torch.cuda.device_count() < 2:
                raise NotMeasured("two processes need two GPUs")
            command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(SHIPPED[kind])]
            command += ["--num_processes", "2", "--main_process_port", "0", "--mixed_precision", "no"]
            command += ["-m", "benchmarks.gpu", "--worker", str(folder / kind)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
            if done.returncode != 0:
                raise RuntimeError((done.stderr or done.stdout)[-2000:])
            together = torch.load(folder / kind / "updates.pt", weights_only=True)
            found[kind] = {}
            for method, update in together.items():
                alone = trained(tiny_llama().to(DEVICE), method, folder)
                off = error(update, alone)
                found[kind][method] = {"error": off, "exact": off < 1e-4}
        except Exception as problem:
            found[kind] = {"reason": said(problem)}
    return found


def worker(folder: Path) -> None:
    """In each of the two processes; the first one leaves the updates."""
    folder.mkdir(parents=True, exist_ok=True)
    updates = {
        method: trained(tiny_llama(), method, folder, per_device_train_batch_size=4)
        for method in ("plain", "booster", "lisa")
    }
    if os.environ["RANK"] == "0":
        torch.save(updates, folder / "updates.pt")


class Clock(TrainerCallback):
    """The seconds of each optimizer step, the GPU's work included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._wait()
        self._started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._wait()
        self.seconds.append(time.perf_counter() - self._started)

    def _wait(self) -> None:
        if GPU:
            torch.cuda.synchronize()


def steps(tiny: bool, folder: Path) -> dict[str, Any]:
    length, batch, count, rounds = (64, 2, 4, 2) if tiny else (512, 8, 12, 3)
    found: dict[str, Any] = {}
    for kind in ("lora", "full"):
        try:
            found[kind] = _steps(kind, tiny, folder, length, batch, count, rounds)
        except Exception as problem:
            found[kind] = {"reason": said(problem)}
    return found


def _steps(kind: str, tiny: bool, folder: Path, length: int, batch: int, count: int, rounds: int) -> dict[str, Any]:
    config = tiny_llama().config if tiny else config_of("1b")
    dtype = torch.float32 if kind == "full" else torch.bfloat16
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").to(DEVICE)
    lora = {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "k_proj", "v_proj"]}
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))
    taken: dict[str, list[float]] = {method: [] for method in METHODS}
    peaks, tokens = dict.fromkeys(METHODS, 0), (0, 0)
    data = rows("user", max(batch * 2, 8), length)
    for _ in range(rounds):
        for method in METHODS:
            trainer = trainer_for(
                model,
                method,
                folder,
                data,
                length,
                optim="adamw_torch_fused" if GPU else "adamw_torch",
                learning_rate=1e-5,
                bf16=kind == "full",
                max_steps=count,
                per_device_train_batch_size=batch,
                gradient_checkpointing=True,
            )
            clock = Clock()
            trainer.add_callback(clock)
            if GPU:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            with scoring_labels_only():
                trainer.train()
            taken[method] += clock.seconds[2:]  # the first ones choose kernels and make the optimizer's state
            peaks[method] = torch.cuda.max_memory_allocated() if GPU else 0
            sample = [trainer.train_dataset[i] for i in range(batch)]
            tokens = (
                max(len(row["input_ids"]) for row in sample),
                max(sum(label != -100 for label in row["labels"]) for row in sample),
            )
            model.zero_grad(set_to_none=True)
            del trainer
    setup = Setup(
        batch=batch,
        length=tokens[0],
        scored=tokens[1],
        full=kind == "full",
        adapter=lora,
        checkpointing=True,
        gpu=GPU,
    )
    plain = statistics.median(taken["plain"])
    figures: dict[str, Any] = {"tokens": {"batch": batch, "length": tokens[0], "answer": tokens[1]}}
    for method, seconds in taken.items():
        low, _, high = statistics.quantiles(seconds, n=4)
        figures[method] = {
            "median_ms": 1000 * statistics.median(seconds),
            "spread_ms": 1000 * (high - low),
            "steps": len(seconds),
            "ratio": statistics.median(seconds) / plain,
            "peak_bytes": peaks[method] or None,
            "predicted_bytes": estimate(config, setup, method).total,
        }
    return figures


def antidote(tiny: bool, folder: Path) -> dict[str, Any]:
    config, count, length = (tiny_llama().config, 16, 64) if tiny else (config_of("1b"), 200, 256)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj"], task_type="CAUSAL_LM")
    model, tokenizer = get_peft_model(model.to(DEVICE), lora).eval(), tiny_tokenizer()
    calibration = [dict(row) for row in rows("harmful!", count, length)]
    texts = [tokenizer.apply_chat_template([*r["prompt"], *r["completion"]], tokenize=True) for r in calibration]
    ids = [text["input_ids"] if not isinstance(text, list) else text for text in texts]
    decoder = model.get_base_model().model

    def forward(size: int) -> None:
        with torch.inference_mode():
            for start in range(0, len(ids), size):
                batch = ids[start : start + size]
                width = max(map(len, batch))
                padded = torch.tensor([row + [0] * (width - len(row)) for row in batch], device=DEVICE)
                keep = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch], device=DEVICE)
                decoder(input_ids=padded, attention_mask=keep, use_cache=False)

    def repair() -> None:
        report = Antidote(ratio=0.2, targets="adapters").apply(
            model, calibration=calibration, tokenizer=tokenizer, batch_size=8
        )
        report.undo(model)

    def one_at_a_time_twice() -> None:
        forward(1)
        forward(1)

    timed = {"batched_forward": lambda: forward(8), "repair": repair, "one_at_a_time_twice": one_at_a_time_twice}
    taken: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(3):
        for name, work in timed.items():
            if GPU:
                torch.cuda.synchronize()
            started = time.perf_counter()
            work()
            if GPU:
                torch.cuda.synchronize()
            if turn:  # the first one warms up
                taken[name].append(time.perf_counter() - started)
    seconds = {name: statistics.median(values) for name, values in taken.items()}
    return {
        "seconds": seconds,
        "rows": count,
        "over_one_batched_forward": seconds["repair"] / seconds["batched_forward"],
        "faster_than_one_at_a_time": seconds["one_at_a_time_twice"] / seconds["repair"],
    }


def generation(tiny: bool, folder: Path) -> dict[str, Any]:
    from mithridate.generation.base import CHAT, Decoding
    from mithridate.generation.hf import Transformers

    config, count, new = (tiny_llama().config, 8, 8) if tiny else (config_of("1b"), 64, 128)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").to(DEVICE)
    prompts = [[{"role": "user", "content": f"Say {i}" + "?" * (i % 7)}] for i in range(count)]
    speeds = {}
    for name, size in (("warm", count), ("batched", count), ("one_at_a_time", 1)):
        started = time.perf_counter()
        generator = Transformers(model, tiny_tokenizer(), batch_size=size)
        answers = [answer for _, answer in generator.generate(prompts, CHAT, Decoding(new))]
        if GPU:
            torch.cuda.synchronize()
        speeds[name] = sum(answer.new_tokens for answer in answers) / (time.perf_counter() - started)
    return {
        "prompts": count,
        "new_tokens": new,
        "batched_tokens_per_second": speeds["batched"],
        "one_at_a_time_tokens_per_second": speeds["one_at_a_time"],
        "ratio": speeds["batched"] / speeds["one_at_a_time"],
    }


SECTIONS: dict[str, Callable[[bool, Path], dict[str, Any]]] = {
    "exactness": exactness,
    "processes": processes,
    "steps": steps,
    "antidote": antidote,
    "generation": generation,
}


# -- the file ------------------------------------------------------------------------------------------------


def said(problem: Exception) -> str:
    if isinstance(problem, NotMeasured):
        return f"not measured: {problem}"
    return f"failed: {type(problem).__name__}: {str(problem)[:2000]}"


def measure(names: list[str], tiny: bool, out: Path) -> dict[str, Any]:
    """Runs the sections and writes the file anew after each one."""
    before = json.loads(out.read_text()) if out.exists() else {}
    kept = before.get("sections", {}) if before.get("tiny") == tiny and before.get("device") == device() else {}
    evidence: dict[str, Any] = {
        "schema": 1,
        "tiny": tiny,
        "device": device(),
        "versions": versions(),
        "sections": kept,
    }
    for name in names:
        print(f"{name} ...", flush=True)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                record: dict[str, Any] = {"status": "done", "figures": SECTIONS[name](tiny, Path(folder))}
            except NotMeasured as reason:
                record = {"status": "skipped", "reason": str(reason)}
            except Exception as problem:
                traceback.print_exc()
                record = {"status": "failed", "reason": said(problem)}
        evidence["sections"][name] = record | {"seconds": round(time.perf_counter() - started, 1)}
        evidence["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        aside = out.with_name(f".{out.name}.part")
        aside.write_text(json.dumps(evidence, indent=1) + "\n")
        aside.replace(out)
        if GPU:
            torch.cuda.empty_cache()
        print(f"{name}: {record['status']}", flush=True)
    return evidence


def device() -> dict[str, Any]:
    found = {**hardware(), "cuda": torch.version.cuda}
    found.pop("memory_bytes")  # differs a little from start to start
    if GPU:
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu_memory_bytes": properties.total_memory, "capability": f"{properties.major}.{properties.minor}"}
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(SECTIONS), help="one section (repeatable)")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to test this script itself")
    parser.add_argument("--out", type=Path, help="the file; with --tiny it has to be given")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.worker:
        worker(given.worker)
        return 0
    if given.tiny and given.out is None:
        parser.error("--tiny measures nothing: give --out a file that is not the evidence")
    if not given.tiny and not GPU:
        parser.error("torch sees no GPU here; --tiny tests the script on a CPU")
    evidence = measure(given.only or list(SECTIONS), given.tiny, given.out or OUT)
    return 0 if all(record["status"] != "failed" for record in evidence["sections"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
