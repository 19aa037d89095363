"""`evaluate.precision`: the finished models are asked in 8 and 4 bit too."""

import json

import pytest
import torch

from mithridate import run
from mithridate.errors import InputError
from mithridate.experiment.config import canonical, load_cells, load_experiment, with_defaults
from mithridate.generation import hf
from mithridate.pipeline.assembly import content_digest
from mithridate.pipeline.cell_export import export_cell
from mithridate.pipeline.experiments import stages_of
from mithridate.pipeline.generators import open_generator
from mithridate.report.words import labels
from tests.pipeline.small import experiment, stages, write_inputs
from tests.tiny import save_tiny, tiny_llama

pytest.importorskip("bitsandbytes")
import bitsandbytes as bnb


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    save_tiny(folder / "wide", hidden_size=64, intermediate_size=128, initializer_range=0.1)
    return folder


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def precise(inputs, precision, **changes):
    return experiment(inputs, model=str(inputs / "wide"), evaluate={"precision": precision, "limit": 2}, **changes)


def test_every_model_is_asked_in_each_precision_and_compared_within_it(inputs, tmp_path, store, monkeypatch):
    asked, original = [], hf.Transformers.generate

    def generate(self, *args, **kwargs):
        linear = next(module for name, module in self.model.named_modules() if name.endswith("layers.0.mlp.up_proj"))
        asked.append((type(linear), self.digest))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(hf.Transformers, "generate", generate)
    variants = [{}, {"finetune.defense": {"lisa": {"align_steps": 1, "finetune_steps": 1}}}]
    raw = precise(inputs, ["full", "nf4"], variants=variants)
    done = run(raw, out=tmp_path / "out", until="evaluate", progress=False)
    cells = {cell["id"]: cell for cell in done.results["cells"]}
    assert len(stages(store, "finetune")) == 2  # trained once, whatever it is asked in
    by = {}
    for cell in cells.values():
        by.setdefault(cell["swept"]["evaluate.precision"], []).append(cell)
    assert list(by) == ["full", "nf4"]
    assert [[cell["role"] for cell in some] for some in by.values()] == [["aligned", "undefended", "defended"]] * 2
    for name, (aligned, undefended, defended) in by.items():
        assert defended["reference"] == undefended["id"] and defended["aligned"] == aligned["id"]
        assert name == "full" or all(f"-{name}-s0" in cell["id"] for cell in (aligned, undefended, defended))
        assert defended["weights_digest"] == by["full"][2]["weights_digest"]
    kinds = {kind: {content for known, content in asked if known is kind} for kind, _ in asked}
    assert set(kinds) == {torch.nn.Linear, bnb.nn.Linear4bit}
    assert all(len(contents) == 3 for contents in kinds.values())
    assert not set.intersection(*kinds.values())  # answers kept by content are not taken for another precision's
    keys = [json.loads((store / name / "stage.json").read_text())["config"] for name in stages(store, "evaluate")]
    assert sorted(config.get("precision", "") for config in keys) == [""] * 3 + ["nf4"] * 3
    names = {cell: label.full for cell, label in labels(list(cells.values())).items()}
    assert len(set(names.values())) == len(cells)
    assert all(f"precision {name}" in names[cell["id"]] for name, some in by.items() for cell in some)
    assert not list((store / "work").glob("quantised-*"))
    with pytest.raises(InputError, match="was measured in nf4, and models are exported in full"):
        export_cell(tmp_path / "out", by["nf4"][2]["id"], tmp_path / "made")


def test_eight_bits_hold_the_rounded_weights(inputs, store):
    made = with_defaults(load_experiment(precise(inputs, "int8", align="none", finetune="none")))
    [chain] = stages_of([made], inputs, "experiment", False)
    generator = open_generator(chain, "align")
    plain = tiny_llama(hidden_size=64, intermediate_size=128, initializer_range=0.1)
    assert generator.digest not in (None, content_digest(chain, "align"))
    for name, module in generator.model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            assert isinstance(module, bnb.nn.Linear8bitLt)
            weight = plain.get_submodule(name).weight
            scale = weight.abs().amax(dim=1, keepdim=True)
            back = module.weight.data.float() * scale / 127
            assert (back - weight).abs().max() > 0 and ((back - weight).abs() <= scale / 127).all()


def test_the_field_is_no_part_of_files_that_ask_in_full(inputs):
    plain = canonical(load_experiment(experiment(inputs)))
    assert "precision" not in plain["evaluate"]
    assert canonical(load_experiment(experiment(inputs, evaluate__precision="full"))) == plain
    _, cells = load_cells(experiment(inputs, evaluate__precision=["full", "nf4"], sweep={"seed": [0, 1]}))
    assert [(cell.evaluate.precision, cell.seed) for cell in cells] == [
        (["full"], 0),
        (["full"], 1),
        (["nf4"], 0),
        (["nf4"], 1),
    ]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"evaluate__precision": ["full", "int4"]}, "evaluate.precision"),
        ({"evaluate__precision": []}, "one or several different precisions"),
        ({"evaluate__precision": ["nf4", "nf4"]}, "one or several different precisions"),
        ({"evaluate__precision": "nf4", "evaluate__generator": "vllm"}, "Set evaluate.generator: transformers"),
        ({"evaluate__precision": "nf4", "quantization": {"load_in_8bit": True}}, "is not quantised once more"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(inputs, changes, error):
    with pytest.raises(InputError, match=error):
        load_cells(experiment(inputs, **changes))
