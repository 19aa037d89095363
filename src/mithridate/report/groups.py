"""Cells put together: the seeds of one run into one point, the fields that a sweep went over, the Pareto front, the
points of a line."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from mithridate.evaluation import RATES
from mithridate.report.words import Label, attack_settings, flatten, story_order
from mithridate.results.relations import Cell, arm, attacked, defended, defenses_of, known, measured, related


def over_seeds(results: dict[str, Any]) -> list[Cell]:
    """The cells of results.json in story order, those of several seeds as one cell with `seed` None.

    Its rates are those of `across_seeds`, with their intervals for other seeds and prompts; `cells` holds the ids that
    it stands for, `across` the whole entry. What there is no interval for is empty, as if it was not measured. Groups
    that have no interval for their harmful score are left as single cells.

    Args:
        results: what results.json holds, as `decided.complete` leaves it.
    """
    by_id = {cell["id"]: cell for cell in results["cells"]}
    of_cell = {name: group for group in results.get("across_seeds") or () for name in group["cells"]}
    points: list[Cell] = []
    for name, cell in by_id.items():
        group = of_cell.get(name)
        if group is None or (group["rates"]["harmful_score"] or {}).get("low") is None:
            points.append(cell | {"cells": [name], "across": None})
        elif name == group["cells"][0]:
            points.append(_together(cell, group, by_id))
    return sorted(points, key=story_order)


def _together(cell: Cell, group: dict[str, Any], by_id: dict[str, Cell]) -> Cell:
    def rate(found: dict[str, Any] | None) -> dict[str, Any]:
        if not found or None in (found["value"], found["low"]):
            return {}
        made = {key: found[key] for key in ("value", "low", "high", "seeds")} | {"n": found["prompts"]}
        if found.get("samples"):
            made |= {"samples": found["samples"]} | {name: rate(found[name]) for name in ("any_of_k", "worst_of_k")}
        return made

    against = (cell.get("paired") or {}).get("against")
    paired = group["paired"] if group["paired"] and group["paired"]["low"] is not None else None
    merged: dict[str, Any] = {"rates": {name: rate(group["rates"].get(name)) for name in RATES}}
    merged |= {"cells": group["cells"], "across": group, "seed": None, "resistance": [], "steps_to_half": None}
    merged["paired"] = paired and {**paired, "against": against}
    merged["decision"] = group.get("decision")
    merged["stages"] = _median_stages([by_id[name] for name in group["cells"]])
    return cell | merged


def _median_stages(cells: list[Cell]) -> list[dict[str, Any]]:
    """Of each stage the median time and memory."""
    found: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        for stage in cell.get("stages") or []:
            found.setdefault(stage["name"], []).append(stage)
    return [
        {
            "name": name,
            **{key: _median(s.get(key) for s in stages) for key in ("seconds", "peak_memory_bytes")},
            "cached": all(stage.get("cached") for stage in stages),
        }
        for name, stages in found.items()
    ]


def _median(values: Iterable[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return median(given) if given else None


# --- costs ------------------------------------------------------------------------------------------------------

TRAINING = ("align", "harden", "unaligned", "attack-rows", "finetune", "repair")


@dataclass(frozen=True)
class ArmCost:
    """What one method costs beside plain fine-tuning with the same topology.

    Attributes:
        cell: one of its cells.
        runs: the cells that the medians are over.
        seconds: median of each stage's time, where measured.
        peak: median of the largest peak of a run's training stages, in bytes.
        plain: the same of the undefended run; None for itself, and where there is none.
    """

    cell: Cell
    runs: int
    seconds: dict[str, float]
    peak: float | None
    plain: "ArmCost | None" = None

    @property
    def total(self) -> float:
        """Seconds of all training and repair; evaluation is not the method's."""
        return sum(self.seconds.get(name, 0.0) for name in TRAINING)

    @property
    def time_ratio(self) -> float | None:
        return self.total / self.plain.total if self.plain and self.plain.total and self.total else None

    @property
    def memory_ratio(self) -> float | None:
        return self.peak / self.plain.peak if self.plain and self.plain.peak and self.peak else None


