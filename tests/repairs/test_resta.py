"""RESTA against naive float64 forms, without DARE and with it in either place, and away from the errors of a port."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from mithridate.errors import InputError, UnsupportedSetup
from mithridate.repairs.linears import weights
from mithridate.repairs.resta import RESTA
from tests.repairs.test_baselines import effective, error, models, settings, shaken
from tests.tiny import tiny_llama


def harmful(aligned, full=False):
    """An aligned model's unaligned twin: its adapter, or all of its weights, trained on."""
    twin = copy.deepcopy(aligned)
    torch.manual_seed(9)
    with torch.no_grad():
        for name, p in twin.named_parameters():
            if full or "lora_" in name or name.endswith("q_proj.weight"):
                p.add_(0.1 * torch.randn_like(p))
    return twin


@pytest.mark.shows("weights", "exact", methods=["resta"])
@settings
def test_without_dare_it_is_task_arithmetic(setting):
    model, aligned = models(setting)
    twin = harmful(aligned, full=setting == "full")
    tuned, start, bad = effective(model), effective(aligned), effective(twin)
    want = {n: w + 0.7 * (start[n] - bad[n]) for n, w in tuned.items()}
    assert error(tuned, want) > 1e-3
    RESTA(alpha=0.7).apply(model, aligned=aligned, unaligned=twin)
    assert error(effective(model), want) < 1e-14


def test_a_user_who_trained_on_the_same_rows_is_taken_back_whole():
    """alpha = 1 of a fine-tune that is the defender's own: the aligned model."""
    _, aligned = models("double")
    twin = harmful(aligned)
    model = copy.deepcopy(twin)
    RESTA(alpha=1.0).apply(model, aligned=aligned, unaligned=twin)
    assert error(effective(model), effective(aligned)) < 1e-15


@pytest.mark.parametrize("copied", ["lm_head", "embed_tokens"])
def test_a_copy_of_a_weight_that_is_tied_in_the_aligned_model_is_moved_too(copied):
    """Beside the other name's weight, which the fine-tune left: as both are in the naive form."""
    aligned = tiny_llama(torch.float64, tie_word_embeddings=True)
    twin = shaken(copy.deepcopy(aligned), 4)
    adapter = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=[copied])
    model = shaken(get_peft_model(copy.deepcopy(aligned), adapter).double(), 5)
    tuned, start, bad = ({n: w.effective().clone() for n, w in weights(m).items()} for m in (model, aligned, twin))
    RESTA(alpha=1.0).apply(model, aligned=aligned, unaligned=twin)
    assert len(tuned) == len(dict(aligned.named_parameters())) + 1
    for name, weight in weights(model).items():
        torch.testing.assert_close(weight.effective(), tuned[name] + start[name] - bad[name], msg=name)
    same = copy.deepcopy(aligned)
    RESTA(alpha=1.0).apply(same, aligned=aligned, unaligned=twin)  # tied still
    assert same.lm_head.weight is same.model.embed_tokens.weight


