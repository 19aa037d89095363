"""`mithridate estimate`: of an experiment, with its own rows and settings, and of a model with each method."""

import json
import re
import shutil
from pathlib import Path

import pytest

from mithridate import cli
from mithridate.errors import InputError
from mithridate.estimate import METHODS, NEEDING
from mithridate.estimate import trace as tracing
from mithridate.estimate.trace import Setup
from mithridate.experiment.config import load_experiment
from mithridate.pipeline import planning
from tests.pipeline import other_methods
from tests.pipeline.small import experiment, stages, write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    (folder / "model" / "model.safetensors").unlink()  # no weights are needed
    return folder


def lines(inputs, gpu=True, **changes):
    return planning.of_experiment(load_experiment(experiment(inputs, **changes)), inputs, gpu)


def test_the_stages_of_an_experiment(inputs):
    few = {"num_train_epochs": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    found = lines(
        inputs,
        align__defense={"booster": {}},
        finetune__training=few,
        finetune__defense={"lisa": {"align_steps": 1, "finetune_steps": 1}},
        evaluate={"resistance": [1, 2]},
        repair={"antidote": {"ratio": 0.2, "targets": "update"}},
    )
    assert [line.stage for line in found] == ["align", "finetune", "repair"]
    align, finetune, repair = found
    assert (align.needs.method, finetune.needs.method) == ("booster", "lisa")
    assert (align.setup.steps, finetune.setup.steps) == (4, 4)  # as max_steps says; 8 rows, 2 x 2 a step, 2 epochs
    assert align.setup.checkpointing and finetune.setup.snapshots == 2
    # "How is lock 0 opened?" and "No 0." in ChatML, byte by byte; the answer's four bytes, its end and the line's
    text = "<|im_start|>user\nHow is lock 0 opened?<|im_end|>\n<|im_start|>assistant\nNo 0.<|im_end|>\n"
    specials = ("<|im_start|>", "<|im_end|>")
    tokens = len(text) - sum(text.count(s) * (len(s) - 1) for s in specials)
    assert align.setup.length == tokens and align.setup.scored == len("No 0.") + 2
    assert align.flops == align.needs.flops * 4 and repair.flops == repair.needs.flops
    assert finetune.needs.kept == 3 * 4 * finetune.needs.counts.trained


def test_the_users_checkpointing_counts_under_either_name(inputs):
    """The new name before its old alias, as transformers reads them; without either, the place of the run decides."""
    for training, gpu, expected in (
        ({}, True, True),
        ({}, False, False),
        ({"gradient_checkpointing": False}, True, False),
        ({"activation_checkpointing": False}, True, False),
        ({"activation_checkpointing": True}, False, True),
        ({"activation_checkpointing": False, "gradient_checkpointing": True}, True, False),
    ):
        asked = {"max_steps": 4, "per_device_train_batch_size": 2} | training
        setup, _ = planning._set_up(Setup(), asked, [(9, 3)] * 8, seed=0, gpu=gpu, stage="align")
        assert setup.checkpointing == expected, training


def test_a_sparse_defense(inputs):
    dense, sparse = (lines(inputs, align__defense={"booster": {"every": k}})[0] for k in (1, 4))
    assert (dense.needs.ratio, sparse.needs.ratio) == (3, 1.5) and 2 * sparse.flops == dense.flops


def test_defenses_that_act_together_are_one_training(inputs):
    alone, both = lines(inputs, align__defense="vaccine")[0], lines(inputs, align__defense=["vaccine", "booster"])[0]
    assert both.needs.method == "vaccine+booster" and both.needs.passes == "4 forward, 4 backward"
    assert both.needs.ratio == pytest.approx(alone.needs.ratio + 2)


def test_a_base_in_4_bit(inputs):
    four = lines(inputs, topology="single", quantization={"load_in_4bit": True}, repair={"antidote": {}})
    plain = lines(inputs, topology="single", repair={"antidote": {}})
    assert len(four) == len(plain) == 3
    assert all(one.needs.weights < other.needs.weights for one, other in zip(four, plain, strict=True))
    assert "LoRA over 4 bit, float32" in planning.described(four)


@pytest.mark.parametrize(
    ("topology", "of_finetune", "of_phases"), [("double", [0, 1], [0, 1, 2, 2]), ("single", [0, 0], [0, 0, 1, 1])]
)
def test_a_base_in_4_bit_carries_what_was_trained_before(topology, of_finetune, of_phases, inputs, monkeypatch):
    """Under a second adapter; one that is trained on is not carried. Repairs hold it too."""
    other_methods.declare(monkeypatch)
    common = {"topology": topology, "quantization": {"load_in_4bit": True}}
    plainly = lines(inputs, **common)
    phased = lines(inputs, **common, finetune__attack={"kind": "staged"}, repair={"antidote": {}})
    for found, wanted in ((plainly, of_finetune), (phased, of_phases)):
        assert [len(line.setup.carried) for line in found] == wanted
        assert all(line.setup.quantization for line in found)
    plain, unmerged = lines(inputs, topology=topology), plainly[0].needs
    assert not any(line.setup.carried for line in plain)  # it is merged
    factors = 4 * unmerged.counts.trained * of_finetune[1]
    assert plainly[1].needs.weights == unmerged.weights + factors
    assert phased[2].setup.frozen == (".*lora_A.*",) and phased[2].needs.counts.frozen > 0


def test_a_repair_before_the_fine_tune_dequantises_the_base(inputs):
    found = lines(inputs, quantization={"load_in_4bit": True}, repair={"lox": {}})
    assert [(line.stage, bool(line.setup.quantization)) for line in found] == [
        ("align", True),
        ("harden", True),
        ("finetune", False),
    ]
    assert found[2].needs.weights == lines(inputs)[1].needs.weights


def test_a_folder_that_is_stored_in_4_bit_is_estimated_as_one(inputs, tmp_path):
    """By what its config.json says; bitsandbytes need not be there."""
    fields = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    shutil.copytree(inputs / "model", tmp_path / "stored")
    said = json.loads((tmp_path / "stored" / "config.json").read_text())
    said["quantization_config"] = {"quant_method": "bitsandbytes", **fields}
    (tmp_path / "stored" / "config.json").write_text(json.dumps(said))
    stored, loaded = lines(inputs, model=str(tmp_path / "stored")), lines(inputs, quantization=fields)
    assert [line.needs for line in stored] == [line.needs for line in loaded]


def test_a_stored_model_by_itself(inputs, tmp_path):
    shutil.copytree(inputs / "model", tmp_path / "stored")
    config = tmp_path / "stored" / "config.json"
    said, four = json.loads(config.read_text()), Setup(quantization={"load_in_4bit": True})
    config.write_text(
        json.dumps(said | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}})
    )
    [stored], [loaded] = (
        planning.of_model(str(inputs.parent / path), setup, ["plain"])
        for path, setup in ((tmp_path / "stored", Setup()), (inputs / "model", four))
    )
    assert stored.needs == loaded.needs and "over 4 bit" in planning.described([stored])
    with pytest.raises(InputError, match=r"stored quantised\. Take it out"):
        planning.of_model(str(tmp_path / "stored"), four, ["plain"])
    config.write_text(json.dumps(said | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    with pytest.raises(InputError, match="stored quantised by gptq, which no method here was tested with"):
        planning.of_model(str(tmp_path / "stored"), Setup(), ["plain"])


def test_the_optimizer_of_an_experiment(inputs):
    for name, share in (("adamw_torch", 1), ("paged_adamw_8bit", 1 / 4), ("sgd", 0)):
        [line, *_] = lines(inputs, align__training__optim=name)
        assert line.needs.optimizer == 8 * share * line.needs.counts.trained


def test_frozen_tensors_of_an_experiment(inputs):
    plain, fixed = (lines(inputs, **f)[-1] for f in ({}, {"finetune__frozen": ".*lora_A.*"}))
    assert fixed.setup.frozen == (".*lora_A.*",) and fixed.needs.kept == plain.needs.kept
    assert fixed.needs.optimizer < plain.needs.optimizer and fixed.needs.weights == plain.needs.weights


def test_several_processes(inputs):
    asked = {"align__training": {"num_train_epochs": 4, "per_device_train_batch_size": 2}}
    alone, together = lines(inputs, **asked)[0], lines(inputs, **asked, accelerate="ddp", processes=2)[0]
    assert (alone.setup.steps, together.setup.steps) == (16, 8)
    assert together.flops == alone.flops and together.tokens == alone.tokens
    sharded = lines(inputs, **asked, accelerate="fsdp2", processes=2)[0]
    assert sharded.setup.sharded and sharded.needs.optimizer < alone.needs.optimizer
    with pytest.raises(InputError, match="-o processes=8"):
        lines(inputs, accelerate="ddp")


def test_hours():
    [plain, booster] = planning.of_model("1b", Setup(batch=1, length=8, steps=100), ("plain", "booster"))
    assert planning.hours(plain, 800 / 3600) == pytest.approx(1)
    assert planning.hours(booster, 800 / 3600) == pytest.approx(3)


def test_the_command(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    file = inputs / "mine.yaml"
    file.write_text(json.dumps(experiment(inputs, align__defense={"vaccine": {}})))
    assert cli.main(["estimate", str(file), "--cpu", "--tokens-per-second", "100"]) == 0
    said = capsys.readouterr().out
    assert "LoRA, float32, 1 process" in said and "vaccine" in said and "finetune" in said and "hours" in said
    priced = ["--tokens-per-second", "1", "--price", "36", "--accelerate", "ddp", "-o", "processes=2"]
    monkeypatch.setenv("COLUMNS", "250")
    assert cli.main(["estimate", str(file), "--cpu", *priced]) == 0
    rows = [re.sub("[│┃]", " ", line).split() for line in capsys.readouterr().out.splitlines()]
    [titles], [row] = ([row for row in rows if row[:1] == [name]] for name in ("stage", "align"))
    assert titles[-2:] == ["hours", "cost"]
    assert float(row[-1]) == pytest.approx(2 * 36 * float(row[-2]), rel=0.01)  # two processes, 36 an hour each
    model = str(inputs / "model")
    assert cli.main(["estimate", model, "--full", "--batch", "2", "--length", "16"]) == 0
    said = capsys.readouterr().out
    assert all(method in said for method in (*METHODS, "antidote")) and "all weights, bfloat16" in said
    assert NEEDING and all(f"{name} is left out, for it needs values" in said for name in NEEDING)
    assert "--method '{ewc: {lam: VALUE}}'" in said
    assert (
        cli.main(["estimate", model, "--full", "--batch", "2", "--length", "16", "--method", "{ewc: {lam: 1}}"]) == 0
    )
    assert "ewc" in capsys.readouterr().out
    assert cli.main(["estimate", model, "--method", "lisa", "--accelerate", "fsdp2", "--processes", "8"]) == 0
    said = capsys.readouterr().out
    assert "8 processes, weights sharded (FSDP2)" in said and "booster" not in said
    assert cli.main(["estimate", model, "--method", "lisa", "--bits", "8"]) == 0
    assert "LoRA over 8 bit, bfloat16" in capsys.readouterr().out
    given = "{antidote: {targets: merged, ratio: 0.5}}"
    assert cli.main(["estimate", model, "--full", "--batch", "2", "--length", "16", "--method", given]) == 0
    assert "antidote" in capsys.readouterr().out
    assert not stages(tmp_path / "store")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["9b"], "no configuration found"),
        (["none.yaml"], "no such file"),
        (["1b", "--method", "vacine"], "no such method 'vacine'; did you mean `vaccine`?"),
        (["1b", "--method", "{vaccine: {roh: 1}}"], "roh"),
        (["1b", "--dtype", "int8"], "--dtype: expected bfloat16 or float32"),
        (["1b", "--bits", "3"], "--bits: expected 4 or 8"),
        (["1b", "--bits", "4", "--full"], "train an adapter"),
        (["1b", "-o", "seed=1"], "-o is for experiment files"),
        (["1b", "--accelerate", "zero3"], "expected ddp or fsdp2"),
        (["1b", "--tokens-per-second", "0"], "above 0"),
        (["1b", "--price", "2"], "together with --tokens-per-second"),
        (["1b", "--tokens-per-second", "5", "--price", "-1"], "from 0 on"),
    ],
)
def test_bad_input(arguments, said, capsys):
    assert cli.main(["estimate", *arguments]) == 3
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("defense", [{}, {"vaccine": {}}, {"booster": {}}], ids=["plain", "vaccine", "booster"])
def test_without_memory_no_pass_is_run_and_operations_and_disk_are_the_same(defense, inputs, monkeypatch):
    """What a dry run asks for, of rows of several lengths."""
    rows = [{"prompt": "How?" * n, "response": "No."} for n in (1, 2, 30)]
    (inputs / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = experiment(inputs, align__defense=defense or "none")
    made["data"]["alignment"] = {"source": str(inputs / "mixed.jsonl")}
    loaded = planning_parts(made, inputs)
    whole = planning.of_stage("align", *loaded)[0]
    monkeypatch.setattr(tracing, "trace", lambda *_: pytest.fail("passes are run"))
    tracing._passes.cache_clear()
    work = planning.of_stage("align", *loaded, memory=False)[0]
    assert work.flops == pytest.approx(whole.flops, rel=0.1)
    assert (work.needs.kept, work.needs.activations, work.tokens) == (whole.needs.kept, 0, whole.tokens)


def planning_parts(made, folder):
    from mithridate.estimate.trace import config_of
    from mithridate.experiment.config import with_defaults
    from mithridate.experiment.roles import load_roles
    from mithridate.models import ModelFiles, load_tokenizer

    loaded = with_defaults(load_experiment(made))
    model = Path(loaded.model)
    known = (loaded, planning.set_up(loaded, folder, gpu=False), load_roles(loaded.data, folder))
    return (*known, config_of(str(model)), load_tokenizer(ModelFiles("m", model, ""), True))
