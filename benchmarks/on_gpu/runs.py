"""Training runs of the GPU script: rows, the methods' settings, a trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from datasets import Dataset
from trl import SFTConfig

from benchmarks.on_gpu import GPU
from mithridate.defenses.booster import Booster
from mithridate.defenses.lisa import Lisa
from mithridate.defenses.vaccine import Vaccine
from mithridate.training.trainer import DefenseTrainer
from tests.tiny import ONE_STEP, tiny_tokenizer

METHODS = ("plain", "vaccine", "booster", "lisa")
LISA = {"align_steps": 1, "finetune_steps": 2, "rho": 0.5, "proximal_start": 0.0}


def rows(name: str, count: int, length: int = 0) -> Dataset:
    """Prompts with answers; with `length`, of about so many characters, which are tokens of the tiny tokenizer."""
    fill = " lorem ipsum" * (length // 24)
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"{name} {i}{fill}" + "?" * (i % 5)}],
                "completion": [{"role": "assistant", "content": f"{name[::-1]}{fill}{i * i}" + "!" * (i % 3)}],
            }
            for i in range(count)
        ]
    )


def defense(method: str, count: int = 8, length: int = 0) -> Any:
    """The method with its settings here; None for plain training."""
    if method == "vaccine":
        return Vaccine(rho=1.5)
    if method == "booster":
        return Booster(harmful_dataset=rows("harmful!", count, length), alpha=0.3, lam=2.0)
    if method == "lisa":
        return Lisa(alignment_dataset=rows("careful", count, length), **LISA)
    return None


@contextmanager
def unrefused() -> Iterator[None]:
    """Inside, set-ups that are refused because nothing was measured in them are tried."""
    with mock.patch("mithridate.training.setups._untested", lambda trainer: []):
        yield


def trainer_for(model: Any, side: Any, folder: Path, data: Dataset, **args: Any) -> DefenseTrainer:
    """One step of plain SGD, if `args` do not say otherwise.

    Args:
        side: a defense, or None.
        args: SFTConfig's.
    """
    values = {**ONE_STEP, "logging_steps": 1000, "use_cpu": not GPU, "seed": 0, **args}
    config = SFTConfig(str(folder), **values)
    config._n_gpu = min(config.n_gpu, 1)
    with unrefused():
        return DefenseTrainer(
            model=model, args=config, train_dataset=data, processing_class=tiny_tokenizer(), defense=side
        )
