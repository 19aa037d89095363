"""Scoring labels on a CPU: what TRL's fused LM head computes, with fewer passes over the vocabulary.

TRL's head is made for GPUs, where memory is short and a Triton kernel reads a tile of logits once. On a CPU it scores
every position, multiplies by the vocabulary a second time in backward instead of keeping the logits, and folds them in
about twenty passes of plain tensor operations. Inside `scoring_labels_only`, on CPUs:

- only positions that have a label are scored (TRL itself does so on GPUs);
- the probabilities are kept from forward to backward, as long as they take no more memory than TRL's own tile may;
- passes whose metrics nobody reads (the probes of a defense) compute no entropy and no accuracy.

The loss is the same up to rounding, and so are its gradients; a test holds them to TRL's.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from trl.trainer import utils

_KEPT_BYTES = 4096 * 32768 * 4  # the largest tile of logits that TRL's head holds

_metrics = ContextVar("metrics", default=True)


@contextlib.contextmanager
def without_metrics() -> Iterator[None]:
    """Inside, entropy and accuracy may be left out: they are zero where that saves time."""
    token = _metrics.set(False)
    try:
        yield
    finally:
        _metrics.reset(token)


@contextlib.contextmanager
def scoring_labels_only() -> Iterator[None]:
    """Inside, TRL's fused LM head on a CPU scores the positions that have a label, and is `KeptProbabilities`.

    TRL leaves the others out on GPUs only, because some accelerators recompile when the number of positions changes; a
    CPU does not, and most positions of a prompt-completion batch have no label: over a vocabulary of 49,152 they are
    about half of a training step of the embedded model.
    """

    def leaves_out(device: torch.device) -> bool:
        return device.type in ("cpu", "cuda", "xpu")

    with contextlib.ExitStack() as stack:
        # neither name is in every supported version: there, TRL's head stays as it is
        stack.enter_context(mock.patch.object(utils, "_use_triton", leaves_out, create=True))
        theirs = getattr(utils, "_ChunkedLogProbFunction", None)
        if theirs is not None and "outputs" in inspect.signature(theirs.forward).parameters:
            stack.enter_context(mock.patch.object(utils, "_ChunkedLogProbFunction", _Choice(theirs)))
        yield


class _Choice:
    """Stands for TRL's function: ours where it does the same, else theirs."""

    def __init__(self, theirs: Any):
        self.theirs = theirs

    def apply(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None,
        logit_scale: float,
        outputs: tuple[str, ...],
    ) -> tuple[Tensor | None, ...]:
        plain = temperature == 1.0 and softcap is None and logit_scale == 1.0
        fits = len(hidden) * len(weight) * 4 <= _KEPT_BYTES
        if hidden.device.type == "cpu" and plain and fits and set(outputs) <= {"log_probs", "entropy", "is_top1"}:
            log_probs, entropy, is_top1 = KeptProbabilities.apply(hidden, weight, bias, targets, _metrics.get())  # type: ignore[misc]
            return log_probs, entropy, None, None, is_top1
        return self.theirs.apply(hidden, weight, bias, targets, temperature, chunk_size, softcap, logit_scale, outputs)


class KeptProbabilities(torch.autograd.Function):
    """Log-probability of each target under softmax(hidden @ weight.T + bias), its entropy, and whether it comes first.

    Keeps [N, V] probabilities in float32 for backward. Only the log-probabilities have a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, metrics: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """hidden [N, H], weight [V, H], bias [V], targets int64 [N] -> float32 [N], float32 [N], bool [N]."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        with torch.autocast("cpu", enabled=False):  # dtypes are chosen here
            logits = torch.mm(hidden.to(dtype), weight.to(dtype).t())
            if bias is not None:
                logits.add_(bias.to(dtype))
            log_p = torch.log_softmax(logits.float(), dim=-1)
            del logits
            log_probs = log_p.gather(-1, targets[:, None]).squeeze(-1)
            if metrics:
                p = log_p.exp()
                entropy = -torch.bmm(p[:, None, :], log_p[:, :, None]).flatten()
                is_top1 = log_p.argmax(-1) == targets  # of equal ones the first, as TRL counts
            else:
                p = log_p.exp_()
                entropy, is_top1 = torch.zeros_like(log_probs), torch.zeros_like(targets, dtype=torch.bool)
        ctx.save_for_backward(hidden, weight, bias, targets, p)
        ctx.dtype = dtype
        ctx.mark_non_differentiable(entropy, is_top1)
        return log_probs, entropy, is_top1

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """d log p(target) / d logits = onehot(target) - p; the rows are scaled after the product, not before it."""
        hidden, weight, bias, targets, p = ctx.saved_tensors
        grad = grad.float()
        p = p.to(ctx.dtype)
        grad_hidden = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            away = torch.mm(p, weight.to(ctx.dtype)).float()
            grad_hidden = ((weight[targets].float() - away) * grad[:, None]).to(hidden.dtype)
        if ctx.needs_input_grad[1]:
            scaled = hidden.float() * grad[:, None]
            grad_weight = torch.mm(p.t(), scaled.neg().to(ctx.dtype)).float()
            grad_weight = grad_weight.index_add_(0, targets, scaled).to(weight.dtype)
        if bias is not None and ctx.needs_input_grad[2]:
            grad_bias = torch.mv(p.t().float(), grad).neg_().index_add_(0, targets, grad).to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None
