"""Panacea: the user's run learns a perturbation that raises the harmful loss, which is added to the weights after it.

Panacea: Mitigating Harmful Fine-tuning for Large Language Models via Post-fine-tuning Perturbation. Yibo Wang,
Tiansheng Huang, Li Shen, Huanjin Yao, Haotian Luo, Rui Liu, Naiqiang Tan, Jiaxing Huang, Dacheng Tao. NeurIPS 2025.
https://arxiv.org/abs/2501.18100

With g the loss on the user's data and h that on harmful data, both mean token cross-entropy over answers:

    min_w  g(w) - lam * ( min(h(w + eps), 5) - h(w) )          eps = rho * grad h(w) / ||grad h(w)||, a constant

    in each step   grad g(w) - lam * ( grad min(h(w + eps), 5) - grad h(w) )        (second-order terms dropped)
    at the end     w <- w + eps                                                     eps of the last step

grad h is taken afresh at every step, both times on the same batch, with the same dropout masks. The norm is over all
trainable tensors together, so that the same rho with another rank, or with all weights, is another strength. The last
eps is that of one harmful batch: it depends on which one came last. Where h(w + eps) is above 5 its gradient is zero,
and what is left of the term, + lam * grad h(w), lowers the harmful loss; panacea/raised says in which share of steps
the term was whole.

Which it is, of paper and code: the rule is that of the authors' code (w-yibo/Panacea), with rho = 1 and lam = 0.001 as
in its script for GSM8K. As published that code does not run: the clipped loss is used under a name (clip_loss_h) that
is never set, and the trainer is asked for as Pancacea. Here that name is read as the loss which the line above clips
at 5. By three summaries of the paper (its text was not read) its objective and its steps are these without the clip;
its rho and lam were not read.

Differs from that code in:
- gradient accumulation: h and eps belong to the optimizer step, with as many harmful micro-batches as the step has
  (there: each micro-step overwrites the gradient, so only accumulation 1 works). In a shorter last window of an epoch
  they are fewer harmful rows than one whole batch would have;
- there eps is the very tensor of the gradient, so that it is right only where zero_grad lets go of gradients (as it
  does by default): set to zero in place, they would take eps with them, and w would stay perturbed. Here it is a
  tensor of its own;
- w is restored by copy, bit for bit (there: by subtracting eps);
- the harmful batch has per_device_train_batch_size rows (there: always 10);
- no 1e-7 is added to the norm; a zero harmful gradient adds nothing;
- the logged loss is g (there: h(w + eps));
- eps is saved with each checkpoint, so that a resumed run ends as the uninterrupted one.

The weights move at the end whatever the learning rate. Weights that are kept in the midst of a run (checkpoints) are
w, without eps: no models of this method (`finishes`), so an experiment scores none on the way. Of a run in several
trainings (the leap of the attack `scheduled`) only the last one adds its eps, for the run ends there. With rho 0
there is no harmful pass, and the run is plain training.

How much of the effect is that of any perturbation so long, shows the control "random-perturbation": plain training,
and at the end w <- w + rho * z / ||z||, z normal by the run's seed. It needs no harmful data.

Cost: 3 forward and 3 backward passes per step, a copy of the trainable tensors (eps) throughout and 2 more before the
step's own passes. Supported: LoRA and full weights in float32 or wider, gradient accumulation (exact), activation
checkpointing, mixed precision, data parallelism, FSDP2 (the control: not), torch.compile. Logged:
panacea/harmful_loss = h(w), panacea/harmful_loss_gain = h(w + eps) - h(w), panacea/raised.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mithridate.attacks.scheduled import ELSEWHERE, Scheduled
from mithridate.errors import InputError, MithridateError, UnsupportedSetup
from mithridate.methods.attack import Attack
from mithridate.methods.base import Cost, Method, require_number, require_rows
from mithridate.methods.defense import Defense
from mithridate.methods.examples import rows_of
from mithridate.training.gradients import fork_rng, global_norm, local, perturbed, sharded

if TYPE_CHECKING:
    from torch import Tensor

    from mithridate.rows import Rows
    from mithridate.training.mixin import DefenseMixin
    from mithridate.training.side_data import SideData

CEILING = 5.0
"""Of the perturbed harmful loss."""


@dataclass(kw_only=True)
class Panacea(Defense):
    """Learns a perturbation that raises the harmful loss, and adds it in the end; see this module's docstring.

    Args:
        harmful_dataset: harmful prompts with harmful answers, in any form of `mithridate.rows`.
        rho: length of the perturbation, over all trainable tensors; 0 is plain training.
        lam: weight of the term that makes the weights ready for it.
        learned: False: the control, a random perturbation as long, after plain training.
    """

    paper: ClassVar[str] = "Panacea (Wang and others; NeurIPS 2025), https://arxiv.org/abs/2501.18100"
    citation: ClassVar[str] = """@inproceedings{panacea,
  title     = {Panacea: Mitigating Harmful Fine-tuning for Large Language Models via Post-fine-tuning Perturbation},
  author    = {Wang, Yibo and Huang, Tiansheng and Shen, Li and Yao, Huanjin and Luo, Haotian and Liu, Rui and
               Tan, Naiqiang and Huang, Jiaxing and Tao, Dacheng},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2025},
  url       = {https://arxiv.org/abs/2501.18100}
}"""
    provenance: ClassVar[str] = "exact"
    stage: ClassVar[str] = "fine-tuning"
    finishes: ClassVar[bool] = True
    strength: ClassVar[str | None] = "rho"
    off: ClassVar[dict[str, Any] | None] = {"rho": 0.0}
    roles: ClassVar[dict[str, str]] = {"harmful_dataset": "defender_harmful"}
    differences: ClassVar[dict[str, str]] = {"lr 0": "the last perturbation is added to the weights at the end"}

    harmful_dataset: Rows
    rho: float = 1.0
    lam: float = 0.001
    learned: bool = True
    _harmful: SideData | None = field(init=False, repr=False, compare=False, default=None)
    _eps: list[Tensor | None] = field(init=False, repr=False, compare=False, default_factory=list)

    def __post_init__(self) -> None:
        require_number(self, "rho", 0)
        require_number(self, "lam", 0)
        if not isinstance(self.learned, bool):
            raise InputError(f"Panacea: learned must be true or false, not {self.learned!r}.")

    @classmethod
    def example(cls) -> Panacea:
        return cls(harmful_dataset=rows_of("defender_harmful"), rho=0.4, lam=0.5)

    def cost(self) -> Cost:
        return Cost(passes=3, copies=1, passing_copies=2, saved=1) if self._learns else Cost()

    def adaptive(self) -> list[Attack]:
        """Its perturbation answers small updates, and is of one length over all that is trained: a first step beyond
        them, an adapter of more tensors, which it is spread over, or more steps."""
        return [Scheduled(leap=10.0), Scheduled(adapter=dict(ELSEWHERE)), Scheduled(length=3.0)]

    def controls(self) -> dict[str, Method]:
        return {"random-perturbation": replace(self, learned=False)}

    def data_roles(self) -> dict[str, str]:
        return dict(self.roles) if self.learned else {}

    @property
    def _learns(self) -> bool:
        return self.rho > 0 and self.learned

    def check(self, t: DefenseMixin) -> None:
        super().check(t)
        small = sorted({str(p.dtype) for p in t.params if p.dtype in (torch.bfloat16, torch.float16)})
        if small:
            raise UnsupportedSetup(
                f"Panacea: trainable weights are stored in {', '.join(small)}: most of a perturbation of length "
                f"{self.rho:g} would be lost in rounding.",
                "load the model in float32 (bf16=True still computes in bfloat16), or train a LoRA adapter, which "
                "PEFT keeps in float32 over a bfloat16 model.",
            )
        if self.rho > 0 and t.args.load_best_model_at_end:
            raise UnsupportedSetup(
                "Panacea: load_best_model_at_end takes weights of another step than the last, which the perturbation "
                "was not learnt for.",
                "set load_best_model_at_end=False.",
            )
        if self.learned:
            require_rows(self, "harmful_dataset")
            t.side_data(self.harmful_dataset, "harmful_dataset")
        elif t.sharded_by_plugin or any(sharded(p) for p in t.params):
            raise UnsupportedSetup(
                "Panacea: the control's random perturbation is not tested on sharded weights.",
                "use plain data parallelism.",
            )

    def on_train_begin(self, t: DefenseMixin) -> None:
        self._eps = []
        if self._learns:
            self._harmful = t.side_data(self.harmful_dataset, "harmful_dataset")

    def on_step_begin(self, t: DefenseMixin) -> None:
        if not self._learns:
            return
        assert self._harmful is not None
        params, device = t.params, t.args.device
        window = self._harmful.take(t.state.global_step, t.current_gradient_accumulation_steps)
        with fork_rng(device):  # both harmful passes, and the user's pass, draw the same dropout masks
            loss, gradient = t.gradient(window)
        norm = global_norm(gradient).item()
        if norm == 0:
            self._eps = []
            return
        if not norm < float("inf"):
            if t.accelerator.scaler is not None:
                t.seed(gradient)  # the scaler finds it, skips the step and lowers its scale
                return
            raise MithridateError(
                f"Panacea: the gradient of the harmful loss is not finite at step {t.state.global_step + 1}. "
                "Lower learning_rate, and check the harmful rows."
            )
        self._eps = [None if g is None else g * (self.rho / norm) for g in gradient]
        with perturbed(params, self._eps, 1.0), fork_rng(device):
            raised_loss, raised = t.gradient(window)
        # of the whole step: each process has the loss of its own rows
        whole = bool(t.accelerator.reduce(raised_loss.detach().clone(), "mean") <= CEILING)
        with torch.no_grad():
            for g, r in zip(gradient, raised, strict=True):
                if g is not None:
                    (g if r is None or not whole else g.sub_(r)).mul_(self.lam)
        t.seed(gradient, copy=False)
        t.record("panacea/harmful_loss", loss)
        t.record("panacea/harmful_loss_gain", raised_loss - loss)
        t.record("panacea/raised", float(whole))

    @torch.no_grad()
    def on_train_end(self, t: DefenseMixin) -> None:
        if self.rho > 0 and not self.learned:
            generator = t.rng("panacea")
            draws = [torch.randn(p.shape, generator=generator).to(p.device, p.dtype) for p in t.params]
            self._eps = [d * (self.rho / global_norm(draws)) for d in draws]
        if self._eps:  # else there is nothing to add
            pairs = [(p, e) for p, e in zip(t.params, self._eps, strict=True) if e is not None]
            torch._foreach_add_(local([p for p, _ in pairs]), local([e for _, e in pairs]))
        self._harmful, self._eps = None, []

    def state_dict(self, t: DefenseMixin) -> dict[str, Tensor]:
        return {n: e for n, e in zip(t.param_names, self._eps, strict=False) if e is not None}

    def load_state_dict(self, t: DefenseMixin, state: dict[str, Tensor]) -> None:
        pairs = zip(t.param_names, t.params, strict=True)
        self._eps = [state[n].to(p.device) if n in state else None for n, p in pairs] if state else []
