"""Rows in every form that people have them in, and what each becomes: the one conversion of the package.

    rows        a list (or any iterable) of mappings, a pandas DataFrame, a datasets.Dataset, streamed or not
    one row     prompt, response                  a record as it is
                prompt, completion                TRL's, as strings or as lists of turns
                messages, or prompt as turns      TRL's conversational form, and that of OpenAI's files
                conversations (from, value)       ShareGPT
                instruction, input, output        Alpaca; the input stands after the instruction and an empty line
                system                            beside any of these: the system turn
    tool calls, tools                 in OpenAI's and ShareGPT's forms, as text in the turns (`mithridate.toolcalls`)

`records` gives what is asked of a model or scored (`mithridate.data.records` says what a record is), and
`training_rows.trainable` what a trainer of TRL takes, where tool calls are left to the model's own template. A turn's
content may be a list of text parts. Further columns stay as they are, but in a trainer those that say the same again
and that TRL would read first: `text` beside a prompt and its answer (the Alpaca set), `prompt` beside `messages`
(UltraChat). A column that belongs to the prompt in a known format and would be left out is refused, by name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from mithridate.errors import InputError
from mithridate.toolcalls import as_text, described, structured, with_tools, without_tools

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

    Rows: TypeAlias = Sequence[Mapping[str, Any]] | pd.DataFrame | Dataset

Row = dict[str, Any]

_SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
TURNS = ("messages", "prompt", "completion")
SAID = {"role", "content"}
_WHOLE = ("messages", "conversations", "text", "input_ids")  # a column that holds question and answer
QUESTIONS = (*_WHOLE, "prompt", "instruction")
ANSWERS = ("response", "completion", "output")
# Columns that are a part of the prompt in formats that many sets have (Alpaca, Dolly, OpenOrca, LLaMA-Factory).
AFTER = ("input", "context")
BEFORE = ("system_prompt",)
_BESIDE = ("history", "tools")
_PICTURES = ("images", "image")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_FORMATS = {"input": "Alpaca", "context": "Dolly", "system_prompt": "OpenOrca", "history": "LLaMA-Factory"}
# What is read of a row beside its turns, and written into tables.
_READ = ("response", "text", "system", "tools", "label", "category", "kind", "id", "reference")
_HALF = re.compile("[\ud800-\udfff]")


def as_list(rows: Any, name: str) -> list[Any]:
    """The rows as a list.

    Args:
        rows: a list or another iterable of mappings, a DataFrame, a `datasets.Dataset`.
        name: what they are, for the error.

    Raises:
        InputError: it is none of these.
    """
    if hasattr(rows, "iloc") and hasattr(rows, "columns"):
        if twice := [str(one) for one, count in Counter(rows.columns).items() if count > 1]:
            raise InputError(f"{name}: the DataFrame has several columns named {twice[0]!r}. Drop all but one.")
        return rows.to_dict("records")
    # a Series of pandas has an index, and is one column
    if isinstance(rows, Mapping | str | bytes) or hasattr(rows, "iloc") or not isinstance(rows, Iterable):
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


def record(row: Any, where: str, learnt: bool = False) -> Row:
    """One row as a record; see `records`. Whether it has what it needs is for `data.records.check_record` to say.

    Args:
        learnt: whether its answers are trained on. Then a record must hold all of them, and none that is not to be
            learnt.
    """
    if not isinstance(row, Mapping):
        raise InputError(f"{where} is {kind(row)}, not a record with a 'prompt'")
    row = unified(row, where)
    _require_no_pictures(row, where)
    if learnt:
        require_all_learnt(row, where)
        _require_no_reasoning(row, where)
    prompt, answer = row.get("prompt"), row.get("completion")
    if "messages" not in row and isinstance(prompt, list):
        answer = answer if answer is not None else row.get("response") or []
        row["messages"] = [*prompt, *answered(answer)]
        row = {name: value for name, value in row.items() if name not in ("prompt", "completion", "response")}
    elif "messages" not in row and answer is not None and row.get("response") is None:
        row = {name: value for name, value in row.items() if name != "completion"} | {"response": _said(answer)}
    if isinstance(label := row.get("label"), float) and label.is_integer():
        row["label"] = int(label)  # pandas makes fractions of whole numbers where one is missing
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


def unified(row: Mapping[str, Any], where: str) -> Row:
    """A row with the names of TRL or ours, whatever form it has: plain values, `messages` in place of ShareGPT's
    `conversations`, `prompt` and `response` in place of Alpaca's names, text in place of lists of text parts, and tool
    calls under OpenAI's names.

    Raises:
        InputError: a turn has a part that is no text, or a tool call cannot be read.
    """
    if not isinstance(row, Mapping):
        raise InputError(f"{where} is {kind(row)}, not a mapping of columns. Give a list with one mapping a row.")
    row = _without_gaps({str(name): plain(value) for name, value in row.items()})
    bare = row.get("prompt") is None and "messages" not in row
    if bare and isinstance(row.get("conversations"), list):
        row["messages"] = row.pop("conversations")
    elif bare and {"instruction", "output"} <= row.keys():
        row = _alpaca(row)
    for name in TURNS:
        if isinstance(row.get(name), list):
            places = [f"{where}: turn {i} of {name!r}" for i in range(1, len(row[name]) + 1)]
            row[name] = [structured(_text_only(_shared(turn), here), here) for turn, here in zip(row[name], places)]
    for name in (*TURNS, *_READ):
        for text in _texts(row.get(name)):
            require_whole(text, f"{where}: {name!r}")
    return with_tools(row, where)


def require_whole(text: str, where: str) -> None:
    """Raises InputError for a text with half of a character, which no file, tokenizer or data set takes."""
    if half := _HALF.search(text):
        raise InputError(
            f"{where} holds half of a character ({half[0]!a}), as a text has that was cut within an emoji. Take "
            "it out, or leave the row out"
        )


def plain(value: Any) -> Any:
    """Lists and numbers of Python's own in place of numpy's and torch's; None for NaN, pandas' word for nothing."""
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and value != value else value


def require_nothing_dropped(row: Mapping[str, Any], record: Row, columns: Mapping[str, str]) -> None:
    """Refuses a row of which a column that belongs to the prompt would be left out.

    Args:
        row: as the file has it, our names added.
        record: what is made of it.
        columns: our names to those of the file, which are no longer left out.

    Raises:
        InputError: with the column, and what to write.
    """
    if "prompt" not in record and "messages" not in record:
        return
    _require_system(plain(row.get("system")), record)
    turns = record.get("messages")
    said = [turn.get("content") for turn in turns if isinstance(turn, Mapping)] if isinstance(turns, list) else []
    asked = "\n".join(str(text) for text in (record.get("prompt"), *said) if text)
    for name in (*AFTER, *BEFORE, *_BESIDE):
        value = plain(row.get(name))
        if name == "tools" and ("tools" in record or described(value, record)):
            continue
        text = str(value).strip()
        if value in (None, "", []) or name in columns.values() or text == asked:
            continue
        if isinstance(value, str) and text in asked:
            continue
        form = f" (in the {_FORMATS[name]} format it is part of the prompt)" if name in _FORMATS else ""
        if name in _BESIDE:
            remedy = "Make `messages` of these rows, or take the column out of the file"
        else:
            ours = "input" if name in AFTER else "system"
            remedy = (
                f"Put it {'after the prompt' if ours == 'input' else 'before it, as a system turn'} with "
                f"`columns: {{{ours}: {name}, ...}}`, or take the column out of the file"
            )
        raise InputError(f"the column {name!r} would be left out{form}. {remedy}")


def require_all_learnt(row: Row, where: str) -> None:
    """Refuses a row of OpenAI's fine-tuning files in which an answer is marked as not to be learnt, which all are.

    Args:
        row: as of `unified`.
    """
    for here, turn in _answers(row, where):
        if turn.get("weight", 1) != 1:
            raise InputError(
                f"{here} has the weight {turn['weight']!r}, and every answer in a conversation is learnt alike. End "
                "the conversation before it, or leave the row out; to learn it, take `weight` out"
            )


def _require_no_pictures(row: Row, where: str) -> None:
    for name in _PICTURES:
        texts = (text for one in TURNS for text in _texts(row.get(one)))
        if row.get(name) not in (None, "", []) and any("<image>" in text for text in texts):
            raise InputError(
                f"{where}: the column {name!r} would be left out, which a text speaks of with <image>: only text is "
                "read. Leave these rows out"
            )


def _require_no_reasoning(row: Row, where: str) -> None:
    for here, turn in _answers(row, where):
        for name in _REASONING:
            if isinstance(turn.get(name), str) and turn[name].strip():
                raise InputError(
                    f"{here}: {name!r} would be left out: only the content of an answer is learnt. Write it into the "
                    "content as the model's chat template does (as <think>...</think> before the answer), or take it "
                    "out"
                )


def _answers(row: Row, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The assistant's turns in a row, each with its place in words."""
    for name in TURNS:
        for number, turn in enumerate(row[name] if isinstance(row.get(name), list) else [], start=1):
            if isinstance(turn, Mapping) and turn.get("role") == "assistant":
                yield f"{where}: turn {number} of {name!r}", turn


