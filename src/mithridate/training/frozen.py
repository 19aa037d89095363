"""Trained tensors that keep the values that they start with, by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import nn

from mithridate.errors import InputError

FROZEN = "finetune: frozen"
"""What errors here begin with."""


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Trained tensors whose whole name matches one of these regular expressions are no longer trained.

    Raises:
        InputError: an expression matches no trained tensor, or all are frozen.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for pattern in patterns:
        if not keep(trained, pattern):
            raise InputError(
                f"{FROZEN}: {pattern!r} matches the name of no trained tensor ({next(iter(trained))}, say)"
            )
    if patterns and not any(p.requires_grad for p in trained.values()):
        raise InputError(f"{FROZEN}: all tensors are, so that nothing is left to train")


def keep(tensors: Mapping[str, nn.Parameter], pattern: str) -> bool:
    """Those of these tensors whose whole name matches are not trained. Returns whether any does."""
    found = [name for name in tensors if re.fullmatch(pattern, name)]
    for name in found:
        tensors[name].requires_grad_(False)
    return bool(found)
