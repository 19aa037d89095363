"""Rows in every form as the rows of one data set that a trainer of TRL takes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mithridate.errors import InputError
from mithridate.rows import (
    AFTER,
    ANSWERS,
    BEFORE,
    QUESTIONS,
    SAID,
    TURNS,
    Row,
    answered,
    as_list,
    asked,
    require_all_learnt,
    require_nothing_dropped,
    unified,
)

if TYPE_CHECKING:
    from datasets import Dataset

_FURTHER = ("images", "image", "tools", "chat_template_kwargs")  # what TRL reads beside the turns

_log = logging.getLogger(__name__)


def trainable(rows: Any, name: str) -> Dataset | Any:
    """The rows as a data set that a trainer of TRL takes. Of rows that it takes already, nothing is changed.

    Args:
        rows: as of `as_list`. A data set (streamed too) whose columns TRL knows comes back as it is, the same object;
            a list or DataFrame of such rows as the data set of these rows. Others become TRL's conversational
            prompt-completion rows, with the loss on the answer alone; conversations of ShareGPT become `messages`; a
            column `system` becomes the first turn of either. Rows of several forms become rows of one: `messages` if
            some have them, with a warning, for the loss is then on all turns; else prompt and completion as turns. A
            column that only some rows have is null in the rest. A streamed data set that does not tell its columns
            (after `map`, or of a generator) has those of its first row, which is read here and once more in training.
        name: what they are, for errors.

    Raises:
        InputError: no rows, a row with neither form or with a part of its prompt in a column that would be left out,
            or rows that no data set can hold together. Of a streamed data set, rows are refused as they are read.
    """
    from datasets import Dataset, IterableDataset

    columns = getattr(rows, "column_names", None) if isinstance(rows, Dataset | IterableDataset) else None
    if isinstance(rows, IterableDataset) and columns is None:
        return _streamed(rows, name)
    if columns is not None and _stays(columns, rows.features, rows):
        return rows
    if isinstance(rows, IterableDataset):
        return rows.map(lambda row: _for_trl(row, name), remove_columns=columns)
    found = [_for_trl(row, f"{name}, row {number}") for number, row in enumerate(as_list(rows, name), start=1)]
    if not found:
        raise InputError(f"{name}: no rows. Give at least one.")
    return data_set(_of_one_form(found, name), name)


def as_it_is(rows: Any, name: str) -> Any:
    """The rows as a data set with the columns that they have, for a formatting function, which reads them so."""
    from datasets import Dataset, IterableDataset

    return rows if isinstance(rows, Dataset | IterableDataset) else data_set(as_list(rows, name), name)


def data_set(rows: Sequence[Row], name: str) -> Dataset:
    """The rows as a data set with every column that one of them has, null where a row has none.

    Turns with more than a role and a text are kept as JSON: in a column of structs, every tool call would have the
    arguments of all others, as nulls.

    Raises:
        InputError: a column holds values that no data set can hold together; with the row where that shows.
    """
    import pyarrow as pa
    from datasets import Dataset, Features, Json, List, concatenate_datasets

    parts = []
    for column in dict.fromkeys(column for row in rows for column in row):
        values = [row.get(column) for row in rows]
        feature = List(Json()) if column in TURNS and any(map(_says_more, values)) else None
        if column == "chat_template_kwargs":
            values, feature = [value or {} for value in values], Json()
        try:
            parts.append(Dataset.from_dict({column: values}, Features({column: feature}) if feature else None))
        except (pa.ArrowException, UnicodeError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"{name}{_misfit(values)}: the column {column!r} cannot be put into one data set ({error}). Give it "
                "values of one type, or take it out"
            ) from error
    return concatenate_datasets(parts, axis=1)


def _streamed(rows: Any, name: str) -> Any:
    """A streamed data set that does not tell its columns, with the columns of its first row."""
    first = next(iter(rows), None)
    if first is None:
        raise InputError(f"{name}: no rows. Give at least one.")
    columns = list(first)
    if not _stays(columns, _features(first)):
        return rows.map(lambda row: _for_trl(row, name), remove_columns=columns)

    def like_the_first(row: Row) -> Row:
        if row.keys() - first.keys() and not _stays(list(row), _features(row)):
            raise InputError(
                f"{name}: a row has the columns {', '.join(row)}, and the first has {', '.join(columns)}, by which "
                "all of a streamed data set are read. Give all rows the same columns"
            )
        return row

    return rows.map(like_the_first)


def _features(row: Row) -> Mapping[str, Any]:
    """What one row says of the values in its columns; nothing where no data set can hold it."""
    import pyarrow as pa
    from datasets import Dataset

    try:
        return Dataset.from_list([row]).features
    except (pa.ArrowException, UnicodeError, TypeError, ValueError, OverflowError):
        return {}


def _stays(columns: Sequence[str], features: Mapping[str, Any] | None, rows: Any = None) -> bool:
    """Whether a data set goes to a trainer as it is: TRL knows its form, and it has neither rows of other forms, nor a
    text beside turns, nor columns that may be parts of the prompt, nor tool calls or tools that Arrow has filled in
    with nulls."""
    if "input_ids" in columns or not _known_to_trl(columns):
        return "input_ids" in columns or not _ours(columns)
    features, table = features or {}, getattr(rows, "data", None)
    nested = {name: getattr(features.get(name), "feature", None) for name in (*TURNS, "tools")}
    filled = any(isinstance(one, dict) and (name == "tools" or "tool_calls" in one) for name, one in nested.items())
    forms = {*QUESTIONS, *ANSWERS} & {*columns}
    gaps = table is not None and any(table.column(name).null_count for name in forms)
    uneven = (nested["prompt"] is None) != (nested["completion"] is None)
    return not (filled or gaps or uneven or {*AFTER, *BEFORE, "history"} & {*columns})


def _of_one_form(rows: list[Row], name: str) -> list[Row]:
    """Rows of TRL's forms as rows of one of them."""
    forms = [_form(row) for row in rows]
    if len(set(forms)) == 1:
        return rows
    for number, form in enumerate(forms, start=1):
        if forms[0] != form and not {forms[0], form} <= {"messages", "turns", "strings"}:
            raise InputError(
                f"{name}, row {number}: has the columns {', '.join(rows[number - 1])}, and row 1 has "
                f"{', '.join(rows[0])}: no trainer takes both in one set. Bring them into one form"
            )
    if "messages" in forms:
        _log.warning(
            "%s: rows of prompt and completion beside conversations become conversations, with the loss on their "
            "prompts too. Set assistant_only_loss=True, or give all rows in one form",
            name,
        )
    made = []
    for number, (row, form) in enumerate(zip(rows, forms), start=1):
        if form != "messages":
            row = _as_turns(row, f"{name}, row {number}")
            if "messages" in forms:
                rest = {column: value for column, value in row.items() if column not in TURNS}
                row = {"messages": row["prompt"] + row["completion"], **rest}
        made.append(row)
    return made


