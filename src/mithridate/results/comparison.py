"""Two runs beside each other: their shares, the differences, and whether these could be chance.

    paired      the models were asked the same prompts (or share most of them): each prompt is compared with itself
    unpaired    they were not: the shares are compared as those of two samples

Scores of two protocols, or verdicts of two judges, have no difference that means anything, and are refused. The
p-values of one comparison are corrected together (Holm), for it asks many questions at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from os import PathLike
from typing import TYPE_CHECKING, Any

from mithridate.errors import InputError
from mithridate.evaluation import Answers, outcomes
from mithridate.evaluation.agreement import QUESTIONS, answer_to, judges_in, kind_of, verdicts
from mithridate.results.decisions import RATES
from mithridate.results.folder import RunFolder
from mithridate.results.outcomes import Outcomes
from mithridate.statistics import holm, unpaired

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]

_TOLD_BY = {  # by a judge that is named: the set of prompts, and the question that it is asked
    "harmful_score": ("harmful", "harmful"),
    "incoherent": ("harmful", "incoherent"),
    "benign_refusal": ("benign", "refused"),
    "benign_incoherent": ("benign", "incoherent"),
}
_SHARED = 0.5  # of the prompts of either model that both must have for the comparison to be of these prompts alone


@dataclass(frozen=True)
class Difference:
    """One rate of one model in two runs; shares are fractions.

    Args:
        model: id of the cell; "a = b" where they differ.
        rate: its name in results.json, such as "harmful_score".
        a, b: the two shares (`value`, `low`, `high`, `n`, `unscored`), each of all its prompts.
        way: "paired" or "unpaired".
        difference, low, high: b - a with its 95 % interval.
        p_value: two-sided, of the test that they are equal; `p_holm`: corrected over the whole comparison.
        n: prompts compared (of unpaired ones, those of a and b together).
    """

    model: str
    rate: str
    a: dict[str, Any]
    b: dict[str, Any]
    way: str
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    n: int
    p_holm: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Args:
        a, b: the folders of the runs.
        differences: by model, then by rate.
        about: protocol, judges and rules, which both have; by "a" and "b" the model, its digest and the part.
        notes: what a reader should know: what was left out, and in what else the runs differ.
    """

    a: str
    b: str
    differences: list[Difference]
    about: dict[str, Any]
    notes: list[str]

    def to_pandas(self) -> pd.DataFrame:
        """One row a model and rate; of the shares their columns, as in `a_value` and `b_low`."""
        import pandas as pd

        rows = []
        for found in self.differences:
            row = asdict(found)
            for side in ("a", "b"):
                row |= {f"{side}_{name}": row[side].get(name) for name in ("value", "low", "high", "n", "unscored")}
            rows.append({name: value for name, value in row.items() if name not in ("a", "b")})
        return pd.DataFrame(rows)

    def json(self) -> str:
        return json.dumps(asdict(self), indent=1, allow_nan=False)

    def _repr_html_(self) -> str:
        shown = ["model", "rate", "a_value", "b_value", "difference", "low", "high", "p_holm", "way", "n"]
        table = self.to_pandas()[shown].to_html(index=False, float_format="{:.3f}".format, na_rep="")
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return f"<p>a: {escape(self.a)}<br>b: {escape(self.b)}</p>{table}<ul>{notes}</ul>"


