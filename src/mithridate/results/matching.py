"""Finds the cells of a run's table that belong to an experiment which was run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mithridate.errors import InputError, MithridateError
from mithridate.experiment.config import Experiment, canonical, load_experiment, resolve
from mithridate.experiment.methods import repair_of
from mithridate.store import canonical_json


class Table:
    """A run's cells by the experiments that they come from.

    Args:
        folder: what `run_cells` wrote.

    Raises:
        InputError: it is not a run's folder.
    """

    def __init__(self, folder: Path):
        try:
            self.results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            self.recipes: dict[str, Any] = json.loads((folder / "cells.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{folder}: not the folder of a finished run; give what `run` wrote") from error
        self.folder = folder
        self._rows = {row["id"]: row for row in self.results["cells"]}
        self._ids: dict[str, list[str]] = {}
        for name, recipe in self.recipes.items():
            self._ids.setdefault(canonical_json(recipe["experiment"]), []).append(name)

    def final(self, experiment: Experiment) -> dict[str, Any]:
        """The cell of the model that an experiment ends in, as in results.json.

        Args:
            experiment: as `run_cells` was given it.

        Raises:
            MithridateError: the run has none.
        """
        base = next((Path(recipe["base"]) for recipe in self.recipes.values()), Path())
        experiment = resolve(experiment, base)
        ids = self._ids.get(canonical_json(canonical(experiment)), [])
        repaired = repair_of(experiment, post_alignment=False)
        last = "repair" if repaired else "finetune" if experiment.finetune else "align"
        found = [name for name in ids if self.recipes[name]["upto"] == last]
        if not found:
            raise MithridateError(f"{self.folder}: the run has no cell for one of its experiments; run it again")
        return self._rows[found[-1]]

    def experiment(self, cell: str | None) -> tuple[Experiment, Path]:
        """The experiment that a cell comes from, and the folder that its paths are relative to.

        Args:
            cell: its id; None for the one defended model that the run ends in, or the one that it ends in.

        Raises:
            InputError: no such cell, or several that may be meant.
        """
        if cell is None:
            ends = [row for row in self._rows.values() if row["final"] and not row["control"]]
            stages = ("alignment", "finetuning", "repair")
            guarded = [row for row in ends if any(row[stage] not in ("none", "sft") for stage in stages)]
            if len(names := [row["id"] for row in guarded or ends]) != 1:
                raise InputError(f"{self.folder}: which model? Give --cell, one of: {', '.join(names)}")
            [cell] = names
        if cell not in self.recipes:
            raise InputError(f"{self.folder} has no cell {cell!r}. Its cells: {', '.join(self.recipes)}.")
        recipe = self.recipes[cell]
        return load_experiment(recipe["experiment"]), Path(recipe["base"])
