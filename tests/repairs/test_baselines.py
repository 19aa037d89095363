"""The baselines among the repairs against naive float64 forms, entry by entry of the weights that the model computes
with, through LoRA (apart from the alignment, and over it) and with all weights trained."""

import copy
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from mithridate.errors import InputError, UnsupportedSetup
from mithridate.repairs.antidote import Antidote
from mithridate.repairs.lox import LoX
from mithridate.repairs.randommask import RandomMask
from mithridate.repairs.randomnoise import RandomNoise
from mithridate.repairs.wiseft import WiSEFT
from tests.tiny import tiny_llama

TARGETS = ["q_proj", "up_proj"]
settings = pytest.mark.parametrize("setting", ["double", "single", "full"])


def adapted(base, seed):
    torch.manual_seed(seed)
    config = LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, init_lora_weights=False)
    return get_peft_model(base, config).eval()


def shaken(model, seed):
    """All weights trained, but for one."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.endswith("layers.1.mlp.gate_proj.weight"):
                p.add_(0.1 * torch.randn_like(p))
    return model


def models(setting):
    """The fine-tuned model and the aligned one, in float64."""
    if setting == "full":
        return shaken(tiny_llama(torch.float64), 1), tiny_llama(torch.float64)
    if setting == "double":
        return adapted(tiny_llama(torch.float64), 1), tiny_llama(torch.float64)
    aligned = adapted(tiny_llama(torch.float64), 1)
    tuned = copy.deepcopy(aligned)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, p in tuned.named_parameters():
            if "lora_" in name:
                p.add_(0.1 * torch.randn_like(p))
    return tuned, aligned


def effective(model):
    """Every weight as numpy, an adapter's product added by hand: 5 / 3 * B A."""
    state = {n: p.detach().double().numpy().copy() for n, p in model.named_parameters()}
    plain = {n.replace("base_model.model.", "").replace(".base_layer", ""): n for n in state if "lora_" not in n}
    found = {}
    for name, own in plain.items():
        w = state[own]
        if ".base_layer" in own and not merged(model, own):
            a, b = (state[own.replace("base_layer", f"lora_{f}.default")] for f in "AB")
            w = w + 5 / 3 * b @ a
        found[name] = w
    return found


def merged(model, own):
    return model.get_submodule(own.removesuffix(".base_layer.weight")).merged


def error(got, want):
    """|got - want| / |want|, over all weights."""
    assert got.keys() == want.keys()
    square = sum(((got[n] - want[n]) ** 2).sum() for n in want)
    return math.sqrt(square / sum((w**2).sum() for w in want.values()))


@pytest.mark.shows("weights", "exact", methods=["wiseft"])
@settings
@pytest.mark.parametrize("a", [0.3, 1.0])
def test_wiseft_is_the_mean_of_the_weights(setting, a):
    model, aligned = models(setting)
    tuned, before = effective(model), effective(aligned)
    want = {n: a * before[n] + (1 - a) * tuned[n] for n in tuned}
    assert error(tuned, want) > 1e-3
    WiSEFT(a=a).apply(model, aligned=aligned)
    assert error(effective(model), want) < 1e-14


def test_wiseft_after_a_fine_tune_of_its_own_adapter_scales_it_by_1_minus_a():
    model, aligned = models("double")
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in scaled.named_parameters():
            if "lora_B" in name:
                p.mul_(0.75)
    WiSEFT(a=0.25).apply(model, aligned=aligned)
    assert error(effective(model), effective(scaled)) < 1e-14


def test_a_mean_of_factors_is_another_model():
    """The trap of one adapter for both: (1-a) B A + a B' A' is not the product of the means of the factors."""
    model, aligned = models("single")
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        for (name, p), (_, q) in zip(wrong.named_parameters(), aligned.named_parameters(), strict=True):
            if "lora_" in name:
                p.copy_((p + q) / 2)
    WiSEFT(a=0.5).apply(model, aligned=aligned)
    assert error(effective(wrong), effective(model)) > 1e-4


@pytest.mark.shows("weights", "exact", methods=["randomnoise"])
@settings
def test_random_noise_is_as_long_as_the_share_of_the_update(setting):
    """For each weight: as far as WiSEFT moves it, in a direction that has nothing to do with the way back."""
    tuned, aligned = models(setting)
    noisy, wise = copy.deepcopy(tuned), copy.deepcopy(tuned)
    delta = RandomNoise(scale=0.4).apply(noisy, aligned=aligned)
    assert delta.total == WiSEFT(a=0.4).apply(wise, aligned=aligned).total
    before, start = effective(tuned), effective(aligned)
    noisy, wise = effective(noisy), effective(wise)
    lengths, cosines = [], []
    for name, w in before.items():
        update, moved = w - start[name], noisy[name] - w
        length = np.linalg.norm(update)
        lengths.append(abs(np.linalg.norm(moved) - 0.4 * length))
        assert abs(np.linalg.norm(wise[name] - w) - 0.4 * length) < 1e-12
        if length and w.ndim == 2:
            cosines.append((moved * update).sum() / np.linalg.norm(moved) / length)
    assert max(lengths) < 1e-12 and cosines and max(map(abs, cosines)) < 0.3


