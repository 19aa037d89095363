"""Which entries of a tensor have the highest scores: counts in exact arithmetic, ties by place."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from mithridate.repairs.delta import Delta

Mask = Delta  # what a repair's report held before it was one with it; the name stays importable


def share(ratio: float, entries: int) -> int:
    """ceil(ratio * entries), with the ratio taken as the decimal number that was written: 0.1 of 30 is 3, not 4."""
    return math.ceil(Fraction(repr(float(ratio))) * entries)


def highest(score: Tensor, ratio: float) -> Tensor:
    """Marks the `share(ratio, n)` highest scores in each row of [rows, n]; ties to the lower column."""
    count = share(ratio, score.shape[-1])
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    threshold = score.topk(count, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    marked = score >= threshold
    if bool((marked.sum(-1) == count).all()):  # no ties at the threshold
        return marked
    above, level = score > threshold, score == threshold
    return above | (level & (level.cumsum(-1) <= count - above.sum(-1, keepdim=True)))
