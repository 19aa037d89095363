"""Which set-ups are refused, with reason and remedy: those in which training goes wrong, and the untested ones."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from packaging.version import Version

from mithridate.errors import UnsupportedSetup
from mithridate.methods.defense import Defense, acts
from mithridate.training.outputs import shift_of
from mithridate.training.quantised import TESTED, quantiser

if TYPE_CHECKING:
    from mithridate.training.mixin import DefenseMixin


def refuse_wrong_training(t: DefenseMixin) -> None:
    """Refuses a set-up in which training is wrong even without a defense.

    Raises:
        UnsupportedSetup: the LM head is quantised, whose stored numbers TRL's fused head reads as weights; or
            transformers has sharded a tied embedding that is trained. Its version 5.23 then gathers the
            LM head from a copy that no optimizer step reaches (`tests/distributed` has the test that shows it, and
            that Accelerate's plugin does not).
    """
    head = t.model.get_output_embeddings() if hasattr(t.model, "get_output_embeddings") else None
    if "4bit" in (kind := type(getattr(head, "weight", None)).__name__) or "Int8" in kind:
        raise UnsupportedSetup(
            "the LM head is quantised, and the loss would be computed from its packed numbers.",
            "add lm_head to llm_int8_skip_modules (a list of one's own takes the place of the default, which has it).",
        )
    if t._reads_sft and type(head).__name__ == "TrainableTokensWrapper":
        raise UnsupportedSetup(
            "the adapter trains single tokens (trainable_token_indices) of embeddings that are tied to the LM head, "
            "which TRL's fused head cannot read.",
            "leave trainable_token_indices out, or untie the embeddings (tie_word_embeddings=False).",
        )
    if not t._sharded_on_load:
        return
    ends = (t.model.get_input_embeddings(), t.model.get_output_embeddings())
    weights: list[Any] = [getattr(end, "weight", None) for end in ends]
    if weights[0] is not None and weights[0] is weights[1] and weights[0].requires_grad:
        raise UnsupportedSetup(
            "sharded as they are loaded, tied input and output embeddings that are trained go wrong from the second "
            "step on: the LM head keeps its first weights.",
            "train a LoRA adapter (it leaves the embeddings frozen), shard by Accelerate's FSDP2 plugin, use plain "
            "data parallelism, or untie them (tie_word_embeddings=False).",
        )


def refuse_other_than_causal(t: DefenseMixin, who: str) -> None:
    """Refuses, in the name of a defense that looks at answers after their prompts, a model that has them elsewhere.

    Raises:
        UnsupportedSetup: a masked model, a classifier, an encoder-decoder.
    """
    if not shift_of(t.model):
        model = t.model.get_base_model() if hasattr(t.model, "get_base_model") else t.model
        raise UnsupportedSetup(
            f"{who}: looks at answers after their prompts in one sequence, and {type(model).__name__} is no causal "
            "language model.",
            "use KL.",
        )


def refuse_virtual_tokens(t: DefenseMixin, what: str) -> None:
    """Refuses prompt learning, for what finds tokens by their places; `what` says what that is, for the error.

    Raises:
        UnsupportedSetup: with the reason and a remedy.
    """
    if any(config.is_prompt_learning for config in getattr(t.model, "peft_config", {}).values()):
        raise UnsupportedSetup(
            f"{what}, and prompt learning puts virtual tokens before them.", "train a LoRA adapter."
        )


def refuse_untested(t: DefenseMixin, name: str) -> None:
    """Refuses a set-up that no defense was tested with yet; `name` is the defense's, for the error.

    Raises:
        UnsupportedSetup: with the reason and a remedy.
    """
    for refused, reason, remedy in _untested(t):
        if refused:
            raise UnsupportedSetup(f"{name}: {reason}", remedy)


def refuse_unreachable_places(t: DefenseMixin, d: Defense) -> None:
    """Refuses a defense whose place, or a model that it compares with, cannot be had in this set-up.

    Raises:
        UnsupportedSetup: with the reason and a remedy.
    """
    name = type(d).__name__
    if t._sharded and "start" in d.model_inputs().values():
        raise UnsupportedSetup(
            f"{name}: reads whole matrices of the start model, and these are sharded.", "use plain data parallelism."
        )
    if acts(d, "loss") or "reference" in d.needs:
        refuse_virtual_tokens(t, f"{name}: adds a term at labelled tokens")
    for model, kind in d.model_inputs().items():
        if kind not in ("start", *t._models):
            raise UnsupportedSetup(
                f"{name}: needs the {kind} model (as {model}), and it is not given.",
                f"pass models={{{kind!r}: its tensors by name, or a function that returns them}}.",
            )


def checkpointing_kwargs(args: Any) -> str:
    """SFTConfig's field for the settings of activation checkpointing: the newer name where transformers has it."""
    newer = "activation_checkpointing_kwargs"
    return newer if hasattr(args, newer) else "gradient_checkpointing_kwargs"


def asked_for_fsdp(args: Any) -> bool:
    """Whether FSDP is asked for through Accelerate, which does not have it where there are no GPUs: it then trains
    data-parallel without a word."""
    return bool(getattr(args, "fsdp", None)) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def compiled(t: DefenseMixin) -> bool:
    """Whether the model runs through torch.compile, by the Trainer's arguments or by Accelerate's configuration."""
    dynamo = getattr(t.accelerator.state.dynamo_plugin, "backend", "NO")
    return bool(t.args.torch_compile) or str(getattr(dynamo, "value", dynamo)).upper() != "NO"


def _untested(t: DefenseMixin) -> list[tuple[bool, str, str]]:
    """(is it so here, reason, remedy)."""
    from torch.distributed.fsdp import CPUOffloadPolicy  # it takes long to import, and training has done so

    args, accelerator, model = t.args, t.accelerator, t.model
    parallel, plugin = accelerator.parallelism_config, getattr(accelerator.state, "fsdp_plugin", None)
    sizes = {k: getattr(parallel, f"{k}_size", 1) or 1 for k in ("tp", "cp", "sp")} if parallel is not None else {}
    plan = getattr(getattr(model, "config", None), "distributed_config", None)  # how from_pretrained sharded the model
    for kind in ("tp", "pp", "ep"):
        sizes[kind] = max(sizes.get(kind, 1), getattr(plan, f"{kind}_size", 1) or 1)
    shared = [k.upper() for k, size in sizes.items() if size > 1]
    mixtures = {hasattr(p, "placements") for p in t.params} == {True, False}
    options = ("fsdp_cpu_offload", "fsdp_mixed_precision")
    set_options = [k for k in options if getattr(plan, k, False)]
    if max(getattr(how, "dp_replicate_size", 1) or 1 for how in (plan, parallel)) > 1:
        set_options.append("dp_replicate_size")
    optimizer = str(getattr(args.optim, "value", args.optim))
    kinds = (args.gradient_checkpointing_kwargs or {}) if args.gradient_checkpointing else {}
    kinds_field = checkpointing_kwargs(args)
    devices = sorted({str(d) for d in (getattr(model, "hf_device_map", None) or {}).values()})
    return [
        (
            t.is_deepspeed_enabled,
            "DeepSpeed was tried with no defense, and it keeps gradients in its engine, out of reach of those that "
            "change them.",
            "train with plain data parallelism (accelerate launch without a DeepSpeed configuration).",
        ),
        (
            (t.is_fsdp_enabled or asked_for_fsdp(args)) and not t.sharded_by_plugin,
            "FSDP through Accelerate needs GPUs (on CPUs it trains data-parallel, without a word) and version 2 (the "
            "first hides the weights that defenses change).",
            "set fsdp_version: 2 on GPUs, or use plain data parallelism.",
        ),
        (
            t.sharded_by_plugin and isinstance(getattr(plugin, "cpu_offload", None), CPUOffloadPolicy),
            "FSDP2 with weights on the CPU (fsdp_offload_params) copies to a GPU, on which it was not tried.",
            "set fsdp_offload_params: false.",
        ),
        (
            t._sharded and accelerator.scaler is not None,
            "sharded training with loss scaling (fp16) is not tested.",
            "use bf16=True.",
        ),
        (
            t._sharded and quantiser(model) is not None,
            "a quantised base that is sharded is not tested.",
            "use plain data parallelism, or load the model without quantization_config.",
        ),
        (
            t._sharded_on_load and not hasattr(t, "_defer_fsdp_gradient_reduction"),
            "this transformers version trains sharded models in another way than the tested one.",
            "install transformers 5.23, or use plain data parallelism.",
        ),
        (
            t._sharded and Version(torch.__version__).release < (2, 13),
            f"under torch {torch.__version__}, FSDP2 goes on with gathered weights after an evaluation (measured "
            "with 2.11: gradients of probes were wrong by 10 %).",
            "install torch 2.13 or newer, or use plain data parallelism.",
        ),
        (
            bool(set_options),
            f"{' and '.join(set_options)} is not tested.",
            "leave it out of DistributedConfig or ParallelismConfig.",
        ),
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
            quantiser(model) not in TESTED,
            f"a base model that is quantised by {quantiser(model)} is not tested.",
            "quantise with bitsandbytes (BitsAndBytesConfig, 4 or 8 bit), or load the model without "
            "quantization_config.",
        ),
        (
            bool(kinds.get("selective")) and hasattr(model, "peft_config"),
            "selective activation checkpointing does not reach the model under an adapter: TRL sets it up on the "
            "adapter, and transformers asks the model below.",
            f"{kinds_field}={{'selective': False}}.",
        ),
        (
            bool(kinds.get("offload")),
            "activation checkpointing with offload=True copies from a GPU, on which it was not tried.",
            f"{kinds_field}={{'offload': False}}.",
        ),
        (
            bool(getattr(args, "activation_offloading", False)),
            "activation_offloading copies from a GPU, on which it was not tried, and of a defense's further passes it "
            "knows nothing.",
            f"set activation_offloading=False; {kinds_field.removesuffix('_kwargs')}=True saves memory too.",
        ),
        (
            args.auto_find_batch_size,
            "auto_find_batch_size restarts the training in the middle.",
            "set auto_find_batch_size=False and choose per_device_train_batch_size.",
        ),
        (bool(getattr(t, "_is_vision_dataset", False)), "image data are not tested.", "train on text."),
    ]
