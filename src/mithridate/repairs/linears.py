"""The weights of a model, with or without an adapter over them: their names, what they amount to, merging.

A weight has the name that it has in the plain model ("model.layers.0.self_attn.q_proj.weight"), whether that model is
at hand or a PEFT model that wraps it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mithridate.errors import UnsupportedSetup


@dataclass(frozen=True)
class Weight:
    """A weight, and what stands round it.

    Attributes:
        tensor: the parameter: under LoRA, the one of the layer beneath.
        module: what holds it.
        lora: the LoRA layer over it, if any.
        copied: whether it belongs to a copy that was trained whole beside an adapter (`modules_to_save`).
    """

    tensor: nn.Parameter
    module: nn.Module
    lora: Any = None
    copied: bool = False

    def effective(self) -> Tensor:
        """What the model computes with, in fp32 (fp64 if it is): see `effective_weight`."""
        return _wide(self.tensor.detach()) if self.lora is None else effective_weight(self.lora)


def plain(model: Any) -> Any:
    """The model that a PEFT model wraps; a plain model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def weights(model: Any) -> dict[str, Weight]:
    """Every weight that takes part in the model, by its name in the plain model; a tied one under each of its names.

    Of a module that an adapter's training copied (`modules_to_save`) it is the copy, while that is in use.
    """
    found = {}
    for name, module, lora, copied in _modules(plain(model), ""):
        for own, parameter in module.named_parameters(recurse=False):
            over = lora if own == "weight" else None
            found[f"{name}.{own}" if name else own] = Weight(parameter, module, over, copied)
    return found


def _modules(
    module: nn.Module, name: str, lora: Any = None, copied: bool = False
) -> Iterator[tuple[str, nn.Module, Any, bool]]:
    """The modules of the plain model, with those that PEFT put between them left out."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if isinstance(module, BaseTunerLayer):
        yield from _modules(module.get_base_layer(), name, module if isinstance(module, LoraLayer) else None, copied)
    elif isinstance(module, AuxiliaryTrainingWrapper):
        copies: Any = getattr(module, "modules_to_save", {})
        used = [n for n in module.active_adapters if n in copies and not module.disable_adapters]
        inner = copies[used[0]] if used else module.original_module
        yield from _modules(inner, name, lora, copied or bool(used))
    else:
        yield name, module, lora, copied
        for own, child in module.named_children():
            yield from _modules(child, f"{name}.{own}" if name else own, None, copied)


def head_of(model: Any) -> nn.Module | None:
    """The output embeddings of a model, plain or PEFT: the module whose weight `weights` gives, whatever wraps it."""
    head = plain(model).get_output_embeddings()
    return None if head is None else next(module for _, module, _, _ in _modules(head, ""))


def shared(found: dict[str, Weight]) -> set[str]:
    """Names of weights that have several names (tied embeddings)."""
    times = Counter(id(weight.tensor) for weight in found.values())
    return {name for name, weight in found.items() if times[id(weight.tensor)] > 1}


def adapted(model: Any) -> dict[str, Any]:
    """The LoRA layers of a model by name; none for a plain model."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in plain(model).named_modules() if isinstance(module, LoraLayer)}


def decoder_linears(model: Any) -> dict[str, nn.Module]:
    """Every `nn.Linear` of a plain model by name, without its output embeddings."""
    head = model.get_output_embeddings()
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}


def layers(model: Any) -> dict[str, Any]:
    """The linear layers whose weights `targets="merged"` cuts: those under an adapter, or all of the decoder."""
    return adapted(model) or decoder_linears(model)


def other_matrices(model: Any) -> list[str]:
    """The names of a plain model's weights of two dimensions and more that are no `nn.Linear`'s and no embedding's."""
    known = {
        id(m.weight)
        for m in model.modules()
        if isinstance(m, nn.Linear | nn.Embedding) or m is model.get_output_embeddings()
    }
    return [name for name, p in model.named_parameters() if p.dim() > 1 and id(p) not in known]


