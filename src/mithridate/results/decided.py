"""A run's table with what its cells say of each other: corrected p-values, decisions, several seeds together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from mithridate.evaluation import RATES as ALL_RATES
from mithridate.results.decisions import TOLD, Test, decision
from mithridate.results.outcomes import Outcomes
from mithridate.results.relations import Cell, attacked, defended, family, measured, undefended
from mithridate.statistics import detectable_paired, holm
from mithridate.statistics.comparisons import difference


def complete(results: Mapping[str, Any], outcomes: Outcomes) -> dict[str, Any]:
    """results.json with what its cells say of each other: corrected p-values, decisions, seeds together.

    - `paired` gets `family`, `comparisons`, `p_holm` and `detectable`;
    - cells get the rates that `outcomes` tells and an older table lacks, and `decision` (None where there is nothing
      to decide: no defense, no attack, a control); attacked ones without a defense `against_aligned`, the difference
      of harmful scores to the model before the attack;
    - groups of `across_seeds` get their rates, `paired`, `control_difference` (minus which cells, and the differences)
      and `decision`, computed anew from `outcomes`, where that has their answers.

    Nothing of `results` is changed. Where an older table's answers are not at hand, differences have the interval of
    two shares taken as independent, and no test.
    """
    cells = [_with_rates(cell, outcomes) for cell in results["cells"]]
    by_id = {cell["id"]: cell for cell in cells}
    pairs = [cell["paired"] for cell in cells if cell.get("paired")]
    _correct([(family(cell), cell["paired"]) for cell in cells if cell.get("paired")])
    for pair in pairs:
        if pair.get("discordant") is not None:
            pair["detectable"] = _detectable(pair["n"], pair["discordant"], pair["comparisons"])

    def compare(cell: Cell, other: Cell, rate: str, step: int | None, *, worst: bool = False) -> Test | None:
        paired = cell.get("paired") or {}
        if worst:
            return _corrected_like(paired, outcomes.at_worst(cell["id"], other["id"], rate))
        if (rate, step) == ("harmful_score", None) and paired.get("against") == other["id"]:
            return paired
        return outcomes.paired(cell["id"], other["id"], rate, step) or _apart(cell, other, rate, step)

    for cell in cells:
        made = decision(cell, *_kin(cell, by_id), compare) if defended(cell) and attacked(cell) else None
        cell["decision"] = made and made.as_json()
        before = by_id.get(cell["aligned"]) if undefended(cell) and attacked(cell) else None
        test = compare(cell, before, "harmful_score", None) if before else None
        cell["against_aligned"] = before and test and {"against": before["id"], **test}
    groups = _groups(results.get("across_seeds") or (), by_id, outcomes)
    return {**results, "cells": cells, **({"across_seeds": groups} if "across_seeds" in results else {})}


_detectable = cache(detectable_paired)  # takes milliseconds, and a table asks the same again and again


def _with_rates(cell: Cell, outcomes: Outcomes) -> Cell:
    lacking = {rate for rate in TOLD if cell["rates"].get(rate) is None}
    found = {rate: share for rate in lacking if (share := outcomes.share(cell["id"], rate))}
    return cell | {"rates": cell["rates"] | found, "paired": cell.get("paired") and dict(cell["paired"])}


def _correct(pairs: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """Adds to each comparison its family, and its p-value as Holm corrects it there."""
    families: dict[str, list[dict[str, Any]]] = {}
    for name, pair in pairs:
        families.setdefault(name, []).append(pair)
    for name, some in families.items():
        tests = sum(pair.get("p_value") is not None for pair in some)
        for pair, adjusted in zip(some, holm([pair.get("p_value") for pair in some]), strict=True):
            pair |= {"family": name, "comparisons": tests, "p_holm": adjusted}


def _corrected_like(paired: Test, worst: Test | None) -> Test | None:
    """The test at worst, with p corrected as often as that of its comparison is."""
    if not worst or worst.get("p_value") is None or not paired.get("p_value") or paired.get("p_holm") is None:
        return worst
    return {**worst, "p_holm": min(1.0, worst["p_value"] * paired["p_holm"] / paired["p_value"])}


def _apart(cell: Cell, other: Cell, rate: str, step: int | None) -> Test | None:
    """The difference of two shares by their intervals alone."""

    def share(one: Cell) -> dict[str, Any] | None:
        if step is None:
            return measured(one, rate)
        return next((measured(point, rate) for point in one.get("resistance") or [] if point["step"] == step), None)

    ours, theirs = share(cell), share(other)
    return difference(ours, theirs) if ours and theirs else None


def _kin(cell: Cell, by_id: Mapping[Any, Cell]) -> tuple[Cell | None, Cell | None, Cell | None]:
    """The undefended run, the model that it was made from, and the control of a cell (`relations.relate`)."""
    reference = by_id.get(cell["reference"])
    before = by_id.get(reference["aligned"]) if reference else None
    return reference, before, by_id.get(cell["nearest_control"])


# --- several seeds ------------------------------------------------------------------------------------------------


def _groups(
    groups: Iterable[Mapping[str, Any]], by_id: Mapping[str, Cell], outcomes: Outcomes
) -> list[dict[str, Any]]:
    made = [_group(group, by_id, outcomes) for group in groups]
    _correct([(family(by_id[one["cells"][0]]), one["paired"]) for one in made if one["paired"]])
    for one in made:
        first = by_id[one["cells"][0]]
        if defended(first) and attacked(first):
            one["decision"] = _over_seeds(one, by_id, outcomes)
    return made


def _group(group: Mapping[str, Any], by_id: Mapping[str, Cell], outcomes: Outcomes) -> dict[str, Any]:
    names = group["cells"]
    rates = {rate: outcomes.over_seeds(names, rate) for rate in ALL_RATES}
    if not rates["harmful_score"]:  # an older table without its answers
        old = dict(group["paired"]) if group.get("paired") else None
        return {**group, "paired": old, "control_difference": None, "decision": None}
    against = list({pair["against"]: 0 for name in names if (pair := by_id[name].get("paired"))})
    paired = None
    if len(against) == len(names):
        paired = outcomes.paired_over_seeds(names, against, "harmful_score")
    beside = _controls(names, by_id)
    difference_ = {
        rate: outcomes.paired_over_seeds(names, beside, rate) for rate in ("harmful_score", "accuracy") if beside
    }
    found = {**group, "rates": rates, "paired": paired and {**paired}, "decision": None}
    return {**found, "control_difference": {"cells": beside, **difference_} if beside else None}


def _controls(names: Sequence[str], by_id: Mapping[str, Cell]) -> list[str]:
    """The controls of the seeds' cells, if each has one that is set alike."""
    found = [_kin(by_id[name], by_id)[2] for name in names]
    alike = {(one["control"], str(one.get("settings"))) for one in found if one}
    return [one["id"] for one in found if one] if None not in found and len(alike) == 1 else []


