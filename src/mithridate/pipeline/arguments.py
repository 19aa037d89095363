"""SFTConfig as a stage trains with it, and how many optimizer steps it plans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from trl.trainer.sft_config import SFTConfig

from mithridate.errors import InputError, first_line
from mithridate.methods.steps import micro_batches, optimizer_steps

LIBRARY_ERRORS = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError, OSError),
    *(RuntimeError, NotImplementedError, AssertionError),
)
"""What TRL, PEFT and transformers raise for settings that do not fit."""


def training_arguments(
    training: dict[str, Any],
    folder: Path,
    seed: int,
    bf16: bool,
    progress: bool,
    path: str = "training",
    report_to: Sequence[str] = (),
) -> SFTConfig:
    """SFTConfig with the project's defaults under the user's values.

    The defaults that differ from TRL's: no reporting to outside services, no gradient checkpointing on CPU (where
    memory is not what is short), a checkpoint every quarter of the run.

    Args:
        path: of the fields in the experiment file, for errors.
        report_to: services besides those of `training`.

    Raises:
        InputError: SFTConfig refuses the values; with the field that it refuses.
    """
    steps = int(training.get("max_steps", -1))
    values: dict[str, Any] = {
        "seed": seed,
        "data_seed": seed,
        "report_to": "none",
        "save_strategy": "steps",
        "save_steps": max(10, -(-steps // 4)) if steps > 0 else 0.25,
        "logging_steps": 5,
        "bf16": bf16,
        "disable_tqdm": not progress,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "gradient_checkpointing": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        **training,
        "output_dir": str(folder),
    }
    own = training.get("report_to", [])
    local = [name for name in (own if isinstance(own, list) else [own]) if name != "none"]
    services = values["report_to"] = list(dict.fromkeys([*local, *report_to])) or "none"
    try:
        args = SFTConfig(**values)
    except LIBRARY_ERRORS as error:
        culprit = next((name for name in training if _passes(SFTConfig, values, name)), None)
        field = f" (field: {path}.{culprit})" if culprit else ""
        raise InputError(f"{path}: {first_line(error)}{field}") from error
    args.report_to = [] if services == "none" else services  # which adds services of its own on some clusters
    args._n_gpu = min(args.n_gpu, 1)  # several GPUs are for several processes (DDP), never for threads of one
    return args


def _passes(cls: Any, values: dict[str, Any], name: str) -> bool:
    """Whether a class takes the values without one of them."""
    try:
        cls(**{key: value for key, value in values.items() if key != name})
    except LIBRARY_ERRORS:
        return False
    return True


def batches_of(args: SFTConfig, sequences: int, processes: int = 1) -> int:
    """The micro-batches of one pass over so many rows (or packs) on each process.

    Raises:
        InputError: there is none, so that the training would be of zero steps.
    """
    batches = micro_batches(vars(args), sequences, processes)
    if batches == 0:
        several = f" on each of {processes} processes" if processes > 1 else ""
        raise InputError(
            "training.dataloader_drop_last: not one optimizer step would be made: "
            f"{sequences} {'packs' if args.packing else 'rows'} do not fill a batch of "
            f"{args.per_device_train_batch_size}{several}, and what does not fill one is dropped. Lower "
            "per_device_train_batch_size, give more rows, or set "
            "dataloader_drop_last: false"
        )
    return batches


def planned_steps(args: SFTConfig, rows: int, processes: int = 1) -> int:
    """The optimizer steps of a run over `rows` examples.

    Raises:
        InputError: there would be none; the examples are packed, and `max_steps` is not set.
    """
    if args.packing and args.max_steps <= 0:
        raise InputError(
            "training.packing: how many steps a run over packed rows takes is known only once they are packed; set "
            "max_steps, or packing: false"
        )
    if not args.packing:
        batches_of(args, rows, processes)
    return optimizer_steps(vars(args), rows, processes)