def base_linear(layer: Any) -> nn.Linear:
    """The linear layer itself, under LoRA or not."""
    return layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer


def active(layer: Any) -> str:
    """The name of the one active adapter of a LoRA layer.

    Raises:
        UnsupportedSetup: there is none, or there are several, or adapters are switched off.
    """
    if layer.disable_adapters:
        raise UnsupportedSetup(
            "The adapter is switched off at the moment, so the model is the one beneath it.",
            "switch it on: model.enable_adapter_layers(), or leave the `with model.disable_adapter():` block.",
        )
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1:
        raise UnsupportedSetup(
            f"{len(names)} LoRA adapters over linear layers are active ({', '.join(names) or 'none'}), not one.",
            "activate the fine-tuning adapter alone: model.set_adapter(name).",
        )
    return names[0]


def factors(model: Any) -> dict[str, nn.Linear]:
    """Both factors of the active adapter: A [r, in] as "NAME.lora_A", B [out, r] as "NAME.lora_B".

    Raises:
        UnsupportedSetup: see `check_adapters`.
    """
    check_adapters(model)
    return {
        f"{name}.{factor}": getattr(layer, factor)[active(layer)]
        for name, layer in adapted(model).items()
        for factor in ("lora_A", "lora_B")
    }


_LEAVE_OUT = "leave {} out of the adapter's target_modules, and fine-tune again: LoRA on attention and MLP is enough."
_PLAIN = "use plain LoRA over linear layers (LoraConfig's defaults)"
_MERGE = (
    "merge it first (model = model.merge_and_unload()), and set targets='update' with the aligned model, or "
    "targets='merged'"
)


def check_adapters(model: Any) -> None:
    """Checks that what the adapters in use do to the model can be seen in its weights.

    That is so where each layer computes W x + scaling * B A x over an ordinary linear layer of its own, and where
    nothing else was trained but whole modules (`modules_to_save`) and the weights themselves. A plain model passes.

    Raises:
        UnsupportedSetup: it is not so (soft prompts, IA3 and other kinds, DoRA and other variants, trained tokens, an
            adapter over an embedding or a tied weight, several adapters at once), with a remedy.
    """
    configs = getattr(model, "peft_config", {})
    for config in configs.values():
        if getattr(config, "layer_replication", None):
            raise UnsupportedSetup(
                "The adapter has layer_replication: it runs layers several times, under names of their own.",
                f"{_PLAIN}, and fine-tune again.",
            )
    in_use = _in_use(model)
    for config in (config for name, config in configs.items() if name in in_use):
        kind = getattr(config.peft_type, "value", str(config.peft_type))
        if config.is_prompt_learning:
            raise UnsupportedSetup(
                f"The adapter is a soft prompt ({kind}): it lies before the model's input, in none of its weights.",
                f"{_PLAIN} for the fine-tune; a soft prompt is taken away by not loading it.",
            )
        if kind != "LORA":
            merging = f"{_MERGE}; or " if hasattr(model, "merge_and_unload") else ""
            raise UnsupportedSetup(
                f"The adapter is no LoRA adapter but of the kind {kind}, whose change is not seen.",
                f"{merging}{_PLAIN}.",
            )
    tied = shared(weights(model))
    for name, layer in adapted(model).items():
        _check_layer(name, layer, f"{name}.weight" in tied)
    for name, kind in _unseen(model, in_use):
        what = "trained tokens (trainable_token_indices)" if kind == "trainable_tokens_delta" else "more than factors"
        raise UnsupportedSetup(
            f"The adapter holds {what}: {name} is no LoRA factor over a linear layer.", f"{_MERGE}; or {_PLAIN}."
        )


