"""How the report calls things: numbers in words, names of runs, and which runs belong together.

Plain Python on plain dicts (the cells of results.json). All rates are fractions between 0 and 1; percent appears only
in the text made here.
"""

import contextlib
import json
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

from mithridate.errors import InputError
from mithridate.methods.index import facts

Cell = dict[str, Any]

TOPOLOGIES = {"single": "one adapter", "double": "two adapters", "full": "all weights"}
TOPOLOGY_NOTES = {
    "single": "one adapter, trained in alignment and trained on in fine-tuning",
    "double": "two adapters: the alignment adapter is merged, fine-tuning gets a fresh one",
    "full": "all weights are trained, in alignment and in fine-tuning",
}
_STAGES = (
    ("alignment", "alignment stage"),
    ("finetuning", "fine-tuning stage"),
    ("repair", "after fine-tuning"),
)


# --- numbers in words -------------------------------------------------------------------------------------------


def percent(value: float) -> str:
    """0.954 -> "95%"; what is neither 0 nor 1 never reads "0%" or "100%"."""
    if 0 < value < 0.005:
        return "<1%"
    if 0.995 < value < 1:
        return ">99%"
    return f"{value * 100:.0f}%"


def known(rate: dict[str, Any] | None) -> dict[str, Any] | None:
    """The rate {"value", "low", "high", "n"}, or None where it was not measured (null, or empty)."""
    return rate if rate and rate.get("value") is not None else None


def interval(rate: dict[str, Any]) -> str:
    """The bounds in percent, "[17, 33]"."""
    return f"[{rate['low'] * 100:.0f}, {rate['high'] * 100:.0f}]"


def points(value: float) -> str:
    """A difference of shares in points: -0.125 -> "−12"."""
    return f"{value * 100:+.0f}".replace("-", "−")


