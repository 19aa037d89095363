"""The fused LM head on CPU: it computes what TRL's does, in every case, and TRL's is the one that is replaced."""

import pytest
import torch
from trl.trainer import utils

from mithridate.training.cpu_head import KeptProbabilities, scoring_labels_only, without_metrics
from tests.defenses.helpers import error, model, rows, trainer_for


def scored(hidden, weight, bias, targets, ours, metrics=True):
    """The five outputs of a head and its gradients, for a fixed direction of the log-probabilities."""
    inputs = [x.detach().clone().requires_grad_() for x in (hidden, weight, bias) if x is not None]
    rest = [None] if bias is None else []
    arguments = (*inputs, *rest, targets, 1.0, 8, None, 1.0, ("log_probs", "entropy", "is_top1"))
    if ours:
        with scoring_labels_only():
            outputs = utils._ChunkedLogProbFunction.apply(*arguments)
    else:
        outputs = utils._ChunkedLogProbFunction.apply(*arguments)
    direction = torch.linspace(-1, 2, len(targets))
    return outputs, torch.autograd.grad((outputs[0] * direction).sum(), inputs)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("positions", [0, 1, 37])
def test_it_equals_trls(positions, with_bias, dtype, autocast):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, 16, generator=generator).to(dtype)
    weight = torch.randn(53, 16, generator=generator).to(dtype)
    bias = torch.randn(53, generator=generator).to(dtype) if with_bias else None
    targets = torch.randint(53, (positions,), generator=generator)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        theirs, their_grads = scored(hidden, weight, bias, targets, ours=False)
        ours, grads = scored(hidden, weight, bias, targets, ours=True)
    exact = dtype == torch.float32 and not autocast
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-5)
    assert torch.equal(ours[4], theirs[4])
    for got, expected in zip(grads, their_grads, strict=True):
        assert got.dtype == expected.dtype
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if exact else {"rtol": 0.02, "atol": 0.02 * positions**0.5}
        torch.testing.assert_close(got, expected, **tolerance)


def test_of_equal_logits_the_first_is_the_top_one():
    hidden, weight = torch.ones(3, 4), torch.ones(5, 4)
    targets = torch.tensor([0, 1, 4])
    assert scored(hidden, weight, None, targets, ours=True)[0][4].tolist() == [True, False, False]
    assert scored(hidden, weight, None, targets, ours=False)[0][4].tolist() == [True, False, False]


def test_its_gradient_is_the_numerical_one():
    """In double precision by hand: log_softmax and autograd."""
    generator = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(n, 6, generator=generator, requires_grad=True) for n in (4, 9))
    targets = torch.tensor([3, 0, 8, 3])
    log_probs, entropy, _ = KeptProbabilities.apply(hidden, weight, None, targets, True)
    got = torch.autograd.grad(log_probs.square().sum(), (hidden, weight))
    h, w = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    log_p = torch.log_softmax(h @ w.t(), -1)
    chosen = log_p[range(4), targets]
    want = torch.autograd.grad(chosen.square().sum(), (h, w), retain_graph=True)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.double(), -(log_p.exp() * log_p).sum(-1), rtol=1e-5, atol=1e-5)


def test_without_metrics_only_the_metrics_are_missing():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 6, generator=generator) for n in (4, 9))
    targets = torch.tensor([3, 0, 8, 3])
    whole, grads = scored(hidden, weight, None, targets, ours=True)
    with without_metrics():
        bare, bare_grads = scored(hidden, weight, None, targets, ours=True)
    assert torch.equal(whole[0], bare[0]) and bare[1].sum() == 0 and not bare[4].any()
    assert all(torch.equal(a, b) for a, b in zip(grads, bare_grads, strict=True))


@pytest.mark.parametrize("softcap, scale", [(30.0, 1.0), (None, 0.5)])
def test_what_it_does_not_compute_is_left_to_trls(softcap, scale):
    """Softcapped and scaled logits (Gemma 2, Granite)."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 6, generator=generator) for n in (4, 9))
    arguments = (hidden, weight, None, torch.tensor([3, 0, 8, 3]), 1.0, 8, softcap, scale, ("log_probs", "entropy"))
    theirs = utils._ChunkedLogProbFunction.apply(*arguments)
    with scoring_labels_only():
        ours = utils._ChunkedLogProbFunction.apply(*arguments)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_training_with_it_is_training_without_it(tmp_path):
    """The loss, the metrics and the weights of a run through the real trainer."""

    def run(folder):
        net = model("full", torch.float32)
        t = trainer_for(net, folder, data=rows("user"), max_steps=3, learning_rate=0.1)
        t.train()
        return list(net.parameters()), [e for e in t.state.log_history if "loss" in e]

    plain, logged = run(tmp_path / "a")
    with scoring_labels_only():
        fast, fast_logged = run(tmp_path / "b")
    assert error(fast, plain) < 1e-5
    for a, b in zip(fast_logged, logged, strict=True):
        for key in ("loss", "entropy", "mean_token_accuracy", "num_tokens"):
            assert a[key] == pytest.approx(b[key], rel=1e-5)


def test_trl_still_has_the_two_names_that_are_replaced():
    """If TRL renames them, this fails rather than training becoming slow unseen."""
    device, theirs = torch.device("cpu"), utils._ChunkedLogProbFunction
    assert not utils._use_triton(device)
    with scoring_labels_only():
        assert utils._use_triton(device)
        assert utils._ChunkedLogProbFunction is not theirs
    assert not utils._use_triton(device)
    assert utils._ChunkedLogProbFunction is theirs
