"""Repairs of aligned or fine-tuned models, one per file."""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mithridate.methods.registry import by_name as _by_name
from mithridate.methods.repair import Repair

if TYPE_CHECKING:
    from mithridate.repairs.antidote import Antidote
    from mithridate.repairs.lox import LoX
    from mithridate.repairs.randommask import RandomMask
    from mithridate.repairs.randomnoise import RandomNoise
    from mithridate.repairs.resta import RESTA
    from mithridate.repairs.safedelta import SafeDelta
    from mithridate.repairs.safelora import SafeLoRA
    from mithridate.repairs.wiseft import WiSEFT

__all__ = ["RESTA", "Antidote", "LoX", "RandomMask", "RandomNoise", "SafeDelta", "SafeLoRA", "WiSEFT", "by_name"]


def by_name() -> Mapping[str, type[Repair]]:
    """Every repair by its lower-case class name; see `mithridate.methods.by_name`."""
    return _by_name("repairs")


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"mithridate.repairs.{name.lower()}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
