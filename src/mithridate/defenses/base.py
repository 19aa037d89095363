"""What a defense is: a dataclass whose instance is both its settings and its algorithm.

Imports no torch, so that names and settings can be checked without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from mithridate.errors import InputError, UnsupportedSetup

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mithridate.training.trainer import DefenseMixin


@dataclass(kw_only=True)
class Defense:
    """Base of all training-time defenses. Override the places where yours acts; each may use the trainer's verbs.

    The trainer `t` offers `t.params` (the trainable tensors), `t.gradient(batches)`, `t.seed(gradients)`,
    `t.side_data(dataset)`, `t.record(name, value)` and everything a Trainer has. The last forward and backward of a
    step is always the Trainer's own.
    """

    paper: ClassVar[str] = ""
    """The paper, in one line."""
    stage: ClassVar[str] = "alignment"
    """Where it is meant to be used: "alignment" or "fine-tuning"."""
    roles: ClassVar[dict[str, str]] = {}
    """Fields that hold data sets, each with the role that fills it, e.g. {"harmful_dataset": "defender_harmful"}."""

    def settings(self) -> dict[str, Any]:
        """The fields that are not data sets."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name not in self.roles}

    def check(self, t: DefenseMixin) -> None:
        """Refuses what is not supported, when the trainer is built. Extend it with `super().check(t)`.

        Raises:
            UnsupportedSetup: with the reason and a remedy.
        """
        for refused, reason, remedy in _unsupported(t):
            if refused:
                raise UnsupportedSetup(f"{type(self).__name__}: {reason}", remedy)

    def on_train_begin(self, t: DefenseMixin) -> None:
        """Model and optimizer are ready, no step is done. A resumed run calls `load_state_dict` right after."""

    def batches(self, t: DefenseMixin, batches: list[Any]) -> list[Any]:
        """The micro-batches of the coming optimizer step; return `batches` itself to leave them as they are.

        Exclusive: of several defenses in one run, only one may override it.
        """
        return batches

    def on_step_begin(self, t: DefenseMixin) -> None:
        """Before the micro-batches of an optimizer step, when no gradient is accumulated: the place to `t.seed`."""

    def training_step(
        self,
        t: DefenseMixin,
        step: Callable[[nn.Module, Any, Any], Tensor],
        model: nn.Module,
        inputs: Any,
        num_items_in_batch: Tensor | int | None,
    ) -> Tensor:
        """Forward and backward of one micro-batch. Must end in `step(model, inputs, num_items_in_batch)`, once."""
        return step(model, inputs, num_items_in_batch)

    def on_log(self, t: DefenseMixin, logs: dict[str, float]) -> None:
        """`logs` is about to be logged, with the means of what was recorded since the last time."""

    def state_dict(self, t: DefenseMixin) -> dict[str, Tensor]:
        """Training state to save with a checkpoint (none by default)."""
        return {}

    def load_state_dict(self, t: DefenseMixin, state: dict[str, Tensor]) -> None:
        """Takes back what `state_dict` returned."""

    def on_train_end(self, t: DefenseMixin) -> None:
        """Training has ended normally."""


def require_number(defense: Defense, field: str, low: float, high: float = float("inf"), *, open_low: bool = False):
    """Raises InputError unless the field is a finite number in the range (bounds included, unless `open_low`)."""
    value = getattr(defense, field)
    number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    if not number or value > high or value == float("inf") or value < low or (open_low and value == low):
        bounds = f"{'above' if open_low else 'at least'} {low:g}" + (
            "" if high == float("inf") else f", at most {high:g}"
        )
        raise InputError(f"{type(defense).__name__}: {field} must be a number {bounds}, not {value!r}.")


def require_every(defense: Defense) -> None:
    """Raises InputError unless the field `every` is a whole number of steps, at least 1."""
    every = getattr(defense, "every", None)
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise InputError(
            f"{type(defense).__name__}: every must be a whole number of steps, at least 1, not {every!r}."
        )


def require_rows(defense: Defense, field: str) -> None:
    """Raises UnsupportedSetup unless the field is a data set with rows that can be drawn in any order."""
    from datasets import Dataset

    value = getattr(defense, field)
    if not isinstance(value, Dataset):
        raise UnsupportedSetup(
            f"{type(defense).__name__}: {field} must be a datasets.Dataset, not {type(value).__name__} "
            "(its rows are drawn by number, so that a resumed run draws the same ones).",
            "build it with Dataset.from_list(...) or load it without streaming.",
        )
    if len(value) == 0:
        raise UnsupportedSetup(f"{type(defense).__name__}: {field} has no rows.", "give it at least one.")


def refuse_wrong_training(t: DefenseMixin) -> None:
    """Refuses a set-up in which training is wrong even without a defense.

    Raises:
        UnsupportedSetup: FSDP2 shards a tied embedding that is trained. transformers 5.23 then gathers the LM head
            from a copy that no optimizer step reaches (`tests/distributed` has the test that shows it).
    """
    if not t._sharded:
        return
    ends = (t.model.get_input_embeddings(), t.model.get_output_embeddings())
    weights: list[Any] = [getattr(end, "weight", None) for end in ends]
    if weights[0] is not None and weights[0] is weights[1] and weights[0].requires_grad:
        raise UnsupportedSetup(
            "under FSDP2, tied input and output embeddings that are trained go wrong from the second step on: the LM "
            "head keeps its first weights.",
            "train a LoRA adapter (it leaves the embeddings frozen), use plain data parallelism, or untie them "
            "(tie_word_embeddings=False).",
        )


