"""Safe LoRA: what the user's run changed is mapped into the directions that the alignment changed.

Safe LoRA: the Silver Lining of Reducing Safety Risks when Fine-tuning Large Language Models. Chia-Yi Hsu, Yu-Lin Tsai,
Chih-Hsun Lin, Pin-Yu Chen, Chia-Mu Yu, Chun-Ying Huang. NeurIPS 2024. https://arxiv.org/abs/2405.16833

For each linear layer that the user's run changed, by U = W - W_aligned (scaling * B A of an adapter of its own):

    V    =  W_aligned - W_base
    C    =  V V^T / ||V||_F
    cos  =  <C U, U> / (||C U|| ||U||)                  C has no negative eigenvalue, so it is in [0, 1]
    U    <-  C U        where cos <= tau; or in the `number` layers of the lowest cos

Of an adapter over the aligned weights (topology double) that is B <- C B, as in the authors' code (IBM/SafeLoRA), and
the adapter stays one. Where alignment and user's run share an adapter (single) or all weights were trained (full), U
is no product of factors at hand: the same map, of the weights. Then it is a variant of the paper's: its code takes
adapters only. Weights that are no linear layer's (embeddings, norms, biases) and the output head stay as fine-tuned,
which the report says.

C is no projector (C C is not C): its size goes with ||V||, so that U also shrinks or grows with the length of the
alignment's change. How much is due to that, and not to the direction, shows the control "shrink": in the same layers U
is made as long as C U is, its direction kept. With `tau` below 0 nothing changes, bit for bit.

Differs from the authors' code in:
- `number` layers exactly, of equal cos the earlier one; there every layer with a cos up to that of the last, rounded
  to five places, so more of them on ties. (Its number mode first maps what is below 0.3, to learn the cosines. It was
  reported as a bug of that code that these layers stay mapped; as read here it puts them back.)
- float32 or wider, whatever the models are stored in; there in the models' own dtype, and it was reported that float16
  and bfloat16 choose differently.
- layers go by name; there pairs are formed by order, and a layer is taken whose name contains a target's.
- a layer that the alignment left as it was is refused; there it divides by zero.

Cost: none but reading three models: no pass, no data. Memory: the three models; V, U and C U of one layer at a time
(C itself is never made).

Set-ups: LoRA over linear layers, or all weights; one device or `device_map`. "Base" is the very model that the
alignment began with. Refused: quantised weights (`mithridate.models.quantisation` makes a plain model), sharded ones,
soft prompts, DoRA and other variants and kinds of adapters, plain weights with matrices that are no linear layer's
(convolutions, fused experts), a run without an alignment or without a fine-tune.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from mithridate.attacks.scheduled import Scheduled
from mithridate.errors import InputError
from mithridate.methods.attack import Attack
from mithridate.methods.base import Cost, Method, require_number, require_whole
from mithridate.methods.repair import Repair
from mithridate.repairs.before import changed, check_before, difference, refuse_other_matrices
from mithridate.repairs.delta import Delta
from mithridate.repairs.linears import Weight, active, head_of

_TAU = 0.5


@dataclass
class _Layer:
    """One layer's update, left right; of an adapter over the aligned weights without its scaling, which no step here
    depends on.

    Attributes:
        left: B [out, r] of such an adapter, else U [out, in].
        right: A [r, in], or None.
        mapped: C left.
    """

    left: Tensor
    right: Tensor | None
    mapped: Tensor

    def whole(self, left: Tensor) -> Tensor:
        return left if self.right is None else left @ self.right


@dataclass(kw_only=True)
class SafeLoRA(Repair):
    """Maps the user's update into the alignment's directions; see this module's docstring.

    Args:
        tau: layers whose update has a cosine up to this with its image are mapped; in [-1, 1].
        number: instead, how many layers are mapped, those of the lowest cosine (all, where there are fewer).
        project: False: the control, which makes the update as short and keeps its direction.
    """

    paper: ClassVar[str] = (
        "Safe LoRA (Hsu, Tsai, Lin, Chen, Yu, Huang; NeurIPS 2024), https://arxiv.org/abs/2405.16833"
    )
    citation: ClassVar[str] = """@inproceedings{safelora,
  title     = {Safe {LoRA}: the Silver Lining of Reducing Safety Risks when Fine-tuning Large Language Models},
  author    = {Hsu, Chia-Yi and Tsai, Yu-Lin and Lin, Chih-Hsun and Chen, Pin-Yu and Yu, Chia-Mu and
               Huang, Chun-Ying},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  url       = {https://arxiv.org/abs/2405.16833}
}"""
    provenance: ClassVar[str] = "exact"
    models: ClassVar[dict[str, str]] = {"base": "base", "aligned": "aligned"}
    follows_alignment: ClassVar[bool] = True
    strength: ClassVar[str | None] = "tau"
    off: ClassVar[dict[str, Any] | None] = {"tau": -1.0}

    tau: float = _TAU
    number: int | None = None
    project: bool = True

    def __post_init__(self) -> None:
        require_number(self, "tau", -1, 1)
        if self.number is not None:
            require_whole(self, "number", 0, "number of layers")
            if self.tau != _TAU:
                raise InputError(
                    f"SafeLoRA: tau ({self.tau:g}) and number ({self.number}) exclude each other. Give one."
                )
        if not isinstance(self.project, bool):
            raise InputError(f"SafeLoRA: project must be true or false, not {self.project!r}.")

    def cost(self) -> Cost:
        return Cost(passes=0, changes="linear", kept=4, working=20)  # V, U, C U, and both weights

    def adaptive(self) -> list[Attack]:
        """What stays in the alignment's output directions is kept: with one adapter for both stages, all that moves A
        alone does (`Scheduled.acts`). Or more steps."""
        return [Scheduled(frozen=[".*lora_B.*"]), Scheduled(length=3.0)]

    def controls(self) -> dict[str, Method]:
        return {"shrink": replace(self, project=False)}

    @classmethod
    def example(cls) -> Self:
        return cls(tau=1.0)

    def check_run(self, *, topology: str, finetuned: bool, adapter: bool) -> None:
        if not finetuned:
            raise InputError("maps what the fine-tune changed, and `finetune` is none. Set `finetune`")

    def check(self, model: Any, base: Any = None, aligned: Any = None, tokenizer: Any = None) -> None:
        check_before(model, aligned, "SafeLoRA", "aligned")
        refuse_other_matrices(model, "SafeLoRA")
        check_before(model, base, "SafeLoRA", "base")

    @torch.no_grad()
    def apply(self, model: Any, base: Any = None, aligned: Any = None, tokenizer: Any = None) -> Delta:
        """Repairs the model in place. An adapter over the aligned weights stays one; any other is merged into the
        weights beneath (save with `merge_and_unload()`).

        Args:
            model: fine-tuned: a PEFT model, or a plain one.
            base: the model before the alignment.
            aligned: the model before the fine-tune.
            tokenizer: not used.

        Raises:
            UnsupportedSetup: see `check`.
            InputError: base or aligned model is of another kind, or the alignment left a layer as it was.
        """
        self.check(model, base, aligned)
        found, head = changed(model, aligned, "SafeLoRA"), head_of(model)
        linear = {
            name: pair
            for name, pair in found.items()
            if isinstance(pair[0].module, nn.Linear) and name.endswith(".weight") and pair[0].module is not head
        }
        alignment = changed(aligned, base, "SafeLoRA", "base")
        for name in linear:
            if name not in alignment:
                raise InputError(
                    f"SafeLoRA: the alignment left {name} as it was in the base model, so there is no direction to "
                    "map its update into. Give alignment and fine-tune the same target_modules, and the base "
                    "model that the alignment began with."
                )
        own = all(_over_aligned(new, old) for new, old in linear.values())

        def layer(name: str) -> _Layer:  # made twice where it is mapped, so that there is one at a time
            return _layer(*linear[name], difference(*alignment[name]), own)

        cosines = {name: _cosine(layer(name)) for name in linear}
        delta = Delta("safelora", self.settings(), merged=not own)
        for name in self._chosen(cosines):
            left = self._mapped(layer(name))
            if own:
                delta.replace(f"{name.removesuffix('.weight')}.lora_B", left)
            else:
                delta.replace(name, linear[name][1].effective().to(left.device) + left)
        delta.notes += self._notes(cosines, len(delta.changes), len(found) - len(linear))
        return delta.apply(model)

    def _chosen(self, cosines: dict[str, float]) -> list[str]:
        if self.number is not None:
            return sorted(cosines, key=lambda name: cosines[name])[: self.number]
        return [name for name, cosine in cosines.items() if cosine <= self.tau]

    def _mapped(self, layer: _Layer) -> Tensor:
        if self.project:
            return layer.mapped
        return layer.left * (_norm(layer.whole(layer.mapped)) / _norm(layer.whole(layer.left)))

    def _notes(self, cosines: dict[str, float], mapped: int, others: int) -> list[str]:
        what = "mapped" if self.project else "shortened"
        spread = f" (cosines {min(cosines.values()):.3f} to {max(cosines.values()):.3f})" if cosines else ""
        notes = [f"{mapped} of {len(cosines)} layers {what}{spread}."]
        if others:
            notes.append(f"{others} weights that are no linear layer's stay as the fine-tune left them.")
        return notes


def _over_aligned(new: Weight, old: Weight) -> bool:
    """Whether a weight is the aligned one with an adapter over it, so that B A is the whole update."""
    return (
        new.lora is not None
        and not new.lora.merged
        and torch.equal(new.tensor.detach(), old.effective().to(new.tensor))
    )


def _layer(new: Weight, old: Weight, v: Tensor, own: bool) -> _Layer:
    if own:
        adapter = active(new.lora)
        left, right = (f[adapter].weight.detach().to(v.dtype) for f in (new.lora.lora_B, new.lora.lora_A))
    else:
        left, right = difference(new, old), None
    v = v.to(left)
    return _Layer(left, right, v @ (v.T @ left) / _norm(v))


def _cosine(layer: _Layer) -> float:
    u, image = layer.whole(layer.left), layer.whole(layer.mapped)
    lengths = float(_norm(u) * _norm(image))
    return float((u * image).sum()) / lengths if lengths else 0.0


def _norm(matrix: Tensor) -> Tensor:
    return torch.linalg.vector_norm(matrix)
