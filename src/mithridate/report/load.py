"""Reads a run's folder, and says what is missing or malformed in it."""

import contextlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from mithridate.errors import InputError
from mithridate.report.groups import over_seeds
from mithridate.report.plots import paint
from mithridate.report.words import Label, labels, story_order
from mithridate.results.decisions import complete
from mithridate.results.outcomes import Outcomes
from mithridate.results.relations import Cell

_SCHEMA = 1
_CELL_FIELDS = (
    "id",
    "alignment",
    "finetuning",
    "repair",
    "topology",
    "seed",
    "harmful_ratio",
    "attack",
    "control",
    "harmful_score",
    "benign_refusal",
    "incoherent",
    "accuracy",
)


@dataclass
class Run:
    """What a run's folder holds, read and checked.

    Attributes:
        results: what results.json holds.
        cells: its cells, in the order of the page; `names` their labels by id.
        points: the cells with those of several seeds put together (`groups.over_seeds`); `point_names` their labels.
        records: the rows of records.parquet.
        tuning: the log of tries.
        history: training curves by cell.
        outcomes: what the models are compared by, from the records.
        files: names of what is there.
        samples: how many answers to a harmful or benign prompt were drawn, all that occur; none where they are greedy.
    """

    results: dict[str, Any]
    outcomes: Outcomes
    cells: list[Cell]
    names: dict[str, Label]
    points: list[Cell]
    point_names: dict[str, Label]
    records: list[dict[str, Any]]
    tuning: list[dict[str, Any]]
    history: dict[str, list[dict[str, Any]]]
    files: list[str]
    samples: list[int]


def check_results(results: Any, where: str = "results.json") -> dict[str, Any]:
    """Return `results` if it has the shape of results.json; raise InputError naming what is missing otherwise."""
    if not isinstance(results, dict) or not isinstance(results.get("cells"), list):
        raise InputError(f"{where}: expected an object with a list `cells`; was it written by `mithridate run`?")
    if results.get("schema") != _SCHEMA:
        raise InputError(
            f"{where}: schema is {results.get('schema')!r}, this version reads {_SCHEMA}. "
            "Run the experiment again with this version, or report with the version that wrote it."
        )
    if absent := [name for name in ("protocol", "model") if not isinstance(results.get(name), str)]:
        raise InputError(f"{where}: lacks {', '.join(absent)}; was it written by `mithridate run`?")
    seen: set[str] = set()
    for i, cell in enumerate(results["cells"]):
        missing = [name for name in _CELL_FIELDS if not isinstance(cell, dict) or name not in cell]
        if missing:
            raise InputError(f"{where}: cells[{i}] lacks {', '.join(missing)}.")
        if cell["id"] in seen:
            raise InputError(f"{where}: cells[{i}]: the id {cell['id']!r} appears twice; ids must be unique.")
        seen.add(cell["id"])
    return results


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file. Give the folder of a finished run.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}).") from None


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({error}).") from None


def _read_records(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file. A run writes it beside results.json.")
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error}).") from None
    missing = [name for name in ("cell", "set", "id", "prompt", "answer", "verdict") if rows and name not in rows[0]]
    if missing:
        raise InputError(f"{path}: lacks the columns {', '.join(missing)}.")
    return rows


def _read_history(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The points of the training curves that lie somewhere: a browser's JSON has no NaN and no infinity."""
    found = _parse(_read(path), str(path))
    if not isinstance(found, dict) or not all(isinstance(rows, list) for rows in found.values()):
        raise InputError(f"{path}: expected an object with a list for each cell; was it written by `mithridate run`?")
    points: dict[str, list[dict[str, Any]]] = {name: [] for name in found}
    for name, rows in found.items():
        for i, row in enumerate(rows):
            step, loss = (row.get("step"), row.get("loss")) if isinstance(row, dict) else (None, row)
            if loss is None:  # a log entry of something else, as the summary at the end is
                continue
            if not isinstance(step, int | float) or not isinstance(loss, int | float):
                raise InputError(f"{path}: {name}[{i}]: expected an object with numbers `step` and `loss`.")
            if math.isfinite(step) and math.isfinite(loss):
                points[name].append(row)
    return points


def load(folder: Path) -> Run:
    """Reads a run's folder.

    Raises:
        InputError: a file is missing or malformed.
    """
    where = folder / "results.json"
    results = check_results(_parse(_read(where), str(where)), str(where))
    records = _read_records(folder / "records.parquet")
    outcomes = _outcomes(records)
    results = complete(results, outcomes)
    paint(sorted(results["cells"], key=story_order))  # before `points`, which take over what a cell has
    cells, points = sorted(results["cells"], key=story_order), over_seeds(results)
    tuning, history = folder / "tuning.jsonl", folder / "history.json"
    lines = _read(tuning).splitlines() if tuning.is_file() else []
    tries = [_parse(line, f"{tuning}, line {i}") for i, line in enumerate(lines, 1) if line.strip()]
    extra = [path.name for path in sorted(folder.glob("*.y*ml"))]
    named = ("results.json", "records.parquet", "tuning.jsonl", "history.json", "cells.json")
    return Run(
        results=results,
        outcomes=outcomes,
        cells=cells,
        names=labels(cells),
        points=points,
        point_names=labels(points),
        records=records,
        tuning=[row if isinstance(row, dict) else {"try": row} for row in tries],
        history=_read_history(history) if history.is_file() else {},
        files=[name for name in named if (folder / name).is_file()] + extra,
        samples=_samples(records),
    )


def _outcomes(records: list[dict[str, Any]]) -> Outcomes:
    """Of the records of a protocol that is not known here nothing can be told."""
    found, models = Outcomes(), {}
    for row in records if records and {"protocol", "correct"} <= records[0].keys() else ():
        models.setdefault((row["cell"], row.get("step")), []).append(row)
    for (cell, step), rows in models.items():
        with contextlib.suppress(InputError):
            found.add(cell, rows, step or None)
    return found


def _samples(records: list[dict[str, Any]]) -> list[int]:
    drawn: dict[str, int] = {}
    for row in records:
        if row["set"] != "task" and row.get("sample") is not None:
            drawn[row["cell"]] = max(drawn.get(row["cell"], 0), row["sample"] + 1)
    return sorted(set(drawn.values()))


def final(row: dict[str, Any]) -> bool:
    """An answer from the end of the cell (resistance rows carry the step they were taken at)."""
    return not row.get("step")
