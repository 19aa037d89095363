"""EWC: the user's run is held to the start, most where the alignment answers depend on the weights.

Overcoming catastrophic forgetting in neural networks. James Kirkpatrick, Razvan Pascanu, Neil Rabinowitz, Joel Veness,
Guillaume Desjardins, Andrei A. Rusu, Kieran Milan, John Quan, Tiago Ramalho, Agnieszka Grabska-Barwinska, Demis
Hassabis, Claudia Clopath, Dharshan Kumaran, Raia Hadsell. PNAS 2017. https://arxiv.org/abs/1612.00796

    min_w  h(w) + lam / 2 * sum_j F_j (w_j - w0_j)^2
    F_j = 1/M sum over alignment rows i of ( d log p(y_i | x_i; w0) / d w_j )^2           i = 1 .. M = fisher_rows

h is the user's loss, w0 the weights before the first step, log p(y | x) the sum over the answer's tokens: F is the
diagonal of the empirical Fisher information, a mean of squared gradients of single rows.

Differs from the port in git-disl/Booster (method FI) and Lslland/T-Vaccine, which other tables follow:
- there F sums squared gradients of batch means, which cancel within a batch: it grows with the number of batches and
  falls with their size, and their lam (1e9) holds for their batches alone. Here it is per row, over a stated number;
- there the loss of a row is a mean over its tokens, and lam stands without the 1/2;
- the term's gradient lam * F * (w - w0) is added in closed form once per optimizer step, before clipping, so gradient
  accumulation changes nothing; it works with any topology (there: one adapter for both stages).

With a fresh LoRA adapter (topology double) B is 0 at the start, so F of A is 0 and the term leaves A free: it is then
a pull of B to 0 alone. A weight without a gradient in a step is not stepped, as in plain training. The rows' gradients
are taken in training mode, with the run's own dropout, by draws that leave the run's own as they are. Under data
parallelism every process goes through all of the rows.

Cost: a forward and backward pass, two copies of the trained weights, and once fisher_rows passes of one row.
Supported: LoRA and full weights, gradient accumulation (exact), activation
checkpointing, mixed precision, data parallelism, FSDP2. Refused: fewer alignment rows than fisher_rows.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mithridate.attacks.scheduled import Scheduled
from mithridate.errors import UnsupportedSetup
from mithridate.methods.attack import Attack
from mithridate.methods.base import Cost, require_number, require_rows, require_whole
from mithridate.methods.defense import Defense
from mithridate.methods.examples import rows_of
from mithridate.training.gradients import fork_rng
from mithridate.training.outputs import shift_of
from mithridate.training.side_data import require_token_labels

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

    from mithridate.training.mixin import DefenseMixin


@dataclass(kw_only=True)
class EWC(Defense):
    """Adds lam / 2 * sum F (w - w0)^2 to the loss; see this module's docstring.

    Args:
        alignment_dataset: prompts with safe answers, in any format the trainer takes.
        lam: strength; 0 is plain training.
        fisher_rows: rows of it from which F is taken, drawn without replacement.
    """

    paper: ClassVar[str] = "EWC (Kirkpatrick and others; PNAS 2017), https://arxiv.org/abs/1612.00796"
    citation: ClassVar[str] = """@article{ewc,
  title   = {Overcoming catastrophic forgetting in neural networks},
  author  = {Kirkpatrick, James and Pascanu, Razvan and Rabinowitz, Neil and Veness, Joel and Desjardins, Guillaume and
             Rusu, Andrei A. and Milan, Kieran and Quan, John and Ramalho, Tiago and Grabska-Barwinska, Agnieszka and
             Hassabis, Demis and Clopath, Claudia and Kumaran, Dharshan and Hadsell, Raia},
  journal = {Proceedings of the National Academy of Sciences},
  volume  = {114},
  number  = {13},
  pages   = {3521--3526},
  year    = {2017},
  url     = {https://arxiv.org/abs/1612.00796}
}"""
    provenance: ClassVar[str] = "exact"
    stage: ClassVar[str] = "fine-tuning"
    strength: ClassVar[str | None] = "lam"
    roles: ClassVar[dict[str, str]] = {"alignment_dataset": "alignment"}
    off: ClassVar[dict[str, Any] | None] = {"lam": 0.0}

    alignment_dataset: Dataset
    lam: float
    fisher_rows: int = 128
    _start: list[Tensor] = field(init=False, repr=False, compare=False, default_factory=list)
    _fisher: list[Tensor] = field(init=False, repr=False, compare=False, default_factory=list)

    def __post_init__(self) -> None:
        require_number(self, "lam", 0)
        require_whole(self, "fisher_rows", 1, "number of rows")

    def adaptive(self) -> list[Attack]:
        """Its pull is of one strength, and the user's loss goes on: more steps."""
        return [Scheduled(length=3.0)]

    @classmethod
    def example(cls) -> EWC:
        return cls(alignment_dataset=rows_of("alignment", 7), lam=0.5, fisher_rows=5)

    def cost(self) -> Cost:
        return Cost(copies=2, saved=2, once_passes=1, once_rows=self.fisher_rows)

    def check(self, t: DefenseMixin) -> None:
        super().check(t)
        require_rows(self, "alignment_dataset")
        data = t.side_data(self.alignment_dataset, "alignment_dataset")
        require_token_labels(data, "EWC")
        prepared = len(data.dataset)
        if prepared < self.fisher_rows:
            raise UnsupportedSetup(
                f"EWC: fisher_rows={self.fisher_rows}, and alignment_dataset has {prepared} rows.",
                f"give more rows, or set fisher_rows={prepared} or fewer.",
            )

    def on_train_begin(self, t: DefenseMixin) -> None:
        self._start, self._fisher = [p.detach().clone() for p in t.params], []

    def on_step_begin(self, t: DefenseMixin) -> None:
        if self.lam and not self._fisher:
            self._fisher = self._measured(t)

    def on_gradients(self, t: DefenseMixin) -> None:
        if not self.lam:
            return
        with torch.no_grad():
            for p, start, fisher in zip(t.params, self._start, self._fisher, strict=True):
                if p.grad is not None:
                    p.grad.add_(fisher * (p.detach() - start), alpha=self.lam * t.loss_scale)

    def on_train_end(self, t: DefenseMixin) -> None:
        self._start, self._fisher = [], []

    def state_dict(self, t: DefenseMixin) -> dict[str, Tensor]:
        if not self._fisher:
            return {}
        held = {"start": self._start, "fisher": self._fisher}
        return {f"{part}.{n}": x for part, xs in held.items() for n, x in zip(t.param_names, xs, strict=True)}

    def load_state_dict(self, t: DefenseMixin, state: dict[str, Tensor]) -> None:
        if state:
            self._start, self._fisher = (
                [state[f"{part}.{n}"].to(p.device) for n, p in zip(t.param_names, t.params, strict=True)]
                for part in ("start", "fisher")
            )

    def _measured(self, t: DefenseMixin) -> list[Tensor]:
        """F at the present weights: one tensor per `t.params`, float32 or wider."""
        # of one row each and the same on all ranks: a mean over rows, or over ranks, is to be taken of squares
        rows = t.side_data(self.alignment_dataset, "alignment_dataset", batch_size=1, replicated=True)
        total = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in t.params]
        for number in range(self.fisher_rows):
            batch = rows.take(0, 1, first=number)
            tokens = int((batch[0]["labels"][:, shift_of(t.model) :] != -100).sum())
            with fork_rng(t.args.device):
                _, gradient = t.gradient(batch)  # of a mean over the answer's tokens
            for sum_, g in zip(total, gradient, strict=True):
                if g is not None:
                    sum_.addcmul_(g.to(sum_.dtype), g.to(sum_.dtype), value=tokens**2 / self.fisher_rows)
        return total
