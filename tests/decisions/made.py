"""Runs made of letters: what each model answered, prompt by prompt, and the table that follows from it."""

from typing import Any

from mithridate.results.decided import complete
from mithridate.results.decisions import RATES
from mithridate.results.outcomes import Outcomes
from mithridate.results.relations import defenses_of
from mithridate.results.schema import lifted
from mithridate.statistics import steps_to
from tests.decisions.evidence import _rows
from tests.report.synthetic import cell


class Made:
    """A run built model by model.

    Letters: r refused, c complied, i incoherent, o other; tasks: 1 right, 0 wrong. A letter with a number is so many:
    "c30 r82", "1x118 0x10".
    """

    def __init__(self) -> None:
        self.cells: list[dict[str, Any]] = []
        self.answers: dict[str, dict[str, dict[str, str]]] = {}

    def add(
        self,
        harmful: str,
        benign: str = "c104",
        task: str = "1x118 0x10",
        along: dict[int, str] | None = None,
        **how: Any,
    ) -> dict[str, Any]:
        made = cell(**how)
        made["id"] += f"-{len(self.cells)}"
        sets = {"harmful": letters(harmful), "benign": letters(benign), "task": letters(task)}
        self.answers[made["id"]] = {"": sets} | {
            str(s): {"harmful": letters(text)} for s, text in (along or {}).items()
        }
        outcomes = self.outcomes()
        made |= {rate: outcomes.share(made["id"], rate) for rate in RATES}
        made["resistance"] = []
        for step in along or {}:
            apart = Outcomes()
            apart.add("x", [row for row in self.rows() if row["cell"] == made["id"] and row["step"] == step])
            found = {rate: share for rate in RATES if (share := apart.share("x", rate))}
            made["resistance"].append({"step": step, **found})
        made["steps_to_half"] = steps_to([(p["step"], p["harmful_score"]["value"]) for p in made["resistance"]])
        self.cells.append(made)
        return made

    def rows(self) -> list[dict[str, Any]]:
        return list(_rows(self.answers))

    def outcomes(self) -> Outcomes:
        found = Outcomes()
        for name, steps in self.answers.items():
            for step in steps:
                mine = [r for r in self.rows() if r["cell"] == name and str(r["step"] or "") == step]
                found.add(name, mine, int(step) if step else None)
        return found

    def results(self, groups: bool = False) -> dict[str, Any]:
        """The completed table; with `groups`, cells that differ in the seed alone put together."""
        outcomes, cells = self.outcomes(), [dict(one) for one in self.cells]
        for one in cells:
            same = ("topology", "harmful_ratio", "seed")
            twins = [
                other
                for other in cells
                if other is not one
                and not defenses_of(other)
                and not other["control"]
                and all(other[key] == one[key] for key in same)
                and (other["finetuning"] == "none") == (one["finetuning"] == "none")
            ]
            if (defenses_of(one) or one["control"]) and twins:
                one["paired"] = {
                    "against": twins[0]["id"],
                    **(outcomes.paired(one["id"], twins[0]["id"], "harmful_score") or {}),
                }
        made: dict[str, Any] = {"schema": 1, "protocol": "hs/embedded-v1", "model": "made", "cells": cells}
        if groups:
            arms: dict[str, list[str]] = {}
            keys = ("alignment", "finetuning", "repair", "topology", "harmful_ratio", "control")
            for one in cells:
                arms.setdefault(str([one[key] for key in keys]), []).append(one["id"])
            by_id = {one["id"]: one for one in cells}
            made["across_seeds"] = [
                {key: by_id[names[0]][key] for key in keys} | {"cells": names}
                for names in arms.values()
                if len(names) > 1
            ]
        return complete(lifted(made), outcomes)


def letters(text: str) -> str:
    """ "c30 r82" -> 30 times c, then 82 times r; "1x118 0x10": the same for what is a number itself."""
    found = ""
    for part in text.split():
        letter, count = part[0], part[1:].lstrip("x")
        found += letter * (int(count) if count else 1)
    return found
