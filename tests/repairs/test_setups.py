"""Models that carry more than LoRA's factors: each is repaired right, or refused first, with a remedy that fits.

Right means: all of the update taken back is the aligned model; nothing taken back is the model as it was; and undo is
bit-identical.
"""

import warnings

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)

from mithridate import Antidote, InputError, UnsupportedSetup
from mithridate.models.layers import merge_adapter
from tests.repairs.test_antidote import CALIBRATION, TOKENIZER, same, state
from tests.tiny import tiny_llama

IDS = torch.arange(3, 40)[None]
TARGETS = ["q_proj", "v_proj", "up_proj"]
TIED = {"tie_word_embeddings": True}


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits[:, -IDS.shape[1] :]  # without those of a soft prompt


def off(model, other):
    return float((logits(model) - logits(other)).abs().max())


def tuned(config, **model):
    """The aligned model, and it after a fine-tune of what the adapter's config lets be trained."""
    aligned = tiny_llama(**model)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = get_peft_model(tiny_llama(**model), config)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert off(tuned, aligned) > 0.05
    return aligned, tuned


def lora(**fields):
    fields = {"r": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM"} | fields
    return LoraConfig(**{name: value for name, value in fields.items() if value is not None})


BIASED = {"attention_bias": True}
# What is right under "update": the adapter's config, and the model's own settings.
SEEN = {
    "plain": (lora(), {}),
    "rslora": (lora(use_rslora=True), {}),
    "rank pattern": (lora(rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 20}), {}),
    "a linear copied": (lora(modules_to_save=["down_proj"]), {}),
    "norms copied": (lora(modules_to_save=["input_layernorm"]), {}),
    "the head copied": (lora(modules_to_save=["lm_head"]), {}),
    "the tied head copied": (lora(modules_to_save=["lm_head"]), TIED),
    "embeddings copied": (lora(modules_to_save=["embed_tokens"]), {}),
    "tied embeddings copied": (lora(modules_to_save=["embed_tokens"]), TIED),
    "both copied": (lora(modules_to_save=["embed_tokens", "lm_head"]), {}),
    "both copied and tied": (lora(modules_to_save=["embed_tokens", "lm_head"], ensure_weight_tying=True), TIED),
    "a block copied": (lora(modules_to_save=["mlp"], target_modules=["q_proj"]), {}),
    "all biases": (lora(bias="all"), BIASED),
    "the adapter's biases": (lora(bias="lora_only"), BIASED),
    "the untied head adapted": (lora(target_modules=["q_proj", "lm_head"]), {}),
    "tied embeddings": (lora(), TIED),
    "pissa": (lora(init_lora_weights="pissa"), {}),
    "fast pissa": (lora(init_lora_weights="pissa_niter_4"), {}),
    "olora": (lora(init_lora_weights="olora"), {}),
    "orthogonal": (lora(init_lora_weights="orthogonal"), {}),
    "gaussian": (lora(init_lora_weights="gaussian"), {}),
    "eva": (lora(init_lora_weights="eva"), {}),
}
# Of these the factors hold all of the change, so that "adapters" and "merged" are right too.
IN_FACTORS = {
    "plain",
    "rslora",
    "rank pattern",
    "the untied head adapted",
    "tied embeddings",
    "orthogonal",
    "gaussian",
}
IN_FACTORS |= {"eva"}
IN_WEIGHTS = IN_FACTORS | {"pissa", "fast pissa", "olora"}  # merged weights only


@pytest.mark.parametrize("score", ["wanda", "magnitude"])
@pytest.mark.parametrize("case", SEEN)
def test_all_of_the_update_taken_back_is_the_aligned_model(case, score):
    aligned, model = tuned(*SEEN[case][:1], **SEEN[case][1])
    before, was = state(model), logits(model)
    delta = Antidote(ratio=1, targets="update", score=score).apply(model, CALIBRATION[:2], TOKENIZER, aligned=aligned)
    assert off(model, aligned) < 1e-4
    delta.undo(model)
    assert same(model, before) and torch.equal(logits(model), was)
    if "tie" not in case:  # PEFT's own unloading unties what was tied
        delta.apply(model)
        plain = merge_adapter(model)
        assert off(plain, aligned) < 1e-4


