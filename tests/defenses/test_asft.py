"""AsFT through the real trainer against its closed form, written naively in float64, and the traps of its public code.

The naive form makes C and I - C, multiplies B with A, and leaves the gradient to autograd.
"""

import pytest
import torch

from mithridate.defenses.asft import AsFT
from mithridate.errors import InputError, UnsupportedSetup
from mithridate.training.setups import refuse_unreachable_places
from mithridate.training.trainer import DefenseTrainer
from tests.defenses.helpers import batch_of, clone, error, model, rows, same, trainer_for, weights
from tests.defenses.reference import gradient
from tests.defenses.test_baselines import LR, STEPS, kinds, moved, plus, wanted
from tests.tiny import tiny_llama, tiny_tokenizer

USER, LAM = rows("user"), 0.02


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    return batch_of(USER, tmp_path_factory.mktemp("batches"))


def started(kind):
    """All weights, an adapter that the alignment left, or a fresh one, whose B is 0."""
    net = model("full" if kind == "full" else "lora")
    for name, p in net.named_parameters() if kind == "fresh" else ():
        if "lora_B" in name:
            torch.nn.init.zeros_(p)
    return net


def base_tensors():
    """As `trainer_for` gives them to a defense that asks for a base model."""
    return tiny_llama(torch.float64, seed=5).state_dict()


def held(net):
    """Of each layer: its name in the plain model, its weight in float64, and as factors what is trained of it."""
    parameters = dict(net.named_parameters())
    if not hasattr(net, "peft_config"):
        names = [n for n in parameters if n.endswith("proj.weight")]
        return [(n, parameters[n], (parameters[n],)) for n in names]
    found = []
    for name in parameters:
        if name.endswith("lora_A.default.weight"):
            layer = name.removesuffix(".lora_A.default.weight")
            a, b = parameters[name], parameters[f"{layer}.lora_B.default.weight"]
            weight = parameters[f"{layer}.base_layer.weight"] + net.peft_config["default"].lora_alpha / 4 * b @ a
            found.append((layer.removeprefix("base_model.model.") + ".weight", weight, (b, a)))
    return found


def naive(net, start, base, project=True):
    """sum over layers of || (I - C) U ||^2"""
    total = 0
    for (name, _, now), (_, begun, then) in zip(held(net), held(start), strict=True):
        update = now[0] @ now[1] - (then[0] @ then[1]).detach() if len(now) == 2 else now[0] - then[0].detach()
        rest = torch.eye(len(update), dtype=torch.float64)
        if project:
            v = (begun - base[name]).detach()
            rest = rest - v @ v.T / (v**2).sum().sqrt()
        total = total + ((rest @ update) ** 2).sum()
    return total


def expected(net, user, lam=LAM, project=True, base=None):
    start, base = clone(net), base or base_tensors()
    return wanted(net, lambda n: plus(n, user, lam * naive(n, start, base, project)))


@pytest.mark.shows("full", "exact", methods=["asft"])
@pytest.mark.shows("lora", "exact", methods=["asft"])
@pytest.mark.parametrize(("kind", "split"), [("full", (8, 1)), ("full", (4, 2)), ("lora", (2, 4)), ("fresh", (8, 1))])
def test_asft_is_the_penalty_on_what_leaves_the_alignments_directions(kind, split, user, tmp_path):
    net = started(kind)
    want = expected(net, user)
    assert error(moved(clone(net), tmp_path, AsFT(lam=LAM), split), want) < 1e-11
    assert error(wanted(net, lambda n: gradient(n, user)), want) > 1e-3
    assert error(expected(net, user, project=False), want) > 1e-3
    if split[1] > 1:  # the authors' code adds the term to each micro-batch's share of the loss
        assert error(expected(net, user, lam=split[1] * LAM), want) > 1e-3


@kinds
def test_the_control_is_weight_decay_of_the_update_and_needs_no_base(kind, user, tmp_path):
    net, control = started(kind), AsFT(lam=LAM).controls()["weight-decay"]
    assert AsFT(lam=LAM).model_inputs() == {"base": "base", "start": "start"}
    assert control.model_inputs() == {"start": "start"} and not AsFT(lam=0.0).model_inputs()
    assert error(moved(clone(net), tmp_path, control, (4, 2)), expected(net, user, project=False)) < 1e-11


def trained_with(net, folder, defense, base):
    before = weights(net)
    t = trainer_for(net, folder, max_steps=STEPS, learning_rate=LR, data=USER, exact=True)
    DefenseTrainer(
        model=net,
        args=t.args,
        train_dataset=USER,
        processing_class=tiny_tokenizer(),
        compute_loss_func=t.compute_loss_func,
        defense=defense,
        models={"base": base},
    ).train()
    return [b - a for b, a in zip(before.values(), weights(net).values(), strict=True)]


