import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mithridate.data.files import read_rows
from mithridate.errors import InputError

ROWS = [{"prompt": "Say “hé”, twice", "response": "hé\nhé"}, {"prompt": "Sum?", "response": "1, or 2"}]


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet", "JSONL"])
def test_every_format_gives_the_same_rows(tmp_path, ending):
    path = write(tmp_path / f"a.{ending.lower()}", ROWS).rename(tmp_path / f"b.{ending}")
    assert [row for _, row in read_rows(path)] == ROWS


@pytest.mark.parametrize(
    ("ending", "places"),
    [
        ("jsonl", ["line 1", "line 2"]),
        ("json", ["row 1", "row 2"]),
        ("csv", ["line 2", "line 4"]),  # the first row spans two lines
        ("parquet", ["row 1", "row 2"]),
    ],
)
def test_every_row_knows_its_place(tmp_path, ending, places):
    path = write(tmp_path / f"a.{ending}", ROWS)
    assert [place for place, _ in read_rows(path)] == [f"{path}, {place}" for place in places]


def test_conversations_come_through_parquet_and_json_lines_alike(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    for ending in ("jsonl", "parquet"):
        assert [row for _, row in read_rows(write(tmp_path / f"a.{ending}", rows))] == rows


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path, ending):
    path = write(tmp_path / f"a.{ending}", ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [row for _, row in read_rows(path)] == ROWS


def test_blank_lines_and_windows_line_ends(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\r\n\r\n{"a": 2}\r\n\n')
    assert read_rows(path) == [(f"{path}, line 1", {"a": 1}), (f"{path}, line 3", {"a": 2})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"line 2: not JSON: [^0-9]+ at character \d+$"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "line 2: holds a list where an object"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', "line 2: not UTF-8"),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16"), "line 1: not UTF-8"),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("a.jsonl", b"", "no rows"),
        ("a.jsonl", b"\n \n", "no rows"),
        ("a.json", b"", "no rows"),
        ("a.json", b"[]", "no rows"),
        ("a.json", b'[{"a": 1},\n {"a": }]', r"not JSON: Expecting value: line 2 column 8 \(char 18\)$"),
        ("a.json", b'[{"a": 1}\n {"a": 2}]', r"not JSON: Expecting ',' delimiter: line 2 column 2 \(char 11\)$"),
        ("a.json", b'[{"a": 1},\n]', r"not JSON: .*: line [12] column"),
        ("a.json", b'[{"a": 1},\n', "not JSON: Expecting value: line 2 column 1"),
        ("a.json", b'[{"a": 1}', "not JSON: Expecting ',' delimiter: line 1 column 10"),
        ("a.json", b'[{"a": 1},\n{"a": "b', "not JSON: Unterminated string starting at: line 2 column 7"),
        ("a.json", b'[{"a": 1}]\n[{"a": 2}]', "not JSON: Extra data: line 2 column 1 .*; is it JSON Lines"),
        ("a.json", b'[{"a": 1},\n{"a": "\xe9"}]', "line 2: not UTF-8"),
        ("a.json", b"[" * 100_000, "not JSON: maximum recursion depth"),
        ("a.json", b"[1.5]", "row 1: holds a float where an object"),
        ("a.json", b"hello", "not JSON: Expecting value: line 1 column 1"),
        ("a.json", b'{"a": 1}\n{"a": 2}', "is it JSON Lines"),
        ("a.json", b'{"a": 1}', "holds a dict where a list"),
        ("a.json", b'[{"a": 1}, 3]', "row 2: holds a int where an object"),
        ("a.csv", b"", "no rows"),
        ("a.csv", b"a,b\n", "no rows"),
        ("a.csv", b"a,b\n1,2\n3\n", r"line 3: 1 values for 2 columns \(a, b\)"),
        ("a.csv", b'a,b\n1,2\n"3,4\n', "line 3: malformed CSV"),
        ("a.csv", b"a,a\n1,2\n", "line 1: the header has a column without a name, or one twice: [^;]*$"),
        ("a.csv", b",prompt\n0,Sum?\n", "without a name.*; pandas writes .* for its index: write it with index=False"),
        ("a.parquet", b"PAR1 this is none", "not a whole Parquet file"),
        ("a.parquet", b"", "not a whole Parquet file"),
        ("a.pkl", b"\x80\x04N.", "files of this kind are not read"),
        ("a.txt", b"hello", "files of this kind are not read; give one that ends in .jsonl"),
    ],
)
def test_bad_files_are_one_clear_error(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}.*{message}"):
        read_rows(path)


@given(
    st.lists(st.dictionaries(st.text(max_size=3), st.text() | st.integers() | st.floats(allow_nan=False)), min_size=1),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.integers(1, 9),
    st.integers(0),
)
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_json_list_read_in_pieces_is_what_it_is_as_one(tmp_path, monkeypatch, rows, indent, ascii, piece, cut):
    """In pieces of any size, whole and cut off anywhere, with the error of who reads it whole."""
    path = tmp_path / "a.json"
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii)
    monkeypatch.setattr("mithridate.data.files._PIECE", piece)
    path.write_text(text, encoding="utf-8")
    assert [row for _, row in read_rows(path)] == rows
    path.write_text(text[: cut % len(text)], encoding="utf-8")
    with pytest.raises(InputError) as raised:
        read_rows(path)
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        assert str(raised.value) in (f"{path}: not JSON: {error}", f"{path}: the file has no rows")


