"""Antidote against a naive reference, its variants, its control, what it leaves alone and what it refuses."""

import copy
import json

import pytest
import torch
from datasets import Dataset
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import OPTConfig, OPTForCausalLM

from mithridate import Antidote, InputError, UnsupportedSetup
from mithridate.errors import MithridateError
from mithridate.repairs import by_name
from mithridate.repairs.input_norms import token_ids
from tests.repairs import naive
from tests.tiny import tiny_llama, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
# Lengths from 1 to 90 characters, so that most of a padded batch is padding; pad = eos, which ends every turn too.
CALIBRATION = [
    {"prompt": "how do I " * (1 + 4 * (i % 3)), "response": "x" * (1 + (i * 37) % 83), "id": str(i)} for i in range(7)
]
ROWS = token_ids(CALIBRATION, TOKENIZER)


def with_lora(model, seed=1, **overrides):
    """The model under LoRA on q, k, v, with factors that are not zero."""
    settings = {"r": 5, "lora_alpha": 10, "target_modules": ["q_proj", "k_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(model, LoraConfig(**(settings | overrides)))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
            parameter.data = parameter.data.to(model.dtype)
    return model.eval()


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model, before):
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def factors(model):
    return {
        n.removeprefix("base_model.model.").removesuffix(".default"): m
        for n, m in model.named_modules()
        if n.endswith(("lora_A.default", "lora_B.default"))
    }


@pytest.mark.shows("adapters", "exact", methods=["antidote"])
@pytest.mark.shows("padded", "exact", methods=["antidote"])
@pytest.mark.parametrize("batch_size", [1, 3, 7])
@pytest.mark.parametrize("scope", ["row", "tensor", "global"])
def test_the_mask_of_both_factors_is_the_naive_one_on_padded_batches(scope, batch_size):
    model = with_lora(tiny_llama(torch.float64))
    modules = factors(model)
    assert len(modules) == 12
    norms = naive.feature_norms(model, modules, ROWS)
    weights = {name: module.weight.detach().numpy().copy() for name, module in modules.items()}
    expected = naive.masks(weights, norms, "0.2", scope)
    report = Antidote(ratio=0.2, scope=scope).apply(model, CALIBRATION, TOKENIZER, batch_size=batch_size)
    assert report.mask.shapes.keys() == modules.keys()
    for name, module in modules.items():
        assert (report.mask[name].numpy() == expected[name]).all(), name
        assert (module.weight.detach().numpy() == weights[name] * ~expected[name]).all(), name


def test_layers_that_see_the_tokens_of_all_rows_in_one_are_scored_without_pads_too():
    """OPT flattens [rows, tokens, features] before its feed-forward layers."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "init_std": 0.3}
    model = OPTForCausalLM(OPTConfig(vocab_size=259, word_embed_proj_dim=16, pad_token_id=2, **sizes)).double()
    model = with_lora(model, target_modules=["q_proj", "fc1"])
    modules = {"model.decoder.layers.0.fc1.lora_A": factors(model)["model.decoder.layers.0.fc1.lora_A"]}
    before = {name: module.weight.detach().numpy().copy() for name, module in modules.items()}
    flat = naive.feature_norms(model, modules, ROWS, flat=True)
    report = Antidote(ratio=0.2).apply(model, CALIBRATION, TOKENIZER, batch_size=3)
    for name, expected in naive.masks(before, flat, "0.2", "row").items():
        assert (report.mask[name].numpy() == expected).all()


@pytest.mark.shows("update", "exact", methods=["antidote"])
@pytest.mark.shows("merged", "exact", methods=["antidote"])
@pytest.mark.parametrize("targets", ["update", "merged"])
@pytest.mark.parametrize("scope", ["row", "tensor", "global"])
def test_the_mask_over_weights_under_an_adapter_is_the_naive_one(targets, scope):
    aligned = tiny_llama(torch.float64)
    model = with_lora(copy.deepcopy(aligned))
    reference = copy.deepcopy(model)
    old = {
        f"{n}.weight": m.weight.detach().numpy()
        for n, m in aligned.named_modules()
        if n.endswith(("q_proj", "k_proj", "v_proj"))
    }
    modules = {
        n.removeprefix("base_model.model.") + ".weight": m
        for n, m in reference.named_modules()
        if n.endswith(("q_proj", "k_proj", "v_proj"))
    }
    norms = naive.feature_norms(reference, modules, ROWS)
    new = {
        name: old[name] + 2.0 * (m.lora_B["default"].weight @ m.lora_A["default"].weight).detach().numpy()
        for name, m in modules.items()
    }
    scored = {name: new[name] - old[name] for name in new} if targets == "update" else new
    expected = naive.masks(scored, norms, "0.2", scope)
    report = Antidote(targets=targets, scope=scope).apply(model, CALIBRATION, TOKENIZER, 3, aligned=aligned)
    plain = model.merge_and_unload()
    for name, mask in expected.items():
        assert (report.mask[name].numpy() == mask).all(), name
        wanted = torch.tensor(new[name])
        wanted[torch.tensor(mask)] = torch.tensor(old[name] if targets == "update" else 0 * old[name])[
            torch.tensor(mask)
        ]
        torch.testing.assert_close(plain.get_parameter(name).detach(), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.shows("update", "exact", methods=["antidote"])
def test_the_update_of_full_weights_goes_back_in_every_linear_layer_that_changed():
    aligned, model = tiny_llama(torch.float64, seed=0), tiny_llama(torch.float64, seed=0)
    generator = torch.Generator().manual_seed(3)
    changed = {n: m for n, m in model.model.named_modules(prefix="model") if isinstance(m, torch.nn.Linear)}
    untouched = changed.pop("model.layers.1.mlp.down_proj")
    for module in changed.values():
        module.weight.data += 0.1 * torch.randn(module.weight.shape, generator=generator, dtype=torch.float64)
    weights = {f"{n}.weight": m for n, m in changed.items()}
    old = {name: aligned.get_parameter(name).detach().numpy() for name in weights}
    new = {name: m.weight.detach().numpy().copy() for name, m in weights.items()}
    norms = naive.feature_norms(model, weights, ROWS)
    expected = naive.masks({n: new[n] - old[n] for n in new}, norms, "0.3", "row")
    before, head = untouched.weight.clone(), model.lm_head.weight.clone()
    report = Antidote(ratio=0.3, targets="update").apply(model, CALIBRATION, TOKENIZER, aligned=aligned)
    assert report.mask.shapes.keys() == weights.keys()
    for name, module in weights.items():
        assert (report.mask[name].numpy() == expected[name]).all()
        now = module.weight.detach().numpy()
        assert (now[expected[name]] == old[name][expected[name]]).all()
        assert (now[~expected[name]] == new[name][~expected[name]]).all()
    assert torch.equal(untouched.weight, before) and torch.equal(model.lm_head.weight, head)


@pytest.mark.shows("undo", "exact", methods=["antidote"])
@pytest.mark.parametrize("targets", ["adapters", "update", "merged"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_apply_then_undo_is_bit_identical(targets, dtype):
    aligned = tiny_llama(dtype)
    model = with_lora(copy.deepcopy(aligned))
    before = state(model)
    report = Antidote(targets=targets).apply(model, CALIBRATION, TOKENIZER, aligned=aligned)
    assert not same(model, before)
    report.undo(model)
    assert same(model, before)
    tokens = torch.tensor(ROWS[:1])
    with torch.no_grad():  # and the adapter works as before: not merged, not doubled
        torch.testing.assert_close(model(tokens).logits, with_lora(tiny_llama(dtype))(tokens).logits, rtol=0, atol=0)


@pytest.mark.parametrize("targets", ["update", "merged"])
def test_apply_then_undo_is_bit_identical_on_full_weights(targets):
    aligned, model = tiny_llama(seed=0), tiny_llama(seed=1)
    before = state(model)
    report = Antidote(targets=targets).apply(model, CALIBRATION, TOKENIZER, aligned=aligned)
    assert not same(model, before)
    report.undo(model)
    assert same(model, before)


@pytest.mark.parametrize("scope", ["row", "tensor", "global"])
def test_ratio_zero_changes_nothing_and_needs_no_calibration(scope):
    model = with_lora(tiny_llama())
    before = state(model)
    report = Antidote(ratio=0, scope=scope).apply(model)
    assert same(model, before)
    assert report.total[0] == 0


def test_ratio_one_of_the_update_is_the_aligned_model():
    aligned, model = tiny_llama(seed=0), tiny_llama(seed=0)
    for layer in model.model.layers:
        layer.mlp.up_proj.weight.data += 0.5
    Antidote(ratio=1, targets="update", score="magnitude").apply(model, aligned=aligned)
    assert same(model, state(aligned))


def test_counts_are_the_contract_s():
    report = Antidote(ratio=0.2, score="magnitude").apply(with_lora(tiny_llama()))
    q = "model.layers.0.self_attn.q_proj"
    assert report.mask.shapes[f"{q}.lora_A"] == (5, 16)
    assert (report.mask[f"{q}.lora_A"].sum(-1) == 4).all()  # ceil(3.2)
    assert (report.mask[f"{q}.lora_B"].sum(-1) == 1).all()
    assert report.total == (sum(n for n, _ in report.mask.counts().values()), 2 * (5 * 16 * 3 + 5 * (16 + 8 + 8)))


def test_the_random_control_is_seeded_and_removes_as_many():
    def mask(model, **settings):
        return Antidote(**settings).apply(model, CALIBRATION, TOKENIZER).mask

    models = [with_lora(tiny_llama()) for _ in range(4)]
    first, again, other = (mask(models[i], score="random", seed=seed) for i, seed in enumerate((0, 0, 1)))
    assert first.digest == again.digest != other.digest
    assert first.counts() == other.counts() == mask(models[3], score="wanda").counts()
    # A layer's draw is its own: it is the same where other layers are absent.
    alone = mask(with_lora(tiny_llama(), target_modules=["k_proj"]), score="random", seed=0)
    name = "model.layers.1.self_attn.k_proj.lora_A"
    assert torch.equal(alone[name], first[name])


def test_dropout_is_off_and_modes_hooks_and_gradients_are_as_before():
    quiet, model = with_lora(tiny_llama()), with_lora(tiny_llama(), lora_dropout=0.5)
    model.train()
    model.base_model.model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    needed = [parameter.requires_grad for parameter in model.parameters()]
    report = Antidote().apply(model, CALIBRATION, TOKENIZER)
    assert report.mask.digest == Antidote().apply(quiet, CALIBRATION, TOKENIZER).mask.digest
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == needed
    assert not any(module._forward_pre_hooks for module in model.modules())
    model(torch.tensor(ROWS[:1]), labels=torch.tensor(ROWS[:1])).loss.backward()  # no inference tensor was left behind


def test_every_form_of_the_calibration_set_gives_the_same_mask():
    turns = [
        [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["response"]}]
        for r in CALIBRATION
    ]
    forms = [
        CALIBRATION,
        [{"messages": messages} for messages in turns],
        Dataset.from_dict({"prompt": [t[:1] for t in turns], "completion": [t[1:] for t in turns]}),
        [{"prompt": r["prompt"], "completion": r["response"]} for r in CALIBRATION],
    ]
    assert len({json.dumps(token_ids(form, TOKENIZER)) for form in forms}) == 1
    answer = TOKENIZER("x" * 38, add_special_tokens=False)["input_ids"]  # prompt and answer both count
    assert "x" * 38 in TOKENIZER.decode(ROWS[1]) and len(ROWS[1]) > len(answer) + 40


def test_report_reads_and_saves(tmp_path):
    report = Antidote(score="magnitude").apply(with_lora(tiny_llama()))
    table = report.table()
    assert "model.layers.0.self_attn.q_proj.lora_A" in table and "25.00%" in table
    report.save(tmp_path)
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["settings"] == Antidote(score="magnitude").settings()
    assert (facts["removed"], facts["entries"]) == report.total
    assert facts["mask"] == report.mask.digest


def test_under_single_the_report_says_that_alignment_is_cut_too():
    model = with_lora(tiny_llama())
    assert "if alignment trained the same one" in Antidote(ratio=0).apply(model).table()
    model.keeps_alignment = True  # as assemble() marks it
    assert "this cut takes from it as well" in Antidote(ratio=0).apply(model).table()


@pytest.mark.shows("variants", "refused", methods=["antidote"])
def test_refusals_name_reason_and_remedy():
    lora, plain = with_lora(tiny_llama()), tiny_llama()
    quantised = tiny_llama()
    quantised.is_quantized = True
    merged = with_lora(tiny_llama())
    merged.merge_adapter()
    two = with_lora(tiny_llama())
    two.add_adapter("other", LoraConfig(target_modules=["q_proj"]))
    two.base_model.set_adapter(["default", "other"])
    untemplated = tiny_tokenizer()
    untemplated.chat_template = None
    ia3 = get_peft_model(tiny_llama(), IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    for repair, model, options, words in [
        (Antidote(), plain, {}, "no LoRA adapter"),
        (Antidote(), ia3, {}, "no LoRA adapter"),
        (Antidote(), merged, {}, "unmerge_adapter"),
        (Antidote(), two, {}, "set_adapter"),
        (Antidote(), with_lora(tiny_llama(), use_dora=True), {}, "not plain LoRA"),
        (Antidote(), with_lora(tiny_llama(), layer_replication=[[0, 2], [1, 2]]), {}, "has layer_replication"),
        (Antidote(), with_lora(tiny_llama(), trainable_token_indices=[5]), {}, "trainable_token_indices"),
        (Antidote(targets="update"), lora, {}, "pass aligned="),
        (Antidote(targets="update"), lora, {"aligned": lora}, "of its own"),
        (Antidote(targets="merged"), quantised, {}, "quantised"),
        (Antidote(), lora, {"calibration": []}, "there are none"),
        (Antidote(), lora, {"calibration": None}, "there are none"),
        (Antidote(), lora, {"tokenizer": untemplated}, "chat template"),
    ]:
        before = state(model)
        with pytest.raises(UnsupportedSetup, match=words) as error:
            repair.apply(model, **({"calibration": CALIBRATION, "tokenizer": TOKENIZER} | options))
        assert error.value.remedy
        assert same(model, before)


@pytest.mark.shows("placement", "refused", methods=["antidote"])
def test_weights_that_are_elsewhere_or_sharded_are_refused():
    sharded = with_lora(tiny_llama())
    next(sharded.parameters()).placements = ()  # as a DTensor has
    for model, words in [(with_lora(tiny_llama()).to("meta"), "on meta"), (sharded, "sharded")]:
        with pytest.raises(UnsupportedSetup, match=f"weights that are {words} are not tested") as refused:
            Antidote().apply(model, CALIBRATION, TOKENIZER)
        assert "whole" in refused.value.remedy


def test_bad_input_is_named():
    for settings, words in [
        ({"ratio": 1.5}, r"\[0, 1\].*1\.5"),
        ({"ratio": float("nan")}, r"\[0, 1\]"),
        ({"ratio": True}, r"\[0, 1\]"),
        ({"targets": "adapter"}, "did you mean `adapters`"),
        ({"scope": "rows"}, "did you mean `row`"),
        ({"score": "wand"}, "did you mean `wanda`"),
        ({"seed": -1}, "seed"),
    ]:
        with pytest.raises(InputError, match=words):
            Antidote(**settings)
    model = with_lora(tiny_llama())
    with pytest.raises(InputError, match="row 2: has no answer"):
        Antidote().apply(model, [CALIBRATION[0], {"prompt": "hello"}], TOKENIZER)
    for size in (0, 1.5):
        with pytest.raises(InputError, match=f"batch_size must be a whole number of rows, at least 1, not {size}"):
            Antidote().apply(model, CALIBRATION, TOKENIZER, batch_size=size)
    with pytest.raises(InputError, match="no layer"):
        Antidote(targets="update", score="magnitude").apply(model, aligned=tiny_llama(num_hidden_layers=1))
    with pytest.raises(InputError, match="no update"):
        Antidote(targets="update", score="magnitude").apply(tiny_llama(), aligned=tiny_llama())
    model.base_model.model.model.layers[0].input_layernorm.weight.data[0] = float("nan")
    with pytest.raises(MithridateError, match="not finite"):
        Antidote().apply(model, CALIBRATION, TOKENIZER)


def test_a_calibration_row_longer_than_the_learned_positions_is_named():
    sizes = {"vocab_size": 259, "hidden_size": 16, "ffn_dim": 24, "word_embed_proj_dim": 16, "num_hidden_layers": 2}
    model = with_lora(OPTForCausalLM(OPTConfig(**sizes, num_attention_heads=2, max_position_embeddings=40)))
    rows = [{"input_ids": [3] * length} for length in (40, 41)]
    with pytest.raises(InputError, match=r"calibration row 2: has 41 tokens, .* learned 40 positions\. Shorten"):
        Antidote().apply(model, rows)
    Antidote().apply(model, rows[:1])
    rotary = with_lora(tiny_llama(max_position_embeddings=40))
    Antidote().apply(rotary, rows)


def test_what_an_experiment_asks_for_in_vain_is_refused_in_its_own_words():
    run = {"topology": "double", "finetuned": True, "adapter": True}
    for targets in ("adapters", "update", "merged"):
        Antidote(targets=targets).check_run(**run)
    Antidote(targets="merged").check_run(topology="full", finetuned=False, adapter=False)
    Antidote(targets="adapters").check_run(topology="single", finetuned=False, adapter=True)
    for targets, changes, words in [
        ("update", {"finetuned": False}, "^targets: `update` takes back .* `finetune` is none"),
        ("adapters", {"finetuned": False, "adapter": False}, "^targets: `adapters` prunes .* merged under topology"),
        ("adapters", {"topology": "full", "adapter": False}, "and topology: full trains none"),
        ("adapters", {"adapter": False}, "and adapter: full .* trains none"),
    ]:
        with pytest.raises(InputError, match=words):
            Antidote(targets=targets).check_run(**(run | changes))


def test_it_is_found_by_name():
    assert by_name()["antidote"] is Antidote


@pytest.mark.parametrize("topology", ["single", "double", "full"])
@pytest.mark.parametrize("targets", ["adapters", "update"])
def test_a_run_s_table_says_where_the_adapter_holds_the_alignment_too(topology, targets):
    notes = Antidote(targets=targets).run_notes(topology=topology, aligned=True, finetuned=True)
    assert bool(notes) == (topology == "single" and targets == "adapters")
    assert Antidote(targets=targets).run_notes(topology=topology, aligned=False, finetuned=True) == []
