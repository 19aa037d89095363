"""Files as they lie around: packed, in the formats of others, and large."""

import gzip
import json
import time
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mithridate.data.files import read_rows, rows_of
from mithridate.data.records import asked, training_dataset, turns
from mithridate.errors import InputError
from mithridate.experiment.roles import load_roles
from mithridate.experiment.sources import Source
from mithridate.generation.templates import CHAT, prompt_tokens
from tests.tiny import tiny_tokenizer

ROWS = [{"prompt": f"ask {i}", "response": f"say {i}"} for i in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = ("prompt,response\n" + "".join(f"ask {i},say {i}\n" for i in range(5))).encode()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(content)
    return sink.getvalue().to_pybytes()


PACKED = {
    "a.jsonl.gz": gzip.compress(LINES),
    "a.jsonl.zst": zstd(LINES),
    "a.csv.gz": gzip.compress(CSV),
    "a.csv.zst": zstd(CSV),
    "a.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "A.JSONL.GZ": gzip.compress(LINES),
}


def loaded(path, **source):
    return load_roles({"alignment": Source(source=str(path), **source)}).alignment


def said(records):
    return [{name: row[name] for name in ("prompt", "response")} for row in records]


@pytest.mark.parametrize("name", PACKED)
def test_packed_files_give_the_same_rows_with_their_places(tmp_path, name):
    (tmp_path / name).write_bytes(PACKED[name])
    assert said(loaded(tmp_path / name)) == ROWS
    assert read_rows(tmp_path / name)[1][0].startswith(f"{tmp_path / name}, ")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl.gz", gzip.compress(LINES)[:-10], "a.jsonl.gz: cannot be read"),
        ("a.jsonl.gz", LINES, "a.jsonl.gz: cannot be read: Not a gzipped file"),
        ("a.jsonl.zst", LINES, "a.jsonl.zst: cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n{'), "a.jsonl.gz, line 2: not JSON"),
        ("a.parquet.gz", b"", "a.parquet.gz: files of this kind are not read; give one that ends in .jsonl"),
        ("a.gz", gzip.compress(LINES), "a.gz: files of this kind are not read"),
    ],
    # gzip writes the time of day: bytes in an id would name the test anew in every worker
    ids=["torn", "plain as gz", "plain as zst", "torn line", "packed Parquet", "no kind"],
)
def test_packed_files_that_cannot_be_read(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_rows(tmp_path / name)


def test_a_folder_names_packed_files_too(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(PACKED["a.jsonl.gz"])
    with pytest.raises(InputError, match=r"name one file in it: a\.jsonl\.gz"):
        read_rows(tmp_path)


FORMS = {
    "Alpaca": {"instruction": "Sum up.", "input": "A text.", "output": "Text."},
    "ShareGPT": {"conversations": [{"from": "human", "value": "Sum up."}, {"from": "gpt", "value": "Text."}]},
    "TRL": {
        "prompt": [{"role": "user", "content": "Sum up."}],
        "completion": [{"role": "assistant", "content": "Text."}],
    },
    "TRL, strings": {"prompt": "Sum up.", "completion": "Text."},
    "OpenAI": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Sum up."}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Text."}]},
        ]
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_formats_of_others_are_read_as_they_are(tmp_path, form, ending):
    path = tmp_path / f"a.{ending}"
    if ending == "jsonl":
        path.write_text(json.dumps(FORMS[form]))
    else:
        pq.write_table(pa.Table.from_pylist([FORMS[form]]), path)
    [record] = loaded(path)
    turns = record.get("messages") or [{"content": record["prompt"]}, {"content": record["response"]}]
    asked = "Sum up.\n\nA text." if form == "Alpaca" else "Sum up."
    assert [turn["content"] for turn in turns] == [asked, "Text."]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_system_column_beside_any_form_is_the_system_turn(tmp_path, form, ending):
    """Down to the tokens that are trained on, and to those that a test asks."""
    path, tokenizer = tmp_path / f"a.{ending}", tiny_tokenizer()
    given = [FORMS[form] | {"system": "Rhyme."}, FORMS[form] | {"system": None}]
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in given))
    else:
        pq.write_table(pa.Table.from_pylist(given), path)
    found = load_roles({"alignment": Source(source=str(path))}, system="Be brief.").alignment
    for record, system in zip(found, ("Rhyme.", "Be brief."), strict=True):
        [row] = training_dataset([record])
        opened = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nSum up."
        assert tokenizer.decode(prompt_tokens(tokenizer, row["prompt"], CHAT)).startswith(opened)
        assert tokenizer.decode(prompt_tokens(tokenizer, asked(record), CHAT)).startswith(opened)
        talk = [*turns(record), {"role": "user", "content": "More."}, {"role": "assistant", "content": "No."}]
        [row] = training_dataset([{"messages": talk}], tokenizer)
        assert tokenizer.decode(row["input_ids"]).startswith(opened)
    assert "system" not in loaded(path)[1], "an empty cell is no turn"


