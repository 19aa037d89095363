"""Safe LoRA against a naive float64 form, and held away from the traps of its public code and the copies of that."""

import copy

import numpy as np
import pytest
import torch

from mithridate.errors import InputError, UnsupportedSetup
from mithridate.repairs.safelora import SafeLoRA
from tests.repairs.test_baselines import adapted, effective, error, models, settings, shaken
from tests.tiny import tiny_llama


def before_alignment():
    """A base model from which `models`' aligned one (whatever the setting) differs in every weight."""
    return shaken(tiny_llama(torch.float64), 7)


def naive(tuned, aligned, base, tau=None, number=None):
    """The rule with C made in full, layer by layer: new weights, and the cosines."""
    linear = [n for n in tuned if n.endswith("proj.weight") and (tuned[n] != aligned[n]).any()]
    cosines, mapped = {}, {}
    for name in linear:
        v, u = aligned[name] - base[name], tuned[name] - aligned[name]
        c = v @ v.T / np.sqrt((v**2).sum())
        mapped[name] = c @ u
        cosines[name] = (mapped[name] * u).sum() / np.sqrt((mapped[name] ** 2).sum() * (u**2).sum())
    below = [n for n in linear if number is None and cosines[n] <= tau]
    chosen = below if number is None else sorted(linear, key=cosines.get)[:number]
    return tuned | {n: aligned[n] + mapped[n] for n in chosen}, cosines