def _over_seeds(group: dict[str, Any], by_id: Mapping[str, Cell], outcomes: Outcomes) -> dict[str, Any]:
    names = group["cells"]
    relatives = [_kin(by_id[name], by_id) for name in names]

    def together(cells: Sequence[Cell | None]) -> Cell | None:
        some = [cell for cell in cells if cell]
        if len(some) < len(names) or len({cell["id"] for cell in some}) < len(names):
            return None
        ids = [cell["id"] for cell in some]
        rates = {rate: outcomes.over_seeds(ids, rate) for rate in TOLD}
        rates = {rate: share if share and share["low"] is not None else None for rate, share in rates.items()}
        return some[0] | {"rates": rates, "cells": ids, "seed": None, "resistance": [], "paired": None}

    def compare(cell: Cell, other: Cell, rate: str, step: int | None, *, worst: bool = False) -> Test | None:
        if worst:
            return _corrected_like(
                group["paired"] or {}, outcomes.at_worst_over_seeds(cell["cells"], other["cells"], rate)
            )
        if rate == "harmful_score" and cell["cells"] == names and group["paired"] and other is reference:
            return group["paired"]
        return outcomes.paired_over_seeds(cell["cells"], other["cells"], rate)

    mine = together([by_id[name] for name in names])
    reference, before, _ = (together(some) for some in zip(*relatives, strict=True))
    beside = group["control_difference"]
    control = together([by_id[name] for name in beside["cells"]]) if beside else None
    assert mine
    return decision(mine, reference, before, control, compare).as_json()
