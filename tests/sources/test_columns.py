"""Columns of a source: names that nothing reads, and parts of a prompt that would be dropped."""

import json

import pytest

from mithridate.errors import InputError
from mithridate.experiment.roles import load_roles
from mithridate.experiment.sources import Source


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def roles_of(tmp_path, *rows, **source):
    file = write(tmp_path / "a.jsonl", *rows)
    return load_roles({"alignment": Source(source=str(file), **source)}).alignment


def test_names_in_columns_that_nothing_reads(tmp_path):
    row = {"prompt": "p", "response": "r", "x": "y"}
    with pytest.raises(
        InputError, match=r"columns\.prmpt: nothing reads a column of that name; did you mean `prompt`"
    ):
        roles_of(tmp_path, row, columns={"prmpt": "x"})
    assert roles_of(tmp_path, row, columns={"category": "x"})[0]["category"] == "y"
    assert len(roles_of(tmp_path, row, columns={"mine": "x"}, where={"mine": "y"})) == 1
    file = write(tmp_path / "t.jsonl", {"text": "nice", "label": 1})
    task = Source(source=str(file), name="sst2", columns={"sentence": "text"}, test=str(file))
    with pytest.raises(InputError, match="no training rows are left"):  # what the task reads is known
        load_roles({"task": task})


@pytest.mark.parametrize(
    ("extra", "ours", "before"),
    [
        ({"input": "in"}, "input", False),
        ({"context": "ctx"}, "input", False),
        ({"system_prompt": "sys"}, "system", True),
    ],
)
def test_columns_of_known_formats_are_not_dropped_in_silence(tmp_path, extra, ours, before):
    [(name, text)] = extra.items()
    row = {"instruction": "Do.", "output": "Done."} | extra
    columns = {"prompt": "instruction", "response": "output"}
    with pytest.raises(InputError, match=rf"line 1: the column '{name}' would be left out.*columns: {{{ours}: {name}"):
        roles_of(tmp_path, row, columns=columns)
    [record] = roles_of(tmp_path, row, columns=columns | {ours: name})
    if before:
        assert record["messages"][0] == {"role": "system", "content": text} and len(record["messages"]) == 3
    else:
        assert record["prompt"] == f"Do.\n\n{text}" and record["response"] == "Done."
    assert roles_of(tmp_path, row | {name: ""}, columns=columns)[0]["prompt"] == "Do."


@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_a_prompt_and_a_response_that_columns_name_go_before_a_conversation_in_the_row(tmp_path, name):
    talk = [{"role": "user", "content": "other"}, {"role": "assistant", "content": "said"}]
    row = {name: talk, "question": "Q", "answer": "A"}
    [record] = roles_of(tmp_path, row, columns={"prompt": "question", "response": "answer"})
    assert (record["prompt"], record["response"]) == ("Q", "A") and "messages" not in record
    assert roles_of(tmp_path, row | {"prompt": "P"}, columns={"messages": name})[0]["messages"] == talk
    [record] = roles_of(tmp_path, row | {"messages": talk[:1]}, columns={"prompt": "messages", "response": "answer"})
    assert [turn["content"] for turn in record["messages"]] == ["other", "A"]


def test_a_history_beside_a_prompt_is_not_dropped(tmp_path):
    with pytest.raises(InputError, match=r"'history' would be left out.*Make `messages`"):
        roles_of(tmp_path, {"prompt": "p", "response": "r", "history": [["a", "b"]]})


def test_all_roles_that_are_wrong_are_named_at_once(tmp_path):
    data = {role: Source(source=str(tmp_path / f"{role}.jsonl")) for role in ("alignment", "test_harmful")}
    with pytest.raises(InputError, match=r"2 problems:\n.*alignment.jsonl: no such file.*\n.*test_harmful.jsonl"):
        load_roles(data)
