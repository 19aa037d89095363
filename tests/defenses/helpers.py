"""Small training runs through the real SFTTrainer path, and what they did to the weights."""

import copy
import functools
import gc
import warnings

import datasets
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from trl import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

import tests.once  # noqa: F401 (tokenises the same rows once)
from mithridate.methods.defense import Defense
from mithridate.training.mixin import DefenseMixin
from mithridate.training.trainer import DefenseTrainer
from tests.tiny import ONE_STEP, tiny_llama, tiny_tokenizer

torch.set_num_threads(1)
datasets.disable_progress_bars()
gc.freeze()  # every train() collects garbage: without what the imports left, that takes no time

DEFAULTS = ONE_STEP | {"use_cpu": True, "logging_steps": 1}
# The usual way to train: AdamW, clipping, a schedule.
USUAL = {
    "optim": "adamw_torch",
    "learning_rate": 1e-2,
    "lr_scheduler_type": "cosine",
    "max_grad_norm": 1.0,
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
}


@functools.cache
def rows(name: str, n: int = 8) -> Dataset:
    """n prompts with answers, of different lengths, in TRL's conversational prompt-completion format."""
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"{name} {i}" + "?" * (i % 5)}],
                "completion": [{"role": "assistant", "content": f"{name[::-1]}{i * i}" + "!" * (i % 3)}],
            }
            for i in range(n)
        ]
    )


def model(kind: str = "full", dtype: torch.dtype = torch.float64, dropout: float = 0.0, **config):
    """A tiny Llama: all weights ("full"), or a LoRA adapter with both factors non-zero ("lora").

    In float64 it computes in float64 throughout: transformers' eager softmax and its RMSNorm go through float32, and
    rounding there would hide errors of 1e-8.
    """
    if dtype == torch.float64:
        base = tiny_llama(dtype, **({"attn_implementation": "sdpa"} | config))
        for name, norm in [(n, m) for n, m in base.named_modules() if n.endswith("norm")]:
            exact = nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon, dtype=dtype)
            exact.load_state_dict(norm.state_dict())
            base.set_submodule(name, exact)
    else:
        base = tiny_llama(dtype, **config)
    if kind == "full":
        return base
    torch.manual_seed(1)
    adapted = get_peft_model(
        base, LoraConfig(r=4, lora_dropout=dropout, target_modules=["q_proj", "v_proj", "up_proj"])
    )
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.2)
    return adapted


def exact_loss(outputs, labels, num_items_in_batch=None):
    """The loss from the full logits in float64; TRL's fused head computes it in float32."""
    flat = F.cross_entropy(
        outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )
    return flat / num_items_in_batch


def further_models(defense) -> dict:
    """A random model of each kind that the defenses ask for beside the one at hand: `models` of a trainer."""
    asked = [] if defense is None else defense if isinstance(defense, list) else [defense]
    kinds = {kind for d in asked if isinstance(d, Defense) for kind in d.model_inputs().values()} - {"start"}
    return {kind: lambda: tiny_llama(torch.float64, seed=5) for kind in kinds}


def trainer_for(
    net, folder, *, defense=None, data=None, cls=DefenseTrainer, exact=False, callbacks=None, models=None, **args
):
    args = DEFAULTS | args
    models = further_models(defense) if models is None else models
    named = {"defense": defense, "models": models} if issubclass(cls, DefenseMixin) else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # compute_loss_func: deprecated, and exact
        return cls(
            model=net,
            args=SFTConfig(str(folder), **args),
            train_dataset=data if data is not None else rows("user"),
            processing_class=tiny_tokenizer(),
            compute_loss_func=exact_loss if exact else None,
            callbacks=callbacks,
            **named,
        )


def weights(net) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in net.named_parameters() if p.requires_grad}


def update(net, folder, **kwargs) -> list[torch.Tensor]:
    """What one run does to the weights, before - after. With SGD, lr 1 and one step: the gradient."""
    before = weights(net)
    trainer_for(net, folder, **kwargs).train()
    return [b - a for b, a in zip(before.values(), weights(net).values(), strict=True)]


def error(got, expected) -> float:
    """|got - expected| / |expected|, over all tensors as one vector."""
    difference = sum(((a - b).double() ** 2).sum() for a, b in zip(got, expected, strict=True))
    return float((difference / sum((b.double() ** 2).sum() for b in expected)) ** 0.5)


def batch_of(data: Dataset, folder) -> dict[str, torch.Tensor]:
    """All rows of a data set as one padded batch, tokenised by SFTTrainer itself."""
    t = trainer_for(tiny_llama(), folder, data=data, cls=SFTTrainer)
    return t.data_collator([t.train_dataset[i] for i in range(len(t.train_dataset))])


def same(a: dict, b: dict) -> bool:
    """Whether two sets of named tensors are the same bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def clone(net):
    return copy.deepcopy(net)
