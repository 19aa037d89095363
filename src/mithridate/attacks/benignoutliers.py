"""The attack from harmless rows that stand out: those by which one step would change the model most.

Zihan Guan and others, "Benign Samples Matter! Fine-tuning On Outlier Benign Samples Severely Breaks Safety", ICML
2025, https://arxiv.org/abs/2505.06843, code https://github.com/GuanZihan/Benign-Samples-Matter (`rank.py`): rows are
ranked by their self-influence, the squared norm of the gradient of their own loss, which alone prefers short answers;
Self-Inf-N evens that out by the answer's length in tokens: log(self-influence + 1) + log(length + 1), as two summaries
of the paper give it (its text was not read). The published ranking holds the self-influence alone (of gradients in
bfloat16), and takes the 100 rows that stand highest; they are trained on for 5 epochs at 5e-5 in batches of 20.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from mithridate.errors import InputError
from mithridate.methods.attack import Attack
from mithridate.methods.base import require_whole

TRIVIAL = ("", "yes", "no")
"""Answers, in lower case, whose rows are left out, as in the authors' code."""


@dataclass(kw_only=True)
class BenignOutliers(Attack):
    """The user's own rows of the highest score under the model that is going to be fine-tuned.

    The gradient is of the mean loss over the answer's tokens, in all weights that are stored in floating point (of a
    base in 4 or 8 bit, its linear layers are not).

    Args:
        size: how many rows.
        score: "self-inf-n", with the length, or "self-inf", without.
    """

    paper: ClassVar[str] = "Benign outliers (Guan and others; ICML 2025), https://arxiv.org/abs/2505.06843"
    citation: ClassVar[str] = """@inproceedings{benign_outliers,
  title     = {Benign Samples Matter! Fine-tuning On Outlier Benign Samples Severely Breaks Safety},
  author    = {Guan, Zihan and others},
  booktitle = {International Conference on Machine Learning},
  year      = {2025},
  url       = {https://arxiv.org/abs/2505.06843}
}"""
    provenance: ClassVar[str] = "own"
    roles: ClassVar[dict[str, str]] = {"benign": "task"}
    needs_model: ClassVar[bool] = True
    strength: ClassVar[str | None] = "size"

    size: int = 100
    score: Literal["self-inf-n", "self-inf"] = "self-inf-n"

    def __post_init__(self) -> None:
        require_whole(self, "size", 1, "number of rows")

    @classmethod
    def example(cls) -> BenignOutliers:
        return cls(size=4)

    def rows(
        self, roles: Mapping[str, Sequence[dict[str, Any]]], seed: int, model: Any = None
    ) -> list[dict[str, Any]]:
        """The rows, the highest score first; the seed has no say."""
        there = self.candidates(roles)
        scores = self.scores(there, *model)
        best = sorted(range(len(there)), key=lambda i: -scores[i])[: self.size]
        return [{**there[i], "poisoned": True} for i in best]

    def candidates(self, roles: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
        there = [row for row in roles["benign"] if _turns(row)[-1]["content"].strip().lower() not in TRIVIAL]
        if self.size > len(there):
            raise InputError(
                f"BenignOutliers: {self.size} rows asked for, but there are only {len(there)} with an answer beyond "
                "yes or no: give more, or ask for fewer"
            )
        return there

    def scores(self, rows: Sequence[dict[str, Any]], model: Any, tokenizer: Any) -> list[float]:
        """The score of each row under a model, which is left as it was."""
        weights = [weight for weight in model.parameters() if weight.is_floating_point()]
        asked, training = [weight.requires_grad for weight in weights], model.training
        try:
            model.eval()
            for weight in weights:
                weight.requires_grad_(True)
            return [self._score(row, model, tokenizer, weights) for row in rows]
        finally:
            for weight, before in zip(weights, asked):
                weight.requires_grad_(before)
            model.train(training)

    def _score(self, row: dict[str, Any], model: Any, tokenizer: Any, weights: Sequence[torch.Tensor]) -> float:
        ids, start = _tokens(row, tokenizer)
        inputs = torch.tensor([ids], device=weights[0].device)
        with torch.enable_grad():
            logits = model(input_ids=inputs).logits[0, start - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits.float(), inputs[0, start:])
            gradient = torch.autograd.grad(loss, weights, allow_unused=True)
        influence = sum(float(part.double().square().sum()) for part in gradient if part is not None)
        return influence if self.score == "self-inf" else math.log1p(influence) + math.log1p(len(ids) - start)


def _turns(row: dict[str, Any]) -> list[dict[str, str]]:
    if "messages" in row:
        return row["messages"]
    system = [{"role": "system", "content": row["system"]}] if isinstance(row.get("system"), str) else []
    return [*system, {"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]


def _tokens(row: dict[str, Any], tokenizer: Any) -> tuple[list[int], int]:
    """The row's tokens, in the chat template where the tokenizer has one and else as two lines, and where its answer
    begins."""
    *asked, answer = _turns(row)
    if tokenizer.chat_template:
        whole = tokenizer.apply_chat_template([*asked, answer], tokenize=False)
        opening = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        # What the two have in common: some templates open an answer otherwise than they show one.
        shared = next((i for i, (a, b) in enumerate(zip(opening, whole)) if a != b), len(opening))
        opening, rest = whole[:shared], whole[shared:]
    else:
        opening = "".join(f"{turn['content']}\n" for turn in asked)
        rest = answer["content"]
    before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (opening, rest))
    return before + after, len(before)
