"""SafeGrad through the real trainer against its equations, written naively in float64, and the traps of its code."""

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model

from mithridate.defenses.safegrad import SMALLEST, SafeGrad
from mithridate.errors import InputError, UnsupportedSetup
from tests.defenses.helpers import batch_of, clone, error, model, rows, trainer_for
from tests.defenses.reference import gradient, trainable
from tests.defenses.test_baselines import LR, moved, naive_kl, naive_kl_backwards, wanted
from tests.tiny import tiny_llama

USER, SAFE = rows("user"), rows("careful")


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batches")
    return {"user": batch_of(USER, folder), "safe": batch_of(SAFE, folder)}


def naive(start, batches, rho, divergence=naive_kl, projection="joint", seen=None):
    """The step's direction at a model: 8 user rows and 8 alignment rows, which are all there are."""

    def products(a, b):
        each = [(x * y).sum() for x, y in zip(a, b, strict=True)]
        return each if projection == "by tensor" else [sum(each)] * len(each)

    def direction(net):
        user = gradient(net, batches["user"])
        safe = torch.autograd.grad(divergence(net, start, batches["safe"]), trainable(net))
        inner, length = products(user, safe), products(safe, safe)
        if seen is not None:
            seen.append((float(inner[0]), float(length[0])))
        cuts = [
            float(i / n) if projection and i < 0 and n > SMALLEST else 0.0 for i, n in zip(inner, length, strict=True)
        ]
        return [u - c * s + rho * s for u, s, c in zip(user, safe, cuts, strict=True)]

    return direction


def everywhere(net, start, batch):
    """The official code's divergence: over all positions, prompts and padding too, divided by the answer tokens."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    now, then = (n(input_ids=ids, attention_mask=mask).logits.log_softmax(-1) for n in (net, start))
    return (then.detach().exp() * (then.detach() - now)).sum() / (batch["labels"] != -100).sum()


@pytest.mark.shows("full", "exact", methods=["safegrad"])
@pytest.mark.shows("lora", "exact", methods=["safegrad"])
@pytest.mark.parametrize(("kind", "split"), [("lora", (8, 1)), ("lora", (2, 4)), ("full", (4, 2))])
def test_it_is_one_projection_off_the_alignment_gradient(kind, split, batches, tmp_path):
    net, seen = model(kind), []
    start = clone(net)
    want = wanted(net, naive(start, batches, 0.7, seen=seen))
    assert error(moved(clone(net), tmp_path, SafeGrad(alignment_dataset=SAFE, rho=0.7), split), want) < 1e-12
    assert seen[0][1] < 1e-25, "at the start the divergence is at its minimum"
    assert all(inner < 0 and length > 1e-6 for inner, length in seen[1:]), "there is something to project"
    if split == (8, 1):
        for wrong in (
            naive(start, batches, 0.7, projection=None),
            naive(start, batches, 0.7, projection="by tensor"),
            naive(start, batches, 0.0),
            naive(start, batches, 0.7, divergence=everywhere),
            naive(start, batches, 0.7, divergence=naive_kl_backwards),
        ):
            assert error(wanted(net, wrong), want) > 1e-3, "the comparison could not tell the rules apart"


def test_the_control_is_the_same_sum_without_the_projection(batches, tmp_path):
    net = model("lora")
    control = SafeGrad(alignment_dataset=SAFE, rho=0.7).controls()["no-projection"]
    want = wanted(net, naive(clone(net), batches, 0.7, projection=None))
    assert error(moved(net, tmp_path, control), want) < 1e-12


def uphill(net, batch):
    """A step up the user's loss: from there, the user's gradient and the way back to the start agree."""
    up = gradient(net, batch)
    with torch.no_grad():
        for p, g in zip(trainable(net), up, strict=True):
            p.add_(g, alpha=0.01)
    return net


def test_gradients_that_agree_are_not_projected(batches, tmp_path):
    class Elsewhere(SafeGrad):
        def on_step_begin(self, t):  # when the start was kept
            uphill(t.model, batches["user"])

    net, seen = model("lora"), []
    away = uphill(clone(net), batches["user"])
    direction = naive(clone(net), batches, 0.7, seen=seen)(away)
    want = [p - (q - LR * d) for p, q, d in zip(trainable(net), trainable(away), direction, strict=True)]
    assert seen[0][0] > 0
    assert error(moved(net, tmp_path, Elsewhere(alignment_dataset=SAFE, rho=0.7), max_steps=1), want) < 1e-12


def test_a_shorter_step_has_fewer_alignment_rows(tmp_path):
    """12 rows in steps of 2 micro-batches of 4: the second step of an epoch has one micro-batch, and so has its
    alignment's."""
    taken = []

    class Noting(SafeGrad):
        def on_train_begin(self, t):
            super().on_train_begin(t)
            take = self._alignment.take
            self._alignment.take = lambda *args: taken.append(args) or take(*args)

    moved(model("lora"), tmp_path, Noting(alignment_dataset=SAFE), (4, 2), data=rows("user", 12), max_steps=3)
    assert taken == [(0, 2), (1, 1), (2, 2)]


@pytest.mark.parametrize("wrong", [-1, float("inf"), "x", None])
def test_settings_out_of_their_range_are_refused(wrong):
    with pytest.raises(InputError, match="SafeGrad: rho must be a number"):
        SafeGrad(alignment_dataset=SAFE, rho=wrong)
    with pytest.raises(InputError, match="SafeGrad: projection must be true or false"):
        SafeGrad(alignment_dataset=SAFE, projection=wrong)


def test_what_it_cannot_do_is_refused_before_a_step(tmp_path):
    with pytest.raises(UnsupportedSetup, match="SafeGrad: alignment_dataset has no rows"):
        trainer_for(model(), tmp_path, defense=SafeGrad(alignment_dataset=SAFE.select([])))
    with pytest.raises(UnsupportedSetup, match=r"SafeGrad: .* prompt learning"):
        prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        trainer_for(get_peft_model(tiny_llama(), prompts), tmp_path, defense=SafeGrad(alignment_dataset=SAFE))
