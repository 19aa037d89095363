"""Quantised models: what they amount to as plain models, repairs of them, merging, bad input."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from mithridate.errors import InputError, UnsupportedSetup
from mithridate.models.carried import carries, carry
from mithridate.models.layers import merge_adapter
from mithridate.models.quantisation import dequantised, quantisation_of
from mithridate.repairs.antidote import Antidote
from mithridate.repairs.delta import Delta
from mithridate.training.quantised import as_stored
from tests.tiny import save_tiny, tiny_llama, tiny_tokenizer

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(),
    reason="the references are on the CPU, bitsandbytes puts the model on the GPU; benchmarks/gpu.py checks there",
)

BITS = {
    4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"},
    8: {"load_in_8bit": True},
}
CALIBRATION = [{"prompt": f"Harm {i}", "response": "yes " * (i + 1)} for i in range(5)]
IDS = torch.arange(3, 40)[None]
bits = pytest.mark.parametrize("bits", BITS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.1}
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny", **sizes)


def base(folder, bits):
    config = quantisation_of(BITS[bits])
    return as_stored(AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32))


def adapted(model, seed=1):
    torch.manual_seed(seed)
    made = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"]))
    for name, p in made.named_parameters():
        if "lora_" in name:
            p.data = torch.randn(p.shape) * 0.2
    return made


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def apart(one, other):
    return float((one - other).norm() / other.norm())


def test_weights_that_were_laid_out_anew_for_a_cpu_are_put_back(folder):
    """As bitsandbytes lays them out on a CPU with AVX512-BF16, in the first pass in evaluation mode."""
    from bitsandbytes.functional import _convert_weight_packed_for_cpu as lay_out_anew

    def laid_out():
        model = base(folder, 4)
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = True
                new = lay_out_anew(module.weight.data, module.weight.quant_state)
                module.weight.data, module.weight.quant_state = new
        return model

    whole, model = base(folder, 4), as_stored(laid_out())
    before = logits(whole)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), whole.parameters(), strict=True))
    assert apart(logits(model), before) < 0.01  # scales rounded to bfloat16
    assert apart(logits(dequantised(laid_out())), before) < 0.01
    model = adapted(model).train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_" in n)


@bits
def test_a_dequantised_model_is_the_same_model(bits, folder):
    quantised = adapted(base(folder, bits))
    before, factors = logits(quantised), {n: p.clone() for n, p in quantised.named_parameters() if "lora_" in n}
    state = torch.get_rng_state()
    plain = dequantised(quantised)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.is_floating_point() for p in plain.parameters())
    found = {n: p for n, p in plain.named_parameters() if "lora_" in n}
    assert found.keys() == factors.keys() and all(torch.equal(found[n], factors[n]) for n in found)
    assert {n for n, p in plain.named_parameters() if p.requires_grad} == set(found)
    assert apart(logits(plain), before) < (1e-6 if bits == 4 else 0.05)  # 8 bit: without the rounding of inputs
    assert apart(logits(tiny_llama(hidden_size=64, intermediate_size=128, initializer_range=0.1)), before) > 0.05


def test_a_plain_model_is_dequantised_already():
    model = tiny_llama()
    assert dequantised(model) is model


@bits
def test_merging_is_into_the_dequantised_base(bits, folder, tmp_path):
    quantised = adapted(base(folder, bits))
    before = logits(quantised)
    merged = merge_adapter(quantised)
    assert apart(logits(merged), before) < (1e-6 if bits == 4 else 0.05)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")  # a plain folder, which needs no bitsandbytes
    assert "quantization_config" not in again.config.to_dict()
    assert torch.equal(logits(again), logits(merged))


@bits
def test_a_carried_adapter_acts_on_and_is_none(bits, folder):
    """Two adapters, one after the other: as the two over the same weights, and merged where those are dequantised."""
    before = logits(adapted(base(folder, bits)))
    model = carry(adapted(base(folder, bits)))
    assert torch.equal(logits(model), before)
    assert carries(model) and not [n for n, p in model.named_parameters() if p.requires_grad or "lora_" in n]
    model = carry(adapted(model, seed=2))
    both = logits(model)
    third = adapted(model, seed=3)
    trained = {n for n, p in third.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in third.named_parameters() if "lora_" in n}
    whole = logits(third)
    assert apart(whole, both) > 0.01 < apart(both, before)
    loss = third.train()(input_ids=IDS, labels=IDS).loss
    loss.backward()
    assert all(p.grad is not None for n, p in third.named_parameters() if n in trained)
    plain = base(folder, bits).dequantize()
    for seed in (1, 2, 3):
        plain = merge_adapter(adapted(plain, seed=seed))
    close = 1e-5 if bits == 4 else 0.05
    assert apart(logits(plain), whole) < close
    merged = merge_adapter(third)
    assert not carries(merged) and apart(logits(merged), logits(plain)) < 1e-6


def test_what_is_no_lora_is_not_carried(folder):
    model = get_peft_model(base(folder, 4), LoraConfig(r=4, use_dora=True, target_modules=["q_proj"]))
    with pytest.raises(UnsupportedSetup, match="DoraLinearVariant, not plain LoRA"):
        carry(model)


@bits
@pytest.mark.shows("quantised factors", "exact", methods=["antidote"])
def test_antidote_on_adapters_over_a_quantised_base(bits, folder, tmp_path):
    """The same entries as over the dequantised weights (4 bit), all of the factors; undone, saved, applied anew."""
    model = adapted(base(folder, bits))
    before = {n: p.clone() for n, p in model.named_parameters()}
    delta = Antidote(ratio=0.2).apply(model, calibration=CALIBRATION, tokenizer=tiny_tokenizer())
    plain = adapted(base(folder, bits).dequantize())
    there = Antidote(ratio=0.2).apply(plain, calibration=CALIBRATION, tokenizer=tiny_tokenizer())
    assert delta.shapes == there.shapes and delta.total == there.total and delta.total[0] > 0
    if bits == 4:
        assert delta.digest == there.digest
    cut = logits(model)
    delta.save(tmp_path / "delta")
    fresh = adapted(base(folder, bits))
    Delta.load(tmp_path / "delta").apply(fresh)
    assert torch.equal(logits(fresh), cut)
    delta.undo(model)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    with pytest.raises(InputError, match="made for other weights"):  # over another quantisation it is another model
        Delta.load(tmp_path / "delta").apply(adapted(base(folder, 12 - bits)))


@bits
@pytest.mark.shows("quantised", "exact", methods=["antidote"])
@pytest.mark.parametrize("targets", ["update", "merged"])
def test_antidote_on_weights_takes_the_dequantised_model(bits, targets, folder):
    model, options = adapted(base(folder, bits)), {"calibration": CALIBRATION, "tokenizer": tiny_tokenizer()}
    aligned = {"aligned": base(folder, bits)} if targets == "update" else {}
    with pytest.raises(UnsupportedSetup, match="quantised") as refused:
        Antidote(targets=targets).apply(model, **options, **aligned)
    assert "dequantised(model)" in refused.value.remedy
    aligned = {name: dequantised(one) for name, one in aligned.items()}
    start = base(folder, bits).dequantize()
    delta = Antidote(targets=targets).apply(dequantised(model), **options, **copy.deepcopy(aligned))
    wanted = Antidote(targets=targets).apply(
        adapted(copy.deepcopy(start)), **options, **({"aligned": start} if aligned else {})
    )
    assert delta.digest == wanted.digest and delta.total[0] > 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"load_in_4bit": True, "quant_type": "nf4"}, r"quantization.quant_type: no field of bitsandbytes"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf5"}, "bnb_4bit_quant_type: expected nf4 or fp4, got 'nf5'"),
        ({"load_in_8bit": True, "llm_int8_has_fp16_weight": True}, r"fp16_weight: is for training .* Take it out"),
        ({}, "set one of load_in_4bit and load_in_8bit"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "set one of"),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": 3}, "quantization: "),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "bf61"}, "quantization: "),
        ({"load_in_4bit": True, "bnb_4bit_use_double_quant": "yes"}, "quantization: "),
    ],
)
def test_bad_fields_are_named(fields, said):
    with pytest.raises(InputError, match=said):
        quantisation_of(fields)


def test_without_the_package_there_is_one_clear_error(monkeypatch):
    monkeypatch.setattr("mithridate.models.quantisation.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"quantization: needs the package bitsandbytes: .*\[quant\]"):
        quantisation_of(BITS[4])


@pytest.mark.parametrize("given", [6, 0, 5.5])
def test_a_whole_number_is_a_threshold_too(given):
    assert quantisation_of({"load_in_8bit": True, "llm_int8_threshold": given}).llm_int8_threshold == given
