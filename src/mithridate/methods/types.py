"""The types of a method's fields, as experiment files may give them."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import re
import sys
from functools import cache
from types import SimpleNamespace
from typing import Any, get_type_hints

from pydantic import PydanticSchemaGenerationError, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema


@cache
def hint(cls: type, name: str) -> Any:
    """The type of one field, whatever types the others have, which may be imported for checkers only."""
    owner = next(base for base in cls.__mro__ if name in vars(base).get("__annotations__", {}))
    alone = SimpleNamespace(__annotations__={name: owner.__annotations__[name]})
    return get_type_hints(alone, vars(sys.modules[owner.__module__]), include_extras=True)[name]


@cache
def descriptions(cls: type) -> dict[str, str]:
    """What the Args of a class's docstring say of its fields, on one line each."""
    _, _, block = inspect.cleandoc(cls.__doc__ or "").partition("\nArgs:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in itertools.takewhile(lambda line: not line or line.startswith(" "), block.splitlines()):
        if entry := re.fullmatch(r" {4}(\w+(?:, \w+)*): (.+)", line):
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif line.startswith(" " * 8):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def json_schema(cls: type, field: dataclasses.Field[Any]) -> dict[str, Any]:
    """The JSON Schema of a dataclass's field, with its default; {} for a type that only its class can check. Types
    with a name of their own lie under `$defs`, referred to as if that stood at the top of the file."""
    try:
        schema = TypeAdapter(hint(cls, field.name)).json_schema(ref_template="#/$defs/{model}")
    except (PydanticSchemaGenerationError, PydanticInvalidForJsonSchema):
        schema = {}
    if text := field.metadata.get("help") or descriptions(cls).get(field.name):
        schema["description"] = str(text)
    if isinstance(field.default, str | int | float):
        schema["default"] = field.default
    return schema
