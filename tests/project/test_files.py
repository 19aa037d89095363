"""The ground: files written whole, digests, and what an error says."""

import hashlib

import pytest

from mithridate.errors import InputError, first_line, nearest
from mithridate.files import canonical_json, digest, file_digest, json_digest, replace_file, replacing


def test_a_file_that_is_not_finished_is_not_there(tmp_path):
    """The old one stays, and nothing is left beside it."""
    path = tmp_path / "a.json"
    replace_file(path, "old ä")
    with pytest.raises(RuntimeError), replacing(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "old ä"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        replace_file(tmp_path / "nowhere" / "a", "x")


def test_digests_of_files_and_values_are_those_that_stores_hold(tmp_path):
    """Written out here: a changed digest would lose every finished artefact and cached answer."""
    value = {"b": [1.0, None, True], "a": "ä"}
    assert canonical_json(value) == r'{"a":"\u00e4","b":[1,null,true]}'
    assert digest(value) == hashlib.sha256(rb'{"a":"\u00e4","b":[1,null,true]}').hexdigest()
    assert json_digest(value) == hashlib.sha256(rb'{"a": "\u00e4", "b": [1.0, null, true]}').hexdigest()
    (tmp_path / "x").write_bytes(b"abc")
    assert file_digest(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(InputError, match=r"b\.1: nan"):
        digest({"b": [1, float("nan")]})


def test_what_was_meant():
    assert nearest("lsa", ["lisa", "vaccine"]) == "; did you mean `lisa`?"
    assert nearest("x", ["lisa", "vaccine"]) == "; there are: lisa, vaccine"
    assert nearest("x", ["lisa", "vaccine"], listed=False) == "" == nearest("x", [])


def test_the_first_line_of_an_error_that_says_nothing_is_its_type():
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"
