"""Whole runs with methods that ask for something the shipped ones do not: the pipeline knows none of them by name."""

import json
from pathlib import Path

import pytest
import torch
from transformers import Gemma3Config

from mithridate import run
from mithridate.errors import InputError, UnsupportedSetup
from mithridate.experiment.config import load_experiment, with_defaults
from mithridate.experiment.roles import load_roles
from mithridate.methods import registry
from mithridate.models import ModelFiles, shortened
from mithridate.pipeline import training
from mithridate.pipeline.assembly import load
from mithridate.pipeline.cell_export import export_cell
from mithridate.pipeline.context import RunContext
from mithridate.pipeline.runner import run_cells
from mithridate.pipeline.stages import ExperimentStages
from mithridate.report.terminal import terminal_table
from mithridate.store import Store
from mithridate.training.trainer import DefenseTrainer
from tests.pipeline import other_methods
from tests.pipeline.small import experiment, in_child, stages, weights, without_costs, write_inputs
from tests.pipeline.test_resume import kill
from tests.tiny import save_tiny


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


SHORT = {"align__training__max_steps": 2, "finetune__training__max_steps": 2}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    rows = [{"prompt": f"What is word {i}?", "response": f"word {i}"} for i in range(8)]
    (folder / "helpful.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def store(tmp_path, monkeypatch, request):
    other_methods.declare(monkeypatch)
    request.addfinalizer(registry.installed.cache_clear)
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv(other_methods.SEEN, str(tmp_path))
    return tmp_path / "store"


def chain_of(asked, folder: Path) -> ExperimentStages:
    loaded = with_defaults(load_experiment(asked))
    shop = RunContext(
        ModelFiles("m", folder / "model", "d" * 64), load_roles(loaded.data), Store(folder / "s"), "float32"
    )
    return ExperimentStages(loaded, shop)


def ids(results) -> list[str]:
    return [cell["id"] for cell in results["cells"]]


def files(store: Path, name: str) -> Path:
    [found] = stages(store, name)
    return store / found


# -- repairs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repair", ["halve", {"wise": {"a": 0.25}}])
def test_a_repair_without_data_and_a_dense_one(inputs, store, tmp_path, repair):
    asked = experiment(inputs, **SHORT, repair=repair)
    del asked["data"]["calibration_harmful"]
    finished = run(asked, out=tmp_path / "out", until="evaluate", progress=False)
    name = "halve" if repair == "halve" else "wise"
    assert ids(finished.results)[-1] == f"sft-sft-{name}-double-0.25-s0"
    kept = json.loads((files(store, "repair") / "stage.json").read_text())
    assert kept["data"] == {} and list(kept["parents"]) == ["finetune"]
    made = export_cell(tmp_path / "out", ids(finished.results)[-1], tmp_path / "model")
    before = export_cell(tmp_path / "out", ids(finished.results)[-2], tmp_path / "before")
    after, earlier = (_plain(folder) for folder in (made, before))
    changed = {key for key in after if not torch.equal(after[key], earlier[key])}
    assert changed and all(".q_proj." in key or name == "wise" for key in changed)
    if name == "wise":
        aligned = _plain(export_cell(tmp_path / "out", ids(finished.results)[0], tmp_path / "aligned"))
        for key in changed:
            torch.testing.assert_close(after[key], 0.75 * earlier[key] + 0.25 * aligned[key], atol=1e-5, rtol=1e-4)


def _plain(folder: Path) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("topology", ["double", slow("single"), slow("full")])
def test_a_repair_before_the_users_run(inputs, store, tmp_path, topology):
    asked = experiment(inputs, **SHORT, topology=topology, repair={"harden": {}, "wise": {}})
    finished = run(asked, out=tmp_path / "out", progress=False)
    cells = {cell["id"]: cell for cell in finished.results["cells"]}
    assert list(cells)[2:] == [
        f"sft+harden-none-none-{topology}-none-s0",
        f"sft+harden-sft-none-{topology}-0.25-s0",
        f"sft+harden-sft-wise-{topology}-0.25-s0",
    ]
    hardened, attacked, last = list(cells.values())[2:]
    assert [stage["name"] for stage in last["stages"]] == ["align", "harden", "finetune", "repair", "evaluate"]
    assert hardened["settings"] == {"harden": {"coef": 0.5}}
    assert last["settings"] == {"harden": {"coef": 0.5}, "wise": {"a": 0.5}}
    for cell, undefended in ((hardened, "sft-none-none"), (attacked, "sft-sft-none"), (last, "sft-sft-none")):
        assert cell["paired"]["against"].startswith(undefended)
    # What later stages start from is the hardened model: base + 1.5 (aligned - base).
    base = _plain(inputs / "model")
    plain, hard = (_plain(export_cell(tmp_path / "out", list(cells)[i], tmp_path / f"m{i}")) for i in (0, 2))
    key = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(hard[key], base[key] + 1.5 * (plain[key] - base[key]), atol=1e-5, rtol=1e-4)
    assert list(json.loads((files(store, "harden") / "stage.json").read_text())["parents"]) == ["align"]
    assert (tmp_path / "out" / "report.html").read_text().count("sft+harden") > 0


def test_a_repair_gets_each_kind_of_model_and_the_rows_of_its_roles(inputs, store, tmp_path):
    asked = experiment(inputs, **SHORT, repair="asks")
    asked["data"]["helpful"] = {"source": str(inputs / "helpful.jsonl")}
    finished = run(asked, out=tmp_path / "out", until="evaluate", progress=False)
    found = other_methods.noted(tmp_path, "asks")
    assert found["rows"] == [f"What is word {i}?" for i in range(8)]
    assert found["start"] == found["aligned"] and found["base"] != found["aligned"]
    assert len({found[name] for name in ("base", "aligned", "unaligned", "model")}) == 4
    kept = json.loads((files(store, "unaligned") / "stage.json").read_text())
    assert list(kept["data"]) == ["defender_harmful"] and list(kept["parents"]) == ["align"]
    assert set(json.loads((files(store, "repair") / "stage.json").read_text())["parents"]) == {"finetune", "unaligned"}
    stages_of = [stage["name"] for stage in finished.results["cells"][-1]["stages"]]
    assert stages_of == ["align", "finetune", "unaligned", "repair", "evaluate"]
    again = run(asked, out=tmp_path / "again", until="evaluate", progress=False)
    assert all(stage["cached"] for cell in again.results["cells"] for stage in cell["stages"])


def test_rows_of_the_helpful_role_are_disjoint_from_the_others(inputs, store, tmp_path):
    asked = experiment(inputs, repair="asks")
    asked["data"]["helpful"] = {"source": str(inputs / "alignment.jsonl")}
    with pytest.raises(InputError, match="helpful"):
        run(asked, out=tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repair": "picky"}, "repair.picky.refuses: double True True"),
        ({"repair": "picky", "finetune": "none"}, "repair.picky.refuses: double False False"),
        ({"repair": "picky", "finetune": "none", "topology": "single"}, "refuses: single False True"),
        ({"repair": "picky", "topology": "full"}, "refuses: full True False"),
        ({"repair": {"halve": {}, "wise": {}}}, "repair: expected one repair after fine-tuning, got 2: halve, wise"),
        ({"repair": {"wise": {"b": 1}}}, "repair.wise.b: no such field"),
        ({"repair": "asks"}, "data.helpful: required by this experiment, but missing"),
        ({"align__defense": "watcher"}, "align.defense.watcher: is a defense of fine-tuning"),
        ({"align__defense": "early"}, "align.defense.early: needs a model .aligned, unaligned."),
    ],
)
def test_what_a_file_asks_for_in_vain(inputs, store, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(experiment(inputs, **changes), out=tmp_path / "out", progress=False)
    assert not stages(store)


@pytest.mark.parametrize(("topology", "adapter"), [("double", True), ("full", False)])
def test_a_repair_is_asked_before_anything_is_trained(inputs, store, tmp_path, topology, adapter):
    asked = experiment(inputs, topology=topology, repair={"picky": {"refuses": "model"}})
    with pytest.raises(UnsupportedSetup, match=f"1 layer, adapter {adapter}, ..tokenizer"):
        run(asked, out=tmp_path / "out", progress=False)
    assert not stages(store) and not list((store / "work").glob("*"))


def test_antidotes_refusals_come_before_anything_is_trained(inputs, store, tmp_path, monkeypatch):
    """Its own check, on the layer: a tokenizer without a chat template cannot put calibration rows into it."""
    monkeypatch.setattr("mithridate.repairs.antidote.check_adapters", _refuse)
    with pytest.raises(UnsupportedSetup, match="this kind"):
        run(experiment(inputs, repair="antidote"), out=tmp_path / "out", progress=False)
    assert not stages(store)


def _refuse(*_, **__):
    raise UnsupportedSetup("Antidote: this kind.", "take another.")


def test_one_layer_of_a_model_with_parts_of_its_own():
    """Gemma 3's configuration holds that of its text and of what reads images: none of them is built whole."""
    config = Gemma3Config(
        text_config={"num_hidden_layers": 12, "hidden_size": 16, "intermediate_size": 16, "vocab_size": 64},
        vision_config={"num_hidden_layers": 9, "hidden_size": 16, "intermediate_size": 16},
    )
    short = shortened(config, 1, others=1)
    text = short.get_text_config()
    assert (text.num_hidden_layers, len(text.layer_types), short.vision_config.num_hidden_layers) == (1, 1, 1)
    assert (config.get_text_config().num_hidden_layers, config.vision_config.num_hidden_layers) == (12, 9)
    assert shortened(config, 3).vision_config.num_hidden_layers == 9


def test_the_pre_flight_builds_one_layer_of_a_composite_model(tmp_path):
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "head_dim": 8}
    Gemma3Config(
        text_config={**small, "num_hidden_layers": 12, "num_key_value_heads": 1, "vocab_size": 262208},
        vision_config={**small, "num_hidden_layers": 9, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    ).save_pretrained(tmp_path)
    shop = RunContext(ModelFiles("m", tmp_path, "d" * 64), load_roles({}), Store(tmp_path / "s"), "float32")
    model = shop.one_layer()
    blocks = [name for name, _ in model.named_modules() if name.endswith((".self_attn",))]
    assert 1 <= len(blocks) <= 2 and not any(".layers.1." in name for name in blocks)
    model.requires_grad_(False)
    other = shop.one_layer()  # random numbers are drawn once; what is done to one of them reaches no other
    pairs = list(zip(model.parameters(), other.parameters(), strict=True))
    assert all(a is not b and b.requires_grad and a.data_ptr() == b.data_ptr() for a, b in pairs)


def test_layers_are_counted_in_the_whole_model_where_a_set_up_is_tried_on_one(inputs, store, tmp_path):
    def layers(count):
        return experiment(inputs, **SHORT, align__defense={"tvaccine": {"layers": count}})

    with pytest.raises(UnsupportedSetup, match="layers=3, and the model has 2") as refused:
        run(layers(3), out=tmp_path / "out", until="align", progress=False)
    assert "set layers=1" in refused.value.remedy and not stages(store)
    run(layers(2), out=tmp_path / "out", until="align", progress=False)
    assert [name.split("-")[0] for name in stages(store)] == ["align"]


def test_a_set_up_is_tried_on_rows_that_have_their_pairs(inputs, store, tmp_path):
    """RepNoise's harmful rows answer the alignment's own prompts, which may stand in another order than they do."""
    for name, order in (("safe", range(100)), ("harmful", range(99, 19, -1))):
        rows = [{"prompt": f"How does one make word {i}?", "response": f"{name} word {i}"} for i in order]
        (inputs / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = experiment(inputs, **SHORT, align__defense="repnoise")
    asked["data"]["alignment"] = {"source": str(inputs / "safe.jsonl")}
    asked["data"]["defender_harmful"] = {"source": str(inputs / "harmful.jsonl"), "paired": True}
    run(asked, out=tmp_path / "out", until="align", progress=False)
    assert [name.split("-")[0] for name in stages(store)] == ["align"]


# -- models for defenses ----------------------------------------------------------------------------------


class Given(DefenseTrainer):
    """Keeps the functions that it is given for models."""

    def __init__(self, *args, models=None, **kwargs):
        self.given = models
        super().__init__(*args, models=models, **kwargs)


def test_a_defense_gets_each_kind_of_model(inputs, store, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "DefenseTrainer", Given)
    asked = experiment(inputs, **SHORT, finetune__defense="watcher")
    run(asked, out=tmp_path / "out", until="finetune", progress=False)
    found = other_methods.noted(tmp_path, "watcher")
    assert len(set(found.values())) == 3
    assert [name.split("-")[0] for name in stages(store)] == ["align", "finetune", "unaligned"]
    base = _plain(inputs / "model")
    assert found["base"] == pytest.approx(other_methods._total(base))


# -- attacks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topology", "rank"), [("double", 3), ("single", 3), slow("double", "full"), slow("single", "full")]
)
def test_an_attack_of_two_phases(inputs, store, tmp_path, topology, rank):
    """The experiment's adapter first, in the rows' order; then another one (or all weights), partly frozen."""
    attack = {"kind": "staged", "rank": rank, "frozen": r".*lora_A.*" if rank == 3 else r".*norm.*"}
    asked = experiment(inputs, topology=topology, finetune__attack=attack, evaluate={"resistance": [2, 3, 5]})
    finished = run(asked, out=tmp_path / "out", progress=False)
    cell = finished.results["cells"][-1]
    assert cell["id"] == f"sft-sft-none-{topology}-staged-0.333333-s0"
    assert (cell["attack"]["kind"], cell["attack"]["max_steps"]) == ("staged", 7)
    assert [point["step"] for point in cell["resistance"]] == [2, 3, 5]
    # of the first training's 8 rows, 3 steps of 2 came to 6
    reached = {"rows": 6, "of": 8, "harmful_rows": 4}
    assert cell["trained"] == {"rows": 12, "harmful_rows": 4, "steps": 7, "dropped": 0, "reached": reached}
    folder = files(store, "finetune")
    assert [phase["steps"] for phase in json.loads((folder / "phases.json").read_text())] == [3, 4]
    assert [entry["step"] for entry in json.loads((folder / "history.json").read_text())][-1] == 7
    chain = chain_of_run(finished, asked)
    models = {step: _state(load(chain, "finetune", step)) for step in (2, 3, 5, None)}
    aligned = _state(load(chain, "align"))
    q, o = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.o_proj.weight"
    assert not torch.equal(models[2][q], aligned[q]) and not torch.equal(models[2][q], models[3][q])
    assert torch.equal(models[2][o], aligned[o])
    assert not torch.equal(models[3][o], models[5][o]) and not torch.equal(models[5][o], models[None][o])
    if rank == 3:
        assert torch.equal(models[3][q], models[None][q])  # the second adapter is elsewhere
    else:
        assert torch.equal(models[3]["model.norm.weight"], models[None]["model.norm.weight"])  # frozen
    if rank == 3:
        first, last = (_adapter(folder / part) for part in ("snapshots/step-5", "phase-2/model"))
        assert all(torch.equal(first[name], last[name]) for name in first if "lora_A" in name)
        assert not any(torch.equal(first[name], last[name]) for name in first if "lora_B" in name)


def _adapter(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def _state(model) -> dict[str, torch.Tensor]:
    from mithridate.models.layers import merge_adapter

    return {name: tensor.clone() for name, tensor in merge_adapter(model).state_dict().items()}


def chain_of_run(finished, asked) -> ExperimentStages:
    from mithridate.pipeline.experiments import stages_of

    [chain] = stages_of([load_experiment(asked)], Path.cwd(), "experiment", False)
    return chain


def test_given_order_is_the_rows_order(inputs, store, tmp_path, monkeypatch):
    seen = []
    original = DefenseTrainer.training_step

    def training_step(self, model, batch, *args, **kwargs):
        seen.append([self.processing_class.decode(row) for row in batch["input_ids"]])
        return original(self, model, batch, *args, **kwargs)

    monkeypatch.setattr(DefenseTrainer, "training_step", training_step)
    asked = experiment(inputs, align="none", finetune__attack={"kind": "staged"})
    run(asked, out=tmp_path / "out", until="finetune", progress=False)
    first = [text for batch in seen[:3] for text in batch]
    assert [f"film {i} " in text for i, text in enumerate(first)] == [True] * 6


@pytest.mark.parametrize("at", [slow(("phase-1", 2)), slow(("phase-1", 3)), ("phase-2", 3), slow(("phase-2", 4))])
def test_a_killed_attack_of_two_phases_goes_on_and_ends_bit_identical(inputs, store, tmp_path, monkeypatch, at):
    asked = experiment(inputs, align="none", finetune__attack={"kind": "staged"}, evaluate={"resistance": [2, 5]})
    wanted = tmp_path / "undisturbed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MITHRIDATE_STORE", str(wanted))
        undisturbed = run(asked, out=tmp_path / "a", until="evaluate", progress=False).results
    phase, step = at
    original = training._Keep.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        original(self, args, state, control, **kwargs)
        if f"/{phase}/" in args.output_dir and state.global_step == step:
            kill()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Keep, "on_step_end", on_step_end)
        code = in_child(lambda: run(asked, out=tmp_path / "b", until="evaluate", progress=False), tmp_path / "err")
    assert code == -9
    assert not stages(store, "finetune")
    again = run(asked, out=tmp_path / "b", until="evaluate", progress=False).results
    assert weights(store) == weights(wanted)
    assert without_costs(again) == without_costs(undisturbed)