def middle(cosines):
    """A threshold with as many cosines below as above."""
    ordered = sorted(cosines.values())
    return (ordered[len(ordered) // 2 - 1] + ordered[len(ordered) // 2]) / 2


@pytest.mark.shows("weights", "exact", methods=["safelora"])
@settings
def test_threshold_mode_is_the_rule(setting):
    model, aligned = models(setting)
    tuned, start, base = effective(model), effective(aligned), effective(before_alignment())
    _, cosines = naive(tuned, start, base, tau=0)
    tau = middle(cosines)
    want, _ = naive(tuned, start, base, tau=tau)
    assert error(tuned, want) > 1e-3
    delta = SafeLoRA(tau=tau).apply(model, aligned=aligned, base=before_alignment())
    assert error(effective(model), want) < 1e-14
    assert len(delta.changes) == len(cosines) // 2 and all(0 <= cos <= 1 for cos in cosines.values())
    assert delta.only_factors == (setting == "double")  # B <- C B: the adapter stays one


@settings
@pytest.mark.parametrize("number", [0, 1, 3, 99])
def test_number_mode_maps_just_as_many(setting, number):
    model, aligned = models(setting)
    tuned, start, base = effective(model), effective(aligned), effective(before_alignment())
    want, cosines = naive(tuned, start, base, number=number)
    delta = SafeLoRA(number=number).apply(model, aligned=aligned, base=before_alignment())
    assert error(effective(model), want) < 1e-14
    assert len(delta.changes) == min(number, len(cosines))


def turned(model, name, angle):
    """Sets an adapter's B at a layer so that C U is U turned by a chosen angle's cosine; `base` has V = diag(1, 3)."""
    with torch.no_grad():
        layer = model.get_submodule(f"base_model.model.{name}")
        b = torch.zeros_like(layer.lora_B["default"].weight)
        b[0, 0], b[1, 0] = np.cos(angle), np.sin(angle)
        layer.lora_B["default"].weight.copy_(b)


def simple():
    """Four adapted layers whose V has two directions, of lengths 1 and 3; their cosines follow from the angles."""
    aligned = tiny_llama(torch.float64)
    base, model = copy.deepcopy(aligned), adapted(copy.deepcopy(aligned), 1)
    names = [f"model.layers.{i}.{n}" for i in (0, 1) for n in ("self_attn.q_proj", "mlp.up_proj")]
    with torch.no_grad():
        for name in names:
            weight = base.get_submodule(name).weight
            weight[0, 0] -= 1
            weight[1, 1] -= 3
    return model, aligned, base, names


def test_the_trial_threshold_of_the_public_number_mode_maps_nothing():
    """The trap: the public code maps every layer below 0.3 while it looks for the threshold, and has to put them back;
    and it takes all layers that tie with the last one. Here three tie below it, and one is asked for; the others stay
    as they are bit for bit."""
    model, aligned, base, names = simple()
    for name in names[:3]:  # orthogonal to both directions: C U = 0, cosine 0
        layer = model.get_submodule(f"base_model.model.{name}")
        with torch.no_grad():
            layer.lora_B["default"].weight[:2] = 0
    before = {n: p.clone() for n, p in model.named_parameters()}
    delta = SafeLoRA(number=1).apply(model, aligned=aligned, base=base)
    assert list(delta.changes) == [f"{names[0]}.lora_B"]  # of equal cosines the earlier layer, and no other on ties
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (f"{names[0]}.lora_B" not in name), name


def test_c_is_no_projector():
    """C = V V^T / ||V|| with V = diag(1, 3): (cos t, sin t) goes to (cos t, 9 sin t) / sqrt(10). Twice as long a V
    maps to twice as long an update, and mapping twice is not mapping once."""
    model, aligned, base, names = simple()
    for name in names:
        turned(model, name, 0.3)
    once = copy.deepcopy(model)
    delta = SafeLoRA(tau=1.0).apply(once, aligned=aligned, base=base)
    key = f"{names[0]}.lora_B"
    got = delta.changes[key].value[:2, 0]
    want = torch.tensor([np.cos(0.3), 9 * np.sin(0.3)], dtype=torch.float64) / np.sqrt(10)
    torch.testing.assert_close(got, want, rtol=1e-14, atol=0)
    again = SafeLoRA(tau=1.0).apply(copy.deepcopy(once), aligned=aligned, base=base).changes[key].value[:2, 0]
    assert (again - got).norm() > 0.5 * got.norm()
    with torch.no_grad():
        for name in names:
            weight, start = base.get_submodule(name).weight, aligned.get_submodule(name).weight
            weight.copy_(start - 2 * (start - weight))
    longer = SafeLoRA(tau=1.0).apply(model, aligned=aligned, base=base).changes[key].value[:2, 0]
    torch.testing.assert_close(longer, 2 * want, rtol=1e-14, atol=0)


def test_the_choice_does_not_depend_on_float16_storage():
    """The trap: cosines in the models' own dtype choose other layers."""
    chosen = {}
    for dtype in (torch.float64, torch.float32, torch.float16):
        model, aligned, base, names = simple()
        for name, angle in zip(names, (0.1, 0.2, 0.3, 0.4), strict=True):
            turned(model, name, angle)
        for one in (model, aligned, base):
            one.to(dtype)
        chosen[dtype] = list(SafeLoRA(tau=0.63).apply(model, aligned=aligned, base=base).changes)
    # The cosines are 0.805, 0.645, 0.601 and 0.611.
    assert (
        chosen[torch.float64] == chosen[torch.float32] == chosen[torch.float16] == [f"{n}.lora_B" for n in names[2:]]
    )


@settings
def test_the_control_is_as_short_and_keeps_the_direction(setting):
    model, aligned = models(setting)
    mapped, base = copy.deepcopy(model), before_alignment()
    SafeLoRA(number=2).apply(mapped, aligned=aligned, base=base)
    before, start, mapped = effective(model), effective(aligned), effective(mapped)
    control = SafeLoRA(number=2).controls()["shrink"]
    delta = control.apply(model, aligned=aligned, base=base)
    assert len(delta.changes) == 2
    for name, w in effective(model).items():
        u, short, image = before[name] - start[name], w - start[name], mapped[name] - start[name]
        assert abs(np.linalg.norm(short) - np.linalg.norm(image)) < 1e-12, name
        assert abs((u * short).sum() - np.linalg.norm(u) * np.linalg.norm(short)) < 1e-12, name


def test_what_it_cannot_do_is_refused_by_name():
    aligned, base = tiny_llama(), shaken(tiny_llama(), 7)
    with pytest.raises(UnsupportedSetup, match="SafeLoRA: needs the aligned model"):
        SafeLoRA().apply(adapted(tiny_llama(), 1), base=base)
    with pytest.raises(UnsupportedSetup, match="SafeLoRA: needs the base model"):
        SafeLoRA().apply(adapted(tiny_llama(), 1), aligned=aligned)
    with pytest.raises(InputError, match=r"left model.layers.0.self_attn.q_proj.weight as it was") as refused:
        SafeLoRA().apply(adapted(tiny_llama(), 1), aligned=aligned, base=tiny_llama())
    assert "target_modules" in str(refused.value)
    with pytest.raises(InputError, match="`finetune` is none"):
        SafeLoRA().check_run(topology="double", finetuned=False, adapter=True)
    with pytest.raises(InputError, match=r"tau .* and number .* exclude each other"):
        SafeLoRA(tau=0.3, number=4)
    for wrong in ({"tau": 2}, {"tau": "x"}, {"number": -1}, {"number": 1.5}):
        with pytest.raises(InputError, match="must be a"):
            SafeLoRA(**wrong)


def test_what_is_no_linear_layer_stays_and_is_counted():
    model, aligned = models("full")
    before = effective(model)
    delta = SafeLoRA(tau=1.0).apply(model, aligned=aligned, base=before_alignment())
    after = effective(model)
    same = [n for n in before if (before[n] == after[n]).all()]
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= set(same)
    assert not any(n.endswith("proj.weight") for n in same if n != "model.layers.1.mlp.gate_proj.weight")
    assert f"{len(same) - 1} weights that are no linear layer's" in "\n".join(delta.notes)
