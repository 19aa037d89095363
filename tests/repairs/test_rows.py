"""Calibration rows in every form that TRL takes give the same tokens, or an error that names row and field."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict

from mithridate import Antidote, InputError, UnsupportedSetup
from mithridate.repairs.input_norms import token_ids
from tests.repairs.test_antidote import CALIBRATION, ROWS, TOKENIZER, same, state, with_lora
from tests.tiny import tiny_llama, tiny_tokenizer

RECORDS = [{"prompt": row["prompt"], "response": row["response"]} for row in CALIBRATION]
TURNS = [
    [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["response"]}] for r in CALIBRATION
]
COMPLETIONS = [{"prompt": t[:1], "completion": t[1:]} for t in TURNS]
SHARED = [
    {"conversations": [{"from": turn["role"], "value": turn["content"]} for turn in messages]} for messages in TURNS
]
PADDED = [
    {"input_ids": ids + [2] * 5, "attention_mask": [1] * len(ids) + [0] * 5, "labels": [-100] * (len(ids) + 5)}
    for ids in ROWS
]

FORMS = {
    "records": lambda: RECORDS,
    "records with more columns": lambda: CALIBRATION,
    "a tuple of records": lambda: tuple(RECORDS),
    "a generator": lambda: (row for row in RECORDS),
    "a data set": lambda: Dataset.from_list(RECORDS),
    "a streamed data set": lambda: Dataset.from_list(RECORDS).to_iterable_dataset(),
    "a DataFrame": lambda: pd.DataFrame(RECORDS),
    "strings": lambda: [{"prompt": r["prompt"], "completion": r["response"]} for r in RECORDS],
    "strings, response null": lambda: Dataset.from_list(
        [{"prompt": r["prompt"], "completion": r["response"], "response": None} for r in RECORDS]
    ),
    "turns": lambda: Dataset.from_list(COMPLETIONS),
    "turns in a DataFrame": lambda: Dataset.from_list(COMPLETIONS).to_pandas(),
    "turns, numpy format": lambda: Dataset.from_list(COMPLETIONS).with_format("numpy"),
    "turns and an answer that is a string": lambda: [{"prompt": t[:1], "completion": t[1]["content"]} for t in TURNS],
    "messages": lambda: [{"messages": messages} for messages in TURNS],
    "messages in a data set": lambda: Dataset.from_list([{"messages": messages} for messages in TURNS]),
    "messages with fields that Arrow fills in": lambda: Dataset.from_list(
        [{"messages": [turn | {"tool_calls": None, "name": None} for turn in messages]} for messages in TURNS]
    ),
    "conversations": lambda: SHARED,
    "ShareGPT": lambda: [
        {"conversations": [{"from": "human", "value": r["prompt"]}, {"from": "gpt", "value": r["response"]}]}
        for r in RECORDS
    ],
    "Alpaca": lambda: [{"instruction": r["prompt"], "input": "", "output": r["response"]} for r in RECORDS],
    "lists of text parts": lambda: [
        {"messages": [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in messages]}
        for messages in TURNS
    ],
    "text": lambda: [{"text": TOKENIZER.decode(ids)[: -len("\n")] + "\n"} for ids in ROWS],
    "tokens": lambda: [{"input_ids": ids} for ids in ROWS],
    "tokens, torch format": lambda: Dataset.from_list([{"input_ids": ids} for ids in ROWS]).with_format("torch"),
    "tokens, numpy format": lambda: Dataset.from_list([{"input_ids": ids} for ids in ROWS]).with_format("numpy"),
    "tokens as a tokenizer gives them": lambda: [{"input_ids": torch.tensor([ids])} for ids in ROWS],
    "tokens padded": lambda: PADDED,
    "tokens in a DataFrame": lambda: pd.DataFrame({"input_ids": [np.array(ids) for ids in ROWS]}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_tokens(form):
    ids = token_ids(FORMS[form](), TOKENIZER)
    end = [TOKENIZER.eos_token_id] if form == "text" else []  # TRL ends a text so, as it ends no conversation
    assert ids == [row + end for row in ROWS]


def test_every_form_is_taken_by_apply():
    masks = {
        Antidote().apply(with_lora(tiny_llama()), FORMS[form](), TOKENIZER).digest
        for form in ("records", "a generator", "a streamed data set", "a DataFrame", "turns", "tokens, torch format")
    }
    assert len(masks) == 1


TOOLS = tiny_tokenizer()
TOOLS.chat_template = (
    "{% if tools %}TOOLS {{ tools | length }} {% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<{{ c.function.name }}>{% endfor %}{% endfor %}{{ style or '' }}"
)
CALL = {"type": "function", "function": {"name": "look", "arguments": {"where": "there"}}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}


def test_tool_calls_tools_and_template_arguments_reach_the_template():
    messages = [
        {"role": "user", "content": "where"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "name": "look", "content": "there"},
        {"role": "assistant", "content": "there"},
    ]
    expected = "TOOLS 1 [user]where[assistant]<look>[tool]there[assistant]there"
    for tools in ([TOOL], json.dumps([TOOL])):
        rows = [{"messages": messages, "tools": tools, "chat_template_kwargs": {"style": "!"}}]
        assert TOOLS.decode(token_ids(rows, TOOLS)[0]) == expected + "!"
    row = {"prompt": messages[:1], "completion": messages[1:2]}  # an answer that is a call
    assert TOOLS.decode(token_ids([row], TOOLS)[0]) == "[user]where[assistant]<look>"


NAN = float("nan")
BAD = {
    "null answer": ({"prompt": "a", "response": None}, "'response' is missing"),
    "NaN answer": ({"prompt": "a", "response": NAN}, "'response' is missing"),
    "empty answer": ({"prompt": "a", "response": " "}, "'response' is empty"),
    "answer of a number": ({"prompt": "a", "completion": 3}, "'completion' is of type int"),
    "no answer": ({"prompt": "a"}, "has no answer"),
    "null prompt": ({"prompt": None, "response": "b"}, "'prompt' is missing"),
    "null completion": ({"prompt": [{"role": "user", "content": "a"}], "completion": None}, "'completion' is missing"),
    "empty completion": ({"prompt": [{"role": "user", "content": "a"}], "completion": []}, "'completion' is empty"),
    "prompt alone": ({"messages": [{"role": "user", "content": "a"}]}, "has no answer: its last turn is the user's"),
    "no turns": ({"messages": []}, "'messages' is empty"),
    "null messages": ({"messages": None}, "'messages' is missing"),
    "turns of text": ({"messages": ["a", "b"]}, "turn 1 is of type str, not a mapping with 'role'"),
    "turn without role": ({"messages": [{"content": "a"}]}, "turn 1: 'role' is missing"),
    "turn without content": (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]},
        "'messages': turn 2: 'content' is missing",
    ),
    "empty last turn": (
        {"prompt": "a", "completion": [{"role": "assistant", "content": ""}]},
        "'completion': turn 1: 'content' is empty",
    ),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "turn 1 of 'messages' holds a part of type 'image_url'",
    ),
    "question and answer": ({"question": "a", "answer": "b"}, "'question': 'prompt', 'answer': 'response'"),
    "an answer by another name": ({"prompt": "a", "output": "b"}, r"has no answer.*{'output': 'response'}"),
    "null text": ({"text": None}, "'text' is missing"),
    "empty ids": ({"input_ids": []}, "'input_ids' is empty"),
    "all masked ids": ({"input_ids": [3, 4], "attention_mask": [0, 0]}, "'input_ids' is empty"),
    "null ids": ({"input_ids": None}, "'input_ids' is missing"),
    "ids of text": ({"input_ids": ["a"]}, "not a list of token ids"),
    "ids of fractions": ({"input_ids": [1.5]}, "not a list of token ids"),
    "no mapping": ("a", "is of type str, not a mapping"),
    "nothing": ({}, "it has nothing"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_cannot_be_used_is_named_before_the_pass(case, monkeypatch):
    monkeypatch.setattr("mithridate.repairs.antidote.input_norms", lambda *_: pytest.fail("calibration was run"))
    row, words = BAD[case]
    model = with_lora(tiny_llama())
    before = state(model)
    with pytest.raises(InputError, match=f"(?s)calibration row 2: .*{words}"):
        Antidote().apply(model, [RECORDS[0], row], TOKENIZER)
    assert same(model, before)


def test_what_is_no_set_of_rows_is_named():
    model = with_lora(tiny_llama())
    for rows, words in [
        (DatasetDict(train=Dataset.from_list(RECORDS)), r"DatasetDict of splits or columns \(train\)"),
        ({"prompt": ["a"], "response": ["b"]}, r"splits or columns \(prompt, response\)"),
        ("rows.jsonl", "got str of 'rows.jsonl'"),
        (3, "got int"),
    ]:
        with pytest.raises(InputError, match=words):
            Antidote().apply(model, rows, TOKENIZER)
    with pytest.raises(UnsupportedSetup, match="there are none"):
        Antidote().apply(model, iter([]), TOKENIZER)
    with pytest.raises(UnsupportedSetup, match="no tokenizer"):
        Antidote().apply(model, RECORDS)
    with pytest.raises(UnsupportedSetup, match="tokenised"):
        Antidote().apply(model, [{"text": "a"}])


def test_a_conversation_that_the_template_refuses_is_named():
    strict = tiny_tokenizer()
    strict.chat_template = "{{ raise_exception('no system turn here') }}"
    with pytest.raises(InputError, match=r"calibration row 1: the chat template does not take .*no system turn here"):
        token_ids(RECORDS[:1], strict)


def test_a_part_of_the_prompt_in_another_column_is_refused():
    for extra in (
        {"context": "A text."},
        {"input": "A text."},
        {"system_prompt": "Rhyme."},
        {"history": [["a", "b"]]},
    ):
        with pytest.raises(InputError, match=f"calibration row 2: the column '{next(iter(extra))}' would be left out"):
            token_ids([RECORDS[0], RECORDS[0] | extra], TOKENIZER)