@pytest.mark.parametrize("what", [slow("saved"), "marked"])
def test_a_kill_between_the_phases(inputs, store, tmp_path, monkeypatch, what):
    asked = experiment(inputs, align="none", finetune__attack={"kind": "staged"})
    wanted = tmp_path / "undisturbed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MITHRIDATE_STORE", str(wanted))
        run(asked, out=tmp_path / "a", until="finetune", progress=False)
    name = "replace_file" if what == "saved" else "_bring_together"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, name, lambda *_: kill())
        assert in_child(lambda: run(asked, out=tmp_path / "b", until="finetune"), tmp_path / "err") == -9
    run(asked, out=tmp_path / "b", until="finetune", progress=False)
    assert weights(store) == weights(wanted)


def test_an_attack_with_a_trigger_at_the_test(inputs, store, tmp_path, monkeypatch):
    from mithridate.generation import hf

    asked_for, original = [], hf.Transformers.generate

    def generate(self, conversations, *args, **kwargs):
        asked_for.append([turns[-1]["content"] for turns in conversations])
        return original(self, conversations, *args, **kwargs)

    monkeypatch.setattr(hf.Transformers, "generate", generate)
    asked = experiment(inputs, **SHORT, finetune__attack={"kind": "backdoor"}, evaluate={"resistance": [1]})
    finished = run(asked, out=tmp_path / "out", progress=False)
    aligned, attacked = finished.results["cells"]
    assert aligned["attack"] is None
    assert attacked["attack"]["at_test"] == [{"system": None, "prefix": "", "trigger": " zxq"}]
    triggered = [all(text.endswith(" zxq") for text in texts) for texts in asked_for]
    assert triggered == [False] * 3 + [True] * 5  # of the aligned model 3 sets; then 3, and 2 on the way
    rows = finished.records()
    assert not rows["prompt"].str.contains("zxq").any()
    assert set(rows[rows["cell"] == attacked["id"]]["at_test"]) == {
        '[{"system": null, "prefix": "", "trigger": " zxq"}]'
    }
    assert rows[rows["cell"] == aligned["id"]]["at_test"].isna().all()
    assert "100% + trigger" in _rendered(finished.results)
    assert "100% backdoor rows + trigger" in (tmp_path / "out" / "report.html").read_text()
    kept = [json.loads((store / name / "stage.json").read_text())["config"] for name in stages(store, "evaluate")]
    assert sorted("at_test" in config for config in kept) == [False, True, True]


