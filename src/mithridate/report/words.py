"""How the report calls things: names of runs, in words. Numbers as texts are in `statistics.text`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mithridate.results.relations import Cell, arm, defenses_of, place
from mithridate.statistics.text import percent

TOPOLOGIES = {"single": "one adapter", "double": "two adapters", "full": "all weights"}
TOPOLOGY_NOTES = {
    "single": "one adapter, trained in alignment and trained on in fine-tuning",
    "double": "two adapters: the alignment adapter is merged, fine-tuning gets a fresh one",
    "full": "all weights are trained, in alignment and in fine-tuning",
}


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


def rows_in_words(cell: Cell) -> str:
    """The share of its attack's rows that the cell was fine-tuned on; empty where it was not fine-tuned. Rows of
    another kind than `harmful`, which may ask for nothing harmful, have its name; so has another training."""
    if cell["finetuning"] == "none":
        return ""
    if cell["harmful_ratio"] is None:
        return ", ".join(["a user's own rows", *trained_otherwise(cell)])
    rows = f"{percent(cell['harmful_ratio'])} {kind_of(cell)} rows" if cell["harmful_ratio"] else "no harmful rows"
    return ", ".join([f"{rows}{at_test(cell)}", *trained_otherwise(cell)])


def kind_of(cell: Cell) -> str:
    """The kind of its attack's rows."""
    return (cell.get("attack") or {}).get("kind", "harmful")


def trained_otherwise(cell: Cell) -> list[str]:
    """What of its fine-tune is not as the experiment has it: how long and at which rate, the adapter, what stays as it
    was; and, where the run varies them, the optimizer and the epochs."""
    attack, swept = cell.get("attack") or {}, cell.get("swept") or {}
    adapter, found = attack.get("adapter"), []
    if attack.get("kind") == "scheduled":
        found += [f"leap {attack['leap']:g}"] if attack.get("leap") else []
        found += [f"{name} {attack[name]:g}" for name in ("length", "rate") if attack.get(name, 1) != 1]
    if isinstance(adapter, dict):
        layers = adapter.get("target_modules")  # not given: PEFT's own of the model
        on = " ".join(name.removesuffix("_proj") for name in layers) if isinstance(layers, list) else layers
        rank = f"rank {adapter['r']}" if "r" in adapter else "another adapter"
        found.append(f"{rank} on {on}" if on else rank)
    elif adapter:
        found.append("all weights")
    found += [f"{names.strip('.*')} frozen" for names in attack.get("frozen") or []]
    optimizer, epochs = (swept.get(f"finetune.training.{name}") for name in ("optim", "num_train_epochs"))
    return found + ([str(optimizer)] if optimizer else []) + ([f"{epochs:g} epochs"] if epochs else [])


def attack_of_kind(cell: Cell) -> tuple[str, ...]:
    """Kind of its attack's rows and how it trains on them, whatever their share."""
    return kind_of(cell), *trained_otherwise(cell)


def rows_of(cell: Cell) -> tuple[float | None, str]:
    """Share and kind of its attack's rows, and how it trains on them: what cells have in common that are shown side by
    side."""
    kind = "" if cell["harmful_ratio"] == 0 or cell["finetuning"] == "none" else kind_of(cell)
    return cell["harmful_ratio"], ", ".join([kind, *trained_otherwise(cell)])


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
    """How a cell is called: `arm` is unique within its topology, rows and seed; `full` is unique in the report."""

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


def labels(cells: list[Cell]) -> dict[str, Label]:
    """The label of each cell by id. Runs that differ only in settings get the settings that differ in their name."""
    several_seeds = len({cell["seed"] for cell in cells} - {None}) > 1
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((arm(cell), rows_in_words(cell), *place(cell)), []).append(cell)
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


def as_they_are(cells: Sequence[Cell]) -> bool:
    """Whether a run trained nothing, and measures models as they are."""
    return all(cell["alignment"] == cell["finetuning"] == "none" for cell in cells)


def story_order(cell: Cell) -> tuple[Any, ...]:
    """Sort key: topology; before fine-tuning, then by the attack's rows; no defense, then defenses, then controls."""
    ratio, kind = rows_of(cell)
    return (
        list(TOPOLOGIES).index(cell["topology"]) if cell["topology"] in TOPOLOGIES else len(TOPOLOGIES),
        -1.0 if ratio is None else ratio,
        kind != "harmful",
        kind,
        -1 if cell["seed"] is None else cell["seed"],
        [name for name, _ in defenses_of(cell)] or [""],
        bool(cell["control"]),
    )