@settings
@pytest.mark.parametrize("placement", ["update", "vector"])
def test_dare_drops_a_share_of_the_entries_and_rescales_the_rest(setting, placement):
    """Entry by entry, what DARE acted on is zero or 1 / (1 - p) of what it was, and the other part is untouched."""
    model, aligned = models(setting)
    twin = harmful(aligned, full=setting == "full")
    tuned, start, bad = effective(model), effective(aligned), effective(twin)
    RESTA(alpha=0.5, dare=0.3, placement=placement).apply(model, aligned=aligned, unaligned=twin)
    dropped = entries = 0
    for name, got in effective(model).items():
        update, vector = tuned[name] - start[name], 0.5 * (start[name] - bad[name])
        acted, other = (update, vector) if placement == "update" else (vector, update)
        left = got - start[name] - other
        some = np.abs(acted) > 1e-6
        zero = np.abs(left) < 1e-12
        np.testing.assert_allclose(left[some & ~zero], (acted / 0.7)[some & ~zero], rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(left[~some], 0, atol=1e-5)
        dropped, entries = dropped + (zero & some).sum(), entries + some.sum()
    assert entries > 500
    assert abs(dropped / entries - 0.3) < 4 * np.sqrt(0.3 * 0.7 / entries)


def test_the_two_placements_are_two_methods_and_no_dare_is_a_third():
    made = {}
    for placement, dare in (("update", 0.5), ("vector", 0.5), ("update", None), ("vector", None)):
        model, aligned = models("double")
        delta = RESTA(alpha=0.5, dare=dare, placement=placement).apply(
            model, aligned=aligned, unaligned=harmful(aligned)
        )
        made[placement, dare] = delta.digest
    assert made["update", None] == made["vector", None]
    assert len(set(made.values())) == 3


def test_dare_is_on_weights_and_not_on_factors():
    """The trap of LoRA: with entries of A and B dropped, each at p, an entry of B A is not dropped or rescaled."""
    model, aligned = models("double")
    name = "model.layers.0.self_attn.q_proj.weight"
    update = effective(model)[name] - effective(aligned)[name]
    twin = harmful(aligned)
    RESTA(alpha=0.0, dare=0.5).apply(model, aligned=aligned, unaligned=twin)
    left = (effective(model)[name] - effective(aligned)[name]) / update
    assert set(np.round(left, 9).flatten()) == {0.0, 2.0}


def test_the_base_model_is_not_the_unaligned_one():
    """The trap of a port: aligned - base is the whole of the alignment, another vector."""
    found = {}
    for kind in ("unaligned", "base"):
        model, aligned = models("full")
        twin = harmful(aligned, full=True) if kind == "unaligned" else shaken(tiny_llama(torch.float64), 7)
        RESTA(alpha=0.5).apply(model, aligned=aligned, unaligned=twin)
        found[kind] = effective(model)
    assert error(found["unaligned"], found["base"]) > 1e-2
    assert RESTA.models == {"aligned": "aligned", "unaligned": "unaligned"}  # which the pipeline trains


def test_draws_depend_on_the_seed_and_the_weight_alone():
    digests = []
    for seed in (0, 0, 1):
        model, aligned = models("double")
        repair = RESTA(alpha=0.5, dare=0.5, seed=seed)
        digests.append(repair.apply(model, aligned=aligned, unaligned=harmful(aligned)).digest)
    assert digests[0] == digests[1] != digests[2]


@settings
def test_the_control_moves_each_weight_as_far_in_another_direction(setting):
    model, aligned = models(setting)
    twin = harmful(aligned, full=setting == "full")
    before, start, bad = effective(model), effective(aligned), effective(twin)
    RESTA(alpha=0.5).controls()["random-direction"].apply(model, aligned=aligned, unaligned=twin)
    cosines = []
    for name, w in effective(model).items():
        v, moved = 0.5 * (start[name] - bad[name]), w - before[name]
        assert abs(np.linalg.norm(moved) - np.linalg.norm(v)) < 1e-12, name
        if v.any() and v.ndim == 2:
            cosines.append((v * moved).sum() / np.linalg.norm(v) ** 2)
    assert cosines and max(map(abs, cosines)) < 0.3


def test_what_it_cannot_do_is_refused_by_name():
    model, aligned = models("double")
    with pytest.raises(UnsupportedSetup, match="RESTA: needs the unaligned model"):
        RESTA(alpha=0.5).apply(model, aligned=aligned)
    with pytest.raises(UnsupportedSetup, match="RESTA: needs the aligned model"):
        RESTA(alpha=0.5).apply(model, unaligned=aligned)
    with pytest.raises(InputError, match="no safety vector"):
        RESTA(alpha=0.5).apply(model, aligned=aligned, unaligned=copy.deepcopy(aligned))
    with pytest.raises(InputError, match="`finetune` is none"):
        RESTA(alpha=0.5).check_run(topology="double", finetuned=False, adapter=True)
    with pytest.raises(TypeError):
        RESTA()  # the paper's alpha is not known here, so there is no default
    for wrong in (
        {"alpha": -1},
        {"dare": 1.5},
        {"dare": 1},
        {"placement": "factors"},
        {"direction": "x"},
        {"seed": -1},
    ):
        with pytest.raises(InputError, match=r"RESTA: .* must be"):
            RESTA(**({"alpha": 0.5} | wrong))
