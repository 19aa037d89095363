"""Defenses of the tests' own, which act where none of the package's does."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from datasets import Dataset

from mithridate.methods import Defense
from mithridate.training.gradients import dot, global_norm


@dataclass(kw_only=True)
class KLToStart(Defense):
    """lam / N * sum over labelled tokens of KL(p_start || p), on the vocabulary's axis."""

    needs: ClassVar[tuple[str, ...]] = ("logits", "reference")
    lam: float = 0.7

    def loss(self, t, loss, model, inputs, outputs, num_items_in_batch):
        p, q = (torch.log_softmax(o.logits.double(), -1) for o in (outputs.reference, outputs))
        kl = (p.exp() * (p - q)).sum()
        return loss + self.lam * (kl / num_items_in_batch).to(loss.dtype)


@dataclass(kw_only=True)
class Project(Defense):
    """SafeGrad's form: where the user's gradient opposes the alignment gradient, its part along that is taken out."""

    roles: ClassVar[dict[str, str]] = {"alignment_dataset": "alignment"}
    alignment_dataset: Dataset

    def on_train_begin(self, t):
        self.side = t.side_data(self.alignment_dataset, "alignment_dataset")

    def on_gradients(self, t):
        user = t.gradients()
        _, safe = t.gradient(self.side.take(t.state.global_step, len(t.window)))
        along = dot(user, safe) / global_norm(safe).double() ** 2
        if along < 0:
            t.set_gradients([u - along.to(u.dtype) * s for u, s in zip(user, safe, strict=True)])
