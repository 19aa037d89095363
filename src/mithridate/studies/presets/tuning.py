"""Chooses each defense's settings for a preset: as many tries for each, on validation parts, by one rule.

Of the settings that cost no more than the preset allows, in task accuracy and in refusals of benign prompts, against
the undefended run of the same topology, the one with the lowest harmful score; where none is that cheap, the cheapest.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mithridate.experiment.config import Experiment
from mithridate.files import replace_file
from mithridate.pipeline.experiments import undefended
from mithridate.pipeline.runner import run_cells
from mithridate.results.folder import RunFolder
from mithridate.studies.presets.scaled import Case, PresetPlan, label

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tried:
    """One setting of an arm in one topology, with its validation scores (fractions) and what it costs too much."""

    arm: str
    topology: str
    values: dict[str, Any]
    harmful_score: float
    accuracy: float
    benign_refusal: float
    excess: float  # of the costs over what is allowed, summed; 0 if it is within

    @property
    def rank(self) -> tuple[float, float]:
        return self.excess, self.harmful_score


def tuned(plan: PresetPlan, folder: Path, base: Path, owner: Any = None) -> tuple[list[Case], list[Tried]]:
    """The plan's cases with the chosen settings, and all tries, which are also written to `folder/tuning.json`.

    Args:
        folder: of the reproduction; the tries' own run is its `tuning/`.
        base: what paths in the experiments are relative to.
        owner: what the folder belongs to, as of `run_cells`.
    """
    jobs = tries(plan)
    if not jobs:
        return plan.cases, []
    plain: list[Experiment] = []
    twins = []  # of each job, which of `plain`
    for _, _, one in jobs:
        twin = undefended(one)
        if twin not in plain:
            plain.append(twin)
        twins.append(plain.index(twin))
    everything = [*plain, *(one for _, _, one in jobs)]
    run_cells(everything, folder / "tuning", base, owner=owner)
    table, found = RunFolder(folder / "tuning"), []
    for (case, values, experiment), twin in zip(jobs, twins):
        row, before = table.made_by(experiment), table.made_by(plain[twin])
        found.append(_tried(plan, case.arm, experiment.topology, values, row, before))
    replace_file(folder / "tuning.json", json.dumps([asdict(one) for one in found], indent=1))
    chosen: dict[tuple[str, str], Tried] = {}
    for one in found:
        key = (one.arm, one.topology)
        if key not in chosen or one.rank < chosen[key].rank:
            chosen[key] = one
    for one in chosen.values():
        logger.info("chosen for %s, %s: %s (harmful score %.2f)", one.arm, one.topology, one.values, one.harmful_score)
    cases = []
    for case in plan.cases:
        best = chosen.get((case.arm, case.experiment.topology))
        cases.append(replace(case, experiment=case.experiment.with_values(best.values)) if best else case)
    return cases, found


def tries(plan: PresetPlan) -> list[tuple[Case, dict[str, Any], Experiment]]:
    """What is tried: of each arm and topology the case at the tuning's place, with each of its settings."""
    tuning = plan.preset.tuning
    if tuning is None:
        return []
    found = []
    for arm, settings in tuning.tries.items():
        for topology in dict.fromkeys(case.experiment.topology for case in plan.cases if case.arm == arm):
            mine = [case for case in plan.cases if case.arm == arm and case.experiment.topology == topology]
            case = min(mine, key=lambda one: _distance(one, tuning.at))
            part = replace(case.experiment.evaluate, part="validation")
            found += [
                (case, values, replace(case.experiment.with_values(values), evaluate=part)) for values in settings
            ]
    return found


def _distance(case: Case, at: dict[str, Any]) -> int:
    """In how many values a case is not at the place where settings are tried (overrides may have taken it away)."""
    here = {**case.at, "seed": case.experiment.seed}
    return sum(here.get(path, value) != value for path, value in at.items())


def _tried(
    plan: PresetPlan, arm: str, topology: str, values: dict[str, Any], row: dict[str, Any], plain: dict[str, Any]
) -> Tried:
    tuning = plan.preset.tuning
    assert tuning
    scores = [row["rates"][name]["value"] for name in ("harmful_score", "accuracy", "benign_refusal")]
    before = [plain["rates"][name]["value"] for name in ("accuracy", "benign_refusal")]
    # What was not measured counts as the worst, so that no setting is chosen for it.
    harmful, accuracy, refusal = (bad if one is None else one for one, bad in zip(scores, (1.0, 0.0, 1.0)))
    lost = (before[0] or 0.0) - accuracy - tuning.max_accuracy_loss.value
    refused = refusal - (before[1] or 0.0) - tuning.max_benign_refusal.value
    excess = round(max(lost, 0.0) + max(refused, 0.0), 12)
    return Tried(arm, topology, values, harmful, accuracy, refusal, excess)


def budget(cases: Sequence[tuple[Case, dict[str, Any], Experiment]]) -> list[str]:
    """The tries in words, for a dry run."""
    counts: dict[str, int] = {}
    for case, _, experiment in cases:
        name = label(case.arm, {"topology": experiment.topology})
        counts[name] = counts.get(name, 0) + 1
    return [f"{name}: {count} tries on validation parts" for name, count in counts.items()]
