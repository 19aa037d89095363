"""What results.json says, and what a table of the older schema says in its words.

Schema 2: of each cell `role`, the cells that it belongs with (`reference`, `aligned`, `control_of`), all rates under
`rates`, and the digests of its own records and verdicts; the same rates by group under `across_seeds`. A table of
schema 1 has its rates beside its other fields and no relations: `lifted` gives it the shape of schema 2. What it does
not know (the part, the rules, digests) it does not get, and the gate says so.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mithridate.errors import InputError
from mithridate.evaluation import RATES
from mithridate.results.relations import Cell, relate

SCHEMA = 2
STAGES = ("alignment", "finetuning", "repair")
_OF_A_CELL = ("id", *STAGES, "topology", "seed", "harmful_ratio", "attack", "control")
# A table of schema 1 has these for certain, and others where its version knew them.
_CORE = ("harmful_score", "benign_refusal", "incoherent", "accuracy")
_FURTHER = ("harmful_score_plus", "win_rate")


def parsed(text: str) -> Any:
    """Strict JSON. ValueError for what other readers of JSON would read otherwise: NaN, a key twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise ValueError(f"the key {twice!r} appears twice")
        return made

    def never(constant: str) -> Any:
        raise ValueError(f"{constant} is no number")

    return json.loads(text, object_pairs_hook=once, parse_constant=never)


def checked(results: Any, where: str = "results.json") -> dict[str, Any]:
    """The table in the shape of schema 2, if it is one of schema 1 or 2 that lacks nothing.

    Raises:
        InputError: it names what is missing.
    """
    if not isinstance(results, dict) or not isinstance(results.get("cells"), list):
        raise InputError(f"{where}: expected an object with a list `cells`; was it written by `mithridate run`?")
    if results.get("schema") not in (1, SCHEMA):
        raise InputError(
            f"{where}: schema is {results.get('schema')!r}, this version reads 1 and {SCHEMA}. "
            "Run the experiment again with this version, or read it with the version that wrote it."
        )
    if absent := [name for name in ("protocol", "model") if not isinstance(results.get(name), str)]:
        raise InputError(f"{where}: lacks {', '.join(absent)}; was it written by `mithridate run`?")
    seen: set[str] = set()
    for i, cell in enumerate(results["cells"]):
        if missing := _missing(cell, old=results["schema"] == 1):
            raise InputError(f"{where}: cells[{i}] lacks {', '.join(missing)}.")
        if cell["id"] in seen:
            raise InputError(f"{where}: cells[{i}]: the id {cell['id']!r} appears twice; ids must be unique.")
        seen.add(cell["id"])
    return lifted(results) if results["schema"] == 1 else results


def _missing(cell: Any, old: bool) -> list[str]:
    if not isinstance(cell, dict):
        return list(_OF_A_CELL)
    missing = [name for name in _OF_A_CELL if name not in cell]
    missing += [name for name in ("id", *STAGES) if name in cell and not isinstance(cell[name], str)]
    rates = cell if old else cell.get("rates")
    if not isinstance(rates, dict):
        return [*missing, "rates"]
    if old:  # where null, or an empty object, says that it was not measured
        missing += [name for name in _CORE if name not in rates]
    else:
        missing += [name for name in RATES if not isinstance(rates.get(name), dict)]
    points = cell.get("resistance") or []
    well = isinstance(points, list) and all(
        isinstance(point, dict) and isinstance(point if old else point.get("rates"), dict) for point in points
    )
    return missing if well else [*missing, "resistance"]


def lifted(results: Mapping[str, Any]) -> dict[str, Any]:
    """A table of schema 1 in the shape of schema 2; `schema` goes on saying what it was."""
    cells = [_nested(cell) for cell in results["cells"]]
    for cell in cells:
        cell["resistance"] = [_nested(point) for point in cell.get("resistance") or ()]
    made = {**results, "cells": relate(cells)}
    if "across_seeds" in results:
        made["across_seeds"] = [_nested(group) for group in results["across_seeds"] or ()]
    return made


def _nested(flat: Cell) -> Cell:
    names = (*RATES, *_FURTHER)
    rates = dict.fromkeys(RATES) | {name: flat[name] for name in names if name in flat}
    return {key: value for key, value in flat.items() if key not in names} | {"rates": rates}
