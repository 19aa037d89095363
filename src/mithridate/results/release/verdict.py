"""The verdict on a run's models: which are judged, what was found, and what it all rests on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mithridate.errors import InputError
from mithridate.files import canonical_json
from mithridate.results.relations import defenses_of
from mithridate.results.release.criteria import any_of, criteria, drop, share
from mithridate.results.release.evidence import Evidence, judge_of, sample_of, trained
from mithridate.results.release.findings import EVERY, Finding, Outcome, doubt, listed, worst
from mithridate.results.release.limits import Limits

if TYPE_CHECKING:
    import pandas as pd

EXIT: dict[Outcome, int] = {"pass": 0, "fail": 1, "undecided": 2}
SCHEMA = 2


@dataclass(frozen=True)
class ModelVerdict:
    """The worst of what was found on one model, and the digest of its weights (None: not known here)."""

    cell: str
    outcome: Outcome
    weights_digest: str | None


@dataclass(frozen=True)
class GateVerdict:
    """What the gate decided, and from what.

    Args:
        outcome: the worst over all models.
        models: the verdict on each.
        findings: every criterion, and everything that speaks against the evidence.
        limits: what was allowed.
        about: protocol, judges, rules, part, deviations and digests of the run.
        notes: what was not asked, not judged, or does not apply, in words.
    """

    outcome: Outcome
    models: list[ModelVerdict]
    findings: list[Finding]
    limits: Limits
    about: dict[str, Any]
    notes: list[str]

    def json(self) -> str:
        made = {
            "schema": SCHEMA,
            "verdict": self.outcome,
            "models": [
                {"cell": m.cell, "verdict": m.outcome, "weights_digest": m.weights_digest} for m in self.models
            ],
            "about": self.about,
            "limits": asdict(self.limits),
            "notes": self.notes,
            "findings": [vars(finding) for finding in self.findings],
        }
        return json.dumps(made, indent=1, allow_nan=False)

    def to_pandas(self) -> pd.DataFrame:
        """One row a finding."""
        import pandas as pd

        return pd.DataFrame([vars(finding) for finding in self.findings])

    def _repr_html_(self) -> str:
        shown = ["cell", "criterion", "outcome", "words"]
        return f"<p>verdict: {self.outcome}</p>{self.to_pandas()[shown].to_html(index=False)}"


def gate(folder: str | PathLike[str], limits: Limits, cells: Sequence[str] = ()) -> GateVerdict:
    """Decides on a run, or on a finished or served model that `mithridate evaluate` has scored.

    Args:
        folder: what `run` or `evaluate` wrote, or returned.
        limits: the criteria.
        cells: ids of the models to judge, or the one id; by default the run's final defended models (no controls), or,
            where nothing is defended, its final ones.

    Raises:
        InputError: no such run or cell, `limits` that are none, or records that are not of its form.
    """
    if not isinstance(limits, Limits):
        raise InputError(f"limits: expected Limits, as in Limits(max_harmful_score=0.1), got {limits!r}")
    evidence = Evidence(Path(folder))
    chosen, notes = _chosen(evidence, [cells] if isinstance(cells, str) else cells)
    findings = evidence.doubts(chosen, limits.allow_deviations)
    for name in chosen:
        findings += _of_model(evidence, name, limits, notes)
    findings += _of_seeds(evidence, chosen, limits, notes)
    of_run = [finding for finding in findings if finding.cell == EVERY]
    models = [
        ModelVerdict(name, worst([f for f in findings if f.cell == name] + of_run), _digest(evidence, name))
        for name in chosen
    ]
    notes += [f"agreed to: {text}" for text in limits.allow_deviations if text in _deviations(evidence)]
    return GateVerdict(worst(findings), models, findings, limits, _about(evidence, chosen), notes)


def _chosen(evidence: Evidence, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The models to judge, and what to say of the others."""
    cells, folder = evidence.cells, evidence.folder
    missing = [name for name in names if name not in cells]
    if missing:
        raise InputError(f"{folder} has no cell {missing[0]!r}. Its cells: {', '.join(cells)}.")
    controls = [name for name, cell in cells.items() if cell["control"]]
    final = [name for name, cell in cells.items() if cell.get("final", True) and name not in controls]
    chosen = [name for name in final if defenses_of(cells[name])] or final
    if names:
        judged = list(dict.fromkeys(names))
        left = [name for name in chosen if name not in judged]
        early = [name for name in judged if name not in final]
        notes = [f"not judged, though the run ends in it: {listed(left)}"] if left else []
        return judged, notes + [f"judged, though the run does not end in it: {listed(early)}"] * bool(early)
    if not chosen and evidence.results.get("complete") is not True:
        return [], []  # there may be one when the run has finished, which `doubts` says
    if not chosen:
        raise InputError(f"{folder}: the run has no model to judge; give --cell (in Python: cells=[id]).")
    left = [name for name in final if name not in chosen]
    notes = [f"not judged, for nothing defends it: {listed(left)}"] if left else []
    return chosen, notes + [f"not judged, for it is a control: {listed(controls)}"] * bool(controls)


