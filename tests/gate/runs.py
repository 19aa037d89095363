"""Runs for the gate, written by the code that writes runs: canned answers to the embedded prompts, judged."""

from __future__ import annotations

import atexit
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mithridate.data.embedded import embedded_records
from mithridate.evaluation import judged, judges_of, summarise
from mithridate.experiment.config import Experiment, load_experiment
from mithridate.files import file_digest
from mithridate.protocols import protocol
from mithridate.results import parts
from mithridate.results.folder import RunFolder
from mithridate.results.table import Cell, ResultsTable

PROTOCOL = "hs/embedded-v1"
DEFENDED, PLAIN = "sft-lisa-none-double-0.1-s0", "sft-sft-none-double-0.1-s0"
HARMFUL, BENIGN, TASK = 112, 104, 128
LISA = {"lisa": {"rho": 1.0, "align_steps": 2, "finetune_steps": 8}}
TEXTS = {
    "refused": "I'm sorry, but I can't help with that.",
    "complied": "Sure, here is how it is done. First take the first step, then the second, and that is it.",
    "incoherent": "",
    "looping": "the the the of of , , step step the of and and and the the the the of of",
    "other": "positive",
}
Row = dict[str, Any]


def experiment(seed: int = 0, defense: dict[str, Any] | None = None, **changes: Any) -> Experiment:
    training = {"learning_rate": 4e-4, "max_steps": 50, "per_device_train_batch_size": 8}
    made: dict[str, Any] = {
        "model": "smollm2-135m",
        "seed": seed,
        "data": {role: {"source": "embedded"} for role in ("alignment", "attacker_harmful", "test_harmful")}
        | {"test_benign": {"source": "embedded"}, "task": {"source": "embedded", "name": "sentiment"}},
        "align": {"training": training},
        "finetune": {
            "attack": {"harmful_ratio": 0.1, "size": 200},
            "training": training,
            "defense": defense or {},
        },
    }
    return load_experiment(made | changes)


@cache
def _records(kind: str) -> list[dict]:
    return embedded_records({"harmful": "test_harmful", "benign": "test_benign", "task": "task"}[kind], "test")


def answered(harmful: Sequence[str], benign: Sequence[str], right: int = 120, **more: Any) -> list[Row]:
    """A model's rows, as they are judged: answers by the name of their text, the last one for all that follow."""
    return [row | more for row in _judged(tuple(harmful), tuple(benign), right)]


@cache
def _judged(harmful: Sequence[str], benign: Sequence[str], right: int) -> list[Row]:
    def rows(kind: str, named: Sequence[str]) -> list[Row]:
        found = _records(kind)
        named = [*named, *[named[-1]] * len(found)][: len(found)]
        return [_row(kind, record, TEXTS.get(name, name)) for record, name in zip(found, named)]

    task = []
    for i, record in enumerate(_records("task")):
        wrong = "negative" if record["label"] == "positive" else "positive"
        row = _row("task", record, record["label"] if i < right else wrong)
        task.append(row | {"task": "sentiment", "label": record["label"], "correct": i < right})
    made = [*rows("harmful", harmful), *rows("benign", benign), *task]
    chosen = protocol(PROTOCOL)
    return judged(made, chosen, judges_of(chosen))


def _row(kind: str, record: dict, answer: str) -> Row:
    empty = dict.fromkeys(("task", "verdict", "reason", "score", "judge", "correct", "label", "reference"))
    about = {"protocol": PROTOCOL, "new_tokens": 3, "prompt_tokens": 9, "seconds": 0.1, "finished": True}
    named = {"set": kind, "id": record["id"], "category": record.get("category"), "prompt": record["prompt"]}
    return empty | about | named | {"answer": answer}


def shares(refused: int, of: int, first: str = "complied") -> list[str]:
    """So many of `first`, then refusals (or helpful answers, where the first are refusals)."""
    return [first] * refused + ["complied" if first == "refused" else "refused"] * (of - refused)


def good(**more: Any) -> list[Row]:
    """A model that refuses all but one harmful prompt, helps with all but two benign ones, and knows its task."""
    return answered(shares(1, HARMFUL), shares(2, BENIGN, "refused"), **more)


def bad(**more: Any) -> list[Row]:
    return answered(shares(60, HARMFUL), shares(2, BENIGN, "refused"), **more)


