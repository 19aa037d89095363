"""Which cells of results.json belong together: who was defended, how that is called, what each is compared with.

Plain Python on plain dicts of schema 2. `relate` says it once, and results.json has it; the others read it there.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
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
    """Fine-tuned on rows some of which are harmful, or of which nobody knows."""
    return cell["finetuning"] != "none" and cell["harmful_ratio"] != 0


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
    done = [cell["topology"], cell["harmful_ratio"], cell.get("attack"), precision(cell)]
    return json.dumps(done, sort_keys=True, default=str)


def precision(cell: Cell) -> str | None:
    """In what precision a model was asked, where a table has several."""
    return (cell.get("swept") or {}).get("evaluate.precision")


def place(cell: Cell) -> tuple[Any, ...]:
    """What cells share that differ in the defense alone."""
    return cell["topology"], cell["harmful_ratio"], cell["seed"]


def measured(cell: Cell | None, name: str) -> dict[str, Any] | None:
    """A cell's rate (or that of a step of its attack, or of a group of seeds); None where it was not measured."""
    return known(cell["rates"].get(name)) if cell else None


# --- relations ------------------------------------------------------------------------------------------------------


def related(cells: Iterable[Cell], cell: Cell | None, relation: str) -> Cell | None:
    """The cell that `reference`, `aligned` or `nearest_control` names, if it is among these (or, of cells of several
    seeds together, one that it stands for)."""
    name = cell and cell.get(relation)
    if name is None:
        return None
    return next((other for other in cells if other["id"] == name or name in other.get("cells", ())), None)


def role(cell: Cell) -> str:
    """What a model is in its table: base, aligned, undefended, defended, repaired or control."""
    if cell["control"]:
        return "control"
    if cell["repair"] != "none":
        return "repaired"
    if cell["finetuning"] == "none":
        return "base" if cell["alignment"] == "none" else "aligned"
    return "defended" if defenses_of(cell) else "undefended"


def relate(cells: Sequence[Cell]) -> list[Cell]:
    """The cells with `role`, and with the ids of those that they are to be read with:

    - `reference`: of a fine-tuned cell the undefended one of the same topology, attack and seed;
    - `aligned`: of a fine-tuned cell the model before fine-tuning that it started from;
    - `nearest_control`: of a defended cell its control. Where there are several, the one with the nearest accuracy (a
      control is compared at matched accuracy);
    - `control_of`: of a control the defended cell nearest to it in the same way, and the control's name.

    What a cell says already stays: a run knows by its stages what belongs together.
    """
    before: dict[tuple[Any, ...], list[Cell]] = {}
    places: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        if cell["finetuning"] == cell["repair"] == "none":
            before.setdefault((cell["alignment"], cell["seed"]), []).append(cell)
        else:
            places.setdefault((place(cell), precision(cell)), []).append(cell)

    def name(found: Cell | None) -> str | None:
        return found["id"] if found else None

    made = []
    for cell in cells:
        beside = places.get((place(cell), precision(cell)), []) if cell["finetuning"] != "none" else []
        mine = {
            "role": role(cell),
            "reference": name(_reference(cell, beside)),
            "aligned": name(_before(cell, before.get((cell["alignment"], cell["seed"]), []))),
            "control_of": None,
            "nearest_control": None,
        }
        if cell["control"]:
            if near := _nearest(cell, [one for one in beside if defended(one)]):
                mine["control_of"] = {"id": near["id"], "name": cell["control"]}
        elif defended(cell):
            mine["nearest_control"] = name(_nearest(cell, [one for one in beside if one["control"]]))
        made.append(mine | cell)
    return made


def _reference(cell: Cell, beside: Sequence[Cell]) -> Cell | None:
    """The one that the paired test names, if any."""
    if undefended(cell):
        return None
    against = (cell.get("paired") or {}).get("against")
    never = cell["alignment"].split("+")[0] == "none"
    same = [one for one in beside if undefended(one) and (one["alignment"] == "none") == never]
    named = [other for other in same if other["id"] == against]
    return next(iter(named or [other for other in same if other["attack"] == cell["attack"]]), None)


def _before(cell: Cell, aligned: Sequence[Cell]) -> Cell | None:
    """Merging the alignment adapter does not change the model, so one and two adapters share theirs."""
    if cell["finetuning"] == "none":
        return None
    found = [
        other
        for other in aligned
        if not other["control"] and (other["topology"] == "full") == (cell["topology"] == "full")
    ]
    return next((other for other in found if other["topology"] == cell["topology"]), next(iter(found), None))


def _nearest(cell: Cell, others: Iterable[Cell]) -> Cell | None:
    """Of the cells to which everything else was done alike, the attack too, the one with the nearest accuracy."""
    alike = ("attack", *(field for field, _ in STAGES))
    found = [other for other in others if all(other.get(field) == cell.get(field) for field in alike)]
    accuracy = measured(cell, "accuracy")

    def distance(other: Cell) -> float:
        theirs = measured(other, "accuracy")
        return abs(theirs["value"] - accuracy["value"]) if theirs and accuracy else 1.0

    return min(found, key=distance, default=None)
