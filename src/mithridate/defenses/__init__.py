"""Training-time defenses, one a file."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from mithridate.errors import InputError

if TYPE_CHECKING:
    from mithridate.defenses.base import Defense

GROUP = "mithridate.defenses"


@cache  # looking through what is installed takes 10 ms
def by_name() -> dict[str, type[Defense]]:
    """Every defense under its lower-case class name: those of this package, and those that installed packages
    declare under the entry-point group `mithridate.defenses`. Imports no torch for the former.

    Raises:
        InputError: such an entry point is no defense.
    """
    from mithridate.defenses.base import Defense

    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    classes = [c for module in modules for c in vars(module).values() if isinstance(c, type) and c is not Defense]
    found = {c.__name__.lower(): c for c in classes if issubclass(c, Defense)}
    for entry in entry_points(group=GROUP):
        cls = entry.load()
        if not (isinstance(cls, type) and issubclass(cls, Defense)):
            raise InputError(f"The entry point {entry.name} = {entry.value} in {GROUP} is no Defense.")
        found.setdefault(entry.name.lower(), cls)
    return found
