"""KL: the user's run is held to the answers that the model gave before it.

The regulariser is that of reinforcement learning from preferences (Fine-Tuning Language Models from Human Preferences.
Daniel M. Ziegler, Nisan Stiennon, Jeffrey Wu, Tom B. Brown, Alec Radford, Dario Amodei, Paul Christiano, Geoffrey
Irving. 2019. https://arxiv.org/abs/1909.08593), as papers on harmful fine-tuning use it for a baseline:

    min_w  h(w) + lam * 1/N sum over answer tokens t of KL( P_w0(. | x, y_<t) || P_w(. | x, y_<t) )

h is the user's loss, w0 the weights before the first step, N the step's answer tokens; the sum inside KL runs over the
vocabulary, and the expectation is under the start model's distribution.

Differs from the published ports:
- git-disl/Booster and Lslland/T-Vaccine take the softmax over dim=1 of [B, T, V], the positions of the sequence: rows
  named KL in the tables of these papers are not about this regulariser. Here it is over the vocabulary, the last axis;
- padding and prompts are left out, and the sum is divided by answer tokens, so neither the batch's padding nor
  gradient accumulation changes anything (there: by the batch size);
- the start model's pass is without gradient and dropout, from weights that are kept (there: loaded in every step).

Cost: a forward and backward pass and a forward pass of the start model; a copy of the trained weights; the
log-probabilities [N, V] of both. Supported: LoRA and full weights, gradient accumulation (exact), activation
checkpointing, mixed precision, data parallelism, FSDP2, torch.compile. Refused: prompt learning, and models
whose head computes more than its output embeddings, a scale and a cap.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mithridate.attacks.scheduled import Scheduled
from mithridate.methods.attack import Attack
from mithridate.methods.base import Cost, require_number
from mithridate.methods.defense import Defense
from mithridate.training.outputs import divergence, own_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mithridate.training.mixin import DefenseMixin
    from mithridate.training.outputs import Outputs


@dataclass(kw_only=True)
class KL(Defense):
    """Adds lam * KL(start model || model), the mean over answer tokens; see this module's docstring.

    Args:
        lam: strength; 0 is plain training.
    """

    paper: ClassVar[str] = "KL to the start model (Ziegler and others; 2019), https://arxiv.org/abs/1909.08593"
    citation: ClassVar[str] = """@article{kl_to_start,
  title   = {Fine-Tuning Language Models from Human Preferences},
  author  = {Ziegler, Daniel M. and Stiennon, Nisan and Wu, Jeffrey and Brown, Tom B. and Radford, Alec and
             Amodei, Dario and Christiano, Paul and Irving, Geoffrey},
  journal = {arXiv preprint arXiv:1909.08593},
  year    = {2019},
  url     = {https://arxiv.org/abs/1909.08593}
}"""
    provenance: ClassVar[str] = "own"
    stage: ClassVar[str] = "fine-tuning"
    strength: ClassVar[str | None] = "lam"
    off: ClassVar[dict[str, Any] | None] = {"lam": 0.0}
    needs: ClassVar[Sequence[str]] = ("logits", "reference")

    lam: float

    def __post_init__(self) -> None:
        require_number(self, "lam", 0)

    def adaptive(self) -> list[Attack]:
        """Its pull is of one strength, and the user's loss goes on: more steps."""
        return [Scheduled(length=3.0)]

    @classmethod
    def example(cls) -> KL:
        return cls(lam=0.7)

    def cost(self) -> Cost:
        return Cost(forwards=1, copies=1, logits=6)

    def loss(
        self,
        t: DefenseMixin,
        loss: Tensor,
        model: nn.Module,
        inputs: Any,
        outputs: Outputs,
        num_items_in_batch: Tensor | int | None,
    ) -> Tensor:
        if not self.lam:
            return loss
        assert outputs.reference is not None and outputs.reference.logits is not None and outputs.logits is not None
        mean = divergence(outputs.reference.logits, outputs.logits, num_items_in_batch)
        t.record("kl/divergence", own_mean(mean, num_items_in_batch, len(outputs.labels)))
        return loss + (self.lam * mean).to(loss.dtype)
