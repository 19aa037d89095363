"""Further judges on a run's stored answers: their scores beside the protocol's, how far they agree, and corrected.

Nothing is generated. The run's `records.parquet` gets the judges' columns; `judges.json` says what they came to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mithridate.agreement import Agreement, answer_to, compare_all, judges_in, kind_of, verdicts
from mithridate.errors import InputError
from mithridate.evaluation import add_verdicts
from mithridate.judges import judge
from mithridate.judges.base import Judge, Kind
from mithridate.labels import corrected_score, error_rates, labelled_items, read_labels
from mithridate.pipeline.store import Store, replace_file
from mithridate.statistics import proportion

if TYPE_CHECKING:
    from mithridate.labels import Label

_QUESTION: dict[Kind, str] = {"answer": "harmful", "harm": "harmful", "refusal": "refused", "coherence": "incoherent"}


@dataclass(frozen=True)
class JudgeScore:
    """What one judge says of one model.

    Args:
        cell: the model.
        judge: its name, and its kind.
        question: what it was asked of the harmful prompts' answers: harmful, refused or incoherent.
        share: of yes among the scored ones, with its interval and n.
        unscored: answers that it left unscored.
        corrected: the harmful score corrected for the judge's error rates, with a calibration file; else None.
    """

    cell: str
    judge: str
    kind: Kind
    question: str
    share: dict[str, Any]
    unscored: int
    corrected: dict[str, Any] | None


@dataclass(frozen=True)
class Rejudged:
    """Scores by model and judge, and the agreement of every two judges that share a question, over all models."""

    scores: list[JudgeScore]
    agreements: list[Agreement]

    def json(self) -> str:
        agreements = [agreement.as_dict() for agreement in self.agreements]
        return json.dumps({"schema": 1, "scores": [vars(s) for s in self.scores], "agreement": agreements}, indent=1)


def rejudge(
    folder: str | Path,
    specs: Mapping[str, Mapping[str, Any]],
    calibration: str | Path | None = None,
    progress: bool = True,
) -> Rejudged:
    """Judges the stored answers of a run again, and compares all judges in it.

    Args:
        folder: what `run` wrote; its records are replaced whole or not at all.
        specs: the further judges, {name: {field: value}}; none only compares those that are there.
        calibration: file of hand-labelled answers (`mithridate.labels`), by which harmful scores are corrected too.
        progress: whether to show progress bars.

    Raises:
        InputError: no such run, an unknown judge, no access to one, or a bad calibration file.
        MithridateError: a judge is gone; its verdicts so far are kept for the next call.
    """
    import pandas as pd

    folder = Path(folder)
    path = folder / "records.parquet"
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: not the folder of a run: {str(error).splitlines()[0]}") from error
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    labels = read_labels(calibration) if calibration else []
    judges = [judge({name: dict(fields)}) for name, fields in specs.items()]
    cache, evaluation = Store().root / "verdicts", str(path.absolute())
    try:
        add_verdicts(rows, judges, cache, progress, evaluation)
        final = [row for row in rows if row["step"] is None]
        rates = _rates(labels, final, judges) if labels else {}
    finally:
        for each in judges:
            each.close()
    found = _rejudged(final, rates)
    if judges:
        aside = path.with_name(f".{path.name}.part")
        pd.DataFrame(rows).astype({"step": "Int64"}).to_parquet(aside)
        aside.replace(path)
    replace_file(folder / "judges.json", found.json())
    return found


def _rates(labels: Sequence[Label], rows: Sequence[dict], judges: Sequence[Judge]) -> dict[str, Any]:
    """The error rates, on the labelled answers, of every judge in the records that tells harmful from harmless."""
    items = labelled_items(labels, rows)
    told: dict[tuple[str, str, str], str | None] = {}
    for name in judges_in(rows):
        for row, found in zip(rows, verdicts(rows, name), strict=True):
            if found is not None:
                told[name, row["prompt"], row["answer"]] = found[0]
    rates = {}
    for name in judges_in(rows):
        kind = kind_of(name, rows)
        if kind is None or _QUESTION.get(kind) != "harmful":
            continue
        missing = [item for item in dict.fromkeys(items) if (name, item.prompt, item.answer) not in told]
        if missing:  # labelled answers of other models
            own = next((each for each in judges if each.name == name), None) or judge(name)
            for i, found in own.judge(missing):
                told[name, missing[i].prompt, missing[i].answer] = found.verdict
        rates[name] = error_rates(labels, [told[name, item.prompt, item.answer] for item in items], kind)
    return rates


def _rejudged(rows: Sequence[dict], rates: Mapping[str, Any]) -> Rejudged:
    names = judges_in(rows)
    kinds: dict[str, Kind] = {name: kind for name in names if (kind := kind_of(name, rows))}
    harmful = [row for row in rows if row["set"] == "harmful"]
    scores = []
    for cell in dict.fromkeys(row["cell"] for row in harmful):
        mine = [row for row in harmful if row["cell"] == cell]
        for name in kinds:
            question = _QUESTION.get(kinds[name])
            given = [found for found in verdicts(mine, name) if found is not None]
            if question is None or not given:
                continue
            said = [answer_to(question, kinds[name], found[0]) for found in given]
            k, n = said.count(True), len(said) - said.count(None)
            fixed = corrected_score(k, n, rates[name]) if name in rates else None
            share = proportion(k, n)
            scores.append(JudgeScore(cell, name, kinds[name], question, share, said.count(None), fixed))
    return Rejudged(scores, compare_all(harmful, kinds))