def compare(
    a: str | PathLike[str],
    b: str | PathLike[str],
    cells: Sequence[str | tuple[str, str]] = (),
    judge: str | None = None,
) -> Comparison:
    """Compares the models of two runs, rate by rate: b - a.

    Args:
        a, b: folders that `run` or `evaluate` wrote, or what they returned.
        cells: which models, or which one: the id that both have in results.json, or (id in a, id in b). By default
            all ids that both runs have, or where there is none those that are the same but for the seed.
        judge: whose verdicts count, of those that both runs' records have; by default the protocol's own. The rates
            are then those that it answers: the harmful score is the share of answers that it calls harmful (or says
            that they comply).

    Raises:
        InputError: no such run or cell, no models with the same id, a judge that did not judge one of the models, or
            scores that cannot be compared: of different protocols or judges.
    """
    pairs = [_pair(cell) for cell in ([cells] if isinstance(cells, str) else cells)]
    one, other = RunFolder(a), RunFolder(b)
    for x, y in pairs:  # of which each run must have its own
        one.cell(x)
        other.cell(y)
    notes = []
    if not pairs:
        pairs = [(name, name) for name in one.cells if name in other.cells]
        if not pairs and (pairs := _of_other_seeds(one, other)):
            notes.append(
                "compared are models that differ in their seed: the intervals are of prompts, and say nothing of how "
                "much seeds differ by themselves"
            )
        if not pairs:
            raise InputError(
                f"no model has the same id in both runs. {one.path}: {_some(one.cells)}. {other.path}: "
                f"{_some(other.cells)}. Name two, as in --cell ID=ID (in Python: cells=[(id, id)])"
            )
        for i, (side, run) in enumerate((("a", one), ("b", other))):
            if alone := [name for name in run.cells if name not in {pair[i] for pair in pairs}]:
                notes.append(f"only in {side}, not compared: {', '.join(alone)}")
    about = _about(one, other, judge)
    notes += _departures(one, other)
    found = []
    for x, y in pairs:
        if judge is None:
            _require_one_judge(one, x, other, y)
        model = x if x == y else f"{x} = {y}"
        if x == y and (unlike := _made_otherwise(one.cells[x], other.cells[y])):
            notes.append(f"{x} was made otherwise in b than in a: {'; '.join(unlike)}")
        rows = [run.final(cell, further=judge is not None) for run, cell in ((one, x), (other, y))]
        told = [_told(each, judge, f"{run.path} ({cell})") for each, run, cell in zip(rows, (one, other), (x, y))]
        found += _differences(model, rows, told, notes)
    corrected = holm([each.p_value for each in found])
    found = [Difference(**{**vars(each), "p_holm": p}) for each, p in zip(found, corrected, strict=True)]
    return Comparison(str(one.path), str(other.path), found, about, list(dict.fromkeys(notes)))


