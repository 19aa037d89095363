"""Calibration rows, in whatever form TRL takes them, as token ids: prompt and answer of each, in one conversion."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mithridate.errors import InputError, UnsupportedSetup
from mithridate.rows import as_list, kind, require_nothing_dropped, unified

_FORMS = "prompt and response, prompt and completion, messages, text, or input_ids"
# How other people's files call our columns.
_OTHER_NAMES = {
    "prompt": ("instruction", "question", "query", "input"),
    "response": ("output", "answer", "reply", "target"),
}


def as_rows(rows: Any) -> list[Any]:
    """The rows of a list, a data set (torch-formatted and streamed ones too), a DataFrame or a generator, as a list.

    Raises:
        InputError: it is none of these.
    """
    return as_list(rows, "calibration")


def token_ids(rows: Any, tokenizer: Any) -> list[list[int]]:
    """Each row's whole conversation, prompt and answer.

    Args:
        rows: in any form of `mithridate.rows`, or of TRL: prompt and completion (strings
            or turns), messages (with tools and tool calls), text, input_ids (a padded row's pads are
            left out by its attention_mask). Turns go through the tokenizer's chat template, and so do prompts and
            answers that are strings; text is taken as it is, with the end-of-sequence token after it; so are
            input_ids, with nothing added.
        tokenizer: not needed where all rows have input_ids.

    Raises:
        InputError: naming the row and the field that cannot be used.
        UnsupportedSetup: a chat template is needed, and there is none.
    """
    return [_ids(row, f"calibration row {number}", tokenizer) for number, row in enumerate(as_rows(rows), start=1)]


def _ids(row: Any, where: str, tokenizer: Any) -> list[int]:
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: is {kind(row)}, not a mapping with {_FORMS}")
    given, row = row, unified(row, where)
    if "input_ids" in row:
        return _given(row, where)
    messages = _messages(row, where)
    if messages is None:
        text = _text(row["text"], f"{where}: 'text'")
        if tokenizer is None:
            raise _no_tokenizer("tokenised")
        end = tokenizer.eos_token or ""
        return tokenizer(text if text.endswith(end) else text + end)["input_ids"]
    if isinstance(system := row.get("system"), str) and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    try:
        require_nothing_dropped(given, {"messages": messages, "tools": row.get("tools")}, {})
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if tokenizer is None or not tokenizer.chat_template:
        raise _no_tokenizer("put into the model's chat template")
    tools = row.get("tools")
    try:
        tools = json.loads(tools) if isinstance(tools, str) else tools
        extra = {"tools": tools} if tools else {}
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, **extra, **(row.get("chat_template_kwargs") or {})
        )
    except Exception as error:  # the template's own refusals, and what it stumbles over
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"{where}: the chat template does not take this conversation ({type(error).__name__}: {reason}). Leave "
            "the row out, or give it roles and fields that the template knows."
        ) from error
    # The template has written the special tokens already: adding them here would double the BOS.
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _no_tokenizer(what: str) -> UnsupportedSetup:
    return UnsupportedSetup(
        f"The calibration set has to be {what}, and there is no tokenizer to do it.",
        "pass tokenizer=..., with a chat template.",
    )


def _given(row: dict[str, Any], where: str) -> list[int]:
    ids, kept = row["input_ids"], row.get("attention_mask")
    if isinstance(ids, list) and len(ids) == 1 and isinstance(ids[0], list):  # a batch of one, as tokenizers give it
        ids, kept = ids[0], kept[0] if isinstance(kept, list) and kept and isinstance(kept[0], list) else kept
    if not isinstance(ids, list) or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise InputError(f"{where}: 'input_ids' is {kind(row['input_ids'])}, not a list of token ids")
    if isinstance(kept, list) and len(kept) == len(ids):
        ids = [token for token, keep in zip(ids, kept) if keep]
    if not ids:
        raise InputError(f"{where}: 'input_ids' is empty. Leave the row out, or give it prompt and answer.")
    return ids


def _messages(row: dict[str, Any], where: str) -> list[dict[str, Any]] | None:
    """The turns of a row, the last one an answer; None where it is one text."""
    if "messages" in row:
        return _turns(row["messages"], f"{where}: 'messages'", answer=True)
    if "prompt" not in row and "text" in row:
        return None
    if "prompt" not in row:
        raise InputError(_missing(["prompt", "response"], row, where))
    answer = "response" if row.get("response") is not None or "completion" not in row else "completion"
    if answer not in row:
        raise InputError(
            f"{where}: has no answer, and prompt and answer both count. {_missing(['response'], row, 'It')}"
        )
    if isinstance(row["prompt"], list):
        before = _turns(row["prompt"], f"{where}: 'prompt'")
    else:
        before = [{"role": "user", "content": _text(row["prompt"], f"{where}: 'prompt'")}]
    if isinstance(row[answer], list):
        return [*before, *_turns(row[answer], f"{where}: {answer!r}", answer=True)]
    return [*before, {"role": "assistant", "content": _text(row[answer], f"{where}: {answer!r}")}]


def _turns(turns: Any, where: str, answer: bool = False) -> list[dict[str, Any]]:
    """Turns as the chat template takes them: fields that are null (as Arrow fills them in) are left out."""
    if not isinstance(turns, list) or not turns:
        raise InputError(f"{where} is {'empty' if turns == [] else kind(turns)}, not a list of turns")
    found = []
    for number, turn in enumerate(turns, start=1):
        here = f"{where}: turn {number}"
        if not isinstance(turn, Mapping):
            raise InputError(f"{here} is {kind(turn)}, not a mapping with 'role' and 'content'")
        plain = {name: value for name, value in turn.items() if value is not None}
        if not isinstance(plain.get("role"), str):
            raise InputError(f"{here}: 'role' is {kind(plain.get('role'))}, not a string")
        silent = plain["role"] == "system" and plain.get("content") == ""  # in place of the template's own
        if not silent and not plain.get("tool_calls"):
            _text(plain.get("content"), f"{here}: 'content'")
        found.append(plain)
    if answer and found[-1]["role"] != "assistant":
        raise InputError(
            f"{where}: has no answer: its last turn is the {found[-1]['role']}'s, and prompt and answer both count. "
            "End it in an assistant turn."
        )
    return found


def _missing(names: Sequence[str], row: Mapping[str, Any], where: str) -> str:
    guesses = {next((o for o in _OTHER_NAMES[n] if o in row), None): n for n in names}
    renames = {theirs: ours for theirs, ours in guesses.items() if theirs}
    there = ", ".join(row) or "nothing"
    hint = f" Rename its columns: rows.rename_columns({renames})." if renames else ""
    wanted = " and ".join(repr(name) for name in names)
    return f"{where}: has no {wanted} (it has {there}); a row needs {_FORMS}.{hint}"


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where} is {kind(value)}, not a string. Leave the row out, or fill it in.")
    if not value.strip():
        raise InputError(f"{where} is empty. Leave the row out, or fill it in.")
    return value
