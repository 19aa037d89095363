"""`mithridate demo`: the whole story on the embedded model, from `recipes/demo.yaml`.

The recipe holds one experiment (the undefended run), the story's cells as overrides of it in the order in which they
are run, and what `--full` adds: scores on the attack's way, a second half of cells, and what all cells are swept over.
Its settings were chosen on validation parts, with as many tries for each defense; the log of every try is
`recipes/tuning.jsonl`, copied into the run's folder and shown by its page. Everything else is computed here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from mithridate.experiment.config import Experiment, expand, load_experiment
from mithridate.experiment.yaml12 import parse_yaml
from mithridate.pipeline.executors import Local
from mithridate.pipeline.runner import Run, run_cells

logger = logging.getLogger(__name__)

_FIRST = 3  # cells whose table is shown before the rest is begun
_NOTE = (
    "On a CPU, the demo computes two models at the same time, each with half of the threads: seconds are those of a "
    "busy machine."
)


def recipe() -> dict[str, Any]:
    """The recipe as written: `experiment`; the story's `variants`; `full`, with `resistance`, the second half's
    variants and a `sweep`; `seconds` (of the story)."""
    return parse_yaml(resources.files("mithridate.resources.recipes").joinpath("demo.yaml").read_text(), "demo.yaml")


def demo_experiments(full: bool = False) -> list[Experiment]:
    """The story's cells in order; with `full` these, scored on the attack's way too, the second half and then each
    cell at more harmful ratios and seeds."""
    written = recipe()
    experiment, variants = written["experiment"], written["variants"]
    if not full:
        return expand(load_experiment(experiment | {"variants": variants}))
    more = written["full"]
    experiment["evaluate"]["resistance"] = more["resistance"]
    experiment["variants"] = variants + more["variants"]
    cells = expand(load_experiment(experiment))
    swept = expand(load_experiment(experiment | {"sweep": more["sweep"]}))
    return cells + [cell for cell in swept if cell not in cells]


def run_demo(
    out: Path | None = None,
    full: bool = False,
    notify: Callable[[dict[str, Any]], None] | None = None,
    replace: bool = False,
    show: Callable[[Run], None] | None = None,
) -> Run:
    """Runs the demo into `out` (`runs/demo`); what an earlier call finished is not computed again. `replace`: as of
    `runner.run`. `show` is given the run once its first cells are there, before the rest is begun."""
    folder = Path(out) if out else Path("runs/demo")
    experiments = demo_experiments(full)
    if full:
        seconds = recipe()["seconds"] * len(experiments) / len(demo_experiments())
        logger.info("%d cells, about %.0f minutes on two cores the first time", len(experiments), seconds / 60)
    began, workers = time.perf_counter(), _two_workers()
    files = {"tuning.jsonl": resources.files("mithridate.resources.recipes").joinpath("tuning.jsonl").read_text()}
    notes = [_NOTE] if workers else []
    same: dict[str, Any] = {"notes": notes, "notify": notify, "executor": workers}
    if workers:  # nothing can be made beside the first alignment, so that it has both threads
        logger.info("first the plain alignment; then %d models to the first table; then the others", _FIRST)
        run_cells(experiments[:1], folder, Path.cwd(), until="align", files=files, replace=replace)
    first = run_cells(experiments[:_FIRST], folder, Path.cwd(), files=files, replace=replace, **same)
    if show:
        show(first)
        logger.info("these were the first %d of %d; the others follow", _FIRST, len(experiments))
    run = run_cells(experiments, folder, Path.cwd(), **same)
    logger.info("demo finished in %.0f s; the page: %s", time.perf_counter() - began, run.report)
    return run


def _two_workers() -> Local | None:
    """Without a GPU and with a second core: two worker processes that share the threads.

    A small model's training step gains little from a second thread: two processes with one thread each get through
    about 1.4 times as much as one with two, and stages with two threads stall where anything else is running.
    """
    import torch

    return Local(workers=2) if torch.get_num_threads() > 1 and not torch.cuda.is_available() else None
