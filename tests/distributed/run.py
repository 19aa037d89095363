"""One of two processes that train together: run as `python -m tests.distributed.run RANK FOLDER`.

FOLDER holds the models. Rank 0 leaves what every case came to in FOLDER/results.pt.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch.distributed import distributed_c10d

RANK, FOLDER = int(sys.argv[1]), Path(sys.argv[2])
os.environ |= {"RANK": str(RANK), "LOCAL_RANK": str(RANK), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
os.environ |= {"MASTER_PORT": "0", "GLOO_SOCKET_IFNAME": "lo"}
# A file, not a port, to meet at: test processes run side by side.
dist.init_process_group("gloo", init_method=f"file://{FOLDER}/meet", rank=RANK, world_size=2)

from accelerate.state import AcceleratorState, GradientState, PartialState  # noqa: E402 (after the group exists)
from safetensors.torch import load_file  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402
from transformers import training_args  # noqa: E402
from transformers.distributed import DistributedConfig  # noqa: E402
from transformers.utils import logging  # noqa: E402
from trl.trainer.sft_trainer import SFTTrainer  # noqa: E402

from mithridate.errors import UnsupportedSetup  # noqa: E402
from mithridate.training.trainer import DefenseTrainer  # noqa: E402
from tests.defenses.helpers import rows, trainer_for  # noqa: E402
from tests.distributed.cases import CASES, DEFENSES, EXAMPLES, PLUGIN_CASES, SHARDABLE, Case, model  # noqa: E402
from tests.distributed.on_cpus import with_gpus  # noqa: E402

logging.disable_progress_bar()
SHARDED = {"distributed_config": DistributedConfig(fsdp_size=2)}


PLUGIN = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_LAYER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


@contextlib.contextmanager
def plugin(settings: dict[str, str]) -> Iterator[None]:
    """Inside, Accelerate's FSDP2 plugin shards what is trained, with these settings beside `PLUGIN`."""

    def forget():
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()

    forget()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (PLUGIN | settings).items():
            patch.setenv(name, value)
        patch.setattr(PartialState, "__init__", with_gpus())
        patch.setattr(training_args, "is_torch_bf16_gpu_available", lambda: True)
        yield
    forget()


class Seen(list):
    """A collator that keeps what it collates."""

    def __init__(self, collate):
        super().__init__()
        self.collate = collate

    def __call__(self, examples):
        self.append(self.collate(examples))
        return self[-1]


def whole(net) -> dict[str, torch.Tensor]:
    """The trainable weights, gathered."""
    trained = {n: p.detach() for n, p in net.named_parameters() if p.requires_grad}
    return {n: p.full_tensor() if isinstance(p, DTensor) else p.clone() for n, p in trained.items()}


def saved_name(name: str) -> str:
    """What a trained weight is called in the file."""
    return name.replace(".default", "").replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")


class Evaluating(DefenseTrainer):
    def __init__(self, **kwargs):
        super().__init__(eval_dataset=rows("user"), **kwargs)


def train(case: Case, cls: Any = DefenseTrainer, settings: dict[str, str] | None = None, **loading) -> dict[str, Any]:
    """What a run does to the weights, which micro-batches this process saw, what was logged.

    Args:
        settings: of Accelerate's plugin, which then shards the model; `loading` are from_pretrained's.
    """
    before = whole(model(FOLDER, case.kind, case.tied))
    if settings is None:
        return _train(case, before, cls, **loading)
    with plugin(settings):
        return _train(case, before, cls, use_cpu=False)


def _train(case: Case, before: dict[str, torch.Tensor], cls: Any, use_cpu: bool = True, **loading) -> dict[str, Any]:
    net = model(FOLDER, case.kind, case.tied, **loading)
    args = {"per_device_train_batch_size": 4, "use_cpu": use_cpu} | case.args
    if "eval_strategy" in args:
        cls = Evaluating
    t = trainer_for(net, FOLDER / "out", defense=DEFENSES[case.defense](), data=rows("user"), cls=cls, **args)
    assert t.accelerator.num_processes == 2
    assert any(isinstance(p, DTensor) for p in net.parameters()) == bool(loading)
    t.data_collator = seen = Seen(t.data_collator)
    t.train()
    assert any(isinstance(p, DTensor) for p in t.model.parameters()) == (bool(loading) or not use_cpu)
    t.save_model(str(FOLDER / "saved"))
    dist.barrier()
    saved = load_file(FOLDER / "saved" / f"{'model' if case.kind == 'full' else 'adapter_model'}.safetensors")
    after = whole(t.model)
    keys = ("input_ids", "attention_mask", "labels")
    return {
        "update": [b - a for b, a in zip(before.values(), after.values(), strict=True)],
        "seen": [{k: batch[k] for k in keys} for batch in seen],
        "history": t.state.log_history,
        "saved": all(torch.equal(saved[saved_name(n)], w) for n, w in after.items()),
    }


