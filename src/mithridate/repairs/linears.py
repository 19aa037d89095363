"""The linear layers of a model, with or without LoRA over them: their names, their effective weights, merging.

A layer has the same name whether a PEFT model holds it or a plain one ("model.layers.0.self_attn.q_proj").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mithridate.errors import UnsupportedSetup


def adapted(model: nn.Module) -> dict[str, Any]:
    """The LoRA layers of a model by name; none for a plain model."""
    from peft.tuners.lora import LoraLayer

    prefix = "base_model.model."  # what a PEFT model puts before the names of the model in it
    return {n.removeprefix(prefix): m for n, m in model.named_modules() if isinstance(m, LoraLayer)}


def decoder_linears(model: Any) -> dict[str, nn.Module]:
    """Every `nn.Linear` of a plain model by name, without its output embeddings."""
    head = model.get_output_embeddings()
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}


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
        UnsupportedSetup: there is none, or there are several.
    """
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1 or layer.disable_adapters:
        raise UnsupportedSetup(
            f"{len(names)} LoRA adapters over linear layers are active ({', '.join(names) or 'none'}), not one.",
            "activate the fine-tuning adapter alone: model.set_adapter(name).",
        )
    return names[0]


def check_plain_lora(model: nn.Module, layers: dict[str, Any]) -> None:
    """Checks that each LoRA layer computes W x + scaling * B A x over an ordinary linear layer, and nothing else.

    Args:
        model: what holds the layers.
        layers: from `adapted`.

    Raises:
        UnsupportedSetup: it does not (DoRA and other variants, a bias of its own, an embedding, a convolution), or the
            adapter does more beside: it trains single tokens, or runs layers several times.
    """
    for config in getattr(model, "peft_config", {}).values():
        for what in ("layer_replication", "trainable_token_indices"):
            if getattr(config, what, None):
                raise UnsupportedSetup(
                    f"The adapter has {what}, which is not in the factors over linear layers.",
                    "use plain LoRA over linear layers (LoraConfig's defaults).",
                )
    for name, layer in layers.items():
        adapter = active(layer)
        what = None
        if not isinstance(base_linear(layer), nn.Linear):
            what = f"is over {type(base_linear(layer)).__name__}, not nn.Linear"
        elif adapter in layer.lora_variant:
            what = f"is a {type(layer.lora_variant[adapter]).__name__}, not plain LoRA"
        elif layer.lora_bias[adapter]:
            what = "has a bias of its own (lora_bias)"
        if what:
            raise UnsupportedSetup(
                f"The adapter at {name} {what}.", "use plain LoRA over linear layers (LoraConfig's defaults)."
            )


def effective_weight(layer: Any) -> Tensor:
    """W, or W + scaling * B A under an unmerged adapter: [out, in], computed and returned in fp32 (fp64 if W is).

    May share its memory with the layer: not to be written to.
    """
    weight = base_linear(layer).weight.detach()
    wide = torch.promote_types(weight.dtype, torch.float32)
    weight = weight.to(wide)
    if layer is base_linear(layer) or layer.merged:
        return weight
    adapter = active(layer)
    a, b = layer.lora_A[adapter].weight.detach().to(wide), layer.lora_B[adapter].weight.detach().to(wide)
    return weight + layer.scaling[adapter] * (b @ a)


@torch.no_grad()
def merge(layer: Any) -> None:
    """Adds an unmerged adapter into the weight beneath it: fp32 arithmetic, one rounding to the weight's own dtype."""
    if layer is not base_linear(layer) and not layer.merged:
        base_linear(layer).weight.copy_(effective_weight(layer))
        layer.merged_adapters.append(active(layer))
