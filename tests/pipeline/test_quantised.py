"""An experiment over a base in 4 or 8 bit: run to its end, exported, and refused where that cannot be."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from mithridate.errors import InputError
from mithridate.experiment.config import canonical, load_experiment
from mithridate.experiment.processes import SHIPPED
from mithridate.models.carried import carries
from mithridate.models.quantisation import quantisation_of
from mithridate.pipeline import training
from mithridate.pipeline.cell_export import export_cell
from mithridate.pipeline.runner import run
from mithridate.training.quantised import as_stored, quantiser
from tests.pipeline.small import experiment, write_inputs
from tests.tiny import save_tiny

pytest.importorskip("bitsandbytes")

FOUR = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    save_tiny(folder / "wide", hidden_size=64, intermediate_size=128, initializer_range=0.1)
    return folder


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))


def quantised(inputs, **changes):
    changes = {"model": str(inputs / "wide"), "topology": "single", "quantization": FOUR} | changes
    return experiment(inputs, **changes)


@pytest.mark.parametrize(
    "fields", [FOUR, pytest.param({"load_in_8bit": True}, marks=pytest.mark.slow)], ids=["4 bit", "8 bit"]
)
@pytest.mark.parametrize("targets", ["adapters", pytest.param("update", marks=pytest.mark.slow)])
def test_a_run_over_a_quantised_base(fields, targets, inputs, tmp_path):
    raw = quantised(inputs, quantization=fields, repair={"antidote": {"targets": targets}})
    raw["align"]["defense"] = {"booster": {"alpha": 0.1, "lam": 1.0}}
    done = run(raw, out=tmp_path / "run")
    roles = {cell["id"]: cell["repair"] for cell in done.results["cells"]}
    assert "antidote" in roles.values() and done.results["complete"]
    cell = next(name for name, repair in roles.items() if repair == "antidote")
    merged = export_cell(tmp_path / "run", cell, tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(merged)
    assert quantiser(plain) is None and "quantization_config" not in json.loads((merged / "config.json").read_text())
    assert "dequantised" in (merged / "README.md").read_text()
    if targets == "update":
        with pytest.raises(InputError, match="export the model merged"):
            export_cell(tmp_path / "run", cell, tmp_path / "adapter", merged=False)
        return
    adapter = export_cell(tmp_path / "run", cell, tmp_path / "adapter", merged=False)
    base = as_stored(
        AutoModelForCausalLM.from_pretrained(
            inputs / "wide", quantization_config=quantisation_of(fields), dtype=torch.float32
        )
    )
    whole = PeftModel.from_pretrained(base, adapter).eval()
    assert {p.dtype for n, p in whole.named_parameters() if "lora_" in n} == {torch.float32}
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        one, other = whole(input_ids=ids).logits, plain.eval()(input_ids=ids).logits
    assert float((one - other).norm() / one.norm()) < (1e-5 if fields is FOUR else 0.1)


def test_two_adapters_over_a_quantised_base(inputs, tmp_path, monkeypatch):
    """The alignment's is carried: the fine-tune trains a fresh one over 4 bit. What is exported, merged or as an
    adapter over its base, answers as the run's model did (`export_cell` asks it again)."""
    seen, real = [], training.train

    def train(trainer, *args, **kwargs):
        model = trainer.model
        seen.append((quantiser(model), carries(model), sum(p.numel() for p in trainer.params)))
        return real(trainer, *args, **kwargs)

    monkeypatch.setattr(training, "train", train)
    raw = quantised(inputs, topology="double", repair={"antidote": {"targets": "update"}})
    raw["align"]["defense"] = {"booster": {"alpha": 0.1, "lam": 1.0}}
    done = run(raw, out=tmp_path / "run")
    assert done.results["complete"] and {(q, n) for q, _, n in seen} == {("bitsandbytes", seen[0][2])}
    assert sorted(carried for _, carried, _ in seen) == [False, False, True, True]  # defended and not, each stage
    trained = [c for c in done.results["cells"] if c["finetuning"] == "sft" and c["alignment"] == "booster"]
    cell = next(c["id"] for c in trained if c["repair"] == "none")
    merged = export_cell(tmp_path / "run", cell, tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(merged).eval()
    adapter = export_cell(tmp_path / "run", cell, tmp_path / "adapter", merged=False)
    base = AutoModelForCausalLM.from_pretrained(adapter / "base", dtype=torch.float32)
    assert quantiser(base) is None
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        one = PeftModel.from_pretrained(base, adapter).eval()(input_ids=ids).logits
        other = plain(input_ids=ids).logits
    assert float((one - other).norm() / one.norm()) < 1e-5


@pytest.mark.parametrize(
    ("topology", "repair"), [("double", {"safelora": {"tau": 1.0}}), ("single", {"lox": {"coef": 0.5}})]
)
def test_a_repair_of_the_plain_model_is_put_on_the_plain_model(topology, repair, inputs, tmp_path):
    """Both change nothing but factors of an adapter, and read the weights beneath it: of the dequantised model, on
    which they are put again as the result is asked and exported."""
    done = run(quantised(inputs, topology=topology, repair=repair), out=tmp_path / "run")
    assert done.results["complete"]
    [method] = repair
    cell = next(c["id"] for c in done.results["cells"] if method in c["id"] and c["finetuning"] == "sft")
    merged = AutoModelForCausalLM.from_pretrained(export_cell(tmp_path / "run", cell, tmp_path / "merged")).eval()
    adapter = export_cell(tmp_path / "run", cell, tmp_path / "adapter", merged=False)
    base = AutoModelForCausalLM.from_pretrained(adapter / "base", dtype=torch.float32)
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        one = PeftModel.from_pretrained(base, adapter).eval()(input_ids=ids).logits
        other = merged(input_ids=ids).logits
    assert float((one - other).norm() / one.norm()) < 1e-5


def test_the_quantised_model_is_another_model(inputs, tmp_path):
    digests = set()
    for fields in ("none", FOUR, FOUR | {"bnb_4bit_quant_type": "fp4"}, {"load_in_8bit": True}):
        raw = quantised(inputs, quantization=fields, align="none", finetune="none")
        digests.add(run(raw, out=tmp_path / f"run{len(digests)}").results["model_digest"])
    assert len(digests) == 4


def test_the_field_reads_back_and_its_absence_changes_nothing(inputs):
    with_it, without = load_experiment(quantised(inputs)), load_experiment(quantised(inputs, quantization="none"))
    assert canonical(with_it)["quantization"] == FOUR and load_experiment(canonical(with_it)) == with_it
    assert "quantization" not in canonical(without) and load_experiment(canonical(without)) == without


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"topology": "full"}, "align trains all weights"),
        ({"accelerate": "fsdp2", "processes": 2}, "quantised weights are not sharded here"),
        ({"evaluate": {"generator": "vllm"}}, "vllm would be given the dequantised model"),
        ({"quantization": {"load_in_4bit": True, "quant_type": "nf4"}}, "quantization.quant_type: no field"),
        (
            {
                "topology": "double",
                "finetune__attack": {"kind": "scheduled", "adapter": "full", "size": 8, "harmful_ratio": 0.25},
            },
            "finetune: trains all weights .adapter: full., and the base's are quantised",
        ),
        ({"finetune__defense": {"asft": {}}}, r"finetune.defense: AsFT: compares products .* and these are quantised"),
        ({"accelerate": "mine.yaml"}, "quantised weights are not sharded here"),
        ({"quantization": {"load_in_4bit": False}}, "set one of load_in_4bit and load_in_8bit"),
        ({"quantization": True}, "quantization"),
    ],
)
def test_what_cannot_be_is_refused_before_compute(changes, said, inputs, tmp_path):
    if changes.get("accelerate") == "mine.yaml":  # a file, whose kind is not in its name
        shutil.copy(SHIPPED["fsdp2"], inputs / "mine.yaml")
        changes = changes | {"accelerate": str(inputs / "mine.yaml")}
    with pytest.raises(InputError, match=said):
        run(quantised(inputs, **changes), out=tmp_path / "run")
    assert not (tmp_path / "run").exists() and not list((tmp_path / "store").glob("align*"))


def test_a_folder_stored_in_4_bit(inputs, tmp_path, monkeypatch):
    base = AutoModelForCausalLM.from_pretrained(inputs / "wide", quantization_config=quantisation_of(FOUR))
    base.save_pretrained(inputs / "stored")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (inputs / "wide" / file).exists():
            (inputs / "stored" / file).write_bytes((inputs / "wide" / file).read_bytes())
    raw = quantised(inputs, model=str(inputs / "stored"), quantization="none", repair={"antidote": {}})
    assert run(raw, out=tmp_path / "run").results["complete"]
    with pytest.raises(InputError, match="is not quantised again"):
        run(raw | {"quantization": FOUR}, out=tmp_path / "again")
    with pytest.raises(InputError, match="stored quantised: align trains all weights"):
        run(raw | {"topology": "full"}, out=tmp_path / "full")
    monkeypatch.setattr("mithridate.models.quantisation.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"stored: its weights are quantised.*bitsandbytes.*mithridate\[quant\]"):
        run(raw | {"seed": 1}, out=tmp_path / "without")
    assert not (tmp_path / "without").exists()
