"""Rows in every form that people have them in, and what each becomes: the one conversion of the package.

    rows        a list (or any iterable) of mappings, a pandas DataFrame, a datasets.Dataset, streamed or not
    one row     prompt, response                  a record as it is
                prompt, completion                TRL's, as strings or as lists of turns
                messages, or prompt as turns      TRL's conversational form, and that of OpenAI's files
                conversations (from, value)       ShareGPT
                instruction, input, output        Alpaca; the input stands after the instruction and an empty line
                system                            beside any of these: the system turn
    tool calls, tools                 in OpenAI's and ShareGPT's forms, as text in the turns (`mithridate.toolcalls`)

`records` gives what is asked of a model or scored (`mithridate.data.records` says what a record is), `trainable` what
a trainer of TRL takes, where tool calls are left to the model's own template. A turn's content may be a list of text
parts. Further columns stay as they are, but in a trainer those that say the same again and that TRL would read first:
`text` beside a prompt and its answer (the Alpaca set), `prompt` beside `messages` (UltraChat).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from mithridate.errors import InputError
from mithridate.toolcalls import as_text, structured

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

    Rows: TypeAlias = Sequence[Mapping[str, Any]] | pd.DataFrame | Dataset

Row = dict[str, Any]

_SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_TURNS = ("messages", "prompt", "completion")
_FURTHER = ("images", "image", "tools", "chat_template_kwargs")  # what TRL reads beside the turns


def as_list(rows: Any, name: str) -> list[Any]:
    """The rows as a list.

    Args:
        rows: a list or another iterable of mappings, a DataFrame, a `datasets.Dataset`.
        name: what they are, for the error.

    Raises:
        InputError: it is none of these.
    """
    if hasattr(rows, "to_dict") and hasattr(rows, "iloc"):
        return rows.to_dict("records")
    if isinstance(rows, Mapping | str | bytes) or not isinstance(rows, Iterable):
        what = f"splits or columns ({', '.join(map(str, rows))})" if isinstance(rows, Mapping) else repr(rows)
        raise InputError(
            f"{name}: expected rows (a list of records, a data set, a DataFrame), got {type(rows).__name__} of "
            f"{what}. Give one split, or a list with one mapping a row."
        )
    return list(rows)


def records(rows: Any, name: str) -> list[Row]:
    """The rows as records: `prompt` and, if there is an answer, `response`; or `messages`. Other columns stay.

    Args:
        rows: as of `as_list`.
        name: what they are, for errors, which count from 1: "harmful, record 3".

    Raises:
        InputError: what is given is no set of rows, a turn holds something else than text, or a tool call is none.
    """
    return [record(row, f"{name}, record {number}") for number, row in enumerate(as_list(rows, name), start=1)]


def record(row: Any, where: str) -> Row:
    """One row as a record; see `records`. Whether it has what it needs is for `data.records.check_record` to say."""
    if not isinstance(row, Mapping):
        raise InputError(f"{where} is {kind(row)}, not a record with a 'prompt'")
    row = unified(row, where)
    prompt, answer = row.get("prompt"), row.get("completion")
    if "messages" not in row and isinstance(prompt, list):
        answer = answer if answer is not None else row.get("response") or []
        row["messages"] = [*prompt, *_answered(answer)]
        row = {name: value for name, value in row.items() if name not in ("prompt", "completion", "response")}
    elif "messages" not in row and answer is not None and row.get("response") is None:
        row = {name: value for name, value in row.items() if name != "completion"} | {"response": _said(answer)}
    return as_text(row, where)


def exchanges(record: Row) -> list[tuple[str, str]] | None:
    """What a record asks, system turns included, and what the assistant says to it, turn by turn; "" where a last turn
    has no answer. None: it has neither a prompt and its answer as text, nor messages."""
    if "messages" in record:
        found: list[tuple[str, str]] = []
        asked: list[str] = []
        for turn in record["messages"]:
            if turn["role"] == "assistant":
                found.append(("\n".join(asked), turn["content"] or ""))
                asked = []
            else:
                asked.append(turn["content"] or "")
        return [*found, ("\n".join(asked), "")] if asked else found
    if isinstance(record.get("prompt"), str) and isinstance(record.get("response"), str):
        return [(f"{record.get('system') or ''}\n{record['prompt']}".strip(), record["response"])]
    return None


def trainable(rows: Any, name: str) -> Dataset | Any:
    """The rows as a data set that a trainer of TRL takes. Of rows that it takes already, nothing is changed.

    Args:
        rows: as of `as_list`. A data set (streamed too) whose columns TRL knows comes back as it is, the same object;
            a list or DataFrame of such rows as the data set of these rows. Others become TRL's conversational
            prompt-completion rows, with the loss on the answer alone; conversations of ShareGPT become `messages`; a
            column `system` becomes the first turn of either.
        name: what they are, for errors.

    Raises:
        InputError: no rows, or a row with neither form.
    """
    from datasets import Dataset, IterableDataset

    columns = getattr(rows, "column_names", None) if isinstance(rows, Dataset | IterableDataset) else None
    if columns is not None and (_known_to_trl(columns) or not _ours(columns)):
        return rows
    if isinstance(rows, IterableDataset):
        if columns is None:
            return rows  # what is in it shows only in reading: the trainer's own matter
        return rows.map(lambda row: _for_trl(unified(row, name), name), remove_columns=columns)
    found = [unified(row, f"{name}, row {number}") for number, row in enumerate(as_list(rows, name), start=1)]
    if not found:
        raise InputError(f"{name}: no rows. Give at least one.")
    return Dataset.from_list([_for_trl(row, f"{name}, row {number}") for number, row in enumerate(found, start=1)])


def unified(row: Mapping[str, Any], where: str) -> Row:
    """A row with the names of TRL or ours, whatever form it has: plain values, `messages` in place of ShareGPT's
    `conversations`, `prompt` and `response` in place of Alpaca's names, text in place of lists of text parts, and tool
    calls under OpenAI's names.

    Raises:
        InputError: a turn has a part that is no text, or a tool call cannot be read.
    """
    row = {str(name): plain(value) for name, value in row.items()}
    for name, others in (("messages", ("prompt", "conversations")), ("completion", ("response",))):
        if row.get(name, 0) is None and any(row.get(other) is not None for other in others):
            del row[name]  # as Arrow and pandas fill in what other rows of a table have
    bare = row.get("prompt") is None and "messages" not in row
    if bare and isinstance(row.get("conversations"), list):
        row["messages"] = [_shared(turn) for turn in row.pop("conversations")]
    elif bare and {"instruction", "output"} <= row.keys():
        row = _alpaca(row)
    for name in _TURNS:
        if isinstance(row.get(name), list):
            places = [f"{where}: turn {i} of {name!r}" for i in range(1, len(row[name]) + 1)]
            row[name] = [structured(_text_only(turn, here), here) for turn, here in zip(row[name], places)]
    return row


def plain(value: Any) -> Any:
    """Lists and numbers of Python's own in place of numpy's and torch's; None for NaN, pandas' word for nothing."""
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and value != value else value


def kind(value: Any) -> str:
    """What a value is that should have been something else, for an error."""
    nothing = value is None or (isinstance(value, float) and value != value)
    return "missing (null)" if nothing else f"of type {type(value).__name__}"


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


def _alpaca(row: Row) -> Row:
    text, more = row.pop("instruction"), row.pop("input", None)
    joined = f"{text}\n\n{more}" if isinstance(more, str) and more.strip() else text
    return {"prompt": joined, "response": row.pop("output")} | row | ({"input": more} if joined != text else {})


def _shared(turn: Any) -> Any:
    if not isinstance(turn, Mapping) or "from" not in turn:
        return turn
    rest = {name: value for name, value in turn.items() if name not in ("from", "value")}
    return {"role": _SHAREGPT.get(str(turn["from"]), turn["from"]), "content": turn.get("value")} | rest


def _text_only(turn: Any, where: str) -> Any:
    """The turn without fields that are null, as Arrow fills them in, and with its text parts in one."""
    if not isinstance(turn, Mapping):
        return turn
    turn = {name: value for name, value in turn.items() if value is not None or name in ("role", "content")}
    if isinstance(parts := turn.get("content"), list):
        for part in parts:
            if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
                what = part.get("type", "?") if isinstance(part, Mapping) else type(part).__name__
                raise InputError(f"{where} holds a part of type {what!r}; only text is read. Leave the row out")
        turn["content"] = "\n".join(part["text"] for part in parts)
    return turn


def _answered(answer: Any) -> list[Any]:
    return answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}]


def _said(answer: Any) -> Any:
    """The text of an answer that is a list of one assistant turn beside a prompt that is a string."""
    one = answer[0] if isinstance(answer, list) and len(answer) == 1 else None
    return one.get("content") if isinstance(one, Mapping) and one.get("role") == "assistant" else answer


def _for_trl(row: Row, where: str) -> Row:
    opening = [{"role": "system", "content": row["system"]}] if isinstance(row.get("system"), str) else []
    if "messages" in row and "completion" not in row:
        row = {name: value for name, value in row.items() if name not in ("prompt", "response", "system")}
        return row | {"messages": _opened(row["messages"], opening)}
    if _known_to_trl(row.keys() - {"system"}):
        # text that is no turn goes through no chat template, and has no place for a system turn
        return row | {"prompt": _opened(row["prompt"], opening)} if isinstance(row.get("prompt"), list) else row
    if not isinstance(prompt := row.get("prompt"), str | list) or row.get("response") is None:
        raise InputError(
            f"{where}: has neither prompt and response nor a form of TRL (prompt and completion, messages, text); "
            f"the columns there are: {', '.join(row) or 'none'}"
        )
    before = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    rest = {name: row[name] for name in _FURTHER if row.get(name) is not None}
    return {"prompt": _opened(before, opening), "completion": _answered(row["response"]), **rest}


def _opened(turns: Any, opening: list[Row]) -> Any:
    """The turns with the system turn before them, where they have none of their own."""
    own = isinstance(turns, list) and turns and isinstance(turns[0], Mapping) and turns[0].get("role") == "system"
    return turns if own or not isinstance(turns, list) else [*opening, *turns]
