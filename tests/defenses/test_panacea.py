"""Panacea through the real trainer against its closed form, written naively in float64, and the traps of its public
code."""

import pytest
import torch

from mithridate.defenses.panacea import CEILING, Panacea
from mithridate.errors import InputError, UnsupportedSetup
from tests.defenses.helpers import batch_of, clone, error, model, rows, trainer_for, update, weights
from tests.defenses.reference import gradient, loss, norm, trainable
from tests.defenses.test_baselines import LR, STEPS, moved

USER, HARMFUL = rows("user"), rows("harmful!")
RHO, LAM = 0.3, 2.0


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batches")
    return {"user": batch_of(USER, folder), "harmful": batch_of(HARMFUL, folder)}


def shifted(net, direction, step):
    net = clone(net)
    with torch.no_grad():
        for p, d in zip(trainable(net), direction, strict=True):
            p.add_(step * d)
    return net


def naive(net, batches, *, rho=RHO, lam=LAM, ceiling=CEILING, final=True):
    """What the run takes from the weights; each step's harmful loss at w + eps."""
    before, net, seen, eps = [p.detach().clone() for p in trainable(net)], clone(net), [], []
    for _ in range(STEPS):
        g, h = gradient(net, batches["user"]), gradient(net, batches["harmful"])
        eps = [rho * x / norm(h) for x in h]
        there = shifted(net, eps, 1)
        raised = loss(there, batches["harmful"])
        seen.append(raised.item())
        above = torch.autograd.grad(raised.clamp(max=ceiling), trainable(there))
        net = shifted(net, [a - lam * (c - b) for a, b, c in zip(g, h, above, strict=True)], -LR)
    net = shifted(net, eps, 1) if final else net
    return [b - a.detach() for b, a in zip(before, trainable(net), strict=True)], seen


def learned(net, batches, steps):
    """A model whose harmful loss is low enough for the term to be whole."""
    for _ in range(steps):
        net = shifted(net, gradient(net, batches["harmful"]), -0.5)
    return net


@pytest.mark.shows("full", "exact", methods=["panacea"])
@pytest.mark.shows("lora", "exact", methods=["panacea"])
@pytest.mark.parametrize(("kind", "split"), [("full", (8, 1)), ("lora", (8, 1)), ("lora", (2, 4))])
def test_panacea_learns_a_perturbation_and_adds_the_last(kind, split, batches, tmp_path):
    net = learned(model(kind), batches, 15)
    want, seen = naive(net, batches)
    assert max(seen) < CEILING
    made = Panacea(harmful_dataset=HARMFUL, rho=RHO, lam=LAM)
    assert error(moved(clone(net), tmp_path, made, split), want) < 1e-11
    assert error(naive(net, batches, lam=0)[0], want) > 1e-3
    assert error(naive(net, batches, final=False)[0], want) > 1e-3
    if split[1] > 1:  # the authors' code keeps the last micro-batch's gradient alone
        last = {name: {k: v[-split[0] :] for k, v in batch.items()} for name, batch in batches.items()}
        assert error(naive(net, last)[0], want) > 1e-3


def test_above_the_ceiling_the_perturbed_loss_has_no_gradient(batches, tmp_path):
    net = model("lora")
    want, seen = naive(net, batches)
    assert min(seen) > CEILING
    made = Panacea(harmful_dataset=HARMFUL, rho=RHO, lam=LAM)
    assert error(moved(clone(net), tmp_path, made, (4, 2)), want) < 1e-11
    assert error(naive(net, batches, ceiling=1e9)[0], want) > 1e-3


def test_the_logged_loss_is_the_users_and_the_weights_are_put_back(batches, tmp_path):
    """The authors' code returns h(w + eps), and with zero_grad(set_to_none=False) its eps becomes 0 and w stays
    moved: here, at a learning rate of 0, w moves by the last eps alone."""
    net = learned(model("lora"), batches, 15)
    made = Panacea(harmful_dataset=HARMFUL, rho=RHO, lam=LAM)
    h = gradient(net, batches["harmful"])
    t = trainer_for(net, tmp_path, data=USER, exact=True, defense=made, max_steps=3, learning_rate=0.0)
    expected, before = loss(net, batches["user"]).item(), weights(net)
    at = loss(net, batches["harmful"]).item()
    t.train()
    logs = [log for log in t.state.log_history if "loss" in log]
    assert [log["loss"] for log in logs] == pytest.approx([expected] * 3, rel=1e-6)
    assert [log["panacea/harmful_loss"] for log in logs] == pytest.approx([at] * 3, rel=1e-6)
    assert all(log["panacea/harmful_loss_gain"] > 0 and log["panacea/raised"] == 1 for log in logs)
    got = [a - b for a, b in zip(weights(net).values(), before.values(), strict=True)]
    assert error(got, [RHO * g / norm(h) for g in h]) < 1e-11


def test_the_control_is_plain_training_and_a_random_step_as_long(tmp_path):
    made = Panacea(harmful_dataset=HARMFUL, rho=RHO, lam=LAM)
    control = made.controls()["random-perturbation"]
    assert made.data_roles() == {"harmful_dataset": "defender_harmful"} and not control.data_roles()
    args = {"data": USER, "exact": True, "max_steps": 2, "learning_rate": LR}
    plain = update(model("lora"), tmp_path, **args)
    one, again = (update(model("lora"), tmp_path, defense=control, **args) for _ in range(2))
    other = update(model("lora"), tmp_path, defense=control, seed=7, **args)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    steps = [[b - a for a, b in zip(x, plain, strict=True)] for x in (one, other)]
    assert norm(steps[0]).item() == pytest.approx(RHO, rel=1e-6)
    assert abs(sum((a * b).sum() for a, b in zip(*steps, strict=True))) < 0.3 * RHO**2  # another direction


@pytest.mark.parametrize("settings", [{"rho": -1}, {"lam": -1}, {"rho": None}, {"learned": 1}])
def test_settings_out_of_their_range_are_refused(settings):
    with pytest.raises(InputError, match=r"Panacea: .* must be"):
        Panacea(harmful_dataset=HARMFUL, **settings)


def test_weights_that_would_lose_the_perturbation_are_refused(tmp_path):
    with pytest.raises(UnsupportedSetup, match=r"Panacea: trainable weights are stored in torch.bfloat16") as refused:
        trainer_for(model("full", torch.bfloat16), tmp_path, defense=Panacea(harmful_dataset=HARMFUL))
    assert "float32" in refused.value.remedy
    with pytest.raises(UnsupportedSetup, match="Panacea: harmful_dataset has no rows"):
        trainer_for(model(), tmp_path, defense=Panacea(harmful_dataset=HARMFUL.select([])))