def kind(value: Any) -> str:
    """What a value is that should have been something else, for an error."""
    nothing = value is None or (isinstance(value, float) and value != value)
    return "missing (null)" if nothing else f"of type {type(value).__name__}"


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


def _without_gaps(row: Row) -> Row:
    """The row without the columns that Arrow and pandas fill in with null, as other rows of a table have them."""
    there = {name for name, value in row.items() if value is not None}
    gaps = {*(QUESTIONS if there & {*QUESTIONS} else ()), *(ANSWERS if there & {*ANSWERS, *_WHOLE} else ())}
    return {name: value for name, value in row.items() if value is not None or name not in gaps}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(one)


def _alpaca(row: Row) -> Row:
    text, more = row.pop("instruction"), row.pop("input", None)
    joined = f"{text}\n\n{more}" if isinstance(more, str) and more.strip() else text
    return {"prompt": joined, "response": row.pop("output")} | row | ({"input": more} if joined != text else {})


def _shared(turn: Any) -> Any:
    if not isinstance(turn, Mapping) or "from" not in turn or turn.get("role") is not None:
        return turn
    rest = {name: value for name, value in turn.items() if name not in ("from", "value", "role", "content")}
    return {"role": _SHAREGPT.get(str(turn["from"]), turn["from"]), "content": turn.get("value")} | rest


def _text_only(turn: Any, where: str) -> Any:
    """The turn without fields that are null, as Arrow fills them in, and with its text parts in one."""
    if not isinstance(turn, Mapping):
        return turn
    turn = {name: value for name, value in turn.items() if value is not None or name in SAID}
    if isinstance(parts := turn.get("content"), list):
        for part in parts:
            if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
                what = part.get("type", "?") if isinstance(part, Mapping) else type(part).__name__
                raise InputError(f"{where} holds a part of type {what!r}; only text is read. Leave the row out")
        turn["content"] = "\n".join(part["text"] for part in parts)
    return turn


def asked(prompt: Any) -> list[Any]:
    return prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]


def answered(answer: Any) -> list[Any]:
    return answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}]


def _said(answer: Any) -> Any:
    """The text of an answer that is a list of one assistant turn beside a prompt that is a string."""
    one = answer[0] if isinstance(answer, list) and len(answer) == 1 else None
    return one.get("content") if isinstance(one, Mapping) and one.get("role") == "assistant" else answer
