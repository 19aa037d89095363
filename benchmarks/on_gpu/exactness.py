"""Whether the rules hold: their steps here against the papers' rules in float64, and two processes against one."""

from __future__ import annotations

import copy
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks.on_gpu import DEVICE, GPU, Figures, NotMeasured, TooSlow, at_most, said
from benchmarks.on_gpu.runs import LISA, METHODS, defense, rows, trainer_for
from mithridate.models.carried import carry
from mithridate.models.quantisation import dequantised as plain_model
from mithridate.pipeline.launch import SHIPPED
from tests.defenses import reference
from tests.tiny import save_tiny, tiny_llama

Tensors = dict[str, torch.Tensor]

STEPS = {"lisa": (4, 0.1)}  # optimizer steps and learning rate; the others: one, of 1
BASELINES = {"plain": (1, 1.0), "plain, four steps": (4, 0.1)}


# The most that plain training may be off, as a share of its update, over one step or four: about twice what an H200
# showed at four steps. By what each arithmetic keeps: bfloat16 8 bits, half precision and TF32 (which inductor takes)
# 11; products in 8 bit round their inputs. Other set-ups compute in float32.
CEILINGS = {"bf16": 0.15, "bfloat16": 0.15, "fp16": 0.05, "8 bit": 5e-3, "torch.compile": 0.02}


def steps_of(method: str) -> tuple[int, float]:
    return BASELINES.get(method) or STEPS.get(method, (1, 1.0))


def like(method: str) -> str:
    """The plain training that a method's error is compared with: over as many steps."""
    return next(name for name, steps in BASELINES.items() if steps == steps_of(method))


def weights(model: Any) -> Tensors:
    """The trained ones by name, in float64 on the CPU."""
    found = {n.replace("_orig_mod.", ""): p for n, p in model.named_parameters() if p.requires_grad}
    return {n: getattr(p, "full_tensor", lambda p=p: p)().detach().double().cpu().clone() for n, p in found.items()}


def trained(model: Any, method: str, folder: Path, **args: Any) -> Tensors:
    """What the run did to the weights, before - after."""
    before = weights(model)
    count, rate = steps_of(method)
    args = {"max_steps": count, "learning_rate": rate} | args
    trainer = trainer_for(model, defense(method), folder, rows("user", 8), **args)
    scaler = trainer.accelerator.scaler
    if scaler is not None:
        scaler._init_scale = 128.0  # the usual first scale overflows at once, and the one step would be skipped
    trainer.train()
    after = weights(trainer.accelerator.unwrap_model(trainer.model))
    return {name: before[name] - after[name] for name in before}


def expected(model: Any, method: str, folder: Path) -> Tensors:
    """What the papers' rule does to the same weights, in the arithmetic that the model has."""
    before, names = weights(model), list(weights(model))
    device = next(model.parameters()).device
    batch, harmful, careful = (
        {k: v.to(device) for k, v in batch_of(name, folder).items()} for name in ("user", "harmful!", "careful")
    )
    if method == "vaccine":
        return dict(zip(names, reference.vaccine(model, [batch], 1.5), strict=True))
    if method == "booster":
        return dict(zip(names, reference.booster(model, batch, harmful, 0.3, 2.0), strict=True))
    count, rate = steps_of(method)
    settings = LISA if method == "lisa" else {"align_steps": count, "finetune_steps": 1, "rho": 0.0}
    aligning = careful if method == "lisa" else batch
    reference.lisa(model, aligning, batch, steps=count, lr=rate, **({"proximal_start": 0.0} | settings))
    return {name: before[name] - after for name, after in weights(model).items()}


def batch_of(name: str, folder: Path) -> Tensors:
    """All rows as one batch, as the trainer makes it."""
    t = trainer_for(tiny_llama(), None, folder, rows(name, 8))
    return t.data_collator([t.train_dataset[i] for i in range(8)])


def error(got: Tensors, wanted: Tensors) -> float:
    """|got - wanted| / |wanted|, the tensors paired by their names."""
    if got.keys() != wanted.keys():
        raise ValueError(f"trained weights of other names: {sorted(got.keys() ^ wanted.keys())[:4]}")
    far = sum(((got[n] - wanted[n].double().cpu()) ** 2).sum() for n in got)
    return float((far / sum((w.double().cpu() ** 2).sum() for w in wanted.values())) ** 0.5)


def adapted(base: Any) -> Any:
    """Both factors of the adapter non-zero, in float32."""
    torch.manual_seed(1)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"]))
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = p.data.float()
        if "lora_B" in name:
            p.data.normal_(std=0.2, generator=torch.Generator(p.device).manual_seed(len(name)))
    return model


def double(model: Any) -> Any:
    return copy.deepcopy(model).cpu().double()


def quantised(folder: Path, bits: int) -> Any:
    try:
        import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports]
        from transformers import BitsAndBytesConfig
    except ImportError as missing:
        raise NotMeasured("bitsandbytes is not installed") from missing
    if not folder.exists():
        save_tiny(folder, hidden_size=64, intermediate_size=128, initializer_range=0.1)
    four = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32, "bnb_4bit_quant_type": "nf4"}
    config = BitsAndBytesConfig(**(four if bits == 4 else {"load_in_8bit": True}))
    place = {"": 0} if GPU else {"": "cpu"}
    base = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, device_map=place, dtype=torch.float32
    )
    return adapted(base)


def over_another(folder: Path) -> Any:
    """An adapter over weights in 4 bit that carry one already, as under topology double."""
    return adapted(carry(quantised(folder, 4)))


