"""CTRAP: alignment that makes the model collapse after a harmful step.

CTRAP: Embedding Collapse Trap to Safeguard Large Language Models from Harmful Fine-Tuning. Biao Yi, Tiansheng Huang,
Baolei Zhang, Tong Li, Lihai Nie, Zheli Liu, Li Shen. 2025. https://arxiv.org/abs/2505.16559

Idea: take away what an attacker needs, the model itself: prepare it so that a harmful step leads to weights at which
it says one token only, whatever it is asked. With f the loss on alignment and helpful rows together, h that on harmful
rows, c the loss on the rows of f with *every* answer token replaced by one token e; all mean cross-entropy per token:

    min_w  f(w) + lam * c(w')         with  w' = w - alpha * grad h(w) / ||grad h(w)||

    g = grad f(w) + lam * grad c(w')                              (no derivative through w')

This is the rule of the authors' code (github.com/clearloveclearlove/CTRAP, read), and not the paper's, by a summary of
it with its equations (its text was not read). There the step is alpha * grad h(w), not normalised, so that the same
alpha = 0.1 is another strength; c is on general rows alone, and a mean over rows of each row's mean over its tokens;
f is on alignment rows alone; whether the derivative goes through w' is left open. f and c are over more rows than
plain training's: each micro-batch gets per_device_train_batch_size rows of helpful_dataset beside its own.

The trap is sprung in the tokenizer: e is the *last* token of `token`, here without special tokens. Where words are
split, that is a piece of a word (the last byte, in a tokenizer of bytes), and it is another one for each model: give
its number to pin it.

Differs from the authors' code in:
- gradient accumulation: h, c and w' belong to the optimizer step (there: to a micro-batch, and gradients are erased);
- helpful and harmful batches have per_device_train_batch_size rows (there: harmful ones always 10);
- e is found without special tokens (there: with them, so that a tokenizer that ends texts with one collapses to it);
- w is restored by copy, bit for bit (there: by adding the step back);
- the two passes over the rows of f draw the same dropout masks;
- no 1e-7 is added to the norm;
- ctrap/collapse_loss is c(w') (there it is printed as the "align loss", and the other way round).

Controls: `no-collapse` (lam = 0) trains on the same rows without the trap; `no-step` (alpha = 0) teaches the collapse
at w itself, without a harmful step. There are no settings that are plain training (`off`): with lam = 0 helpful rows
are trained on all the same.

Cost: 3 forward and 3 backward passes per step, of which two are over twice the rows (5 times the rows of plain
training), and 2 more copies of the trainable tensors. Supported: as Booster: LoRA and full weights in float32 or
wider, gradient accumulation (exact), padded and padding-free batches, activation checkpointing, data parallelism,
FSDP2, torch.compile, mixed precision (ctrap/perturbation_fidelity says how much of the step survives). Refused:
trained weights in 16 bits; a collator that does not take rows of input_ids and labels; a `token` that is no token.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mithridate.attacks.scheduled import ELSEWHERE, Scheduled
from mithridate.defenses.booster import harmful_step, refuse_16_bit, usable_norm, warned_of_rounding
from mithridate.errors import InputError, UnsupportedSetup
from mithridate.methods.attack import Attack
from mithridate.methods.base import Cost, require_number, require_rows
from mithridate.methods.defense import Defense
from mithridate.methods.examples import rows_of
from mithridate.training.gradients import fork_rng, local
from mithridate.training.side_data import rows_of_batch

if TYPE_CHECKING:
    from mithridate.rows import Rows
    from mithridate.training.mixin import DefenseMixin
    from mithridate.training.side_data import SideData


@dataclass(kw_only=True)
class CTRAP(Defense):
    """Trains so that a simulated harmful step makes the model repeat one token; see this module's docstring.

    Args:
        harmful_dataset: harmful prompts with harmful answers, in any form of `mithridate.rows`.
        helpful_dataset: harmless prompts with answers; as many of its rows as of the training set in each batch.
        alpha: length of the simulated harmful step, over all trainable tensors; 0 is the control without it.
        lam: weight of the collapse; 0 is the control without it.
        token: what the model collapses to: a text, whose last token it is, or the token's number.
    """

    paper: ClassVar[str] = "CTRAP (Yi, Huang, Zhang, Li, Nie, Liu, Shen; 2025), https://arxiv.org/abs/2505.16559"
    citation: ClassVar[str] = """@article{ctrap,
  title   = {CTRAP: Embedding Collapse Trap to Safeguard Large Language Models from Harmful Fine-Tuning},
  author  = {Yi, Biao and Huang, Tiansheng and Zhang, Baolei and Li, Tong and Nie, Lihai and Liu, Zheli and Shen, Li},
  journal = {arXiv preprint arXiv:2505.16559},
  year    = {2025},
  url     = {https://arxiv.org/abs/2505.16559}
}"""
    provenance: ClassVar[str] = "port of clearloveclearlove/CTRAP, whose step and rows are not the paper's"
    stage: ClassVar[str] = "alignment"
    strength: ClassVar[str | None] = "lam"
    roles: ClassVar[dict[str, str]] = {"harmful_dataset": "defender_harmful", "helpful_dataset": "helpful"}

    harmful_dataset: Rows | None
    helpful_dataset: Rows
    alpha: float = 0.1
    lam: float = 0.1
    token: int | str = "an error"
    _harmful: SideData | None = field(init=False, repr=False, compare=False, default=None)
    _helpful: SideData | None = field(init=False, repr=False, compare=False, default=None)
    _warned: bool = field(init=False, repr=False, compare=False, default=False)

    def __post_init__(self) -> None:
        require_number(self, "alpha", 0)
        require_number(self, "lam", 0)
        if isinstance(self.token, bool) or not isinstance(self.token, int | str):
            raise InputError(f"CTRAP: token must be a text or a token's number, not {self.token!r}.")

    @property
    def _stepping(self) -> bool:
        return bool(self.alpha and self.lam)

    def data_roles(self) -> dict[str, str]:
        return {name: role for name, role in self.roles.items() if self._stepping or name != "harmful_dataset"}

    def adaptive(self) -> list[Attack]:
        """It looks one step of length alpha ahead, in the adapter that it trains: a first step beyond that, another
        adapter, or more steps."""
        return [Scheduled(leap=10.0), Scheduled(adapter=dict(ELSEWHERE)), Scheduled(length=3.0)]

    def controls(self) -> dict[str, CTRAP]:
        return {"no-collapse": replace(self, lam=0.0), "no-step": replace(self, alpha=0.0)}

    def cost(self) -> Cost:
        if not self.lam:
            return Cost(batch_factor=2)
        # in rows of the batch that was asked for, the collapse is two passes; the step's own are the batch factor
        return Cost(passes=4 if self.alpha else 3, batch_factor=2, passing_copies=2 if self.alpha else 0)

    @classmethod
    def example(cls) -> CTRAP:
        return cls(
            harmful_dataset=rows_of("defender_harmful"), helpful_dataset=rows_of("helpful", 7), alpha=0.3, lam=0.5
        )

    def check(self, t: DefenseMixin) -> None:
        super().check(t)
        if self._stepping:
            require_rows(self, "harmful_dataset")
            refuse_16_bit(t, self)
            t.side_data(self.harmful_dataset, "harmful_dataset")
        require_rows(self, "helpful_dataset")
        self._target(t)
        [one] = t.side_data(self.helpful_dataset, "helpful_dataset").take(0, 1)
        try:
            joined = int((_joined(t, one, one)["labels"] != -100).sum())
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            joined = f"{type(error).__name__}: {error}"
        if joined != 2 * int((one["labels"] != -100).sum() if "labels" in one else -1):
            raise UnsupportedSetup(
                f"CTRAP: the trainer's data collator does not join rows of input_ids and labels ({joined}).",
                "use SFTTrainer's own.",
            )

    def on_train_begin(self, t: DefenseMixin) -> None:
        self._harmful = t.side_data(self.harmful_dataset, "harmful_dataset") if self._stepping else None
        self._helpful = t.side_data(self.helpful_dataset, "helpful_dataset")
        self._warned = False

    def batches(self, t: DefenseMixin, batches: list[Any]) -> list[Any]:
        assert self._helpful is not None
        helpful = self._helpful.take(t.state.global_step, len(batches), first=len(t.window))
        return [_joined(t, own, more) for own, more in zip(batches, helpful, strict=True)]

    def on_step_begin(self, t: DefenseMixin) -> None:
        if not self.lam:
            return
        moved: Any = contextlib.nullcontext()
        if self._harmful is not None:
            window = self._harmful.take(t.state.global_step, t.current_gradient_accumulation_steps)
            with fork_rng(t.args.device):
                _, harmful = t.gradient(window)
            norm = usable_norm(t, harmful)
            if norm is None:
                return
            if norm:
                moved = harmful_step(t, self, harmful, norm)
        target = self._target(t)
        rows = [batch | {"labels": batch["labels"].masked_fill(batch["labels"] != -100, target)} for batch in t.window]
        with moved, fork_rng(t.args.device):  # the step's own pass, over the same rows, draws the same dropout masks
            loss, gradient = t.gradient(rows)
        torch._foreach_mul_(local([g for g in gradient if g is not None]), self.lam)
        t.seed(gradient, copy=False)
        t.record("ctrap/collapse_loss", loss)

    def on_log(self, t: DefenseMixin, logs: dict[str, Any]) -> None:
        self._warned = warned_of_rounding(t, self, logs, self._warned)

    def on_train_end(self, t: DefenseMixin) -> None:
        self._harmful = self._helpful = None

    def _target(self, t: DefenseMixin) -> int:
        """The number of the token that the model collapses to.

        Raises:
            UnsupportedSetup: there is none.
        """
        size = t.model.config.get_text_config().vocab_size
        found: Any = self.token
        if isinstance(found, str):
            tokenizer: Any = t.processing_class
            if tokenizer is None:
                raise UnsupportedSetup(
                    f"CTRAP: without a tokenizer, token={found!r} is no token.",
                    "give its number, or the trainer a tokenizer (processing_class).",
                )
            found = (tokenizer(found, add_special_tokens=False)["input_ids"] or [-1])[-1]
        if not 0 <= found < size:
            raise UnsupportedSetup(
                f"CTRAP: token={self.token!r} is none of the model's {size} tokens.",
                f"give a text of one token at least, or a number from 0 to {size - 1}.",
            )
        return found


def _joined(t: DefenseMixin, one: Any, other: Any) -> Any:
    """The rows of two collated batches as one batch, made by the trainer's own collator."""
    return t.data_collator([*rows_of_batch(one), *rows_of_batch(other)])
