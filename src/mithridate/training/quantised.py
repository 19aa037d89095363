"""Quantised models: by what they are, that they compute with the weights that they store, and that adapters over them
(QLoRA) stay as they are while a trainer is built."""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

TESTED = (None, "bitsandbytes")


def quantiser(model: Any) -> str | None:
    """What a model's weights were quantised by, as transformers names it ("bitsandbytes", "gptq", ...); None: nothing.

    A method that cannot be told is "unknown".
    """
    made = getattr(model, "hf_quantizer", None)
    if made is None and not getattr(model, "is_quantized", False):
        return None
    config = getattr(made, "quantization_config", None) or getattr(model.config, "quantization_config", None)
    method = getattr(config, "quant_method", None)
    return str(getattr(method, "value", method) or "unknown")


def as_stored(model: Any) -> Any:
    """The model, which from now on computes with the weights that it stores, in the dtype of its inputs.

    On a CPU with AVX512-BF16, bitsandbytes lays weights in 4 bit out anew in the first pass in evaluation mode, in
    place: rounds their scales to bfloat16, computes in it, and passes no gradient back through them in later training
    steps, while whoever dequantises them reads numbers in the wrong order.

    Args:
        model: quantised or not. Weights laid out anew already are put back; their scales stay rounded.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            if getattr(module.weight.quant_state, "packing_format_for_cpu", False):
                module._save_to_state_dict({}, "", True)  # which puts them back first
                state = module.weight.quant_state
                if not state.nested:  # bitsandbytes 0.50 leaves these scales as they were laid out, [blocks, out]
                    state.absmax = state.absmax.T.reshape(-1).float()
            module.support_avx512bf16_for_cpu = False
    return model


@contextlib.contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode, but computes as in training: on a CPU, bitsandbytes rounds the inputs
    of layers in 8 bit in evaluation mode only, so that a model would differ from itself."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        for module in model.modules():
            if hasattr(getattr(module, "state", None), "is_training"):
                module.training = True
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def adapters_kept(trainer: type, model: Any) -> Iterator[None]:
    """Inside, a trainer is built; afterwards the adapters of a quantised model have the values that they had before.

    TRL rounds them to bfloat16 there, which lasts: most of a small step is lost in it, and what it takes away is not
    brought back by a wider dtype later. So their values are kept from before: of an adapter that the model comes with,
    and of one that the trainer makes.

    Args:
        trainer: the class that is built.
        model: as it was given: a model, or a name.
    """
    kept: list[tuple[nn.Parameter, Tensor]] = []

    def keep(found: Any) -> None:
        parameters = found.parameters() if isinstance(found, nn.Module) and _low_bit(found) else ()
        kept.extend((p, p.data) for p in parameters if p.requires_grad and p.dtype.itemsize > 2)

    keep(model)
    # where trainers that make adapters take the function from
    users: set[Any] = {sys.modules[one.__module__] for one in trainer.__mro__ if one.__module__ in sys.modules}
    users = {module for module in users if hasattr(module, "get_peft_model")}
    real = {module: module.get_peft_model for module in users}

    def wrapped(make: Any) -> Any:
        def made(*args: Any, **kwargs: Any) -> Any:
            found = make(*args, **kwargs)
            keep(found)
            return found

        return made

    try:
        for module, make in real.items():
            module.get_peft_model = wrapped(make)
        yield
    finally:
        for module, make in real.items():
            module.get_peft_model = make
        for parameter, value in kept:
            if parameter.dtype != value.dtype:
                parameter.data = value.to(parameter.device)


def _low_bit(model: nn.Module) -> bool:
    return any(getattr(model, f"is_loaded_in_{bits}bit", False) for bits in (4, 8))
