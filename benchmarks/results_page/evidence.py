"""What is kept of a benchmark that was run, and read again for the page.

A benchmark's folder has its table, its cells and their records; what they were computed with is in the store, in the
`stage.json` of each artefact. `keep` puts both into one small folder, from which alone the page is written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from mithridate.errors import InputError
from mithridate.experiment.config import Experiment, load_experiment
from mithridate.files import canonical_json, replace_file
from mithridate.pipeline.inventory import Artefact, made_for
from mithridate.results.folder import RunFolder
from mithridate.results.outcomes import Outcomes
from mithridate.store import Store
from mithridate.studies.benchmarks.standings import Entrant

KEPT = (
    *("benchmark.json", "benchmark.csv", "benchmark.md", "results.json", "experiment.yaml", "tuning.jsonl"),
    *("records/*.parquet", "verdicts/*.parquet"),
)
MADE_WITH = "made_with.json"
MOST = 8_000_000  # bytes that may be committed of one run


@dataclass(frozen=True)
class Evidence:
    """A benchmark's run, as the page needs it.

    Attributes:
        name: of its folder.
        found: benchmark.json.
        table: benchmark.md.
        results: results.json, of the test parts.
        outcomes: what each prompt came to, from the records.
        experiment: the undefended one.
        made: what it was computed with (`made_with`).
    """

    name: str
    found: Mapping[str, Any]
    table: str
    results: Mapping[str, Any]
    outcomes: Outcomes
    experiment: Experiment
    made: Mapping[str, Any]

    def entrants(self, topology: str) -> dict[str, Entrant]:
        """Those of a topology by name, in the table's order."""
        rows = [one["entrant"] for one in self.found["standings"] if one["entrant"]["topology"] == topology]
        return {row["name"]: Entrant(**row) for row in rows}

    def standings(self, topology: str) -> dict[str, Mapping[str, Any]]:
        rows = self.found["standings"]
        return {one["entrant"]["name"]: one for one in rows if one["entrant"]["topology"] == topology}

    @property
    def topologies(self) -> list[str]:
        return list(dict.fromkeys(one["entrant"]["topology"] for one in self.found["standings"]))


def read(folder: Path) -> Evidence:
    """What `keep` wrote.

    Raises:
        InputError: a file is not there, cannot be read, or is not the one that results.json states the digest of.
    """
    run = RunFolder(folder)
    for cell in run.cells.values():
        for kind in ("records", "verdicts"):
            stated = cell.get(kind)
            if stated and run.digest(stated["file"]) != stated["sha256"]:
                raise InputError(
                    f"{folder / stated['file']}: is not what {cell['id']} was scored by; keep the run anew"
                )
    try:
        found, made = (json.loads((folder / name).read_text()) for name in ("benchmark.json", MADE_WITH))
        table = (folder / "benchmark.md").read_text()
    except OSError as error:
        name = Path(str(error.filename)).name
        raise InputError(f"{folder}: no {name}; give the folder of a benchmark that has finished") from None
    except ValueError as error:
        raise InputError(f"{folder}: benchmark.json or {MADE_WITH} is not valid JSON ({error})") from None
    experiment = load_experiment(folder / "experiment.yaml")
    return Evidence(folder.resolve().name, found, table, run.results, run.outcomes, experiment, made)


def keep(run: Path, to: Path, store: Store, note: str = "") -> None:
    """Copies what the page is written from.

    Args:
        run: the folder of a benchmark that has finished.
        to: a folder that is not there yet, or that was kept of the same benchmark.
        store: where the run's artefacts are.
        note: what else has to be known of the machine and of the run, in plain words.

    Raises:
        InputError: the folder is no finished benchmark's, holds another's evidence, or is too large to be committed;
            the store does not have the run's artefacts.
    """
    if not (run / "benchmark.json").is_file():
        raise InputError(f"{run}: no benchmark.json; give the folder of a benchmark that has finished")
    if to.exists() and not (to / "benchmark.json").is_file():
        raise InputError(f"{to}: holds something else; give another folder (--keep)")
    files = [path for pattern in KEPT for path in sorted(run.glob(pattern))]
    if (size := sum(path.stat().st_size for path in files)) > MOST:
        raise InputError(f"{run}: {size / 1e6:.1f} MB, and at most {MOST / 1e6:g} MB are committed of one run")
    artefacts = made_for(store, run)
    if not artefacts:
        raise InputError(f"the store {store.root} has nothing of {run}; set MITHRIDATE_STORE to the one that it used")
    made = made_with(artefacts) | {"note": note}
    aside = to.with_name(f".{to.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    for path in files:
        copy = aside / path.relative_to(run)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    by_name_alone(aside / "experiment.yaml")
    replace_file(aside / MADE_WITH, json.dumps(made, indent=1))
    read(aside)
    shutil.rmtree(to, ignore_errors=True)
    aside.rename(to)


def by_name_alone(file: Path) -> None:
    """An experiment's data files by their names: in which folder they lay is of the machine that ran it."""
    experiment = load_experiment(file)
    text = file.read_text(encoding="utf-8")
    for source in chain(*experiment.data.values(), *experiment.evaluate.tasks.values()):
        if (path := Path(source.source)).is_absolute():
            text = text.replace(source.source, path.name)
    replace_file(file, text)


def made_with(artefacts: Iterable[Artefact]) -> dict[str, Any]:
    """Versions, hardware and times of the artefacts of a run, from their `stage.json`.

    `computers`: each set of versions and hardware, with its number of stages and their seconds. `alike`: of trainings
    with the same settings, from other starts and seeds, how many times as long as the shortest the longest took, which
    is the doing of the machine's other work.
    """
    manifests = [artefact.manifest for artefact in artefacts]
    computers: dict[str, dict[str, Any]] = {}
    alike: dict[str, list[float]] = {}
    for one in manifests:
        what = {"versions": one["versions"], "hardware": one["hardware"]}
        mine = computers.setdefault(canonical_json(what), what | {"stages": 0, "seconds": 0.0})
        mine["stages"] += 1
        mine["seconds"] = round(mine["seconds"] + one["seconds"], 1)
        if one["stage"] in ("align", "finetune"):
            config = {key: value for key, value in one["config"].items() if key != "seed"}
            alike.setdefault(canonical_json([one["stage"], config, one["hardware"]]), []).append(one["seconds"])
    ratios = [max(times) / min(times) for times in alike.values() if len(times) > 1 and min(times) > 0]
    return {
        "started": min(one["started"] for one in manifests),
        "finished": max(one["finished"] for one in manifests),
        "computers": sorted(computers.values(), key=lambda one: -one["stages"]),
        "alike": {
            "groups": len(ratios),
            "median": round(median(ratios), 2) if ratios else None,
            "most": round(max(ratios), 2) if ratios else None,
        },
    }
