"""From a model to a record for each prompt, and from records to shares with intervals.

    answers   ->   judged   ->   summarise
    (generate)     (verdicts)    (a table's numbers)

Each is a pass of its own over the records of the one before: a second judge never generates again, and every number of
a table is computed from records alone, whether they come from memory or from a Parquet file. With a `cache` folder,
answers and verdicts are kept by content (weights, template, decoding and prompt; judge and answer), so that an
evaluation that is killed goes on where it was, and a retrained model never gets an old model's answers.

What is asked of a model, how it is judged and what counts is the protocol's: see `mithridate.protocols`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from html import escape
from math import ceil, floor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mithridate import judges as known_judges
from mithridate.data import tasks as known_tasks
from mithridate.data.records import asked, check_record, prompt_text, records_of
from mithridate.data.tasks.base import Scorer, require_label
from mithridate.errors import InputError, MithridateError
from mithridate.generation.base import Failure
from mithridate.generation.templates import TEMPLATES
from mithridate.judges.base import UNCLEAR, Item, Judge, Judgement, scored
from mithridate.methods.base import TestTime
from mithridate.progress import Progress
from mithridate.protocols import Protocol, TaskUse
from mithridate.protocols import protocol as find_protocol
from mithridate.statistics import proportion, proportion_of

if TYPE_CHECKING:
    import pandas as pd

    from mithridate.generation.base import Answer, Decoding, Generator
    from mithridate.methods.defense import Guard
    from mithridate.rows import Rows

Row = dict[str, Any]
"""One record. Columns:

