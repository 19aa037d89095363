"""What a training pass computed, for terms of the loss: log-probabilities, logits, hidden states at labelled tokens.

TRL's fused LM head returns log-probabilities only; logits at labelled positions are computed from the last hidden
states, which a forward hook sees, and held to those log-probabilities. A plain Trainer's model returns its logits.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mithridate.errors import MithridateError
from mithridate.training.gradients import gathered

KINDS = ("logits", "hidden_states", "reference")


@dataclass
class Outputs:
    """One micro-batch of R rows and T predicted tokens: in a causal language model the second of each row to its
    last, else all of them (`shift_of`).

    Attributes:
        log_probs: [R, T] log-probability of each labelled token, zero elsewhere.
        label_mask: [R, T] bool, which tokens are labelled; N of them.
        labels: [N] int64, the labelled tokens, row by row.
        logits: [N, V] at the labelled tokens, row by row; where a defense needs "logits".
        hidden_states: of the embeddings and of each layer, [R, T + shift, H]; where one needs "hidden_states".
        reference: the same of the start model, without gradient; where one needs "reference".
    """

    log_probs: Tensor
    label_mask: Tensor
    labels: Tensor
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    reference: Outputs | None = None


def log_softmax(logits: Tensor) -> Tensor:
    """Over the vocabulary, the last axis; float32 or wider."""
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)


def divergence(start: Tensor, now: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """KL(start || now) of one micro-batch, summed over its tokens: 0-dim, float32 or wider.

    Args:
        start, now: [N, V] logits at the same N tokens.
        num_items_in_batch: tokens of the whole step, by which the sum is divided; N where None.
    """
    then, after = log_softmax(start), log_softmax(now)
    total = (then.exp() * (then - after)).sum()
    return total / tokens_of(num_items_in_batch, len(now))


def tokens_of(num_items_in_batch: Tensor | int | None, own: int) -> Tensor | int:
    """What a sum over tokens is divided by: at least 1, for a step may have rows without a label.

    Args:
        num_items_in_batch: tokens of the whole step.
        own: of this micro-batch, which count where that is None.
    """
    if num_items_in_batch is None:
        return max(own, 1)
    return num_items_in_batch.clamp(min=1) if isinstance(num_items_in_batch, Tensor) else max(num_items_in_batch, 1)


# The names that transformers gives to losses of logits that stand at their own labels.
_UNSHIFTED = ("ForMaskedLM", "ForTokenClassification")


def shift_of(model: Any) -> int:
    """How many places before its label a token's logits stand: 1 in a causal language model; 0 in a masked one, a
    classifier of tokens, and an encoder-decoder, which shifts its decoder's inputs instead.

    Args:
        model: of transformers, plain or PEFT.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return 0 if encoder_decoder or getattr(model, "loss_type", None) in _UNSHIFTED else 1


def scaled_and_capped(logits: Tensor, model: Any) -> Tensor:
    """What a model makes of the output of its output embeddings, as its config says.

    Args:
        model: of transformers, plain.
    """
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None)
    if scale is None and getattr(config, "logits_scaling", None) is not None:
        scale = 1 / config.logits_scaling
    if scale is not None:
        logits = logits * scale
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def own_mean(mean: Tensor, num_items_in_batch: Tensor | int | None, own: int) -> Tensor:
    """A sum over a micro-batch's own tokens, divided by those of the whole step, as their mean: what is logged, for
    the log takes the mean over micro-batches and ranks."""
    return mean.detach() * (tokens_of(num_items_in_batch, own) / max(own, 1))


