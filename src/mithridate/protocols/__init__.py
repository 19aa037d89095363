"""What a score means: prompts, template, limit, judge and count, under one name. docs/protocols.md prints them all.

"Harmful score" is four different numbers in four papers, so every score here carries the name of its protocol, and in
what the run departed from it (`Protocol.deviations`); a table's column holds one of both (`require_one_protocol`). A
protocol is frozen: a change to any setting takes a new name. Templates and judges are referred to by name.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mithridate.errors import InputError, nearest
from mithridate.methods.registry import Registry
from mithridate.protocols.base import Count, JudgeUse, Protocol, Quirk, Rows, Setting, TaskUse
from mithridate.protocols.book import BOOK


def _no_protocol(found: object) -> str | None:
    return None if isinstance(found, Protocol) else "is not a Protocol of mithridate.protocols"


PROTOCOLS: Registry[Protocol] = Registry(
    "protocols", {known.name: known for known in BOOK}, _no_protocol, prefixed=True
)
"""The frozen ones of this package, and those of other packages, whose names begin with their package's."""

__all__ = [
    "PROTOCOLS",
    "Count",
    "JudgeUse",
    "Protocol",
    "Quirk",
    "Rows",
    "Setting",
    "TaskUse",
    "label",
    "protocol",
    "require_one_protocol",
]


def protocol(name: str) -> Protocol:
    """The protocol of that name. Raises `InputError` where there is none, with a name that is near."""
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    hint = nearest(name, PROTOCOLS, listed=False) or "."
    raise InputError(f"Unknown protocol {name!r}{hint} Protocols: {', '.join(PROTOCOLS)}.")


def label(name: str, deviations: Sequence[str]) -> str:
    """A protocol's name as tables print it, with what the run departs in."""
    return f"{name} with deviations ({'; '.join(deviations)})" if deviations else name


def require_one_protocol(cells: Iterable[Mapping[str, Any]]) -> str:
    """The label that all scores of a column share.

    Args:
        cells: each with its `protocol`, its `deviations` (none if left out) and, for messages, its `id`.

    Raises:
        InputError: they differ, with the cells of each; or there are none.
    """
    labels: dict[str, list[str]] = {}
    for number, cell in enumerate(cells, start=1):
        name = label(cell["protocol"], sorted(cell.get("deviations") or ()))
        labels.setdefault(name, []).append(str(cell.get("id", f"cell {number}")))
    if not labels:
        raise InputError("There are no scores, so there is no protocol that they share.")
    if len(labels) > 1:
        listed = "; ".join(
            f"{name}: {', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''}" for name, ids in labels.items()
        )
        raise InputError(
            f"One column cannot hold scores of different protocols or with different deviations: {listed}. Make a "
            "table for each, or run them alike"
        )
    return next(iter(labels))