def _made_otherwise(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """In what the attacks and settings of two models differ, each with both values: ids do not hold all of it."""

    def unlike(path: str, mine: Any, theirs: Any) -> Iterator[str]:
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            for name in sorted({*mine, *theirs}):
                yield from unlike(f"{path}.{name}", mine.get(name), theirs.get(name))
        elif mine != theirs:
            yield f"{path} {json.dumps(mine, default=str)} in a, {json.dumps(theirs, default=str)} in b"

    return [one for part in ("attack", "settings") for one in unlike(part, a.get(part) or {}, b.get(part) or {})]


def _pair(cell: Any) -> tuple[str, str]:
    if isinstance(cell, str):
        return cell, cell
    if isinstance(cell, list | tuple) and [type(name) for name in cell] == [str, str]:
        return cell[0], cell[1]
    raise InputError(f"cells: expected ids, or pairs of them (id in a, id in b), got {cell!r}")


def _of_other_seeds(one: RunFolder, other: RunFolder) -> list[tuple[str, str]]:
    """The pairs of ids that are the same but for the seed at their end, where either run has one such model."""
    found = []
    for run in (one, other):
        by_name: dict[str, list[str]] = {}
        for name, cell in run.cells.items():
            by_name.setdefault(name.removesuffix(f"-s{cell.get('seed')}"), []).append(name)
        found.append({name: ids[0] for name, ids in by_name.items() if len(ids) == 1})
    return [(mine, found[1][name]) for name, mine in found[0].items() if name in found[1]]


def _some(names: Iterable[str]) -> str:
    """The first few of them, and how many there are."""
    listed = list(names)
    return ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")


def _told(rows: list[Row], judge: str | None, where: str) -> Mapping[str, Mapping[str, Answers]]:
    """What the answers came to by `judge`, or by the protocol's own where that is None. `where`: for the error."""
    told = outcomes(rows)
    if judge is None:
        return told
    asked = [row for row in rows if row["set"] in ("harmful", "benign")]
    kind = kind_of(judge, asked)
    given = {id(row): said[0] for row, said in zip(asked, verdicts(asked, judge), strict=True) if said}
    if kind is None or not given:
        raise InputError(
            f"{where}: no verdicts of the judge {judge}; there are those of {', '.join(judges_in(rows)) or 'none'}. "
            f"Let it judge the answers: mithridate judge RUN --judge {judge}"
        )
    found: dict[str, dict[str, Answers]] = {rate: told[rate] for rate in ("accuracy",) if rate in told}
    for rate, (kept, question) in _TOLD_BY.items():
        for row in asked:
            if kind in QUESTIONS[question] and row["set"] == kept and id(row) in given:
                answers = found.setdefault(rate, {})
                said = answer_to(question, kind, given[id(row)])
                answers[row["prompt"]] = (*answers.get(row["prompt"], ()), said)
    return found


def _about(one: RunFolder, other: RunFolder, judge: str | None) -> dict[str, Any]:
    """What both have, and what each has; refuses two protocols and, where they tell, two versions of the rules."""
    for what in ("protocol", "rules") if judge is None else ("protocol",):
        mine, theirs = one.results.get(what), other.results.get(what)
        if mine != theirs and (what == "protocol" or None not in (mine, theirs)):
            raise InputError(
                f"{one.path} has {what} {mine}, {other.path} {theirs}: their scores are not of one kind, and have "
                "no difference that means anything. Evaluate both under one (answers that are kept are judged anew)"
            )
    sides = {
        name: {key: run.results.get(key) for key in ("model", "model_digest", "part", "deviations")}
        for name, run in (("a", one), ("b", other))
    }
    rules = one.results.get("rules") if judge is None else None
    return {"protocol": one.results.get("protocol"), "rules": rules, "judge": judge, **sides}


def _departures(one: RunFolder, other: RunFolder) -> list[str]:
    notes = []
    for key in ("model", "part", "deviations"):
        mine, theirs = one.results.get(key), other.results.get(key)
        if mine != theirs and not (not mine and not theirs):
            notes.append(f"{key} differs: a {_words(mine)}; b {_words(theirs)}")
    for side, run in (("a", one), ("b", other)):
        if not run.results.get("complete", True):
            notes.append(f"{side} has not finished: its table is not whole")
    return notes


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "not stated" if value is None else str(value)


def _require_one_judge(one: RunFolder, x: str, other: RunFolder, y: str) -> None:
    for kind in ("harmful", "benign"):
        named = [
            {row["judge"] for row in run.final(cell) if row["set"] == kind} - {None}
            for run, cell in ((one, x), (other, y))
        ]
        if all(named) and named[0] != named[1]:
            said = [", ".join(sorted(map(str, names))) for names in named]
            raise InputError(
                f"{kind} prompts' answers are judged by {said[0]} in {one.path} ({x}) and by {said[1]} in "
                f"{other.path} ({y}): their scores have no difference that means anything. Evaluate both with one "
                "judge (answers that are kept are judged anew)"
            )


def _differences(
    model: str,
    rows: Sequence[list[Row]],
    told: Sequence[Mapping[str, Mapping[str, Answers]]],
    notes: list[str],
) -> list[Difference]:
    (mine, theirs), (a, b), both = rows, told, Outcomes()
    both.put("a", a)
    both.put("b", b)
    found = []
    for rate in (one for one in RATES if one in a):
        shares = both.share("a", rate), both.share("b", rate)
        if rate not in b or not shares[0] or not shares[1] or not shares[0]["n"] or not shares[1]["n"]:
            notes.append(f"{model}: {rate} is not in both, not compared")
            continue
        if rate == "accuracy" and (tasks := [_tasks(mine), _tasks(theirs)])[0] != tasks[1]:
            notes.append(f"{model}: accuracy is of two tasks ({tasks[0]}; {tasks[1]}), not compared")
            continue
        shared = len(a[rate].keys() & b[rate].keys())
        if shared and shared >= _SHARED * max(len(a[rate]), len(b[rate])):
            test = both.paired("b", "a", rate)
            way, left = "paired", max(len(a[rate]), len(b[rate])) - shared
            if left:
                notes.append(f"{model}: {rate} is of the {shared} prompts that both have; {left} are left out")
        else:
            test, way = unpaired(_scored(b[rate]), _scored(a[rate])), "unpaired"
        if test is None:
            notes.append(f"{model}: {rate} has no prompt with a scored answer in both, not compared")
            continue
        numbers = {name: test[name] for name in ("difference", "low", "high", "p_value", "n")}
        found.append(Difference(model, rate, shares[0], shares[1], way, **numbers))
    around = [{row.get("at_test") for row in each} for each in rows]
    if around[0] != around[1]:
        notes.append(f"{model}: what is put around its prompts at the test differs between the runs")
    return found


def _tasks(rows: list[Row]) -> str:
    return ", ".join(sorted({str(row["task"]) for row in rows if row["set"] == "task"}))


def _scored(answers: Mapping[str, Answers]) -> dict[str, list[bool]]:
    found = {prompt: [one for one in said if one is not None] for prompt, said in answers.items()}
    return {prompt: said for prompt, said in found.items() if said}