def forget_groups() -> None:
    """Ends the process groups of models that are gone; each has threads of its own, and hundreds of them take time."""
    for group in [group for group in distributed_c10d._world.pg_map if group is not dist.group.WORLD]:
        dist.destroy_process_group(group)


def canary() -> dict[str, Any]:
    """Averaging over gloo, by its own: each process brings 2 * rank + place."""
    mine = torch.arange(4, dtype=torch.float64) + 2 * RANK
    scattered, reduced = torch.zeros(2, dtype=torch.float64), mine.clone()
    dist.reduce_scatter_tensor(scattered, mine, op=dist.ReduceOp.AVG)
    dist.all_reduce(reduced, op=dist.ReduceOp.AVG)
    return {"scattered": scattered, "reduced": reduced}


def refused(defense: str) -> str:
    """What is said to trained tied embeddings under FSDP2."""
    net = model(FOLDER, tied=True, **SHARDED)
    try:
        trainer_for(net, FOLDER / "out", defense=DEFENSES[defense](), data=rows("user"), max_steps=3)
    except UnsupportedSetup as error:
        return f"{error.reason} {error.remedy}"
    return ""


RESUMED = {
    "optim": "adamw_torch", "learning_rate": 1e-2, "lr_scheduler_type": "cosine", "max_grad_norm": 1.0,
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 6,
}  # fmt: skip


def resume(defense: str, steps: tuple[int, ...] = (1, 3, 4), sharded: bool = False) -> dict[str, Any]:
    """The weights after a run, and after runs that go on from its checkpoints in new objects; dropout on. `sharded`
    by Accelerate's plugin, or each process with all of them."""

    def run(folder, checkpoint=None, **args):
        with plugin({}) if sharded else contextlib.nullcontext():
            net = model(FOLDER, "lora", dropout=0.3)
            args |= RESUMED | {"use_cpu": not sharded}
            t = trainer_for(net, folder, defense=DEFENSES[defense](), data=rows("user"), **args)
            t.train(resume_from_checkpoint=checkpoint)
            return whole(t.model)

    folder = FOLDER / f"resume-{defense}"
    ends = {0: run(folder, save_strategy="steps", save_steps=1)}
    for step in steps:
        ends[step] = run(FOLDER / "out", str(folder / f"checkpoint-{step}"))
    dist.barrier()
    if RANK == 0:
        shutil.rmtree(folder)
    return ends


results: dict[str, Any] = {
    "canary": canary(),
    "refused": {name: refused(name) for name in ("sft", *EXAMPLES)},
}
for name, case in CASES.items():
    results[f"ddp: {name}"] = train(case)
    if case.sharded:
        results[f"fsdp2: {name}"] = train(case, **SHARDED)
        forget_groups()
        results[f"plugin: {name}"] = train(case, settings={})
for name, (case, settings) in PLUGIN_CASES.items():
    # against training in float64, which is not compiled
    plain = {k: v for k, v in case.args.items() if k != "bf16" and not k.startswith("torch_compile")}
    results[f"ddp: {name}"] = train(replace(case, args=plain))
    results[f"plugin: {name}"] = train(case, settings=settings)
results["tied, plain"] = train(Case("sft", tied=True, args=CASES["sft, several steps"].args), SFTTrainer, **SHARDED)
results |= {f"resumed: {name}": resume(name) for name in EXAMPLES}
results |= {f"resumed, plugin: {name}": resume(name, (3,), sharded=True) for name in SHARDABLE}
both: list[Any] = [None, None]
dist.all_gather_object(both, results)
if RANK == 0:
    torch.save(both, FOLDER / "results.pt")
dist.barrier()
dist.destroy_process_group()
