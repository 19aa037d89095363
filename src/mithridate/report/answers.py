"""The answers of a run, packed for the page."""

from itertools import combinations
from typing import Any

from mithridate.evaluation.agreement import answer_to, judges_beside, judges_in, kind_of, shared_question
from mithridate.judges.base import Kind
from mithridate.report.load import LoadedRun, final
from mithridate.report.verdicts import ranked


def answers(run: LoadedRun) -> dict[str, Any]:
    """The final answers, packed for the page: the same prompt across cells is one entry.

    {"cells": [label], "shown": [index of a cell shown at first], "verdicts": [name], "judges": [further judge],
     "prompts": [[set, category, prompt, [[cell, answer, verdict, reason, finished, further, differ], ...]], ...]}

    where `further` is [[judge, verdict, reason], ...] of the judges beside the protocol's, and `differ` says whether
    two judges of this answer disagree on a question that both answer.
    """
    index = {cell["id"]: i for i, cell in enumerate(run.cells)}
    verdicts: dict[str, int] = {}
    rows = [row for row in run.records if final(row) and row["cell"] in index]
    names = judges_in(rows)
    kinds: dict[str, Kind | None] = {name: kind_of(name, rows) for name in names}
    further = judges_beside(rows)
    prompts: dict[tuple[str, str | None, str, str], list[Any]] = {}

    def number(verdict: str) -> int:
        return verdicts.setdefault(verdict, len(verdicts))

    for row in rows:
        verdict = row["verdict"]
        if row["set"] == "task" and row.get("correct") is not None:
            verdict = "right" if row["correct"] else "wrong"
        given = {name: (row[f"judge/{name}"], row.get(f"judge/{name}/reason") or "") for name in further}
        given = {name: said for name, said in given.items() if any(said)}
        said = {name: one for name, (one, _) in given.items()} | {row.get("judge"): row["verdict"]}
        packed = [
            index[row["cell"]],
            row["answer"],
            number(verdict or ("unscored" if row.get("judge") else "not judged")),
            "; ".join(filter(None, [_which(row, run), row.get("reason")])),
            row.get("finished") is not False,
            [[further.index(name), number(one or "unscored"), why] for name, (one, why) in given.items()],
            _differ({name: one for name, one in said.items() if name and one}, kinds),
        ]
        key = row["set"], row.get("task"), row["id"], row["prompt"]  # a user's own ids may repeat
        entry = prompts.setdefault(key, [row["set"], row.get("category") or "", row["prompt"], []])
        entry[3].append(packed)
    return {
        "cells": [run.names[cell["id"]].full for cell in run.cells],
        "shown": [index[name] for name in _shown(run)[:3]],
        "verdicts": list(verdicts),
        "judges": further,
        "prompts": list(prompts.values()),
    }


def _which(row: dict[str, Any], run: LoadedRun) -> str:
    """Which of a prompt's several answers it is."""
    several = max(run.samples, default=1) > 1 and row["set"] != "task" and row.get("sample") is not None
    return f"answer {row['sample'] + 1}" if several else ""


def _differ(said: dict[str, str], kinds: dict[str, Kind | None]) -> bool:
    for a, b in combinations(said, 2):
        first, second = kinds[a], kinds[b]
        if first is None or second is None:
            continue
        question = shared_question(first, second)
        if question and answer_to(question, first, said[a]) != answer_to(question, second, said[b]):
            return True
    return False


def _shown(run: LoadedRun) -> list[str]:
    """The cells shown at first: the undefended run, and the defenses against the same attack that left least."""
    found = [one for some in ranked(run.cells).values() for one in some]
    shown = [one.cell["id"] for one in found if one.reference is found[0].reference]
    if found and found[0].reference:
        shown.insert(0, found[0].reference["id"])
    return shown or [cell["id"] for cell in run.cells]