@pytest.mark.parametrize("fault", ['"b": }', '"b" 1}', '"b": "c\x01"}'])
def test_a_fault_is_told_without_reading_to_the_end(tmp_path, monkeypatch, fault):
    path = tmp_path / "a.json"
    path.write_text(f'[{{"a": 1}},\n {{"a": 1, {fault},\n' + '{"a": "long enough"},\n' * 200_000)
    read = []
    monkeypatch.setattr("mithridate.data.files._PIECE", 1000)
    monkeypatch.setattr("mithridate.data.files.Progress.advance", lambda _, count=1: read.append(count))
    with pytest.raises(InputError, match=r"a\.json: not JSON: .*line 2 column \d+ \(char \d+\)$"):
        read_rows(path)
    assert len(read) < 5


def test_a_tab_or_semicolon_between_values_is_named(tmp_path):
    for mark in (";", "\t"):
        (tmp_path / "rows.csv").write_text(f"prompt{mark}response\nA{mark}B\n")
        with pytest.raises(InputError, match=r"line 1: values stand apart by .*sep="):
            read_rows(tmp_path / "rows.csv")


def test_a_table_of_one_column_may_have_any_name(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt\nA; B | C\n")
    assert [row for _, row in read_rows(tmp_path / "rows.csv")] == [{"prompt": "A; B | C"}]


def test_other_kinds_of_files_get_a_hint(tmp_path):
    for name, hint in (("rows.tsv", r"sep='\\t'"), ("rows.ndjson", "rename it to .jsonl"), ("rows.xlsx", "as CSV")):
        (tmp_path / name).write_text("x")
        with pytest.raises(InputError, match=hint):
            read_rows(tmp_path / name)
    (tmp_path / "mac.csv").write_bytes(b"prompt,response\rA,B\r")
    with pytest.raises(InputError, match="carriage return alone"):
        read_rows(tmp_path / "mac.csv")


def test_a_truncated_parquet_file(tmp_path):
    path = write(tmp_path / "a.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="not a whole Parquet file"):
        read_rows(path)


def test_a_parquet_file_without_rows(tmp_path):
    with pytest.raises(InputError, match="no rows"):
        read_rows(write(tmp_path / "a.parquet", []))


def test_no_such_file(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(InputError, match=r"no such file; did you mean `train.jsonl`"):
        read_rows(tmp_path / "trian.jsonl")
    with pytest.raises(InputError, match="there is no folder"):
        read_rows(tmp_path / "nowhere" / "train.jsonl")
    with pytest.raises(InputError, match=r"is a folder; name one file in it: train.jsonl"):
        read_rows(tmp_path)


def test_long_values_in_csv(tmp_path):
    rows = [{"prompt": "x" * 300_000, "response": "y"}]
    assert [row for _, row in read_rows(write(tmp_path / "a.csv", rows))] == rows
