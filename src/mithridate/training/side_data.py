"""Batches of a defense's own data set, next to the Trainer's."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from datasets import Dataset


class SideData:
    """An endless shuffled stream of batches in which the batches of a step are a function of (seed, step, rank) alone.

    No iterator is kept, so a resumed run draws what the uninterrupted one would have drawn. The rows of one step do
    not depend on how they are split over ranks and micro-batches: 1 x 8 rows, 2 micro-batches of 4 and 2 ranks with
    4 each are the same 8 rows. Every row is drawn once before any is drawn again (a permutation per pass).

    Args:
        dataset: tokenised rows, at least one.
        collate: makes a batch of a list of rows (the Trainer's own collator).
        batch_size: rows in a micro-batch.
        window: micro-batches of a full optimizer step on one rank.
        rank, world_size: this process among the data-parallel ones.
        seed: of the permutations.
    """

    def __init__(
        self,
        dataset: Dataset,
        collate: Callable[[list[dict[str, Any]]], Any],
        *,
        batch_size: int,
        window: int,
        rank: int,
        world_size: int,
        seed: int,
    ):
        self.dataset = dataset
        self._collate = collate
        self._batch_size, self._window, self._rank, self._world_size = batch_size, window, rank, world_size
        self._order = lru_cache(maxsize=2)(  # a step touches at most two neighbouring passes, unless the set is tiny
            lambda epoch: np.random.default_rng([seed, epoch]).permutation(len(dataset))
        )

    def rows(self, step: int, micro_batch: int) -> list[int]:
        """The row numbers of one micro-batch of one step on this rank."""
        start = ((step * self._window + micro_batch) * self._world_size + self._rank) * self._batch_size
        places = (divmod(i, len(self.dataset)) for i in range(start, start + self._batch_size))
        return [int(self._order(epoch)[offset]) for epoch, offset in places]

    def take(self, step: int, count: int) -> list[Any]:
        """The first `count` micro-batches of `step` (the last step of an epoch may have fewer than `window`)."""
        return [self._collate([self.dataset[i] for i in self.rows(step, m)]) for m in range(count)]