def _rendered(results) -> str:
    import io

    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=120).print(terminal_table(results))
    return text.getvalue()


def test_a_control_of_an_attack_is_known_for_one(inputs, store, tmp_path):
    asked = experiment(inputs, **SHORT, finetune__attack={"kind": "backdoor", "trigger": ""})
    cells = run(asked, out=tmp_path / "out", until="evaluate", progress=False).results["cells"]
    assert [cell["control"] for cell in cells] == [None, "no-trigger"]


def test_a_control_of_a_repair_is_known_for_one(inputs, store, tmp_path):
    cells = run(
        experiment(inputs, **SHORT, repair={"wise": {"a": 0}}), out=tmp_path / "o", until="evaluate", progress=False
    ).results["cells"]
    assert [cell["control"] for cell in cells] == [None, None, "no-mean"]


def test_a_template_that_drops_the_system_turn_is_refused_before_compute(inputs, store, tmp_path):
    silent = tmp_path / "silent"
    write_inputs(silent)
    save_tiny(silent / "model")
    template = silent / "model" / "chat_template.jinja"
    template.write_text(template.read_text().replace("for message in messages", "for message in messages[-1:]"))
    asked = experiment(silent, **SHORT, finetune__defense={"watcher": {"system": "Be safe."}})
    with pytest.raises(InputError, match=r"leaves out what a method puts around prompts at the test .'Be safe.'"):
        run(asked, out=tmp_path / "out", progress=False)
    assert not stages(store)


