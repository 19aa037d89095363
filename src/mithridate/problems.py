"""What is wrong with an experiment file, in words: its path, what was expected, what is there, what may be meant."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from mithridate.errors import Findings, error_of, nearest

__all__ = ["Findings", "error_of", "explained", "kind", "nearest"]


def explained(error: ValidationError, raw: Any, owners: Mapping[tuple[Any, ...], Any] = {}) -> list[str]:
    """Pydantic's errors in our words: one a path, alternatives joined.

    Args:
        raw: what was validated.
        owners: the dataclass at a path (or below it, for a path of one key), whose fields may have been meant.
    """
    found: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        missing = item["type"] in ("missing", "missing_argument")
        path = _real_path(item["loc"], raw, missing)
        owner = owners.get(path[:-1], owners.get(path[:1]))
        if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            names = [f.name for f in fields(owner)] if is_dataclass(owner) else []
            text = f"no such field{nearest(str(path[-1]), names)}"
        elif missing:
            text = "missing"
        elif item["type"] == "said":  # a validator of our own
            text = item["msg"]
        else:
            expected = re.sub(r"^Input should be (an? )?(valid )?", "", item["msg"])
            expected = {"array": "list", "object": "fields", "dictionary": "fields"}.get(expected, expected)
            if item["type"].startswith("dataclass"):
                expected = "fields"
            if (bound := _BOUNDS.get(item["type"])) is not None:
                expected = _described(owner, path[-1]) or f"{bound} {item.get('ctx', {}).get(_LIMIT[item['type']])}"
            got = item["input"]
            text = f"expected {expected}, got {kind(got)}"
            if item["type"] == "literal_error" and isinstance(got, str):
                text += nearest(got, re.findall(r"'([^']+)'", expected), listed=False)
        found.setdefault(_dotted(path), []).append(text)
    return [
        f"{path}: {_joined(texts)}"
        for path, texts in found.items()
        # Of alternatives, the one that was meant says more: it got deeper.
        if not any(other != path and other.startswith(f"{path}." if path else "") for other in found)
    ]


_LIMIT = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
_BOUNDS = dict(zip(_LIMIT, ("more than", "at least", "less than", "at most"))) | {"string_pattern_mismatch": ""}
_LIMIT["string_pattern_mismatch"] = "pattern"


@cache
def _described(owner: Any, name: Any) -> str | None:
    """What a field's type says of its values (`Field(description=...)`), where it says anything."""
    kinds = [get_type_hints(owner, include_extras=True).get(name)] if owner else []
    while kinds:
        one = kinds.pop()
        for info in getattr(one, "__metadata__", ()):
            if isinstance(info, FieldInfo) and info.description:
                return info.description
        kinds += get_args(one)
    return None


def _joined(texts: list[str]) -> str:
    """Of several alternatives (a union), what was expected, once each."""
    if len(texts) == 1:
        return texts[0]
    expected = [re.sub(r"^expected (.*), got .*$", r"\1", text) for text in texts]
    got = re.search(r", got (.*)$", texts[0])
    expected = [text for text in dict.fromkeys(expected) if len(text) < 200] or expected  # no endless lists
    return f"expected {' or '.join(expected)}" + (f", got {got[1]}" if got else "")


def _real_path(location: tuple[Any, ...], raw: Any, missing: bool) -> tuple[Any, ...]:
    """Pydantic's location without the names of union members, which are not in the file."""
    path: list[Any] = []
    node = raw
    for i, key in enumerate(location):
        if isinstance(node, dict) and (key in node or (missing and i == len(location) - 1)):
            path.append(key)
            node = node.get(key)
        elif isinstance(node, list) and isinstance(key, int) and key < len(node):
            path.append(key)
            node = node[key]
    return tuple(path)


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(str(key) for i, key in enumerate(path) if not (path[0] == "data" and i == 2 and key == 0))


def kind(value: Any) -> str:
    """A value as an error shows it."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "fields"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, default=repr, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
