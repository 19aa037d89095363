"""Constrained SFT: an answer's first tokens may move away from the start model less than the later ones.

Safety Alignment Should Be Made More Than Just a Few Tokens Deep. Xiangyu Qi, Ashwinee Panda, Kaifeng Lyu, Xiao Ma,
Subhrajit Roy, Ahmad Beirami, Prateek Mittal, Peter Henderson. ICLR 2025. https://arxiv.org/abs/2406.05946

    min_w  1/N sum over answer tokens t of  -2/beta_t log sigmoid( beta_t (log P_w(y_t | x, y_<t) - log P_w0(...)) )

w0 are the weights before the first step, N the step's answer tokens. beta_t is betas[0] for an answer's first token,
betas[1] for its second to fifth, betas[2] from the sixth on. The objective's gradient is that of

    1/N sum_t omega_t CE_t,   omega_t = 2 (1 - sigmoid( beta_t (log P_w(y_t) - log P_w0(y_t)) ))   held constant

with CE_t the token's cross-entropy. As in the official code (Unispac/shallow-vs-deep-alignment), this weighted sum is
what is computed, omega_t is not let fall below 1e-3, and (0.5, 2.0, 0.1) is its beta 0.1 with its factors 5 and 20.

Differs from the official code in:
- there the loss is a mean over a micro-batch's tokens, averaged over micro-batches; here the weighted sum is divided
  by the answer tokens of the whole optimizer step, so accumulation and padding change nothing;
- there dropout is switched off; here the run's own stays in the trained model's pass, and the start model has none;
- there log P_w0 is computed once for all rows; here in each step, which also serves streamed rows and resumed runs;
- there the answer begins right after the prompt's template, so that white space of the template's counts as its first
  token with some tokenizers (Llama 2); here the first token is the first that is trained on. In conversations with
  several answers, and in packed rows, each answer is counted from its own beginning.

It is a change of the run's loss: omega_t - 1 times the cross-entropy is added to it, so that other defenses' terms and
a load-balancing loss stay as they are. All betas at 0 are plain training. The control `same-beta` has betas[2] for all
tokens (the paper's uniform one). The paper's other proposal, refusals after harmful beginnings, is another method.

Cost: a forward and backward pass and a forward pass of the start model; a copy of the trained weights. Supported: LoRA
and full weights, gradient accumulation (exact), activation checkpointing, mixed precision, data parallelism,
FSDP2, torch.compile. Refused: prompt learning, losses other than the plain cross-entropy (label smoothing,
DFT), rows whose prompts are trained on too (no answer has a beginning there), masked models. Logged:
constrainedsft/weight, the mean of omega_t.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mithridate.attacks.noice import NOICE
from mithridate.attacks.scheduled import Scheduled
from mithridate.errors import InputError, UnsupportedSetup
from mithridate.methods.attack import Attack
from mithridate.methods.base import Cost, Method
from mithridate.methods.defense import Defense
from mithridate.training.outputs import tokens_of
from mithridate.training.setups import refuse_other_than_causal

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mithridate.training.mixin import DefenseMixin
    from mithridate.training.outputs import Outputs

FIRST = 5
"""Tokens of an answer that are held by betas[0] and betas[1]."""
SMALLEST = 1e-3
"""What a token's weight is not let fall below."""


