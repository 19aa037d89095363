"""An adapter that a quantised model carries: it acts on, and nothing trains or saves it any more.

What merging is for a plain model. 4 and 8 bits cannot hold the sum of a weight and an adapter: to quantise the sum
again would give another model than the one that was aligned, with an error as large as a small adapter's whole change,
and to keep it dequantised would take the memory that 4 bit are chosen to save. So the factors stay beside the weight,
in float32, and each layer adds their product to what it computes. A fresh adapter over it is the only one that PEFT,
a trainer or a repair sees.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mithridate.repairs.linears import active, adapted, base_linear, check_adapters

_A, _B, _HANDLE = "carried_a", "carried_b", "carried_handle"


def carry(model: Any) -> Any:
    """The quantised model that computes the same without an adapter over it: it carries this one, beside those that it
    carries already.

    Args:
        model: a PEFT model; it is taken apart.

    Raises:
        UnsupportedSetup: the adapter is not plain LoRA over linear layers, or there are several in use.
    """
    check_adapters(model)
    found = [
        (base_linear(layer), layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])
        for layer in adapted(model).values()
        for name in [active(layer)]
    ]
    plain = model.unload()
    for module, a, b, scaling in found:
        _add(module, a.detach().float(), scaling * b.detach().float())
    return plain.requires_grad_(False)


def _add(module: nn.Module, a: Tensor, b: Tensor) -> None:
    device = next(module.parameters()).device
    if hasattr(module, _A):
        a, b = torch.cat([getattr(module, _A), a.to(device)]), torch.cat([getattr(module, _B), b.to(device)], dim=1)
    else:
        setattr(module, _HANDLE, module.register_forward_hook(_acts))
    module.register_buffer(_A, a.to(device), persistent=False)
    module.register_buffer(_B, b.to(device), persistent=False)


def _acts(module: Any, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
    a, b = getattr(module, _A), getattr(module, _B)
    return (out + nn.functional.linear(nn.functional.linear(inputs[0].to(a.dtype), a), b)).to(out.dtype)


def carries(model: Any) -> bool:
    """Whether a model carries an adapter."""
    return any(hasattr(module, _A) for module in model.modules())


def carried_weights(model: Any) -> int:
    """How many numbers the factors have that a model carries."""
    return sum(getattr(m, own).numel() for m in model.modules() if hasattr(m, _A) for own in (_A, _B))


def put_down(model: Any) -> dict[str, Tensor]:
    """Of each layer of a plain model that carries an adapter, what is to be added to its weight, [out, in] in float32.
    The layers carry nothing afterwards."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, _A):
            found[name] = getattr(module, _B) @ getattr(module, _A)
            getattr(module, _HANDLE).remove()
            for own in (_A, _B, _HANDLE):
                delattr(module, own)
    return found
