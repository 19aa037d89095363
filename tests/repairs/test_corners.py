"""Heads under adapters, ties that one model has and the other not, matrices that are no linear layer's."""

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from mithridate.errors import InputError, UnsupportedSetup
from mithridate.repairs.antidote import Antidote
from mithridate.repairs.linears import weights
from mithridate.repairs.lox import LoX
from mithridate.repairs.resta import RESTA
from mithridate.repairs.safedelta import SafeDelta
from mithridate.repairs.safelora import SafeLoRA
from tests.families import models as families
from tests.repairs.test_antidote import CALIBRATION, TOKENIZER
from tests.tiny import tiny_llama

HEAD = "lm_head.weight"
COPIED = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
ADAPTED = {"target_modules": ["q_proj", "lm_head"]}


def moved(model, seed):
    """Every trained weight a little elsewhere."""
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=drawn))
    return model


def base(seed=0, **own):
    model = tiny_llama(**own)
    return moved(model, seed) if seed else model


def tuned(model, seed, **fields):
    return moved(get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, **fields)), seed)


def head(model):
    return weights(model)[HEAD].effective()


@pytest.mark.parametrize("fields", [COPIED, ADAPTED], ids=["copied", "adapted"])
def test_the_head_is_the_head_under_an_adapter_too(fields):
    """Safe LoRA leaves it as the fine-tune did, Safe Delta puts the aligned one back, as they do of plain weights."""
    model = tuned(base(1), 2, **fields)
    before = head(model).clone()
    SafeLoRA(tau=1.0).apply(model, base=base(), aligned=base(1))
    assert torch.equal(head(model), before)
    model = tuned(base(1), 2, **fields)
    assert not torch.equal(head(model), head(base(1)))
    SafeDelta(s=5.0).apply(model, safety=CALIBRATION, tokenizer=TOKENIZER, aligned=base(1))
    assert torch.equal(head(model), head(base(1)))


def test_a_copied_head_over_tied_embeddings_has_its_own_vector():
    tied = {"tie_word_embeddings": True}
    model, unaligned, aligned = (
        tuned(base(**tied), 2, **COPIED),
        tuned(base(**tied), 3, **COPIED),
        base(**tied),
    )
    wanted = head(model) + 0.5 * (head(aligned) - head(unaligned))
    RESTA(alpha=0.5).apply(model, aligned=aligned, unaligned=unaligned)
    torch.testing.assert_close(head(model), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("how", ["over the base", "over other weights", "pissa"])
def test_lox_scales_all_of_the_alignment_whatever_the_adapter_lies_over(how):
    """Factors alone where they are all of it."""
    fields = {"init_lora_weights": "pissa"} if how == "pissa" else {"init_lora_weights": False}
    under = base(1) if how == "over other weights" else base()
    model = moved(get_peft_model(under, LoraConfig(r=2, target_modules=["q_proj"], **fields)), 2)
    key = "model.layers.0.self_attn.q_proj.weight"
    aligned, start = weights(model)[key].effective().clone(), base().state_dict()[key]
    delta = LoX(coef=0.5).apply(model, base=base())
    assert delta.only_factors == (how == "over the base")
    wanted = aligned + 0.5 * (aligned - start)
    torch.testing.assert_close(weights(model)[key].effective(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["GPT2", "Mixtral"])
def test_weights_that_would_be_left_whole_are_refused_before_compute(family):
    made = [families.build(family, torch.float32) for _ in range(3)]
    with pytest.raises(UnsupportedSetup, match=r"SafeLoRA: works on linear layers, and this model has \d+ weight"):
        SafeLoRA(tau=1.0).check(made[0], base=made[1], aligned=made[2])
    with pytest.raises(UnsupportedSetup, match=r"SafeDelta: works on linear layers, and this model has \d+ weight"):
        SafeDelta(s=1.0).check(made[0], safety=CALIBRATION, tokenizer=TOKENIZER, aligned=made[1])


def test_rows_beyond_learned_positions_are_refused_before_compute():
    def made():
        config = families.config("OPT")
        config.max_position_embeddings = 64
        return transformers.AutoModelForCausalLM.from_config(config)

    rows = [{"prompt": "a", "response": "b"}, {"prompt": "a" * 100, "response": "b"}]
    for check in (
        lambda: Antidote(targets="update").check(made(), rows, TOKENIZER, aligned=made()),
        lambda: SafeDelta(s=1.0).check(made(), rows, TOKENIZER, aligned=made()),
    ):
        with pytest.raises(InputError, match=rf"row {len(rows)}: has \d+ tokens, and the model has learned 64"):
            check()