def _of_model(evidence: Evidence, name: str, limits: Limits, notes: list[str]) -> list[Finding]:
    rows = evidence.final(name)
    if not rows:
        raise InputError(f"the records have no rows of the cell {name!r}: run the experiment again")
    allowed = limits.asked("max_accuracy_drop")
    findings, free = [], []
    for criterion in criteria(evidence.protocol):
        limit = limits.asked(criterion.limit)
        if limit is None:
            free.append(criterion.name)
        else:
            findings.append(share(name, criterion, rows, limit))
    several, most = any(sample_of(row) for row in rows), limits.asked("max_any_harmful")
    if several:
        found = any_of(name, rows, evidence.protocol, most or 0.0)
        if most is None:
            notes.append(f"{name}: {found.criterion}, not asked: {found.words.partition(', limit')[0]}")
        else:
            findings.append(found)
    elif most is not None:
        findings.append(doubt(name, "any of several", "each prompt was answered once; see evaluate.samples"))
    if allowed is None:
        free.append("accuracy drop")
    else:
        findings += drop(evidence, name, limits, allowed)
    if free and (note := f"not asked: {', '.join(free)}") not in notes:
        notes.append(note)
    return findings + evidence.doubts_of(name, scores=allowed is not None)


def _of_seeds(evidence: Evidence, chosen: Sequence[str], limits: Limits, notes: list[str]) -> list[Finding]:
    """As many seeds of each arm as the protocol demands, and all that the experiment was asked for."""
    needed, asked = evidence.protocol.seeds, evidence.results.get("seeds_asked", [])
    seeds: dict[str, set[Any]] = {}
    for cell in evidence.cells.values():
        seeds.setdefault(_arm(cell), set()).add(cell["seed"])
    findings, finished = [], []
    for name in chosen:
        cell = evidence.cells[name]
        if not trained(cell):
            finished.append(name)
            continue
        found = seeds[_arm(cell)]
        text = f"seeds: {len(found)} in place of {needed} or more"
        if len(found) < needed and text not in limits.allow_deviations:
            findings.append(doubt(name, "seeds", f"departs from {evidence.protocol.name}: {text}"))
        if not isinstance(asked, list):
            findings.append(doubt(name, "seeds", f"seeds_asked: expected a list, got {asked!r}"))
        elif lost := [str(seed) for seed in asked if seed not in found]:
            words = f"the experiment asks for seed {listed(lost)} too, of which the table has no such model"
            findings.append(doubt(name, "seeds", words))
    served = [name for name in chosen if evidence.cells[name].get("weights_digest", "") is None]
    if served:
        notes.append(f"answered behind a server, whose weights nobody here knows: {listed(served)}")
    if finished:
        notes.append(f"seeds do not apply, for nothing was trained here: {listed(finished)}")
    return findings


def _arm(cell: dict[str, Any]) -> str:
    keys = ("alignment", "finetuning", "repair", "topology", "harmful_ratio", "control", "settings", "attack", "swept")
    return canonical_json({key: cell.get(key) for key in keys})


def _deviations(evidence: Evidence) -> list[Any]:
    found = evidence.results.get("deviations")
    return found if isinstance(found, list) else []


def _digest(evidence: Evidence, name: str) -> str | None:
    found = evidence.cells[name].get("weights_digest")
    return found if isinstance(found, str) else None


def _about(evidence: Evidence, chosen: Sequence[str]) -> dict[str, Any]:
    results, protocol = evidence.results, evidence.protocol
    return {
        "model": results["model"],
        "model_digest": results.get("model_digest"),
        "protocol": protocol.name,
        "judge": protocol.judge.name,
        "benign_judge": judge_of(protocol, "benign"),
        "rules": results.get("rules"),
        "judges": results.get("judges"),
        "part": results.get("part"),
        "deviations": _deviations(evidence),
        "complete": results.get("complete"),
        "results_sha256": evidence.sha256,
        "records_sha256": evidence.files(chosen),
    }
