"""Safe Delta: of what the user's run changed, as much is kept as the outputs on safety rows can bear.

Safe Delta: Consistently Preserving Safety when Fine-Tuning LLMs on Diverse Datasets. Ning Lu, Shengcai Liu, Jiahao Wu,
Weiyu Chen, Zhirui Zhang, Yew-Soon Ong, Qi Wang, Ke Tang. ICML 2025. https://arxiv.org/abs/2505.12038

For each linear layer with weight W [out, in] that the user's run changed, X its inputs on a safety row (prompt and
refusal) in the aligned model, n rows, all in float64:

    H  =  2 / n * sum over rows of X^T X ;  H_jj = 1 where that is 0 ;  H += damp * mean(diag H) * I
    U  =  upper Cholesky factor of H^-1,  H^-1 = U^T U ;  d = diag U
    W' =  W_aligned ; then for each block of columns, from left to right:
      take   entries in ascending order of 1 / d_j^2 (ties: column, then row), without the last `guarded` share, while
                 sum of (W - W')_ij^2 / d_j^2  <=  s * block * out / width * mean(1 / d_j^2)
      W'_ij  <-  W_ij where taken
      W'     <-  W' - (W'_old - W'_new)_ij / d_j * U_jk          of later columns k, `step` columns at a time

1 / d_j^2 is what a change of an entry costs in outputs on the safety rows, once later columns make up for it. All else
that the user's run changed (embeddings, norms, biases, the output head) goes back to the aligned model's values.

The authors' code (ColinLu50/SafeDelta) has blocks of 2048 columns and the factors s / 2 and out / 4096, which fit
models of width 4096. Here they are fractions: `block` = 1/2 of the model's width, out / width. So this is their rule
at width 4096, and elsewhere a variant: s is the size that a kept change may have in a square layer, in any model.
`guarded` = 0.15, `damp` = 0.01 and `step` = 4 are the code's, read there; s = 0.1 is its default (its README and one
of its two scripts have 0.11).

The code is not the paper's rule, by a figure of the method in its repository and two summaries (the paper's text was
not read). There entries are chosen over a whole layer, by [H^-1]_jj of the whole inverse (d_j^2 is that of the columns
from j on), while the sum of (W - W_aligned)_ij^2 / [H^-1]_jj is at most s * mean(1 / [H^-1]_jj), whatever the layer's
shape, with s = 0.1; what is kept is made up for in all entries that are not, not in later columns alone; and of a
guarded share nothing is said. At width 4096 the code's blocks have together the paper's bound in a square layer.

Differs from it too in:
- float64, and a stable order of equal 1 / d^2 (all entries of a column); there float32 and an unstable sort.
- where a block has fewer than 7 entries none is guarded; there the slice up to -0 is empty, and none can be taken.
- any architecture that has linear layers, LoRA (by the weights that it amounts to) as well as all weights; there Llama
  alone. One pass over the aligned model gives the inputs of all layers, which is what its walk from layer to layer
  gives (it feeds each the aligned output of the one before; with a later start layer it does not).
- padding never counts; rows are the data role `alignment`, drawn by `seed`. The authors' are refusals of the model
  itself under four prompt templates.

No settings leave the model as it is (`off`): with s = 0 it is the aligned model, and however large s is, the guarded
share goes back. The control "random-choice" takes as many entries of each block at random, with the same making up.

Cost: one forward pass over `samples` rows; a Cholesky factorisation for each layer. Memory: both models; X^T X of
every changed layer at once, 4 bytes * in^2 each; while one layer is worked on, three such matrices in float64.

Set-ups: LoRA over linear layers, whole modules and biases trained beside it, or all weights; one device or
`device_map`. Refused: quantised weights (`mithridate.models.quantisation` makes a plain model), sharded ones, soft
prompts, DoRA and other variants and kinds of adapters; changed matrices that are no linear layer's, embedding's or
head's (fused experts, convolutions); layers that see anything else than one vector a token.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from mithridate.attacks.scheduled import Scheduled
from mithridate.errors import InputError, MithridateError, UnsupportedSetup, nearest
from mithridate.methods.attack import Attack
from mithridate.methods.base import Cost, Method, require_number, require_whole
from mithridate.methods.repair import Repair
from mithridate.repairs.before import changed, check_before, refuse_other_matrices
from mithridate.repairs.delta import Delta
from mithridate.repairs.input_norms import as_rows, input_products, require_positions, token_ids
from mithridate.repairs.linears import head_of

BLOCK = 0.5  # columns of a block, as a share of the model's width
GUARDED = 0.15  # share of a block's entries, those of the highest cost, that are never taken
DAMP = 0.01
STEP = 4  # columns between which nothing is made up for

Choice = Literal["safety", "random"]


@dataclass(kw_only=True)
class SafeDelta(Repair):
    """Keeps what safety can bear of the user's update; see this module's docstring.

    Args:
        s: how large the kept update may be, in outputs on safety rows; at least 0.
        samples: safety rows to look at (all, where there are fewer).
        seed: of their draw, and of the control's.
        choice: "safety", or "random", the control.
    """

    paper: ClassVar[str] = "Safe Delta (Lu and others; ICML 2025), https://arxiv.org/abs/2505.12038"
    citation: ClassVar[str] = """@inproceedings{safedelta,
  title     = {Safe Delta: Consistently Preserving Safety when Fine-Tuning {LLMs} on Diverse Datasets},
  author    = {Lu, Ning and Liu, Shengcai and Wu, Jiahao and Chen, Weiyu and Zhang, Zhirui and Ong, Yew-Soon and
               Wang, Qi and Tang, Ke},
  booktitle = {International Conference on Machine Learning},
  year      = {2025},
  url       = {https://arxiv.org/abs/2505.12038}
}"""
    provenance: ClassVar[str] = "port of ColinLu50/SafeDelta, its constants as fractions of the model's width"
    roles: ClassVar[dict[str, str]] = {"safety": "alignment"}
    models: ClassVar[dict[str, str]] = {"aligned": "aligned"}
    strength: ClassVar[str | None] = "s"

    s: float = 0.1
    samples: int = 128
    seed: int = 0
    choice: Choice = "safety"

    def __post_init__(self) -> None:
        require_number(self, "s", 0)
        require_whole(self, "samples", 1, "number of rows")
        require_whole(self, "seed", 0)
        if self.choice not in get_args(Choice):
            hint = nearest(self.choice, get_args(Choice), listed=False) or "."
            raise InputError(f"SafeDelta: choice must be one of safety, random, not {self.choice!r}{hint}")

    def cost(self) -> Cost:
        # Of the largest layer: three matrices [in, in], with in up to three times out, and five [out, in], in float64.
        return Cost(passes=0, once_forwards=1.0, changes="linear", kept=4, working=8 * (3 * 3 + 5), per_pair=4)

    def adaptive(self) -> list[Attack]:
        """The larger the change, the more of it is left within the bound on outputs: more steps."""
        return [Scheduled(length=3.0)]

    def controls(self) -> dict[str, Method]:
        return {"random-choice": replace(self, choice="random")}

    def check_run(self, *, topology: str, finetuned: bool, adapter: bool) -> None:
        if not finetuned:
            raise InputError("keeps a part of what the fine-tune changed, and `finetune` is none. Set `finetune`")

    def check(self, model: Any, safety: Any = None, tokenizer: Any = None, aligned: Any = None) -> None:
        check_before(model, aligned, "SafeDelta", "aligned")
        refuse_other_matrices(model, "SafeDelta")
        if safety is None or (hasattr(safety, "__len__") and len(safety) == 0):
            raise UnsupportedSetup(
                "SafeDelta: weighs changes by the layers' inputs on safety rows, and there are none.",
                "pass safety=..., harmful prompts with refusals (128 are the authors').",
            )
        if hasattr(safety, "__len__"):  # what can be read only once is left to apply()
            require_positions(model, token_ids(safety, tokenizer))

    def apply(
        self, model: Any, safety: Any = None, tokenizer: Any = None, aligned: Any = None, batch_size: int = 8
    ) -> Delta:
        """Repairs the model in place; an adapter is merged into the weights beneath (save with `merge_and_unload()`).

        Args:
            model: fine-tuned: a PEFT model, or a plain one.
            safety: harmful prompts with refusals: records, or rows in any of TRL's formats (see `token_ids`).
            tokenizer: with a chat template; not needed where the rows hold `input_ids`.
            aligned: the model before the fine-tune.
            batch_size: rows of one forward pass; has no influence on the result but by rounding.

        Raises:
            UnsupportedSetup: see `check`, and the module's text.
            InputError: the aligned model is of another kind, or a row cannot be used.
            MithridateError: a layer's inputs or weights are not finite.
        """
        if not hasattr(safety, "__len__"):
            safety = None if safety is None else as_rows(safety)
        self.check(model, safety, tokenizer, aligned)
        rows = token_ids(safety, tokenizer)
        rows = random.Random(self.seed).sample(rows, min(self.samples, len(rows)))
        delta, found = Delta("safedelta", self.settings()), changed(model, aligned, "SafeDelta")
        head, width = head_of(model), model.config.get_text_config().hidden_size
        linear = {}
        for name, (new, old) in found.items():
            if isinstance(new.module, nn.Linear) and name.endswith(".weight") and new.module is not head:
                linear[name] = (new, old)
            elif new.tensor.dim() > 1 and new.module is not head and not isinstance(new.module, nn.Embedding):
                raise UnsupportedSetup(
                    f"SafeDelta: the fine-tune changed {name}, a matrix that is no linear layer's and no embedding's.",
                    "fine-tune with LoRA on linear layers (attention, say).",
                )
            else:
                delta.replace(name, old.effective())
        if not linear:
            raise InputError("SafeDelta: the fine-tune changed no linear layer, so there is nothing to choose from.")
        modules = {name: old.lora or old.module for name, (_, old) in linear.items()}
        products, kept, entries = input_products(aligned, modules, rows, batch_size), 0, 0
        for name, (new, old) in linear.items():
            before = old.effective().double()
            product = products.pop(name).to(before)
            draws = None if self.choice == "safety" else self._draws(name)
            value, taken = chosen(before, new.effective().to(before), 2 * product, self.s, width, name, draws)
            kept, entries = kept + taken, entries + value.numel()
            delta.replace(name, value.to(torch.promote_types(old.tensor.dtype, torch.float32)))
        delta.notes.append(f"{kept / entries:.2%} of the linear layers' entries keep the fine-tune's value.")
        return delta.apply(model)

    def _draws(self, name: str) -> torch.Generator:
        seed = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(seed[:7], "big"))


@torch.no_grad()
def chosen(
    aligned: Tensor, tuned: Tensor, h: Tensor, s: float, width: int, name: str, draws: torch.Generator | None = None
) -> tuple[Tensor, int]:
    """One layer by the rule of the module's text: its new weight, and how many entries were taken.

    Args:
        aligned, tuned: [out, in], fp64.
        h: 2 X^T X / n, not yet damped: [in, in], fp64.
        s: the budget.
        width: of the model.
        name: of the layer, for errors.
        draws: where given, as many entries are taken at random.

    Raises:
        MithridateError: H is not finite or not positive definite.
    """
    u, count = _root(h, name), 0
    w, block, columns = aligned.clone(), max(1, round(BLOCK * width)), aligned.shape[1]
    for first in range(0, columns, block):
        last = min(first + block, columns)
        d = u.diagonal()[first:last]
        taken = _taken(tuned[:, first:last] - w[:, first:last], 1 / d**2, s * BLOCK * len(w) / width)
        if draws is not None:
            order = torch.randperm(taken.numel(), generator=draws).to(taken.device)
            taken = (order < taken.sum()).reshape(taken.shape)
        count += int(taken.sum())
        errors = torch.zeros_like(w[:, first:last])
        for i in range(first, last, STEP):
            j = min(i + STEP, last)
            here = taken[:, i - first : j - first]
            new = torch.where(here, tuned[:, i:j], w[:, i:j])
            errors[:, i - first : j - first] = (w[:, i:j] - new) / d[i - first : j - first]
            w[:, i:j] = new
            w[:, j:last] -= errors[:, i - first : j - first] @ u[i:j, j:last]
        w[:, last:] -= errors @ u[first:last, last:]
    return w, count


def _root(h: Tensor, name: str) -> Tensor:
    diagonal = h.diagonal()
    diagonal[diagonal == 0] = 1  # features that are never seen
    diagonal += DAMP * diagonal.mean()
    lower, failed = torch.linalg.cholesky_ex(h)
    if not failed:
        root, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed:
            return root
    raise MithridateError(
        f"SafeDelta: {name}: the products of its inputs are not positive definite; the model is broken."
    )


def _taken(update: Tensor, cost: Tensor, share: float) -> Tensor:
    """Which entries of a block are taken: bool [out, block]. `cost` is 1 / d^2, [block]; `share` of its mean may be
    spent."""
    order = cost.argsort(stable=True)  # columns; within each its rows
    spent = (update**2 * cost)[:, order].T.flatten()
    free = spent.numel() - int(GUARDED * spent.numel())
    within = (spent.cumsum(0) <= share * cost.mean()) & (torch.arange(spent.numel(), device=spent.device) < free)
    taken = torch.empty_like(update, dtype=torch.bool)
    taken[:, order] = within.reshape(len(order), len(update)).T
    return taken