- `set` ("harmful", "benign", "task": the user's task, "extra": a further task), `task` (its name), `id`, `category`,
  where answers were sampled `sample` (the number of the answer among those to the same prompt);
- `prompt` (the user turns), `answer`, `label` (text of a task's right answer), `correct` (bool, of scored tasks),
  `reference` (the answer that a win rate compares with);
- `verdict`, `reason`, `score` and `judge`: of the one judge that the protocol has for that set (None where it has
  none; a verdict of None beside a judge, or of "unclear", is unscored, and `reason` says why);
- for each further judge NAME: `judge/NAME` (its verdict), `judge/NAME/reason`, `judge/NAME/score`;
- `protocol`, `new_tokens`, `prompt_tokens`, `seconds`, `finished` (the model ended the answer itself).
"""

_REFUSAL, _BROKEN = ("refusal", "answer"), ("coherence", "answer")  # kinds of judge that tell, the first preferred
Answers = tuple[bool | None, ...]
"""Whether each of the answers to a prompt counts; None where one is unscored."""


@dataclass(frozen=True)
class Sampling:
    """Several answers to each harmful and benign prompt, each drawn by itself. Tasks are answered as their use says.

    Args:
        samples: answers to a prompt.
        temperature: above 0, for greedy answers are all alike.
        seed: of the draws: the same answers come out for the same seed, in any batches.
    """

    samples: int
    temperature: float
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.samples, bool) or not isinstance(self.samples, int) or self.samples < 1:
            raise InputError(f"samples: expected 1 or more answers to a prompt, got {self.samples!r}")
        if not self.temperature > 0:
            raise InputError(
                f"temperature: expected a number above 0, got {self.temperature!r}; at 0 all samples would be the one "
                "greedy answer"
            )

    def decoding(self, greedy: Decoding) -> Decoding:
        return replace(greedy, temperature=self.temperature, seed=self.seed)


@dataclass(frozen=True)
class Evaluation:
    """The records of one evaluated model, one `Row` a prompt."""

    records: list[Row]

    def summary(self) -> dict[str, Any]:
        """The shares of `summarise`."""
        return summarise(self.records)

    def to_pandas(self) -> pd.DataFrame:
        """The records, one row an answer."""
        import pandas as pd

        return pd.DataFrame(self.records)

    def table(self) -> pd.DataFrame:
        """One row a share that was measured: `share`, `value`, `low` and `high` (fractions), `n`, `unscored`."""
        import pandas as pd

        found = self.summary()
        rates = {name: rate for name, rate in found.items() if name != "extra"} | found.get("extra", {})
        columns = ("value", "low", "high", "n", "unscored")
        return pd.DataFrame(
            [
                {"share": name, **{column: rate.get(column) for column in columns}}
                for name, rate in rates.items()
                if rate["n"]
            ],
            columns=["share", *columns],
        )

    def _repr_html_(self) -> str:
        protocol = escape(str(self.records[0]["protocol"])) if self.records else "-"
        shown = self.table().to_html(index=False, float_format="{:.3f}".format, na_rep="")
        return f"<p>protocol {protocol}: {len(self.records)} answers</p>{shown}"


def evaluate(
    model: Any,
    tokenizer: Any = None,
    harmful: Rows = (),
    benign: Rows = (),
    task: Rows = (),
    task_name: str | None = None,
    protocol: str = "hs/embedded-v1",
    judges: Sequence[Judge | str | Mapping[str, Any]] | str = (),
    cache: str | Path | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    sampling: Sampling | None = None,
) -> Evaluation:
    """Generates and judges the answers to test records; sets left out are not evaluated.

    Args:
        model: a causal language model of transformers or PEFT; the name of one (embedded, a folder, a Hub id); or a
            `Generator` (a server, vLLM).
        tokenizer: the model's tokenizer; not given with a name or a `Generator`.
        harmful: requests that should be refused, all of which are asked (`Protocol.select` chooses): a list, a
            DataFrame or a data set, in any form of `mithridate.rows`.
        benign: requests that should not be, likewise.
        task: rows of the user's task (as `Task.record` makes them), likewise.
        task_name: the task's name; needed with `task`.
        protocol: the name of the protocol.
        judges: further judges of the harmful and benign answers: a name, {name: {field: value}} as in an experiment
            file, or a judge, which the caller closes. One with the name of a judge of the protocol's takes its place
            (another model folder, a threshold).
        cache: folder in which answers and verdicts are kept by content; None keeps nothing.
        batch_size: prompts in one batch; None for what suits the device.
        progress: whether to show how far it is: a bar on a terminal, lines in a log file.
        sampling: how often harmful and benign prompts are answered, and how; None as the protocol has it: once.

    Raises:
        InputError: an unknown protocol, task or judge, no records at all, rows that are none, no tokenizer or no chat
            template, a prompt longer than the context, or no access to a judge.
        MithridateError: prompts that could not be answered; with a cache, what was answered is kept.
    """
    chosen = find_protocol(protocol)
    given = {"harmful": harmful, "benign": benign, "task": task}
    sets = {name: records_of(rows, name) for name, rows in given.items()}
    if not any(sets.values()):
        raise InputError("There are no records to evaluate: give at least one of harmful, benign and task.")
    if sets["task"] and task_name is None:
        raise InputError(f"Task records need their task's name: one of {', '.join(known_tasks.TASKS)}.")
    sets[f"task:{task_name}"] = sets.pop("task")
    generator = _generator(model, tokenizer, batch_size)
    folder, evaluation = Path(cache) if cache else None, uuid4().hex  # what a server says is not kept for another call
    several = [judges] if isinstance(judges, str | Mapping) else judges
    used = judges_of(chosen, [known_judges.judge(j) if isinstance(j, str | Mapping) else j for j in several])
    rows = answers(generator, sets, chosen, folder, progress, evaluation, sampling=sampling)
    try:
        return Evaluation(judged(rows, chosen, used, folder, progress, evaluation))
    finally:
        for judge in used:
            if not any(judge is one for one in judges):
                judge.close()


def _generator(model: Any, tokenizer: Any, batch_size: int | None) -> Generator:
    if hasattr(model, "identity") and tokenizer is None:
        return model
    if tokenizer is None and not isinstance(model, str | Path):
        raise InputError(
            "evaluate: a model needs its tokenizer: evaluate(model, tokenizer, ...), with "
            "AutoTokenizer.from_pretrained(...)"
        )
    from mithridate.generation.hf import Transformers

    if isinstance(model, str | Path):
        return Transformers.open(str(model), batch_size=batch_size)
    return Transformers(model, tokenizer, batch_size=batch_size)


# -- answers ------------------------------------------------------------------------------------------------------


def answers(
    generator: Generator,
    sets: Mapping[str, Sequence[dict]],
    protocol: Protocol,
    cache: Path | None = None,
    progress: bool = False,
    evaluation: str | None = None,
    around: Sequence[TestTime] = (),
    sampling: Sampling | None = None,
) -> list[Row]:
    """One row an answer of the model. Answers to tasks with a rule are scored by it; the rest is for judges.

    Args:
        generator: what answers.
        sets: records by "harmful", "benign", "task:NAME" and "extra:NAME"; empty ones are passed over.
        protocol: says how each set is asked.
        cache: folder in which answers are kept by content; None keeps nothing.
        progress: whether to show a progress bar.
        evaluation: what the answers belong to: those of a server are kept for this alone.
        around: what is put around each prompt, one after the other; rows keep the bare prompt, and say so in the
            column `at_test` (JSON), which they have only then.
        sampling: how often harmful and benign prompts are answered; None for once, as the protocol says. The rows of
            one prompt follow each other.

    Raises:
        InputError: an unknown task, a rule that the task lacks, or a prompt that does not fit.
        MithridateError: some prompts could not be answered; what was answered is in the cache.
    """
    from mithridate.generation.cache import cached_generate

    for name, records in sets.items():
        require_scored(name, records, protocol)
    rows: list[Row] = []
    scope = None if generator.content_known else evaluation
    sampled = sampling.samples if sampling else 1
    several: dict[str, int] = {name: sampled if name in ("harmful", "benign") else 1 for name in sets}
    asked_for = sum(several[name] * len(records) for name, records in sets.items())
    with Progress(asked_for, "answers", "prompts", progress) as counted:
        for name, records in sets.items():
            if not records:
                continue
            kind, _, task_name = name.partition(":")
            use, correct = _scoring(task_name, protocol)
            records = use.prepare(records) if use else records
            decoding = use.decoding() if use else protocol.decoding
            decoding = sampling.decoding(decoding) if sampling and not use else decoding
            found, failed, k = {}, [], several[name]
            conversations = [turns for record in records for turns in [surrounded(asked(record), around)] * k]
            how = generator, conversations, TEMPLATES[protocol.template], decoding
            for i, answer in cached_generate(*how, cache, scope):
                counted.advance()
                if isinstance(answer, Failure):
                    failed.append(answer.reason)
                    continue
                record = records[i // k]
                row = _row(kind, task_name or None, record, answer, protocol)
                row |= {"sample": i % k} if sampling else {}
                row |= {"at_test": json.dumps([vars(each) for each in around])} if around else {}
                if correct:
                    row |= {"correct": correct(row["answer"], record), "label": str(record["label"])}
                found[i] = row
            if failed:
                raise MithridateError(
                    f"{len(failed)} of {len(conversations)} {name} prompts could not be answered: {failed[0]} Run it "
                    "again: answers that a cache has are not asked for again."
                )
            rows += [found[i] for i in range(len(conversations))]
    return rows


def surrounded(conversation: list[dict[str, str]], around: Sequence[TestTime]) -> list[dict[str, str]]:
    """A conversation with what stands around it at the test, put there one after the other."""
    for each in around:
        conversation = each.around(conversation)
    return conversation


def _scoring(task: str, protocol: Protocol) -> tuple[TaskUse | None, Scorer | None]:
    """How a task is asked and, where it has a rule, scored; nothing where there is no task."""
    use = protocol.task(task) if task else None
    return use, known_tasks.task(task).rules[use.rule] if use and use.rule else None


def require_scored(name: str, records: Sequence[dict], protocol: Protocol) -> None:
    """Whether the answers to a set can be scored: what would stop an evaluation half-way is said before it begins.

    Args:
        name: the set, as of `answers`.
        records: its records.
        protocol: says how they are asked and scored.

    Raises:
        InputError: a record is none, or has no label that the task's rule knows.
    """
    task_name = name.partition(":")[2]
    _, correct = _scoring(task_name, protocol) if records else (None, None)
    for i, record in enumerate(records):
        where = f"{name}, record {i + 1}"
        check_record(record, where, needs_answer=False)
        if correct and record.get("label") in (None, ""):
            raise InputError(f"{where}: no `label`, by which {task_name}'s answers are scored; give it")
        if correct:
            require_label(correct, record, task_name, where)


def _row(kind: str, task: str | None, record: dict, answer: Answer, protocol: Protocol) -> Row:
    prompt = prompt_text(record)
    return {
        "set": kind,
        "task": task,
        "id": sha256(prompt.encode()).hexdigest()[:12] if record.get("id") in (None, "") else str(record["id"]),
        "category": record.get("category"),
        "prompt": prompt,
        "answer": protocol.kept(answer.text),
        "verdict": None,
        "reason": None,
        "score": None,
        "judge": None,
        "correct": None,
        "label": None,
        "reference": record.get("reference"),
        "protocol": protocol.name,
        "new_tokens": answer.new_tokens,
        "prompt_tokens": answer.prompt_tokens,
        "seconds": answer.seconds,
        "finished": answer.finished,
    }


# -- verdicts -----------------------------------------------------------------------------------------------------


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
    return next((judge for kind in _REFUSAL[::-1] for judge in judges if judge.kind == kind), None)


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


# -- shares -------------------------------------------------------------------------------------------------------


RATES = (
    "harmful_score",
    "refused",
    "other",
    "unclear",
    "incoherent",
    "benign_refusal",
    "benign_other",
    "benign_incoherent",
    "accuracy",
)
"""The rates that every model has, by their names in results.json."""


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """The shares of a results.json cell, each with Wilson's 95 % interval, its n, and how many answers are unscored.

    All of `RATES` are there: `harmful_score` is the share of harmful prompts' answers whose verdict counts under the
    protocol, of those that were scored; `refused`, `other`, `unclear` and `incoherent` are of the same answers, the
    `benign_` ones of those to benign prompts, `accuracy` of the user's task (`_tells` says by whose verdict).
    `unclear` is of all judged answers; in the other shares these are among the unscored. A rate that nothing tells, or
    whose set is empty, has the value None. `harmful_score_plus` is there only where the protocol has one, `win_rate`
    where answers were compared, `extra` (a share for each further task) where there are such. Where prompts are
    answered repeatedly, all intervals are those of the different prompts; where they were sampled, the shares of
    harmful and benign prompts also have what `rate_of` says.

    Raises:
        InputError: rows of several protocols, or whose score several judges gave; verdicts that are no text.
    """
    if any(not isinstance(row["verdict"], str | None) for row in rows):
        raise InputError(
            "A verdict is no text: pandas puts NaN where there is none. Take the records from `Run.records()`, or "
            "read them with pyarrow."
        )
    names = {row["protocol"] for row in rows}
    if len(names) > 1:
        raise InputError(f"Rows of several protocols have no common score: {', '.join(sorted(names))}.")
    if len(judges := {row.get("judge") for row in rows if row["set"] == "harmful"} - {None}) > 1:
        raise InputError(
            f"Verdicts of several judges have no common score: {', '.join(sorted(map(str, judges)))}. Judge all the "
            "rows with one of them (`mithridate judge`)."
        )
    protocol = find_protocol(names.pop()) if names else find_protocol("hs/embedded-v1")
    by_set: dict[str, list[Row]] = {}
    for row in rows:
        by_set.setdefault(row["set"], []).append(row)
    summary: dict[str, Any] = {}
    for rate, (kind, tells) in _tells(protocol).items():
        of_set = by_set.get(kind, []) if tells else []
        outcomes = [tells(row) for row in of_set] if tells else []
        summary[rate] = _share(outcomes) if kind == "task" else _rate(of_set, outcomes)
    task, extra = by_set.get("task", []), by_set.get("extra", [])
    if protocol.plus:
        harmful, plus = by_set.get("harmful", []), f"judge/{protocol.plus}"
        summary["harmful_score_plus"] = _rate(harmful, [_counts_as(row, protocol, plus) for row in harmful])
    if any(row["correct"] is None for row in task):
        summary["win_rate"] = _win_rate(task)
    if extra:
        by_task = {
            name: [row for row in extra if row["task"] == name] for name in dict.fromkeys(r["task"] for r in extra)
        }
        summary["extra"] = {
            name: _share([_right(row) for row in part]) if part[0]["correct"] is not None else _win_rate(part)
            for name, part in by_task.items()
        }
    return summary


def outcomes(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Answers]]:
    """By the names of `RATES`, what each prompt's answers came to in one model: {rate: {prompt: (counts, ...)}}.

    A prompt has one entry, or one for each sample of its answer. None is unscored: the judge gave no verdict, or said
    that it cannot tell. Where a protocol asks a prompt repeatedly, and so gets the same greedy answer, it is there
    once. A rate that nothing here tells is left out.

    Raises:
        InputError: an unknown protocol.
    """
    if not rows:
        return {}
    of_set: dict[str, list[tuple[str, Teller]]] = {}
    for rate, (kind, tells) in _tells(find_protocol(rows[0]["protocol"])).items():
        if tells:
            of_set.setdefault(kind, []).append((rate, tells))
    found: dict[str, dict[str, dict[int, bool | None]]] = {}
    for row in rows:
        for rate, tells in of_set.get(row["set"], ()):
            found.setdefault(rate, {}).setdefault(row["prompt"], {})[row.get("sample") or 0] = tells(row)
    return {
        rate: {prompt: tuple(samples.values()) for prompt, samples in prompts.items()}
        for rate, prompts in found.items()
    }


Teller = Callable[[Mapping[str, Any]], bool | None]
"""Whether an answer counts for a rate; None where it is unscored."""


def _tells(protocol: Protocol) -> dict[str, tuple[str, Teller | None]]:
    """The one rule of each of `RATES`: the set of prompts that it is of, and what tells whether an answer counts.

    Where the protocol's own judge judges whole answers, its verdict tells. Else refusals and broken text are told by a
    judge that stands beside it (`teller`), and nothing tells what is neither.
    """
    four = _kind(protocol.judge.name) == "answer"

    def says(word: str, kinds: tuple[str, str] | None = None) -> Teller | None:
        judge = teller(protocol, kinds) if kinds else protocol.judge.name if four else None
        return None if judge is None else lambda row: _said(row, protocol, judge, word)

    return {
        "harmful_score": ("harmful", lambda row: _counts_as(row, protocol, None)),
        "refused": ("harmful", says("refused", _REFUSAL)),
        "other": ("harmful", says("other")),
        "unclear": ("harmful", _unclear if four else None),
        "incoherent": ("harmful", says("incoherent", _BROKEN)),
        "benign_refusal": ("benign", lambda row: row["verdict"] == "refused" if scored(row["verdict"]) else None),
        "benign_other": ("benign", says("other")),
        "benign_incoherent": ("benign", says("incoherent", _BROKEN)),
        "accuracy": ("task", _right),
    }


def rules_of(protocol: Protocol) -> str | None:
    """The name, with its version, of the written rules among a protocol's own judges."""
    return next((name for name in (protocol.judge.name, *protocol.beside) if name.startswith("rules-")), None)


def _kind(judge: str) -> str:
    return known_judges.by_name(judge).kind


def broken_teller(protocol: Protocol) -> str | None:
    """The judge of the protocol's own that tells broken text from other answers, to harmful and to benign prompts."""
    return teller(protocol, _BROKEN)


def teller(protocol: Protocol, kinds: Sequence[str]) -> str | None:
    """The protocol's judge where that judges whole answers, else the first beside it of these kinds; None for none."""
    if _kind(protocol.judge.name) == "answer":
        return protocol.judge.name
    return next((name for kind in kinds for name in protocol.beside if _kind(name) == kind), None)


def _said(row: Mapping[str, Any], protocol: Protocol, judge: str, verdict: str) -> bool | None:
    """Whether that is the judge's verdict; None where the answer is unscored. The protocol's own judge, and the one
    whose verdict stands for this set, have it in the column `verdict`, all others in one of their own."""
    own = judge in (protocol.judge.name, row.get("judge"))
    said = row["verdict"] if own else row.get(f"judge/{judge}")
    return said == verdict if scored(said) else None


def _unclear(row: Mapping[str, Any]) -> bool | None:
    """Whether the rules could not tell, of all judged answers."""
    return None if row["verdict"] is None else row["verdict"] == UNCLEAR


def _counts_as(row: Mapping[str, Any], protocol: Protocol, plus: str | None) -> bool | None:
    """Whether an answer counts under the protocol; None where it is unscored."""
    one = protocol.tally([row["verdict"]], [row.get(plus)] if plus else None)
    return None if one.unscored else bool(one.counted)


def _rate(rows: Sequence[Row], outcomes: Sequence[bool | None]) -> dict[str, Any]:
    samples = 1 + max((row.get("sample") or 0 for row in rows), default=0)
    return rate_of([row["prompt"] for row in rows], outcomes, samples)


def rate_of(prompts: Sequence[str], outcomes: Sequence[bool | None], samples: int = 1) -> dict[str, Any]:
    """A share as results.json has it: of the scored outcomes, one an answer, with how many are unscored.

    Of prompts with several `samples` of their answer also `any_of_k`: the share with one or more that count (unscored
    where none does and one is unscored), and `worst_of_k`: the same if every unscored answer counted.
    """
    found = proportion_of(prompts, outcomes) | {"unscored": outcomes.count(None)}
    if samples == 1:
        return found
    by_prompt: dict[str, list[bool | None]] = {}
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        by_prompt.setdefault(prompt, []).append(outcome)
    any_of = [any_answer(said) for said in by_prompt.values()]
    scored = [outcome for outcome in any_of if outcome is not None]
    worst = [outcome is not False for outcome in any_of]
    return found | {
        "samples": samples,
        "any_of_k": proportion(sum(scored), len(scored)) | {"unscored": any_of.count(None)},
        "worst_of_k": proportion(sum(worst), len(worst)),
    }


def any_answer(outcomes: Sequence[bool | None]) -> bool | None:
    """Whether one or more of a prompt's answers count; None where none does and one is unscored."""
    return True if True in outcomes else None if None in outcomes else False


def _right(row: Mapping[str, Any]) -> bool | None:
    return None if row["correct"] is None else bool(row["correct"])


def _share(outcomes: Sequence[bool | None]) -> dict[str, Any]:
    unscored = outcomes.count(None)
    return proportion(outcomes.count(True), len(outcomes) - unscored) | {"unscored": unscored}


def _win_rate(rows: Sequence[Row]) -> dict[str, Any]:
    """A tie counts one half. Wilson's bounds at the whole numbers of wins around the count, so a little wide."""
    verdicts = [row["verdict"] for row in rows if row["verdict"] is not None]
    won, n = verdicts.count("won") + verdicts.count("tied") / 2, len(verdicts)
    below, above = proportion(floor(won), n), proportion(ceil(won), n)
    found = {"value": won / n if n else None, "low": below["low"], "high": above["high"], "n": n}
    return found | {"unscored": len(rows) - n}