def costs(cells: list[Cell]) -> list[ArmCost]:
    """One for each method and topology, over all fine-tuned cells, in story order. Controls are not methods."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in sorted(cells, key=story_order):
        if cell["finetuning"] != "none" and not cell["control"] and cell.get("stages"):
            groups.setdefault((arm(cell), cell["topology"]), []).append(cell)
    plain: dict[str, ArmCost] = {}
    found = []
    for (_, topology), group in groups.items():
        names = dict.fromkeys(stage["name"] for cell in group for stage in cell["stages"])
        of_stage = {
            name: _median(s.get("seconds") for c in group for s in c["stages"] if s["name"] == name) for name in names
        }
        peaks = [
            max((s.get("peak_memory_bytes") or 0 for s in cell["stages"] if s["name"] in TRAINING), default=0)
            for cell in group
        ]
        seconds = {name: value for name, value in of_stage.items() if value is not None}
        cost = ArmCost(group[0], len(group), seconds, _median(peak or None for peak in peaks))
        if not defenses_of(group[0]) and group[0]["alignment"] != "none":
            plain[topology] = cost
        found.append(cost)
    return [
        ArmCost(cost.cell, cost.runs, cost.seconds, cost.peak, plain.get(cost.cell["topology"]))
        if defenses_of(cost.cell)
        else cost
        for cost in found
    ]


# --- sweeps -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sweep:
    """Cells of one method and topology that differ in two fields (and, each `Sweep` for itself, in no others)."""

    cells: dict[tuple[Any, Any], Cell]
    x: str
    y: str
    fixed: dict[str, Any]

    def values(self, axis: int) -> list[Any]:
        """The values of the field on the axis (0: x, 1: y), in order."""
        return sorted({key[axis] for key in self.cells}, key=_order)

    def is_map(self) -> bool:
        """Whether it says more than two lists would: variants, each of something else, fill half of it at most."""
        across, down = len(self.values(0)), len(self.values(1))
        return min(across, down) > 1 and 2 * len(self.cells) > across * down


def sweeps(points: list[Cell]) -> list[Sweep]:
    """For each method and topology whose fine-tuned points were swept over two fields or more: a sweep of the last two
    for each combination of the others.

    The fields are the harmful ratio, those of the attack and those of the defense. Of two that always change together
    the first one counts.
    """
    groups: dict[tuple[str, str], list[Cell]] = {}
    for point in points:
        if point["finetuning"] != "none":
            groups.setdefault((arm(point), point["topology"]), []).append(point)
    found = []
    for group in groups.values():
        fields = [_fields(point) for point in group]
        varying = _varying(fields)
        if len(varying) < 2:
            continue
        *others, y, x = varying
        slices: dict[str, Sweep] = {}
        for point, given in zip(group, fields):
            fixed = {name: given.get(name) for name in others}
            sweep = slices.setdefault(_text(fixed), Sweep({}, x, y, fixed))
            sweep.cells.setdefault((given.get(x), given.get(y)), point)
        found += [sweep for sweep in slices.values() if sweep.is_map()]
    return found


def _fields(cell: Cell) -> dict[str, Any]:
    further = {"attack": attack_settings(cell)} | (cell.get("swept") or {}) | (cell.get("settings") or {})
    values = {"harmful_ratio": cell["harmful_ratio"], **flatten(further)}
    return {name: _text(value) if isinstance(value, list) else value for name, value in values.items()}


def _varying(fields: list[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for given in fields for name in given)
    kept: dict[str, list[str]] = {}
    for name in names:
        texts = [_text(given.get(name)) for given in fields]
        pairs = [set(zip(texts, other)) for other in kept.values()]
        together = any(len(pair) == len(set(texts)) == len({b for _, b in pair}) for pair in pairs)
        if len(set(texts)) > 1 and not together:
            kept[name] = texts
    return list(kept)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _order(value: Any) -> tuple[int, Any]:
    number = isinstance(value, int | float)
    return (0, value) if number else (1, _text(value))


# --- the Pareto front -------------------------------------------------------------------------------------------


def front(points: list[Cell]) -> list[Cell]:
    """The points that no other beats: none has a lower harmful score without a lower task accuracy, or the other way
    round. In order of accuracy. Points without both rates, and controls, take no part."""
    able = [p for p in points if measured(p, "harmful_score") and measured(p, "accuracy") and not p["control"]]

    def beaten(one: Cell) -> bool:
        score, accuracy = one["rates"]["harmful_score"]["value"], one["rates"]["accuracy"]["value"]
        return any(
            other["rates"]["harmful_score"]["value"] <= score
            and other["rates"]["accuracy"]["value"] >= accuracy
            and (other["rates"]["harmful_score"]["value"], other["rates"]["accuracy"]["value"]) != (score, accuracy)
            for other in able
        )

    return sorted((p for p in able if not beaten(p)), key=lambda p: p["rates"]["accuracy"]["value"])


# --- lines ------------------------------------------------------------------------------------------------------


def series_of(points: list[Cell], names: dict[str, Label]) -> dict[str, list[Cell]]:
    """The points of each line: those of one method with one choice of settings, and of one seed where seeds are not
    together, in the order of the page."""
    found: dict[str, list[Cell]] = {}
    for point in points:
        label = names[point["id"]]
        found.setdefault(", ".join(filter(None, [label.arm, label.seed])), []).append(point)
    return found


def curve(cell: Cell, cells: list[Cell]) -> list[tuple[int, dict[str, Any]]]:
    """(step, harmful score) from the aligned model over the attack's steps to its end; where the length of the attack
    is not known, without the end."""
    before = related(cells, cell, "aligned")
    points = {point["step"]: point["rates"]["harmful_score"] for point in cell.get("resistance") or []}
    if before:
        points[0] = before["rates"]["harmful_score"]
    if (cell.get("attack") or {}).get("max_steps"):
        points[cell["attack"]["max_steps"]] = cell["rates"]["harmful_score"]
    return [(step, rate) for step, rate in sorted(points.items()) if known(rate)]


def resistance_pairs(cells: list[Cell]) -> list[tuple[Cell, list[Cell]]]:
    """Each attacked defended cell that has a resistance curve, with the cells shown beside it: undefended, control."""
    result = []
    for cell in cells:
        if defended(cell) and attacked(cell) and cell.get("resistance"):
            beside = [related(cells, cell, name) for name in ("reference", "nearest_control")]
            result.append((cell, [other for other in beside if other and other.get("resistance")]))
    return result


def resistance_series(cells: list[Cell], everything: list[Cell], names: dict[str, Label]) -> dict[str, Any]:
    """The curves of several seeds together: {method: (one of its cells, {step: rate})}.

    The rate is the mean over seeds with the lowest and highest seed as its bounds; of a single seed, its own.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(names[cell["id"]].arm, []).append(cell)
    found: dict[str, Any] = {}
    for name, group in groups.items():
        curves = [dict(curve(cell, everything)) for cell in group]
        steps = sorted(set.intersection(*(set(points) for points in curves)))
        found[name] = group[0], {step: _mean([points[step] for points in curves]) for step in steps}
    return found


def _mean(rates: list[dict[str, Any]]) -> dict[str, Any]:
    if len(rates) == 1:
        return rates[0]
    values = [rate["value"] for rate in rates]
    mean = sum(values) / len(values)
    return {"value": mean, "low": min(values), "high": max(values), "seeds": len(values), "n": rates[0]["n"]}
