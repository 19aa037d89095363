"""Conversations with tools: their forms in one structure, and that structure as text.

    OpenAI      messages with `tool_calls` (older: `function_call`) and turns of the role tool (function); `tools`
                (older: `functions`)
    ShareGPT    turns from function_call (JSON: name, arguments) and observation (tool, ipython); `tools`, often JSON

As text they are what Qwen2.5's and Qwen3's chat templates write of them, after Hermes: the tools at the end of the
system turn, a call between <tool_call> and </tool_call> in the assistant's turn, results between <tool_response> and
</tool_response> in the user's turn after it. So a record is a conversation of text, which any model can be trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mithridate.errors import InputError

Row = dict[str, Any]

_RESULTS = ("tool", "function", "observation", "ipython")  # roles of a call's result
_CALL, _RESULT = ("<tool_call>\n", "\n</tool_call>"), ("<tool_response>\n", "\n</tool_response>")
_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)


def structured(turn: Any, where: str) -> Any:
    """A turn with OpenAI's names of today, if it is a call or a result in another form; else as it is.

    Of a call, nothing is left that is null: Arrow gives each call of a table the arguments of all others so. A result
    is what stands between <tool_response> and </tool_response>, if it came in these.

    Raises:
        InputError: a call is no JSON object with a name, or its arguments are text that is no JSON.
    """
    if not isinstance(turn, Mapping):
        return turn
    turn = dict(turn)
    if turn.get("role") in _RESULTS:
        return turn | {"role": "tool", "content": _unwrapped(turn.get("content"))}
    if turn.get("role") == "function_call":
        turn = {"role": "assistant", "content": "", "tool_calls": _parsed(turn.get("content"), where)}
    elif turn.get("function_call") and not turn.get("tool_calls"):
        turn["tool_calls"] = [{"type": "function", "function": turn.pop("function_call")}]
    if isinstance(turn.get("tool_calls"), list):
        turn["tool_calls"] = _without_nulls(turn["tool_calls"])
        for call in turn["tool_calls"]:
            _require_arguments(call, where)
    return turn


def with_tools(row: Row, where: str) -> Row:
    """The row with its tools under OpenAI's name of today, and without what is null in them.

    Raises:
        InputError: it has tools under both names.
    """
    older = row.get("functions")
    if isinstance(older, list) and older and all(isinstance(one, Mapping) and "name" in one for one in older):
        if row.get("tools"):
            raise InputError(f"{where}: has `tools` and `functions`, which say the same. Take one of the two out")
        tools = [{"type": "function", "function": one} for one in older]
        row = {name: value for name, value in row.items() if name != "functions"} | {"tools": tools}
    return row | {"tools": _without_nulls(row["tools"])} if "tools" in row else row


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _unwrapped(text: Any) -> Any:
    start, end = _RESULT[0].strip(), _RESULT[1].strip()
    bare = text.strip() if isinstance(text, str) else ""
    if not (bare.startswith(start) and bare.endswith(end)):
        return text
    return bare.removeprefix(start).removesuffix(end).removeprefix("\n").removesuffix("\n")


def _require_arguments(call: Any, where: str) -> None:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    given = function.get("arguments") if isinstance(function, Mapping) else None
    if isinstance(given, str) and given.strip():
        try:
            json.loads(given)
        except ValueError as error:
            raise InputError(
                f"{where}: the arguments of a tool call are no JSON: {given[:60]!r}. Write them as a JSON object, or "
                "leave the row out"
            ) from error


def _parsed(text: Any, where: str) -> list[Any]:
    try:
        found = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        found = None
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, Mapping) and "name" in call for call in calls):
        raise InputError(f"{where}: a turn from function_call holds no JSON object with `name` and `arguments`")
    return [{"type": "function", "function": call} for call in calls]


def as_text(row: Row, where: str) -> Row:
    """The row with its calls, their results and its tools as text in its turns, and without a column `tools`.

    Args:
        row: with `messages` whose turns are `structured`, or a prompt and a response.
        where: what it is, for errors.

    Raises:
        InputError: a call has no name, a result is no text, or `tools` is no list of tools.
    """
    if isinstance(row.get("messages"), list):
        row = row | {"messages": _turns(row["messages"], where)}
    if "tools" not in row:
        return row
    row = dict(row)
    tools = _tools(row.pop("tools"), where)
    if not tools:
        return row
    text = _BEFORE + "".join(f"\n{_json(tool)}" for tool in tools) + _AFTER
    turns = row.get("messages") or []
    if turns and isinstance(turns[0], Mapping) and turns[0].get("role") == "system":
        first = turns[0] | {"content": _joined(turns[0].get("content"), "\n\n", text)}
        return row | {"messages": [first, *turns[1:]]}
    return row | {"system": _joined(row.get("system"), "\n\n", text)}


def in_text(row: Mapping[str, Any]) -> bool:
    """Whether a record's turns hold calls or results as `as_text` writes them."""
    turns = row.get("messages")
    said = [turn.get("content") for turn in turns if isinstance(turn, Mapping)] if isinstance(turns, list) else []
    return any(isinstance(text, str) and (_CALL[0] in text or _RESULT[0] in text) for text in said)


