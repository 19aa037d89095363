"""Poisoning: a user hands in a data set of which a share is harmful.

The papers' attack (Vaccine, section 5; Booster, section 5): of n rows, p * n are harmful exchanges and the rest are
the user's task.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mithridate.errors import InputError
from mithridate.rows import as_list, kind, records
from mithridate.training_rows import data_set

if TYPE_CHECKING:
    from datasets import Dataset

# Columns that say what a trainer makes of a row: all rows must have the same of them.
_FORM = {
    *("prompt", "response", "completion", "messages", "text", "input_ids", "labels"),
    *("conversations", "instruction", "input", "output"),
}


def poison(*, benign: Any, harmful: Any, ratio: float = 0.1, size: int = 1000, seed: int = 0) -> Any:
    """Mixes harmful rows into a user's data.

    Args:
        benign: the user's own rows: a list, a DataFrame or a `datasets.Dataset`, in any form of `mithridate.rows`.
        harmful: harmful rows, of any such kind and form.
        ratio: share of harmful rows, in [0, 1].
        size: number of rows altogether.
        seed: chooses the rows and their order. With one seed, the harmful rows of a smaller ratio are among those of a
            larger one.

    Returns:
        The kind that `benign` is: exactly `round(ratio * size)` harmful rows and `size` less that benign ones, none
        twice, shuffled, with a column `poisoned` (bool). That column is for analysis: the Trainer drops it. Rows of
        one form stay as they are; where the two sets differ in it, all become records (prompt and response, or
        messages).

    Raises:
        InputError: a ratio outside [0, 1] or above 0 that comes to no row, a size below 1, more rows asked for than
            there are, or what is given is no set of rows.
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
    if same_sets := _data_sets(benign, harmful):
        counts = [len(rows) for rows in (benign, harmful)]
    else:
        benign_rows, harmful_rows = as_list(benign, "benign"), as_list(harmful, "harmful")
        counts = [len(benign_rows), len(harmful_rows)]
    chosen_harmful = _choose("harmful", counts[1], n_harmful, ratio, size, seed)
    chosen_benign = _choose("benign", counts[0], size - n_harmful, ratio, size, seed)
    order = list(range(size))
    random.Random(f"order {seed}").shuffle(order)
    if same_sets:
        return _mixed(benign, harmful, chosen_benign, chosen_harmful).select(order)
    parts = [harmful_rows[i] for i in chosen_harmful], [benign_rows[i] for i in chosen_benign]
    rows = [{**row, "poisoned": mark} for part, mark in zip(_of_one_form(*parts), (True, False)) for row in part]
    return _as(benign, [rows[i] for i in order])


def _is_percent(ratio: Any) -> bool:
    return isinstance(ratio, (int, float)) and not isinstance(ratio, bool) and 1 < ratio <= 100


def _choose(name: str, there: int, n: int, ratio: float, size: int, seed: int) -> list[int]:
    if n > there:
        raise InputError(
            f"{n} {name} rows asked for (ratio {ratio:g} of {size}), but there are only {there}: give more "
            f"{name} rows, or lower the attack's size{' or its ratio' if name == 'harmful' else ''}"
        )
    order = list(range(there))
    random.Random(f"{name} {seed}").shuffle(order)
    return order[:n]


def _data_sets(benign: Any, harmful: Any) -> bool:
    """Whether both are `datasets.Dataset` of one form: then their rows need not be read."""
    if not all(hasattr(rows, "column_names") and hasattr(rows, "select") for rows in (benign, harmful)):
        return False
    columns = [_FORM & set(rows.column_names) for rows in (benign, harmful)]
    return columns[0] == columns[1]


def _of_one_form(harmful: list[Any], benign: list[Any]) -> tuple[list[Any], list[Any]]:
    """The rows as they are where they have one form; else as records, all of `messages` if some have them."""
    if len({_form(row) for row in (*harmful, *benign)}) <= 1:
        return harmful, benign
    made = {"harmful": records(harmful, "harmful"), "benign": records(benign, "benign")}
    for name, rows in made.items():
        for number, row in enumerate(rows, start=1):
            if "messages" not in row and not isinstance(row.get("prompt"), str):
                raise InputError(
                    f"{name}, record {number}: has neither a prompt nor messages (it has {', '.join(row)}), and the "
                    "other rows have. Bring both sets into one form"
                )
    if any("messages" in row for rows in made.values() for row in rows):
        made = {name: [_talk(row) for row in rows] for name, rows in made.items()}
    return made["harmful"], made["benign"]


def _form(row: Any) -> frozenset[tuple[str, str]]:
    if not isinstance(row, Mapping):
        raise InputError(f"a row is {kind(row)}, not a mapping; see mithridate.rows")
    return frozenset((name, type(row[name]).__name__) for name in _FORM if row.get(name) is not None)


def _talk(row: dict[str, Any]) -> dict[str, Any]:
    if "messages" in row:
        return row
    rest = {name: value for name, value in row.items() if name not in ("prompt", "response")}
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row.get("response")}]
    return {"messages": turns[: 1 + bool(row.get("response"))], **rest}


def _as(model: Any, rows: list[dict[str, Any]]) -> Any:
    """The rows as the same kind of set."""
    if hasattr(model, "iloc"):
        import pandas as pd

        return pd.DataFrame(rows)
    if not hasattr(model, "select"):
        return rows
    return data_set(rows, "the mix of benign and harmful rows")


def _mixed(benign: Any, harmful: Any, chosen_benign: list[int], chosen_harmful: list[int]) -> Dataset:
    from datasets import concatenate_datasets

    parts = []
    for rows, chosen, mark in ((harmful, chosen_harmful, True), (benign, chosen_benign, False)):
        if chosen:
            rows = rows.remove_columns([c for c in rows.column_names if c == "poisoned"]).select(chosen)
            parts.append(rows.add_column("poisoned", [mark] * len(chosen)))
    try:
        return concatenate_datasets(parts)
    except ValueError as error:  # the same column with two types
        raise InputError(f"benign and harmful rows cannot be put into one data set: {error}") from error