def test_a_system_column_beside_another_system_turn_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    talk = [{"role": "system", "content": "Rhyme."}, *FORMS["OpenAI"]["messages"]]
    path.write_text(json.dumps({"messages": talk, "system": "Be brief."}))
    with pytest.raises(InputError, match="line 1: the column 'system' would be left out: the conversation has an"):
        loaded(path)
    path.write_text(json.dumps({"messages": talk, "system": "Rhyme."}))
    assert [turn["role"] for turn in loaded(path)[0]["messages"]] == ["system", "user", "assistant"]
    path.write_text(json.dumps({"prompt": "a", "response": "b", "system": 3}))
    with pytest.raises(InputError, match="line 1: 'system' is of type int, not a string"):
        loaded(path)


HUMAN, GPT = {"from": "human", "value": "Ask."}, {"from": "gpt", "value": "Say."}
FIRST = {"from": "system", "value": "Rhyme."}


@pytest.mark.parametrize("form", ["conversations", "messages"])
def test_turns_without_their_pair_are_left_out_and_counted(tmp_path, form):
    shared = [
        [HUMAN, GPT, HUMAN, GPT],
        [GPT, HUMAN, GPT],
        [FIRST, GPT, GPT, HUMAN, GPT, HUMAN],
        [HUMAN, GPT, HUMAN],
        [HUMAN],
        [GPT],
        [GPT, HUMAN],
    ]
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    path = tmp_path / "a.jsonl"
    rows = [
        {form: talk if form == "conversations" else [{"role": roles[t["from"]], "content": t["value"]} for t in talk]}
        for talk in shared
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_roles({"alignment": Source(source=str(path))})
    kept = [[turn["role"][0] for turn in record["messages"]] for record in found.alignment]
    assert kept == [["u", "a", "u", "a"], ["u", "a"], ["s", "u", "a"], ["u", "a"]]
    assert len(training_dataset(found.alignment, tiny_tokenizer())) == 4
    here = f"data.alignment: {path}"
    assert found.notes == [
        f"{here}: 2 conversations begin with an answer, which was left out: it has no question",
        f"{here}: 2 conversations end with a question, which was left out: it has no answer to learn",
        f"{here}: 3 conversations without a question and its answer were left out",
    ]


def test_a_test_conversation_ends_with_the_question_that_is_asked(tmp_path):
    path = tmp_path / "a.jsonl"
    talks = [HUMAN], [GPT, HUMAN, GPT, HUMAN]
    path.write_text("".join(json.dumps({"conversations": talk}) + "\n" for talk in talks))
    found = load_roles({"test_benign": Source(source=str(path))})
    assert [len(asked(record)) for record in found.test_benign] == [1, 3]
    assert found.notes == [
        f"data.test_benign: {path}: 1 conversations begin with an answer, which was left out: it has no question"
    ]


@pytest.mark.parametrize(
    ("talk", "said"),
    [
        ([HUMAN], "line 1: 'messages' does not end in an assistant turn"),
        ([GPT, HUMAN], "line 1: turn 1 of 'messages' is a assistant turn where a user turn is due"),
        ([HUMAN, GPT, GPT], "line 1: turn 3 of 'messages' is a assistant turn where a user turn is due"),
        ([], "line 1: 'messages' is empty"),
    ],
)
def test_a_file_without_a_question_and_its_answer_is_refused(tmp_path, talk, said):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"conversations": talk}))
    with pytest.raises(InputError, match=said):
        loaded(path)


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]}


def test_tool_calls_in_a_file_are_text_and_the_notes_say_so(tmp_path):
    path = tmp_path / "a.jsonl"
    ask, result, answer = (
        {"role": role, "content": text} for role, text in (("user", "a"), ("tool", "42"), ("assistant", "It is 42."))
    )
    talks = [[ask, CALL, result, answer], [{**ask, "content": "b"}, answer], [{**ask, "content": "c"}, CALL, result]]
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    roles = load_roles({"alignment": [Source(str(path))]}, tmp_path)
    call, said = (
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
        "<tool_response>\n42\n</tool_response>",
    )
    first, _, last = roles.alignment
    assert [turn["content"] for turn in first["messages"]] == ["a", call, said, "It is 42."]
    assert [turn["role"] for turn in first["messages"]] == ["user", "assistant"] * 2
    assert [turn["content"] for turn in last["messages"]] == ["c", call]  # no answer to the last result
    [ends, calls] = [note.partition(".jsonl: ")[2] for note in roles.notes]
    assert ends.startswith("1 conversations end with a question")
    assert calls == "2 conversations call tools: calls and results stand as text in their turns, in Qwen's form"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "42"}]},
            "turn 2 .* is a user turn",
        ),
        ({"messages": [{"role": "user", "content": "a"}, {**CALL, "tool_calls": [{}]}]}, "turn 2 .* has no name: {}"),
        (
            {"messages": [{"role": "user", "content": "a"}, CALL, {"role": "tool", "content": {"b": 1}}]},
            "turn 3 .* of a tool's result is of type dict, not a string",
        ),
        (
            {"conversations": [HUMAN, {"from": "function_call", "value": "look"}]},
            "turn 2 .* holds no JSON object with",
        ),
        ({"prompt": "a", "response": "b", "tools": "look"}, "'tools' is no list of tools"),
    ],
)
def test_what_is_no_tool_call_is_refused_with_its_line(tmp_path, row, said):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(InputError, match=f"line 1: .*{said}"):
        loaded(path)


