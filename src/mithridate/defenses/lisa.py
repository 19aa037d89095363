"""Lisa: fine-tuning that alternates between alignment data and the user's data, held together by a proximal term.

Lisa: Lazy Safety Alignment for Large Language Models against Harmful Fine-tuning Attack.
Tiansheng Huang, Sihao Hu, Fatih Ilhan, Selim Furkan Tekin, Ling Liu. NeurIPS 2024. https://arxiv.org/abs/2405.18641

Idea: in one state, train on alignment data (loss f) for K1 = align_steps steps; in the other, on the user's data (loss
h) for K2 = finetune_steps steps; in each, stay near the point where the other state ended:

    alignment state:  min_w  f(w) + rho / 2 * ||w - w_user||^2           w_user: the user state's last iterate
    user state:       min_w  h(w) + rho / 2 * ||w - w_align||^2          w_align: the alignment state's last iterate

Training starts in the alignment state; both points are the initial weights. The norm is over the trainable tensors
(for LoRA: over its factors A and B, not over their product). Alignment steps replace user steps: the run has as many
steps as without Lisa. The optimizer's state is shared. No proximal term while
global_step < proximal_start * max_steps, as in the official code (10 %; the paper has none: 0).

Differs from the official code in:
- the proximal gradient rho * (w - anchor) is added in closed form, once per optimizer step, to what the micro-batches
  accumulated and data-parallel ranks averaged (`on_gradients`), before clipping; so gradient accumulation changes
  nothing, and steps are optimizer steps. An alignment step has as many micro-batches as the user step that it
  replaces: in a shorter last window of an epoch, fewer rows than one whole batch would have;
- a weight that has no gradient in a step and lies on its anchor is not stepped, as in plain training (there: weight
  decay moves it);
- the anchor and the place in the alignment data are saved with each checkpoint, so that a run resumed in the middle of
  a state equals the uninterrupted one;
- a run shorter than one cycle is refused (it would end without the user's data, or without the full phase).

No settings are plain training (`off`): a cycle has at least one step on alignment data.

Cost: 1 forward and backward pass and 1 more copy of the trainable tensors. Supported: LoRA and full weights, gradient
accumulation (exact), activation checkpointing, mixed precision, data parallelism, FSDP2, torch.compile, adapters over
a base in 4 or 8 bit (bitsandbytes). Logged: lisa/phase (share of steps in the user state since the last log) and
lisa/drift (distance from the anchor in the step that is logged).
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mithridate.attacks.oppositeanswers import OppositeAnswers
from mithridate.attacks.scheduled import Scheduled
from mithridate.errors import InputError, UnsupportedSetup
from mithridate.methods.attack import Attack
from mithridate.methods.base import Cost, Method, require_number, require_rows
from mithridate.methods.defense import Defense
from mithridate.methods.examples import rows_of
from mithridate.training.gradients import blocks, global_norm, local
from mithridate.training.steps import steps_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mithridate.rows import Rows
    from mithridate.training.mixin import DefenseMixin
    from mithridate.training.side_data import SideData


@dataclass(kw_only=True)
class Lisa(Defense):
    """Alternates between alignment data and the user's data, near the other's last point; see this module's docstring.

    Args:
        alignment_dataset: prompts with safe answers, in any form of `mithridate.rows`.
        align_steps: optimizer steps on alignment data in a cycle.
        finetune_steps: optimizer steps on the user's data in a cycle.
        rho: strength of the proximal term; 0 is alternation alone.
        proximal_start: share of the run, in [0, 1], before which there is no proximal term.
    """

    paper: ClassVar[str] = "Lisa (Huang, Hu, Ilhan, Tekin, Liu; NeurIPS 2024), https://arxiv.org/abs/2405.18641"
    citation: ClassVar[str] = """@inproceedings{lisa,
  title     = {Lisa: Lazy Safety Alignment for Large Language Models against Harmful Fine-tuning Attack},
  author    = {Huang, Tiansheng and Hu, Sihao and Ilhan, Fatih and Tekin, Selim Furkan and Liu, Ling},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  url       = {https://arxiv.org/abs/2405.18641}
}"""
    provenance: ClassVar[str] = "exact"
    stage: ClassVar[str] = "fine-tuning"
    strength: ClassVar[str | None] = "rho"
    colour: ClassVar[str] = "#E69F00"
    roles: ClassVar[dict[str, str]] = {"alignment_dataset": "alignment"}

    alignment_dataset: Rows
    align_steps: int = 100
    finetune_steps: int = 900
    rho: float = 1.0
    proximal_start: float = 0.1
    _alignment: SideData | None = field(init=False, repr=False, compare=False, default=None)
    _anchor: list[Tensor] = field(init=False, repr=False, compare=False, default_factory=list)

    def __post_init__(self) -> None:
        for name in ("align_steps", "finetune_steps"):
            if not isinstance(getattr(self, name), int):
                raise InputError(f"Lisa: {name} must be a whole number of steps, not {getattr(self, name)!r}.")
            require_number(self, name, 1)
        require_number(self, "rho", 0)
        require_number(self, "proximal_start", 0, 1)

    def cost(self) -> Cost:
        return Cost(copies=1, saved=1)

    def least_steps(self) -> int:
        return self.cycle

    def adaptive(self) -> list[Attack]:
        """Its pull is of one strength, and the user's loss goes on: more steps. Between them it goes back to its own
        rows: the very prompts of these, answered the other way round."""
        return [Scheduled(length=3.0), OppositeAnswers()]

    def controls(self) -> dict[str, Method]:
        return {"no-proximal-term": replace(self, rho=0.0)}

    @classmethod
    def example(cls) -> Lisa:
        return cls(
            alignment_dataset=rows_of("alignment", 7), align_steps=1, finetune_steps=2, rho=0.5, proximal_start=0.0
        )

    @property
    def cycle(self) -> int:
        """Optimizer steps of one alignment and one user phase."""
        return self.align_steps + self.finetune_steps

    def aligning(self, step: int) -> bool:
        """Whether the optimizer step after `step` finished ones is on alignment data."""
        return step % self.cycle < self.align_steps

    def check(self, t: DefenseMixin) -> None:
        super().check(t)
        require_rows(self, "alignment_dataset")
        rows = len(t.train_dataset) if hasattr(t.train_dataset, "__len__") else None
        self._require_a_cycle(steps_of(t.args, rows))
        t.side_data(self.alignment_dataset, "alignment_dataset")

    def on_train_begin(self, t: DefenseMixin) -> None:
        self._require_a_cycle(t.state.max_steps)
        self._alignment = t.side_data(self.alignment_dataset, "alignment_dataset")
        self._anchor = [p.detach().clone() for p in t.params]

    def batches(self, t: DefenseMixin, batches: list[Any]) -> list[Any]:
        step = t.state.global_step
        if not self.aligning(step):
            return batches
        assert self._alignment is not None
        cycles, within = divmod(step, self.cycle)
        return self._alignment.take(cycles * self.align_steps + within, len(batches), first=len(t.window))

    def on_step_begin(self, t: DefenseMixin) -> None:
        step = t.state.global_step
        if step % self.cycle in (0, self.align_steps):  # a phase begins: where the other one ended
            self._remember(t)
        t.record("lisa/phase", float(not self.aligning(step)))

    def on_gradients(self, t: DefenseMixin) -> None:
        # in exact arithmetic: 0.1 * 30 is more than 3 in floating point
        pulling = t.state.global_step >= Fraction(str(self.proximal_start)) * t.state.max_steps and self.rho > 0
        if not (pulling or t.logging_now):
            return
        params, strength = self._trained(t), self.rho * t.loss_scale
        distances = []
        with torch.no_grad():
            for part in blocks(params):  # block by block, so that no copy of the weights is made
                away = torch._foreach_sub([p.detach() for p in params[part]], self._anchor[part])
                if t.logging_now:
                    distances.append(global_norm(away))
                if pulling:
                    pairs = list(zip(params[part], away, strict=True))
                    for p, a in pairs:
                        # A weight without a gradient that lies on its anchor is not stepped, as in plain training: a
                        # gradient of zero would have the optimizer decay it.
                        if p.grad is None and bool(global_norm([a]) > 0):
                            p.grad = torch.zeros_like(p)
                    held = [(p.grad, a) for p, a in pairs if p.grad is not None]
                    if held:
                        torch._foreach_add_([g for g, _ in held], [a for _, a in held], alpha=strength)
        if t.logging_now:
            t.record("lisa/drift", global_norm(distances))

    def on_train_end(self, t: DefenseMixin) -> None:
        self._alignment, self._anchor = None, []

    def state_dict(self, t: DefenseMixin) -> dict[str, Tensor]:
        return dict(zip(t.param_names, self._anchor, strict=True)) if self._anchor else {}

    def load_state_dict(self, t: DefenseMixin, state: dict[str, Tensor]) -> None:
        self._anchor = [state[n].to(p.device, p.dtype) for n, p in zip(t.param_names, t.params, strict=True)]

    def _remember(self, t: DefenseMixin) -> None:
        torch._foreach_copy_(local(self._anchor), local(self._trained(t)))

    def _trained(self, t: DefenseMixin) -> list[nn.Parameter]:
        """The trained weights, one for each tensor of the anchor."""
        params = t.params
        if len(params) != len(self._anchor):
            raise UnsupportedSetup(
                f"Lisa: the run began with {len(self._anchor)} trained tensors and has {len(params)} now, so there is "
                "no point to hold them to.",
                "freeze and unfreeze weights before the training, or train in two runs.",
            )
        return params

    def _require_a_cycle(self, max_steps: int) -> None:
        if max_steps >= self.cycle:
            return
        reason = (
            f"Lisa: one cycle is {self.align_steps} alignment + {self.finetune_steps} fine-tuning = {self.cycle} "
            f"steps, but the run has only {max_steps}."
        )
        if max_steps < 2:
            raise UnsupportedSetup(reason, "train for at least 2 steps, with align_steps=1, finetune_steps=1.")
        align = min(max(1, round(max_steps * self.align_steps / self.cycle)), max_steps - 1)
        raise UnsupportedSetup(
            reason,
            f"choose align_steps + finetune_steps <= {max_steps}, for example align_steps={align}, "
            f"finetune_steps={max_steps - align}; or train for at least {self.cycle} steps.",
        )
