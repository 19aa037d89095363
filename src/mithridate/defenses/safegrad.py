"""SafeGrad: what works against the alignment is taken out of the user's gradient, and the alignment's is added.

SafeGrad: Gradient Surgery for Safe LLM Fine-Tuning. Biao Yi, Jiahao Li, Baolei Zhang, Lihai Nie, Tong Li,
Tiansheng Huang, Zheli Liu. ICASSP 2026. https://arxiv.org/abs/2508.07172

In each optimizer step, with g_u the gradient of the user's loss:

    g_a = grad of 1/N sum over answer tokens t of KL( P_w0(. | x, y_<t) || P_w(. | x, y_<t) ),  (x, y) alignment rows
    c   = < g_u, g_a > / || g_a ||^2   where < g_u, g_a > is negative, else 0
    g   = g_u - c g_a + rho g_a

w0 are the weights before the first step, N the answer tokens of as many alignment rows as the step has user rows. The
inner product is one over all trained tensors together. At the first step w = w0, so g_a is zero but for rounding
(and dropout): no projection where || g_a ||^2 is not above 1e-9, the official code's threshold.

The rule is that of the paper's equations and of the official trainer (JugieQ/JDGrad, `SafeGrad_KLD_Trainer`); their
script has rho = 1, 100 alignment rows, and as many of them in a step as user rows. Differs from that code in:
- there the divergence is summed over all positions, prompts and padding too, and divided by the number of answer
  tokens, so that g_a depends on the batch's padding. Here it is a mean over answer tokens (the paper writes P(. | x)
  and does not say at which positions);
- there p.grad is overwritten in each micro-batch, so that under gradient accumulation the last one alone is stepped
  (their script has none). Here the surgery is done once per optimizer step, on the whole step's gradients, before
  clipping: exact;
- there w0 is the model as it was loaded, without the alignment's adapter that is merged into the one in training
  (`--lora_folder`); ports switch the adapter off, which is w0 only under topology double. Here w0 is kept;
- there the inner products are float32 sums; here they are float64 ones;
- a weight that only the alignment rows have a gradient for gets (rho - c) g_a, as in the equations (there: nothing).

The settings that are plain training are rho=0 with projection=False; rho=0 alone still projects. The control
`no-projection` is the same weighted sum without the surgery.

Cost: 2 forward and backward passes and a forward pass of the start model; a copy of the trained weights, two more
of their size after the step's own passes, and the logits of both models at the answers' tokens. Supported: LoRA and
full weights, gradient accumulation (exact), activation checkpointing, mixed precision, data parallelism, all
topologies, FSDP2, torch.compile. Refused: prompt learning. Logged: safegrad/conflict (share of steps with a
projection) and safegrad/divergence.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mithridate.attacks.scheduled import Scheduled
from mithridate.errors import InputError
from mithridate.methods.attack import Attack
from mithridate.methods.base import Cost, Method, require_number, require_rows
from mithridate.methods.defense import Defense
from mithridate.methods.examples import rows_of
from mithridate.training.gradients import dot
from mithridate.training.outputs import divergence
from mithridate.training.side_data import require_token_labels

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mithridate.rows import Rows
    from mithridate.training.mixin import DefenseMixin
    from mithridate.training.side_data import SideData

SMALLEST = 1e-9
"""|| g_a ||^2 at or below which nothing is projected: its direction is rounding."""


@dataclass(kw_only=True)
class SafeGrad(Defense):
    """Projects the user's gradient off the alignment's where they conflict, and adds rho times the latter; see this
    module's docstring.

    Args:
        alignment_dataset: prompts with safe answers, in any form of `mithridate.rows`.
        rho: weight of the alignment's gradient.
        projection: whether the user's gradient is projected; False is the weighted sum alone.
    """

    paper: ClassVar[str] = (
        "SafeGrad (Yi, Li, Zhang, Nie, Li, Huang, Liu; ICASSP 2026), https://arxiv.org/abs/2508.07172"
    )
    citation: ClassVar[str] = """@inproceedings{safegrad,
  title     = {SafeGrad: Gradient Surgery for Safe LLM Fine-Tuning},
  author    = {Yi, Biao and Li, Jiahao and Zhang, Baolei and Nie, Lihai and Li, Tong and Huang, Tiansheng and
               Liu, Zheli},
  booktitle = {IEEE International Conference on Acoustics, Speech and Signal Processing},
  year      = {2026},
  url       = {https://arxiv.org/abs/2508.07172}
}"""
    provenance: ClassVar[str] = "exact"
    stage: ClassVar[str] = "fine-tuning"
    strength: ClassVar[str | None] = "rho"
    roles: ClassVar[dict[str, str]] = {"alignment_dataset": "alignment"}
    off: ClassVar[dict[str, Any] | None] = {"rho": 0.0, "projection": False}
    needs: ClassVar[Sequence[str]] = ("reference",)

    alignment_dataset: Rows
    rho: float = 1.0
    projection: bool = True
    _alignment: SideData | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        require_number(self, "rho", 0)
        if not isinstance(self.projection, bool):
            raise InputError(f"SafeGrad: projection must be true or false, not {self.projection!r}.")

    @classmethod
    def example(cls) -> SafeGrad:
        return cls(alignment_dataset=rows_of("alignment"), rho=0.7)

    def cost(self) -> Cost:
        return Cost(passes=2, forwards=1, copies=1, passing_copies=2, logits=5)

    def adaptive(self) -> list[Attack]:
        """Only what goes against the alignment gradient is taken out: more steps of the rest."""
        return [Scheduled(length=3.0)]

    def controls(self) -> dict[str, Method]:
        return {"no-projection": replace(self, projection=False)}

    def check(self, t: DefenseMixin) -> None:
        super().check(t)
        require_rows(self, "alignment_dataset")
        require_token_labels(t.side_data(self.alignment_dataset, "alignment_dataset"), "SafeGrad")

    def on_train_begin(self, t: DefenseMixin) -> None:
        self._alignment = t.side_data(self.alignment_dataset, "alignment_dataset")

    def on_gradients(self, t: DefenseMixin) -> None:
        if not (self.rho or self.projection):
            return
        assert self._alignment is not None
        rows = self._alignment.take(t.state.global_step, len(t.window))
        divergence, aligning = t.gradient(rows, partial(_divergence, t))
        cut = 0.0
        if self.projection:
            inner = float(dot([p.grad for p in t.params], aligning)) / t.loss_scale
            length = float(dot(aligning, aligning))
            if inner < 0 and length > SMALLEST:
                cut = inner / length
        with torch.no_grad():
            for p, g in zip(t.params, aligning, strict=True):
                if g is not None:
                    p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                    p.grad.add_(g, alpha=(self.rho - cut) * t.loss_scale)
        t.record("safegrad/conflict", float(cut < 0))
        t.record("safegrad/divergence", divergence)

    def on_train_end(self, t: DefenseMixin) -> None:
        self._alignment = None


def _divergence(t: DefenseMixin, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None) -> Tensor:
    """KL(start || now) of one micro-batch at its answer tokens, divided by those of the step: 0-dim."""
    with t.reference() as start:
        then = t.outputs(start, inputs, ("logits",)).logits
    now = t.outputs(model, inputs, ("logits",)).logits
    assert then is not None and now is not None
    return divergence(then, now, num_items_in_batch)
