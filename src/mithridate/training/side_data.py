"""Batches of a defense's own data set, next to the Trainer's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from mithridate.errors import InputError, UnsupportedSetup


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
        self._seed = seed
        self._orders: dict[int, np.ndarray] = {}

    def _order(self, epoch: int) -> np.ndarray:
        """The permutation of one pass. A step touches at most two neighbouring passes, unless the set is tiny."""
        if epoch not in self._orders:
            while len(self._orders) > 1:
                del self._orders[min(self._orders)]
            self._orders[epoch] = np.random.default_rng([self._seed, epoch]).permutation(len(self.dataset))
        return self._orders[epoch]

    def rows(self, step: int, micro_batch: int) -> list[int]:
        """The row numbers of one micro-batch of one step on this rank."""
        start = ((step * self._window + micro_batch) * self._world_size + self._rank) * self._batch_size
        places = (divmod(i, len(self.dataset)) for i in range(start, start + self._batch_size))
        return [int(self._order(epoch)[offset]) for epoch, offset in places]

    def take(self, step: int, count: int, first: int = 0) -> list[Any]:
        """`count` micro-batches of `step`, from number `first` on (a step may have fewer than `window`)."""
        numbers = range(first, first + count)
        return [self._collate([self.dataset[i] for i in self.rows(step, m)]) for m in numbers]


def rows_of_batch(batch: Any) -> list[dict[str, list[int]]]:
    """The rows (input_ids, labels) of a collated batch without their padding, padded or padding-free."""
    parts = {name: batch[name] for name in ("input_ids", "labels")}
    if "attention_mask" in batch:
        masks = [mask.bool() for mask in batch["attention_mask"]]
        return [{n: x[i][mask].tolist() for n, x in parts.items()} for i, mask in enumerate(masks)]
    if "position_ids" not in batch:
        return [{n: x[i].tolist() for n, x in parts.items()} for i in range(len(batch["input_ids"]))]
    # padding-free: all in one line, and a row begins wherever positions begin anew
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    ends = [*starts[1:], batch["input_ids"].shape[1]]
    # one token alone is padding: a row's first has nothing before it, and is never trained on
    return [{n: x[0, a:b].tolist() for n, x in parts.items()} for a, b in zip(starts, ends, strict=True) if b > a + 1]


def require_token_labels(data: SideData, who: str) -> None:
    """Raises UnsupportedSetup, in the name of a defense, where batches have no label for each token (preferences,
    classes of whole rows)."""
    with torch.random.fork_rng(devices=[]):  # some collators draw
        labels = data.take(0, 1)[0].get("labels")
    if getattr(labels, "ndim", 0) != 2:
        raise UnsupportedSetup(
            f"{who}: reads labels of tokens, and the batches have none.", "use it in a supervised fine-tuning trainer."
        )


def require_own_labels(rows: Any, who: str) -> None:
    """Raises UnsupportedSetup, in the name of a defense, where rows have no labels until they are collated."""
    if "labels" not in getattr(rows, "column_names", ()):
        raise UnsupportedSetup(
            f"{who}: where a row's answer begins is seen in its labels, and the rows have none before the collator.",
            "use DefenseTrainer, or give rows with a column of labels (-100 at the prompt).",
        )


def documents(dataset: Any) -> list[dict[str, list[int]]]:
    """The rows (input_ids, labels) of a prepared data set; those of packed ones apart."""
    found = []
    for row in dataset:
        labels, start = row.get("labels") or row["input_ids"], 0
        for length in row.get("seq_lengths") or [len(labels)]:
            part = slice(start, start + length)
            found.append({"input_ids": row["input_ids"][part], "labels": labels[part]})
            start += length
    return found


def refuse_empty_rows(dataset: Dataset, name: str) -> None:
    """Raises InputError for a row without a prompt, an answer or a text, naming the field it comes from, the row and
    the column. Only columns that a trainer reads are looked at."""
    for column in ("prompt", "completion", "messages", "text", "input_ids"):
        if column not in dataset.column_names:
            continue
        values: Any = dataset[column]
        for number, value in enumerate(values, start=1):
            nothing = value is None or value != value
            if nothing or (column in ("messages", "text", "input_ids") and len(value) == 0):  # pyright: ignore[reportArgumentType]
                what = "is missing" if nothing else "is empty"
                raise InputError(f"{name}, row {number}: {column} {what}. Fill it in, or leave the row out.")


def require_labels(rows: Any, name: str) -> None:
    """Raises InputError where no prepared row has a label: such a set would have no effect, in silence."""
    if "labels" not in getattr(rows, "column_names", ()):
        return
    labels = rows["labels"]
    if labels and not isinstance(labels[0], Sequence):
        return  # one of each row
    if not any(label != -100 for row in labels for label in row):
        raise InputError(
            f"{name}: no row has a token to be trained on, so the set would have no effect. Give its rows answers, "
            "and max_length room for them."
        )
