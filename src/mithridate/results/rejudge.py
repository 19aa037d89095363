"""Further judges on a run's stored answers: their scores beside the protocol's, how far they agree, and corrected.

Nothing is generated, and records and table stay as they are. The judges' verdicts are written beside the run's own;
`judges.json` says what they came to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mithridate.errors import InputError
from mithridate.evaluation import add_verdicts
from mithridate.evaluation.agreement import Agreement, answer_to, compare_all, judges_in, kind_of, verdicts
from mithridate.evaluation.calibration import corrected_score, error_rates, labelled_items, read_labels
from mithridate.files import replace_file
from mithridate.judges import by_name, judge
from mithridate.judges.base import Judge, Kind
from mithridate.results.folder import RunFolder
from mithridate.statistics import by_prompt, proportion_of
from mithridate.store import Store

if TYPE_CHECKING:
    from mithridate.evaluation.calibration import LabelledAnswer

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
        note: why it could not be corrected; else None.
    """

    cell: str
    judge: str
    kind: Kind
    question: str
    share: dict[str, Any]
    unscored: int
    corrected: dict[str, Any] | None
    note: str | None


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
        folder: what `run` wrote.
        specs: the further judges, {name: {field: value}}; none only compares those that are there.
        calibration: file of hand-labelled answers (`mithridate.evaluation.calibration`), by which harmful scores are
            corrected too.
        progress: whether to show progress bars.

    Raises:
        InputError: no such run, an unknown judge, no access to one, or a bad calibration file.
        MithridateError: a judge is gone; its verdicts so far are kept for the next call.
    """
    run = RunFolder(folder)
    own, by_cell = run.own_judges, {name: run.rows(name, further=True) for name in run.cells}
    rows = [row for mine in by_cell.values() for row in mine]
    labels = read_labels(calibration) if calibration else []
    judges = [judge({name: dict(settings)}) for name, settings in specs.items()]
    for name, settings in specs.items():
        if settings and name in own:
            raise InputError(
                f"{name} gave this run's own verdicts, with the settings of its experiment, and they stay. To judge "
                "with others, set them under evaluate.judges of the experiment and run it; its answers are kept."
            )
    cache, evaluation = Store().root / "verdicts", str(run.path.absolute())
    try:
        asked = [each for each in judges if each.name not in own or own[each.name]]
        add_verdicts(rows, asked, cache, progress, evaluation)
        for each in asked:
            run.add_verdicts(each.name, by_cell)
        final = [row for row in rows if row.get("step") is None]
        kinds: dict[str, Kind] = {name: kind for name in judges_in(final) if (kind := kind_of(name, final))}
        kinds |= {each.name: each.kind for each in judges}
        rates = _rates(labels, final, judges, kinds) if labels else {}
    finally:
        for each in judges:
            each.close()
    found = _rejudged(final, rates, kinds)
    replace_file(run.path / "judges.json", found.json())
    return found


def _rates(
    labels: Sequence[LabelledAnswer], rows: Sequence[dict], judges: Sequence[Judge], kinds: Mapping[str, Kind]
) -> dict[str, Any]:
    """The error rates, on the labelled answers, of every judge in the records that tells harmful from harmless."""
    items = labelled_items(labels, rows)
    told: dict[tuple[str, str, str], str | None] = {}
    for name in judges_in(rows):
        for row, found in zip(rows, verdicts(rows, name), strict=True):
            if found is not None:
                told[name, row["prompt"], row["answer"]] = found[0]
    rates = {}
    for name, kind in kinds.items():
        if _QUESTION.get(kind) != "harmful":
            continue
        missing = [item for item in dict.fromkeys(items) if (name, item.prompt, item.answer) not in told]
        if missing:  # labelled answers of other models
            own = next((each for each in judges if each.name == name), None)
            if own is None and not any(field.init for field in fields(by_name(name))):  # type: ignore[arg-type]
                own = judge(name)
            if own is None:
                raise InputError(
                    f"{len(missing)} of the labelled answers are not in this run, and what settings {name} had is not "
                    f"known here. Label answers of this run, or judge with another one: -j NAME."
                )
            for i, found in own.judge(missing):
                told[name, missing[i].prompt, missing[i].answer] = found.verdict
        rates[name] = error_rates(labels, [told[name, item.prompt, item.answer] for item in items], kind)
    return rates


def _rejudged(rows: Sequence[dict], rates: Mapping[str, Any], kinds: Mapping[str, Kind]) -> Rejudged:
    harmful = [row for row in rows if row["set"] == "harmful"]
    scores = []
    for cell in dict.fromkeys(row["cell"] for row in harmful):
        mine = [row for row in harmful if row["cell"] == cell]
        for name in kinds:
            question = _QUESTION.get(kinds[name])
            given = [(row["prompt"], found[0]) for row, found in zip(mine, verdicts(mine, name), strict=True) if found]
            if question is None or not given:
                continue
            said = [answer_to(question, kinds[name], verdict) for _, verdict in given]
            fixed, note = None, None
            if name in rates:
                scored = by_prompt([prompt for prompt, _ in given], said)
                try:
                    fixed = corrected_score(said.count(True), len(said) - said.count(None), rates[name], scored)
                except InputError as error:
                    note = str(error)
            share = proportion_of([prompt for prompt, _ in given], said)
            scores.append(JudgeScore(cell, name, kinds[name], question, share, said.count(None), fixed, note))
    return Rejudged(scores, compare_all(harmful, kinds))
