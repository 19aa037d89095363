"""All that experiment files name and other packages may add: methods, judges, tasks, protocols. Imports no torch.

An installed package declares what it adds as entry points in the group `mithridate.KIND`. Names are known without
importing anything; what stands behind a name is imported and checked when somebody asks for it.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from mithridate.errors import InputError
from mithridate.methods.attack import Attack
from mithridate.methods.base import CONTRACT, Method
from mithridate.methods.defense import Defense
from mithridate.methods.repair import Repair

T = TypeVar("T")

KINDS: dict[str, type[Method]] = {"defenses": Defense, "repairs": Repair, "attacks": Attack}
"""The kinds of methods, by the name of their package, which is also that of their entry points after `mithridate.`."""


class Registry(Mapping[str, T]):
    """What has a name, of one kind: this package's own, then what installed packages declare.

    Looking a name up raises KeyError where there is none, and InputError where an entry point cannot be loaded, is no
    such thing, was written against another contract, or where two things have the name.

    Args:
        kind: "defenses", "judges", ...: the group of the entry points after `mithridate.`.
        own: this package's, by name: the thing itself, or where it is, as "module:attribute".
        fits: what is wrong with a thing of that kind, in words that follow on its description; None: nothing.
        lower: whether names are compared in lower case.
        prefixed: whether a name from outside must begin with its package's name and "/".
    """

    def __init__(
        self,
        kind: str,
        own: Mapping[str, T | str],
        fits: Callable[[Any], str | None],
        *,
        lower: bool = False,
        prefixed: bool = False,
    ):
        self.group, self.own = f"mithridate.{kind}", own
        self._fits, self._lower, self._prefixed = fits, lower, prefixed

    def plugins(self) -> dict[str, list[EntryPoint]]:
        """The entry points of each name that other packages declare; more than one where packages clash."""
        found: dict[str, list[EntryPoint]] = {}
        for entry in installed().get(self.group, ()):
            same = found.setdefault(entry.name.lower() if self._lower else entry.name, [])
            if entry not in same:  # a package that is on the path twice
                same.append(entry)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.own, *self.plugins()]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in self.plugins()

    def __getitem__(self, name: str) -> T:
        declared = self.plugins().get(name, [])
        if name in self.own:
            if declared:
                raise InputError(
                    f"{described(declared[0])}: mithridate has a `{name}` of its own. Rename it, or uninstall one."
                )
            return _imported(self.own[name])
        if not declared:
            raise KeyError(name)
        entry, *others = declared
        if others:
            raise InputError(f"{described(entry)}: {described(others[0])} has the same name. Uninstall one of them.")
        package = _normal(entry.dist.name) if entry.dist else ""
        if self._prefixed and package and _normal(entry.name.partition("/")[0]) != package:
            raise InputError(
                f"{described(entry)}: a name from outside begins with its package's, as in "
                f"{package}/{entry.name.rpartition('/')[2]}, so that nobody takes it for one of mithridate's."
            )
        return load(entry, self._fits)

    def code(self, name: str) -> str | None:
        """What tells one state of a thing's code from another, in words; None for this package's own, whose releases
        say themselves what they change."""
        self[name]  # it is there, and fits
        return None if name in self.own else _code(self.plugins()[name][0])


def code_of(kinds: Mapping[str, Iterable[str]], registries: Mapping[str, Registry[Any]]) -> dict[str, str]:
    """Of things by kind and name, the code of those from outside, by "KIND.NAME" (`Registry.code`)."""
    found = {f"{kind}.{name}": registries[kind].code(name) for kind, names in kinds.items() for name in names}
    return {name: code for name, code in sorted(found.items()) if code is not None}


@cache  # looking through what is installed takes 10 ms, and names are looked up for every record
def installed() -> dict[str, list[EntryPoint]]:
    """The entry points of all installed packages, by group."""
    found = entry_points()
    return {group: list(found.select(group=group)) for group in found.groups}


def load(entry: EntryPoint, fits: Callable[[Any], str | None]) -> Any:
    """What an entry point leads to. Raises InputError as `Registry` does.

    The version of the contract is stated as `contract` by the class, or where it is no class, by its module.
    """
    try:
        found = entry.load()
    except Exception as error:  # whatever the package's own code raises
        raise InputError(f"{described(entry)} cannot be loaded: {type(error).__name__}: {error}.") from error
    stated = getattr(found, "contract", getattr(sys.modules.get(entry.module), "contract", CONTRACT))
    if stated != CONTRACT:
        raise InputError(
            f"{described(entry)} was written against version {stated!r} of the contract, and this is version "
            f"{CONTRACT}. Install a release of it for this version."
        )
    problem = fits(found)
    if not problem and not isinstance(found, type) and found.name != entry.name:
        problem = f"has another name itself: {found.name}"
    if problem:
        raise InputError(f"{described(entry)} {problem}.")
    return found


@cache
def _code(entry: EntryPoint) -> str:
    """The package of an entry point, its version, and a digest of all its Python files: what is kept of an edited
    one must not be taken for what the edited one would make."""
    entry.load()
    name, _, rest = entry.module.partition(".")
    while getattr(sys.modules[name], "__file__", None) is None and rest:  # a namespace that packages share
        below, _, rest = rest.partition(".")
        name = f"{name}.{below}"
    module, hashed = sys.modules[name], hashlib.sha256()
    files = {Path(module.__file__)} if module.__file__ else set()
    for folder in map(Path, getattr(module, "__path__", ())):
        files.update(folder.rglob("*.py"))
    for file in sorted(files):
        content = file.read_bytes() if file.is_file() else b""  # of a package in an archive, its version must do
        hashed.update(f"{file.name} {len(content)}\n".encode() + content)
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else name
    return f"{package} {hashed.hexdigest()[:16]}"


def described(entry: EntryPoint) -> str:
    """How errors call an entry point: its name, its value, and the package that declares it."""
    package = f" of the package {entry.dist.name}" if entry.dist else ""
    return f"The entry point {entry.name} = {entry.value} in {entry.group}{package}"


def _imported(own: Any) -> Any:
    if not isinstance(own, str):
        return own
    module, _, attribute = own.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# -- methods -------------------------------------------------------------------------------------------------------


@cache
def by_name(kind: str) -> Registry[Any]:
    """The classes of one of `KINDS`, each under its lower-case name; an entry point's under the entry point's own."""
    from mithridate.methods.index import index

    own = {entry["name"]: f"{entry['module']}:{entry['class']}" for entry in index() if entry["kind"] == kind}
    return Registry(kind, own, lambda found: _no_method(found, KINDS[kind]), lower=True)


def _no_method(found: Any, base: type[Method]) -> str | None:
    if not (isinstance(found, type) and issubclass(found, base)):
        return f"is not a {base.__name__} of mithridate"
    if tested := [role for role in found.roles.values() if role.startswith("test_")]:
        return f"asks for the rows of {tested[0]}, which models are tested on; a method gets those of other roles"
    return None
