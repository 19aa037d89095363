"""`mithridate demo`: the whole story on the embedded model, from `recipes/demo.yaml`.

The recipe holds one experiment (the undefended run), the cells as overrides of it in the order in which they are run,
and what `--full` sweeps over. Its settings were chosen by `benchmarks/tune.py` on validation parts; the log of every
try is `recipes/tuning.jsonl`, copied into the run's folder and shown by its page. Everything else is computed here.
"""

from __future__ import annotations

import json
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

_FIRST = 3  # cells that are there to look at before the rest is begun
_NOTE = (
    "On a CPU, the demo computes its first three cells with all threads and the rest in two processes with half of "
    "them each: compare seconds within these two groups only."
)


def recipe() -> dict[str, Any]:
    """The recipe as written: `experiment`, `cells` (overrides by dotted path), `full` (a sweep), `seconds`."""
    return parse_yaml(resources.files("mithridate.resources.recipes").joinpath("demo.yaml").read_text(), "demo.yaml")


def demo_experiments(full: bool = False) -> list[Experiment]:
    """The demo's cells in order; with `full`, each again at more harmful ratios and seeds, after them."""
    written = recipe()
    cells = [_experiment(written["experiment"], overrides) for overrides in written["cells"]]
    if full:
        for overrides in written["cells"]:
            sweep = {path: values for path, values in written["full"].items() if path not in overrides}
            swept = expand(_experiment(written["experiment"], {**overrides, "sweep": sweep}))
            cells += [cell for cell in swept if cell not in cells]
    return cells


def _experiment(base: dict[str, Any], overrides: dict[str, Any]) -> Experiment:
    return load_experiment(base, [f"{path}={json.dumps(value)}" for path, value in overrides.items()])


def run_demo(
    out: Path | None = None,
    full: bool = False,
    notify: Callable[[dict[str, Any]], None] | None = None,
    replace: bool = False,
) -> Run:
    """Runs the demo into `out` (`runs/demo`); what an earlier call finished is not computed again. `replace`: as of
    `runner.run`."""
    folder = Path(out) if out else Path("runs/demo")
    experiments = demo_experiments(full)
    if full:
        seconds = recipe()["seconds"] * len(experiments) / len(demo_experiments())
        logger.info("%d cells, about %.0f minutes on two cores the first time", len(experiments), seconds / 60)
    began = time.perf_counter()
    files = {"tuning.jsonl": resources.files("mithridate.resources.recipes").joinpath("tuning.jsonl").read_text()}
    run_cells(experiments[:_FIRST], folder, Path.cwd(), notes=[_NOTE], notify=notify, files=files, replace=replace)
    run = run_cells(experiments, folder, Path.cwd(), notes=[_NOTE], notify=notify, executor=_two_workers())
    logger.info("demo finished in %.0f s; the page: %s", time.perf_counter() - began, run.report)
    return run


def _two_workers() -> Local | None:
    """Without a GPU and with a second core: two worker processes that share the threads.

    A small model's training step gains little from a second thread: two processes with one thread each get through
    about 1.4 times as much as one with two.
    """
    import torch

    return Local(workers=2) if torch.get_num_threads() > 1 and not torch.cuda.is_available() else None
