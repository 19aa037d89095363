"""Repairs of fine-tuned models, one a file."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from mithridate.errors import InputError

if TYPE_CHECKING:
    from mithridate.repairs.antidote import Antidote
    from mithridate.repairs.base import Repair

__all__ = ["Antidote", "by_name"]

GROUP = "mithridate.repairs"


@cache  # looking through what is installed takes 10 ms
def by_name() -> dict[str, type[Repair]]:
    """Every repair under its lower-case class name: those of this package, and those that installed packages declare
    under the entry-point group `mithridate.repairs`. Imports no torch for the former.

    Raises:
        InputError: such an entry point is no repair.
    """
    from mithridate.repairs.base import Repair

    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    classes = [c for module in modules for c in vars(module).values() if isinstance(c, type) and c is not Repair]
    found = {c.__name__.lower(): c for c in classes if issubclass(c, Repair)}
    for entry in entry_points(group=GROUP):
        cls = entry.load()
        if not (isinstance(cls, type) and issubclass(cls, Repair)):
            raise InputError(f"The entry point {entry.name} = {entry.value} in {GROUP} is no Repair.")
        found.setdefault(entry.name.lower(), cls)
    return found


def __getattr__(name: str) -> Any:
    if name == "Antidote":
        from mithridate.repairs.antidote import Antidote

        return Antidote
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
