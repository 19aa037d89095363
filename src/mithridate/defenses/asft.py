"""AsFT: the user's run is held to the directions that the alignment changed.

AsFT: Anchoring Safety During LLM Fine-Tuning Within Narrow Safety Basin. Shuo Yang, Qihui Zhang, Yuyang Liu, Yue
Huang, Xiaojun Jia, Kun-Peng Ning, Jia-Yu Yao, Jigang Wang, Hailiang Dai, Yibing Song, Li Yuan. AAAI 2026.
https://arxiv.org/abs/2506.08473

    min_w  h(w) + lam * sum over layers of || (I - C) U ||_F^2
    V = W_start - W_base        C = V V^T / ||V||_F        U = B A - B0 A0        (of all weights: U = W - W_start)

h is the user's loss, W_start a layer's weight before the first step, with what an adapter adds to it, W_base that
before the alignment, B0 and A0 the adapter's factors at the start. With a fresh adapter (topology double) B0 is 0 and
U is B A, as published.

Which it is, of paper and code: the rule is that of the authors' code (PKU-YuanGroup/AsFT), lam = 1 the value of both,
and it is *not* the paper's (its text was read: equations 2 to 4). There C is a true projector, V (V^T V)^-1 V^T. With
V a layer's matrix, as in the code, V^T V has no inverse where there are more inputs than outputs, or V is of low rank;
and where V is square and of full rank that C is the identity, and the term is zero whatever the update. The code's C
is what Safe LoRA puts in its place; the paper does not mention it. As in the code, LoRA's scaling alpha / r is left
out of U: the same lam at another scaling is another strength.

C is no projector (C C is not C): where the alignment changed little, ||V||_F and with it C are small, I - C is nearly
I, and the term is little else than weight decay of B A. How much of the effect is that shows the control
"weight-decay", with I for I - C at the same lam, for which no base model is needed. Logged are asft/outside (the term
without lam) and asft/update (the control's): where the two are alike, so are the methods.

Differs from the authors' code in:
- there the term is added to each micro-batch's loss after that was divided by their number, so that k of them count it
  k times (its scripts use 1); here its gradient is added once per optimizer step, in closed form, before clipping;
- there C and adapter are paired by their order, and every parameter counts whose name contains a target's (a bias
  ends it with an error); here by the layer's name;
- there a layer that the alignment left as it was gives 0 / 0, and the loss is NaN from then on; here it is refused;
- there d x d matrices C and I - C are made, and copied to the GPU in each step; here V is held, and multiplied with
  the factors;
- an adapter that the alignment trained (single) is held to where it was; and it works with all weights, of the linear
  layers without the output head. The first is a variant; all weights are in the paper, though not in the code. Weights
  that are trained beside (whole modules, norms, embeddings) are free.

A weight without a gradient in a step is not stepped.

Cost: a forward and backward pass, and products of V with the factors (of all weights: with matrices of its own size,
about as dear as a pass over d tokens of a layer of width d). Memory: a copy of the trained weights, and V, in float32,
of the size of the layers under the adapter. Supported: LoRA over linear layers and
full weights, gradient accumulation (exact), activation checkpointing, mixed precision, data parallelism,
torch.compile. Refused: sharded weights, a quantised base, DoRA and other variants and kinds of adapters, a run without
the base model, or without an alignment.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from mithridate.attacks.scheduled import Scheduled
from mithridate.errors import InputError, UnsupportedSetup
from mithridate.methods.attack import Attack
from mithridate.methods.base import Cost, Method, require_number
from mithridate.methods.defense import Defense
from mithridate.training.quantised import quantiser

if TYPE_CHECKING:
    from mithridate.training.mixin import DefenseMixin


@dataclass
class _Layer:
    """A layer whose update is left right, and what it is held to.

    Attributes:
        name: of its weight in the plain model.
        left: B [out, r]; without an adapter W [out, in].
        right: A [r, in], or None.
        direction: V [out, in], float32 or wider; None: the control.
        start: left and right at the start.
    """

    name: str
    left: nn.Parameter
    right: nn.Parameter | None
    direction: Tensor | None
    start: tuple[Tensor, Tensor | None]

    def outside(self, matrix: Tensor) -> Tensor:
        """(I - C) (I - C) matrix, C being symmetric."""
        if (v := self.direction) is None:
            return matrix
        for _ in range(2):
            matrix = matrix - v @ (v.T @ matrix) / torch.linalg.vector_norm(v)
        return matrix


@dataclass(kw_only=True)
class AsFT(Defense):
    """Adds lam * sum || (I - C) U ||^2 to the loss; see this module's docstring.

    Args:
        lam: strength; 0 is plain training.
        project: False: the control, weight decay of the update, which needs no base model.
    """

    paper: ClassVar[str] = "AsFT (Yang and others; AAAI 2026), https://arxiv.org/abs/2506.08473"
    citation: ClassVar[str] = """@inproceedings{asft,
  title     = {{AsFT}: Anchoring Safety During {LLM} Fine-Tuning Within Narrow Safety Basin},
  author    = {Yang, Shuo and Zhang, Qihui and Liu, Yuyang and Huang, Yue and Jia, Xiaojun and Ning, Kun-Peng and
               Yao, Jia-Yu and Wang, Jigang and Dai, Hailiang and Song, Yibing and Yuan, Li},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  volume    = {40},
  number    = {40},
  pages     = {34322--34330},
  year      = {2026},
  url       = {https://arxiv.org/abs/2506.08473}
}"""
    provenance: ClassVar[str] = "port of PKU-YuanGroup/AsFT, whose projector is not the paper's"
    stage: ClassVar[str] = "fine-tuning"
    strength: ClassVar[str | None] = "lam"
    models: ClassVar[dict[str, str]] = {"base": "base", "start": "start"}
    follows_alignment: ClassVar[bool] = True
    off: ClassVar[dict[str, Any] | None] = {"lam": 0.0}

    lam: float = 1.0
    project: bool = True
    _layers: list[_Layer] = field(init=False, repr=False, compare=False, default_factory=list)

    def __post_init__(self) -> None:
        require_number(self, "lam", 0)
        if not isinstance(self.project, bool):
            raise InputError(f"AsFT: project must be true or false, not {self.project!r}.")

    @classmethod
    def example(cls) -> AsFT:
        return cls(lam=0.02)

    def cost(self) -> Cost:
        return Cost(copies=1, matrices=1 if self.lam and self.project else 0)

    def adaptive(self) -> list[Attack]:
        """What stays in the alignment's output directions is free: with one adapter for both stages, all that moves A
        alone does (`Scheduled.acts`). Or more steps."""
        return [Scheduled(frozen=[".*lora_B.*"]), Scheduled(length=3.0)]

    def controls(self) -> dict[str, Method]:
        return {"weight-decay": replace(self, project=False)}

    def model_inputs(self) -> dict[str, str]:
        used = {"start": self.lam > 0, "base": self.lam > 0 and self.project}
        return {name: kind for name, kind in self.models.items() if used[name]}

    def check(self, t: DefenseMixin) -> None:
        super().check(t)
        if self.lam:
            for _ in self._held(t, t.model.state_dict()):
                pass

    def on_train_begin(self, t: DefenseMixin) -> None:
        self._layers = list(self._held(t, t.weights("start"))) if self.lam else []
        for layer in self._layers:  # not in `check`, which is also asked on random layers
            if layer.direction is not None and not bool(layer.direction.any()):
                raise UnsupportedSetup(
                    f"AsFT: the alignment left {layer.name} as it was in the base model, so there is no direction to "
                    "hold its update to.",
                    "give alignment and fine-tune the same target_modules, and as base the model that the alignment "
                    "began with; or use the control, project=False.",
                )

    @torch.no_grad()
    def on_gradients(self, t: DefenseMixin) -> None:
        outside = update = 0.0
        for layer in self._layers:
            left, right = _update(layer)
            pulled = layer.outside(left)
            if t.logging_now:
                outside, update = outside + _inner(pulled, left, right), update + _inner(left, left, right)
            strength = 2 * self.lam * t.loss_scale
            if right is None:
                _add(layer.left, pulled, strength)
            else:
                assert layer.right is not None
                _add(layer.left, pulled @ (right @ layer.right.detach().to(right.dtype).T), strength)
                _add(layer.right, (layer.left.detach().to(left.dtype).T @ pulled) @ right, strength)
        if self._layers and t.logging_now:
            t.record("asft/outside", outside)
            t.record("asft/update", update)

    def on_train_end(self, t: DefenseMixin) -> None:
        self._layers = []

    def _held(self, t: DefenseMixin, start: Mapping[str, Tensor]) -> Iterator[_Layer]:
        """The layers that are held, one at a time.

        Args:
            start: the tensors that the run began with, by their names in the model at hand.

        Raises:
            UnsupportedSetup: a layer's update, or the alignment's, cannot be had.
        """
        base = t.weights("base") if self.project else {}
        names = {id(p): name for name, p in t.model.named_parameters()}
        for name, weight, left, right, scaling in _places(t.model):
            device, dtype = left.device, torch.promote_types(left.dtype, torch.float32)
            before = [None if p is None else start[names[id(p)]].to(device, dtype) for p in (weight, left, right)]
            begun, left0, right0 = before
            assert begun is not None and left0 is not None
            v = None
            if self.project:
                if name not in base or base[name].shape != begun.shape:
                    raise UnsupportedSetup(
                        f"AsFT: the base model has no {name} of the shape {tuple(begun.shape)}.",
                        "pass the model that the alignment began with as models={'base': ...}: a plain model, or its "
                        "tensors by their names.",
                    )
                if right0 is not None:
                    begun = begun + scaling * (left0 @ right0)
                v = begun - base[name].to(device, dtype)
            # cloned: of a model's own state the tensors change with it
            yield _Layer(name, left, right, v, (left0.clone(), None if right0 is None else right0.clone()))


def _update(layer: _Layer) -> tuple[Tensor, Tensor | None]:
    """Factors [out, 2 r] and [2 r, in] of B A - B0 A0; of all weights W - W_start and None."""
    left0, right0 = layer.start
    left = layer.left.detach().to(left0.dtype)
    if layer.right is None or right0 is None:
        return left - left0, None
    return torch.cat([left, -left0], 1), torch.cat([layer.right.detach().to(right0.dtype), right0])


def _inner(one: Tensor, other: Tensor, right: Tensor | None) -> Tensor:
    """The inner product of (one right) and (other right), without making them."""
    return (one * other).sum() if right is None else (one.T @ other * (right @ right.T)).sum()


def _add(p: nn.Parameter, gradient: Tensor, strength: float) -> None:
    if p.grad is not None:
        p.grad.add_(gradient.to(p.grad.dtype), alpha=strength)


def _places(model: Any) -> Iterator[tuple[str, Any, Any, Any, float]]:
    """Of each linear layer that is trained: its weight's name in the plain model, that weight, what is trained of it
    (see `_Layer`), and the adapter's scaling.

    Raises:
        UnsupportedSetup: there are none, or adapters of another kind.
    """
    from peft.tuners.lora import LoraLayer

    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    if quantiser(plain) is not None:
        raise UnsupportedSetup(
            "AsFT: compares products of adapters with the weights beneath them, and these are quantised.",
            "load the model without quantization_config.",
        )
    adapters, head, found = getattr(model, "peft_config", {}), model.get_output_embeddings(), False
    for name, module in plain.named_modules():
        if isinstance(module, LoraLayer):
            base, active = module.get_base_layer(), [a for a in module.active_adapters if a in module.lora_A]
            odd = len(active) != 1 or active[0] in getattr(module, "lora_variant", {})
            if odd or not isinstance(base, nn.Linear) or not base.weight.is_floating_point():
                raise UnsupportedSetup(
                    f"AsFT: the adapter at {name} is not one of plain LoRA over an nn.Linear with float weights.",
                    "train a LoRA adapter (LoraConfig's defaults) over linear layers.",
                )
            [adapter], found = active, True
            a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
            yield f"{name}.weight", base.weight, b, a, module.scaling[adapter]
        elif not adapters and isinstance(module, nn.Linear) and module is not head and module.weight.requires_grad:
            found = True
            yield f"{name}.weight", module.weight, module.weight, None, 1.0
    if not found:
        raise UnsupportedSetup(
            "AsFT: no linear layer is trained, and none has a LoRA adapter.",
            "train a LoRA adapter over linear layers, or all weights.",
        )