def talk_with(**fields):
    return {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"} | fields]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (talk_with(weight=0), "turn 2 of 'messages' has the weight 0, .*End the conversation before it"),
        (talk_with(reasoning_content="Hm."), "turn 2 .* 'reasoning_content' would be left out: .*<think>"),
        ({"prompt": "Look: <image>", "response": "b", "image": "a.png"}, "the column 'image' would be left out"),
        ({"conversations": [HUMAN | {"value": "<image>"}, GPT], "images": ["a.png"]}, "column 'images' would be left"),
    ],
)
def test_an_answer_that_is_not_to_be_learnt_or_would_lose_a_part_is_refused(tmp_path, row, said):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(InputError, match=f"line 1: .*{said}"):
        loaded(path)


def test_what_says_nothing_more_beside_an_answer_stays(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [talk_with(weight=1, reasoning_content=""), {"prompt": "p", "response": "b", "image": "a.png"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(loaded(path)) == 2
    path.write_text(json.dumps(talk_with(weight=0, reasoning_content="Hm.")))  # a test prompt's answer is not learnt
    assert len(load_roles({"test_benign": Source(source=str(path))}).test_benign) == 1


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.csv", "a.jsonl.gz", "a.parquet", "a.json", "a.json.gz", "a.json.zst", "a.csv.zst"]
)
def test_take_reads_no_further(tmp_path, name):
    path, count = tmp_path / name, 200_000
    if name.endswith("parquet"):
        pq.write_table(pa.table({"prompt": [f"ask {i}" for i in range(count)], "response": ["say"] * count}), path)
    else:
        ask = '{{"prompt": "ask {}", "response": "say"}}'
        head, row = {
            "csv": (b"prompt,response\n", "ask {},say\n"),
            "json": (b"[", f"{ask}, "),  # in one line, as it is most often written
            "jsonl": (b"", f"{ask}\n"),
        }[name.split(".")[1]]
        # beyond what is taken there is a row that no reader would let pass
        content = head + "".join(row.format(i) for i in range(count)).encode() + b'"torn'
        packed = {"gz": lambda text: gzip.compress(text, 1), "zst": zstd}.get(name.rpartition(".")[2], bytes)
        path.write_bytes(packed(content))
    tracemalloc.start()
    began = time.monotonic()
    found = loaded(path, skip=10, take=100)
    seconds, (_, peak) = time.monotonic() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [row["prompt"] for row in found] == [f"ask {i}" for i in range(10, 110)]
    assert peak < 20e6, f"{peak / 1e6:.0f} MB, {seconds:.1f} s"
    if not name.endswith("parquet"):
        with pytest.raises(InputError, match=r"not JSON|malformed CSV|values for 2 columns"):
            list(rows_of(path))


def test_a_take_that_is_more_than_there_is_says_how_many_there_are(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    with pytest.raises(InputError, match="6 rows asked for, but there are 5"):
        loaded(tmp_path / "a.jsonl", take=6)


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_reading_for_long_says_how_far_it_is(tmp_path, monkeypatch, capsys, ending):
    path = tmp_path / f"a.{ending}"
    row = b'{"prompt": "a", "response": "%s"}\n' % (b"x" * 1000)
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist([json.loads(row)] * 10_000), path)
    else:
        path.write_bytes(row * 10_000 if ending == "jsonl" else b"[" + (row + b",") * 9_999 + row + b"]")
    now = [0.0]

    def clock():
        now[0] += 1
        return now[0]

    monkeypatch.setattr("mithridate.data.files._LONG", 1)
    monkeypatch.setattr("mithridate.progress.time.monotonic", clock)
    assert len(read_rows(path)) == 10_000
    unit = "rows" if ending == "parquet" else "MiB"
    assert f"  reading a.{ending}: " in (lines := capsys.readouterr().err) and f" {unit}, about " in lines


def test_conversations_of_sharegpt_under_another_name_are_mapped(tmp_path):
    path = tmp_path / "a.jsonl"
    talk = [HUMAN, {"from": "gpt", "value": "b"}]
    path.write_text(json.dumps({"items": talk}))
    [record] = loaded(path, columns={"messages": "items"})
    assert [turn["role"] for turn in record["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize(
    "row", [{"prompt": "a", "response": "cut \ud83d"}, {"instruction": "cut \ud83d", "output": "b"}]
)
def test_half_of_a_character_in_a_file_is_refused_with_its_line(tmp_path, row):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(row))
    with pytest.raises(InputError, match=r"line 2: .* holds half of a character .*leave the row out"):
        loaded(path)
