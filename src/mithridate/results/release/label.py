"""What a gate's verdict, kept in a file, says of one model: for the card of the model that is exported."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mithridate.results.release.findings import EVERY, worst_of
from mithridate.results.release.verdict import SCHEMA

VERDICT_FILE = "verdict.json"  # looked for in the run's folder


@dataclass(frozen=True)
class ReleaseLabel:
    """The verdict on one model.

    Args:
        outcome: pass, fail or undecided; None where the file has no verdict on this model.
        why: why it has none; else empty.
        about: protocol, judge, rules, part, deviations, as the verdict has them.
        findings: those on the model and on the run, as the verdict has them.
        notes: what was not asked, does not apply, or was agreed to, in the verdict's words.
    """

    outcome: str | None
    why: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    findings: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def label_of(path: Path, cell: str, weights: str | None, results_sha256: str) -> ReleaseLabel:
    """The verdict in a file that `gate --out` wrote, if it is on this very model.

    Args:
        weights: digest of the model's weights, as they are in the store.
        results_sha256: of the run's results.json, as it is now.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA:
            return ReleaseLabel(None, f"{path.name} is of schema {found['schema']}, and this version reads {SCHEMA}")
        model = next((model for model in found["models"] if model["cell"] == cell), None)
        if model is None:
            return ReleaseLabel(None, f"the verdict in {path.name} is on other models")
        if weights is None or model["weights_digest"] != weights:
            return ReleaseLabel(None, f"the verdict in {path.name} is on other weights")
        if found["about"]["results_sha256"] != results_sha256:
            return ReleaseLabel(None, f"the run's table has changed since the verdict in {path.name}")
        findings = [one for one in found["findings"] if one["cell"] in (cell, EVERY)]
        if model["verdict"] != worst_of(one["outcome"] for one in findings):
            return ReleaseLabel(None, f"the verdict in {path.name} does not follow from what it says of the model")
        notes = [note for note in found["notes"] if not note.startswith(("judged", "not judged"))]  # of other models
        return ReleaseLabel(model["verdict"], "", found["about"], findings, notes)
    except (OSError, ValueError, LookupError, TypeError) as error:
        return ReleaseLabel(None, f"{path.name} cannot be read as a gate's verdict ({type(error).__name__})")
