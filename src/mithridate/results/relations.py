"""Which cells of results.json belong together: who was defended, how that is called, what each is compared with.

Plain Python on plain dicts. Nothing here looks at a number.
"""

from __future__ import annotations

import contextlib
import json
from functools import cache
from typing import Any

from mithridate.errors import InputError
from mithridate.methods.index import facts

Cell = dict[str, Any]

STAGES = (
    ("alignment", "alignment stage"),
    ("finetuning", "fine-tuning stage"),
    ("repair", "after fine-tuning"),
)


def known(rate: dict[str, Any] | None) -> dict[str, Any] | None:
    """The rate {"value", "low", "high", "n"}, or None where it was not measured (null, or empty)."""
    return rate if rate and rate.get("value") is not None else None


def title(name: str) -> str:
    return name[:1].upper() + name[1:]


def method_title(name: str) -> str:
    """A method as its authors write it."""
    found = method_facts(name) if name not in ("none", "sft") else None
    return found["class"] if found and found["class"].lower() == name else title(name)


@cache
def method_facts(name: str) -> dict[str, Any] | None:
    """What a defense or repair states about itself, by its name; None for one that is not installed here."""
    for kind in ("defenses", "repairs"):
        with contextlib.suppress(KeyError, InputError):
            return facts(kind, name)
    return None


def defenses_of(cell: Cell) -> list[tuple[str, str]]:
    """The defenses at work in a cell, each with its stage in words."""
    return [
        (method_title(name), stage)
        for field, stage in STAGES
        for name in cell[field].split("+")
        if name not in ("none", "sft")
    ]


def join(items: list[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _of_method(cell: Cell) -> str:
    """Which of a control's methods it is the control of, where that is known."""
    names = [name for field, _ in STAGES for name in cell[field].split("+")]
    found = [entry["class"] for entry in map(method_facts, names) if entry and cell["control"] in entry["controls"]]
    return f" for {join(found)}" if found else ""


def arm(cell: Cell) -> str:
    """What was done against harmful fine-tuning, in words, without topology, ratio and seed."""
    if cell["control"]:
        return f"{title(cell['control'].replace('-', ' '))} (control{_of_method(cell)})"
    defenses = defenses_of(cell)
    names = join([name for name, _ in defenses]) if defenses else ""
    if cell["finetuning"] == "none":
        if cell["alignment"] == "none" and not names:
            return "The unchanged base model"
        return f"Aligned with {names}, before fine-tuning" if names else "Aligned, before fine-tuning"
    if names:
        stages = join(list(dict.fromkeys(stage for _, stage in defenses)))
        return f"{names} ({stages})"
    return "No defense" if cell["alignment"] == "sft" else "Never aligned, no defense"


def attacked(cell: Cell) -> bool:
    """Fine-tuned on rows some of which are harmful."""
    return cell["finetuning"] != "none" and bool(cell["harmful_ratio"])


def undefended(cell: Cell) -> bool:
    """Fine-tuned, with no defense at any stage: what every defense is compared with."""
    return cell["finetuning"] != "none" and not defenses_of(cell) and not cell["control"]


def defended(cell: Cell) -> bool:
    """Fine-tuned with at least one defense, and no control."""
    return cell["finetuning"] != "none" and bool(defenses_of(cell)) and not cell["control"]


def family(cell: Cell) -> str:
    """The comparisons with the undefended run that a cell's belongs to, and that Holm corrects together: the question
    is asked of defenses. Controls, and models before fine-tuning, are none and have a family each."""
    return "controls" if cell["control"] else "before fine-tuning" if cell["finetuning"] == "none" else "defenses"


def attack_of(cell: Cell) -> str:
    """What was done to the undefended model, the seed apart: attacks that differ in nothing else are one attack."""
    return json.dumps([cell["topology"], cell["harmful_ratio"], cell.get("attack")], sort_keys=True, default=str)


def place(cell: Cell) -> tuple[Any, ...]:
    """What cells share that differ in the defense alone."""
    return cell["topology"], cell["harmful_ratio"], cell["seed"]


def reference_of(cell: Cell, cells: list[Cell]) -> Cell | None:
    """The undefended run of the same topology, harmful ratio and seed (the one the paired test names, if any)."""
    against = (cell.get("paired") or {}).get("against")
    same = [
        other
        for other in cells
        if undefended(other)
        and other is not cell
        and place(other) == place(cell)
        and (other["alignment"].split("+")[0] == "none") == (cell["alignment"].split("+")[0] == "none")
    ]
    named = [other for other in same if other["id"] == against]
    return (named or [other for other in same if other["attack"] == cell["attack"]] or same or [None])[0]


def before_of(cell: Cell, cells: list[Cell]) -> Cell | None:
    """The aligned model that the cell was fine-tuned from, if it was evaluated. Merging the alignment adapter
    does not change the model, so one and two adapters share theirs."""
    found = [
        other
        for other in cells
        if other["finetuning"] == other["repair"] == "none"
        and not other["control"]
        and (other["alignment"], other["seed"]) == (cell["alignment"], cell["seed"])
        and (other["topology"] == "full") == (cell["topology"] == "full")
    ]
    return next((other for other in found if other["topology"] == cell["topology"]), (found or [None])[0])


def control_of(cell: Cell, cells: list[Cell]) -> Cell | None:
    """The control of a defended cell: everything the same but what the control takes away. Where there are several,
    the one with the nearest accuracy (a control is compared at matched accuracy)."""
    methods = ("alignment", "finetuning", "repair")
    found = [
        other
        for other in cells
        if other["control"] and place(other) == place(cell) and all(other[field] == cell[field] for field in methods)
    ]
    accuracy = known(cell["accuracy"])

    def distance(other: Cell) -> float:
        theirs = known(other["accuracy"])
        return abs(theirs["value"] - accuracy["value"]) if theirs and accuracy else 1.0

    return min(found, key=distance, default=None)