class Capture:
    """While entered, sees what a model's forward pass returns; `outputs` then makes `Outputs` of the first such pass.

    torch.compile takes the hooks that a module has when it is traced, and no later ones. So for a compiled model the
    one within it stands from the beginning (`standing`), and is not compiled: a graph ends there.

    Args:
        model: a language model, plain or PEFT; compiled, but not wrapped otherwise.
        standing: whether the hook is there at once, until `remove`.
    """

    def __init__(self, model: Any, standing: bool = False):
        self._model = model
        plain = getattr(model, "_orig_mod", model)  # of a compiled one
        self._base = plain.get_base_model() if hasattr(plain, "get_base_model") else plain
        self._shift = shift_of(self._base)
        from torch.distributed.fsdp import FSDPModule  # it takes long to import, and training has done so

        self._sharded = any(isinstance(module, FSDPModule) for module in model.modules())
        self._needs: Collection[str] = ()
        self._labels: Any = None
        self._gradients = True
        self._returned: Any = None
        self._backbone: Any = None
        self._early: Tensor | None = None
        self._looking = False
        self._autocast: dict[str, Any] = {}
        self._handles: list[Any] = []
        self._standing: Any = None
        if standing:
            torch.compiler.reset()  # what was traced without the hook
            self._standing = self._base.base_model.register_forward_hook(torch.compiler.disable(self._of_backbone))

    def asked(self, needs: Collection[str], labels: Tensor, gradients: bool = True) -> Capture:
        """Itself, for another pass.

        Args:
            needs: of `KINDS`.
            labels: [R, T + shift], -100 where a token is not labelled.
            gradients: whether only a pass that records gradients counts.
        """
        self._needs, self._labels, self._gradients = needs, labels, gradients
        self._returned = self._backbone = self._early = None
        return self

    def _of_backbone(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._looking and self._backbone is None and torch.is_grad_enabled() == self._gradients:
            self._backbone, kind = output, self._base.device.type
            # The head is passed again in `_logits`, where the pass's autocast is over.
            self._autocast = {
                "device_type": kind,
                "dtype": torch.get_autocast_dtype(kind),
                "enabled": torch.is_autocast_enabled(kind),
            }
            if self._sharded and "logits" in self._needs:
                # here, where its weights are gathered
                self._early = self._logits(self._targets()[1])

    def __enter__(self) -> Capture:
        def of_model(module: nn.Module, args: Any, output: Any) -> None:
            if self._returned is None and torch.is_grad_enabled() == self._gradients:
                self._returned = output

        self._looking = bool(self._needs)
        self._handles = [self._model.register_forward_hook(of_model)]
        if self._looking and self._standing is None:
            self._handles.append(self._base.base_model.register_forward_hook(self._of_backbone))
        return self

    def __exit__(self, *_: object) -> None:
        self._looking = False
        for handle in self._handles:
            handle.remove()

    def remove(self) -> None:
        """Takes the standing hook away."""
        self._standing.remove()

    def _targets(self) -> tuple[Tensor, Tensor]:
        """The labels of the predicted tokens, and which there are: [R, T]."""
        labels = self._labels[:, self._shift :].to(self._base.device)
        return labels, labels != -100

    def _predicting(self, states: Tensor) -> Tensor:
        """Of [R, T + shift, ...], what predicts a token each: [R, T, ...]."""
        return states[:, : states.shape[1] - self._shift]

    def outputs(self) -> Outputs:
        """What the pass computed.

        Raises:
            MithridateError: the pass returned neither log-probabilities nor logits, or the logits do not give the
                log-probabilities.
        """
        returned = self._returned
        log_probs: Any = getattr(returned, "log_probs", None)
        whole: Any = getattr(returned, "logits", None)
        if log_probs is None and whole is None:
            raise MithridateError(
                f"{type(self._base).__name__} returned neither log-probabilities nor logits in its training pass, so "
                "there is nothing for a defense's loss to look at."
            )
        labels, mask = self._targets()
        targets = labels[mask]
        logits = None
        if log_probs is None:
            logits = self._predicting(whole)[mask]
            picked = log_softmax(logits).gather(-1, targets[:, None]).squeeze(-1)
            log_probs = picked.new_zeros(mask.shape).masked_scatter(mask, picked)
        elif "logits" in self._needs:
            logits = self._logits(mask) if self._early is None else self._early
            self._compare(logits.detach(), targets, log_probs.detach()[mask])
        states = getattr(self._backbone, "hidden_states", None) if "hidden_states" in self._needs else None
        return Outputs(
            log_probs=log_probs,
            label_mask=mask,
            labels=targets,
            logits=logits if "logits" in self._needs else None,
            hidden_states=states,
        )

    def _logits(self, mask: Tensor) -> Tensor:
        """[N, V]: the output embeddings over the last hidden states, scaled and capped."""
        with torch.autocast(**self._autocast):
            hidden, head = self._predicting(self._backbone.last_hidden_state)[mask], self._base.get_output_embeddings()
            # FSDP takes a call of the head for one of the norm's too, with which it gathers and lets go of it. Under
            # an adapter the frozen head is in shards here, for PEFT passes FSDP's hooks by.
            logits = F.linear(hidden, gathered(head.weight), gathered(head.bias)) if self._sharded else head(hidden)
        return scaled_and_capped(logits, self._base)

    def _compare(self, logits: Tensor, targets: Tensor, log_probs: Tensor) -> None:
        found = torch.log_softmax(logits.float(), -1).gather(-1, targets[:, None]).squeeze(-1)
        if not torch.isfinite(found).all():
            return  # a loss that is not finite stops the run, with its step
        coarse = logits.dtype in (torch.bfloat16, torch.float16)
        if not torch.allclose(found, log_probs.float(), rtol=1e-2 if coarse else 1e-3, atol=0.1 if coarse else 1e-3):
            raise MithridateError(
                f"The logits of {type(self._base).__name__} cannot be had at the labelled tokens: its head computes "
                "more than its output embeddings, a scale and a cap. Use a defense that needs no logits."
            )
