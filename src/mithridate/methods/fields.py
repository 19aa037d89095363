"""Fields of dataclasses that users fill by name: unknown names and wrong types, found before an instance is made."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from mithridate.methods.types import hint
from mithridate.problems import explained, nearest


@cache
def adapter_of(kind: Any) -> TypeAdapter[Any]:
    """A validator of a type, made once."""
    return TypeAdapter(kind)


def field_problems(path: str, values: dict[str, Any], cls: type, names: list[str]) -> list[str]:
    """Names and types of a free mapping against those fields of a dataclass."""
    problems = []
    for name, value in values.items():
        if name not in names:
            problems.append(f"{path}.{name}: no such field{nearest(name, names)}")
            continue
        try:
            adapter_of(hint(cls, name)).validate_json(json.dumps(value), strict=True)
        except PydanticSchemaGenerationError:
            continue  # a type that only its class can check
        except ValidationError as error:
            for item in explained(error, value):
                problems.append(f"{path}.{name}{'' if item.startswith(':') else '.'}{item}")
    return problems
