"""What the page shows of a run: its cells in order, their names, and those of several seeds put together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mithridate.report.colours import paint
from mithridate.report.groups import over_seeds
from mithridate.report.words import Label, as_they_are, labels, story_order
from mithridate.results import parts
from mithridate.results.decided import complete
from mithridate.results.folder import OLD_RECORDS, RunFolder
from mithridate.results.relations import Cell
from mithridate.results.schema import SCHEMA

_FILES = ("results.json", OLD_RECORDS, parts.RECORDS, parts.VERDICTS, "tuning.jsonl", "history.json", "cells.json")


@dataclass
class LoadedRun:
    """What a run's folder holds, read and checked.

    Attributes:
        results: what results.json holds, in the shape of schema 2.
        cells: its cells, in the order of the page; `names` their labels by id.
        points: the cells with those of several seeds put together (`groups.over_seeds`); `point_names` their labels.
        records: the rows of all cells.
        tuning: the log of tries.
        history: training curves by cell.
        files: names of what is there.
        samples: how many answers to a harmful or benign prompt were drawn, all that occur; none where they are greedy.
    """

    results: dict[str, Any]
    cells: list[Cell]
    names: dict[str, Label]
    points: list[Cell]
    point_names: dict[str, Label]
    records: list[dict[str, Any]]
    tuning: list[dict[str, Any]]
    history: dict[str, list[dict[str, Any]]]
    files: list[str]
    samples: list[int]


def load(path: Path) -> LoadedRun:
    """Reads a run's folder.

    Raises:
        InputError: a file is missing or malformed.
    """
    folder = RunFolder(path)
    results, records = folder.results, folder.everything()
    if results["schema"] != SCHEMA:  # of a version that decided less
        results = complete(results, folder.outcomes)
    if as_they_are(results["cells"]):  # so that nothing is said of how they would be trained
        results = results | {"cells": [cell | {"topology": ""} for cell in results["cells"]]}
    paint(sorted(results["cells"], key=story_order))  # before `points`, which take over what a cell has
    cells, points = sorted(results["cells"], key=story_order), over_seeds(results)
    extra = [file.name for file in sorted(path.glob("*.y*ml"))]
    return LoadedRun(
        results=results,
        cells=cells,
        names=labels(cells),
        points=points,
        point_names=labels(points),
        records=records,
        tuning=folder.tuning,
        history=folder.history,
        files=[name for name in _FILES if (path / name).exists()] + extra,
        samples=_samples(records),
    )


def _samples(records: list[dict[str, Any]]) -> list[int]:
    drawn: dict[str, int] = {}
    for row in records:
        if row["set"] != "task" and row.get("sample") is not None:
            drawn[row["cell"]] = max(drawn.get(row["cell"], 0), row["sample"] + 1)
    return sorted(set(drawn.values()))


def final(row: dict[str, Any]) -> bool:
    """An answer from the end of the cell (resistance rows carry the step they were taken at)."""
    return not row.get("step")
