"""The columns of a source: names that mean nothing, and columns that belong into the prompt."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from mithridate.errors import InputError, nearest

Row = dict[str, Any]

OURS = ("prompt", "response", "messages", "input", "system", "label", "category", "kind", "id", "is_safe", "reference")


class _Watched(dict[str, Any]):
    """A row that remembers which of its columns were asked for."""

    def __init__(self, row: Mapping[str, Any]):
        super().__init__(row)
        self.seen: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.seen.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.seen.add(name)
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self.seen.add(str(name))
        return super().__contains__(name)


def require_known(
    columns: Mapping[str, str],
    row: Row,
    where: Mapping[str, Any],
    record: Callable[[Row], Row] | None,
    here: str,
) -> None:
    """Refuses names of columns that nothing reads.

    Args:
        columns: our names to those of the file.
        row: the first of the file.
        where: what rows are chosen by, which may be such a name.
        record: what makes a record of a row, and reads columns of its own.
        here: the source, for the error.

    Raises:
        InputError: with the nearest name that is read.
    """
    read = {*OURS, *where}
    if record and not columns.keys() <= read:
        watched = _Watched(row | {ours: row.get(theirs) for ours, theirs in columns.items()})
        with contextlib.suppress(Exception):  # what is wrong with the row is said where it is read in earnest
            record(watched)
        read |= watched.seen
    for name in columns:
        if name not in read:
            hint = nearest(name, sorted(read))
            raise InputError(f"{here}: columns.{name}: nothing reads a column of that name{hint}")


def joined(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with what `columns` names as parts of the prompt put into it: `input` after it, `system` before it."""
    text, system = (row.get(name) if name in columns else None for name in ("input", "system"))
    if isinstance(row.get("prompt"), str) and isinstance(text, str) and text.strip():
        row = row | {"prompt": f"{row['prompt']}\n\n{text}"}
    if not (isinstance(system, str) and system.strip()):
        return row
    messages = row.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[0], dict) and messages[0].get("role") == "user":
        return row | {"messages": [{"role": "system", "content": system}, *messages]}
    if isinstance(row.get("prompt"), str) and messages is None:
        answer = row.get("response")
        turns = [{"role": "system", "content": system}, {"role": "user", "content": row["prompt"]}]
        turns += [{"role": "assistant", "content": answer}] if isinstance(answer, str) and answer.strip() else []
        row = row | {"messages": turns}
    return row
