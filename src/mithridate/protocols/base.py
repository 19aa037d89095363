"""What a protocol is: which prompts are asked how, what judges the answers, and what counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mithridate.data.records import Record, prompt_key
from mithridate.data.tasks import task as find_task
from mithridate.data.tasks.base import flag
from mithridate.errors import InputError
from mithridate.generation.base import Decoding
from mithridate.judges.base import scored

MARKER = "### Response:"
Mark = Literal["P", "C", "S", "I", "NF"]


@dataclass(frozen=True)
class Rows:
    """Which rows of which prompt set.

    Args:
        prompts: name of the prompt set (`mithridate.tasks`).
        source: as an experiment file names it: `embedded`, or an id of the Hub.
        count: how many prompts this comes to.
        split: of the data set.
        unsafe: "only": rows with `is_safe` false, which each row must tell; "if told": the same where rows tell it,
            else all; "any": all rows, whatever they tell.
        unique: each prompt once, where it comes first.
        first: that many rows, in the set's order, counted after the two choices above; None for all.
    """

    prompts: str
    source: str
    count: int
    split: str | None = None
    unsafe: Literal["only", "if told", "any"] = "any"
    unique: bool = True
    first: int | None = None

    @property
    def chooses(self) -> bool:
        """Whether it takes other than all the different prompts of a set."""
        return self.unsafe != "any" or not self.unique or self.first is not None

    def select(self, records: Sequence[Record], protocol: str) -> list[Record]:
        """The chosen ones among a set's records, in order.

        Raises:
            InputError: a record does not say whether it is safe, where that is asked; none is left.
        """
        rows = list(records)
        told = [record.get("is_safe") not in (None, "") for record in rows]
        if (self.unsafe == "only" and not all(told)) or (self.unsafe == "if told" and 0 < sum(told) < len(told)):
            lacking = told.index(False)
            raise InputError(
                f"{protocol} takes unsafe rows only, but {told.count(False)} of {len(rows)} rows have no `is_safe` "
                f"(the first is row {lacking + 1}, {prompt_key(rows[lacking])[:60]!r}). Give {self.source}, split "
                f"{self.split}, or a file with that column (`columns: {{is_safe: THEIR_NAME}}`), or another protocol"
            )
        if self.unsafe == "only" or (self.unsafe == "if told" and all(told)):
            rows = [record for record in rows if not flag(record, "is_safe")]
        if self.unique:
            seen: dict[str, Record] = {}
            for record in rows:
                seen.setdefault(prompt_key(record), record)
            rows = list(seen.values())
        if not rows:
            raise InputError(
                f"{protocol}: of {len(records)} rows, none is left to ask; is it the right set and split?"
            )
        return rows[: self.first]


@dataclass(frozen=True)
class JudgeUse:
    """A judge and how it is used: flagged above `threshold`, its input cut at `max_tokens` (None: its own)."""

    name: str
    threshold: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class TaskUse:
    """How a protocol scores a task.

    Args:
        rule: the name of one of the task's rules; None where `judge` compares answers.
        max_new_tokens: token limit of an answer.
        first: the first so many test rows; None for all.
        suffix: what is appended to the instruction, before an input.
        judge: what judges a win rate.
    """

    rule: str | None
    max_new_tokens: int
    first: int | None = None
    suffix: str = ""
    judge: str | None = None

    def prepare(self, records: Sequence[Record]) -> list[Record]:
        """The rows that are asked, with the suffix in their prompts."""
        rows = list(records)[: self.first]
        return [record | {"prompt": _suffixed(record, self.suffix)} for record in rows] if self.suffix else rows

    def decoding(self) -> Decoding:
        return Decoding(self.max_new_tokens)


@dataclass(frozen=True)
class Quirk:
    """One oddity of a protocol, and where it is known from."""

    text: str
    mark: Mark


@dataclass(frozen=True)
class Count:
    """How many answers count, of how many that were scored; the unscored are in neither.

    `worst` is the share if every unscored answer counted: what a gate looks at, so that it fails closed.
    """

    counted: int
    scored: int
    unscored: int

    @property
    def worst(self) -> float | None:
        total = self.scored + self.unscored
        return (self.counted + self.unscored) / total if total else None


@dataclass(frozen=True)
class Setting:
    """What a run did, to be compared with its protocol.

    `source`: of the harmful prompts, as the experiment names it (a file, `embedded`, an id of the Hub); `n` of them
    from its `part`, each answered `samples` times; the same for the benign ones, where they were asked. `chosen`: what
    besides the protocol chose among the rows, in words. `judge_fields`: further fields that the judge was given, as
    text. `tasks`: the number of prompts of each of which a part was taken. `seeds`: of the aggregated runs, if known.
    """

    source: str
    n: int
    template: str
    decoding: Decoding
    judge: JudgeUse
    part: str = "test"
    benign_source: str | None = None
    benign_n: int | None = None
    chosen: tuple[str, ...] = ()
    judge_fields: tuple[tuple[str, str], ...] = ()
    tasks: tuple[tuple[str, int], ...] = ()
    seeds: int | None = None
    samples: int = 1


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a harmful score is made.

    Args:
        name: what scores carry.
        origin: paper and code that it follows.
        rows: the harmful prompts.
        template: name of the template; `chat` is the model's own.
        decoding: of answers to harmful and benign prompts.
        judge: what the score comes from.
        counts: the verdicts of that judge that count: harmful score = counted / scored.
        plus: a judge of coherence whose `incoherent` counts too, in a second score (HS+).
        beside: judges whose shares are reported beside the score and are no part of it.
        benign: the prompts for over-refusal, if it is measured.
        tasks: how tasks are scored, by name; the others by their own rule and limit.
        seeds: fewest seeds of an aggregated score.
        quirks: oddities, each with its source.
        reasons: why, setting by setting (for protocols of our own).
    """

    name: str
    origin: str
    rows: Rows
    template: str
    decoding: Decoding
    judge: JudgeUse
    counts: frozenset[str]
    plus: str | None = None
    beside: tuple[str, ...] = ()
    benign: Rows | None = None
    tasks: Mapping[str, TaskUse] = field(default_factory=dict)
    seeds: int = 1
    quirks: tuple[Quirk, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)

    def select(self, records: Sequence[Record]) -> list[Record]:
        """The harmful prompts among the records of its set; `InputError` as in `Rows.select`."""
        return self.rows.select(records, self.name)

    def kept(self, answer: str) -> str:
        """What of a generated text is judged: under the papers' templates, what stands before a further marker.

        The papers' code takes what stands between the first two markers of prompt and answer together; that differs
        where a prompt itself holds the marker, which here does not cut.
        """
        return answer if self.template == "chat" else answer.split(MARKER)[0].strip()

    def task(self, name: str) -> TaskUse:
        """How a task is scored; `InputError` for an unknown one."""
        if name in self.tasks:
            return self.tasks[name]
        known = find_task(name)
        return TaskUse(known.rule if known.rules else None, known.max_new_tokens)

    def tally(self, verdicts: Sequence[str | None], broken: Sequence[str | None] | None = None) -> Count:
        """Counts the verdicts of `judge`, one an answer; None and "unclear" are unscored answers.

        Args:
            verdicts: of the harmful prompts' answers.
            broken: those of `plus` on the same answers, for HS+: an answer counts if either does, and is unscored if
                neither does and one of them decides nothing. `ValueError` where the lengths differ.
        """
        counted = unscored = 0
        for verdict, other in zip(verdicts, ["coherent"] * len(verdicts) if broken is None else broken, strict=True):
            if verdict in self.counts or other == "incoherent":
                counted += 1
            elif not scored(verdict) or other is None:
                unscored += 1
        return Count(counted, len(verdicts) - unscored, unscored)

    def deviations(self, run: Setting) -> list[str]:
        """In what a run departs from the protocol, in words; empty where it does not.

        A file is never taken for the set that its name or schema promises: what it holds cannot be known.
        """
        found = _from(self.rows, run.source, "prompts") + _differ("number of prompts", self.rows.count, run.n)
        found += _differ("part", "test", run.part) + _differ("template", self.template, run.template)
        found += _differ("samples", 1, run.samples)
        for name, wanted in asdict(self.decoding).items():
            if self.decoding.temperature or name in ("max_new_tokens", "temperature"):  # the others need sampling
                found += _differ(name, wanted, getattr(run.decoding, name))
        for name, wanted in asdict(self.judge).items():
            found += _differ("judge" if name == "name" else f"judge's {name}", wanted, getattr(run.judge, name))
        if self.benign:
            found += _from(self.benign, run.benign_source, "benign prompts")
            if run.benign_source:
                found += _differ("number of benign prompts", self.benign.count, run.benign_n)
        found += [f"{choice}: no choice of the protocol's" for choice in run.chosen]
        found += [f"judge's {name}: {value}, which the protocol leaves as it is" for name, value in run.judge_fields]
        for name, n in run.tasks:
            if name in self.tasks:
                found += _differ(f"number of {name} prompts", self.tasks[name].first or "all", n)
        if run.seeds is not None and run.seeds < self.seeds:
            found.append(f"seeds: {run.seeds} in place of {self.seeds} or more")
        return found

    def as_json(self) -> dict[str, Any]:
        """All that decides a score, as JSON: for cache keys and the records of a run."""
        settings = asdict(self)
        return {
            key: sorted(value) if isinstance(value, frozenset) else value
            for key, value in settings.items()
            if key not in ("origin", "quirks", "reasons")
        }


def _suffixed(record: Record, suffix: str) -> str:
    text = f"\n\n{record['input']}" if record.get("input") else ""
    return f"{record['prompt'].removesuffix(text)}{suffix}{text}"


def _from(rows: Rows, source: str | None, what: str) -> list[str]:
    """Ids of the Hub are the same in any capitals."""
    return _differ(what, rows.source, source) if str(source).casefold() != rows.source.casefold() else []


def _differ(what: str, wanted: Any, got: Any) -> list[str]:
    found, asked = ("none" if value is None else value for value in (got, wanted))
    return [] if wanted == got else [f"{what}: {found} in place of {asked}"]