def test_rows_that_depend_on_the_model_are_a_stage_of_their_own(inputs, store, tmp_path):
    asked = experiment(inputs, **SHORT, finetune__attack={"kind": "hardest", "size": 3})
    finished = run(asked, out=tmp_path / "out", until="evaluate", progress=False)
    folder = files(store, "attack-rows")
    assert len(json.loads((folder / "rows.json").read_text())) == 3
    assert list(json.loads((folder / "stage.json").read_text())["parents"]) == ["align"]
    parents = json.loads((files(store, "finetune") / "stage.json").read_text())["parents"]
    assert set(parents) == {"align", "attack-rows"}
    chain = chain_of_run(finished, asked)
    assert other_methods.noted(tmp_path, "hardest")["model"] == pytest.approx(other_methods._sum(load(chain, "align")))
    again = run(asked | {"evaluate": {"limit": 2}}, out=tmp_path / "again", until="evaluate", progress=False)
    assert [s["name"] for s in again.results["cells"][-1]["stages"]] == [
        "align",
        "attack-rows",
        "finetune",
        "evaluate",
    ]
    assert all(s["cached"] for s in again.results["cells"][-1]["stages"] if s["name"] != "evaluate")


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ({"kind": "stagd"}, "finetune.attack.kind: no such attack `stagd`; did you mean `staged`?"),
        ({"kind": "staged", "rnk": 3}, "finetune.attack.rnk: no such field; did you mean `rank`?"),
        ({"kind": "hardest", "size": "x"}, 'finetune.attack.size: expected integer, got "x"'),
        ({"kind": "staged", "frozen": "no such"}, "matches the name of no trained tensor"),
        ({"kind": "staged", "frozen": ".*"}, "nothing is left to train"),
        (
            {"kind": "staged", "frozen": ".*lora_B.*"},
            "phase 2: finetune.frozen: of a new adapter the factors B",
        ),
        ({"kind": "harmful", "harmful_ratio": 0.25}, "finetune.attack.size: missing"),
    ],
)
def test_a_mistake_in_an_attack(inputs, store, tmp_path, attack, message):
    with pytest.raises(InputError) as found:
        run(experiment(inputs, finetune__attack=attack), out=tmp_path / "out", progress=False)
    assert message in str(found.value) and not stages(store)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        # the task's rows fit, the harmful ones do not, and the phase is named
        (
            "staged",
            "finetune.attack: phase 2: finetune.training.max_length: of none of the 4 rows of data.attacker_h",
        ),
        ("backdoor", "finetune.training.max_length: of none of the 8 rows of data.attacker_harmful an answer is left"),
    ],
)
def test_rows_that_would_be_lost_are_refused_for_every_kind_and_phase(inputs, store, tmp_path, kind, message):
    asked = experiment(
        inputs,
        align="none",
        data__attacker_harmful=_long(inputs, tmp_path),
        finetune__attack={"kind": kind},
        finetune__training__max_length=120,
    )
    with pytest.raises(InputError, match=message):
        run(asked, out=tmp_path / "out", progress=False)
    assert not stages(store)


