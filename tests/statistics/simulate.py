"""Draws and counting for the simulations: seeded, and each distinct outcome is computed once."""

from collections.abc import Callable, Iterable
from math import sqrt
from typing import Any

import numpy as np


def covered(tables: np.ndarray, interval: Callable[..., dict], truth: float) -> float:
    """The share of rows of `tables` (draws, counts) whose interval holds the truth."""
    rows, times = np.unique(tables, axis=0, return_counts=True)
    found = [interval(*(int(x) for x in row)) for row in rows]
    return float(np.average([holds(each, truth) for each in found], weights=times))


def share(tables: np.ndarray, event: Callable[..., bool]) -> float:
    """The share of rows of `tables` (draws, counts) for which `event` is true."""
    rows, times = np.unique(tables, axis=0, return_counts=True)
    return float(np.average([event(*(int(x) for x in row)) for row in rows], weights=times))


def holds(interval: dict, truth: float) -> bool:
    return interval["low"] - 1e-9 <= truth <= interval["high"] + 1e-9


def error(rate: float, draws: int) -> float:
    """Three standard errors of a simulated rate."""
    return 3 * sqrt(rate * (1 - rate) / draws)


def answers(rng: np.random.Generator, share: float, alike: float, prompts: int, each: int) -> np.ndarray:
    """bool (prompts, each): positive at the rate `share`; two answers to one prompt correlate by `alike` (beta)."""
    spread = 1 / alike - 1
    rates = rng.beta(share * spread, (1 - share) * spread, prompts)
    return rng.random((prompts, each)) < rates[:, None]


def by_row(table: Iterable[Iterable[Any]]) -> dict[int, list[bool]]:
    return {i: [bool(x) for x in row] for i, row in enumerate(table)}
