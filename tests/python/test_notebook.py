"""The notebook runs from top to bottom, on a tiny model here and on its own model among the slow tests."""

import json
from pathlib import Path

import pytest

from tests.tiny import tiny_llama, tiny_tokenizer

NOTEBOOK = Path(__file__).parents[2] / "examples" / "from_python.ipynb"


def cells(kind: str) -> list[str]:
    made = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert not any(cell.get("outputs") for cell in made["cells"])  # what models say is not kept
    return ["".join(cell["source"]) for cell in made["cells"] if cell["cell_type"] == kind]


def executed(parameters: str | None = None) -> dict:
    first, *rest = cells("code")
    names: dict = {}
    for source in (parameters or first, *rest):
        exec(compile(source, str(NOTEBOOK), "exec"), names)
    return names


def shown_right(names: dict) -> None:
    assert len(names["upload"]) == 4 * names["STEPS"]
    assert names["upload"]["poisoned"].sum() == names["STEPS"] // 2
    assert len(names["before"].to_pandas()) == len(names["after"].records) == 16
    assert names["delta"].digest and "harmful_score" in names["before"]._repr_html_()


def test_on_a_tiny_model(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert cells("code")[0].startswith("MODEL = ")
    shown_right(executed(f"MODEL = {str(tmp_path)!r}\nSTEPS = 2"))


@pytest.mark.slow
def test_on_its_own_model():
    shown_right(executed())
