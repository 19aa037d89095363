"""Do two judges say the same of the same answers? Agreement, Cohen's kappa, the confusion table, and where they
differ.

Judges of different kinds give different verdicts, so they are compared on a yes-or-no question that both answer:

    question     judge's kind   yes                 no
    harmful      answer         complied            refused, incoherent, other
                 harm           harmful             safe
    refused      answer         refused             complied, incoherent, other
                 refusal        refused             not_refused
    incoherent   answer         incoherent          refused, complied, other
                 coherence      incoherent          coherent

An `unclear` of a judge of kind "answer" is unscored on every question. A judge of harm and one of refusal share no
question, for a harmless answer is no refusal: comparing them is refused.

Kappa = (agreement - chance) / (1 - chance), where chance is the agreement of two judges who give their verdicts as
often as these do, but independently (J. Cohen, A coefficient of agreement for nominal scales, Educational and
Psychological Measurement 20, 1960, 37-46). Its interval are Wilson's bounds of the agreement, put into that formula
with chance as observed. In simulations (30 to 300 answers, kappa 0 to 0.9, a verdict given to 5 to 95 % of
answers) that covers 92 to 100 %; it is up to four times too wide where judges who hardly agree say yes to few answers.
The asymptotic interval (J. L. Fleiss, J. Cohen & B. S. Everitt, Psychological Bulletin 72, 1969, 323-327) is narrower,
covers 39 to 95 % in the same settings, and is a point where judges agree everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from mithridate.errors import InputError
from mithridate.judges import by_name
from mithridate.judges.base import VERDICTS, Kind, scored
from mithridate.statistics import by_prompt, proportion_by_prompt

QUESTIONS: dict[str, dict[str, str]] = {
    "harmful": {"answer": "complied", "harm": "harmful"},
    "refused": {"answer": "refused", "refusal": "refused"},
    "incoherent": {"answer": "incoherent", "coherence": "incoherent"},
}
"""The verdict that answers each question with yes, by kind of judge; all other verdicts of that kind answer no."""


def shared_question(a: Kind, b: Kind) -> str | None:
    """The first question that judges of both kinds answer, or None."""
    return next((name for name, kinds in QUESTIONS.items() if a in kinds and b in kinds), None)


def answer_to(question: str, kind: Kind, verdict: str | None) -> bool | None:
    """A judge's verdict as its answer to the question; None where it is unscored or unclear.

    Raises:
        InputError: an unknown question, one that judges of this kind do not answer, or no verdict of this kind.
    """
    if question not in QUESTIONS:
        raise InputError(f"Unknown question {question!r}: give one of {', '.join(QUESTIONS)}.")
    yes = QUESTIONS[question].get(kind)
    if yes is None:
        can = ", ".join(name for name, kinds in QUESTIONS.items() if kind in kinds) or "none"
        raise InputError(f"A judge of kind {kind!r} does not say whether an answer is {question} (it says: {can}).")
    if verdict is not None and verdict not in VERDICTS[kind]:
        raise InputError(f"{verdict!r} is no verdict of a judge of kind {kind!r}: {', '.join(VERDICTS[kind])}.")
    return verdict == yes if scored(verdict) else None


@dataclass(frozen=True)
class Agreement:
    """Two judges on the answers that both were given.

    Args:
        question: what they are compared on.
        judges: their names.
        n: answers that both scored.
        table: counts, [first says no, yes][second says no, yes].
        agreement: share of the `n` answers on which they agree, with its interval (`proportion_by_prompt`).
        kappa: `value`, `low`, `high` and `note` (why they are None, else None).
        unscored: for each judge, answers that both were given and this one left unscored.
        not_given: for each judge, answers that only the other was given.
        differ: a row for each answer on which they differ: `id`, `prompt`, `answer`, and under each judge's name its
            `verdict` and `reason`.
    """

    question: str
    judges: tuple[str, str]
    n: int
    table: list[list[int]]
    agreement: dict[str, Any]
    kappa: dict[str, Any]
    unscored: dict[str, int]
    not_given: dict[str, int]
    differ: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self) | {"judges": list(self.judges)}


def compare(
    rows: Sequence[Mapping[str, Any]], first: str, second: str, kinds: Mapping[str, Kind], question: str | None = None
) -> Agreement:
    """Compares two judges on the records of an evaluation.

    Args:
        rows: records (`evaluation.Row`) of one or several models; answers to the same prompt are not independent, and
            the interval takes account of it.
        first: name of a judge in them.
        second: name of another.
        kinds: each judge's kind, by name.
        question: what to compare them on; None is the first that both answer.

    Raises:
        InputError: a judge that is not in the records, or whose kind is not given; judges that share no question, or
        do
            not answer this one; no answers that both were given.
    """
    for name in (first, second):
        if name not in kinds:
            raise InputError(f"The kind of the judge {name!r} is not given.")
    question = question or shared_question(kinds[first], kinds[second])
    if question is None:
        raise InputError(
            f"The judges {first} (of {kinds[first]}) and {second} (of {kinds[second]}) answer no common question, so "
            "they cannot be compared. Compare each with a judge of whole answers (kind 'answer')."
        )
    found = {name: verdicts(rows, name) for name in (first, second)}
    given = {name: {i for i, verdict in enumerate(column) if verdict is not None} for name, column in found.items()}
    for name, indices in given.items():
        if not indices:
            known = ", ".join(judges_in(rows)) or "none"
            raise InputError(f"The records hold no verdicts of the judge {name!r}; they have: {known}.")
    shared = sorted(given[first] & given[second])
    if not shared:
        raise InputError(f"The judges {first} and {second} were given no answer in common.")

    counts: Counter[tuple[bool | None, bool | None]] = Counter()
    unscored, prompts, agreed, differ = dict.fromkeys((first, second), 0), [], [], []
    for i in shared:
        both = {name: found[name][i] for name in (first, second)}
        yes = {name: answer_to(question, kinds[name], value[0]) for name, value in both.items() if value}
        for name, value in yes.items():
            unscored[name] += value is None
        if yes[first] is None or yes[second] is None:
            continue
        counts[yes[first], yes[second]] += 1
        prompts.append(rows[i]["prompt"])
        agreed.append(yes[first] == yes[second])
        if not agreed[-1]:
            row = {key: rows[i].get(key) for key in ("id", "prompt", "answer")}
            differ.append(row | {name: {"verdict": v[0], "reason": v[1]} for name, v in both.items() if v})
    table = [[counts[a, b] for b in (False, True)] for a in (False, True)]
    agreement = proportion_by_prompt(by_prompt(prompts, agreed)) if agreed else proportion_by_prompt({})
    return Agreement(
        question=question,
        judges=(first, second),
        n=len(agreed),
        table=table,
        agreement=agreement,
        kappa=kappa(table, agreement),
        unscored=unscored,
        not_given={first: len(given[second] - given[first]), second: len(given[first] - given[second])},
        differ=differ,
    )


def compare_all(rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, Kind]) -> list[Agreement]:
    """`compare` of every two judges in the records that share a question and were given answers in common.

    Args:
        rows: records of an evaluation.
        kinds: kind of every judge in them.

    Raises:
        InputError: the kind of a judge is not given.
    """
    names = judges_in(rows)
    given = {name: {i for i, verdict in enumerate(verdicts(rows, name)) if verdict is not None} for name in names}
    return [
        compare(rows, a, b, kinds)
        for a, b in combinations(names, 2)
        if (a not in kinds or b not in kinds or shared_question(kinds[a], kinds[b])) and given[a] & given[b]
    ]


def kappa(table: Sequence[Sequence[int]], agreement: Mapping[str, Any]) -> dict[str, Any]:
    """Cohen's kappa of a square table of counts, with the interval that follows from that of the `agreement`.

    Returns `value`, `low`, `high` and `note`: they are None where nothing was scored, or where both judges gave one
    and the same verdict to every answer (chance agreement is then total, and kappa undefined), and `note` says which.
    """
    n = sum(map(sum, table))
    nothing = {"value": None, "low": None, "high": None}
    if n == 0:
        return nothing | {"note": "no answer was scored by both judges"}
    chance = sum(sum(row) * sum(column) for row, column in zip(table, zip(*table, strict=True), strict=True)) / n**2
    if chance == 1:
        return nothing | {"note": "both judges gave the same verdict to every answer"}
    # Of the table itself: where prompts have different numbers of answers, `agreement` is a little off its share.
    value = (sum(table[i][i] for i in range(len(table))) / n - chance) / (1 - chance)
    low, high = ((agreement[bound] - chance) / (1 - chance) for bound in ("low", "high"))
    return {"value": value, "low": max(-1.0, min(low, value)), "high": max(high, value), "note": None}


def judges_in(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of all judges in the records, those of the column `judge` first."""
    main = dict.fromkeys(name for row in rows if (name := row.get("judge")))
    return list(main | dict.fromkeys(judges_beside(rows)))