def test_random_noise_depends_on_the_seed_and_the_weight_alone():
    digests = []
    for seed in (0, 0, 1):
        model, aligned = models("double")
        digests.append(RandomNoise(scale=0.4, seed=seed).apply(model, aligned=aligned).digest)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.shows("weights", "exact", methods=["randommask"])
@pytest.mark.parametrize("targets", ["adapters", "update", "merged"])
@pytest.mark.parametrize("scope", ["row", "tensor", "global"])
def test_random_mask_is_antidote_s_control(targets, scope):
    found = {}
    for cls, more in ((RandomMask, {}), (Antidote, {"score": "random"})):
        model, aligned = models("double")
        repair = cls(ratio=0.3, targets=targets, scope=scope, seed=3, **more)
        delta = repair.apply(model, aligned=aligned if targets == "update" else None)
        found[cls] = delta.digest, effective(model)
    assert found[RandomMask][0] == found[Antidote][0]
    assert error(found[RandomMask][1], found[Antidote][1]) == 0
    assert delta.repair == "antidote" and RandomMask().data_roles() == {}


def test_random_mask_removes_as_many_of_each_row_and_says_its_name():
    model, _ = models("double")
    before = {n: p.clone() for n, p in model.named_parameters()}
    delta = RandomMask(ratio=0.3).apply(model)
    assert delta.repair == "randommask" and "score" not in delta.settings
    for name, p in model.named_parameters():
        if "lora_" in name:
            n = p.shape[1]
            cut = (p != before[name]).sum(1)
            assert (cut == math.ceil(3 * n / 10)).all() and (p[p != before[name]] == 0).all()
    with pytest.raises(InputError, match="RandomMask: ratio"):
        RandomMask(ratio=2)
    with pytest.raises(TypeError):
        RandomMask(score="wanda")
    with pytest.raises(UnsupportedSetup, match="RandomMask: targets='adapters'"):
        RandomMask().apply(tiny_llama())


@pytest.mark.shows("weights", "exact", methods=["lox"])
@settings
def test_lox_goes_beyond_the_aligned_model(setting):
    if setting == "full":
        model, base = shaken(tiny_llama(torch.float64), 1), tiny_llama(torch.float64)
    else:
        model, base = adapted(tiny_llama(torch.float64), 1), tiny_llama(torch.float64)
        if setting == "double":  # the alignment's adapter is merged before the user's run
            model = model.merge_and_unload()
    aligned, before = effective(model), effective(base)
    want = {n: w + 0.6 * (w - before[n]) if w.ndim > 1 else w for n, w in aligned.items()}
    assert error(aligned, want) > 1e-3
    delta = LoX(coef=0.6).apply(model, base=base)
    assert error(effective(model), want) < 1e-14
    assert delta.only_factors == (setting == "single")  # so that the user's run can go on training the adapter


def test_lox_leaves_a_and_the_rank_of_the_adapter():
    model, base = adapted(tiny_llama(), 1), tiny_llama()
    before = {n: p.clone() for n, p in model.named_parameters()}
    LoX(coef=1.0).apply(model, base=base)
    for name, p in model.named_parameters():
        assert torch.equal(p, 2 * before[name] if "lora_B" in name else before[name])


@pytest.mark.parametrize("repair", [WiSEFT(), RandomNoise(), LoX()])
def test_what_they_cannot_do_is_refused(repair):
    kind = next(iter(repair.models))
    name = type(repair).__name__
    with pytest.raises(UnsupportedSetup, match=f"{name}: needs the {kind} model") as refused:
        repair.apply(tiny_llama())
    assert f"{kind}=" in refused.value.remedy
    model = tiny_llama()
    with pytest.raises(UnsupportedSetup, match="as an object of its own"):
        repair.apply(model, **{kind: model})
    with pytest.raises(InputError, match=f"{name}: model and {kind} model have no layer"):
        repair.apply(tiny_llama(), **{kind: tiny_llama(num_hidden_layers=1)})


@pytest.mark.parametrize(
    ("made", "wrong"),
    [
        (lambda v: WiSEFT(a=v), [-0.1, 1.1, "x", None]),
        (lambda v: RandomNoise(scale=v), [-1, float("inf")]),
        (lambda v: RandomNoise(seed=v), [-1, 0.5]),
        (lambda v: LoX(coef=v), [-1, float("nan")]),
    ],
)
def test_settings_out_of_their_range_are_refused(made, wrong):
    for value in wrong:
        with pytest.raises(InputError, match="must be a"):
            made(value)


def test_without_a_fine_tune_there_is_nothing_to_take_back():
    for repair in (WiSEFT(), RandomNoise()):
        repair.check_run(topology="double", finetuned=True, adapter=True)
        with pytest.raises(InputError, match="`finetune` is none"):
            repair.check_run(topology="double", finetuned=False, adapter=True)
