"""Booster: alignment that attenuates the harmful perturbation.

Booster: Tackling Harmful Fine-tuning for Large Language Models via Attenuating Harmful Perturbation.
Tiansheng Huang, Sihao Hu, Fatih Ilhan, Selim Furkan Tekin, Ling Liu. ICLR 2025. https://arxiv.org/abs/2409.01586

Idea: one gradient step on harmful data lowers the harmful loss a lot. Align so that it lowers it little. With f the
loss on alignment data, h the loss on harmful data, both mean token cross-entropy over answers:

    min_w  f(w) + lam * ( h(w) - h(w') )         with  w' = w - alpha * grad h(w) / ||grad h(w)||

    g = grad f(w) + lam * ( grad h(w) - grad h(w') )          (second-order terms dropped)

The sparse variant, with every = k (not in the paper): the regulariser's gradient is taken on optimizer steps number 0,
k, 2 k, ... only (counted from the start of the run, so that a resumed run keeps the rhythm), and is weighted k-fold
there, so that its sum over the run is the same up to the weights' motion between two of them. What it costs in
protection is measured in docs/benchmarks.md.

grad h is taken afresh at every step, both times on the same batch, with the same dropout masks. The norm is over all
trainable tensors together.

Differs from the official code in:
- gradient accumulation: h and w' belong to the optimizer step, with as many harmful micro-batches as the step has
  (there: erased in each micro-step, so only accumulation 1 works); k micro-batches equal one large batch. In a shorter
  last window of an epoch they are fewer harmful rows than one whole batch would have;
- the harmful batch has per_device_train_batch_size rows (there: always 10);
- w is restored by copy, bit for bit (there: by adding the step back);
- both harmful passes draw the same dropout masks;
- no 1e-7 is added to the norm; a zero harmful gradient adds nothing.

Cost: 3 forward and 3 backward passes per step (with every = k, 1 + 2 / k on average), and 2 more copies of the
trainable tensors. Supported: LoRA and full weights in float32 or wider (a step of length alpha would be lost in the
rounding of 16-bit weights), gradient accumulation (exact), activation checkpointing, data parallelism, FSDP2,
torch.compile, adapters over a base in 4 or 8 bit (bitsandbytes), mixed precision. In mixed precision the weights are
rounded before each product: how much of the step survives is measured in each step that is logged, as
booster/perturbation_fidelity (cosine; 1 is all of it), and warned about below 0.9; booster/perturbation_length is the
rounded step's length over the meant one's. Also logged: booster/harmful_loss_drop = h(w) - h(w').
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mithridate.attacks.scheduled import ELSEWHERE, Scheduled
from mithridate.errors import MithridateError, UnsupportedSetup
from mithridate.methods.attack import Attack
from mithridate.methods.base import Cost, require_number, require_rows, require_whole
from mithridate.methods.defense import Defense
from mithridate.methods.examples import rows_of
from mithridate.training.gradients import blocks, effective_step, fork_rng, global_norm, local, perturbed

if TYPE_CHECKING:
    from torch import Tensor

    from mithridate.rows import Rows
    from mithridate.training.mixin import DefenseMixin
    from mithridate.training.side_data import SideData

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Booster(Defense):
    """Trains so that a simulated harmful step lowers the harmful loss little; see this module's docstring.

    Args:
        harmful_dataset: harmful prompts with harmful answers, in any form of `mithridate.rows`.
        alpha: length of the simulated harmful step, over all trainable tensors.
        lam: weight of the regulariser; 0 is plain training, without the harmful passes.
        every: add the regulariser every so many optimizer steps, that many times as strong; 1 is every step.
    """

    paper: ClassVar[str] = "Booster (Huang, Hu, Ilhan, Tekin, Liu; ICLR 2025), https://arxiv.org/abs/2409.01586"
    citation: ClassVar[str] = """@inproceedings{booster,
  title     = {Booster: Tackling Harmful Fine-tuning for Large Language Models via Attenuating Harmful Perturbation},
  author    = {Huang, Tiansheng and Hu, Sihao and Ilhan, Fatih and Tekin, Selim Furkan and Liu, Ling},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  url       = {https://arxiv.org/abs/2409.01586}
}"""
    provenance: ClassVar[str] = "exact"
    stage: ClassVar[str] = "alignment"
    strength: ClassVar[str | None] = "lam"
    colour: ClassVar[str] = "#0072B2"
    off: ClassVar[dict[str, Any] | None] = {"lam": 0.0}
    roles: ClassVar[dict[str, str]] = {"harmful_dataset": "defender_harmful"}

    harmful_dataset: Rows
    alpha: float = 0.1
    lam: float = 5.0
    every: int = 1
    _harmful: SideData | None = field(init=False, repr=False, compare=False, default=None)
    _warned: bool = field(init=False, repr=False, compare=False, default=False)

    def __post_init__(self) -> None:
        require_number(self, "alpha", 0, open_low=True)
        require_number(self, "lam", 0)
        require_whole(self, "every", 1, "number of steps")

    def cost(self) -> Cost:
        return Cost() if self.lam == 0 else Cost(passes=1 + 2 / self.every, passing_copies=2)

    def adaptive(self) -> list[Attack]:
        """It looks one step of length alpha ahead, in the adapter that it trains: a first step beyond that, another
        adapter, or more steps."""
        return [Scheduled(leap=10.0), Scheduled(adapter=dict(ELSEWHERE)), Scheduled(length=3.0)]

    @classmethod
    def example(cls) -> Booster:
        return cls(harmful_dataset=rows_of("defender_harmful"), alpha=0.3, lam=2.0)

    def check(self, t: DefenseMixin) -> None:
        super().check(t)
        require_rows(self, "harmful_dataset")
        refuse_16_bit(t, self)
        t.side_data(self.harmful_dataset, "harmful_dataset")

    def on_train_begin(self, t: DefenseMixin) -> None:
        self._harmful = t.side_data(self.harmful_dataset, "harmful_dataset")
        self._warned = False

    def on_step_begin(self, t: DefenseMixin) -> None:
        turn, within = divmod(t.state.global_step, self.every)
        if within or self.lam == 0:
            return
        assert self._harmful is not None
        device = t.args.device
        window = self._harmful.take(turn, t.current_gradient_accumulation_steps)
        with fork_rng(device):  # both harmful passes, and the alignment pass, draw the same dropout masks
            loss, gradient = t.gradient(window)
        norm = usable_norm(t, gradient)
        if not norm:
            return
        with harmful_step(t, self, gradient, norm), fork_rng(device):
            attacked_loss, attacked = t.gradient(window)
        # strength * (grad h(w) - grad h(w')), in place: a copy of all trainable tensors is no small thing
        strength = self.lam * self.every
        pairs = [(g, a) for g, a in zip(gradient, attacked, strict=True) if g is not None]
        seeds = local([g for g, _ in pairs])
        taken = local([torch.zeros_like(g) if a is None else a for g, a in pairs])
        for part in blocks(seeds):
            torch._foreach_sub_(seeds[part], taken[part])
            torch._foreach_mul_(seeds[part], strength)
        t.seed(gradient, copy=False)
        t.record("booster/harmful_loss_drop", loss - attacked_loss)

    def on_train_end(self, t: DefenseMixin) -> None:
        self._harmful = None

    def on_log(self, t: DefenseMixin, logs: dict[str, Any]) -> None:
        self._warned = warned_of_rounding(t, self, logs, self._warned)


# -- a simulated harmful step, for this and for other methods that take one ------------------------------------------


def refuse_16_bit(t: DefenseMixin, method: Any) -> None:
    """Raises UnsupportedSetup where a step of length `method.alpha` would be lost in how weights are stored."""
    small = sorted({str(p.dtype) for p in t.params if p.dtype in (torch.bfloat16, torch.float16)})
    if small:
        raise UnsupportedSetup(
            f"{type(method).__name__}: trainable weights are stored in {', '.join(small)}: most of a step of length "
            f"{method.alpha:g} would be lost in rounding.",
            "load the model in float32 (bf16=True still computes in bfloat16), or train a LoRA adapter, which "
            "PEFT keeps in float32 over a bfloat16 model.",
        )


def usable_norm(t: DefenseMixin, gradient: list[Tensor | None]) -> float | None:
    """The norm of the harmful gradient; None where the loss scaler is going to skip the step.

    Raises:
        MithridateError: it is not finite, without a loss scaler.
    """
    norm = global_norm(gradient).item()
    if not norm < float("inf"):
        if t.accelerator.scaler is not None:
            t.seed(gradient)  # the scaler finds it, skips the step and lowers its scale
            return None
        raise MithridateError(
            f"The gradient of the harmful loss is not finite at step {t.state.global_step + 1}. "
            "Lower learning_rate or alpha, and check the harmful rows."
        )
    return norm


@contextlib.contextmanager
def harmful_step(t: DefenseMixin, method: Any, gradient: list[Tensor | None], norm: float) -> Iterator[None]:
    """Inside, the weights are w - alpha * gradient / norm; what is left of that step after rounding is recorded."""
    params = t.params
    with perturbed(params, gradient, -method.alpha / norm) as before:
        if t.logging_now:
            present = [(p, g) for p, g in zip(params, gradient, strict=True) if g is not None]
            moved, directions = [p for p, _ in present], [g for _, g in present]
            cosine, length = effective_step(before, moved, directions, t.compute_dtype)
            fidelity_name, length_name = _rounding(method)
            t.record(fidelity_name, -cosine)
            t.record(length_name, length / method.alpha)
        del before  # which still hold the weights: two copies are enough
        yield


def warned_of_rounding(t: DefenseMixin, method: Any, logs: dict[str, Any], warned: bool) -> bool:
    """Warns, once in a run, where little of the simulated step survives; returns whether it has."""
    fidelity_name, length_name = _rounding(method)
    if warned or logs.get(fidelity_name, 1.0) >= 0.9:
        return warned
    logger.warning(
        "%s: at step %d only %.2f (cosine) of the simulated harmful step survives the rounding to %s, "
        "which makes it %.2f times as long; the regulariser is partly noise. Compute in float32 (bf16=False, "
        "fp16=False; tf32=True on GPUs that have it), or train fewer weights.",
        type(method).__name__,
        t.state.global_step,
        logs[fidelity_name],
        t.compute_dtype,
        logs[length_name],
    )
    return True


def _rounding(method: Any) -> tuple[str, str]:
    """The names under which what is left of the step is recorded: its cosine, and its length."""
    name = type(method).__name__.lower()
    return f"{name}/perturbation_fidelity", f"{name}/perturbation_length"