def dequantised(model: Any, folder: Path, under: Callable[[Any], Any] = lambda model: model.unload()) -> Any:
    """The same weights as a plain model in float64; `under` makes what the adapter lies over."""
    own = copy.deepcopy({n: p.detach().cpu() for n, p in model.named_parameters() if "lora_" in n})
    base = plain_model(under(quantised(folder, 4)))
    plain = adapted(base.cpu())
    with torch.no_grad():
        for name, p in plain.named_parameters():
            if "lora_" in name:
                p.copy_(own.pop(name))
    if own:
        raise ValueError(f"no such factor in the plain model: {next(iter(own))}")
    return plain.double()


def exactness(tiny: bool, folder: Path, figures: Figures) -> None:
    compiler = {"torch_compile": True, "torch_compile_backend": "eager" if tiny else "inductor"}
    set_ups: dict[str, tuple[Callable[[], Any], dict[str, Any], Callable[[Any], Any]]] = {
        "float32": (tiny_llama, {}, double),
        "LoRA over a bfloat16 base": (lambda: adapted(tiny_llama(torch.bfloat16)), {}, double),
        "bf16 mixed precision": (tiny_llama, {"bf16": True}, double),
        "fp16 mixed precision": (tiny_llama, {"fp16": True}, double),
        "activation checkpointing": (tiny_llama, {"gradient_checkpointing": True}, double),
        "QLoRA (4 bit)": (
            lambda: quantised(folder / "quantised", 4),
            {},
            partial(dequantised, folder=folder / "quantised"),
        ),
        "QLoRA (4 bit), two adapters": (
            lambda: over_another(folder / "quantised"),
            {},
            partial(dequantised, folder=folder / "quantised", under=carry),
        ),
        # its products round the activations to 8 bits: the rule is that of the same model, in its own arithmetic
        "QLoRA (8 bit)": (
            lambda: quantised(folder / "quantised", 8),
            {},
            lambda model: quantised(folder / "quantised", 8).train(),
        ),
        "torch.compile": (tiny_llama, compiler, double),
    }
    for name, (make, args, plainly) in set_ups.items():
        if name.startswith("fp16") and not GPU:
            figures[name] = {"reason": said(NotMeasured("loss scaling needs a GPU"))}
            continue
        found = figures[name] = {}
        for method in (*BASELINES, *METHODS[1:]):
            try:
                with at_most(90):
                    torch.compiler.reset()
                    model = make()
                    wanted = expected(plainly(model), method, folder)
                    placed = model if name.startswith("QLoRA") else model.to(DEVICE)
                    found[method] = {"error": error(trained(placed, method, folder, **args), wanted)}
            except Exception as problem:
                if isinstance(problem, NotMeasured) and not isinstance(problem, TooSlow):
                    figures[name] = {"reason": said(problem)}  # of the set-up
                    break
                found[method] = {"reason": said(problem)}  # the method's own: the others are tried
        _judge(name, found)


def _judge(name: str, found: Figures) -> None:
    """Says of each method whether its update is exact: plain training's by the set-up's arithmetic alone, the others'
    by plain training's too. Where that has no error, or is not exact itself, none is."""
    ceiling = next((most for word, most in CEILINGS.items() if word in name), 1e-5)
    for method, each in found.items():
        if "error" not in each:
            continue
        plain = found.get(like(method), {}).get("error", math.inf)
        more = 1e-3 if "8 bit" in name else 1e-6  # an input that is rounded to the other neighbour
        holds = plain <= ceiling and (method in BASELINES or each["error"] <= 4 * plain + more)
        each |= {"plain": plain if math.isfinite(plain) else None, "exact": holds}


# -- two processes -------------------------------------------------------------------------------------------


def processes(tiny: bool, folder: Path, figures: Figures) -> None:
    """Two processes, through the shipped configurations."""
    for kind in ("ddp", "fsdp2"):
        try:
            if kind == "fsdp2" and torch.cuda.device_count() < 2:
                raise NotMeasured(f"Accelerate shards over two GPUs or more; here are {torch.cuda.device_count()}")
            if kind == "ddp" and GPU and torch.cuda.device_count() < 2:
                raise NotMeasured("two processes need two GPUs")
            command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(SHIPPED[kind])]
            command += ["--num_processes", "2", "--main_process_port", "0", "--mixed_precision", "no"]
            command += ["-m", "benchmarks.gpu", "--worker", str(folder / kind)]
            with at_most(300):
                _ended(command)
            together = torch.load(folder / kind / "updates.pt", weights_only=True)
            found = figures[kind] = {}
            for method, update in together.items():
                alone = trained(tiny_llama().to(DEVICE), method, folder)
                off = error(update, alone)
                found[method] = {"error": off, "exact": off < 1e-4}
        except Exception as problem:
            figures[kind] = {"reason": said(problem)}


def _ended(command: list[str]) -> None:
    """Runs a launcher to its end. Where it is stopped, it is told to end its processes, which hold GPUs.

    Raises:
        RuntimeError: it failed, with the end of what it said.
    """
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said = started.communicate()[0]
    except BaseException:
        started.terminate()
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
        raise
    if started.returncode != 0:
        raise RuntimeError(said[-2000:])


def worker(folder: Path) -> None:
    """In each of the two processes; the first one leaves the updates."""
    folder.mkdir(parents=True, exist_ok=True)
    updates = {
        method: trained(tiny_llama(), method, folder, per_device_train_batch_size=4)
        for method in ("plain", "booster", "lisa")
    }
    if os.environ["RANK"] == "0":
        torch.save(updates, folder / "updates.pt")
