"""A whole run of what another package adds: every command shows its names, costs and citations."""

import json
import re

import pytest

from mithridate import cli
from tests.outside.package import with_all_of_it

CELL = "sft-stayclose-fade-double-repeated-1-s0"


@pytest.fixture(scope="module")
def run(outside, tmp_path_factory):
    """A finished run of the package's methods, and its experiment file."""
    folder = tmp_path_factory.mktemp("run")
    made = with_all_of_it(folder / "inputs")
    file = folder / "mine.yaml"
    file.write_text(json.dumps(made))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MITHRIDATE_STORE", str(folder / "store"))
        assert cli.main(["run", str(file), "--out", str(folder / "out")]) == 0
        yield folder


def results(run):
    return json.loads((run / "out" / "results.json").read_text())


def test_the_table_names_all_of_it(run):
    found = results(run)
    cells = {cell["id"]: cell for cell in found["cells"]}
    assert found["protocol"] == "outside/hs-1"
    cell = cells[CELL]
    assert (cell["alignment"], cell["finetuning"], cell["repair"]) == ("sft", "stayclose", "fade")
    assert cell["settings"] == {"stayclose": {"rho": 0.5}, "fade": {"keep": 0.25}}
    assert cell["attack"]["kind"] == "repeated" and cell["harmful_ratio"] == 1.0 and cell["control"] is None
    assert cell["rates"]["harmful_score"]["n"] == 8 and cell["rates"]["accuracy"]["n"] == 4
    assert "sft-sft-none-double-repeated-1-s0" in cells  # the run without any defense, of the same attack


def test_the_methods_act(run):
    """The pull is in the training, and the repair in the model."""
    stages = {}
    for manifest in (run / "store").glob("*/stage.json"):
        found = json.loads(manifest.read_text())
        stages.setdefault(found["stage"], []).append(found)
    assert len(stages["finetune"]) == 2 and len(stages["repair"]) == 1
    defended, plain = sorted(stages["finetune"], key=lambda stage: not stage["config"]["defense"])
    weights = [stage["files"]["model/adapter_model.safetensors"]["sha256"] for stage in (defended, plain)]
    assert len(set(weights)) == 2


def test_an_estimate_has_their_costs(run, capsys):
    assert cli.main(["estimate", str(run / "mine.yaml"), "--cpu"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"finetune +│ stayclose", said) and re.search(r"repair +│ fade +.*│ none ", said)


def test_a_gate_decides_on_it(run, capsys):
    """Eight prompts cannot show that a model is safe: it fails, or cannot tell."""
    code = cli.main(["gate", str(run / "out"), "--max-harmful-score", "0.1"])
    assert code in (1, 2) and CELL in capsys.readouterr().out.replace("\n", "")


def test_the_page_calls_them_by_name(run):
    page = (run / "out" / "report.html").read_text(encoding="utf-8")
    assert "StayClose" in page and "Fade" in page and "outside/hs-1" in page and "repeated" in page


def test_the_model_card_cites_them(run):
    assert cli.main(["export", str(run / "out"), "--cell", CELL, "--adapter", "--out", str(run / "model")]) == 0
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "@inproceedings{l2sp," in card and "@inproceedings{wiseft," in card and "@inproceedings{fewshot," in card
    assert "outside/hs-1" in card and "first-word" in card and "stayclose" in card


def test_a_dry_run_tells_what_it_would_do(run, capsys):
    assert cli.main(["run", str(run / "mine.yaml"), "--dry-run"]) == 0
    assert "finetune stayclose repeated" in capsys.readouterr().out


def test_the_answers_can_be_judged_anew(run, capsys):
    assert cli.main(["judge", str(run / "out"), "--judge", "coherence"]) == 0
    assert "first-word" in capsys.readouterr().out
