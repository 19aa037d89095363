"""The baselines in whole runs: what they ask of the pipeline that other methods do not."""

import json

import pytest
import torch
from safetensors.torch import load_file

from mithridate import run
from mithridate.errors import InputError, UnsupportedSetup
from mithridate.experiment.config import load_experiment, resolve
from mithridate.pipeline.cell_export import export_cell
from mithridate.repairs.delta import Delta
from tests.pipeline.small import experiment, write_inputs

KEY = "model.layers.0.self_attn.q_proj.weight"
SCHEDULED = {"kind": "scheduled", "size": 8, "harmful_ratio": 0.25}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))


def plain(run_folder, cell, out):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(export_cell(run_folder, cell["id"], out)).state_dict()[KEY]


@pytest.mark.slow
def test_every_baseline_of_the_users_run_in_one_sweep(inputs, tmp_path):
    """Epochs of 8 rows in batches of 2 are 4 steps: FewerSteps makes 2 of them, SafetyMix 4 with more rows."""
    defenses = [
        "none",
        {"lowerlr": {"factor": 0.5}},
        {"fewersteps": {"share": 0.5}},
        {"safetymix": {"share": 0.5}},
        {"filter": {}},
        {"kl": {"lam": 0.5}},
        {"ewc": {"lam": 0.5, "fisher_rows": 4}},
        {"ldifs": {"rho": 0.5}},
        {"asft": {"lam": 1.0}},
        {"panacea": {"rho": 0.2, "lam": 0.1}},
        {"safegrad": {"rho": 0.5}},
        {"constrainedsft": {"betas": [0.5, 2.0, 0.1]}},
        {"sbr": {"lam": 2.0, "anchors": 2}},
        {"ptst": {"system": "Answer only what is safe."}},
    ]
    asked = experiment(
        inputs,
        finetune__training={"learning_rate": 0.01, "num_train_epochs": 1, "per_device_train_batch_size": 2},
        sweep={"finetune.defense": defenses},
    )
    finished = run(asked, out=tmp_path / "out", progress=False)
    cells = {cell["finetuning"]: cell for cell in finished.results["cells"] if cell["finetuning"] != "none"}
    assert set(cells) == {"sft", *(next(iter(defense)) for defense in defenses[1:])}
    assert {name: cell["trained"]["steps"] for name, cell in cells.items() if cell["trained"]["steps"] != 4} == {
        "fewersteps": 2
    }
    made = {name: plain(tmp_path / "out", cell, tmp_path / name) for name, cell in cells.items()}
    for name, weights in made.items():
        assert torch.equal(weights, made["sft"]) == (name in ("sft", "ptst")), name
    tested = json.dumps(cells["ptst"])
    assert "Answer only what is safe." in tested and "Answer only" not in json.dumps(cells["sft"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(name in page for name in ("LowerLR", "FewerSteps", "SafetyMix", "Filter", "LDIFS", "EWC", "PTST"))
    assert cells["filter"]["trained"] == {
        **{"rows": 6, "harmful_rows": 0, "steps": 4, "dropped": 0},
        "filtered": {"harmful": 2, "of_harmful": 2, "benign": 0, "of_benign": 6},
    }
    assert all("filtered" not in cell["trained"] for name, cell in cells.items() if name != "filter")
    assert page.count("2 of 2 attack rows, 0 of 6 others") == 1


def test_a_step_that_is_no_longer_made_is_refused_before_anything_is_trained(inputs, tmp_path):
    asked = experiment(inputs, finetune__defense={"fewersteps": {"share": 0.5}}, evaluate={"resistance": [3]})
    with pytest.raises((InputError, UnsupportedSetup), match="resistance: expected steps below 2"):
        run(asked, out=tmp_path / "out", progress=False)


@pytest.mark.parametrize("topology", ["single", "double", pytest.param("full", marks=pytest.mark.slow)])
def test_lox_before_the_users_run_and_wiseft_after_it(inputs, tmp_path, topology):
    from transformers import AutoModelForCausalLM

    asked = experiment(
        inputs,
        topology=topology,
        align__training__max_steps=2,
        finetune__training__max_steps=2,
        repair={"lox": {"coef": 0.5}, "wiseft": {"a": 0.25}},
    )
    finished = run(asked, out=tmp_path / "out", progress=False)
    cells = {cell["id"].rsplit(f"-{topology}", 1)[0]: cell for cell in finished.results["cells"]}
    weights = {name: plain(tmp_path / "out", cell, tmp_path / name) for name, cell in cells.items()}
    base = AutoModelForCausalLM.from_pretrained(inputs / "model").state_dict()[KEY]
    aligned, hard = weights["sft-none-none"], weights["sft+lox-none-none"]
    tuned, mean = weights["sft+lox-sft-none"], weights["sft+lox-sft-wiseft"]
    torch.testing.assert_close(hard, base + 1.5 * (aligned - base), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(mean, 0.25 * hard + 0.75 * tuned, atol=1e-6, rtol=1e-4)
    assert not torch.equal(tuned, hard) and not torch.equal(mean, tuned)


BF16 = {"dtype": "bfloat16", "repair": {"lox": {"coef": 0.5}}, "align__training__max_steps": 2}


@pytest.mark.parametrize("adapter", ["full", pytest.param({"r": 2, "lora_alpha": 4}, marks=pytest.mark.slow)])
def test_where_all_weights_are_trained_lox_is_computed_in_float32_and_measured_in_the_runs_dtype(
    inputs, tmp_path, adapter
):
    """The fine-tune goes on from the alignment's own weights, of which bfloat16 would have lost the small changes."""
    asked = experiment(inputs, topology="full", finetune__adapter=adapter, finetune__training__max_steps=2, **BF16)
    finished = run(asked, out=tmp_path / "out", until="evaluate", progress=False)
    store, base = tmp_path / "store", load_file(inputs / "model" / "model.safetensors")
    [aligned], [hard] = store.glob("align-*/model/model.safetensors"), store.glob("harden-*/model")
    aligned, delta = load_file(aligned), Delta.load(hard)
    for name, change in delta.changes.items():
        torch.testing.assert_close(change.value, aligned[name] + 0.5 * (aligned[name] - base[name]))
    assert delta.changes[KEY].value.dtype == torch.float32
    cells = {cell["id"].rsplit("-full", 1)[0]: cell for cell in finished.results["cells"]}
    measured = plain(tmp_path / "out", cells["sft+lox-none-none"], tmp_path / "hard")
    assert measured.dtype == torch.bfloat16 and torch.equal(measured, delta.changes[KEY].value.bfloat16())


@pytest.mark.parametrize("own", [{"finetune__adapter": "full"}, {"finetune__attack": SCHEDULED | {"adapter": "full"}}])
def test_lox_on_merged_weights_in_bfloat16_before_a_training_of_all_is_refused_first(inputs, tmp_path, own):
    with pytest.raises(InputError, match=r"repair\.lox: changes weights in bfloat16, .* Set dtype: float32"):
        run(experiment(inputs, **BF16, **own), out=tmp_path / "out", progress=False)
    assert not list((tmp_path / "store").glob("align-*"))


@pytest.mark.parametrize("repair", [{"randommask": {"ratio": 0.3}}, {"randomnoise": {"scale": 0.5}}])
def test_the_random_repairs_need_no_calibration(inputs, tmp_path, repair):
    asked = experiment(inputs, align__training__max_steps=2, finetune__training__max_steps=2, repair=repair)
    del asked["data"]["calibration_harmful"]
    finished = run(asked, out=tmp_path / "out", until="evaluate", progress=False)
    assert finished.results["cells"][-1]["repair"] == next(iter(repair))


@pytest.mark.parametrize("topology", ["double", pytest.param("single", marks=pytest.mark.slow)])
def test_the_published_repairs_in_one_sweep(inputs, tmp_path, topology):
    """Each with the models and rows that it declares: RESTA has an unaligned model trained for it."""
    from transformers import AutoModelForCausalLM

    repairs = [
        {"safelora": {"tau": 1.0}},
        {"resta": {"alpha": 0.5}},
        {"resta": {"alpha": 0.5, "dare": 0.5, "placement": "vector"}},
        {"safedelta": {"s": 0.01, "samples": 4}},
    ]
    asked = experiment(
        inputs,
        topology=topology,
        align__training__max_steps=2,
        finetune__training__max_steps=2,
        sweep={"repair": repairs},
    )
    finished = run(asked, out=tmp_path / "out", progress=False)
    cells = [cell for cell in finished.results["cells"] if cell["repair"] != "none"]
    assert [cell["repair"] for cell in cells] == ["safelora", "resta", "resta", "safedelta"]
    made = [plain(tmp_path / "out", cell, tmp_path / str(i)) for i, cell in enumerate(cells)]
    [tuned] = [
        plain(tmp_path / "out", cell, tmp_path / "tuned")
        for cell in finished.results["cells"]
        if cell["finetuning"] == "sft" and cell["repair"] == "none"
    ]
    [before] = [
        plain(tmp_path / "out", cell, tmp_path / "aligned")
        for cell in finished.results["cells"]
        if cell["alignment"] == "sft" and cell["finetuning"] == "none"
    ]
    v = before - AutoModelForCausalLM.from_pretrained(inputs / "model").state_dict()[KEY]
    mapped = before + v @ v.T @ (tuned - before) / v.norm()
    torch.testing.assert_close(made[0], mapped, atol=1e-6, rtol=1e-4)
    assert all(not torch.equal(weight, tuned) for weight in made)
    assert not torch.equal(made[1], made[2])


def test_a_projection_into_an_alignment_that_is_not_there_is_refused_before_anything_is_trained(inputs, tmp_path):
    asked = experiment(inputs, align="none", repair={"safelora": {}})
    with pytest.raises(InputError, match=r"repair.safelora: .* `align` is none"):
        run(asked, out=tmp_path / "out", progress=False)


ANOTHER = {"kind": "scheduled", "size": 8, "harmful_ratio": 0.25}
WIDER = {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"align": "none", "finetune__defense": "asft"},
            r"finetune.defense.asft: takes its directions .* Set `align`",
        ),
        ({"finetune__attack": ANOTHER | {"adapter": {"rank": 2}}}, r"phase 1: adapter.rank: no such field"),
        ({"finetune__attack": ANOTHER | {"adapter": {"use_dora": True}}}, "phase 1: adapter.use_dora: not here: only"),
        ({"finetune__attack": ANOTHER | {"frozen": ["("]}}, r"frozen: '\(' is no regular expression"),
        ({"finetune__defense": "panacea", "evaluate": {"resistance": [1]}}, "evaluate.resistance: panacea changes"),
        ({"repair": {"safedelta": {"s": 0.1}}, "finetune": "none"}, "repair.safedelta: keeps a part of what"),
        ({"repair": "resta"}, "repair.resta.alpha: missing"),
        ({"finetune__attack": {"kind": "noice"}}, "finetune.attack.size: missing"),
        ({"repair": "antidote", "topology": "full"}, r"repair\.antidote\.targets: "),
        ({"repair": "antidote", "finetune__attack": ANOTHER | {"adapter": "full"}}, r"targets: .* or its attack"),
        (
            {"repair": {"antidote": {"targets": "update", "scope": "global"}}, "topology": "full"},
            "repair.antidote.scope: `global` compares scores",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_before_anything_is_trained(inputs, changes, words):
    asked = experiment(inputs, **changes)
    with pytest.raises(InputError, match=words):
        resolve(load_experiment(asked), inputs)


NARROW = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
ONE_LAYER = NARROW | {"layers_to_transform": [0]}
WHERE = r"finetune\.adapter: trains {} layers that the alignment's adapter left as they were \(model.layers.{}"
EIGHT = WHERE.format(8, "0.mlp.down_proj")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"repair": "safelora", "finetune__adapter": WIDER},
            EIGHT + ".* where SafeLoRA",
        ),
        (
            {"finetune__defense": "asft", "finetune__adapter": "full"},
            EIGHT + ".* where AsFT would",
        ),
        (
            {"repair": "safelora", "finetune__attack": ANOTHER | {"adapter": WIDER}},
            r"finetune\.attack: phase 1: adapter: trains 8 layers",
        ),
        (
            {"repair": "safelora", "adapter": ONE_LAYER, "finetune__adapter": NARROW},
            WHERE.format(2, "1.self_attn.q_proj") + ".* the same layers_to_transform",
        ),
        (
            {
                "finetune__defense": "asft",
                "adapter": NARROW | {"target_modules": ".*q_proj"},
                "finetune__adapter": NARROW | {"target_modules": ".*(q|v)_proj"},
            },
            WHERE.format(2, "0.self_attn.v_proj"),
        ),
    ],
)
def test_layers_without_a_direction_are_found_before_anything_is_trained(inputs, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        run(experiment(inputs, **changes), out=tmp_path / "out", progress=False)
    assert not list((tmp_path / "store").glob("align-*"))


@pytest.mark.parametrize(
    "adapter",
    [
        NARROW | {"target_modules": ["self_attn.q_proj"]},
        NARROW | {"target_modules": ".*[01].self_attn.[qv]_proj"},
        ONE_LAYER,
    ],
)
def test_the_same_layers_in_other_words_are_followed(inputs, tmp_path, adapter):
    asked = experiment(inputs, adapter=NARROW, finetune__adapter=adapter, repair={"safelora": {"tau": 1.0}})
    finished = run(asked, out=tmp_path / "out", until="evaluate", progress=False)
    assert finished.results["cells"][-1]["repair"] == "safelora"


def test_the_repaired_adapter_may_be_the_attacks_own(inputs, tmp_path):
    """Under topology: full nothing else is one."""
    attack = ANOTHER | {"adapter": {"r": 2, "lora_alpha": 4}}
    asked = experiment(inputs, topology="full", finetune__attack=attack, repair={"antidote": {"ratio": 0.2}})
    finished = run(asked, out=tmp_path / "out", until="evaluate", progress=False)
    assert finished.results["cells"][-1]["repair"] == "antidote"


OVER_EMBEDDINGS = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "embed_tokens"]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"adapter": OVER_EMBEDDINGS},
            r"adapter\.target_modules: The adapter at \S+ is over Embedding, .* is merged, and it",
        ),
        ({"adapter": OVER_EMBEDDINGS, "topology": "single"}, None),
        (
            {
                "adapter": OVER_EMBEDDINGS,
                "topology": "single",
                "finetune__attack": {"kind": "scheduled", "size": 8, "harmful_ratio": 0.25, "adapter": WIDER},
            },
            r"adapter\.target_modules: The adapter at \S+ is over Embedding, .* is merged, and it",
        ),
    ],
    ids=["double", "single", "single, then another"],
)
def test_an_adapter_that_is_going_to_be_merged_is_one_that_can_be(inputs, tmp_path, changes, said):
    asked = experiment(inputs, repair="none", **changes)
    if said is None:
        assert run(asked, out=tmp_path / "out", progress=False).results["complete"]
        return
    with pytest.raises(InputError, match=said):
        run(asked, out=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"repair": "safelora", "finetune__adapter": WIDER | {"target_modules": ["v_proj"]}},
        {"repair": "safelora", "finetune__adapter": WIDER, "adapter__target_modules": "all-linear"},
        {"repair": {"resta": {"alpha": 0.5}}, "finetune__adapter": WIDER},
        {"repair": "safelora", "topology": "full"},
        {"finetune__defense": {"asft": {"project": False}}, "align": "none"},
        {"evaluate__resistance": [1], "finetune__defense": "safegrad"},
    ],
    ids=str,
)
def test_what_can_be_is_not_refused(inputs, changes):
    resolve(load_experiment(experiment(inputs, **changes)), inputs)
