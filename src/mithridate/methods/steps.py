"""How many optimizer steps a training takes, as transformers' Trainer counts them, before there is a Trainer."""

from collections.abc import Mapping
from math import ceil
from typing import Any


def micro_batches(training: Mapping[str, Any], rows: int, processes: int = 1) -> int:
    """The micro-batches of one pass over `rows` on each process.

    Args:
        training: SFTConfig's fields; those left out have its defaults.
        rows: rows, or packs of them.
    """
    batch = training.get("per_device_train_batch_size", 8) * processes
    return rows // batch if training.get("dataloader_drop_last", False) else ceil(rows / batch)


def optimizer_steps(training: Mapping[str, Any], rows: int, processes: int = 1) -> int:
    """The optimizer steps of a training; arguments as in `micro_batches`."""
    if (most := training.get("max_steps", -1)) > 0:
        return most
    of_a_pass = ceil(micro_batches(training, rows, processes) / training.get("gradient_accumulation_steps", 1))
    return ceil(training.get("num_train_epochs", 3) * max(of_a_pass, 1))
