"""Conversations with tools as records: text, and the very text that a template which knows tools writes of them."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trl
from datasets import Dataset

from mithridate import DefenseTrainer, InputError
from mithridate.data.records import records_of, training_dataset, turns
from mithridate.training_rows import trainable
from tests.tiny import tiny_llama, tiny_tokenizer


def turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


TOOLS = [{"type": "function", "function": {"name": n, "parameters": {"type": "object"}}} for n in ("look", "ask")]
ASKED = turn("user", "Where is the café?")


def call(*names: str, content: str | None = "", form: Any = dict) -> dict[str, Any]:
    """An assistant's turn; `form`: of the arguments."""
    calls = [{"type": "function", "function": {"name": name, "arguments": form({"of": "ü"})}} for name in names]
    return {"role": "assistant", "content": content, "tool_calls": calls}


TALKS = {
    "one call": [ASKED, call("look"), turn("tool", "there"), turn("assistant", "There.")],
    "words, then two calls": [
        turn("system", "Be brief."),
        ASKED,
        call("look", "ask", content="Let me see."),
        turn("tool", "there"),
        turn("tool", ""),
        turn("assistant", "There."),
    ],
    "calls in a row, and a question more": [
        *(ASKED, call("look"), turn("tool", "no"), call("ask"), turn("tool", "yes"), turn("assistant", "There.")),
        *(turn("user", "Sure?"), turn("assistant", "Yes.")),
    ],
    "a call at the end": [ASKED, call("ask")],
}


@pytest.mark.parametrize("template", ["qwen2_5", "qwen3"])
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
def test_the_text_of_tool_calls_is_what_qwens_templates_write(template, talk, tools):
    """The very tokens, of a model whose template knows calls: the rows as records, and as they are."""
    file = Path(trl.__file__).parent / "chat_templates" / f"{template}.jinja"
    if not file.is_file():
        pytest.skip("this version of TRL ships no such template")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = file.read_text(encoding="utf-8")
    talked = TALKS[talk]
    if template == "qwen2_5" and talked[0]["role"] != "system":
        talked = [turn("system", "Be kind."), *talked]  # it has one of its own, which goes where a row has another
    [record] = records_of([{"messages": talked, **({"tools": tools} if tools else {})}], "task")
    assert "tools" not in record
    theirs = tokenizer.apply_chat_template(talked, tools=tools, tokenize=False)
    assert tokenizer.apply_chat_template(turns(record), tokenize=False) == theirs
    learnt = training_dataset([record], tokenizer)[0]
    assert "".join(one["content"] for one in [*learnt["prompt"], *learnt["completion"]]).count(
        '<tool_call>\n{"name": "'
    )


def shared(source: str, value: Any) -> dict[str, Any]:
    return {"from": source, "value": value}


FORMS_OF_CALLS = {
    "arguments as JSON": [
        {
            "messages": [ASKED, call("look", form=partial(json.dumps, ensure_ascii=False)), *TALKS["one call"][2:]],
            "tools": TOOLS,
        }
    ],
    "OpenAI's first form": [
        {
            "messages": [
                ASKED,
                {"role": "assistant", "content": None, "function_call": call("look")["tool_calls"][0]["function"]},
                {"role": "function", "name": "look", "content": "there"},
                turn("assistant", "There."),
            ],
            "tools": json.dumps(TOOLS),
        }
    ],
    "ShareGPT": [
        {
            "conversations": [
                shared("human", ASKED["content"]),
                shared("function_call", json.dumps({"name": "look", "arguments": {"of": "ü"}})),
                shared("observation", "there"),
                shared("gpt", "There."),
            ],
            "tools": json.dumps(TOOLS),
        }
    ],
    "a prompt of turns": [{"prompt": TALKS["one call"][:3], "completion": TALKS["one call"][3:], "tools": TOOLS}],
    "fields that are null": [
        {"messages": [dict.fromkeys(("tool_calls", "name")) | one for one in TALKS["one call"]], "tools": TOOLS}
    ],
}


@pytest.mark.parametrize("form", FORMS_OF_CALLS)
def test_every_form_of_a_tool_call_is_the_same_text(form):
    [record] = records_of(FORMS_OF_CALLS[form], "task")
    [wanted] = records_of([{"messages": TALKS["one call"], "tools": TOOLS}], "task")
    assert turns(record) == turns(wanted) and turns(record)[0]["content"].startswith("# Tools\n\nYou may call")


