"""README's Python blocks run as they stand, one after the other, as somebody would paste them."""

import re
from pathlib import Path

import pytest

from mithridate.methods.index import facts
from tests.project.test_docs import blocks
from tests.tiny import save_tiny

ROOT = Path(__file__).parents[2]
EMBEDDED = '"smollm2-135m"'


def test_the_costs_are_those_that_methods_prints():
    numbers = {"one": "1", "two": "2", "three": "3"}
    rows = re.findall(
        r"^\|.*\*\*(\w+)\*\* \| (.*) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert [name for name, _ in rows] == ["Vaccine", "Booster", "Lisa", "Antidote"]
    for name, words in rows:
        stated = facts("repairs" if name == "Antidote" else "defenses", name.lower())["cost"]
        said = re.findall(rf"({'|'.join(numbers)}) (forward pass|pass|cop)", words)
        assert {(numbers[n], what) for n, what in said} == set(re.findall(r"(\d) (forward pass|pass|cop)", stated))


@pytest.mark.parametrize("model", ["tiny", pytest.param("embedded", marks=pytest.mark.slow)])
def test_the_python_blocks_run(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = blocks(ROOT / "README.md", "python")
    assert len(found) >= 3 and sum(block.count(EMBEDDED) for block in found) == 1
    names: dict = {}
    for number, block in enumerate(found, 1):
        if model == "tiny":  # in seconds; the model's name is all that differs
            block = block.replace(EMBEDDED, repr(str(save_tiny(tmp_path / "tiny"))))
        exec(compile(block, f"README.md, Python block {number}", "exec"), names)
    assert names["trainer"].state.global_step == 2 and names["tuned"].state.global_step == 4
    assert sum(names["upload"]["poisoned"]) == 4
    assert (tmp_path / "out" / "aligned" / "adapter_config.json").exists() and (tmp_path / "out" / "repaired").exists()
    assert names["repair"].total[0] > 0
    rate = names["found"].summary()["harmful_score"]
    assert rate["n"] + rate["unscored"] == 8
    assert "changed" in capsys.readouterr().out