def near(net, share):
    """A base model that the alignment moved away from by little."""
    far, weights = base_tensors(), {name: weight.detach() for name, weight, _ in held(net)}
    return far | {name: w + share * (far[name] - w) for name, w in weights.items()}


def test_after_a_small_alignment_it_is_its_control(user, tmp_path):
    """C goes with ||V||: of an alignment a millionth as long it is a millionth, and I - C is I."""
    net = started("fresh")
    want = expected(net, user, base=near(net, 1e-6))
    assert error(trained_with(clone(net), tmp_path, AsFT(lam=LAM), near(net, 1e-6)), want) < 1e-11
    assert error(expected(net, user, project=False), want) < 1e-7
    assert error(expected(net, user, base=near(net, 1.0)), want) > 1e-3


def test_layers_are_paired_by_name(user, tmp_path):
    """The authors' code pairs the base's parameters with the adapter's by their order."""
    net, base = started("fresh"), base_tensors()
    turned = dict(reversed(base.items()))
    assert error(trained_with(clone(net), tmp_path, AsFT(lam=LAM), turned), expected(net, user)) < 1e-11


def test_what_is_logged_is_the_term_and_its_controls(user, tmp_path):
    net = started("lora")
    start, t = (
        clone(net),
        trainer_for(net, tmp_path, data=USER, exact=True, defense=AsFT(lam=LAM), max_steps=2, learning_rate=LR),
    )
    seen = []
    step = t.training_step

    def noting(*args, **kwargs):
        seen.append([naive(net, start, base_tensors(), project).item() for project in (True, False)])
        return step(*args, **kwargs)

    t.training_step = noting
    t.train()
    logged = [[log["asft/outside"], log["asft/update"]] for log in t.state.log_history if "loss" in log]
    assert logged[0] == seen[0] == [0, 0]
    assert logged[1] == pytest.approx(seen[1], rel=1e-10) and seen[1][0] > 0


def test_a_frozen_factor_stays(tmp_path):
    net = started("lora")
    t = trainer_for(net, tmp_path, data=USER, defense=AsFT(lam=LAM), max_steps=2)
    for name, p in net.named_parameters():
        if "lora_A" in name:
            p.requires_grad_(False)
    before = {n: p.detach().clone() for n, p in net.named_parameters() if "lora_A" in n}
    t.train()
    assert same(before, {n: p.detach() for n, p in net.named_parameters() if "lora_A" in n})


@pytest.mark.parametrize("settings", [{"lam": -1}, {"lam": None}, {"project": 1}])
def test_settings_out_of_their_range_are_refused(settings):
    with pytest.raises(InputError, match=r"AsFT: .* must be"):
        AsFT(**settings)


def refusal(net, folder, defense, models):
    t = trainer_for(clone(net), folder)
    with pytest.raises(UnsupportedSetup, match=r"^AsFT: ") as refused:
        DefenseTrainer(
            model=net,
            args=t.args,
            train_dataset=USER,
            processing_class=tiny_tokenizer(),
            defense=defense,
            models=models,
        ).train()
    assert refused.value.remedy
    return str(refused.value)


def test_what_it_cannot_hold_is_refused_before_a_step(tmp_path):
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    net, base = started("fresh"), base_tensors()
    assert "needs the base model" in refusal(started("lora"), tmp_path, AsFT(), {})
    name = "model.layers.1.self_attn.v_proj.weight"
    unmoved = base | {n: weight.detach() for n, weight, _ in held(net) if n == name}  # 0 / 0 in the authors' code
    assert f"the alignment left {name} as it was" in refusal(net, tmp_path, AsFT(), {"base": unmoved})
    wider = tiny_llama(torch.float64, hidden_size=32)
    assert "the base model has no model.layers.0.self_attn.q_proj.weight of the shape (16, 16)" in refusal(
        started("lora"), tmp_path, AsFT(), {"base": wider}
    )
    for config in (
        LoraConfig(target_modules=["q_proj"], use_dora=True),
        LoraConfig(target_modules=["q_proj", "embed_tokens"]),
    ):
        said = refusal(get_peft_model(tiny_llama(), config), tmp_path, AsFT(), {"base": base})
        assert "is not one of plain LoRA over an nn.Linear" in said
    soft = get_peft_model(tiny_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert "no linear layer is trained" in refusal(soft, tmp_path, AsFT(), {"base": base})


@pytest.mark.shows("fsdp2", "refused", methods=["asft"])
@pytest.mark.shows("fsdp accelerate", "refused", methods=["asft"])
def test_sharded_weights_are_refused(tmp_path, monkeypatch):
    t = trainer_for(model(), tmp_path)
    monkeypatch.setattr(type(t), "_sharded", True)
    with pytest.raises(UnsupportedSetup, match=r"AsFT: reads whole matrices of the start model"):
        refuse_unreachable_places(t, AsFT())
