"""Vaccine: perturbation-aware alignment.

Vaccine: Perturbation-aware Alignment for Large Language Models against Harmful Fine-tuning Attack.
Tiansheng Huang, Sihao Hu, Ling Liu. NeurIPS 2024. https://arxiv.org/abs/2402.01109

Idea: fine-tuning on harmful data drifts the hidden embeddings of alignment prompts. Align so that the loss stays low
under the worst small drift. With e_l the output of layer l's attention and L the loss of one micro-batch:

    min_w  max_{||(eps_1, ..., eps_L)|| <= rho}  L(w; e_1 + eps_1, ..., e_L + eps_L)

    eps_l = rho * g_l / ||(g_1, ..., g_L)||      with  g_l = dL / de_l    (first-order solution, one norm for all)
    w    <- w - lr * dL(w; e + eps) / dw         with  eps a constant

The norm is taken over all layers, rows and tokens of one micro-batch on one process, as in the official code. So the
shift of a single row shrinks about as 1 / sqrt(rows): the same rho at another per_device_train_batch_size, gradient
accumulation or number of processes is another strength. State the micro-batch size with rho.

The paper's sparse variant: with every = tau, only optimizer steps number 0, tau, 2 tau, ... (counted from the start of
the run, so that a resumed run keeps the rhythm) are perturbed, in all their micro-batches; the others are plain steps.

Differs from the official code in:
- any architecture that declares its attention modules to transformers, instead of a list of classes; one site per
  layer is asserted;
- both passes draw the same dropout masks;
- the first pass computes gradients of activations only, not of weights;
- accumulated gradients are kept (there: erased in each micro-step);
- with activation checkpointing the recomputed layers are shifted too;
- no 1e-7 is added to the norm; where the norm is zero or not finite, that micro-batch runs unperturbed.

Cost: 2 forward and 2 backward passes (the first without weight gradients), and one tensor of the size of each
attention output; with every = tau, 1 + 1 / tau passes on average. Supported: LoRA and full weights, gradient
accumulation (rho per micro-batch), non-reentrant activation checkpointing, bf16 mixed precision (of fp16 the loss
scaling was tested, on CPU), data parallelism, FSDP2, torch.compile (in more graphs: one ends at each site), adapters
over a base in 4 or 8 bit (bitsandbytes).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mithridate.attacks.scheduled import Scheduled
from mithridate.errors import InputError, UnsupportedSetup
from mithridate.methods.attack import Attack
from mithridate.methods.base import Cost, require_number, require_whole
from mithridate.methods.defense import Defense
from mithridate.training.gradients import fork_rng, global_norm
from mithridate.training.setups import checkpointing_kwargs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mithridate.training.activations import ActivationShifts
    from mithridate.training.mixin import DefenseMixin


@dataclass(kw_only=True)
class Vaccine(Defense):
    """Trains under the worst small shift of the attention outputs; see this module's docstring.

    Args:
        rho: joint 2-norm of the shifts of all layers in one micro-batch; 0 is plain training.
        sites: "attention", or PEFT's `target_modules` conventions (names, name endings, a regular expression); exactly
            one module a layer.
        every: perturb every so many optimizer steps; 1 is every step.
    """

    paper: ClassVar[str] = "Vaccine (Huang, Hu, Liu; NeurIPS 2024), https://arxiv.org/abs/2402.01109"
    citation: ClassVar[str] = """@inproceedings{vaccine,
  title     = {Vaccine: Perturbation-aware Alignment for Large Language Models against Harmful Fine-tuning Attack},
  author    = {Huang, Tiansheng and Hu, Sihao and Liu, Ling},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  url       = {https://arxiv.org/abs/2402.01109}
}"""
    provenance: ClassVar[str] = "exact"
    stage: ClassVar[str] = "alignment"
    strength: ClassVar[str | None] = "rho"
    colour: ClassVar[str] = "#009E73"
    off: ClassVar[dict[str, Any] | None] = {"rho": 0.0}
    differences: ClassVar[dict[str, str]] = {
        "accumulation": "rho is the norm in each micro-batch, so smaller ones are shifted further for each row",
        "processes": "rho is the norm in each process's micro-batch",
    }

    rho: float = 2.0
    sites: str | list[str] = "attention"
    every: int = 1
    _sites: ActivationShifts | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        require_number(self, "rho", 0)
        require_whole(self, "every", 1, "number of steps")
        require_sites(self)

    def cost(self) -> Cost:
        acting = 0.0 if self.rho == 0 else 1 / self.every
        return Cost(passes=1 + acting, activations=acting)

    def check(self, t: DefenseMixin) -> None:
        super().check(t)
        refuse_unshiftable(t, self)

    def on_train_begin(self, t: DefenseMixin) -> None:
        self._sites = t.sites(self.sites)

    def training_step(
        self,
        t: DefenseMixin,
        step: Callable[[nn.Module, Any, Any], Tensor],
        model: nn.Module,
        inputs: Any,
        num_items_in_batch: Tensor | int | None,
    ) -> Tensor:
        if self.rho == 0 or t.state.global_step % self.every:
            return step(model, inputs, num_items_in_batch)
        assert self._sites is not None
        with self._sites as sites:
            shift_to_the_worst(t, sites, self.rho, "vaccine", model, inputs, num_items_in_batch)
            return step(model, inputs, num_items_in_batch)

    def adaptive(self) -> list[Attack]:
        """It holds for shifts up to rho: a first step beyond them, or more steps."""
        return [Scheduled(leap=10.0), Scheduled(length=3.0)]

    @classmethod
    def example(cls) -> Vaccine:
        return cls(rho=1.5)

    def on_train_end(self, t: DefenseMixin) -> None:
        self._sites = None


# -- what Vaccine's variants share with it -------------------------------------------------------------------------


def shift_to_the_worst(
    t: DefenseMixin,
    sites: ActivationShifts,
    rho: float,
    name: str,
    model: nn.Module,
    inputs: Any,
    num_items_in_batch: Tensor | int | None,
) -> None:
    """Shifts the outputs of (entered, selected) sites by the worst direction for one micro-batch, of joint 2-norm
    `rho`. The gradient's norm is recorded under the method's name."""
    with fork_rng(t.args.device):  # the second pass draws the same dropout masks
        gradients = sites.gradients(lambda: t.probe(model, inputs, num_items_in_batch))
    norm = global_norm(gradients)
    t.record(f"{name}/gradient_norm", norm / t.loss_scale)
    # chosen on the device: reading the norm here would make a GPU wait in every micro-batch
    usable = (norm > 0) & norm.isfinite()
    shifts = []
    while gradients:  # one after the other: together they are as large as the activations that they shift
        g = gradients.pop(0)
        # at least float32: a GPU may round the factor, which fp16 may not hold, to the gradient's own dtype
        shift = (g.to(torch.promote_types(g.dtype, torch.float32)) * (rho / norm)).to(g.dtype)
        shifts.append(torch.where(usable, shift, 0))
    sites.shift(shifts)


def require_sites(method: Any) -> None:
    """Raises InputError unless the field `sites` names modules as `find_sites` takes them."""
    kind, sites = type(method).__name__, method.sites
    names = [sites] if isinstance(sites, str) else sites
    if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) and n for n in names):
        raise InputError(
            f'{kind}: sites must be "attention", a regular expression, or a list of names, not {sites!r}.'
        )
    if isinstance(sites, str):
        try:
            re.compile(sites)
        except re.error as error:
            raise InputError(f"{kind}: sites={sites!r} is no regular expression: {error}.") from error


def refuse_unshiftable(t: DefenseMixin, method: Any) -> ActivationShifts:
    """The sites of a method whose field `sites` names them.

    Raises:
        UnsupportedSetup: outputs cannot be shifted in this set-up, or the model has no such sites.
    """
    kind = type(method).__name__
    if _reentrant(t):
        raise UnsupportedSetup(
            f"{kind}: re-entrant checkpointing refuses gradients of activations.",
            f"{checkpointing_kwargs(t.args)}={{'use_reentrant': False}}, wherever it is switched on.",
        )
    dropped = getattr(t.model.config.get_text_config(), "layerdrop", 0)
    if dropped:
        raise UnsupportedSetup(
            f"{kind}: layerdrop={dropped:g} leaves out layers at random, whose outputs cannot be shifted then.",
            "load the model with layerdrop=0.0.",
        )
    return t.sites(method.sites)


def _reentrant(t: DefenseMixin) -> bool:
    """Whether checkpointing, by the Trainer's arguments or as it is switched on in the model itself, is re-entrant."""
    if t.args.gradient_checkpointing:  # the Trainer switches it on anew
        return bool((t.args.gradient_checkpointing_kwargs or {}).get("use_reentrant"))
    used = [m for m in t.model.modules() if getattr(m, "gradient_checkpointing", False)]
    functions = [getattr(m, "_gradient_checkpointing_func", None) for m in used]
    return any(getattr(function, "keywords", {}).get("use_reentrant") for function in functions)