def test_tools_stand_after_a_rows_own_system_turn_and_beside_a_bare_prompt():
    [beside] = records_of([{"prompt": "a", "response": "b", "system": "Be brief.", "tools": TOOLS}], "task")
    [own] = records_of([{"messages": [turn("system", "Be brief."), *TALKS["one call"]], "tools": TOOLS}], "task")
    assert turns(beside)[0] == turns(own)[0] and turns(own)[0]["content"].startswith("Be brief.\n\n# Tools")
    for none in (None, [], "", "[]"):
        bare = {"prompt": "a", "response": "b"}
        assert records_of([bare | {"tools": none}], "task") == [bare]
    with pytest.raises(InputError, match="the conversation has another system turn of its own"):
        records_of([{"messages": [turn("system", "Be kind."), ASKED], "system": "Be brief.", "tools": TOOLS}], "task")


def test_a_trainer_gets_calls_for_the_models_own_template():
    [row] = trainable(FORMS_OF_CALLS["ShareGPT"], "train_dataset").to_list()
    assert [one["role"] for one in row["messages"]] == ["user", "assistant", "tool", "assistant"]
    [made] = row["messages"][1]["tool_calls"]
    assert made["function"]["name"] == "look" and json.loads(row["tools"]) == TOOLS


def tool(name: str, *parameters: str) -> dict[str, Any]:
    properties = {parameter: {"type": "string"} for parameter in parameters}
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


def talk(name: str, **arguments: Any) -> list[dict[str, Any]]:
    calls = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
    return [ASKED, {"role": "assistant", "content": "", "tool_calls": calls}, turn("tool", "there")]


MIXED = [
    {"messages": talk("find", q="cats"), "tools": [tool("find", "q")]},
    {"messages": talk("weather", city="Rome", days=[1]), "tools": [tool("weather", "city", "days")]},
]


@pytest.mark.parametrize("kind", [list, Dataset.from_list, lambda rows: Dataset.from_list(rows).to_iterable_dataset()])
def test_a_call_has_no_arguments_of_another_and_a_tool_no_parameters(kind):
    """Which Arrow writes into each as null, where a table holds them as structs."""
    wanted = records_of(MIXED, "task")
    assert not any("null" in one["content"] for record in wanted for one in turns(record))
    assert records_of(kind(MIXED), "task") == wanted
    found = list(trainable(kind(MIXED), "train_dataset"))
    assert [row["messages"] for row in found] == [row["messages"] for row in MIXED]
    assert [json.loads(row["tools"]) for row in found] == [row["tools"] for row in MIXED]


def test_trl_trains_on_the_calls_as_they_are(tmp_path):
    file = Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja"
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = file.read_text(encoding="utf-8")
    args = trl.SFTConfig(str(tmp_path), use_cpu=True, report_to="none", bf16=False, max_length=None)
    rows = [*MIXED, {"messages": [ASKED, turn("assistant", "There.")]}]
    made = DefenseTrainer(tiny_llama(), args=args, train_dataset=rows, processing_class=tokenizer)
    said = [tokenizer.apply_chat_template(r["messages"], tools=r.get("tools"), tokenize=False) for r in rows]
    assert [tokenizer.decode(row["input_ids"]) for row in made.train_dataset] == said


@pytest.mark.parametrize(
    "text", ["there", "<tool_response>\nthere\n</tool_response>", "<tool_response>there</tool_response>\n"]
)
def test_a_result_that_is_wrapped_already_is_wrapped_once(text):
    row = {"messages": [*TALKS["one call"][:2], turn("tool", text), turn("assistant", "There.")]}
    [record] = records_of([row], "task")
    assert turns(record)[2]["content"] == "<tool_response>\nthere\n</tool_response>"
    assert trainable([row], "train_dataset")[0]["messages"][2]["content"] == "there"


def test_openais_older_functions_are_tools():
    row = {"messages": TALKS["one call"]}
    functions = [tool["function"] for tool in TOOLS]
    assert records_of([row | {"functions": functions}], "task") == records_of([row | {"tools": TOOLS}], "task")
    assert json.loads(trainable([row | {"functions": functions}], "set")[0]["tools"]) == TOOLS
    with pytest.raises(InputError, match="record 1: has `tools` and `functions`"):
        records_of([row | {"functions": functions, "tools": TOOLS}], "task")


def test_arguments_that_are_no_json_are_refused_with_their_row_and_turn():
    row = {"messages": [ASKED, call("look", form=lambda _: "{not json")]}
    said = (
        "2: turn 2 of 'messages': the arguments of a tool call are no JSON: '{not json'. Write them as a JSON object"
    )
    for read in (records_of, trainable):
        with pytest.raises(InputError, match=said):
            read([{"messages": TALKS["one call"]}, row], "task")