@pytest.mark.parametrize("case", SEEN)
@pytest.mark.parametrize("targets", ["adapters", "update", "merged"])
def test_nothing_taken_is_the_model_as_it_was_or_refused(case, targets):
    aligned, model = tuned(*SEEN[case][:1], **SEEN[case][1])
    before, was = state(model), logits(model)
    right = targets == "update" or case in (IN_FACTORS if targets == "adapters" else IN_WEIGHTS)
    repair = Antidote(ratio=0, targets=targets)
    if not right:
        with pytest.raises(UnsupportedSetup) as refused:
            repair.apply(model, aligned=aligned)
        assert "targets='update'" in refused.value.remedy  # which the test above shows to be right
        assert same(model, before)
        return
    delta = repair.apply(model, aligned=aligned)
    assert same(model, before) and not delta.merged  # bit for bit: nothing was merged either
    assert float((logits(merge_adapter(model)) - was).abs().max()) < 1e-4


@pytest.mark.parametrize("case", sorted(IN_FACTORS))
def test_the_whole_adapter_cut_is_the_model_beneath(case):
    aligned, model = tuned(*SEEN[case][:1], **SEEN[case][1])
    before = state(model)
    delta = Antidote(ratio=1).apply(model, CALIBRATION[:2], TOKENIZER)
    assert off(model, aligned) < 1e-5
    delta.undo(model)
    assert same(model, before)


def vera():
    return VeraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")


MERGEABLE = {
    "dora": (lora(use_dora=True), {}),
    "a bias of its own": (lora(lora_bias=True, target_modules=["q_proj", "v_proj"]), BIASED),
    "trained tokens": (lora(trainable_token_indices=[3, 5]), {}),
    "trained tokens, tied": (lora(trainable_token_indices=[3, 5]), TIED),
    "tokens alone": (TrainableTokensConfig(token_indices=[3, 5], target_modules=["embed_tokens"]), {}),
    "ia3": (IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]), {}),
    "vera": (vera(), {}),
    "loha": (LoHaConfig(r=4, target_modules=TARGETS), {}),
    "lokr": (LoKrConfig(r=4, target_modules=TARGETS), {}),
    "adalora": (AdaLoraConfig(init_r=4, total_step=10, target_modules=TARGETS), {}),
    "norms": (LNTuningConfig(target_modules=["input_layernorm"]), {}),
}
# No merging helps: the adapter lies outside the weights, or over a weight that others share.
ELSEWHERE = {
    "prompt tuning": (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), {}, "soft prompt"),
    "prefix tuning": (PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), {}, "soft prompt"),
    "p-tuning": (
        PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=8),
        {},
        "soft prompt",
    ),
    "the tied head": (lora(target_modules=["q_proj", "lm_head"]), TIED, "tied"),
    "tied embeddings": (lora(target_modules=["q_proj", "embed_tokens"]), TIED, "over Embedding"),
    "embeddings": (lora(target_modules=["q_proj", "embed_tokens"]), {}, "over Embedding"),
    "a parameter": (lora(target_modules=[], target_parameters=["mlp.up_proj.weight"]), {}, "target_parameters"),
    "replicated layers": (lora(layer_replication=[[0, 2], [1, 2]]), {}, "layer_replication"),
}


@pytest.mark.parametrize("targets", ["adapters", "update", "merged"])
@pytest.mark.parametrize("case", [*MERGEABLE, *ELSEWHERE])
def test_what_is_not_in_plain_factors_is_refused_before_the_calibration(case, targets, monkeypatch):
    monkeypatch.setattr("mithridate.repairs.antidote.input_norms", lambda *_: pytest.fail("calibration was run"))
    config, own, *words = (MERGEABLE | ELSEWHERE)[case]
    aligned, model = tuned(config, **own)
    before = state(model)
    with pytest.raises(UnsupportedSetup, match=words[0] if words else "") as refused:
        Antidote(targets=targets).apply(model, CALIBRATION, TOKENIZER, aligned=aligned)
    assert same(model, before)
    assert ("merge it first" in refused.value.remedy) == (case in MERGEABLE)


@pytest.mark.parametrize("case", MERGEABLE)
def test_the_remedy_of_merging_first_is_right(case):
    aligned, model = tuned(MERGEABLE[case][0], **MERGEABLE[case][1])
    was = logits(model)
    plain = model.merge_and_unload()
    assert float((logits(plain) - was).abs().max()) < 1e-3
    before = state(plain)
    repair = Antidote(ratio=1, targets="update")
    delta = repair.apply(plain, CALIBRATION[:2], TOKENIZER, aligned=aligned)
    assert off(plain, aligned) < 1e-5
    delta.undo(plain)
    assert same(plain, before)