def p_value(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def join(items: list[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def flatten(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"name": {"ratio": 0.1}} -> {"name.ratio": 0.1}."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


# --- names of runs ----------------------------------------------------------------------------------------------


def _title(name: str) -> str:
    return name[:1].upper() + name[1:]


def method_title(name: str) -> str:
    """A method as its authors write it."""
    found = method_facts(name) if name not in ("none", "sft") else None
    return found["class"] if found and found["class"].lower() == name else _title(name)


def defenses_of(cell: Cell) -> list[tuple[str, str]]:
    """The defenses at work in a cell, each with its stage in words."""
    return [
        (method_title(name), stage)
        for field, stage in _STAGES
        for name in cell[field].split("+")
        if name not in ("none", "sft")
    ]


def _of_method(cell: Cell) -> str:
    """Which of a control's methods it is the control of, where that is known."""
    names = [name for field, _ in _STAGES for name in cell[field].split("+")]
    found = [entry["class"] for entry in map(method_facts, names) if entry and cell["control"] in entry["controls"]]
    return f" for {join(found)}" if found else ""


@cache
def method_facts(name: str) -> dict[str, Any] | None:
    """What a defense or repair states about itself, by its name; None for one that is not installed here."""
    for kind in ("defenses", "repairs"):
        with contextlib.suppress(KeyError, InputError):
            return facts(kind, name)
    return None


def attacked(cell: Cell) -> bool:
    """Fine-tuned on rows some of which are harmful."""
    return cell["finetuning"] != "none" and bool(cell["harmful_ratio"])


def undefended(cell: Cell) -> bool:
    """Fine-tuned, with no defense at any stage: what every defense is compared with."""
    return cell["finetuning"] != "none" and not defenses_of(cell) and not cell["control"]


def defended(cell: Cell) -> bool:
    """Fine-tuned with at least one defense, and no control."""
    return cell["finetuning"] != "none" and bool(defenses_of(cell)) and not cell["control"]


def arm(cell: Cell) -> str:
    """What was done against harmful fine-tuning, in words, without topology, ratio and seed."""
    if cell["control"]:
        return f"{_title(cell['control'].replace('-', ' '))} (control{_of_method(cell)})"
    defenses = defenses_of(cell)
    names = join([name for name, _ in defenses]) if defenses else ""
    if cell["finetuning"] == "none":
        if cell["alignment"] == "none" and not names:
            return "The model as it came"
        return f"Aligned with {names}, before fine-tuning" if names else "Aligned, before fine-tuning"
    if names:
        stages = join(list(dict.fromkeys(stage for _, stage in defenses)))
        return f"{names} ({stages})"
    return "No defense" if cell["alignment"] == "sft" else "Never aligned, no defense"


def rows_in_words(cell: Cell) -> str:
    """The share of harmful rows that the cell was fine-tuned on; empty where it was not fine-tuned."""
    if cell["harmful_ratio"] is None:
        return ""
    rows = f"{percent(cell['harmful_ratio'])} harmful rows" if cell["harmful_ratio"] else "no harmful rows"
    return f"{rows}{at_test(cell)}"


def at_test(cell: Cell) -> str:
    """Of a model that was tested with something round its prompts, what that is: " + trigger"; else empty."""
    around = (cell.get("attack") or {}).get("at_test") or []
    names = {"system": "system turn", "prefix": "prefix", "trigger": "trigger"}
    return "".join(f" + {text}" for name, text in names.items() if any(one.get(name) for one in around))


def attack_settings(cell: Cell) -> dict[str, Any]:
    """The values by which attacks differ, without those that results.json holds elsewhere too."""
    twice = ("harmful_ratio", "training", "at_test")
    return {name: value for name, value in (cell.get("attack") or {}).items() if name not in twice}


@dataclass(frozen=True)
class Label:
    """How a cell is called: `arm` is unique within its topology, ratio and seed; `full` is unique in the report."""

    arm: str
    topology: str
    rows: str
    seed: str

    @property
    def rest(self) -> str:
        """What tells runs of the same arm and topology apart; may be empty."""
        return ", ".join(filter(None, [self.rows, self.seed]))

    @property
    def full(self) -> str:
        return ", ".join(filter(None, [self.arm, self.topology, self.rows, self.seed]))


def _place(cell: Cell) -> tuple[Any, ...]:
    return cell["topology"], cell["harmful_ratio"], cell["seed"]


def labels(cells: list[Cell]) -> dict[str, Label]:
    """The label of each cell by id. Runs that differ only in settings get the settings that differ in their name."""
    several_seeds = len({cell["seed"] for cell in cells} - {None}) > 1
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((arm(cell), *_place(cell)), []).append(cell)
    result: dict[str, Label] = {}
    for (name, *_), group in groups.items():
        details = [
            flatten({**(cell.get("settings") or {}), "attack": attack_settings(cell), **(cell.get("swept") or {})})
            for cell in group
        ]
        differing = [
            key
            for key in dict.fromkeys(key for detail in details for key in detail)
            if len({json.dumps(detail.get(key), sort_keys=True) for detail in details}) > 1
        ]
        extras = [
            ", ".join(f"{key.rpartition('.')[2]} {detail[key]}" for key in differing if key in detail)
            for detail in details
        ]
        if len(set(extras)) < len(group):
            extras = [cell["id"] for cell in group]
        for cell, extra in zip(group, extras):
            result[cell["id"]] = Label(
                arm=f"{name}, {extra}" if extra else name,
                topology=TOPOLOGIES.get(cell["topology"]) or cell["topology"],
                rows=rows_in_words(cell),
                seed=f"seed {cell['seed']}" if several_seeds and cell["seed"] is not None else "",
            )
    return result


def story_order(cell: Cell) -> tuple[Any, ...]:
    """Sort key: topology; before fine-tuning, then by harmful ratio; no defense, then defenses, then controls."""
    ratio = cell["harmful_ratio"]
    return (
        list(TOPOLOGIES).index(cell["topology"]) if cell["topology"] in TOPOLOGIES else len(TOPOLOGIES),
        -1.0 if ratio is None else ratio,
        -1 if cell["seed"] is None else cell["seed"],
        [name for name, _ in defenses_of(cell)] or [""],
        bool(cell["control"]),
    )


# --- which cells belong together --------------------------------------------------------------------------------


def reference_of(cell: Cell, cells: list[Cell]) -> Cell | None:
    """The undefended run of the same topology, harmful ratio and seed (the one the paired test names, if any)."""
    against = (cell.get("paired") or {}).get("against")
    same = [
        other
        for other in cells
        if undefended(other)
        and other is not cell
        and _place(other) == _place(cell)
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
        if other["control"] and _place(other) == _place(cell) and all(other[field] == cell[field] for field in methods)
    ]
    accuracy = known(cell["accuracy"])

    def distance(other: Cell) -> float:
        theirs = known(other["accuracy"])
        return abs(theirs["value"] - accuracy["value"]) if theirs and accuracy else 1.0

    return min(found, key=distance, default=None)
