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
from mithridate.methods.defense import acts
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


@dataclass
class Case:
    """One run: which defense; all weights, a LoRA adapter, or one over a base in 4 bit; whether FSDP2 is tried too;
    which of the two models; the Trainer's arguments."""

    defense: str
    kind: str = "full"
    sharded: bool = True
    tied: bool = False
    args: dict[str, Any] = field(default_factory=dict)


CASES = {
    # every method, from its own example; terms of the loss, looks back at the start and the start model are refused on
    # sharded weights
    **{
        f"every: {name}": Case(
            name,
            sharded=not (
                name == "repnoise"
                or acts(made(), "loss")
                or "start" in made().model_inputs().values()
                or "reference" in made().needs
            ),
            args=SEVERAL_STEPS | {"exact": True},
        )
        for name, made in EXAMPLES.items()
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
    "kl": Case("kl", sharded=False, args=SEVERAL_STEPS | ACCUMULATED | {"exact": True}),
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