def _form(row: Row) -> str:
    """Which of TRL's forms a row has."""
    if "input_ids" not in row and {"prompt", "completion"} <= row.keys():
        return "turns" if any(isinstance(row[name], list) for name in ("prompt", "completion")) else "strings"
    return next((name for name in ("input_ids", "messages", "text") if name in row), "")


def _as_turns(row: Row, where: str) -> Row:
    """A row of prompt and completion with both as turns."""
    for name in ("prompt", "completion"):
        if row[name] is None:
            raise InputError(f"{where}: {name} is missing. Fill it in, or leave the row out.")
    return row | {"prompt": asked(row["prompt"]), "completion": answered(row["completion"])}


def _says_more(turns: Any) -> bool:
    """Whether some turn has other fields than a role and a text."""
    return isinstance(turns, list) and any(isinstance(turn, Mapping) and turn.keys() - SAID for turn in turns)


def _misfit(values: list[Any]) -> str:
    """The first row, in words, that Arrow does not take beside the first that has a value; "" where that does not
    show."""
    import pyarrow as pa

    first = next(value for value in values if value is not None)
    for number, value in enumerate(values, start=1):
        try:
            pa.array([first, value])
        except (pa.ArrowException, UnicodeError, TypeError, ValueError, OverflowError):
            return f", row {number}"
    return ""


def _ours(columns: Iterable[str]) -> bool:
    there = set(columns)
    forms = {"prompt", "response"}, {"prompt", "messages"}, {"instruction", "output"}, {"system", "messages"}
    turns = {"system", "prompt", "completion"}
    return "conversations" in there or any(form <= there for form in (*forms, turns))


def _known_to_trl(columns: Iterable[str]) -> bool:
    """Whether TRL trains on rows of these columns, and on what they say. It wants the completion of whatever has a
    prompt, takes a text before names that it does not know, and knows no column for a system turn."""
    there = set(columns)
    if "input_ids" in there or "system" in there:
        return "input_ids" in there
    if "prompt" in there:
        return "completion" in there
    alpaca = {"instruction", "output"} <= there or "conversations" in there
    return bool(there & {"messages", "images", "image"}) or ("text" in there and not alpaca)


def _for_trl(given: Any, where: str) -> Row:
    row = unified(given, where)
    require_all_learnt(row, where)
    made = _in_trls_form(row, where)
    asked = made["messages"] if "messages" in made else made.get("prompt")
    kept = {"messages": asked} if isinstance(asked, list) else {"prompt": asked} if isinstance(asked, str) else {}
    try:
        require_nothing_dropped(given, kept | ({"tools": made["tools"]} if "tools" in made else {}), {})
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if isinstance(made.get("tools"), list):
        made["tools"] = json.dumps(made["tools"], ensure_ascii=False)  # a struct would have all tools' parameters
    return made


def _in_trls_form(row: Row, where: str) -> Row:
    opening = [{"role": "system", "content": row["system"]}] if isinstance(row.get("system"), str) else []
    if "messages" in row and "completion" not in row:
        row = {name: value for name, value in row.items() if name not in ("prompt", "response", "system")}
        return row | {"messages": _opened(row["messages"], opening)}
    if _known_to_trl(row.keys() - {"system"}):
        # text that is no turn goes through no chat template, and has no place for a system turn
        if _form(row) != "turns":
            return row
        row = _as_turns(row, where)
        return row | {"prompt": _opened(row["prompt"], opening)}
    if not isinstance(prompt := row.get("prompt"), str | list) or row.get("response") is None:
        raise InputError(
            f"{where}: has neither prompt and response nor a form of TRL (prompt and completion, messages, text); "
            f"the columns there are: {', '.join(row) or 'none'}"
        )
    rest = {name: row[name] for name in _FURTHER if row.get(name) is not None}
    return {"prompt": _opened(asked(prompt), opening), "completion": answered(row["response"]), **rest}


def _opened(turns: Any, opening: list[Row]) -> Any:
    """The turns with the system turn before them, where they have none of their own."""
    own = isinstance(turns, list) and turns and isinstance(turns[0], Mapping) and turns[0].get("role") == "system"
    return turns if own or not isinstance(turns, list) else [*opening, *turns]
