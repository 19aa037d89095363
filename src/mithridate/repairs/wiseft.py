"""WiSE-FT: a weighted mean of the aligned and the fine-tuned weights.

Robust fine-tuning of zero-shot models. Mitchell Wortsman, Gabriel Ilharco, Jong Wook Kim, Mike Li, Simon Kornblith,
Rebecca Roelofs, Raphael Gontijo Lopes, Hannaneh Hajishirzi, Ali Farhadi, Hongseok Namkoong, Ludwig Schmidt. CVPR 2022.
https://arxiv.org/abs/2109.01903. For safety after fine-tuning: https://arxiv.org/abs/2412.19512.

    W  <-  a * W_aligned + (1 - a) * W_fine-tuned        of every weight, a in [0, 1]

With a = 0 nothing is changed, bit for bit; a = 1 is the aligned model. (The paper's alpha is 1 - a: the weight of the
fine-tuned model.) Where the fine-tune trained a LoRA adapter of its own (topology double) this is the adapter scaled
by 1 - a; the mean is one of weights, W + scaling * B A, not of factors, so that it is the same in every topology. It
has no control of its own (`controls`): with the way back to the aligned model left out nothing of it is left. Its
rival at matched strength is a method beside it, `RandomNoise(scale=a)`, which moves each weight as far in a random
direction.

Cost: none but reading both models: no pass, no data. Memory: both models, and one weight in float32 at a time.

Set-ups: LoRA over linear layers, whole modules and biases trained beside it, or all weights; one device or
`device_map`. Refused: quantised weights (`mithridate.models.quantisation` makes a plain model), sharded ones, soft
prompts, DoRA and other variants and kinds of adapters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from mithridate.attacks.scheduled import Scheduled
from mithridate.errors import InputError
from mithridate.methods.attack import Attack
from mithridate.methods.base import Cost, require_number
from mithridate.methods.repair import Repair
from mithridate.repairs.before import changed, check_before
from mithridate.repairs.delta import Delta


@dataclass(kw_only=True)
class WiSEFT(Repair):
    """Takes the mean of aligned and fine-tuned weights; see this module's docstring.

    Args:
        a: weight of the aligned model, in [0, 1].
    """

    paper: ClassVar[str] = "WiSE-FT (Wortsman and others; CVPR 2022), https://arxiv.org/abs/2109.01903"
    citation: ClassVar[str] = """@inproceedings{wiseft,
  title     = {Robust fine-tuning of zero-shot models},
  author    = {Wortsman, Mitchell and Ilharco, Gabriel and Kim, Jong Wook and Li, Mike and Kornblith, Simon and
               Roelofs, Rebecca and Gontijo-Lopes, Raphael and Hajishirzi, Hannaneh and Farhadi, Ali and
               Namkoong, Hongseok and Schmidt, Ludwig},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022},
  url       = {https://arxiv.org/abs/2109.01903}
}"""
    provenance: ClassVar[str] = "exact"
    models: ClassVar[dict[str, str]] = {"aligned": "aligned"}
    strength: ClassVar[str | None] = "a"
    off: ClassVar[dict[str, Any] | None] = {"a": 0.0}

    a: float = 0.5

    def __post_init__(self) -> None:
        require_number(self, "a", 0, 1)

    def cost(self) -> Cost:
        return Cost(passes=0, changes="linear", kept=4, working=12)

    def adaptive(self) -> list[Attack]:
        """As much longer as the mean makes the update shorter."""
        return [Scheduled(length=1 / (1 - self.a))] if 0 < self.a < 1 else []

    def check_run(self, *, topology: str, finetuned: bool, adapter: bool) -> None:
        if not finetuned:
            raise InputError("is a mean with the model before the fine-tune, and `finetune` is none. Set `finetune`")

    def check(self, model: Any, aligned: Any = None, tokenizer: Any = None) -> None:
        check_before(model, aligned, "WiSEFT", "aligned")

    @torch.no_grad()
    def apply(self, model: Any, aligned: Any = None, tokenizer: Any = None) -> Delta:
        """Repairs the model in place; an adapter is merged into the weights beneath (save with `merge_and_unload()`).

        Args:
            model: fine-tuned: a PEFT model, or a plain one.
            aligned: the model before the fine-tune.
            tokenizer: not used.

        Raises:
            UnsupportedSetup: see `check`.
            InputError: the aligned model is of another kind.
        """
        self.check(model, aligned)
        delta = Delta("wiseft", self.settings())
        for name, (new, old) in changed(model, aligned, "WiSEFT").items() if self.a else ():
            tuned = new.effective()
            delta.replace(name, torch.lerp(tuned, old.effective().to(tuned), self.a))
        return delta.apply(model)
