"""What is predicted without weights is what a real model and a real training have: exactly where it is countable."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from mithridate.defenses.booster import Booster
from mithridate.defenses.kl import KL
from mithridate.defenses.ldifs import LDIFS
from mithridate.defenses.lisa import Lisa
from mithridate.defenses.repnoise import RepNoise
from mithridate.defenses.safegrad import SafeGrad
from mithridate.defenses.vaccine import Vaccine
from mithridate.errors import InputError, UnsupportedSetup
from mithridate.estimate import PLAIN, estimate, repair
from mithridate.estimate.trace import (
    SIZES,
    Setup,
    build,
    config_of,
    counts_of,
    fake_tensors,
    flop_counter,
    live_bytes,
    passes,
    trace,
)
from mithridate.methods import Cost, Defense, Repair
from mithridate.models.carried import carry
from mithridate.repairs.antidote import Antidote
from mithridate.training.cpu_head import scoring_labels_only
from mithridate.training.frozen import freeze
from tests.defenses.helpers import rows, trainer_for
from tests.families import models as families
from tests.tiny import save_tiny, tiny_llama

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj"]}
OVER = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
SHAPE = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3}
FULL = Setup(batch=4, length=32, full=True, dtype="float32", gpu=False)
SMALL = replace(FULL, full=False, adapter=LORA)


def config(**overrides):
    return tiny_llama(**(SHAPE | {"attn_implementation": "sdpa"} | overrides)).config


def real(setup, **overrides):
    model = tiny_llama(getattr(torch, setup.dtype), **(SHAPE | {"attn_implementation": "sdpa"} | overrides))
    for fields in setup.carried:
        model = carry(get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **fields)))
    return model if setup.full else get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA))


def longest(trainer):
    """Tokens of the longest of eight rows, which a batch is padded to."""
    return trainer.data_collator([trainer.train_dataset[i] for i in range(8)])["input_ids"].shape[1]


# -- what can be counted exactly ----------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("setup", [FULL, SMALL], ids=["full", "lora"])
def test_weights_are_those_of_the_real_model(setup, tied):
    counts, model = passes(config(tie_word_embeddings=tied), setup)[0], real(setup, tie_word_embeddings=tied)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counts.trained == trained
    assert counts.all == sum(p.numel() for p in tiny_llama(**SHAPE, tie_word_embeddings=tied).parameters())
    layer = (model if setup.full else model.get_base_model()).model.layers[0]
    assert counts.layer == sum(p.numel() for p in layer.parameters())  # with its adapters
    assert counts.embeddings == 259 * 64 * (1 if tied else 2)
    assert counts.head_trained == setup.full


@pytest.mark.parametrize("setup", [FULL, SMALL], ids=["full", "lora"])
def test_bytes_are_those_of_a_real_training(setup, tmp_path):
    model = real(setup)
    trainer = trainer_for(model, tmp_path, optim="adamw_torch", learning_rate=1e-3)
    trainer.train()
    needs = estimate(config(), setup)
    moments = [value for state in trainer.optimizer.state.values() for value in state.values() if value.dim() > 0]
    assert needs.optimizer == sum(m.numel() * 4 for m in moments)
    assert needs.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    assert needs.gradients == sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    half = estimate(config(), replace(SMALL, dtype="bfloat16"))
    assert half.weights == 2 * half.counts.all + 4 * half.counts.trained


@pytest.mark.parametrize(
    "name",
    ["adamw_torch", "sgd", "adagrad", "rmsprop", "adafactor", "lion_32bit", "paged_lion_8bit", "adamw_bnb_8bit"],
)
def test_bytes_of_an_optimizers_state_are_the_real_ones(name, tmp_path):
    """To a twentieth: 8 bit keeps a scale for each block of 256. Small tensors it keeps in 32 bit."""
    if name.endswith("bit"):
        pytest.importorskip("bitsandbytes")
    large = {"hidden_size": 128, "intermediate_size": 256}
    trainer = trainer_for(real(FULL, **large), tmp_path, optim=name, learning_rate=1e-3)
    trainer.train()
    held = sum(
        value.numel() * value.element_size()
        for state in trainer.optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and value.dim() > 0 and "qmap" not in key  # one table for all
    )
    needs, weights = estimate(config(**large), replace(FULL, optimizer=name)), sum(p.numel() for p in trainer.params)
    assert needs.counts.trained == weights
    if name == "adafactor":  # of which there is less than of an adapter's factors, for which the figure is
        assert 0 < held <= needs.optimizer
    else:
        assert held == pytest.approx(needs.optimizer, rel=0.05)
    plain = estimate(config(**large), FULL)
    assert needs.checkpoints - plain.checkpoints == 2 * (needs.optimizer - plain.optimizer)


@pytest.mark.parametrize(
    "fields",
    [
        {"load_in_4bit": True, "llm_int8_skip_modules": ["lm_head", "down_proj"]},
        {"load_in_4bit": True},
        {"load_in_4bit": True, "bnb_4bit_use_double_quant": True, "bnb_4bit_quant_type": "nf4"},
        {"load_in_8bit": True},
    ],
)
def test_bytes_of_quantised_weights_are_the_real_ones(fields, tmp_path):
    pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3}  # whole blocks of blocks
    save_tiny(tmp_path / "model", **sizes)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", quantization_config=transformers.BitsAndBytesConfig(**fields), dtype=torch.float32
    )
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    for module in model.modules():
        scales = [getattr(module, "state", None) and module.weight.SCB]
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            scales = [state.absmax, state.nested and state.state2.absmax]
        held += sum(t.numel() * t.element_size() for t in scales if isinstance(t, torch.Tensor))
    setup = replace(SMALL, quantization=fields)
    small = tiny_llama(**sizes, attn_implementation="sdpa").config
    found, plain = estimate(small, setup), estimate(small, SMALL)
    assert found.weights - 4 * found.counts.trained == pytest.approx(held, rel=1e-6)
    more = found.activations - plain.activations - 4 * 256 * 512  # the largest, dequantised
    assert more > 0 if "load_in_8bit" in fields else more == 0  # 8 bit: kept inputs, below
    assert (found.extra, found.flops, found.optimizer) == (plain.extra, plain.flops, plain.optimizer)
    cut = {name: (repair(small, setup, name, 8), repair(small, SMALL, name, 8)) for name in ("antidote",)}
    assert cut["antidote"][0].weights == found.weights < cut["antidote"][1].weights
    update = Antidote(targets="update")
    assert repair(small, setup, update, 8).weights == repair(small, SMALL, update, 8).weights  # dequantised
    with pytest.raises(InputError, match="train an adapter"):
        estimate(small, replace(setup, full=True))


@pytest.mark.parametrize("bits", [4, 8])
def test_an_adapter_that_a_quantised_base_carries_takes_what_it_really_does(bits, tmp_path):
    """Its factors, exactly, and nothing trained or saved; in real steps too, whose logits outweigh the rest."""
    pytest.importorskip("bitsandbytes")
    sizes = SHAPE | {"hidden_size": 256, "intermediate_size": 512}
    save_tiny(tmp_path / "model", **sizes)
    fields = {f"load_in_{bits}bit": True}
    held, peaks, found = [], [], []
    for under in ((), (OVER,)):
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "model", quantization_config=transformers.BitsAndBytesConfig(**fields), dtype=torch.float32
        )
        for one in under:
            model = carry(get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **one)))
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA))
        held.append(sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())))
        trainer = trainer_for(model, tmp_path / "out", optim="adamw_torch", learning_rate=1e-3, max_steps=3)
        with live_bytes()([*model.parameters(), *model.buffers()]) as live:
            trainer.train()
        peaks.append(live.peak)
        setup = replace(SMALL, batch=8, length=longest(trainer), quantization=fields, carried=under)
        found.append(estimate(tiny_llama(**sizes, attn_implementation="sdpa").config, setup))
    without, with_it = found
    assert with_it.weights - without.weights == held[1] - held[0] == 4 * with_it.counts.carried > 0
    more = [needs.total - needs.weights for needs in found]
    assert more[1] - more[0] == pytest.approx(peaks[1] - peaks[0], abs=0.02 * peaks[0])
    assert (without.optimizer, without.kept) == (with_it.optimizer, with_it.kept) and with_it.flops > without.flops


FROZEN = {
    "lora, A": (SMALL, [".*lora_A.*"]),
    "lora, a layer": (SMALL, [r".*layers\.0\..*"]),
    "all but the last layer": (FULL, [r".*(embed_tokens|layers\.[01]|lm_head).*"]),
}


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_tensors_take_what_they_really_do(name, tmp_path):
    """No gradient, no moments, and no activations kept for them: bytes of a real step, each part exactly."""
    setup, patterns = FROZEN[name]
    model = real(setup)
    trainer = trainer_for(model, tmp_path / "out", optim="adamw_torch", learning_rate=1e-3, max_steps=3)
    freeze(trainer.model, patterns)
    with live_bytes()([*model.parameters(), *model.buffers()]) as live:
        trainer.train()
    needs = estimate(config(), replace(setup, batch=8, length=longest(trainer), frozen=tuple(patterns)))
    moments = [value for state in trainer.optimizer.state.values() for value in state.values() if value.dim() > 0]
    assert needs.optimizer == sum(m.numel() * 4 for m in moments) == 2 * needs.gradients
    assert needs.weights == sum(p.numel() * 4 for p in model.parameters())
    assert needs.gradients == sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    print(f"{name}: {(needs.total - needs.weights) / 1e6:.2f} predicted, {live.peak / 1e6:.2f} counted (MB)")
    assert needs.total - needs.weights == pytest.approx(live.peak, rel=0.05)
    whole = estimate(config(), setup)
    assert needs.kept == whole.kept and needs.checkpoints < whole.checkpoints  # all of it is saved
    assert needs.counts.trained + needs.counts.frozen == whole.counts.trained


@pytest.mark.slow
def test_layers_that_are_frozen_are_a_kind_of_their_own():
    """Whichever they are, the passes predicted from a few layers are those of all."""
    deep = config(num_hidden_layers=6)
    for pattern in (r".*layers\.[01]\..*", r".*layers\.5\..*", r".*embed.*"):
        setup = replace(FULL, frozen=(pattern,))
        predicted, run = passes(deep, setup, probes=False)[1], trace(deep, setup, probes=False)
        assert (predicted.forward, predicted.backward) == (run.forward, run.backward), pattern
        assert predicted.activations == pytest.approx(run.activations, rel=0.02), pattern
    with pytest.raises(InputError, match="frozen: 'lora' matches the name of no trained tensor"):
        passes(deep, replace(FULL, frozen=("lora",)))
    with pytest.raises(InputError, match="frozen: all tensors are"):
        passes(deep, replace(FULL, frozen=(".*",)))


@pytest.mark.slow
def test_products_in_8_bit_keep_their_inputs(tmp_path):
    """What is alive between the passes of a checkpointed model, in 8 bit and dequantised: the same and the inputs."""
    pytest.importorskip("bitsandbytes")
    save_tiny(tmp_path / "model", **SHAPE)
    eight = transformers.BitsAndBytesConfig(load_in_8bit=True)
    kept = {}
    ids = torch.zeros(SMALL.batch, SMALL.length, dtype=torch.long)
    for name, fields in (("8 bit", {"quantization_config": eight}), ("plain", {})):
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "model", dtype=torch.float32, attn_implementation="sdpa", **fields
        )
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA)).train()
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        model.enable_input_require_grads()
        decoder = model.get_base_model().model
        decoder(input_ids=ids)  # bitsandbytes moves its statistics into place in the first pass
        with live_bytes()([ids, *model.parameters(), *model.buffers()]) as counted:
            out = decoder(input_ids=ids).last_hidden_state
        kept[name] = counted.bytes
        del out
    # of attention: what q, k and v share, and o's; what gate and up share; down's
    inputs = 4 * SMALL.batch * SMALL.length * (3 * 64 + 160) * 3
    assert kept["8 bit"] - kept["plain"] == pytest.approx(inputs, rel=0.02)
    again = replace(SMALL, checkpointing=True)
    found = [passes(config(), replace(again, quantization=q))[1] for q in ({"load_in_8bit": True}, {})]
    assert found[0].activations - found[1].activations == pytest.approx(inputs, rel=0.05)
    assert (found[0].forward, found[0].backward) == (found[1].forward, found[1].backward)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.slow
def test_over_quantised_weights_a_gpu_took_what_is_predicted(bits):
    """On an H200, Llama's 1B shape in bfloat16: within 6 %, as of weights that are not quantised."""
    evidence = json.loads((Path(__file__).parents[2] / "benchmarks" / "gpu_evidence.json").read_text())
    measured = evidence["sections"]["qlora"]["figures"][f"{bits} bit"]
    tokens = measured["tokens"]
    setup = Setup(
        batch=tokens["batch"],
        length=tokens["length"],
        scored=tokens["answer"],
        quantization={f"load_in_{bits}bit": True},
        checkpointing=True,
    )
    for method in ("plain", "vaccine", "booster", "lisa"):
        found = estimate(config_of("1b"), setup, method).total
        assert found == pytest.approx(measured[method]["peak_bytes"], rel=0.06), method