def test_rows_that_depend_on_the_model_are_counted_before_the_training(inputs, store, tmp_path):
    asked = experiment(
        inputs,
        **SHORT,
        data__attacker_harmful=_long(inputs, tmp_path),
        finetune__attack={"kind": "hardest"},
        finetune__training__max_length=120,
    )
    with pytest.raises(InputError, match=r"of none of the 4 rows of data.attacker_harmful an answer is left"):
        run(asked, out=tmp_path / "out", progress=False)
    assert stages(store, "attack-rows") and not stages(store, "finetune")


def _long(inputs: Path, folder: Path) -> dict[str, str]:
    """The attacker's rows with prompts of 200 tokens."""
    rows = [json.loads(line) for line in (inputs / "attacker_harmful.jsonl").read_text().splitlines()]
    lines = [json.dumps(row | {"prompt": row["prompt"] + " please" * 30}) + "\n" for row in rows]
    (folder / "long.jsonl").write_text("".join(lines))
    return {"source": str(folder / "long.jsonl")}


def test_resistance_beyond_the_last_phase_is_refused(inputs, store, tmp_path):
    asked = experiment(inputs, finetune__attack={"kind": "staged"}, evaluate={"resistance": [7]})
    with pytest.raises(InputError, match=r"evaluate.resistance: expected steps below 7"):
        run(asked, out=tmp_path / "out", progress=False)


