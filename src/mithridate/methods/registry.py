"""Every method by its name: those of this package, and those that installed packages declare as entry points."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from mithridate.errors import InputError
from mithridate.methods.attack import Attack
from mithridate.methods.base import CONTRACT, Method
from mithridate.methods.defense import Defense
from mithridate.methods.repair import Repair

KINDS: dict[str, type[Method]] = {"defenses": Defense, "repairs": Repair, "attacks": Attack}
"""The kinds of methods, by the name of their package, which is also that of their entry points after `mithridate.`."""


@cache  # looking through what is installed takes 10 ms
def by_name(kind: str) -> dict[str, type[Any]]:
    """The classes of one of `KINDS`, each under its lower-case name; an entry point's under the entry point's own.

    Raises:
        InputError: an entry point cannot be loaded, is no such method, was written against another contract, or has
            the name of another method.
    """
    base = KINDS[kind]
    found = shipped(kind)
    for entry in entry_points(group=f"mithridate.{kind}"):
        name, cls = entry.name.lower(), load(entry, base)
        if found.setdefault(name, cls) is not cls:
            raise InputError(f"{described(entry)}: there is a method of that name already. Rename one of them.")
    return found


def shipped(kind: str) -> dict[str, type[Any]]:
    """The classes of this package, by lower-case name."""
    package = importlib.import_module(f"mithridate.{kind}")
    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    classes = [c for m in modules for c in vars(m).values() if isinstance(c, type) and c.__module__ == m.__name__]
    return {c.__name__.lower(): c for c in classes if issubclass(c, KINDS[kind])}


def load(entry: EntryPoint, base: type) -> type[Any]:
    """The class of an entry point. Raises InputError as `by_name` does."""
    try:
        cls = entry.load()
    except Exception as error:  # whatever the package's own code raises
        raise InputError(f"{described(entry)} cannot be loaded: {type(error).__name__}: {error}.") from error
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise InputError(f"{described(entry)} is not a {base.__name__} of mithridate.")
    if cls.contract != CONTRACT:
        raise InputError(
            f"{described(entry)} was written against version {cls.contract!r} of the contract, and this is version "
            f"{CONTRACT}. Install a release of it for this version."
        )
    return cls


def described(entry: EntryPoint) -> str:
    """How errors call an entry point: its name, its value, and the package that declares it."""
    package = f" of the package {entry.dist.name}" if entry.dist else ""
    return f"The entry point {entry.name} = {entry.value} in {entry.group}{package}"