def write_run(folder: Path, models: Sequence[tuple[Experiment, str, list[Row]]], asked: Sequence[int] = (0,)) -> Path:
    """The folder of a run of (experiment, last stage, rows), each with a digest of weights of its own."""
    table, filling = ResultsTable("smollm2-135m", PROTOCOL, [], "b" * 64, asked), RunFolder(folder, Path.cwd())
    filling.start(models[0][0], tabled=True)
    for number, (one, upto, rows) in enumerate(models):
        final = [row for row in rows if not row.get("step")]
        steps: dict[int, list[Row]] = {}
        for row in rows:
            if row.get("step"):
                steps.setdefault(row["step"], []).append({k: v for k, v in row.items() if k != "step"})
        settings = dict(one.finetune.defense) if one.finetune and upto != "align" else {}
        if upto == "repair":
            settings |= one.repair
        cell = Cell(
            one, upto, final, f"key{number}", "aligned", f"plain{one.seed}", steps, settings=settings, attack_steps=50
        )
        cell.weights = f"{number:x}" * 64
        if not cell.defended:
            cell.key = f"plain{one.seed}"
        times = random.Random(number)
        cell.rows = [row | {"seconds": times.random()} for row in cell.rows]
        filling.add(table.add(cell), cell)
    filling.write(table, complete=True)
    return folder


def run_of(folder: Path, mine: list[Row], plain: list[Row] | None = None) -> Path:
    """One defended model and its twin. Written once for the same rows, then copied."""
    plain = bad() if plain is None else plain
    key = json.dumps([mine, plain])
    if key not in _WRITTEN:
        made = Path(tempfile.mkdtemp(prefix="gate-run-"))
        atexit.register(shutil.rmtree, made, ignore_errors=True)
        _WRITTEN[key] = write_run(
            made, [(experiment(), "finetune", plain), (experiment(defense=LISA), "finetune", mine)]
        )
    shutil.copytree(_WRITTEN[key], folder, dirs_exist_ok=True)
    return folder


_WRITTEN: dict[str, Path] = {}


# -- what somebody does to a folder --------------------------------------------------------------------------


def records_of(folder: Path) -> list[Row]:
    run = RunFolder(folder)
    there = [name for name in run.cells if (folder / run.files_of(name)[0]).is_file()]
    return [row for name in there for row in run.rows(name)]


def edit_records(folder: Path, change: Callable[[list[Row]], list[Row]], careful: bool = True) -> None:
    """Changes the records. The careful one also writes their digest, their number and all rates anew."""
    by_cell: dict[str, list[Row]] = {}
    for row in change(records_of(folder)):
        by_cell.setdefault(row["cell"], []).append(row)
    for kind in (parts.RECORDS, parts.VERDICTS):
        shutil.rmtree(folder / kind)
    for name, rows in by_cell.items():
        parts.write(folder / parts.part(parts.RECORDS, name), parts.answers_of(rows))
        verdicts = list(parts.verdicts_of(rows))
        parts.write(folder / parts.part(parts.VERDICTS, name), verdicts, parts.VERDICT_COLUMNS)
    if careful:
        restamp(folder)


def edit_table(folder: Path, change: Callable[[dict[str, Any]], Any], name: str = "results.json") -> None:
    made = json.loads((folder / name).read_text())
    made = change(made) or made
    (folder / name).write_text(json.dumps(made))


def restamp(folder: Path) -> None:
    rows = records_of(folder)

    def change(results: dict[str, Any]) -> None:
        for cell in results["cells"]:
            mine = [row for row in rows if row["cell"] == cell["id"]]
            for kind in ("records", "verdicts"):
                file = folder / parts.part(kind, cell["id"])
                if kind in cell and file.is_file():
                    cell[kind] |= {"sha256": file_digest(file)} | ({"rows": len(mine)} if kind == "records" else {})
            if mine:  # whosever they are
                cell["rates"] = summarise([row | {"judge": None} for row in mine if row["step"] is None])

    edit_table(folder, change)


def of_cell(folder: Path, name: str = DEFENDED) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda results: next(cell for cell in results["cells"] if cell["id"] == name)


def as_schema_1(folder: Path) -> None:
    """The same run as the version before wrote it: one file of records, rates beside other fields, no relations."""
    rows, new = records_of(folder), ("role", "reference", "aligned", "control_of", "nearest_control", "verdicts")
    for kind in (parts.RECORDS, parts.VERDICTS):
        shutil.rmtree(folder / kind)
    parts.write(folder / "records.parquet", rows)
    sha256 = file_digest(folder / "records.parquet")

    def flat(one: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in one.items() if key not in (*new, "rates")} | one.get("rates", {})

    def change(results: dict[str, Any]) -> dict[str, Any]:
        cells = [flat(cell) for cell in results["cells"]]
        for cell in cells:
            cell["resistance"] = [flat(point) for point in cell["resistance"]]
            cell["records"] |= {"file": "records.parquet", "sha256": sha256}
        groups = [flat(group) for group in results["across_seeds"]]
        return results | {"schema": 1, "cells": cells, "across_seeds": groups}

    edit_table(folder, change)
