"""Poisoning: a user hands in a data set of which a share is harmful.

The papers' attack (Vaccine, section 5; Booster, section 5): of n rows, p * n are harmful exchanges and the rest are
the user's task.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

from mithridate.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

# Columns that say what SFTTrainer makes of a row: both parts must have the same of them.
_TRAINED_ON = {"prompt", "completion", "messages", "text", "input_ids", "labels"}


def poison(*, benign: Any, harmful: Any, ratio: float = 0.1, size: int = 1000, seed: int = 0) -> Any:
    """Mixes harmful rows into a user's data.

    Args:
        benign: the user's own rows: a list of records, or a `datasets.Dataset`.
        harmful: harmful rows, of the same kind as `benign`.
        ratio: share of harmful rows, in [0, 1].
        size: number of rows altogether.
        seed: chooses the rows and their order. With one seed, the harmful rows of a smaller ratio are among those of a
            larger one.

    Returns:
        The same kind as was given: exactly `round(ratio * size)` harmful rows and `size` less that benign ones, none
        twice, shuffled, with a column `poisoned` (bool). That column is for analysis: the Trainer drops it.

    Raises:
        InputError: a ratio outside [0, 1] or above 0 that comes to no row, a size below 1, more rows asked for than
            there are, or two kinds mixed.
    """
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio <= 1:
        hint = f"; for {ratio} percent write {ratio / 100:g}" if _is_percent(ratio) else ""
        raise InputError(f"harmful ratio {ratio!r} is outside [0, 1]: it is a fraction{hint}")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(f"attack size {size!r} is not a number of rows (a whole number from 1 on)")
    n_harmful = round(ratio * size)
    if ratio > 0 and n_harmful == 0:
        raise InputError(
            f"harmful ratio {ratio:g} of {size} rows is no row: none would be harmful. Give at least "
            f"{math.ceil(0.5 / ratio) + 1} rows, a higher ratio, or 0"
        )
    chosen_harmful = _choose("harmful", harmful, n_harmful, ratio, size, seed)
    chosen_benign = _choose("benign", benign, size - n_harmful, ratio, size, seed)
    order = list(range(size))
    random.Random(f"order {seed}").shuffle(order)
    if isinstance(benign, list) and isinstance(harmful, list):
        rows = [{**harmful[i], "poisoned": True} for i in chosen_harmful]
        rows += [{**benign[i], "poisoned": False} for i in chosen_benign]
        return [rows[i] for i in order]
    return _mixed(benign, harmful, chosen_benign, chosen_harmful).select(order)


def _is_percent(ratio: Any) -> bool:
    return isinstance(ratio, (int, float)) and not isinstance(ratio, bool) and 1 < ratio <= 100


def _choose(name: str, rows: Any, n: int, ratio: float, size: int, seed: int) -> list[int]:
    if n > len(rows):
        raise InputError(
            f"{n} {name} rows asked for (ratio {ratio:g} of {size}), but there are only {len(rows)}: give more "
            f"{name} rows, or lower the attack's size{' or its ratio' if name == 'harmful' else ''}"
        )
    order = list(range(len(rows)))
    random.Random(f"{name} {seed}").shuffle(order)
    return order[:n]


def _mixed(benign: Any, harmful: Any, chosen_benign: list[int], chosen_harmful: list[int]) -> Dataset:
    from datasets import Dataset, concatenate_datasets

    for name, rows in (("benign", benign), ("harmful", harmful)):
        if not isinstance(rows, Dataset):
            raise InputError(
                f"{name} rows are a {type(rows).__name__}: give both as lists of records or both as datasets.Dataset"
            )
    formats = [sorted(_TRAINED_ON & set(rows.column_names)) for rows in (benign, harmful)]
    if formats[0] != formats[1]:
        raise InputError(
            f"benign rows have the columns {formats[0]}, harmful rows {formats[1]}: bring both into one format, for "
            "instance with mithridate.data.records.training_dataset"
        )
    parts = []
    for rows, chosen, mark in ((harmful, chosen_harmful, True), (benign, chosen_benign, False)):
        if chosen:
            rows = rows.remove_columns([c for c in rows.column_names if c == "poisoned"]).select(chosen)
            parts.append(rows.add_column("poisoned", [mark] * len(chosen)))
    try:
        return concatenate_datasets(parts)
    except ValueError as error:  # the same column with two types
        raise InputError(f"benign and harmful rows cannot be put into one data set: {error}") from error