def judges_beside(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the judges that have columns of their own in the records."""
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith("judge/"))
    names = [key.removeprefix("judge/") for key in keys]
    return [name for name in names if not name.endswith(("/reason", "/score"))]


def verdicts(rows: Sequence[Mapping[str, Any]], judge: str) -> list[tuple[str | None, str] | None]:
    """A judge's (verdict, reason) of every row, a verdict of None being unscored; None for rows it was not given."""
    found: list[tuple[str | None, str] | None] = []
    for row in rows:
        verdict, reason = (
            ("verdict", "reason") if row.get("judge") == judge else (f"judge/{judge}", f"judge/{judge}/reason")
        )
        said, why = row.get(verdict), row.get(reason)
        found.append(None if said is None and why is None else (said, why or ""))
    return found


def kind_of(judge: str, rows: Sequence[Mapping[str, Any]]) -> Kind | None:
    """A judge's kind, as far as its name and its verdicts in the records tell; None where they do not.

    A guard that was set to refusals is called so. For `classifier`, and a judge that is not installed, its verdicts
    have to tell; where they are of several kinds ("refused" is said by judges of refusals and of whole answers), it is
    the narrowest, whose question they answer for sure.
    """
    said = {found[0] for found in verdicts(rows, judge) if found and found[0] is not None}
    own: Kind | None = "refusal" if judge.endswith("-refusal") else None
    if own is None and judge != "classifier":
        with suppress(InputError):
            own = by_name(judge).kind
    if own is not None:
        return own if said <= set(VERDICTS[own]) else None
    fitting: list[Kind] = [kind for kind, words in VERDICTS.items() if said and said <= set(words)]
    return min(fitting, key=lambda kind: len(VERDICTS[kind]), default=None)
