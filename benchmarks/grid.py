"""How planning, running and memory grow with a grid: the code path of any `run`, with stages that take milliseconds.

    python benchmarks/grid.py run --rates 75 --out results/grid-10000.json
    python benchmarks/grid.py table results/grid-*.json

The experiment sweeps defenses (3), harmful ratios (9), the attack's learning rate (`--rates` values) and seeds (5): a
table of 15 + 135 cells a rate, so about 150, 1,000 and 10,000 cells for 1, 7 and 75 rates. One thing is replaced: what
a stage's `build` leaves in its folder is a few prepared bytes and records, in place of trained weights and generated
answers. All else is a run's own: reading, checking and expanding the file, keys, the store with its locks, digests and
syncs, trying set-ups out, judging, the table with its tests, and the files of the run's folder.

Planning ends where the first stage is begun; `run` is the rest without the table and without the page (there is none
above 1,000 cells). Memory is the process's highest resident memory beyond what it had before. A dry run of the same
grid follows, with everything in the store.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from measure import write

DEFENSES = ["none", "vaccine", "booster"]
RATIOS = [i / 8 for i in range(9)]
SEEDS = 5
GROWN = ("plan_seconds", "run_seconds", "table_seconds", "dry_run_seconds", "peak_bytes")


def experiment(inputs: Path, rates: int) -> dict[str, Any]:
    from tests.pipeline.small import experiment, write_inputs

    return experiment(
        write_inputs(inputs),
        sweep={
            "align.defense": DEFENSES,
            "finetune.attack.harmful_ratio": RATIOS,
            "finetune.training.learning_rate": [round(1e-4 * (i + 1), 6) for i in range(rates)],
            "seed": list(range(SEEDS)),
        },
    )


@dataclass
class Clock:
    """When the first stage was begun, and the seconds spent on the table and on the page."""

    first: float | None = None
    table: float = 0.0
    page: float = 0.0

    def timed(self, name: str, work: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                setattr(self, name, getattr(self, name) + time.perf_counter() - began)

        return call


def quick_build(clock: Clock, records: pd.DataFrame) -> Callable[..., None]:
    """What makes stages by leaving prepared files; the records' answers are as the stage's key has it."""

    def build(chain: Any, stage: Any, work: Path) -> None:
        clock.first = clock.first or time.perf_counter()
        if stage.name == "evaluate":
            refused = [int(stage.key[i % 32 : i % 32 + 2], 16) < 128 for i in range(len(records))]
            answers = ["I cannot help with that." if no else "Sure, here it is." for no in refused]
            frame = records.assign(answer=answers, correct=records["correct"].where(records["set"] == "task"))
            frame.to_parquet(work / "records.parquet")
            return
        (work / "model").mkdir(exist_ok=True)
        (work / "model" / "adapter_model.safetensors").write_bytes(bytes.fromhex(stage.key))
        (work / "history.json").write_text(json.dumps([{"step": step, "loss": 1.0} for step in (2, 4)]))

    return build


def template(asked: dict[str, Any]) -> pd.DataFrame:
    """The records of one real evaluation."""
    from mithridate import run

    with tempfile.TemporaryDirectory() as folder:
        plain = {key: value for key, value in asked.items() if key != "sweep"} | {"align": "none", "finetune": "none"}
        run(plain, out=Path(folder) / "out", until="evaluate", progress=False)
    [path] = Path(os.environ["MITHRIDATE_STORE"]).glob("evaluate-*/records.parquet")
    return pd.read_parquet(path)


def measured(rates: int, folder: Path) -> dict[str, Any]:
    from mithridate import run
    from mithridate.pipeline import building, runner
    from mithridate.pipeline.preview import preview
    from mithridate.results import folder as run_folder

    asked, clock = experiment(folder / "inputs", rates), Clock()
    os.environ["MITHRIDATE_STORE"] = str(folder / "first")
    records = template(asked)
    os.environ["MITHRIDATE_STORE"] = str(folder / "store")
    building.BUILD = dict.fromkeys(building.BUILD, quick_build(clock, records))  # the one seam
    run_folder.RunFolder.write = clock.timed("table", run_folder.RunFolder.write)
    runner._report = clock.timed("page", runner._report)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.perf_counter()
    finished = run(asked, out=folder / "out", progress=False)
    ended = time.perf_counter()
    assert clock.first is not None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    with contextlib.redirect_stdout(None):
        seen = sum(1 for _ in preview(asked).lines())
    again = time.perf_counter() - ended
    made = sum(1 for _ in (folder / "store").glob("*/stage.json"))
    return {
        "cells": len(finished.cells),
        "stages": made,
        "rows": len(finished.records()),
        "plan_seconds": clock.first - began,
        "run_seconds": ended - clock.first - clock.page - clock.table,
        "table_seconds": clock.table,
        "page_seconds": clock.page,
        "dry_run_seconds": again,
        "dry_run_lines": seen,
        "peak_bytes": peak,
        "results_bytes": (folder / "out" / "results.json").stat().st_size,
    }


def one(rates: int, folder: Path | None) -> dict[str, Any]:
    """In a process of its own, whose memory is this grid's alone."""
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        command = [sys.executable, __file__, "worker", inside, "--rates", str(rates)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {"benchmark": "grid", "rates": rates, **json.loads(done.stdout.splitlines()[-1])}


def table(paths: list[Path]) -> str:
    """The figures as Markdown, with the exponent of each over the number of cells."""
    from growth import exponent

    found = sorted((json.loads(path.read_text()) for path in paths), key=lambda result: result["cells"])
    lines = [
        "| cells | stages | plan, s | run, s | table, s | dry run, s | memory, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        lines.append(
            f"| {one['cells']:,} | {one['stages']:,} | {one['plan_seconds']:.1f} | {one['run_seconds']:.1f} | "
            f"{one['table_seconds']:.1f} | {one['dry_run_seconds']:.1f} | {one['peak_bytes'] / 1e6:.0f} |"
        )
    if len(found) > 1:
        cells = [one["cells"] for one in found]
        grown = {name: exponent(cells, [one[name] for one in found])["value"] for name in GROWN}
        lines.append("| exponent | | " + " | ".join(f"{grown[name]:.2f}" for name in GROWN) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, Any] | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["run", "worker", "table"])
    parser.add_argument("paths", type=Path, nargs="*", help="results, for the table")
    parser.add_argument("--rates", type=int, default=1, help="learning rates of the attack: 135 cells each")
    parser.add_argument("--folder", type=Path, help="where the grid's store and folder lie; elsewhere than usual")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    if given.part == "table":
        print(table(given.paths))
        return None
    if given.part == "worker":
        warnings.simplefilter("ignore")
        logging.getLogger("mithridate").setLevel(logging.WARNING)
        print(json.dumps(measured(given.rates, given.paths[0])))
        return None
    result = one(given.rates, given.folder)
    write(given.out, result)
    return result


if __name__ == "__main__":
    main()
