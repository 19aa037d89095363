"""Takes one cell out of a run's folder: its model, or its records as an Inspect log."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from mithridate.errors import InputError
from mithridate.experiment.config import FULL, load_experiment
from mithridate.pipeline.assembly import layers_after, weights_digest
from mithridate.pipeline.context import Allowed, contexts_of
from mithridate.pipeline.export import export
from mithridate.pipeline.export_check import check_export
from mithridate.pipeline.stages import ExperimentStages
from mithridate.progress import quiet_libraries
from mithridate.report.card import CardContext
from mithridate.results.folder import RunFolder, redacted, stated
from mithridate.results.inspect_log import write_log
from mithridate.results.release.label import VERDICT_FILE, label_of
from mithridate.store import MANIFEST

logger = logging.getLogger(__name__)


def export_cell(
    run_folder: str | Path,
    cell: str,
    out: str | Path,
    merged: bool = True,
    trust_remote_code: bool = False,
    verdict: str | Path | None = None,
    check: int = 4,
) -> Path:
    """Writes the model of one cell of a run as a folder that plain transformers (merged) or PEFT (adapter) loads.

    Args:
        trust_remote_code: as of `run`, which was called with it.
        verdict: file of a gate's verdict, for the model's card; by default verdict.json in the run's folder, if there.
        check: how many harmful and how many benign prompts of the run the written model is asked again: the answers
            must be those that were measured. 0 asks none.

    Raises:
        InputError: no such run or cell, its stages are no longer in the store, they or the records are not those that
            were measured, or the file of `verdict` has none on this model; or `check` is below 0.
        MithridateError: it cannot be written, or answers otherwise than the model that was measured.
    """
    if check < 0:
        raise InputError(f"check: expected a number of prompts from 0 on, got {check}")
    folder = RunFolder(run_folder)
    row, recipe = folder.cell(cell), folder.recipe(cell)
    experiment = load_experiment(recipe["experiment"])
    if experiment.evaluate.precision != [FULL]:
        raise InputError(
            f"{cell}: was measured in {', '.join(experiment.evaluate.precision)}, and models are exported in full. "
            "Export the cell of the same model that was measured so, and quantise it where it is served"
        )
    allowed = Allowed(remote_code=trust_remote_code)
    [context] = contexts_of([experiment], Path(recipe["base"]), progress=False, allowed=allowed)
    chain = ExperimentStages(experiment, context)
    stages = [json.loads((chain.folder(stage) / MANIFEST).read_text()) for stage in chain.upto(recipe["upto"])]
    weights = weights_digest(chain, recipe["upto"])
    _require_measured(folder, cell, weights)
    label, given = None, Path(verdict) if verdict else folder.path / VERDICT_FILE
    if verdict or given.exists():
        label = label_of(given, cell, weights, folder.sha256)
        if verdict and label.outcome is None:
            raise InputError(f"--verdict {verdict}: {label.why}. Let the gate judge this model: --cell {cell}")
    story = CardContext(folder.results, row, recipe["experiment"], stages, label)
    layers = layers_after(chain, recipe["upto"])
    how = context.base, layers, context.torch_dtype, context.tokenizer, Path(out)
    with quiet_libraries():
        made = export(*how, merged=merged, story=story)
        if not merged and (made / "base").exists():
            logger.info(
                "The adapter names its base by its folder, %s. Where the folder has been moved, load it so: "
                'base = AutoModelForCausalLM.from_pretrained("FOLDER/base"); '
                'model = PeftModel.from_pretrained(base, "FOLDER")',
                made / "base",
            )
        if check:
            logger.info("%s", check_export(chain, recipe["upto"], made, _final_rows(folder, cell), check))
    return made


def _require_measured(folder: RunFolder, cell: str, weights: str | None) -> None:
    """InputError where the store's weights or the records are not those of the table; older ones do not say."""
    row = folder.cell(cell)
    measured, records = row.get("weights_digest"), stated(row, "records")
    if measured and weights != measured:
        raise InputError(
            f"{folder.path}: the store has other weights of {cell} than were measured (digest {str(weights)[:12]} in "
            f"place of {measured[:12]}, says results.json). Run the experiment again"
        )
    if records and (found := folder.digest(records["file"])) != records.get("sha256"):
        raise InputError(
            f"{folder.path / records['file']}: is not the file that the table was made from (SHA-256 {found[:12]} in "
            f"place of {str(records.get('sha256'))[:12]}, says results.json). Run the experiment again"
        )


def _final_rows(folder: RunFolder, cell: str) -> list[dict[str, Any]]:
    """The records of a cell from its end."""
    rows = folder.final(cell, further=True)
    return [{key: value for key, value in row.items() if key != "step"} for row in rows]


def export_log(run_folder: str | Path, cell: str, out: str | Path, redact: bool = False) -> Path:
    """Writes the records of one cell of a run as an Inspect log (a .json file).

    Args:
        redact: leaves out what models said: answers, and the reasons of verdicts, which quote them. Verdicts stay.

    Raises:
        InputError: no such run or cell, or a file name or folder that cannot be.
        MithridateError: it cannot be written.
    """
    folder = RunFolder(run_folder)
    found, rows = folder.cell(cell), _final_rows(folder, cell)
    rows = [redacted(row) for row in rows] if redact else rows
    shares = {name: rate for name, rate in found["rates"].items() if rate}
    shares |= {"extra": found["extra"]} if found.get("extra") else {}
    about = {"cell": cell, "settings": found["settings"]}
    return write_log(out, rows, folder.results["model"], shares, about)
