"""LDIFS: the user's run is held to the features that the model had before it.

Fine-tuning can cripple your foundation model; preserving features may be the solution. Jishnu Mukhoti, Yarin Gal,
Philip H. S. Torr, Puneet K. Dokania. TMLR 2024. https://arxiv.org/abs/2308.13320

    min_w  h(w) + rho / 2 * sum over layers l of 1/N sum over answer tokens t of || h_l,t(w) - h_l,t(w0) ||^2

h is the user's loss, w0 the weights before the first step, N the step's answer tokens, h_l,t the output of layer l at
the position that predicts token t (the last layer's after the model's final norm, as transformers gives it). The paper
concatenates the features of several blocks of an image encoder; here they are those of every decoder layer, without
the embeddings, and the mean over images is one over answer tokens.

Differs from the port in git-disl/Booster (from which the 1/2 is):
- there a layer's term counts only while it is below 0.1, so that layers fall out of the sum in silence as the model
  moves; here all layers count, always;
- there the term is a sum over all positions, padding and prompts too, so that its strength depends on the batch and
  its lengths (their rho is 1e-4); here it is a mean over answer tokens: padding and accumulation change nothing;
- there the features are the MLPs' outputs; here, as in the paper, what leaves the block;
- the start model's pass is without gradient and dropout, and no gradient is clipped but by the Trainer.

Cost: a forward and backward pass and a forward pass of the start model; a copy of the trained weights; the hidden
states of both. Supported: LoRA and full weights, gradient accumulation (exact), activation checkpointing, mixed
precision, data parallelism, FSDP2, torch.compile. Refused: prompt learning, models that return no hidden
states.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mithridate.attacks.scheduled import Scheduled
from mithridate.errors import UnsupportedSetup
from mithridate.methods.attack import Attack
from mithridate.methods.base import Cost, require_number
from mithridate.methods.defense import Defense
from mithridate.training.outputs import own_mean, tokens_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mithridate.training.mixin import DefenseMixin
    from mithridate.training.outputs import Outputs


@dataclass(kw_only=True)
class LDIFS(Defense):
    """Adds the squared distance of every layer's output to the start model's; see this module's docstring.

    Args:
        rho: strength; 0 is plain training.
    """

    paper: ClassVar[str] = "LDIFS (Mukhoti, Gal, Torr, Dokania; TMLR 2024), https://arxiv.org/abs/2308.13320"
    citation: ClassVar[str] = """@article{ldifs,
  title   = {Fine-tuning can cripple your foundation model; preserving features may be the solution},
  author  = {Mukhoti, Jishnu and Gal, Yarin and Torr, Philip H. S. and Dokania, Puneet K.},
  journal = {Transactions on Machine Learning Research},
  year    = {2024},
  url     = {https://arxiv.org/abs/2308.13320}
}"""
    provenance: ClassVar[str] = "own"
    stage: ClassVar[str] = "fine-tuning"
    strength: ClassVar[str | None] = "rho"
    off: ClassVar[dict[str, Any] | None] = {"rho": 0.0}
    needs: ClassVar[Sequence[str]] = ("hidden_states", "reference")

    rho: float

    def __post_init__(self) -> None:
        require_number(self, "rho", 0)

    def adaptive(self) -> list[Attack]:
        """Its pull is of one strength, and the user's loss goes on: more steps."""
        return [Scheduled(length=3.0)]

    @classmethod
    def example(cls) -> LDIFS:
        return cls(rho=0.3)

    def cost(self) -> Cost:
        return Cost(forwards=1, copies=1, layer_states=1.5)

    def loss(
        self,
        t: DefenseMixin,
        loss: Tensor,
        model: nn.Module,
        inputs: Any,
        outputs: Outputs,
        num_items_in_batch: Tensor | int | None,
    ) -> Tensor:
        if not self.rho:
            return loss
        assert outputs.reference is not None
        now, start = outputs.hidden_states, outputs.reference.hidden_states
        if now is None or start is None or len(now) != len(start):
            raise UnsupportedSetup(
                "LDIFS: this model does not return its hidden states in each pass.", "use KL, which needs its logits."
            )
        mask = outputs.label_mask
        total = torch.zeros((), dtype=torch.promote_types(now[0].dtype, torch.float32), device=loss.device)
        for h, h0 in zip(now[1:], start[1:], strict=True):
            away = h[:, : mask.shape[1]][mask] - h0[:, : mask.shape[1]][mask].to(h.dtype)
            total = total + away.to(total.dtype).square().sum().to(total.device)
        own = len(outputs.labels)
        mean = total / tokens_of(num_items_in_batch, own)
        t.record("ldifs/distance", own_mean(mean, num_items_in_batch, own))
        return loss + (self.rho / 2 * mean).to(loss.dtype)
