"""What every method states about itself, without importing it: `index.json`, generated from the classes.

    python -m mithridate.methods.index --write          # after a method was added or changed

A test holds the file to the classes. What a method of another package states is asked of its class, when it is named.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import sys
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any

from mithridate.errors import InputError
from mithridate.methods.base import Method
from mithridate.methods.registry import KINDS, by_name

FILE = Path(__file__).with_name("index.json")
STAGES = ("attack", "alignment", "post-alignment", "fine-tuning", "post-fine-tuning")


@cache
def index() -> list[dict[str, Any]]:
    """The methods of this package, in the order of their stages and years: see `facts_of`."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def facts(kind: str, name: str) -> dict[str, Any]:
    """What a method states about itself (see `facts_of`), by its kind (of `KINDS`) and name.

    Raises:
        KeyError: there is no such method here.
        InputError: it is another package's, and cannot be loaded.
    """
    found = next((entry for entry in index() if (entry["kind"], entry["name"]) == (kind, name)), None)
    if found:
        return found
    cls = by_name(kind)[name]
    try:
        return facts_of(kind, name, cls)
    except Exception as error:  # whatever the package's own code raises
        raise InputError(
            f"{cls.__module__}.{cls.__name__} cannot say what it costs or needs: {type(error).__name__}: {error}."
        ) from error


def facts_of(kind: str, name: str, cls: type[Method]) -> dict[str, Any]:
    """A class in JSON's types: where it is, its class variables, and with its defaults its cost and controls.

    `fields` holds the JSON Schema of each field that a file may set, `required` the names of those without a default.
    """
    from mithridate.methods.types import json_schema  # needs pydantic, which takes longer than all the rest here

    own = [f for f in fields(cls) if f.init and f.name not in cls.roles]
    required = [f.name for f in own if f.default is f.default_factory is MISSING]
    made = cls.example() if required else cls.without_data()
    schemas = {f.name: json_schema(cls, f) for f in own}
    return {
        "kind": kind,
        "name": name,
        "module": cls.__module__,
        "class": cls.__name__,
        "stage": cls.stage,
        "fields": schemas,
        "required": required,
        "roles": cls.roles,
        "models": cls.models,
        "strength": cls.strength,
        "off": cls.off,
        "cost": str(made.cost()),
        "controls": list(made.controls()),
        "adaptive": [attack.in_words() for attack in made.adaptive()],
        "colour": cls.colour,
        "provenance": cls.provenance,
        "paper": cls.paper,
        "citation": cls.citation,
    }


def shipped(kind: str) -> dict[str, type[Method]]:
    """The classes in this package's files, by lower-case name. Imports all of them."""
    package = importlib.import_module(f"mithridate.{kind}")
    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    classes = [c for m in modules for c in vars(m).values() if isinstance(c, type) and c.__module__ == m.__name__]
    return {c.__name__.lower(): c for c in classes if issubclass(c, KINDS[kind])}


def generated() -> str:
    """The text of `index.json`, from the classes."""
    found = [facts_of(kind, name, cls) for kind in KINDS for name, cls in shipped(kind).items()]
    ordered = sorted(found, key=lambda entry: (STAGES.index(entry["stage"]), _year(entry), entry["name"]))
    return json.dumps(ordered, indent=1) + "\n"


def _year(entry: dict[str, Any]) -> str:
    found = re.search(r"year\s*=\s*\{(\d+)\}", entry["citation"])
    return found[1] if found else ""


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        FILE.write_text(generated(), encoding="utf-8")
    else:
        print(generated(), end="")
