"""Answers labelled by hand, and what a judge makes of them: the rates at which it errs, for a corrected harmful score.

A calibration file (JSON Lines, JSON, CSV or Parquet) has a row an answer:

- `harmful`: true or false (in CSV also 1 or 0);
- `prompt` and `answer`, or the `id` of a record of an evaluation whose answer was labelled.

Other columns are passed over. The answers should be a random part of the answers of models like those that are scored:
see `mithridate.statistics.corrected` for what is assumed, and for the correction itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mithridate.data.files import read_rows
from mithridate.errors import InputError
from mithridate.evaluation.agreement import answer_to
from mithridate.judges.base import Item, Kind
from mithridate.statistics import ErrorRates, corrected
from mithridate.statistics.shares import ByPrompt

_WORDS = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True)
class LabelledAnswer:
    """One labelled answer; either `prompt` and `answer` are given, or `id`. `place` is where it was read."""

    harmful: bool
    prompt: str | None
    answer: str | None
    id: str | None
    place: str


def read_labels(path: str | Path) -> list[LabelledAnswer]:
    """The labels of a calibration file, in order.

    Raises:
        InputError: the file cannot be read; a row without a label of true or false, or that does not say which answer
            it is about; an answer that is labelled twice.
    """
    labels, seen = [], {}
    for place, row in read_rows(Path(path)):
        label = LabelledAnswer(
            _harmful(row, place), _text(row, "prompt", place), _text(row, "answer", place), _id(row), place
        )
        whole = label.prompt is not None and label.answer is not None
        if not whole and label.id is None:
            raise InputError(f"{place}: says of no answer: give `prompt` and `answer`, or the `id` of a record.")
        key = (label.prompt, label.answer) if whole else label.id
        if key in seen:
            raise InputError(f"{place}: labels an answer that {seen[key]} labelled already; keep one of the two.")
        seen[key] = place
        labels.append(label)
    return labels


def _harmful(row: Mapping[str, Any], place: str) -> bool:
    value = row.get("harmful")
    found = _WORDS.get(value.strip().lower()) if isinstance(value, str) else value
    if found not in (True, False):  # which 1 and 0 are
        has = "has no column `harmful`" if "harmful" not in row else f"`harmful` is {value!r}"
        raise InputError(f"{place}: {has}; give true or false.")
    return bool(found)


def _text(row: Mapping[str, Any], column: str, place: str) -> str | None:
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{place}: `{column}` is a {type(value).__name__} where text is expected.")
    return value


def _id(row: Mapping[str, Any]) -> str | None:
    value = row.get("id")
    return None if value is None or value == "" else str(value)


def labelled_items(labels: Sequence[LabelledAnswer], rows: Iterable[Mapping[str, Any]] = ()) -> list[Item]:
    """What a judge is given to find its error rates: each label's prompt and answer, looked up where it has an id
    only.

    Args:
        labels: from `read_labels`.
        rows: records of an evaluation (`evaluation.Row`); needed for labels with an id only.

    Raises:
        InputError: an id that is not in the records, or that several different answers in them have.
    """
    wanted = {label.id for label in labels if label.prompt is None or label.answer is None}
    known: dict[str | None, set[tuple[str, str]]] = {}
    for row in rows if wanted else ():
        if row["id"] in wanted:
            known.setdefault(row["id"], set()).add((row["prompt"], row["answer"]))
    items = []
    for label in labels:
        if label.prompt is not None and label.answer is not None:
            items.append(Item(label.prompt, label.answer))
            continue
        found = known.get(label.id, set())
        if len(found) != 1:
            what = f"{len(found)} different answers in the records have" if found else "no record has"
            raise InputError(f"{label.place}: {what} the id {label.id!r}; give the prompt and answer instead.")
        items.append(Item(*found.pop()))
    return items


def error_rates(labels: Sequence[LabelledAnswer], verdicts: Sequence[str | None], kind: Kind) -> ErrorRates:
    """The counts of a judge's verdicts against the labels; unscored ones are counted apart.

    Args:
        labels: from `read_labels`.
        verdicts: the judge's, of `labelled_items(labels)`, in that order.
        kind: the judge's kind: "harm", or "answer", where complying counts as harmful.

    Raises:
        InputError: a judge that does not tell harmful answers from harmless ones.
    """
    called = [answer_to("harmful", kind, verdict) for verdict in verdicts]
    pairs = [(label.harmful, judged) for label, judged in zip(labels, called, strict=True)]
    return ErrorRates(
        caught=pairs.count((True, True)),
        missed=pairs.count((True, False)),
        cleared=pairs.count((False, False)),
        false_alarms=pairs.count((False, True)),
        unscored_harmful=pairs.count((True, None)),
        unscored_harmless=pairs.count((False, None)),
    )


def corrected_score(k: int, n: int, rates: ErrorRates, answers: ByPrompt | None = None) -> dict[str, Any]:
    """`statistics.corrected`, of `k` of `n` scored answers judged harmful, with the judge's rates beside it.

    Args:
        answers: the scored ones by prompt, where prompts have several.

    Adds `sensitivity` and `specificity` (each as `proportion` gives it) and `labelled_unscored` to what that returns.

    Raises:
        InputError: no score can be corrected by these rates, with the reason and what to do.
    """
    if rates.unusable:
        raise InputError(
            f"The harmful score cannot be corrected: {rates.unusable}. Label more answers of both classes, or take "
            "another judge."
        )
    return corrected(k, n, rates, answers) | {
        "sensitivity": rates.sensitivity,
        "specificity": rates.specificity,
        "labelled_unscored": rates.unscored_harmful + rates.unscored_harmless,
    }
