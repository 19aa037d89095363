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
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from hashlib import sha256
from html import escape
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mithridate import judges as known_judges
from mithridate.data import tasks as known_tasks
from mithridate.data.records import asked, check_record, prompt_text, records_of
from mithridate.data.tasks.base import Scorer, require_label
from mithridate.errors import InputError, MithridateError
from mithridate.evaluation.judging import add_verdicts, guard_of, judged, judges_of, teller_of_refusals
from mithridate.evaluation.records import Row
from mithridate.evaluation.shares import (
    RATES,
    Answers,
    Teller,
    any_answer,
    broken_teller,
    outcomes,
    rate_of,
    rules_of,
    summarise,
    teller,
)
from mithridate.generation.base import Failure
from mithridate.generation.templates import TEMPLATES
from mithridate.judges.base import Judge
from mithridate.methods.base import TestTime
from mithridate.progress import Progress, live, quiet_libraries
from mithridate.protocols import Protocol, TaskUse
from mithridate.protocols import protocol as find_protocol

if TYPE_CHECKING:
    import pandas as pd

    from mithridate.generation.base import Answer, Decoding, Generator
    from mithridate.rows import Rows

__all__ = [
    "RATES",
    "Answers",
    "Evaluation",
    "Row",
    "Sampling",
    "Teller",
    "add_verdicts",
    "answers",
    "any_answer",
    "broken_teller",
    "evaluate",
    "guard_of",
    "judged",
    "judges_of",
    "outcomes",
    "rate_of",
    "require_scored",
    "rules_of",
    "summarise",
    "surrounded",
    "teller",
    "teller_of_refusals",
]


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
        number = isinstance(self.temperature, int | float) and not isinstance(self.temperature, bool)
        if not (number and 0 < self.temperature < inf):
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
            template, a prompt longer than the context, a judge that is none or that there is no access to, or a
            `batch_size` that is no number of prompts.
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
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(f"batch_size: expected a number of prompts from 1 on, got {batch_size!r}")
    folder, evaluation = Path(cache) if cache else None, uuid4().hex  # what a server says is not kept for another call
    several: list[Any] = [*judges] if isinstance(judges, list | tuple) else [judges]
    used = judges_of(chosen, [one if _is_judge(one) else known_judges.judge(one) for one in several])
    with nullcontext() if live() else quiet_libraries():  # in a log file their bars are lines upon lines
        generator = _generator(model, tokenizer, batch_size)
        rows = answers(generator, sets, chosen, folder, progress, evaluation, sampling=sampling)
        try:
            return Evaluation(judged(rows, chosen, used, folder, progress, evaluation))
        finally:
            for judge in used:
                if not any(judge is one for one in several):
                    judge.close()


def _is_judge(given: Any) -> bool:
    return hasattr(given, "judge") and not isinstance(given, type)


def _generator(model: Any, tokenizer: Any, batch_size: int | None) -> Generator:
    if hasattr(model, "identity") and tokenizer is None:
        return model
    if tokenizer is None and not isinstance(model, str | Path):
        raise InputError(
            "evaluate: a model needs its tokenizer: evaluate(model, tokenizer, ...), with "
            "AutoTokenizer.from_pretrained(...)"
        )
    from mithridate.generation.hf import Transformers

    if isinstance(tokenizer, str | Path):
        raise InputError(
            f"evaluate: tokenizer is a text, {str(tokenizer)!r}. Give the tokenizer itself: "
            "AutoTokenizer.from_pretrained(...)"
        )
    if not isinstance(model, str | Path) and not callable(getattr(model, "generate", None)):
        raise InputError(
            f"evaluate: expected a causal language model, its name or a Generator, got {type(model).__name__}"
        )
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