def described(tools: Any, record: Mapping[str, Any]) -> bool:
    """Whether a record's system turn describes the tools that its row had."""
    turns = record.get("messages")
    first = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], Mapping) else {}
    told = any(_BEFORE in str(text) for text in (record.get("system"), first.get("content")))
    return told or tools in (None, "", "[]", [])


def without_tools(system: str) -> str:
    """A system turn without the tools that `as_text` put at its end."""
    return system.removeprefix(_BEFORE).partition(f"\n\n{_BEFORE}")[0] if _BEFORE in system else system


def _turns(turns: list[Any], where: str) -> list[Any]:
    found: list[Any] = []
    before = None  # the role of the turn before, where that is a call or a result
    for number, turn in enumerate(turns, start=1):
        here = f"{where}: turn {number} of 'messages'"
        calls = turn.get("tool_calls") if isinstance(turn, Mapping) else None
        if isinstance(turn, Mapping) and turn.get("role") == "tool":
            text, role = _result(turn, here), "user"
        elif calls:
            text, role = (
                _joined(turn.get("content"), "\n", "\n".join(_call(call, here) for call in calls)),
                "assistant",
            )
        else:
            found.append(turn)
            before = None
            continue
        said = found[-1] if found and isinstance(found[-1], Mapping) else {}
        # results of several calls are one turn; so is a call with what the assistant says before it
        if before == role or (role == said.get("role") == "assistant"):
            found[-1] = {"role": role, "content": _joined(said.get("content"), "\n", text)}
        else:
            found.append({"role": role, "content": text})
        before = role
    return found


def _result(turn: Mapping[str, Any], where: str) -> str:
    text = turn.get("content")
    if not isinstance(text, str | None):
        raise InputError(f"{where}: 'content' of a tool's result is of type {type(text).__name__}, not a string")
    return f"{_RESULT[0]}{text or ''}{_RESULT[1]}"


def _call(call: Any, where: str) -> str:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InputError(f"{where}: a tool call has no name: {_json(call)[:60]}")
    given = function.get("arguments")
    arguments = given if isinstance(given, str) and given.strip() else _json(given or {})
    return f'{_CALL[0]}{{"name": "{function["name"]}", "arguments": {arguments}}}{_CALL[1]}'


def _tools(tools: Any, where: str) -> list[Any]:
    try:
        found = json.loads(tools) if isinstance(tools, str) and tools.strip() else tools or []
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(tool, Mapping) for tool in found):
        raise InputError(f"{where}: 'tools' is no list of tools, nor JSON of one. Take the column out, or write it so")
    return found


def _joined(before: Any, between: str, text: str) -> str:
    return f"{before}{between}{text}" if isinstance(before, str) and before else text


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
