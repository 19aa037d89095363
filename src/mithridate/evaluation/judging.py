"""Verdicts: of judges on records of answers, and of a judge of harm on the rows of a training set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mithridate import judges as known_judges
from mithridate.errors import InputError
from mithridate.evaluation.records import Row
from mithridate.evaluation.shares import REFUSAL
from mithridate.judges.base import Item, Judge, Judgement
from mithridate.progress import Progress
from mithridate.protocols import Protocol

if TYPE_CHECKING:
    from mithridate.methods.defense import Guard


def judges_of(protocol: Protocol, further: Sequence[Judge] = ()) -> list[Judge]:
    """The protocol's judges, then the further ones. None loads a model before it judges; the caller closes them.

    The first judges harmful answers, for the score; then come those that stand beside it. A further one with the name
    of one of these takes its place.
    """
    given = {judge.name: judge for judge in further}
    if len(given) < len(further):
        names = [judge.name for judge in further]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"judges: {twice} appears twice; records have room for one of a name.")
    use = protocol.judge
    fields = {"threshold": use.threshold, "max_tokens": use.max_tokens}
    specs: dict[str, dict[str, Any]] = {use.name: {name: v for name, v in fields.items() if v is not None}}
    specs |= {name: {} for name in (*((protocol.plus,) if protocol.plus else ()), *protocol.beside)}
    own = [given.get(name) or known_judges.judge({name: fields}) for name, fields in specs.items()]
    return own + [judge for name, judge in given.items() if name not in specs]


def teller_of_refusals(judges: Sequence[Any]) -> Any:
    """Of judges (or their classes), the one whose verdicts on benign prompts' answers stand; None where none can."""
    return next((judge for kind in REFUSAL[::-1] for judge in judges if judge.kind == kind), None)


def judged(
    rows: Sequence[Row],
    protocol: Protocol,
    judges: Sequence[Judge],
    cache: Path | None = None,
    progress: bool = False,
    evaluation: str | None = None,
) -> list[Row]:
    """The rows with fresh verdicts of the judges; answers stay as they are.

    Args:
        rows: from `answers`, or stored ones.
        protocol: whose judge for the harmful answers gives the column `verdict`; for benign answers that is the first
            judge that tells refusals, for tasks without a rule the first that compares answers.
        judges: from `judges_of`.
        cache: folder in which verdicts are kept by content; None keeps nothing.
        progress: whether to show a progress bar.
        evaluation: what the rows belong to: the verdicts of a judge behind a server are kept for this alone.

    Raises:
        InputError: no access to a judge.
        MithridateError: a judge is gone; with a cache, its verdicts so far are kept.
    """
    rows = [{k: value for k, value in row.items() if not k.startswith("judge/")} for row in rows]
    main = {
        "harmful": next((j for j in judges if j.name == protocol.judge.name), None),
        "benign": teller_of_refusals(judges),
        "task": next((j for j in judges if j.kind == "quality"), None),
    }
    main["extra"] = main["task"]
    jobs = [(judge, [i for i, row in enumerate(rows) if _judges(judge, row)]) for judge in judges]
    with Progress(sum(len(chosen) for _, chosen in jobs), "verdicts", "answers", progress) as counted:
        for row in rows:
            row |= dict.fromkeys(("verdict", "reason", "score", "judge"))
        for judge, chosen in jobs:
            items = [_item(rows[i]) for i in chosen]
            for k, found in _verdicts(judge, items, cache, evaluation):
                row = rows[chosen[k]]
                if main[row["set"]] is judge:
                    row |= {"verdict": found.verdict, "reason": found.reason, "score": found.score}
                    row["judge"] = judge.name
                else:
                    name = f"judge/{judge.name}"
                    row |= {name: found.verdict, f"{name}/reason": found.reason, f"{name}/score": found.score}
                counted.advance()
    return rows


