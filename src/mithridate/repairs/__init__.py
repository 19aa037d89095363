"""Repairs of aligned or fine-tuned models, one per file."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mithridate.methods.registry import by_name as _by_name
from mithridate.methods.repair import Repair

if TYPE_CHECKING:
    from mithridate.repairs.antidote import Antidote

__all__ = ["Antidote", "by_name"]


def by_name() -> Mapping[str, type[Repair]]:
    """Every repair by its lower-case class name; see `mithridate.methods.by_name`."""
    return _by_name("repairs")


def __getattr__(name: str) -> Any:
    if name == "Antidote":
        from mithridate.repairs.antidote import Antidote

        return Antidote
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