def test_the_sizes_are_llamas():
    """Of 3.2 1B and 3B, and of 3.1 8B and 70B, as published."""
    found = {}
    for size in SIZES:
        with fake_tensors():
            found[size] = counts_of(build(config_of(size), Setup(full=True))).all
    assert found == {"1b": 1235814400, "3b": 3212749824, "8b": 8030261248, "70b": 70553706496}


# -- what the passes show -----------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["full", "lora", "carried"])
def test_fake_passes_need_what_real_ones_do(kind, checkpointing):
    """The same passes over real tensors, counted by the same rule: bytes alive at most, and operations. Factors that
    the base carries compute in float32, whatever it computes in."""
    kinds = {"full": FULL, "lora": SMALL, "carried": replace(SMALL, carried=(OVER,), dtype="bfloat16")}
    setup = replace(kinds[kind], checkpointing=checkpointing)
    _, traced = passes(config(), setup)
    model = real(setup).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        if not setup.full:
            model.enable_input_require_grads()
    decoder = (model if setup.full else model.get_base_model()).model
    ids = torch.zeros(setup.batch, setup.length, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0  # without any padding, transformers would leave the mask out
    model.get_input_embeddings().requires_grad_(False)  # its gradient is counted with the gradients
    for p in model.parameters():
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with live_bytes()([ids, mask, *model.parameters(), *model.buffers()]) as counted:
        decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.float().sum().backward()
    assert traced.activations == pytest.approx(counted.peak, rel=0.02)


@pytest.mark.parametrize("name", ["Gemma2", "Mixtral", "Qwen3Moe"])
def test_other_families_need_what_they_really_do(name):
    """Without fused attention (Gemma 2), or with experts, whose product torch's fake tensors refuse in float32."""
    _, traced = passes(families.config(name), FULL)
    model = AutoModelForCausalLM.from_config(families.config(name), dtype=torch.float32).train()
    model.get_input_embeddings().requires_grad_(False)
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None)) if p.requires_grad else None
    ids = torch.zeros(FULL.batch, FULL.length, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    with flop_counter() as ahead:
        model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    with live_bytes()([ids, mask, *model.parameters(), *model.buffers()]) as counted:
        model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.sum().backward()
    assert traced.forward == ahead.get_total_flops()
    assert traced.activations == pytest.approx(counted.peak, rel=0.05)
    assert repair(families.config(name), FULL, "antidote", rows=4).activations < traced.activations


def test_the_operations_of_experts_by_hand():
    """Each token goes through two of four experts: as many products, forward and backward, as of two dense layers."""
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    adapter = {"r": 2, "target_modules": attention}
    for setup, backward in ((FULL, 2), (replace(FULL, full=False, adapter=adapter), 1)):
        one, two = (
            passes(transformers.MixtralConfig(**families.SMALL, num_local_experts=4, num_experts_per_tok=k), setup)[1]
            for k in (1, 2)
        )
        more = 2 * 2 * FULL.batch * FULL.length * 3 * 16 * 24  # of two layers: gate, up, down
        assert two.forward - one.forward == more and two.backward - one.backward == backward * more


def test_experts_that_are_looped_over_are_refused():
    looped = transformers.MixtralConfig(**families.SMALL, num_local_experts=2)
    looped._experts_implementation = "eager"
    with pytest.raises(UnsupportedSetup, match=r"depends on the values in its tensors.*measure a step"):
        passes(looped, FULL)


@pytest.mark.parametrize(
    "kinds",
    [{"mlp_only_layers": [0, 1, 2], "num_hidden_layers": 7}, {"decoder_sparse_step": 2, "num_hidden_layers": 5}],
    ids=["first", "in turn"],
)
def test_layers_of_several_kinds(kinds):
    """Dense layers before those with experts; dense ones and others in turn: as predicted, and as run whole."""
    deep = transformers.Qwen3MoeConfig(**families.SMALL | families.EXPERTS | kinds)
    predicted, run = passes(deep, FULL)[1], trace(deep, FULL)
    for name in ("forward", "backward", "probe"):
        assert getattr(predicted, name) == getattr(run, name)
    assert predicted.activations == pytest.approx(run.activations, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("setup", [FULL, SMALL, replace(FULL, checkpointing=True)], ids=["full", "lora", "again"])
def test_more_layers_add_the_same_each(setup):
    """Six layers as predicted from two and three, against six layers run."""
    deep = config(num_hidden_layers=6)
    predicted, run = passes(deep, setup)[1], trace(deep, setup)
    for name in ("forward", "backward", "probe"):
        assert getattr(predicted, name) == getattr(run, name)
    assert predicted.activations == pytest.approx(run.activations, rel=0.02)
    assert predicted.probed == pytest.approx(run.probed, rel=0.02)


def test_the_count_of_live_bytes_by_hand():
    a = torch.ones(1000)
    with live_bytes()([a]) as counted:
        b = a + 1  # 4,000
        c = b * 2  # 8,000
        c.view(10, 100).add_(1)  # no new storage
        del b
        d = torch.cat([c, c])  # 4,000 + 8,000
        del c
    assert counted.peak == 12_000 and counted.bytes == 8_000 and d.numel() == 2000


def test_operations_by_hand():
    """A model of linear layers alone, nearly: 2 operations a weight and token forward, 4 backward."""
    tall = config(num_hidden_layers=1, attn_implementation="eager")
    setup = replace(FULL, length=8, batch=2, attention="eager")
    _, traced = passes(tall, setup)
    layer = tiny_llama(**SHAPE).model.layers[0]
    linear = sum(m.weight.numel() for m in layer.modules() if isinstance(m, nn.Linear))
    tokens, heads, width = 16, 2, 32
    rope = 2 * 2 * 8 * (width // 2)  # the angles' own little product
    attention = 2 * 2 * 2 * heads * 8 * 8 * width  # q k^T and p v, of two rows
    assert traced.forward == pytest.approx(2 * linear * tokens + attention, abs=2 * rope)
    assert traced.backward == pytest.approx(2 * traced.forward, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("length", [16, 64])
def test_it_grows_as_it_should(length):
    """Activations with the batch; checkpointing makes them fewer; Vaccine needs more than plain, Booster 2 copies."""
    base = replace(FULL, length=length)
    one, two = passes(config(), base)[1], passes(config(), replace(base, batch=8))[1]
    assert 1.8 < two.activations / one.activations < 2.05
    assert passes(config(), replace(base, checkpointing=True))[1].activations < 0.8 * one.activations
    named = ("plain", "vaccine", "booster", "lisa")
    plain, vaccine, booster, lisa = (estimate(config(), base, method) for method in named)
    copy = 4 * plain.counts.trained
    assert vaccine.total > plain.total and booster.extra == 2 * copy and lisa.extra == copy
    assert 1.6 < vaccine.ratio < 1.8 and booster.ratio == 3 and lisa.ratio == 1  # the floors: 1.67, 3, 1
    with_adapter = estimate(config(), replace(base, full=False, adapter=LORA), "vaccine")
    assert 1.9 < with_adapter.ratio <= 2.0


def test_several_processes():
    alone = estimate(config(), FULL)
    together = estimate(config(), replace(FULL, processes=4))
    sharded = estimate(config(), replace(FULL, processes=4, sharded=True))
    assert together.extra == alone.extra + alone.gradients  # DDP's buckets
    assert together.flops == 4 * alone.flops and together.ratio == alone.ratio
    units = 4 * 2 * max(alone.counts.layer, alone.counts.embeddings)
    assert sharded.weights == pytest.approx(alone.weights / 4 + units, abs=4)
    assert sharded.optimizer == pytest.approx(alone.optimizer / 4, abs=4)
    assert sharded.gradients + sharded.activations <= alone.gradients + alone.activations


def test_accumulation_keeps_the_gradients_beside_the_activations():
    once, often = estimate(config(), FULL), estimate(config(), replace(FULL, accumulation=4))
    assert often.activations > once.activations and often.flops == 4 * once.flops


def test_lisas_gradients_are_not_there_before_the_backward_pass():
    """It pulls after the last one."""
    assert estimate(config(), FULL, "lisa").activations == estimate(config(), FULL).activations


def test_sparse_variants_cost_their_share():
    """A step on average: 1 + (r - 1) / k of a plain one, where the method's own steps take r."""
    for cls in (Vaccine, Booster):
        dense, sparse = (estimate(config(), FULL, [cls.without_data(every=k)]) for k in (1, 100))
        assert sparse.ratio == pytest.approx(1 + (dense.ratio - 1) / 100, abs=1e-6)
        assert sparse.total == dense.total
    assert (dense.passes, sparse.passes) == ("3 forward, 3 backward", "1.02 forward, 1.02 backward")


def test_antidote():
    needs = repair(config(), SMALL, "antidote", rows=10)
    factors = [m for n, m in real(SMALL).named_modules() if isinstance(m, nn.Linear) and ".lora_" in n]
    largest = max(m.weight.numel() for m in factors)
    assert needs.norms == 8 * sum(m.in_features for m in factors) + 8 * largest
    assert needs.activations < estimate(config(), SMALL).activations
    update = repair(config(), SMALL, Antidote(targets="update"), rows=10)
    assert update.weights == 2 * needs.weights and update.norms > needs.norms
    _, traced = passes(config(), SMALL)
    assert needs.flops == 3 * traced.forward  # ten rows, four at a time


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_methods_copies_are_the_real_ones(kind, tmp_path):
    """A whole optimizer step of the real trainer, counted by the same rule, against the prediction."""
    setup = FULL if kind == "full" else SMALL
    defenses = {
        "plain": lambda: None,
        "vaccine": lambda: Vaccine(rho=1.0),
        "booster": lambda: Booster(harmful_dataset=rows("harm")),
        "lisa": lambda: Lisa(
            alignment_dataset=rows("safe"), align_steps=1, finetune_steps=1, rho=1.0, proximal_start=0.0
        ),
    }
    counted = {}
    for method, make in defenses.items():
        model = real(setup)
        trainer = trainer_for(
            model, tmp_path, defense=make(), optim="adamw_torch", learning_rate=1e-3, max_steps=3, **{"fp16": False}
        )
        with live_bytes()([*model.parameters(), *model.buffers()]) as live:
            trainer.train()
        counted[method] = live.peak
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    length = batch["input_ids"].shape[1]
    for method, peak in counted.items():
        needs = estimate(config(), replace(setup, batch=8, length=length), method)
        print(f"{kind} {method}: {(needs.total - needs.weights) / 1e6:.1f} predicted, {peak / 1e6:.1f} counted (MB)")
        assert needs.total - needs.weights == pytest.approx(peak, rel=0.05), method


@pytest.mark.slow
def test_logits_and_states_of_methods_are_the_real_ones(tmp_path):
    """What they take beyond plain training, with a vocabulary and a width that outweigh all else."""
    shape = {"vocab_size": 8000, "hidden_size": 256, "num_hidden_layers": 4}
    paired = [
        {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": f"other {i}"}]}
        for i, row in enumerate(rows("user"))
    ]
    defenses = [
        None,
        KL(lam=1.0),
        SafeGrad(alignment_dataset=rows("user"), rho=1.0),
        LDIFS(rho=0.1),
        RepNoise(harmful_dataset=paired, alpha=0.5, beta=0.5),
    ]
    more = []
    for defense in defenses:
        model = real(SMALL, **shape)
        trainer = trainer_for(model, tmp_path, defense=defense, optim="adamw_torch", learning_rate=1e-3, max_steps=2)
        with scoring_labels_only(model), live_bytes()([*model.parameters(), *model.buffers()]) as live:
            trainer.train()
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
        scored = int((batch["labels"][:, 1:] != -100).sum())
        setup = replace(SMALL, batch=8, length=batch["input_ids"].shape[1], scored=math.ceil(scored / 8))
        needs = estimate(config(**shape), setup, [defense] if defense else PLAIN)
        more.append((needs.total, live.peak))
    (plain, counted), *others = more
    for defense, (predicted, peak) in zip(defenses[1:], others, strict=True):
        name = type(defense).__name__
        print(f"{name}: {(predicted - plain) / 1e6:.1f} predicted, {(peak - counted) / 1e6:.1f} counted (MB)")
        assert predicted - plain == pytest.approx(peak - counted, rel=0.15), name


def test_a_method_is_estimated_from_what_it_states():
    """One that nobody knows: what it states, times what a pass, a copy and a row take."""
    plain, half = estimate(config(), FULL), estimate(config(), replace(FULL, batch=FULL.batch // 2))
    assert estimate(config(), FULL, [stating()]).total == plain.total
    found = estimate(config(), FULL, [stating(passes=2.5, forwards=1, copies=1, saved=0.5)])
    copy = 4 * plain.counts.trained
    assert (found.extra, found.checkpoints) == (copy, plain.checkpoints + copy)
    assert 2.5 < found.ratio < 3 and found.passes == "3.5 forward, 2.5 backward"
    assert estimate(config(), FULL, [stating(once_passes=1)], rows=FULL.batch).once == plain.flops
    seen = stating(once_passes=1, once_rows=FULL.batch)
    assert estimate(config(), FULL, [seen], rows=100 * FULL.batch).once == plain.flops
    assert estimate(config(), FULL, [seen, seen], rows=100 * FULL.batch).once == 2 * plain.flops
    assert estimate(config(), FULL, [seen], rows=FULL.batch // 2).once == pytest.approx(plain.flops / 2, abs=1)
    tokens, h = FULL.batch * FULL.length, SHAPE["hidden_size"]
    seen = estimate(config(), FULL, [stating(logits=2, layer_logits=0.5, layer_states=1, matrices=1)])
    linear = sum(m.weight.numel() for m in tiny_llama(**SHAPE).model.modules() if isinstance(m, nn.Linear))
    assert seen.extra == 4 * ((2 + 0.5 * 3) * tokens * 259 + 3 * tokens * h + linear)
    adapted = 3 * (h * h + h * h // 2 + h * 160)  # q, v of one head's width, up
    assert estimate(config(), SMALL, [stating(matrices=1)]).extra == 4 * adapted
    smaller = estimate(config(), FULL, [stating(batch_factor=0.5)])
    assert (smaller.activations, smaller.flops) == (half.activations, half.flops)


def test_methods_together_take_the_sum():
    plain, three, copying, both = (
        estimate(config(), FULL, acting)
        for acting in ([], [stating(passes=3)], [stating(copies=2)], [stating(passes=3), stating(copies=2)])
    )
    assert both.flops == three.flops == 3 * plain.flops
    assert both.extra == copying.extra and both.total - three.total == copying.total - plain.total


def test_a_repair_is_estimated_from_what_it_states():
    counts, traced = passes(config(), SMALL)
    nothing = repair(config(), SMALL, repairing(passes=0), rows=0)
    assert (nothing.flops, nothing.norms, nothing.kept, nothing.passes) == (0, 0, 0, "none")
    assert nothing.total == nothing.weights == 4 * (counts.all + counts.trained)
    found = repair(config(), SMALL, repairing(passes=0, once_passes=1, changes="adapter", kept=4), rows=8)
    assert (found.flops, found.passes) == (2 * (traced.forward + traced.backward), "1 forward, 1 backward in all")
    assert found.kept == 4 * counts.trained


@pytest.mark.parametrize("cost", [{"once_passes": 1}, {"once_forwards": 1}], ids=lambda cost: next(iter(cost)))
def test_a_repair_without_memory_is_the_same_but_for_its_activations(cost, monkeypatch):
    """Both ways: with passes, and with a forward pass of its own. Nothing is run."""
    acting = repairing(passes=0, changes="adapter", kept=4, per_input=4, **cost)
    whole = repair(config(), SMALL, acting, rows=8)
    monkeypatch.setattr("mithridate.estimate.trace.build", lambda *_: pytest.fail("passes are run"))
    monkeypatch.setattr("mithridate.estimate.build", lambda *_: pytest.fail("passes are run"))
    work = repair(config(), SMALL, acting, rows=8, memory=False)
    assert work.activations == 0 < whole.activations and work.norms > 0
    assert work.flops == pytest.approx(whole.flops, rel=0.05)
    assert replace(work, activations=whole.activations, flops=whole.flops) == whole


@pytest.mark.parametrize("name", families.FAMILIES)
def test_operations_by_the_weights_are_those_of_the_passes(name):
    """Of every family: of all weights trained, exactly; with an adapter, but for the gradients that nothing below the
    first adapter needs, half of them in models of two layers."""
    counted, traced = (passes(families.config(name), FULL, memory=memory)[1] for memory in (False, True))
    assert counted.forward == traced.forward and counted.activations == 0
    eager = 1.2 if name == "Gemma2" else 1  # four products of attention backward, where fused attention has five
    assert traced.backward <= counted.backward <= eager * traced.backward
    dense = families.FAMILIES[name][1] is not families.EXPERTS
    setup = replace(SMALL, adapter={"r": 4, "target_modules": "all-linear" if dense else ["q_proj", "v_proj"]})
    counted, traced = (passes(families.config(name), setup, memory=memory)[1] for memory in (False, True))
    assert counted.forward == traced.forward
    assert traced.backward < counted.backward < 1.25 * traced.backward


@pytest.mark.parametrize("setup", [SMALL, replace(SMALL, checkpointing=True)], ids=["once", "again"])
@pytest.mark.slow
def test_operations_by_the_weights_of_more_layers(setup):
    deep = config(num_hidden_layers=12)
    counted, traced = (passes(deep, setup, memory=memory)[1] for memory in (False, True))
    assert counted.forward + counted.backward == pytest.approx(traced.forward + traced.backward, rel=0.1)
    assert counted.forward + counted.probe == pytest.approx(traced.forward + traced.probe, rel=0.1)
    whole = [
        passes(deep, replace(FULL, checkpointing=setup.checkpointing), memory=m)[1].backward for m in (False, True)
    ]
    assert whole[0] == pytest.approx(whole[1], rel=0.1)


def test_an_adapter_over_experts_is_counted():
    """PEFT puts "all-linear" over experts' stacked matrices too, which are no layers."""
    setup = replace(SMALL, adapter={"r": 2, "target_modules": "all-linear"})
    counts, traced = passes(families.config("Mixtral"), setup)
    experts, attention, router = 3 * 4 * 16 * 24, 2 * 16 * 16 + 2 * 16 * 8, 4 * 16
    assert counts.changed_linear == 2 * (experts + attention + router) and traced.forward > 0


def stating(**cost: float) -> Defense:
    return Stating(stated=Cost(**cost))


def repairing(**cost: Any) -> Repair:
    return Repairing(stated=Cost(**cost))


@dataclass(kw_only=True)
class Stating(Defense):
    stated: Cost

    def cost(self) -> Cost:
        return self.stated


@dataclass(kw_only=True)
class Repairing(Repair):
    stated: Cost

    def cost(self) -> Cost:
        return self.stated

    def apply(self, model, **inputs):
        raise NotImplementedError


# -- what is asked for --------------------------------------------------------------------------------------


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match=r"no configuration found.*1b, 3b, 8b, 70b"):
        config_of(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="no such method 'vacine'"):
        estimate(config(), FULL, "vacine")
    with pytest.raises(InputError, match="batch: expected at least 1, got 0"):
        estimate(config(), replace(FULL, batch=0))
    with pytest.raises(InputError, match="adapter: "):
        passes(config(), replace(SMALL, adapter={"r": 2, "target_modules": ["nothing"]}))


def test_a_folder_of_ones_own(tmp_path):
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()  # weights are not needed
    assert config_of(str(tmp_path)).hidden_size == 16


def test_probes_are_traced_only_for_methods_that_take_them(monkeypatch):
    """They take two thirds of the time; the rest is the same without."""
    from mithridate.estimate import trace as tracing

    wide = replace(SMALL, batch=3)  # no other test's, which the cache may have
    without, with_them = passes(config(), wide, probes=False)[1], passes(config(), wide)[1]
    assert (without.probe, without.probed) == (0, 0) and with_them.probe > 0
    assert without == replace(with_them, probe=0, probed=0)
    monkeypatch.setattr(tracing, "_shifted_step", lambda *_: pytest.fail("traced"))
    estimate(config(), replace(SMALL, batch=5), "booster")
    with pytest.raises(pytest.fail.Exception):
        estimate(config(), replace(SMALL, batch=5), "vaccine")