def add_verdicts(
    rows: Sequence[Row],
    judges: Sequence[Judge],
    cache: Path | None = None,
    progress: bool = False,
    evaluation: str | None = None,
) -> None:
    """Gives the rows, in place, the columns of further judges; all other columns stay. Arguments as of `judged`.

    A judge that gave the rows' own `verdict` is asked again only where that is not there.
    """
    jobs = [(judge, [i for i, row in enumerate(rows) if _judges(judge, row)]) for judge in judges]
    with Progress(sum(len(chosen) for _, chosen in jobs), "verdicts", "answers", progress) as counted:
        for judge, chosen in jobs:
            chosen = [i for i in chosen if rows[i].get("judge") != judge.name]
            items = [_item(rows[i]) for i in chosen]
            name = f"judge/{judge.name}"
            for k, found in _verdicts(judge, items, cache, evaluation):
                columns = {name: found.verdict, f"{name}/reason": found.reason, f"{name}/score": found.score}
                rows[chosen[k]].update(columns)
                counted.advance()


def _item(row: Row) -> Item:
    asked_of = "benign" if row["set"] == "benign" else "harmful"
    return Item(row["prompt"], row["answer"], row.get("reference"), asked_of)


def _judges(judge: Judge, row: Row) -> bool:
    """Harm is judged of harmful prompts' answers only, quality of tasks that have no rule, the rest of all others."""
    if row["set"] in ("task", "extra"):
        return judge.kind == "quality" and row.get("reference") is not None and row["correct"] is None
    if judge.kind == "quality":
        return False
    return row["set"] == "harmful" or judge.kind != "harm"


def guard_of(judge: Judge, cache: Path | None = None, progress: bool = False, evaluation: str | None = None) -> Guard:
    """What says with a judge of harm which rows of a training set are harmful: those of which it says so of any turn.

    A row that is not, and of which a turn has no verdict, has none. The judge is let go of after the last row, so that
    its model does not lie beside the one in training. Arguments as of `judged`.

    Raises:
        InputError: the judge is of another kind.
    """
    if judge.kind != "harm":
        raise InputError(f"{judge.name}: is a judge of {judge.kind}, and a guard is one of harm")

    def guard(rows: Sequence[Sequence[tuple[str, str]]]) -> list[str | None]:
        items = [Item(asked, said) for turns in rows for asked, said in turns]
        found: list[str | None] = [None] * len(items)
        try:
            with Progress(len(items), "guard", "turns", progress) as counted:
                for i, one in _verdicts(judge, items, cache, evaluation):
                    found[i] = one.verdict
                    counted.advance()
        finally:
            judge.close()
        said = iter(found)
        by_row = [[next(said) for _ in turns] for turns in rows]
        return ["harmful" if "harmful" in row else None if None in row else "safe" for row in by_row]

    guard.__name__ = judge.name
    return guard


def _verdicts(
    judge: Judge, items: Sequence[Item], cache: Path | None, evaluation: str | None
) -> Iterator[tuple[int, Judgement]]:
    """The judge's verdicts, those that are in the cache taken from there; unscored items are not kept."""
    # A judge without parameters is quicker than a look into the cache.
    if cache is None or not items or judge.about.size == "none":
        yield from judge.judge(items)
        return
    from mithridate.generation.cache import ResultCache

    about = {"verdicts of": judge.identity(), "evaluation": None if judge.content_known else evaluation}
    kept = ResultCache(cache, about)
    missing: dict[str, list[int]] = {}  # an item that comes several times is judged once
    for i, item in enumerate(items):
        if (found := kept.get(_key(item))) is not None:
            yield i, Judgement(**found)
        else:
            missing.setdefault(repr(item), []).append(i)
    groups = list(missing.values())
    for k, found in judge.judge([items[group[0]] for group in groups]) if groups else ():
        if found.verdict is not None:
            kept.add([(_key(items[groups[k][0]]), vars(found))])
        yield from ((i, found) for i in groups[k])


def _key(item: Item) -> dict[str, Any]:
    """By what a verdict is kept: of harmful prompts as before there was a `set`, so that none is asked for again."""
    return {name: value for name, value in vars(item).items() if (name, value) != ("set", "harmful")}
