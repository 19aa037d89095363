"""A model without its weights: built from its configuration as fake tensors, its passes run for what they would need.

Fake tensors have shapes and no storage; the layers' own forward and backward run on them, with the adapter, the
activation checkpointing and the mixed precision that training would use. What is counted are the tensors that are
alive at once, and the operations of matrix products and attention.

A model may begin with layers of another kind (DeepSeek's dense ones, before those with experts). So the passes are run
on as many of the first layers as hold two and three of the kind that goes on to the end; each further one is taken to
add the same. Where kinds alternate to the end, that is the whole model, and takes its time (a second or so a layer).

Where only operations are asked for, and roughly (a dry run), nothing is run: `counted` has them from the weights.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mithridate.errors import InputError, UnsupportedSetup, first_line
from mithridate.models import resolve_model, shortened
from mithridate.models.carried import carried_weights, carry
from mithridate.models.embedded import EMBEDDED
from mithridate.training.frozen import freeze, keep

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

# Llama's shapes at the sizes that people ask about; the first two share their input and output embeddings.
_LLAMA = {
    "1b": (2048, 8192, 16, 32, 8, True),
    "3b": (3072, 8192, 28, 24, 8, True),
    "8b": (4096, 14336, 32, 32, 8, False),
    "70b": (8192, 28672, 80, 64, 8, False),
}
SIZES = tuple(_LLAMA)


_SKIPPED = "llm_int8_skip_modules"  # bitsandbytes' field, of 4 bit too


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A training stage whose cost is asked for.

    Attributes:
        batch: rows of a micro-batch on each process.
        length: tokens of a row (the longest, for memory).
        scored: of these, the tokens of the answer, which have a label; all of them if not given.
        full: all weights are trained; else a LoRA adapter (`adapter`: LoraConfig's fields).
        quantization: bitsandbytes' fields (load_in_4bit, load_in_8bit, bnb_4bit_use_double_quant,
            llm_int8_skip_modules) by which the base's linear layers are held; empty: in `dtype`.
        carried: LoraConfig's fields of each adapter that such a base carries under the one that is trained.
        frozen: regular expressions; trained tensors whose whole name matches one keep their values.
        dtype: of the base's weights or, where all weights are trained (in float32), of the products.
        checkpointing: activations are computed again in the backward pass.
        optimizer: by the name that TrainingArguments.optim has for it.
        processes, sharded: how many train together, and whether they share the weights (FSDP2).
        gpu: whether it runs on GPUs; on CPUs the LM head needs more.
        attention: transformers' implementation; "eager" in the place of "sdpa" for a model that does not have that.
    """

    batch: int = 8
    length: int = 512
    scored: int | None = None
    accumulation: int = 1
    optimizer: str = "adamw_torch"
    steps: int = 1000
    snapshots: int = 0
    full: bool = False
    adapter: Mapping[str, Any] = field(
        default_factory=lambda: {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "k_proj", "v_proj"]}
    )
    quantization: Mapping[str, Any] = field(default_factory=dict)
    carried: tuple[Mapping[str, Any], ...] = ()
    frozen: tuple[str, ...] = ()
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    checkpointing: bool = False
    processes: int = 1
    sharded: bool = False
    gpu: bool = True
    attention: str = "sdpa"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """A model's weights: all, trained, those kept from it, those of adapters that its base carries, those that a token
    is multiplied with between the embeddings and the LM head (adapters' too; how many of them are trained), those of
    its largest layer, of its embeddings, of its linear layers but the LM head (in how many rows, of the largest of
    them, of those that are trained or under an adapter); and its layers, vocabulary and width."""

    all: int
    trained: int
    frozen: int
    carried: int
    used: int
    used_trained: int
    layer: int
    embeddings: int
    linear: int
    linear_rows: int
    largest_linear: int
    changed_linear: int
    layers: int
    vocabulary: int
    width: int
    head_trained: bool


# -- the model, without its weights ----------------------------------------------------------------------------------


