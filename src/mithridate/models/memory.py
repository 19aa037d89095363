"""How much memory is free, whether a model fits into it, and where a batch does not: half of the batch."""

from __future__ import annotations

import logging
from typing import Any

import torch

from mithridate.errors import MithridateError


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process can still have on a GPU, what its allocator holds in reserve among them; None for a
    CPU."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def to_gpu(model: Any, what: str) -> Any:
    """The model on the GPU; where torch sees none, on the CPU.

    Args:
        what: the model's name, for errors.

    Raises:
        MithridateError: the GPU's free memory does not hold it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return model.to(device)
    except torch.OutOfMemoryError as error:
        size = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**30
        raise MithridateError(
            f"{what}: its weights are {size:.1f} GiB, and the GPU's free memory does not hold them. Take a smaller "
            "model, load it in 4 bit (quantization: {load_in_4bit: true}), end what else is on that GPU, or compute "
            "on the CPU (CUDA_VISIBLE_DEVICES='')"
        ) from error


def out_of_memory(error: BaseException) -> bool:
    """Accelerators raise an error of their own; the CPU allocator a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def halved(batch_size: int, of: str, alone: str, log: logging.Logger) -> int:
    """Half of `batch_size`, with a warning in the log and the accelerator's cache emptied.

    Args:
        of: what a batch holds ("prompts").
        alone: what to say where one of them does not fit.

    Raises:
        MithridateError: `alone`; the batch held one.
    """
    if batch_size == 1:
        raise MithridateError(alone)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    log.warning("Out of memory with %d %s in a batch: going on with %d.", batch_size, of, batch_size // 2)
    return batch_size // 2
