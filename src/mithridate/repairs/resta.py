"""RESTA: the way from the model's unaligned twin back to the aligned model is added to the fine-tuned weights.

Language Models are Homer Simpson! Safety Re-Alignment of Fine-tuned Language Models through Task Arithmetic. Rishabh
Bhardwaj, Do Duc Anh, Soujanya Poria. ACL 2024. https://arxiv.org/abs/2402.11746

    v  =  W_aligned - W_unaligned            unaligned: the aligned model, fine-tuned by the defender on harmful rows
    W  <-  W + alpha * v                                                                        of every weight

With DARE (drop and rescale, https://arxiv.org/abs/2311.03099) at the rate p = `dare`, in one of two places:

    DARE(x)  =  m * x / (1 - p)              m: one draw an entry, 0 with probability p, else 1
    W  <-  W_aligned + DARE(W - W_aligned) + alpha * v                           placement "update"
    W  <-  W + alpha * DARE(v)                                                   placement "vector"

Without DARE the rule is the paper's. By two summaries of it DARE acts on "delta parameters", its word for what a
fine-tune changed: that is "update". Not verified, as neither its text nor its code could be read: p, and alpha, which
has no default therefore (others' runs of it, in xinykou/safety_realignment, have 0.2 and 0.3). A port, SafeTune's,
takes the vector, and the base model for the unaligned one, which is another vector: the whole of the alignment.

Differs from the published files, as far as they are known: DARE acts on weights (under LoRA on scaling * B A, not on
the factors, whose drops would multiply); draws come from (seed, the weight's name), on the CPU, so they are the same
on every machine, and those of one weight do not depend on the others. With `alpha` 0 and no DARE nothing changes, bit
for bit; DARE alone changes the model.

The control "random-direction" adds, in place of v, noise as long as v in each weight.

Cost: one fine-tune on harmful rows, once (a stage of its own in a run, made anew for each aligned model); the repair
itself takes no pass and no data. Memory: three models, and one weight in float64 at a time.

Set-ups: LoRA over linear layers, whole modules and biases trained beside it, or all weights; one device or
`device_map`. Refused: quantised weights (`mithridate.models.quantisation` makes a plain model), sharded ones, soft
prompts, DoRA (the adapter) and other variants and kinds of adapters; an unaligned model that is the aligned one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor

from mithridate.attacks.scheduled import Scheduled
from mithridate.errors import InputError, nearest
from mithridate.methods.attack import Attack
from mithridate.methods.base import Cost, Method, require_number, require_whole
from mithridate.methods.repair import Repair
from mithridate.repairs.before import changed, check_before, difference
from mithridate.repairs.delta import Delta
from mithridate.repairs.linears import weights

Placement = Literal["update", "vector"]
Direction = Literal["safety", "random"]


@dataclass(kw_only=True)
class RESTA(Repair):
    """Adds alpha times the safety vector; see this module's docstring.

    Args:
        alpha: how much of the vector; at least 0.
        dare: share of the entries that DARE drops, in [0, 1); None: without DARE.
        placement: what DARE acts on: the user's "update", or the safety "vector".
        direction: "safety", or "random", the control.
        seed: of the draws.
    """

    paper: ClassVar[str] = "RESTA (Bhardwaj, Do, Poria; ACL 2024), https://arxiv.org/abs/2402.11746"
    citation: ClassVar[str] = """@inproceedings{resta,
  title     = {Language Models are {Homer Simpson}! Safety Re-Alignment of Fine-tuned Language Models through Task
               Arithmetic},
  author    = {Bhardwaj, Rishabh and Do, Duc Anh and Poria, Soujanya},
  booktitle = {Annual Meeting of the Association for Computational Linguistics},
  year      = {2024},
  url       = {https://arxiv.org/abs/2402.11746}
}"""
    provenance: ClassVar[str] = "exact"
    models: ClassVar[dict[str, str]] = {"aligned": "aligned", "unaligned": "unaligned"}
    strength: ClassVar[str | None] = "alpha"
    off: ClassVar[dict[str, Any] | None] = {"alpha": 0.0, "dare": None}

    alpha: float
    dare: float | None = None
    placement: Placement = "update"
    direction: Direction = "safety"
    seed: int = 0

    def __post_init__(self) -> None:
        require_number(self, "alpha", 0)
        if self.dare is not None:
            require_number(self, "dare", 0, 1)
            if self.dare == 1:
                raise InputError("RESTA: dare must be below 1: what is left is divided by 1 - dare.")
        for name, choices in (("placement", get_args(Placement)), ("direction", get_args(Direction))):
            if (value := getattr(self, name)) not in choices:
                hint = nearest(value, choices, listed=False) or "."
                raise InputError(f"RESTA: {name} must be one of {', '.join(choices)}, not {value!r}{hint}")
        require_whole(self, "seed", 0)

    def cost(self) -> Cost:
        return Cost(passes=0, changes="linear", kept=4, working=40)  # W, v and draws in float64

    def adaptive(self) -> list[Attack]:
        """As much longer as the added way back is."""
        return [Scheduled(length=1 + self.alpha)] if self.alpha > 0 else []

    def controls(self) -> dict[str, Method]:
        return {"random-direction": replace(self, direction="random")}

    @classmethod
    def example(cls) -> Self:
        return cls(alpha=0.5, dare=0.5)

    def check_run(self, *, topology: str, finetuned: bool, adapter: bool) -> None:
        if not finetuned:
            raise InputError("repairs what the fine-tune changed, and `finetune` is none. Set `finetune`")

    def check(self, model: Any, aligned: Any = None, unaligned: Any = None, tokenizer: Any = None) -> None:
        check_before(model, aligned, "RESTA", "aligned")
        check_before(model, unaligned, "RESTA", "unaligned")

    @torch.no_grad()
    def apply(self, model: Any, aligned: Any = None, unaligned: Any = None, tokenizer: Any = None) -> Delta:
        """Repairs the model in place; an adapter is merged into the weights beneath (save with `merge_and_unload()`).

        Args:
            model: fine-tuned: a PEFT model, or a plain one.
            aligned: the model before the fine-tune.
            unaligned: the aligned model after a fine-tune on the defender's harmful rows.
            tokenizer: not used.

        Raises:
            UnsupportedSetup: see `check`.
            InputError: a model is of another kind, or the aligned and the unaligned one are the same.
        """
        self.check(model, aligned, unaligned)
        updates = changed(model, aligned, "RESTA")
        if not changed(aligned, unaligned, "RESTA", "unaligned"):
            raise InputError(
                "RESTA: the unaligned model's weights equal the aligned model's, so there is no safety vector. Pass "
                "the aligned model after a fine-tune on harmful rows."
            )
        delta = Delta("resta", self.settings())
        dropped = updates if self.dare and self.placement == "update" else {}
        # by name: what is tied in these may be two weights in the model, of which one is a copy trained by itself
        start, bad, seen = weights(aligned), weights(unaligned), set()
        for name, new in weights(model).items():
            if id(new.tensor) in seen:
                continue
            seen.add(id(new.tensor))
            v = difference(start[name], bad[name]).double()
            pulled = self.alpha > 0 and bool(v.any())
            tuned = new.effective()
            value = tuned.double()
            if name in dropped:
                update = difference(*updates[name]).double()
                value = value - update + self._dropped(f"update {name}", update)
            if pulled:
                value = value + self.alpha * self._vector(name, v).to(value)
            if name in dropped or pulled:
                delta.replace(name, value.to(tuned.dtype))
        return delta.apply(model)

    def _vector(self, name: str, v: Tensor) -> Tensor:
        if self.direction == "random":
            noise = torch.randn(v.shape, generator=self._draws(f"noise {name}"), dtype=torch.float64).to(v)
            v = noise * (torch.linalg.vector_norm(v) / torch.linalg.vector_norm(noise))
        return self._dropped(f"vector {name}", v) if self.dare and self.placement == "vector" else v

    def _dropped(self, name: str, x: Tensor) -> Tensor:
        assert self.dare is not None
        kept = torch.rand(x.shape, generator=self._draws(name), dtype=torch.float64) >= self.dare
        return x * kept.to(x.device) / (1 - self.dare)

    def _draws(self, name: str) -> torch.Generator:
        seed = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(seed[:7], "big"))