def config_of(model: str) -> PretrainedConfig:
    """The configuration of a size ("8b": Llama's shape), an embedded model, a folder or a Hub id.

    Raises:
        InputError: there is none, or it is no causal language model's.
    """
    from transformers import AutoConfig, LlamaConfig

    if model in _LLAMA:
        hidden, inner, layers, heads, kv, tied = _LLAMA[model]
        return LlamaConfig(
            vocab_size=128256,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv,
            tie_word_embeddings=tied,
        )
    folder = resolve_model(model).path if model in EMBEDDED else Path(model).expanduser()
    try:
        return AutoConfig.from_pretrained(folder if folder.is_dir() else model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"model {model!r}: no configuration found ({first_line(error)}). Give a size "
            f"({', '.join(SIZES)}), a folder with a config.json, or a Hub id."
        ) from error


@contextlib.contextmanager
def fake_tensors() -> Iterator[None]:
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

    try:
        with _fake_mode()():
            yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise UnsupportedSetup(
            f"What this model computes depends on the values in its tensors ({error}), and an estimate has none.",
            "estimate a model of a similar size without them, or measure a step of this one.",
        ) from error


@lru_cache(maxsize=1)
def _fake_mode() -> Any:
    """Torch's own, in which a mixture of experts' product has a shape in every dtype: torch's refuses float32."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    class Fake(FakeTensorMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is not torch.ops.aten._grouped_mm.default:
                return super().__torch_dispatch__(func, types, args, kwargs or {})
            a, b, offsets = args[:3]
            groups = offsets.shape if a.dim() == b.dim() == 2 else ()  # the gradient of the experts' weights
            return a.new_empty((*groups, a.shape[-2], b.shape[-1]))

    return Fake


def whole(config: PretrainedConfig, setup: Setup) -> Any:
    """The model with its adapter as meta tensors, to count its weights; the same object for the same model."""
    return _whole(_weights_alone(config, setup))


def whole_counts(config: PretrainedConfig, setup: Setup) -> Counts:
    """Of `whole`, counted once."""
    return _whole_counts(_weights_alone(config, setup))


@lru_cache(maxsize=8)
def _whole(what: _Hashed) -> Any:
    model = _on_meta(what.config, what.setup)
    freeze(model, what.setup.frozen)
    return model


@lru_cache(maxsize=64)
def _whole_counts(what: _Hashed) -> Counts:
    return counts_of(_whole(what), what.setup.quantization.get(_SKIPPED))


def _weights_alone(config: PretrainedConfig, setup: Setup) -> _Hashed:
    kept = ("full", "adapter", "carried", "frozen", "dtype", "attention")
    skipped = {name: setup.quantization[name] for name in (_SKIPPED,) if setup.quantization.get(name)}
    return _Hashed(config, Setup(quantization=skipped, **{name: getattr(setup, name) for name in kept}))


def _on_meta(config: PretrainedConfig, setup: Setup) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    def adapted(model: Any, fields: Mapping[str, Any]) -> Any:
        try:
            return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **fields))
        except ValueError as error:
            raise InputError(f"adapter: {error}") from error

    dtype = torch.float32 if setup.full else getattr(torch, setup.dtype)
    with torch.device("meta"):
        model = _bare(config, dtype, setup.attention)
        for fields in setup.carried:
            model = carry(adapted(model, fields))
        return model if setup.full else adapted(model, setup.adapter)


def build(config: PretrainedConfig, setup: Setup) -> Any:
    """The model as it would be trained; to be called under `fake_tensors`."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily():
        model = _on_meta(config, setup)
    for pattern in setup.frozen:  # of which the first layers may have no tensor
        keep(dict(model.named_parameters()), pattern)
    _on_a_fake_cpu(model)
    if setup.quantization.get("load_in_8bit"):
        _keep_inputs(model)
    if setup.checkpointing:
        # the state of the random numbers cannot be read from fake tensors, and changes no count
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        if not setup.full:
            model.enable_input_require_grads()
    return model.train()


def _bare(config: PretrainedConfig, dtype: Any, attention: str) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    except ValueError as error:
        if attention == "sdpa":  # which Gemma 2 does not have: transformers trains it in "eager"
            return _bare(config, dtype, "eager")
        raise InputError(f"{config.model_type}: {first_line(error)}") from error