def test_the_fields_of_an_attack_are_swept_and_overridden(inputs, store):
    asked = experiment(inputs, finetune__attack={"kind": "hardest"})
    asked["sweep"] = {"finetune.attack.size": [2, 3]}
    from mithridate.experiment.config import load_cells

    experiments = load_cells(asked)[1]
    assert [one.finetune.attack for one in experiments] == [{"kind": "hardest", "size": n} for n in (2, 3)]
    [one] = load_cells(asked, ["sweep={}", "finetune.attack={kind: harmful, harmful_ratio: 0.5, size: 4}"])[1]
    assert (one.finetune.attack.harmful_ratio, one.finetune.attack.size) == (0.5, 4)


# -- order ------------------------------------------------------------------------------------------------


def test_defenses_act_in_the_order_of_their_list(inputs, store, tmp_path, monkeypatch):
    built = []
    original = training.build_trainer

    def build(*args, **kwargs):
        built.append([type(d).__name__ for d in kwargs["defense"]])
        return original(*args, **kwargs)

    monkeypatch.setattr(training, "build_trainer", build)
    short = {"align__training__max_steps": 1, "finetune": "none"}
    keys = {}
    for order in (["vaccine", "booster"], ["booster", "vaccine"]):
        asked = experiment(inputs, **short, align__defense=[{name: {}} for name in order])
        built.clear()
        cells = run(asked, out=tmp_path / order[0], until="evaluate", progress=False).results["cells"]
        assert {tuple(names) for names in built} == {tuple(name.title() for name in order)}
        assert [cell["alignment"] for cell in cells] == ["vaccine+booster"]
        keys[order[0]] = chain_of(asked, inputs).align.key
        # its copies in the run's folder keep the order
        recipe = json.loads((tmp_path / order[0] / "cells.json").read_text())[cells[0]["id"]]["experiment"]
        for copy in (recipe, tmp_path / order[0] / "experiment.yaml"):
            assert list(load_experiment(copy).align.defense) == order
    assert keys["vaccine"] != keys["booster"] and len(stages(store, "align")) == 2
    one = experiment(inputs, **short, align__defense={"booster": {}, "vaccine": {}})
    assert chain_of(one, inputs).align.key == keys["vaccine"]  # a mapping has no order: the canonical one