@dataclass(kw_only=True)
class ConstrainedSFT(Defense):
    """Weighs each answer token's loss by how far the model has moved there; see this module's docstring.

    Args:
        betas: of an answer's first token, its second to fifth, and the later ones; each at least 0. The larger, the
            less may the token's probability rise above the start model's. All 0 is plain training.
    """

    paper: ClassVar[str] = (
        "Constrained SFT (Qi, Panda, Lyu, Ma, Roy, Beirami, Mittal, Henderson; ICLR 2025), "
        "https://arxiv.org/abs/2406.05946"
    )
    citation: ClassVar[str] = """@inproceedings{constrainedsft,
  title     = {Safety Alignment Should Be Made More Than Just a Few Tokens Deep},
  author    = {Qi, Xiangyu and Panda, Ashwinee and Lyu, Kaifeng and Ma, Xiao and Roy, Subhrajit and Beirami, Ahmad and
               Mittal, Prateek and Henderson, Peter},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  url       = {https://arxiv.org/abs/2406.05946}
}"""
    provenance: ClassVar[str] = "exact"
    stage: ClassVar[str] = "fine-tuning"
    strength: ClassVar[str | None] = "betas"
    off: ClassVar[dict[str, Any] | None] = {"betas": (0.0, 0.0, 0.0)}
    needs: ClassVar[Sequence[str]] = ("reference",)

    betas: tuple[float, float, float] = (0.5, 2.0, 0.1)

    def __post_init__(self) -> None:
        given = tuple(self.betas) if isinstance(self.betas, list | tuple) else ()
        good = all(isinstance(b, int | float) and not isinstance(b, bool) and 0 <= b < float("inf") for b in given)
        if len(given) != 3 or not good:
            raise InputError(
                "ConstrainedSFT: betas must be three numbers, each at least 0 (of an answer's first token, its second "
                f"to fifth, and the later ones), not {self.betas!r}."
            )
        self.betas = given

    @classmethod
    def example(cls) -> ConstrainedSFT:
        return cls()

    def cost(self) -> Cost:
        return Cost(forwards=1, copies=1)

    def adaptive(self) -> list[Attack]:
        """It holds an answer's first tokens: rows whose answers begin as the model would, or more steps."""
        return [NOICE(size=200, harmful_ratio=0.5), Scheduled(length=3.0)]

    def controls(self) -> dict[str, Method]:
        return {"same-beta": replace(self, betas=(self.betas[2],) * 3)}

    def check(self, t: DefenseMixin) -> None:
        super().check(t)
        loss_type, smoothing = getattr(t.args, "loss_type", "nll"), t.args.label_smoothing_factor
        if loss_type != "nll" or smoothing:
            what = f"loss_type={loss_type!r}" if loss_type != "nll" else f"label_smoothing_factor={smoothing:g}"
            raise UnsupportedSetup(
                f"ConstrainedSFT: weighs the plain cross-entropy of each token, and the run's loss has {what}.",
                "set loss_type='nll', label_smoothing_factor=0.",
            )
        strategy = getattr(t.args, "packing_strategy", "bfd")
        if getattr(t.args, "packing", False) and strategy != "bfd":
            raise UnsupportedSetup(
                f"ConstrainedSFT: packing_strategy={strategy!r} cuts answers, and the rest of one has no beginning to "
                "count from.",
                "set packing_strategy='bfd', or packing=False.",
            )
        apart = getattr(t.model.config, "is_encoder_decoder", False)
        if not apart:
            refuse_other_than_causal(t, "ConstrainedSFT")
        if not apart:  # else the labels are the answer alone
            _refuse_answers_without_beginning(t.train_dataset)

    def loss(
        self,
        t: DefenseMixin,
        loss: Tensor,
        model: nn.Module,
        inputs: Any,
        outputs: Outputs,
        num_items_in_batch: Tensor | int | None,
    ) -> Tensor:
        if not any(self.betas):
            return loss
        assert outputs.reference is not None
        mask, now = outputs.label_mask, outputs.log_probs
        places = place_in_answer(mask)
        betas = now.new_tensor(self.betas)[(places > 1).long() + (places > FIRST)]
        moved = now.detach() - outputs.reference.log_probs.to(now.dtype)
        weights = (2 * torch.sigmoid(-betas * moved)).clamp(min=SMALLEST)
        count = tokens_of(num_items_in_batch, int(mask.sum()))
        t.record("constrainedsft/weight", (weights * mask).sum() / mask.sum().clamp(min=1))
        return loss + (((1 - weights) * now * mask).sum() / count).to(loss.dtype)


def _refuse_answers_without_beginning(rows: Any) -> None:
    """Raises UnsupportedSetup for a row that is trained on from its first token: of a stream, for its first row."""
    known = "labels" in (getattr(rows, "column_names", None) or ())
    every = rows["labels"] if known and hasattr(rows, "__len__") else [next(iter(rows), {}).get("labels")]
    for number, labels in enumerate(every, start=1):
        if isinstance(labels, Sequence) and labels and labels[0] != -100:
            raise UnsupportedSetup(
                f"ConstrainedSFT: row {number} is trained on from its first token, so its answer has no beginning to "
                "count from: it has no prompt, or one that was cut away whole.",
                "give rows of prompt and completion, or set assistant_only_loss=True (completion_only_loss=True); "
                "with truncation_mode='keep_end', a larger max_length.",
            )


def place_in_answer(mask: Tensor) -> Tensor:
    """For each token that is trained on, its number in its run of such tokens, from 1; elsewhere 0. [R, T] int64."""
    before = mask.cumsum(1)
    return before - before.masked_fill(mask, 0).cummax(1).values
