"""RandomNoise: noise in what the fine-tune changed, as large as a share of that change. Knows nothing of safety.

    W  <-  W + scale * ||W - W_aligned||_F * Z / ||Z||_F        Z: standard normal, of W's shape, for each weight

It moves every weight that the fine-tune changed by the same distance as `WiSEFT(a=scale)` does, in a random direction
instead of the one back to the aligned model: what a repair that edits weights gains over this one at the same strength
is due to where it moves them. Noise breaks a model in general, and a broken model is not harmful: read coherence and
accuracy beside the harmful score. With `scale` 0 nothing changes, bit for bit.

No paper. Z is drawn from (seed, the weight's name), on the CPU in float64, so it is the same on every machine.

Cost: none but reading both models: no pass, no data. Memory: both models, and one weight in float64 at a time.

Set-ups: those of `WiSEFT`, which are refused alike.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mithridate.attacks.scheduled import Scheduled
from mithridate.errors import InputError
from mithridate.methods.attack import Attack
from mithridate.methods.base import Cost, require_number, require_whole
from mithridate.methods.repair import Repair
from mithridate.repairs.before import changed, check_before, difference
from mithridate.repairs.delta import Delta


@dataclass(kw_only=True)
class RandomNoise(Repair):
    """Adds noise of a share of the update's length; see this module's docstring.

    Args:
        scale: length of the noise, as a share of that of the weight's change; at least 0.
        seed: of the noise.
    """

    paper: ClassVar[str] = "baseline without a paper: noise of a share of the update's length"
    provenance: ClassVar[str] = "own"
    models: ClassVar[dict[str, str]] = {"aligned": "aligned"}
    strength: ClassVar[str | None] = "scale"
    off: ClassVar[dict[str, Any] | None] = {"scale": 0.0}

    scale: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        require_number(self, "scale", 0)
        require_whole(self, "seed", 0)

    def cost(self) -> Cost:
        return Cost(passes=0, changes="linear", kept=4, working=24)

    def adaptive(self) -> list[Attack]:
        """The noise is of one size: more steps, so that the update is larger."""
        return [Scheduled(length=3.0)]

    def check_run(self, *, topology: str, finetuned: bool, adapter: bool) -> None:
        if not finetuned:
            raise InputError(
                "is as large as a share of what the fine-tune changed, and `finetune` is none. Set `finetune`"
            )

    def check(self, model: Any, aligned: Any = None, tokenizer: Any = None) -> None:
        check_before(model, aligned, "RandomNoise", "aligned")

    @torch.no_grad()
    def apply(self, model: Any, aligned: Any = None, tokenizer: Any = None) -> Delta:
        """Changes the model in place; an adapter is merged into the weights beneath (save with `merge_and_unload()`).

        Args:
            model: fine-tuned: a PEFT model, or a plain one.
            aligned: the model before the fine-tune.
            tokenizer: not used.

        Raises:
            UnsupportedSetup: see `check`.
            InputError: the aligned model is of another kind.
        """
        self.check(model, aligned)
        delta = Delta("randomnoise", self.settings())
        for name, (new, old) in changed(model, aligned, "RandomNoise").items() if self.scale else ():
            update, tuned = difference(new, old).double(), new.effective()
            noise = self._noise(name, update.shape).to(update)
            away = self.scale * torch.linalg.vector_norm(update) / torch.linalg.vector_norm(noise) * noise
            delta.replace(name, (tuned.double() + away).to(tuned.dtype))
        return delta.apply(model)

    def _noise(self, name: str, shape: torch.Size) -> Tensor:
        seed = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(seed[:7], "big"))
        return torch.randn(shape, generator=generator, dtype=torch.float64)