def test_an_adapter_that_is_not_in_use_is_let_be_and_several_or_none_are_refused():
    aligned, model = tuned(lora())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_adapter("other", lora(modules_to_save=["down_proj"], init_lora_weights=False))
    before = state(model)
    with pytest.raises(UnsupportedSetup, match="switched off") as refused, model.disable_adapter():
        Antidote().apply(model, CALIBRATION, TOKENIZER)
    assert "enable_adapter_layers" in refused.value.remedy
    for targets in ("adapters", "update", "merged"):
        delta = Antidote(targets=targets, ratio=1).apply(model, CALIBRATION[:2], TOKENIZER, aligned=aligned)
        assert targets == "merged" or off(model, aligned) < 1e-5
        delta.undo(model)
        assert same(model, before)
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(UnsupportedSetup, match="2 LoRA adapters") as refused:
        Antidote().apply(model, CALIBRATION, TOKENIZER)
    assert "set_adapter" in refused.value.remedy


def test_a_merged_adapter_is_repaired_as_weights():
    aligned, model = tuned(lora())
    model.merge_adapter()
    before = state(model)
    with pytest.raises(UnsupportedSetup, match="unmerge_adapter"):
        Antidote().apply(model, CALIBRATION, TOKENIZER)
    delta = Antidote(targets="update", ratio=1).apply(model, CALIBRATION[:2], TOKENIZER, aligned=aligned)
    assert off(model, aligned) == 0 and not delta.merged
    delta.undo(model)
    assert same(model, before)


@pytest.mark.parametrize("own", [{}, TIED, {"attention_bias": True, "mlp_bias": True}])
def test_full_weights_go_back_wherever_they_changed(own):
    aligned, model = tiny_llama(**own), tiny_llama(**own)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    before = state(model)
    delta = Antidote(targets="update", ratio=1).apply(model, CALIBRATION, TOKENIZER, aligned=aligned)
    assert same(model, state(aligned))
    delta.undo(model)
    assert same(model, before)
    with pytest.raises(UnsupportedSetup, match="scope='global' compares") as refused:
        Antidote(targets="update", scope="global").apply(model, CALIBRATION, TOKENIZER, aligned=aligned)
    assert "score='magnitude'" in refused.value.remedy
    Antidote(targets="update", scope="global", score="magnitude", ratio=1).apply(model, aligned=aligned)
    assert same(model, state(aligned))


def test_an_aligned_model_that_shares_weights_or_cannot_be_read_is_refused():
    _, model = tuned(lora())
    soft = get_peft_model(tiny_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    for other, words in [
        (model.get_base_model(), "an object of its own"),
        (soft, "Of the aligned model: The adapter is a soft prompt"),
    ]:
        with pytest.raises(UnsupportedSetup, match=words):
            Antidote(targets="update").apply(model, CALIBRATION, TOKENIZER, aligned=other)
    with pytest.raises(InputError, match=r"have no layer model\.layers\.1"):
        Antidote(targets="update").apply(model, CALIBRATION, TOKENIZER, aligned=tiny_llama(num_hidden_layers=1))


def test_the_heads_inputs_are_what_the_decoder_returns():
    """Scored by hand: ||h_j|| over the rows, h the last hidden state."""
    aligned, model = tuned(lora(target_modules=["lm_head"]))
    rows = [{"input_ids": list(range(3, 9))}, {"input_ids": list(range(20, 50))}]
    with torch.no_grad():
        hidden = [model.get_base_model().model(torch.tensor([row["input_ids"]]))[0][0].double() for row in rows]
        norms = torch.stack([h.square().sum(0) for h in hidden]).mean(0).sqrt()
        update = model.get_base_model().lm_head
        change = (update.scaling["default"] * update.lora_B["default"].weight @ update.lora_A["default"].weight).abs()
    expected = (change.double() * norms).topk(4, dim=-1).indices.sort().values
    delta = Antidote(targets="update", ratio=0.25).apply(model, rows, aligned=aligned)
    marked = delta["lm_head.weight"].nonzero()[:, 1].reshape(-1, 4)
    assert torch.equal(marked, expected)
