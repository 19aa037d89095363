"""Adapters over a quantised model (QLoRA): they stay as they are while a trainer is built."""

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
