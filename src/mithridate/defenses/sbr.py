"""SBR: at a few harmful prompts, the state from which the answer's first token is read stays where it was.

Safety Anchor: Defending Harmful Fine-tuning via Geometric Bottlenecks. Guoxin Lu, Letian Sha, Qing Wang, Peijie Sun,
Hao Zhou, Hua Dai, Fu Xiao. ICML 2026. https://arxiv.org/abs/2605.05995

    min_w  h(w) + lam * 1/(K d) sum over anchors k of || s_k(w) - s_k(w0) ||^2                k = 1 .. K = anchors

h is the user's loss, w0 the weights before the first step, s_k [d] the last layer's state, after the model's final
norm, at the last token of prompt k, chat template and generation prompt included: what the first answer token's logits
are computed from. Of a row with several answers it is that of the first. It is a *mean* over the d entries, as in the
official code (soyoaaa/SBR, `HFT_SBR.py`), whose lam = 50 and K = 8 these defaults are. The paper's formula, by
summaries of it (its text was not read), is a squared norm, a sum over d, and its lam by one of them 50 too: taken at
its word it is d times as strong as its code. A lam of that formula is this one divided by d, so that 50 here is 0.0122
there for d = 4096.

Differs from the official code in:
- there the term is added in every micro-batch, undivided where the model counts tokens itself (transformers 4.51 with
  Llama, their versions), so that under their gradient accumulation of 4 it weighs up to 4 lam; here once per optimizer
  step, whatever the accumulation;
- there the last token is found by counting the attention mask, which is right with padding on the right alone; here it
  is the one before the first token that is trained on, wherever the padding is;
- there the template's text is tokenised as text, which puts a second token for its beginning before it; here it is
  tokenised as the user's rows are;
- the anchors are prompts of `alignment_dataset`'s kind: rows with answers, which tell where the prompt ends and change
  nothing (causal attention). `anchors` of them are drawn once, and s_k(w0) is taken in evaluation mode;
- their run is QLoRA with rank-stabilised scaling, 20 epochs at 1e-5: settings of the training, not of this rule. The
  anchors' pass has the run's dropout (theirs has none).

Cost: a forward and backward pass over K rows, counted as a whole one, K d numbers, and once a forward pass over them.
Supported: LoRA and full weights, gradient accumulation (exact), activation checkpointing, mixed precision, data
parallelism, FSDP2, all topologies. Refused: fewer rows than anchors, rows whose prompts are trained on too, prompt
learning, models that return no hidden states or are not causal. Logged: sbr/distance, the mean square.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mithridate.attacks.noice import NOICE
from mithridate.attacks.scheduled import Scheduled
from mithridate.errors import UnsupportedSetup
from mithridate.methods.attack import Attack
from mithridate.methods.base import Cost, require_number, require_rows, require_whole
from mithridate.methods.defense import Defense
from mithridate.methods.examples import rows_of
from mithridate.training.quantised import without_dropout
from mithridate.training.setups import refuse_other_than_causal, refuse_virtual_tokens
from mithridate.training.side_data import require_own_labels

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mithridate.rows import Rows
    from mithridate.training.mixin import DefenseMixin


@dataclass(kw_only=True)
class SBR(Defense):
    """Adds lam times the mean squared distance of some prompts' last states to the start's; see this module's
    docstring.

    Args:
        anchor_dataset: harmful prompts with (any) answers, in any form of `mithridate.rows`.
        lam: strength; 0 is plain training.
        anchors: rows of it that are held, drawn without replacement.
    """

    paper: ClassVar[str] = "SBR (Lu, Sha, Wang, Sun, Zhou, Dai, Xiao; ICML 2026), https://arxiv.org/abs/2605.05995"
    citation: ClassVar[str] = """@inproceedings{sbr,
  title     = {Safety Anchor: Defending Harmful Fine-tuning via Geometric Bottlenecks},
  author    = {Lu, Guoxin and Sha, Letian and Wang, Qing and Sun, Peijie and Zhou, Hao and Dai, Hua and Xiao, Fu},
  booktitle = {International Conference on Machine Learning},
  year      = {2026},
  url       = {https://arxiv.org/abs/2605.05995}
}"""
    provenance: ClassVar[str] = "exact"
    stage: ClassVar[str] = "fine-tuning"
    strength: ClassVar[str | None] = "lam"
    roles: ClassVar[dict[str, str]] = {"anchor_dataset": "alignment"}
    off: ClassVar[dict[str, Any] | None] = {"lam": 0.0}

    anchor_dataset: Rows
    lam: float = 50.0
    anchors: int = 8
    _batch: Any = field(init=False, repr=False, compare=False, default=None)
    _start: list[Tensor] = field(init=False, repr=False, compare=False, default_factory=list)

    def __post_init__(self) -> None:
        require_number(self, "lam", 0)
        require_whole(self, "anchors", 1, "number of rows")

    def adaptive(self) -> list[Attack]:
        """It holds where answers to the anchors begin: rows whose answers begin with a refusal, or more steps."""
        return [NOICE(size=200, harmful_ratio=0.5), Scheduled(length=3.0)]

    @classmethod
    def example(cls) -> SBR:
        return cls(anchor_dataset=rows_of("alignment", 5), lam=2.0, anchors=3)

    def cost(self) -> Cost:
        return Cost(passes=2, once_forwards=1, once_rows=self.anchors)

    def check(self, t: DefenseMixin) -> None:
        super().check(t)
        require_rows(self, "anchor_dataset")
        refuse_virtual_tokens(t, "SBR: holds states at the last tokens of prompts")
        refuse_other_than_causal(t, "SBR")
        rows = t.side_data(self.anchor_dataset, "anchor_dataset").dataset
        require_own_labels(rows, "SBR")
        if len(rows) < self.anchors:
            raise UnsupportedSetup(
                f"SBR: anchors={self.anchors}, and anchor_dataset has {len(rows)} rows.",
                f"give more rows, or set anchors={len(rows)} or fewer.",
            )
        if any(labels[0] != -100 for labels in rows["labels"]):
            raise UnsupportedSetup(
                "SBR: rows of anchor_dataset are trained on from their first token, so where the prompt ends is not "
                "known.",
                "give rows of prompt and completion.",
            )

    def on_train_begin(self, t: DefenseMixin) -> None:
        # one batch, the same on all ranks
        data = t.side_data(self.anchor_dataset, "anchor_dataset", batch_size=self.anchors, replicated=True)
        self._batch = t.data_collator([_with_one_answer(data.dataset[i]) for i in data.rows(0, 0)])
        self._start = []

    def on_step_begin(self, t: DefenseMixin) -> None:
        if not self.lam:
            return
        if not self._start:
            self._start = [_measured(t, self._batch)]
        distance, gradient = t.gradient([self._batch], self._distance)
        t.seed([g if g is None else g.mul_(self.lam) for g in gradient], copy=False)
        t.record("sbr/distance", distance)

    def on_train_end(self, t: DefenseMixin) -> None:
        self._batch, self._start = None, []

    def state_dict(self, t: DefenseMixin) -> dict[str, Tensor]:
        return {"start": self._start[0]} if self._start else {}

    def load_state_dict(self, t: DefenseMixin, state: dict[str, Tensor]) -> None:
        self._start = [state["start"].to(t.args.device)] if state else []

    def _distance(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None) -> Tensor:
        """The mean square over anchors and entries: 0-dim."""
        now = _states(model, inputs)
        mean = (now - self._start[0].to(now.device)).square().mean()
        if num_items_in_batch is None:
            return mean
        # A loss is a share of one that is divided by the tokens of all ranks; this mean is the same on each of them.
        return mean * (inputs["labels"] != -100).sum() / num_items_in_batch


def _with_one_answer(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose first answer alone is labelled: of a conversation with several, one state is held, as of any row."""
    labels = list(row["labels"])
    first = next((i for i, label in enumerate(labels) if label != -100), len(labels))
    end = next((i for i in range(first, len(labels)) if labels[i] == -100), len(labels))
    return row | {"labels": labels[:end] + [-100] * (len(labels) - end)}


def _states(model: nn.Module, inputs: Any) -> Tensor:
    """The last layer's states at the last token of each prompt, float32 or wider: [K, d]."""
    passed = {name: value for name, value in inputs.items() if name != "labels"}
    found = model(**passed, output_hidden_states=True, use_cache=False).hidden_states
    if found is None:
        raise UnsupportedSetup("SBR: this model returns no hidden states.", "use KL, which needs its logits.")
    trained = inputs["labels"] != -100
    ends = trained[:, 1:] & ~trained[:, :-1]  # at the token before the answer's first
    states = found[-1][:, :-1][ends]
    return states.to(torch.promote_types(states.dtype, torch.float32))


def _measured(t: DefenseMixin, batch: Any) -> Tensor:
    """The anchors' states at the present weights, without dropout: [K, d]."""
    with without_dropout(t.model), torch.no_grad(), t.compute_loss_context_manager():
        return _states(t.model, t._prepare_inputs(batch))