def _on_a_fake_cpu(model: nn.Module) -> None:
    """Puts fake tensors of a CPU in the place of meta tensors: kernels, fused attention too, are chosen by device."""
    import torch

    made: dict[int, Any] = {}  # tied weights stay tied
    for module in model.modules():
        for name, old in module.named_parameters(recurse=False):
            if id(old) not in made:
                made[id(old)] = torch.nn.Parameter(torch.empty(old.shape, dtype=old.dtype), old.requires_grad)
            setattr(module, name, made[id(old)])
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _keep_inputs(model: Any) -> None:
    """Linear layers in 8 bit keep their input until their backward pass, checkpointed or not: bitsandbytes (0.50,
    `MatMul8bitLt`) holds it beside what autograd saves, which is all that checkpointing lets go of."""
    import torch

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, bias: Any) -> Any:
            ctx.kept, ctx.weight = x, weight
            return torch.nn.functional.linear(x, weight, bias)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return gradients[0] @ ctx.weight, None, None

    base = _base_of(model)
    head = base.get_output_embeddings()
    for name, module in base.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head and ".lora_" not in name:
            module.forward = lambda x, m=module: Product.apply(x, m.weight, m.bias)  # pyright: ignore


def _base_of(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _layers_of(model: Any) -> list[nn.Module]:
    base = _base_of(model)
    return [m for m in base.modules() if type(m).__name__ in (getattr(base, "_no_split_modules", None) or ())]


def counts_of(model: Any, skipped: list[str] | None = None) -> Counts:
    """Of a model. `skipped`: patterns of linear layers that are not quantised."""
    import torch

    base, layers = _base_of(model), _layers_of(model)
    ends = {p for m in (base.get_input_embeddings(), base.get_output_embeddings()) if m for p in m.parameters()}
    head = base.get_output_embeddings().weight
    parts = [p for p in _linear_weights(base, skipped) if p is not head]
    ends_too = ends | {m.weight for m in base.modules() if isinstance(m, torch.nn.Embedding)}  # of positions
    text = base.config.get_text_config()
    used = {p: p.numel() * _share(p, text) for p in base.parameters() if p.dim() > 1 and p not in ends_too}
    return Counts(
        all=sum(p.numel() for p in base.parameters()) - _adapters(model),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        frozen=sum(
            p.numel()
            for name, p in model.named_parameters()
            if not p.requires_grad and (model is base or ".lora_" in name)
        ),
        carried=carried_weights(base),
        used=round(sum(used.values())),
        used_trained=round(sum(many for p, many in used.items() if p.requires_grad)),
        layer=max((sum(p.numel() for p in layer.parameters()) for layer in layers), default=0),
        embeddings=sum(p.numel() for p in ends),
        linear=sum(p.numel() for p in parts),
        linear_rows=sum(len(p) for p in parts),
        largest_linear=max((p.numel() for p in parts), default=0),
        changed_linear=sum(p.numel() for p in _changed_linears(base) if p is not head),
        layers=len(layers),
        vocabulary=head.shape[0],
        width=head.shape[1],
        head_trained=head.requires_grad,
    )


def _share(weight: Any, config: PretrainedConfig) -> float:
    """The share of a matrix, or of a stack of experts' matrices, that a token is multiplied with."""
    chosen = getattr(config, "num_experts_per_tok", None) or len(weight)
    return 1.0 if weight.dim() == 2 else min(chosen / len(weight), 1.0)


def _linear_weights(base: Any, skipped: list[str] | None = None) -> list[Any]:
    """Of a model's linear layers, without those of an adapter over it and those of the names `skipped`."""
    import torch
    from transformers.quantizers.quantizers_utils import should_convert_module

    linear = {name: m for name, m in base.named_modules() if isinstance(m, torch.nn.Linear) and ".lora_" not in name}
    return [m.weight for name, m in linear.items() if should_convert_module(name.replace(".base_layer", ""), skipped)]


def _changed_linears(base: Any) -> list[Any]:
    """The weights of linear layers that are trained, or that a LoRA adapter is over."""
    under = [m for m in base.modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")]
    adapted = [
        m.get_param() if hasattr(m, "get_param") else m.base_layer.weight for m in under
    ]  # experts', or a layer's
    return [p for p in _linear_weights(base) if p.requires_grad] or adapted


def _adapters(model: Any) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)


# -- the passes, on fake tensors ---------------------------------------------------------------------


@dataclass(frozen=True)
class Passes:
    """Of the decoder (the model without its LM head), one micro-batch.

    Attributes:
        forward, backward, probe: operations; `backward` gives the trained weights' gradients, `probe` those of the
            attention outputs alone.
        activations: bytes alive at most, in the two passes of plain training, without the weights' gradients.
        probed: the same in four passes, the first two of which take gradients of the attention outputs, by which the
            outputs of the other two are shifted. Like `probe`, 0 where probes were not asked for.
        layer: one layer's share of `activations`.
    """

    forward: int
    backward: int
    probe: int
    activations: int
    probed: int
    layer: int


def live_bytes() -> Any:
    """A mode that counts the bytes of all tensors that are made in it while they are alive: `bytes`, `peak`."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Live(TorchDispatchMode):
        def __init__(self, known: Any):
            super().__init__()
            self.bytes = self.peak = 0
            self._alive = {t.untyped_storage()._cdata: 0 for t in known}
            self._kept = list(known)

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if isinstance(tensor, torch.Tensor):
                    self._add(tensor.untyped_storage())
            return out

        def _add(self, storage: Any) -> None:
            key = storage._cdata
            if key in self._alive:
                return
            self._alive[key] = size = storage.nbytes()
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._drop, key)

        def _drop(self, key: int) -> None:
            self.bytes -= self._alive.pop(key, 0)

    return Live


def decoder_of(model: Any) -> nn.Module:
    return _base_of(model).base_model


def layers_before(model: Any) -> int:
    """How many layers stand before those at the end that have the same modules and weights, trained ones, as the last
    one."""
    kinds = [
        [
            (n, type(m), [(p.shape, p.requires_grad) for p in m.parameters(recurse=False)])
            for n, m in layer.named_modules()
        ]
        for layer in _layers_of(model)
    ]
    return max((i + 1 for i, kind in enumerate(kinds) if kind != kinds[-1]), default=0)


def passes(config: PretrainedConfig, setup: Setup, probes: bool = True, memory: bool = True) -> tuple[Counts, Passes]:
    """What the passes need; see this module's docstring for which layers they are run on.

    Args:
        probes: whether gradients of the attention outputs are wanted too, which takes two thirds of the time.
        memory: whether the bytes are wanted. Where they are not, they are 0, no pass is run, and the operations are
            those that the weights tell (`counted`).
    """
    if not memory:
        counts = whole_counts(config, setup)
        return counts, counted(config, setup, counts)
    key = replace(setup, accumulation=1, steps=1, snapshots=0, processes=1, sharded=False, gpu=True, scored=None)
    # Passes over weights in 4 bit are those over the dequantised ones; over 8 bit, inputs are kept besides.
    told = {name: setup.quantization[name] for name in ("load_in_8bit", _SKIPPED) if setup.quantization.get(name)}
    return _passes(_Hashed(config, replace(key, quantization=told, optimizer=Setup.optimizer)), probes)


class _Hashed:
    """A configuration and a set-up as one argument of a cache, equal where their texts are."""

    def __init__(self, config: PretrainedConfig, setup: Setup):
        self.config, self.setup = config, setup
        self.text = config.to_json_string(use_diff=False) + repr(setup)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


@lru_cache(maxsize=64)
def _passes(what: _Hashed, probes: bool) -> tuple[Counts, Passes]:
    config, setup = what.config, what.setup
    counts, before = whole_counts(config, setup), layers_before(whole(config, setup))
    more = config.get_text_config().num_hidden_layers - before - 3
    if more <= 0:
        return counts, trace(config, setup, probes)
    two, three = (trace(shortened(config, before + n), setup, probes) for n in (2, 3))
    fields = {name: getattr(three, name) for name in vars(three)}
    grown = {name: v + more * (v - getattr(two, name)) for name, v in fields.items() if name != "layer"}
    return counts, Passes(**grown, layer=three.activations - two.activations)


def counted(config: PretrainedConfig, setup: Setup, counts: Counts) -> Passes:
    """The operations of the passes as the weights tell them, without their bytes: two for each weight that a token
    meets, in the forward pass, for the gradient of the activations and for its own; in attention, two products and
    five."""
    text, tokens = config.get_text_config(), setup.batch * setup.length
    heads = getattr(text, "num_attention_heads", None)
    width = heads * (getattr(text, "head_dim", None) or text.hidden_size // heads) if isinstance(heads, int) else 0
    product = 2 * tokens * setup.length * width * counts.layers
    once = 2 * tokens * counts.used
    forward = once + 2 * product
    again = forward if setup.checkpointing else 0
    backward = once + 2 * tokens * counts.used_trained + 5 * product + again
    above = 5 * product * (counts.layers - 1) // max(counts.layers, 1)  # nothing of the first attention
    probe = once + above + again
    return Passes(forward=forward, backward=backward, probe=probe, activations=0, probed=0, layer=0)


def trace(config: PretrainedConfig, setup: Setup, probes: bool = True) -> Passes:
    """Runs the passes of the whole model, layer by layer. Arguments as of `passes`."""
    import torch

    with fake_tensors():
        model = build(config, setup)
        decoder, trained = decoder_of(model), [p for p in model.parameters() if p.requires_grad]
        ids = torch.zeros(setup.batch, setup.length, dtype=torch.long)
        mask = torch.ones_like(ids)
        mixed = setup.full and setup.dtype == "bfloat16"

        def forward() -> Any:
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                return decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.float().sum()

        for p in trained:
            p.register_post_accumulate_grad_hook(_forget)
        known = [ids, mask, *model.parameters(), *model.buffers()]
        # Memory and operations apart: the counter of operations keeps tensors alive that are done with. The gradient
        # of the embeddings, which may be larger than all activations, is among the gradients.
        embeddings = model.get_input_embeddings().weight
        learnt = embeddings.requires_grad
        embeddings.requires_grad_(False)
        with live_bytes()(known) as plain:
            forward().backward()
        activations, probed = plain.peak, 0
        if probes:
            with live_bytes()(known) as shifted:
                _shifted_step(model, forward)
            probed = shifted.peak
        embeddings.requires_grad_(learnt)
        with flop_counter() as ahead:
            loss = forward()
        with flop_counter() as back:
            loss.backward()
        forward_flops, backward, probe = ahead.get_total_flops(), back.get_total_flops(), 0
        if probes:
            with flop_counter() as four:
                _shifted_step(model, forward)
            probe = four.get_total_flops() - 2 * forward_flops - backward
        return Passes(
            forward=forward_flops,
            backward=backward,
            probe=probe,
            activations=activations,
            probed=probed,
            layer=activations // config.get_text_config().num_hidden_layers,
        )


def _forget(parameter: Any) -> None:
    parameter.grad = None


def flop_counter() -> Any:
    """Torch's counter, which lacks the CPU's fused attention and the products of experts."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    def ahead(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return sdpa_flop_count(q, k, v)

    def back(grad: Any, q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return sdpa_backward_flop_count(grad, q, k, v)

    def grouped(a: Any, b: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return 2 * a[-2] * a[-1] * b[-1]  # every row belongs to one expert

    aten: Any = torch.ops.aten
    known = {
        aten._grouped_mm: grouped,
        aten._scaled_dot_product_flash_attention_for_cpu: ahead,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: back,
    }
    return FlopCounterMode(display=False, custom_mapping=known)


def _shifted_step(model: Any, forward: Any) -> None:
    """A pass for the gradients of the attention outputs, and one in which these are shifted along them."""
    from mithridate.training.activations import ActivationShifts, find_sites

    with ActivationShifts(find_sites(model)) as sites:
        gradients = sites.gradients(forward)
        sites.shift([g * 2.0 for g in gradients])
        del gradients
        forward().backward()
