"""The shorthands of an experiment file, and its fields by dotted path.

The types of `model.py` read the shorthands by these functions as they validate; `put` opens them on the way to a field
below, so that `align.defense.NAME.rho` is a place where `align.defense` is `NAME`. Nothing is changed in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic_core import PydanticCustomError

from mithridate.errors import InputError
from mithridate.problems import kind

METHODS = (
    ("align", "defense"),
    ("finetune", "defense"),
    ("repair",),
    ("evaluate", "generator"),
    ("evaluate", "judges"),
)
"""Where the file names methods."""


def said(words: str) -> PydanticCustomError:
    """An error of a validator in words of our own, to follow a path."""
    return PydanticCustomError("said", "{words}", {"words": words})


def or_none(value: Any) -> Any:
    """A stage, or `none`."""
    return None if value == "none" else value


def or_nothing(value: Any) -> Any:
    """Fields, or `none`."""
    return {} if value is None or value == "none" else value


def listed(value: Any) -> list[Any]:
    """One or several."""
    return value if isinstance(value, list) else [value]


def methods(spec: Any) -> dict[str, Any]:
    """none | name | {name: {field: value}} | a list of these, as {name: {field: value}}.

    Raises:
        PydanticCustomError: it is none of these.
    """
    if spec is None or spec == "none":
        return {}
    if isinstance(spec, str):
        return {spec: {}}
    if isinstance(spec, dict):
        found = {name: {} if values is None else values for name, values in spec.items()}
        wrong = [f"{name}: expected fields, got {kind(v)}" for name, v in found.items() if not isinstance(v, dict)]
        if wrong:
            raise said("; ".join(wrong))
        return found
    if isinstance(spec, list):
        found = {}
        for more in map(methods, spec):
            if twice := [name for name in more if name in found]:
                raise said(f"{twice[0]} appears twice")
            found |= more
        return found
    raise said(f"expected none, a name, {{name: {{field: value}}}} or a list of these, got {kind(spec)}")


def defenses(spec: Any) -> dict[str, Any]:
    """`methods` in the order in which they act: that of a list; those of a mapping have the canonical one."""
    found = methods(spec)
    return found if isinstance(spec, list) else {name: found[name] for name in in_order(found)}


def in_order(names: Iterable[str]) -> list[str]:
    """Names of methods in the canonical order, so that a combination has one name."""
    return sorted(names, reverse=True)


def variants(spec: Any) -> dict[str, Any]:
    """A list or mapping of {path: value}, as a mapping; those of a list are called by their number."""
    found = {str(i): one for i, one in enumerate(spec, 1)} if isinstance(spec, list) else or_nothing(spec)
    if not isinstance(found, dict):
        raise said(f"expected a list or mapping of variants, each {{path: value}}, got {kind(spec)}")
    found = {name: or_nothing(values) for name, values in found.items()}
    if wrong := [f"{name} is {kind(v)}" for name, v in found.items() if not isinstance(v, dict)]:
        raise said(f"expected a list or mapping of variants, each {{path: value}}; {', '.join(wrong)}")
    return found


def put(raw: Any, path: str, value: Any) -> Any:
    """`raw` with the field at a dotted path set; what leads to the field is copied.

    Raises:
        InputError: the path leads nowhere.
    """
    return _put(raw, path.split("."), value, ())


def put_all(raw: Any, values: Mapping[str, Any]) -> Any:
    """`put` for each path and value, in order."""
    for path, value in values.items():
        raw = put(raw, path, value)
    return raw


def _put(node: Any, path: list[str], value: Any, walked: tuple[str, ...]) -> Any:
    if not path:
        return value
    key, *rest = path
    whole, node = node, _opened(node, walked, key)
    if isinstance(node, dict):
        below = node.get(key, {}) if rest else None
        made = {**node, key: _put(below, rest, value, (*walked, key))}
        # Methods that were written as a list act in its order.
        return [{name: of} for name, of in made.items()] if isinstance(whole, list) and walked in METHODS else made
    if isinstance(node, list):
        if len(node) == 1 and not key.isdigit():  # a role with one source, which the file may write without the list
            return [_put(node[0], path, value, walked)]
        if not (key.isdigit() and int(key) < len(node)):
            raise InputError(f"`{'.'.join(walked)}` is a list of {len(node)}: `{key}` is no place in it")
        below = _put(node[int(key)], rest, value, (*walked, key))
        return [*node[: int(key)], below, *node[int(key) + 1 :]]
    raise InputError(f"`{'.'.join(walked)}` is {kind(node)}: there is no `{key}` below it")


def _opened(node: Any, walked: tuple[str, ...], key: str) -> Any:
    """What stands at a place, without its shorthand."""
    if walked in METHODS:
        try:
            return methods(node)
        except PydanticCustomError:
            return node  # told when the whole file is read
    if walked in (("align",), ("finetune",)):
        return or_none(node)
    if walked == ("quantization",):
        return or_nothing(node)
    sources = (len(walked) == 2 and walked[0] == "data") or (len(walked) == 3 and walked[:2] == ("evaluate", "tasks"))
    return [node] if sources and key.isdigit() and isinstance(node, dict) else node