def _check_layer(name: str, layer: Any, tied: bool) -> None:
    from peft.tuners.lora.layer import ParamWrapper

    base, last = base_linear(layer), name.rpartition(".")[2]
    if isinstance(layer, ParamWrapper):
        raise UnsupportedSetup(
            f"The adapter at {name} is over a parameter (target_parameters), not over an nn.Linear.",
            f"{_PLAIN}: target_modules (attention, say) instead of target_parameters.",
        )
    if not isinstance(base, nn.Linear):
        raise UnsupportedSetup(
            f"The adapter at {name} is over {type(base).__name__}, not nn.Linear.", _LEAVE_OUT.format(last)
        )
    if tied:
        raise UnsupportedSetup(
            f"The adapter at {name} is over a weight that is tied (the embeddings share it), so that merging it would "
            "change them too.",
            _LEAVE_OUT.format(last),
        )
    adapter = active(layer)
    what = None
    if adapter in layer.lora_variant:
        what = f"is a {type(layer.lora_variant[adapter]).__name__}, not plain LoRA"
    elif layer.lora_bias.get(adapter):
        what = "has a bias of its own (lora_bias)"
    if what:
        raise UnsupportedSetup(
            f"The adapter at {name} {what}.",
            f"{_MERGE}; or {_PLAIN}.",
        )


def _in_use(model: Any) -> set[str]:
    """The names of the adapters in use."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    own = getattr(model, "active_adapters", [])  # transformers' own models have a method of that name
    held = (m.active_adapters for m in model.modules() if isinstance(m, AuxiliaryTrainingWrapper | BaseTunerLayer))
    return set([] if callable(own) else own).union(*held)


def _unseen(model: Any, in_use: set[str]) -> list[tuple[str, str]]:
    """The parameters in use that are neither weights of the plain model nor factors of LoRA: name, and kind."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    seen, kinds = {id(weight.tensor) for weight in weights(model).values()}, {"prompt_encoder"}
    for module in model.modules():
        if isinstance(module, AuxiliaryTrainingWrapper | BaseTunerLayer):
            kinds |= set(module.adapter_layer_names)
        if isinstance(module, AuxiliaryTrainingWrapper):
            seen |= {id(parameter) for parameter in module.original_module.parameters()}
    for layer in adapted(model).values():
        for factor in (layer.lora_A, layer.lora_B):
            seen |= {id(part.weight) for part in factor.values() if isinstance(part, nn.Linear)}
    found = []
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts) if part in kinds), len(parts) - 1)
        idle = at + 1 < len(parts) and parts[at + 1] not in in_use  # of an adapter that changes nothing now
        if id(parameter) not in seen and not idle:
            found.append((name, parts[at]))
    return found


def beside_factors(model: Any) -> list[str]:
    """Weights that the fine-tune of a PEFT model can have changed beside the adapter's factors; none of a plain model.

    Copies that were trained whole (`modules_to_save`), biases (`bias`), and whatever else is set to be trained.
    """
    configs = getattr(model, "peft_config", {})
    if not configs:
        return []
    biases = {getattr(config, "bias", "none") for config in configs.values()} - {"none"}
    lora = set(adapted(model))
    return [
        name
        for name, weight in weights(model).items()
        if weight.copied
        or weight.tensor.requires_grad
        or (name.endswith(".bias") and ("all" in biases or (biases and name.removesuffix(".bias") in lora)))
    ]


def effective_weight(layer: Any) -> Tensor:
    """W, or W + scaling * B A under an unmerged adapter: [out, in], computed and returned in fp32 (fp64 if W is).

    May share its memory with the layer: not to be written to.
    """
    weight = _wide(base_linear(layer).weight.detach())
    if layer is base_linear(layer) or layer.merged:
        return weight
    adapter = active(layer)
    a, b = (factor[adapter].weight.detach().to(weight.dtype) for factor in (layer.lora_A, layer.lora_B))
    return weight + layer.scaling[adapter] * (b @ a)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@torch.no_grad()
def merge(layer: Any) -> None:
    """Adds an unmerged adapter into the weight beneath it: fp32 arithmetic, one rounding to the weight's own dtype."""
    if layer is not base_linear(layer) and not layer.merged:
        base_linear(layer).weight.copy_(effective_weight(layer))
        layer.merged_adapters.append(active(layer))
