"""Scoring labels on a CPU: what TRL's fused LM head computes, with fewer passes over the vocabulary.

TRL's head is made for GPUs, where memory is short and a Triton kernel reads a tile of logits once. On a CPU it scores
every position, multiplies by the vocabulary a second time in backward instead of keeping the logits, and folds them in
about twenty passes of plain tensor operations. Inside `scoring_labels_only`, on CPUs:

- only positions that have a label are scored (TRL itself does so on GPUs);
- the probabilities are kept from forward to backward, as long as they take no more memory than TRL's own tile may;
  beyond that, tiles of that size are scored again in backward;
- passes whose metrics nobody reads (the probes of a defense) compute no entropy and no accuracy.

The loss is the same up to rounding, and so are its gradients; a test holds them to TRL's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import types
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from trl.trainer import utils

KEPT_BYTES = 4096 * 32768 * 4  # the largest tile of logits that TRL's head holds
TRLS_ALONE = (  # what a model's config may say of its head that `KeptProbabilities` does not compute
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
    "output_router_logits",
)

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
def scoring_labels_only(model: Any) -> Iterator[None]:
    """Inside, `model`, plain or PEFT, to which an SFTTrainer has added its fused LM head, scores on a CPU the
    positions that have a label, by `KeptProbabilities`.

    TRL leaves the others out on GPUs only, because some accelerators recompile when the number of positions changes; a
    CPU does not, and most positions of a prompt-completion batch have no label: over a vocabulary of 49,152 they are
    about half of a training step of the embedded model. TRL's head stays where it computes something else: on another
    device, over sharded weights, with a scale or a cap, for a mixture of experts that balances its load.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    returned: Any = getattr(utils, "FusedCausalLMOutput", None)  # not in every supported version
    if returned is None or not {"log_probs", "entropy", "is_top1", "label_mask"} <= {
        field.name for field in dataclasses.fields(returned)
    }:
        yield
        return
    theirs = base.forward
    plain = plain_head(base.config.get_text_config())

    @functools.wraps(type(base).forward)
    def forward(
        self: Any,
        *args: Any,
        fused_lm_head: bool = False,
        labels: Tensor | None = None,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        head = self.get_output_embeddings()
        ours = plain and type(head.weight) in (Tensor, torch.nn.Parameter) and head.weight.device.type == "cpu"
        if (
            not (fused_lm_head and ours and labels is not None)
            or kwargs.get("shift_labels") is not None
            or kwargs.get("output_router_logits")
        ):
            given = {"fused_lm_head": fused_lm_head, "labels": labels, "num_items_in_batch": num_items_in_batch}
            return theirs(*args, **kwargs, **{k: v for k, v in given.items() if v is not None})
        kwargs["use_cache"] = False
        hidden = self.base_model(*args, **kwargs).last_hidden_state[:, :-1].to("cpu")
        labels = labels[:, 1:].to("cpu")
        mask = labels != -100
        # where no label is, masked_scatter still ties the loss, a zero, to the model
        log_probs, entropy, is_top1 = (
            x.new_zeros(mask.shape).masked_scatter(mask, x)
            for x in label_scores(hidden[mask], head.weight, head.bias, labels[mask])
        )
        count = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return returned(
            loss=-log_probs.sum() / count, log_probs=log_probs, entropy=entropy, is_top1=is_top1, label_mask=mask
        )

    base.forward = types.MethodType(forward, base)
    try:
        yield
    finally:
        base.forward = theirs


def plain_head(config: Any) -> bool:
    """Whether logits are the output embeddings' products and nothing more, and no loss is added to theirs."""
    said = [getattr(config, name, None) for name in TRLS_ALONE]
    return all(x is None or x is False or (x is not True and x == 1) for x in said)


def label_scores(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`KeptProbabilities` of hidden [N, H]; where they would take more than `KEPT_BYTES`, in tiles that are scored
    again in backward."""
    rows = max(1, KEPT_BYTES // (4 * len(weight)))
    metrics = _metrics.get()
    if len(hidden) <= rows:
        return KeptProbabilities.apply(hidden, weight, bias, targets, metrics)  # type: ignore[return-value]
    tiles = [
        checkpoint(KeptProbabilities.apply, h, weight, bias, t, metrics, use_reentrant=False)
        for h, t in zip(hidden.split(rows), targets.split(rows))
    ]
    log_probs, entropy, is_top1 = (torch.cat(parts) for parts in zip(*tiles))
    return log_probs, entropy, is_top1


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