def _unsupported(t: DefenseMixin) -> list[tuple[bool, str, str]]:
    """What no defense was tested with yet: (is it so here, reason, remedy)."""
    args, accelerator, model = t.args, t.accelerator, t.model
    parallel = accelerator.parallelism_config
    sizes = {k: getattr(parallel, f"{k}_size", 1) or 1 for k in ("tp", "cp", "sp")} if parallel is not None else {}
    plan = getattr(getattr(model, "config", None), "distributed_config", None)  # how from_pretrained sharded the model
    for kind in ("tp", "pp", "ep"):
        sizes[kind] = max(sizes.get(kind, 1), getattr(plan, f"{kind}_size", 1) or 1)
    shared = [k.upper() for k, size in sizes.items() if size > 1]
    mixtures = {hasattr(p, "placements") for p in t.params} == {True, False}
    options = ("fsdp_cpu_offload", "fsdp_mixed_precision")
    set_options = [k for k in options if getattr(plan, k, False)]
    if (getattr(plan, "dp_replicate_size", 1) or 1) > 1:
        set_options.append("dp_replicate_size")
    optimizer = str(getattr(args.optim, "value", args.optim))
    dynamo = getattr(accelerator.state.dynamo_plugin, "backend", "NO")
    kinds = (args.gradient_checkpointing_kwargs or {}) if args.gradient_checkpointing else {}
    recomputing = [k for k in ("selective", "offload") if kinds.get(k)]
    devices = sorted({str(d) for d in (getattr(model, "hf_device_map", None) or {}).values()})
    return [
        (
            t.is_deepspeed_enabled,
            "DeepSpeed keeps gradients in its engine, out of reach of seeds.",
            "train with plain data parallelism (accelerate launch without a DeepSpeed configuration).",
        ),
        (
            t.is_fsdp_enabled,
            "FSDP through Accelerate is not tested (it does not run without a GPU).",
            "shard the model as it is loaded, by from_pretrained(distributed_config=DistributedConfig(fsdp_size=N)); "
            "or use plain data parallelism.",
        ),
        (
            t._sharded and not hasattr(t, "_defer_fsdp_gradient_reduction"),
            "this transformers version trains sharded models in another way than the tested one.",
            "install transformers 5.23, or use plain data parallelism.",
        ),
        (bool(set_options), f"{' and '.join(set_options)} is not tested.", "leave it out of DistributedConfig."),
        (
            mixtures,
            "some trained weights are sharded and others are not, which is not tested.",
            "train only the adapter, or all weights.",
        ),
        (bool(shared), f"{', '.join(shared)} parallelism is not tested.", "set its size to 1; use data parallelism."),
        (args.n_gpu > 1, "nn.DataParallel is not supported.", "start one process per GPU with accelerate launch."),
        (
            len(devices) > 1,
            f"the model is split over several devices ({', '.join(devices)}), which is not tested.",
            "load it on one device (no device_map).",
        ),
        (
            args.device.type not in ("cpu", "cuda"),
            f"device type {args.device.type!r} is not tested.",
            "train on cpu or cuda.",
        ),
        (
            bool(args.torch_compile) or str(getattr(dynamo, "value", dynamo)).upper() != "NO",
            "torch.compile is not tested (hooks that are set after compilation are ignored in silence).",
            "set torch_compile=False.",
        ),
        (
            optimizer in ("lomo", "adalomo") or optimizer.endswith("_layerwise"),
            f"the optimizer {optimizer!r} steps inside backward, so a probing pass would change the weights.",
            "use adamw_torch or sgd.",
        ),
        (
            bool(args.ddp_static_graph) or bool(getattr(accelerator.ddp_handler, "gradient_as_bucket_view", False)),
            "DDP with a static graph or with gradients as bucket views is not tested.",
            "leave ddp_static_graph and gradient_as_bucket_view off.",
        ),
        (
            bool(getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None)),
            "a quantised base model is not tested.",
            "load the model without quantization_config (float32 or bfloat16).",
        ),
        (
            bool(recomputing),
            f"activation checkpointing with {' and '.join(f'{k}=True' for k in recomputing)} is not tested.",
            f"gradient_checkpointing_kwargs={dict.fromkeys(recomputing, False)}.",
        ),
        (
            bool(getattr(args, "activation_offloading", False)),
            "activation_offloading is not tested.",
            "set activation_offloading=False.",
        ),
        (
            args.auto_find_batch_size,
            "auto_find_batch_size restarts the training in the middle.",
            "set auto_find_batch_size=False and choose per_device_train_batch_size.",
        ),
        (bool(getattr(t, "_is_vision_dataset", False)), "image data are not tested.", "train on text."),
    ]
