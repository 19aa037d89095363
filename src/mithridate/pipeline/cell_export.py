"""Takes one cell out of a run's folder: its model, or its records as an Inspect log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mithridate.errors import InputError
from mithridate.experiment.config import load_experiment
from mithridate.pipeline.assembly import layers_after, weights_digest
from mithridate.pipeline.context import Allowed, contexts_of
from mithridate.pipeline.export import export
from mithridate.pipeline.finished import Run
from mithridate.pipeline.stages import ExperimentStages
from mithridate.report.card import Story
from mithridate.results.inspect_log import write_log
from mithridate.results.release.label import VERDICT_FILE, label_of
from mithridate.store import MANIFEST, file_digest


def export_cell(
    run_folder: str | Path,
    cell: str,
    out: str | Path,
    merged: bool = True,
    trust_remote_code: bool = False,
    verdict: str | Path | None = None,
) -> Path:
    """Writes the model of one cell of a run as a folder that plain transformers (merged) or PEFT (adapter) loads.

    Args:
        trust_remote_code: as of `run`, which was called with it.
        verdict: file of a gate's verdict, for the model's card; by default verdict.json in the run's folder, if there.

    Raises:
        InputError: no such run or cell, its stages are no longer in the store, or the file of `verdict` has none on
            this model.
    """
    run_folder = Path(run_folder)
    try:
        results = Run(run_folder).results
        recipes = json.loads((run_folder / "cells.json").read_text())
    except FileNotFoundError as error:
        raise InputError(
            f"{run_folder}: not a run folder ({Path(error.filename).name} is missing). Give what `run` wrote."
        ) from error
    row = next((row for row in results["cells"] if row["id"] == cell), None)
    if cell not in recipes or row is None:
        raise InputError(f"{run_folder} has no cell {cell!r}. Its cells: {', '.join(recipes)}.")
    recipe = recipes[cell]
    experiment = load_experiment(recipe["experiment"])
    allowed = Allowed(remote_code=trust_remote_code)
    [context] = contexts_of([experiment], Path(recipe["base"]), progress=False, allowed=allowed)
    chain = ExperimentStages(experiment, context)
    stages = [json.loads((chain.folder(stage) / MANIFEST).read_text()) for stage in chain.upto(recipe["upto"])]
    label, given = None, Path(verdict) if verdict else run_folder / VERDICT_FILE
    if verdict or given.exists():
        label = label_of(given, cell, weights_digest(chain, recipe["upto"]), file_digest(run_folder / "results.json"))
        if verdict and label.outcome is None:
            raise InputError(f"--verdict {verdict}: {label.why}. Let the gate judge this model: --cell {cell}")
    story = Story(results, row, recipe["experiment"], stages, label)
    layers = layers_after(chain, recipe["upto"])
    return export(context.base, layers, context.torch_dtype, context.tokenizer, Path(out), merged=merged, story=story)


def export_log(run_folder: str | Path, cell: str, out: str | Path) -> Path:
    """Writes the records of one cell of a run as an Inspect log (a .json file).

    Raises:
        InputError: no such run or cell, or a file name or folder that cannot be.
        MithridateError: it cannot be written.
    """
    run = Run(Path(run_folder))
    frame: Any = run.records()
    frame = frame[(frame["cell"] == cell) & frame["step"].isna()]
    found = next((row for row in run.results["cells"] if row["id"] == cell), None)
    if found is None or frame.empty:
        raise InputError(f"{run_folder} has no cell {cell!r}. Its cells: {', '.join(run.cells)}.")
    rows = frame.drop(columns="step").to_dict("records")
    shares = {name: value for name, value in found.items() if isinstance(value, dict) and "value" in value}
    return write_log(out, rows, run.results["model"], shares, {"cell": cell, "settings": found["settings"]})
