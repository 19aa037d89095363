"""LoX: what the alignment changed is scaled up before the user's run.

LoX: Low-Rank Extrapolation Robustifies LLM Safety Against Fine-tuning. Gabriel J. Perin, Runjin Chen, Xuxi Chen, Nina
S. T. Hirata, Zhangyang Wang, Junyuan Hong. COLM 2025. https://arxiv.org/abs/2506.15606

    W  <-  W_aligned + coef * (W_aligned - W_base)        of matrices; vectors (norms, biases) stay as they are

The paper extrapolates a part of low rank, in the authors' code (VITA-Group/LoX, read) that of the k largest singular
values of W_aligned - W_base. Its defaults are k = 0, which is the whole, and coef = 1; which ones the paper's tables
have is not in it. After a LoRA alignment the matrix is scaling * B A, of rank r at most, and the whole is taken. Where
the alignment's adapter is at hand, over the base, LoX is B <- (1 + coef) * B: the adapter stays one, which the user's
run may go on training (topology single); where it is merged (double), or all weights were trained (full), the weights
are edited, for which the base is needed. Where all weights were trained, an experiment has them edited in float32
whatever its dtype, for the user's run goes on from them so. It acts before the user's run, as in the paper; applied
after it, it would scale up the user's change too. With `coef` 0 nothing changes, bit for bit.

Cost: none but reading the weights: no pass, no data. Memory: both models, and one weight in float32 at a time.

Set-ups: an adapter of plain LoRA over linear layers of any base, or plain weights; one device or `device_map`.
Refused: whole modules or biases trained beside an adapter; quantised weights without an adapter; sharded ones; soft
prompts, DoRA and other variants and kinds of adapters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from mithridate.attacks.scheduled import Scheduled
from mithridate.errors import InputError, UnsupportedSetup
from mithridate.methods.attack import Attack
from mithridate.methods.base import Cost, require_number
from mithridate.methods.repair import Repair
from mithridate.repairs.before import changed, check_before, difference, refuse_places
from mithridate.repairs.delta import Delta
from mithridate.repairs.linears import adapted, beside_factors, factors, weights


@dataclass(kw_only=True)
class LoX(Repair):
    """Scales the alignment's change up by 1 + coef; see this module's docstring.

    Args:
        coef: how far beyond the aligned model; at least 0.
    """

    paper: ClassVar[str] = "LoX (Perin, Chen, Chen, Hirata, Wang, Hong; COLM 2025), https://arxiv.org/abs/2506.15606"
    citation: ClassVar[str] = """@inproceedings{lox,
  title     = {{LoX}: Low-Rank Extrapolation Robustifies {LLM} Safety Against Fine-tuning},
  author    = {Perin, Gabriel J. and Chen, Runjin and Chen, Xuxi and Hirata, Nina S. T. and Wang, Zhangyang and
               Hong, Junyuan},
  booktitle = {Conference on Language Modeling},
  year      = {2025},
  url       = {https://arxiv.org/abs/2506.15606}
}"""
    provenance: ClassVar[str] = "own"
    stage: ClassVar[str] = "post-alignment"
    models: ClassVar[dict[str, str]] = {"base": "base"}
    strength: ClassVar[str | None] = "coef"
    off: ClassVar[dict[str, Any] | None] = {"coef": 0.0}

    coef: float = 1.0

    def __post_init__(self) -> None:
        require_number(self, "coef", 0)

    def cost(self) -> Cost:
        return Cost(passes=0, changes="linear", kept=4, working=12)

    def adaptive(self) -> list[Attack]:
        """As much longer as the way back has become."""
        return [Scheduled(length=1 + self.coef)]

    def check(self, model: Any, base: Any = None, tokenizer: Any = None) -> None:
        if not _over(model, base):
            check_before(model, base, "LoX", "base")
            return
        refuse_places(model, "LoX")
        factors(model)  # of adapters whose change can be seen in them, or refused
        if base is None:
            raise UnsupportedSetup(
                "LoX: the base model is missing (used where the alignment's adapter is merged, asked for always).",
                "pass base=... to apply().",
            )
        if beside := beside_factors(model):
            raise UnsupportedSetup(
                f"LoX: the alignment trained {len(beside)} weights beside its adapter ({beside[0]}, for one), which "
                "scaling the adapter would leave.",
                "align without modules_to_save and bias, or merge the adapter first (topology: double).",
            )

    @torch.no_grad()
    def apply(self, model: Any, base: Any = None, tokenizer: Any = None) -> Delta:
        """Changes the model in place.

        Args:
            model: aligned: a PEFT model, or a plain one.
            base: the model before alignment.
            tokenizer: not used.

        Raises:
            UnsupportedSetup: see `check`.
            InputError: the base model is of another kind, or the alignment changed nothing.
        """
        self.check(model, base)
        if _over(model, base):
            delta = Delta("lox", self.settings(), merged=False)
            for name, factor in factors(model).items() if self.coef else ():
                if name.endswith(".lora_B"):
                    delta.replace(name, (1 + self.coef) * factor.weight)
            return delta.apply(model)
        delta, found = Delta("lox", self.settings()), changed(model, base, "LoX", "base")
        if not found:
            raise InputError("LoX: the model's weights equal the base model's, so there is no alignment to scale up.")
        for name, (new, old) in found.items() if self.coef else ():
            if new.tensor.dim() > 1:
                delta.replace(name, new.effective() + self.coef * difference(new, old))
        return delta.apply(model)


def _over(model: Any, base: Any) -> bool:
    """Whether a model is the base under an unmerged adapter, so that B A is all that the alignment changed. (PiSSA and
    its kin change the weights beneath too.) Where one of the two is quantised, that is not seen, and taken for so."""
    layers = adapted(model).values()
    if not layers or any(layer.merged for layer in layers):
        return False
    there = {} if base is None else weights(base)
    pairs = [(one.tensor, there[name]) for name, one in weights(model).items() if one.lora and name in there]
    return all(
        torch.equal(tensor.detach(), old.effective().to(tensor))
        for tensor, old in pairs
        if tensor.shape == old.tensor.shape
    )