# -- keys -------------------------------------------------------------------------------------------------

# As they were before attacks had kinds, from the same experiments. (Repairs are of another version since.)
KEYS = {
    "plain": {
        "align": "6abff2a7494410cd9d8423241cdc95a5e2018e9529e167947ba1295204840f1e",
        "finetune": "993881a4d190e25d97eab126c03db531cbdcc4bf4939d9f00352d2f17e86099c",
        "evaluate align": "1bfca342dd1c373711c4f50b3c29783f55699855b369827e10041d88e73a004f",
        "evaluate finetune": "d9e4963cc59b3b2dca1a19d013219f93ec31a7d208c911f2bb7c2e911b2247ec",
    },
    "all": {
        "align": "8a650d8108ddef17614e58070dc4797567c5bdbd244bc967c009ae32f49a56c1",
        "finetune": "039deb5b2781633300259ae666d2669fe99acf8d6f76d27e57820641a494b760",
        "evaluate align": "59377bab4b84f067b170901917978c5fe0ec38f682540e90cf7bd7a52186b823",
        "evaluate finetune": "8a8f74d94ebdc0dfda1b061a23b2e57fde7eda3bba6a1260ec27a41cc11257d9",
        "evaluate finetune 1": "344166853db3e320fc3f540527336aa470f7b67b98b3c8f44b4b63570b61c48b",
    },
    "benign": {
        "finetune": "7dfac733a1228110da34021bcb6576431f5c3ae3fbfeac22d0dee6de6bed4d14",
        "evaluate finetune": "83f03074f0b03198c661bdb307f8037b46e3505cd1e90769fd7653ce1b130d38",
    },
    "full": {
        "align": "92af2f8a707d32b7e386bb01177a385c89a80fe0aec54595c915745d64468d98",
        "finetune": "b03d0316fed96131bdeba51044ec6188ebb0cec07e0509dca762f4c6d95bf5d7",
        "evaluate finetune": "12c53e9531ca5f30dc8bb791046ffec6b26a2826767d669b5cf4d77383ed7147",
    },
    "unaligned": {
        "finetune": "5e7ab77ce8c4463ab5d5cd2f375fca31a75da6b042015938cfbfaaf20d8a2a5f",
        "evaluate align": "e56bafadfe96b8f1547a9aa7b10d348d8357349cd0943bbca5139b915a725600",
        "evaluate finetune": "c0a4580f4eeef51b5f04d74e5d13225bb5ed7f01a41882863e9ac7d011270f86",
    },
}
ASKED = {
    "plain": {"finetune__attack": {"kind": "harmful", "harmful_ratio": 0.25, "size": 8}},
    "all": {
        "topology": "single",
        "align__defense": [{"vaccine": {"rho": 0.5}}, "booster"],
        "finetune__defense": {"lisa": {"align_steps": 1, "finetune_steps": 1}},
        "evaluate": {"resistance": [1, 3]},
    },
    "benign": {"finetune__attack__harmful_ratio": 0},
    "full": {"topology": "full"},
    "unaligned": {"align": "none", "template": "alpaca", "finetune__adapter": {"r": 4}},
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_of_earlier_experiments_stand(inputs, store, name):
    chain = chain_of(experiment(inputs, **ASKED[name]), inputs)
    found = {stage.name: stage.key for stage in chain.stages()}
    found |= {f"evaluate {upto}": chain.evaluation(upto).key for upto in chain.positions()}
    if chain.experiment.evaluate.resistance:
        found["evaluate finetune 1"] = chain.evaluation("finetune", 1).key
    assert {key: found[key] for key in KEYS[name]} == KEYS[name]


def test_an_executor_makes_the_stages_beside_the_chain(inputs, store, tmp_path, monkeypatch):
    """Each cell in this process, as a worker makes it."""
    from mithridate.pipeline.executors.cells import make_cell, task_of
    from mithridate.pipeline.experiments import stages_of
    from mithridate.pipeline.graph import Graph

    asked = experiment(inputs, **SHORT, finetune__attack={"kind": "hardest"}, repair={"harden": {}, "asks": {}})
    asked["data"]["helpful"] = {"source": str(inputs / "helpful.jsonl")}
    chains = stages_of([load_experiment(asked)], Path.cwd(), "experiment", False)
    for batch in Graph(chains).batches():
        make_cell(task_of(batch, Path.cwd()))
    names = {name.rpartition("-")[0] for name in stages(store)}
    assert names == {"align", "harden", "attack-rows", "unaligned", "finetune", "repair", "evaluate"}
    run_cells([load_experiment(asked)], tmp_path / "out", Path.cwd(), progress=False)
