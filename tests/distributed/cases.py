"""What is trained by two processes together, and by one for comparison."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from mithridate.defenses.base import Defense
from tests.conformance.methods import DEFENSES as EXAMPLES
from tests.defenses.helpers import rows
from tests.methods.own import Project

QUANTISED = importlib.util.find_spec("bitsandbytes") is not None
ACCUMULATED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
SEVERAL_STEPS = {"max_steps": 4, "learning_rate": 0.1}
EVALUATED = SEVERAL_STEPS | {"eval_strategy": "steps", "eval_steps": 1}


class Constant(Defense):
    """Seeds one number everywhere."""

    def on_step_begin(self, t):
        t.seed([torch.full_like(p, 0.25) for p in t.params])


DEFENSES: dict[str, Callable[[], Any]] = {
    "sft": lambda: None,
    "seed": Constant,
    **EXAMPLES,
    "project": lambda: Project(alignment_dataset=rows("resu")),
    "both": lambda: [EXAMPLES["vaccine"](), EXAMPLES["booster"]()],
}

# RepNoise and AsFT are refused on sharded weights
SHARDABLE = [name for name in EXAMPLES if name not in ("asft", "repnoise")]


@dataclass
class Case:
    """One run: which defense; all weights, a LoRA adapter, or one over a base in 4 bit; whether FSDP2 is tried too,
    both sharded as the model is loaded and by Accelerate's plugin; which of the two models; the Trainer's arguments.
    """

    defense: str
    kind: str = "full"
    sharded: bool = True
    tied: bool = False
    args: dict[str, Any] = field(default_factory=dict)


CASES = {
    # every method, from its own example
    **{
        f"every: {name}": Case(name, sharded=name in SHARDABLE, args=SEVERAL_STEPS | {"exact": True})
        for name in EXAMPLES
    },
    "sft": Case("sft"),
    "sft, several steps": Case("sft", args=SEVERAL_STEPS),
    "seed, accumulated": Case("seed", args=ACCUMULATED),
    "booster": Case("booster"),
    "booster, accumulated": Case("booster", args=ACCUMULATED),
    "booster, evaluated between steps": Case("booster", args=EVALUATED | {"max_steps": 2}),
    # four steps of Booster multiply the rounding of the float32 loss beyond 1e-6, so here the loss is in float64
    "booster, several steps, float64 loss": Case("booster", args=SEVERAL_STEPS | {"exact": True}),
    "booster, checkpointing": Case("booster", args={"gradient_checkpointing": True}),
    "booster, lora": Case("booster", "lora", args=ACCUMULATED),
    "booster, lora, tied embeddings": Case("booster", "lora", tied=True, args=SEVERAL_STEPS),
    "lisa": Case("lisa", args=SEVERAL_STEPS),
    "lisa, accumulated": Case("lisa", args=SEVERAL_STEPS | ACCUMULATED),
    "lisa, lora": Case("lisa", "lora", args=SEVERAL_STEPS),
    "vaccine": Case("vaccine"),
    "vaccine, checkpointing": Case("vaccine", args={"gradient_checkpointing": True}),
    "vaccine, accumulated": Case("vaccine", args=ACCUMULATED),
    "vaccine, lora": Case("vaccine", "lora"),
    # terms of the loss, and gradients that are replaced, at several micro-batches
    "kl": Case("kl", args=SEVERAL_STEPS | ACCUMULATED | {"exact": True}),
    "kl, fused head": Case("kl", args={"max_steps": 2, "learning_rate": 0.1}),
    "kl, lora": Case("kl", "lora", args=SEVERAL_STEPS | {"exact": True}),
    "safegrad, accumulated": Case("safegrad", args=SEVERAL_STEPS | ACCUMULATED | {"exact": True}),
    "ldifs, evaluated between steps": Case("ldifs", args=EVALUATED | {"max_steps": 2}),
    "project": Case("project", args=SEVERAL_STEPS | ACCUMULATED | {"exact": True}),
    "both": Case("both"),
    **{
        f"{name}, 4 bit": Case(name.partition(",")[0], "4 bit", sharded=False, args=args)
        for name, args in {
            "sft": {},
            "vaccine": {},
            "booster": {},
            "lisa": SEVERAL_STEPS,
            "sft, several steps": SEVERAL_STEPS,
        }.items()
        if QUANTISED
    },
}

COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
EXACT_STEPS = SEVERAL_STEPS | {"exact": True}
# under Accelerate's plugin alone, with settings of its own
PLUGIN_CASES = {
    "sft, tied": (Case("sft", tied=True, args=EXACT_STEPS), {}),
    "booster, tied": (Case("booster", tied=True, args=EXACT_STEPS), {}),
    "booster, gathered, evaluated": (
        CASES["booster, evaluated between steps"],
        {"FSDP_RESHARD_AFTER_FORWARD": "false"},
    ),
    "booster, loaded once": (CASES["booster"], {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}),
    "kl, loaded once": (CASES["kl"], {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}),
    "vaccine, its checkpointing": (CASES["vaccine"], {"FSDP_ACTIVATION_CHECKPOINTING": "true"}),
    "tvaccine, its checkpointing": (CASES["every: tvaccine"], {"FSDP_ACTIVATION_CHECKPOINTING": "true"}),
    "kl, its checkpointing": (CASES["kl"], {"FSDP_ACTIVATION_CHECKPOINTING": "true"}),
    **{
        f"{name}, compiled": (Case(name, args=EXACT_STEPS | COMPILED), {})
        for name in ("vaccine", "booster", "lisa", "kl")
    },
    "booster, compiled, evaluated": (Case("booster", args=EVALUATED | {"max_steps": 2} | COMPILED), {}),
    **{f"{name}, bf16": (Case(name, args={"bf16": True}), {}) for name in ("sft", "vaccine", "booster")},
    **{
        f"{name}, three steps, bf16": (Case(name, args=SEVERAL_STEPS | {"max_steps": 3, "bf16": True}), {})
        for name in ("sft", "lisa", "kl")
    },
}


def model(folder: Path, kind: str = "full", tied: bool = False, dropout: float = 0.0, **kwargs: Any) -> Any:
    """A tiny Llama in float64, as a user loads it; `kwargs` are from_pretrained's. Over 4 bit an adapter in float32,
    for bitsandbytes has no float64; "dequantised" is the same in float64."""
    if kind in ("4 bit", "dequantised"):
        four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        net = AutoModelForCausalLM.from_pretrained(folder / "wide", dtype=torch.float32, quantization_config=four)
        return adapted(net) if kind == "4 bit" else adapted(net.dequantize()).double()
    path = folder / ("tied" if tied else "untied")
    net = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="sdpa", **kwargs)
    return net if kind == "full" else adapted(net, dropout)


def adapted(net: Any, dropout: float = 0.0) -> Any:
    """With a LoRA adapter, both of whose factors are non-zero."""
    torch.manual_seed(1)
    net = get_peft_model(net, LoraConfig(r=4, lora_dropout=dropout, target_modules=["q_proj", "v_proj", "up_proj"]))
    for name, p in net.named_parameters():
        if "lora_" in name:
            p.data = torch.randn(p.shape, dtype=torch.float64).to(p.dtype) * 0.2
    return net
