"""The columns of a source: names that mean nothing, and columns of known formats that would be lost in silence."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from mithridate.errors import InputError, nearest
from mithridate.rows import plain
from mithridate.toolcalls import described, without_tools

Row = dict[str, Any]

OURS = ("prompt", "response", "messages", "input", "system", "label", "category", "kind", "id", "is_safe", "reference")
# Columns that are a part of the prompt in formats that many sets have (Alpaca, Dolly, OpenOrca, LLaMA-Factory).
_AFTER = ("input", "context")
_BEFORE = ("system_prompt",)
_TURNS = ("history", "tools")
_FORMATS = {"input": "Alpaca", "context": "Dolly", "system_prompt": "OpenOrca", "history": "LLaMA-Factory"}


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


def require_nothing_dropped(row: Row, record: Row, columns: Mapping[str, str]) -> None:
    """Refuses a row of which a column that belongs to the prompt would be left out.

    Args:
        row: as the file has it, our names added.
        record: what is made of it.

    Raises:
        InputError: with the column, and what to write.
    """
    if "prompt" not in record and "messages" not in record:
        return
    _require_system(plain(row.get("system")), record)
    asked = str(record.get("prompt", "")) + "".join(str(turn) for turn in record.get("messages") or ())
    for name in (*_AFTER, *_BEFORE, *_TURNS):
        value = plain(row.get(name))
        if name == "tools" and described(value, record):
            continue
        if value in (None, "", []) or name in columns.values() or str(value).strip() in ("", asked):
            continue
        if isinstance(value, str) and (value.strip() in asked or repr(value.strip())[1:-1] in asked):
            continue
        form = f" (in the {_FORMATS[name]} format it is part of the prompt)" if name in _FORMATS else ""
        if name in _TURNS:
            remedy = "Make `messages` of these rows, or take the column out of the file"
        else:
            ours = "input" if name in _AFTER else "system"
            remedy = (
                f"Put it {'after the prompt' if ours == 'input' else 'before it, as a system turn'} with "
                f"`columns: {{{ours}: {name}, ...}}`, or take the column out of the file"
            )
        raise InputError(f"the column {name!r} would be left out{form}. {remedy}")


def _require_system(system: Any, record: Row) -> None:
    """A system turn beside a conversation or a prompt is put first (`data.records.turns`), unless there is one."""
    if not isinstance(system, str) or not system.strip():
        return
    messages = record.get("messages")
    first = messages[0] if isinstance(messages, list) and messages and isinstance(messages[0], Mapping) else {}
    if first.get("role") == "system":
        if without_tools(str(first.get("content"))).strip() != system.strip():
            raise InputError(
                "the column 'system' would be left out: the conversation has another system turn of its own. Take one "
                "of the two out"
            )
    elif without_tools(str(record.get("system"))) != system:
        raise InputError("the column 'system' would be left out. Make `messages` of these rows, with a system turn")
