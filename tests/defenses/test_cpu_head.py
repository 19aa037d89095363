"""The fused LM head on CPU: it computes what TRL's does, in every case, and leaves the others to TRL's."""

import inspect
import re
from types import SimpleNamespace

import pytest
import torch
from trl.trainer import utils

from mithridate.training import cpu_head
from mithridate.training.cpu_head import KeptProbabilities, label_scores, scoring_labels_only, without_metrics
from tests.defenses.helpers import error, model, rows, trainer_for
from tests.tiny import tiny_llama


def scored(hidden, weight, bias, targets, ours):
    """Log-probabilities, entropy and top-one of a head and the gradients, for a direction of the log-probabilities."""
    inputs = [x.detach().clone().requires_grad_() for x in (hidden, weight, bias) if x is not None]
    rest = [None] if bias is None else []
    if ours:
        outputs = label_scores(*inputs, *rest, targets)
    else:
        asked = ("log_probs", "entropy", "is_top1")
        every = utils._ChunkedLogProbFunction.apply(*inputs, *rest, targets, 1.0, 8, None, 1.0, asked)
        outputs = every[0], every[1], every[4]
    direction = torch.linspace(-1, 2, len(targets))
    return outputs, torch.autograd.grad((outputs[0] * direction).sum(), inputs)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("positions, kept", [(0, 37), (1, 37), (37, 37), (37, 10)])
def test_it_equals_trls(positions, kept, with_bias, dtype, autocast, monkeypatch):
    """At 10 kept of 37 positions in four tiles."""
    monkeypatch.setattr(cpu_head, "KEPT_BYTES", kept * 53 * 4)
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
    assert torch.equal(ours[2], theirs[2])
    for got, expected in zip(grads, their_grads, strict=True):
        assert got.dtype == expected.dtype
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if exact else {"rtol": 0.02, "atol": 0.02 * positions**0.5}
        torch.testing.assert_close(got, expected, **tolerance)


def test_beyond_its_memory_it_keeps_one_tile(monkeypatch):
    """Of 40 positions, probabilities of 10 at a time: what autograd holds between forward and backward has none."""
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: held.append(tuple(x.shape)) or x, lambda x: x):
        for kept in (40, 10):
            monkeypatch.setattr(cpu_head, "KEPT_BYTES", kept * 53 * 4)
            held.clear()
            generator = torch.Generator().manual_seed(0)
            hidden = torch.randn(40, 16, generator=generator, requires_grad=True)
            label_scores(hidden, torch.randn(53, 16, generator=generator), None, torch.arange(40))
            assert ((40, 53) in held) == (kept == 40)
            assert (10, 53) not in held


def test_of_equal_logits_the_first_is_the_top_one():
    hidden, weight = torch.ones(3, 4), torch.ones(5, 4)
    targets = torch.tensor([0, 1, 4])
    assert scored(hidden, weight, None, targets, ours=True)[0][2].tolist() == [True, False, False]
    assert scored(hidden, weight, None, targets, ours=False)[0][2].tolist() == [True, False, False]


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
    assert torch.equal(whole[0], bare[0]) and bare[1].sum() == 0 and not bare[2].any()
    assert all(torch.equal(a, b) for a, b in zip(grads, bare_grads, strict=True))


def batch(labelled=3):
    """Two rows of five tokens, of which the last `labelled` have a label."""
    ids = torch.randint(3, 40, (2, 5), generator=torch.Generator().manual_seed(0))
    labels = torch.where(torch.arange(5) < 5 - labelled, -100, ids)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "fused_lm_head": True}


@pytest.fixture
def calls(monkeypatch):
    """The positions of each call of our head."""
    seen = []

    def counted(hidden, *rest):
        seen.append(len(hidden))
        return label_scores(hidden, *rest)

    monkeypatch.setattr(cpu_head, "label_scores", counted)
    return seen


@pytest.mark.parametrize("labelled", [3, 0])
@pytest.mark.parametrize("count", [None, 11])
def test_a_model_with_it_returns_what_trls_returns(count, labelled, calls):
    """Loss, every token's numbers and the gradients of all weights; also where no token has a label."""
    net = tiny_llama()
    utils.add_fused_lm_head(net, outputs=("log_probs", "entropy", "is_top1"))
    theirs = net(**batch(labelled), num_items_in_batch=count)
    want = torch.autograd.grad(theirs.loss, list(net.parameters()), materialize_grads=True)
    with scoring_labels_only(net):
        ours = net(**batch(labelled), num_items_in_batch=count)
    assert calls == [2 * labelled]
    got = torch.autograd.grad(ours.loss, list(net.parameters()), materialize_grads=True)
    for name in ("loss", "log_probs", "entropy", "is_top1", "label_mask"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name, value", [("final_logit_softcapping", 30.0), ("logit_scale", 0.5)])
def test_what_it_does_not_compute_is_left_to_trls(name, value, calls):
    """Softcapped and scaled logits (Gemma 2, Granite), and a pass that wants logits."""
    net = tiny_llama()
    setattr(net.config, name, value)
    utils.add_fused_lm_head(net, outputs=("log_probs", "entropy", "is_top1"))
    theirs = net(**batch())
    with scoring_labels_only(net):
        ours = net(**batch())
        logits = net(**(batch() | {"fused_lm_head": False})).logits
    assert torch.equal(ours.log_probs, theirs.log_probs) and not calls
    assert logits.shape[:2] == (2, 5)


def test_all_that_trl_reads_of_a_config_is_known_here():
    """If TRL learns of another scale or cap, this fails rather than a loss becoming wrong unseen."""
    source = inspect.getsource(utils.add_fused_lm_head)
    read = set(re.findall(r'getattr\(\s*text_config, "(\w+)"', source)) - {"router_aux_loss_coef"}
    assert read and read == set(cpu_head.TRLS_ALONE)


@pytest.mark.parametrize(
    "said, plain",
    [
        ({}, True),
        ({"logit_scale": 1.0}, True),
        ({"logit_scale": 0.0}, False),
        ({"output_router_logits": False}, True),
        ({"output_router_logits": True}, False),
    ],
)
def test_a_plain_head_is_told_by_its_config(said, plain):
    assert cpu_head.plain_head(SimpleNamespace(**said)) == plain


def test_afterwards_the_model_has_its_own_forward():
    net = tiny_llama()
    utils.add_fused_lm_head(net)
    before = net.forward
    with pytest.raises(RuntimeError), scoring_labels_only(net):
        assert net.forward != before
        raise RuntimeError
    assert net.forward == before


@pytest.mark.parametrize("weights", ["full", "lora"])
def test_training_with_it_is_training_without_it(tmp_path, weights, calls):
    """The loss, the metrics and the weights of a run through the real trainer."""

    def run(folder, fast):
        net = model(weights, torch.float32)
        t = trainer_for(net, folder, data=rows("user"), max_steps=3, learning_rate=0.1)
        if fast:
            with scoring_labels_only(net):
                t.train()
        else:
            t.train()
        trained = [p for p in net.parameters() if p.requires_grad]
        return trained, [e for e in t.state.log_history if "loss" in e]

    plain, logged = run(tmp_path / "a", fast=False)
    assert not calls
    fast, fast_logged = run(tmp_path / "b", fast=True)
    assert len(calls) >= 3, "TRL's head was asked: training is slow"
    assert error(fast, plain) < 1e-5
    for a, b in zip(fast_logged, logged, strict=True):
        for key in ("loss", "entropy", "mean_token_accuracy", "num_tokens"):
            assert a[key] == pytest.approx(b[key], rel=1e-5)
