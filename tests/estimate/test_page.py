"""docs/scale.md says what the code says."""

import json

import pytest

from benchmarks import scale

TEXT = scale.PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_estimates_are_the_codes():
    """Those of the smallest model: all of them take minutes."""
    first, *_ = scale.SIZES
    rows = scale.between("estimates", TEXT).splitlines()
    assert [row for row in rows if "---" in row or row[2:4] in (first.upper(), "mo")] == scale.estimates(
        [first]
    ).splitlines()


def test_the_gpu_figures_are_the_evidences(tmp_path, monkeypatch):
    """What was measured stands in a row, what was not in one list: no row is left open, and nothing is in both."""
    assert scale.between("gpu", TEXT) == scale.gpu()
    every = [what for what, *_ in scale._rows()]
    monkeypatch.setattr(scale, "EVIDENCE", tmp_path / "none.json")
    nothing = scale.gpu()
    assert "|" not in nothing and all(what in nothing for what in (*every, *scale.NEVER))
    some = {"device": {"gpus": ["X"]}, "sections": {"steps": {"figures": {"lora": {"booster": {"ratio": 3.06}}}}}}
    (tmp_path / "some.json").write_text(json.dumps(some))
    monkeypatch.setattr(scale, "EVIDENCE", tmp_path / "some.json")
    table, _, left = scale.gpu().partition("Not measured on a GPU:\n\n")
    measured = "booster's step over a plain one, 1B, LoRA"
    assert (
        f"| {measured} | 3.06 |" in table and table.startswith("On: X.") and f"- {measured}" not in left.splitlines()
    )
    assert len(left.splitlines()) == len(every) - 1 + len(scale.NEVER)


def test_no_page_has_a_row_that_waits_for_a_measurement():
    for page in scale.PAGE.parent.glob("*.md"):
        assert "not yet measured" not in page.read_text(encoding="utf-8"), page.name


@pytest.mark.slow
def test_the_recipe_is_what_the_command_prints():
    assert scale.between("recipe", TEXT) == scale.recipe()


def test_the_page_leaves_nothing_open():
    assert "to be written" not in TEXT and "MEASURED" not in TEXT


@pytest.mark.parametrize("name", scale.TABLES)
def test_each_table_has_its_place(name):
    assert scale.between(name, TEXT)


def test_each_table_goes_into_its_own_place(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("\n".join(f"<!-- {n}: generated -->\nsame\n<!-- {n}: end -->" for n in ("a", "b")))
    monkeypatch.setattr(scale, "PAGE", page)
    monkeypatch.setattr(scale, "TABLES", {"a": lambda: "one", "b": lambda: "two"})
    scale.main()
    assert [scale.between(n, page.read_text()) for n in ("a", "b")] == ["one", "two"]
