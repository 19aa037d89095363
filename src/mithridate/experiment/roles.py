"""The data roles of an experiment, loaded from their sources and disjoint by prompt.

A defense that was aligned on the prompts it is tested on, or that shares harmful rows with the attacker, shows
nothing. So any prompt that two roles share is refused, with one exception that the experiment file states:
`paired: true` on `defender_harmful` allows the prompts of `alignment` (the setting of the Booster authors).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from mithridate.data.columns import joined, require_known
from mithridate.data.embedded import embedded_records
from mithridate.data.files import ENDINGS, no_file, readable, rows_of
from mithridate.data.hub import HUB, HubSet, hub_rows
from mithridate.data.records import Record, answered_keys, check_record, missing_columns, paired, prompt_key, turns
from mithridate.data.tasks import prompt_set
from mithridate.data.tasks import task as find_task
from mithridate.data.tasks.base import PromptSet, require_label
from mithridate.errors import Findings, InputError, nearest
from mithridate.rows import record as as_record
from mithridate.rows import require_nothing_dropped
from mithridate.toolcalls import in_text

TRAINING = ("alignment", "defender_harmful", "attacker_harmful", "calibration_harmful", "helpful")
TESTS = ("test_harmful", "test_benign")
ROLES = (*TRAINING, "task", *TESTS)
_KEPT = ("label", "category", "kind", "id", "is_safe", "reference")  # what a record has beside its turns


@dataclass(frozen=True)
class Source:
    """Where the rows of a role come from. Applied in this order: `columns`, `where`, `share`, `skip`, `take`.

    Args:
        source: `embedded`, a `.jsonl`, `.json`, `.csv` or `.parquet` file (the text ones also packed: `.jsonl.gz`,
            `.csv.zst`), or the id of a known Hub data set. Rows may have any form of `mithridate.rows`: ours, TRL's,
            ShareGPT's, Alpaca's.
        name: the prompt set whose schema the rows have, or in the role `task` the task: says how rows become prompts
            and how answers are scored. A Hub data set has its own. Of `embedded` in the role `attacker_harmful`:
            `identity`, the rows that give the model an obedient persona.
        split: of a Hub data set; by default its training split, or its test split for test roles.
        columns: our column names to those of the file, as in `{prompt: instruction, response: output}`.
        where: keep the rows in which these columns have these values (a list: one of them).
        share: keep the rows whose prompt falls into this part of [0, 1), by a digest of the prompt. Sources with
            shares that do not overlap are disjoint by prompt, whatever repeats in them.
        skip, take: leave out the first `skip` rows, then keep exactly `take` (all, if not given); a file is read no
            further than that.
        validation_share: of a test set or a task's test rows: this part of the prompts, chosen by their digest,
            becomes the validation part. The embedded set has its own.
        test: of a task from files: where its test rows come from.
        paired: of `defender_harmful`: it may have the prompts of `alignment`.
    """

    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012 (for the experiment file)

    source: str
    name: str | None = None
    split: str | None = None
    columns: dict[str, str] | None = None
    where: dict[str, Any] | None = None
    share: list[float] | None = None
    skip: int = 0
    take: int | None = None
    validation_share: float = 0.0
    test: Source | str | None = None
    paired: bool = False


@dataclass
class Roles:
    """The records of every role; a role that was not asked for is empty. All parts of test sets hold a prompt once.

    `extra` holds the test rows of further tasks, by task. `digests` has, for each part with records, the SHA-256 of
    their canonical JSON. `notes` says in words what was left out.
    """

    alignment: list[Record] = field(default_factory=list)
    defender_harmful: list[Record] = field(default_factory=list)
    attacker_harmful: list[Record] = field(default_factory=list)
    calibration_harmful: list[Record] = field(default_factory=list)
    helpful: list[Record] = field(default_factory=list)
    task_train: list[Record] = field(default_factory=list)
    task_validation: list[Record] = field(default_factory=list)
    task_test: list[Record] = field(default_factory=list)
    test_harmful: list[Record] = field(default_factory=list)
    test_harmful_validation: list[Record] = field(default_factory=list)
    test_benign: list[Record] = field(default_factory=list)
    test_benign_validation: list[Record] = field(default_factory=list)
    extra: dict[str, list[Record]] = field(default_factory=dict)
    task_name: str | None = None
    paired: bool = False
    digests: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def parts(self) -> dict[str, list[Record]]:
        """Attribute name (`extra:NAME` for a further task) to records, of those that have any."""
        own = {name: value for name, value in vars(self).items() if name in _PARTS and value}
        return own | {f"extra:{name}": rows for name, rows in self.extra.items()}


_PARTS = {  # attribute of Roles -> role
    **{role: role for role in TRAINING},
    **{f"task_{part}": "task" for part in ("train", "validation", "test")},
    **{f"{role}{part}": role for role in TESTS for part in ("", "_validation")},
}


def load_roles(
    data: Mapping[str, Source | list[Source] | None],
    base: Path = Path(),
    only: set[str] | None = None,
    select: Callable[[list[Record]], list[Record]] | None = None,
    extra: Mapping[str, list[Source]] | None = None,
    system: str | None = None,
) -> Roles:
    """Loads the roles of an experiment and checks that they are disjoint by prompt.

    Args:
        data: role to source, or to sources whose rows are put one after the other.
        base: what relative paths are relative to: the folder of the experiment file.
        only: load these roles alone.
        select: a protocol's choice among the rows of `test_harmful`, which it is given as they come: safe ones and
            repeated prompts too.
        extra: further tasks by name, each with the sources of its test rows.
        system: the system turn of the records that have none of their own (in their field `system`), if given.

    Raises:
        InputError: a source or a row is bad (with file and line), or two roles share prompts (with their number and
            examples).
    """
    for role in (*data, *(only or ())):
        if role not in ROLES:
            raise InputError(
                f"data: unknown role {role!r}{nearest(role, ROLES, listed=False)}; roles: {', '.join(ROLES)}"
            )
    roles, findings = Roles(), Findings()
    for role in ROLES:
        given = data.get(role)
        if given is None or (only is not None and role not in only):
            continue
        with findings.noting():
            _load_role(roles, role, given if isinstance(given, list) else [given], base, select)
    for name, sources in (extra or {}).items():
        with findings.noting():
            for source in sources:
                _check_source(source, "task")
            rows = [record for source in sources for record in _load(source, "task", "test", base, roles, name)]
            roles.extra[name] = _without(set(), rows, roles, f"evaluate.tasks.{name}", "test", once=True)
    with findings.noting():
        _refuse_overlap(roles)
    findings.settle("data")
    if system is not None:
        for record in (record for records in roles.parts().values() for record in records):
            record.setdefault("system", system)
    roles.digests = {name: digest(records) for name, records in roles.parts().items()}
    return roles


def _load_role(
    roles: Roles,
    role: str,
    sources: list[Source],
    base: Path,
    select: Callable[[list[Record]], list[Record]] | None,
) -> None:
    if not sources:
        raise InputError(f"data.{role}: the list of sources is empty")
    for source in sources:
        _check_source(source, role)
    if role == "task":
        _load_task(roles, sources, base)
    elif role == "test_harmful" and select:
        _load_selected(roles, sources, base, select)
    elif role in TESTS:
        _load_test(roles, role, sources, base)
    else:
        setattr(roles, role, [record for source in sources for record in _load(source, role, "train", base, roles)])
    roles.paired |= any(source.paired for source in sources)


def source_problems(data: Mapping[str, list[Source]], base: Path) -> list[str]:
    """What is wrong with the sources of an experiment, as far as it can be told without reading rows."""
    findings = Findings()
    for role, sources in data.items():
        for source in sources if role in ROLES else ():
            with findings.noting():
                _check_source(source, role)
                files = [source.source, *([source.test] if isinstance(source.test, str) else [])]
                for name in files:
                    if name != "embedded" and not _hub(name) and not (path := _path(name, base, role)).is_file():
                        raise InputError(f"data.{role}: {no_file(path)}")
    return findings.texts()


def digest(records: list[Record]) -> str:
    """SHA-256 of the records' canonical JSON, in order."""
    text = json.dumps(records, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _check_source(source: Source, role: str) -> None:
    here = f"data.{role}"
    for name, owner in (("test", "task"), ("paired", "defender_harmful")):
        if getattr(source, name) and role != owner:
            raise InputError(f"{here}: `{name}` has a meaning for {owner} only; take it out")
    identity = (source.source, role, source.name) == ("embedded", "attacker_harmful", "identity")
    if source.name and role != "task" and not identity and (_hub(source.source) or source.source == "embedded"):
        raise InputError(f"{here}: {source.source} says itself what its rows are; take `name` out")
    if source.skip < 0:
        raise InputError(f"{here}: skip {source.skip} is below 0")
    if source.take is not None and source.take < 1:
        raise InputError(f"{here}: take {source.take} is below 1")
    if source.share is not None and not (len(source.share) == 2 and 0 <= source.share[0] < source.share[1] <= 1):
        raise InputError(f"{here}: share {source.share} is not a part [from, to] of [0, 1]")
    if source.validation_share and role not in (*TESTS, "task"):
        raise InputError(f"{here}: `validation_share` has a meaning for test sets and the task only; take it out")
    if not 0 <= source.validation_share < 1:
        raise InputError(f"{here}: validation_share {source.validation_share:g} is outside [0, 1)")
    if source.source == "embedded" and source.validation_share:
        raise InputError(f"{here}: the embedded set has its own validation part; take `validation_share` out")


# -- one source ---------------------------------------------------------------------------------------------------


def _load(
    source: Source, role: str, part: str, base: Path, roles: Roles, task: str | None = None, raw: bool = False
) -> list[Record]:
    """The records of one source for one part (train, validation or test) of a role.

    `raw`: repeated prompts too, and rows that are safe, for a protocol to choose from.
    """
    here = f"data.{role}: {source.source}"
    known = _hub(source.source)
    if source.split and not known:
        raise InputError(f"{here}: `split` has a meaning for Hub data sets only; take it out")
    if source.source == "embedded":
        found = embedded_records(role, part, source.paired, None if role == "task" else source.name)
        rows: Iterable[tuple[str, dict[str, Any]]] = [
            (f"embedded {role}, row {i}", record) for i, record in enumerate(found, start=1)
        ]
    elif known:
        if role not in known.roles:
            raise InputError(f"{here} cannot be {role}; it has data for: {', '.join(known.roles)}")
        rows = hub_rows(known, source.split or (known.train if part == "train" else known.test), role)
    else:
        rows = rows_of(_path(source.source, base, role))

    schema = _schema(source, role, task, here)
    test = part != "train"
    records, seen, unanswered, repeated, begun, ended, calling, unpaired = [], set(), 0, 0, 0, 0, 0, []
    for number, (place, row) in enumerate(rows):
        if source.columns and number == 0:
            require_known(
                source.columns, row, source.where or {}, known.record if known else schema and schema.record, here
            )
        row = _mapped(row, source.columns or {}, place)
        if not _selected(row, source.where or {}, place):
            continue
        try:
            chosen_later = raw and "is_safe" in row
            if schema and schema.keeps and not chosen_later and not schema.keeps(row, role):
                continue
            raw_row, row = row, _made(row, known, schema, place)
            if not known:
                require_nothing_dropped(raw_row, row, source.columns or {})
            if role == "task" and not test:
                row = _with_answer(row, schema)
        except InputError as error:
            said = str(error)
            raise InputError(said if said.startswith(place) else f"{place}: {said}") from error
        if known and role != "task" and not test and not str(row.get("response") or "").strip():
            unanswered += 1  # a few rows of the published sets have an empty answer
            continue
        whole, (row, early, late) = row, paired(row, trained=not test)
        if (early or late) and not row["messages"]:
            unpaired.append((whole, place))
            continue
        record = _record(row, schema, place, test)
        if role == "task":
            _require_right(record, schema, place)
        key = prompt_key(record)
        if test and not raw and key in seen:
            repeated += 1
            continue
        seen.add(key)
        if source.share is None or source.share[0] <= _position(key, "share") < source.share[1]:
            records.append(record)
            begun, ended, calling = begun + early, ended + late, calling + in_text(record)
            if source.take is not None and len(records) == source.skip + source.take:
                break  # what follows is not read
    if unpaired and not records:
        check_record(*unpaired[0], needs_answer=not test)
    for count, said in (
        (begun, "conversations begin with an answer, which was left out: it has no question"),
        (ended, "conversations end with a question, which was left out: it has no answer to learn"),
        (len(unpaired), "conversations without a question and its answer were left out"),
        (calling, "conversations call tools: calls and results stand as text in their turns, in Qwen's form"),
    ):
        if count:
            roles.notes.append(f"{here}: {count} {said}")
    if repeated:
        roles.notes.append(
            f"{here}: {repeated} rows with a prompt that was there before were left out of the {part} part"
        )
    if unanswered:
        roles.notes.append(f"{here}: {unanswered} rows with an empty answer were left out")
    return _sliced(records, source, here)


def _hub(name: str) -> HubSet | None:
    return HUB.get(next((known for known in HUB if known.casefold() == name.casefold()), ""))


def _path(name: str, base: Path, role: str) -> Path:
    path = base / Path(name).expanduser()
    if not readable(path) and not path.exists():
        near = [known for known in HUB if name.casefold() in known.casefold()]
        hint = nearest(near[0] if near else name, near or ["embedded", *HUB], listed=False)
        raise InputError(
            f"data.{role}: unknown source {name!r}{hint}; a source is embedded, a file that ends in "
            f"{', '.join(ENDINGS)}, or one of these Hub data sets: {', '.join(HUB)}"
        )
    return path


def _mapped(row: dict[str, Any], columns: dict[str, str], place: str) -> dict[str, Any]:
    missing = [theirs for theirs in columns.values() if theirs not in row]
    if missing:
        raise InputError(
            f"{place}: `columns` names {', '.join(map(repr, missing))}, which the row does not have"
            f"{nearest(missing[0], row, listed=False)}; the columns there are: {', '.join(row)}"
        )
    return joined(row | {ours: row[theirs] for ours, theirs in columns.items()}, columns)


def _selected(row: dict[str, Any], where: dict[str, Any], place: str) -> bool:
    for name, wanted in where.items():
        if name not in row:
            raise InputError(
                f"{place}: `where` names {name!r}, which the row does not have{nearest(name, row, listed=False)}; "
                f"the columns there are: {', '.join(row)}"
            )
        values = wanted if isinstance(wanted, list) else [wanted]
        # CSV holds strings only: there, `is_safe: true` means the text "true" in any capitals.
        text = str(row[name]).casefold() if isinstance(row[name], str) else None
        if not any(row[name] == value or text == str(value).casefold() for value in values):
            return False
    return True


def _schema(source: Source, role: str, task: str | None, here: str) -> PromptSet | None:
    """What the rows of a source are; None where they are records already."""
    known = _hub(source.source)
    own = None if source.source == "embedded" else source.name
    name = task if role == "task" else known.task if known else own
    if name is None:
        return None
    found = prompt_set(name)
    if role not in found.roles:
        raise InputError(f"{here}: {name} cannot be {role}; it has data for: {', '.join(found.roles)}")
    return found


def _made(row: dict[str, Any], known: HubSet | None, schema: PromptSet | None, place: str) -> dict[str, Any]:
    """A raw row as a record. The rows of a task may be records already, and records may have any form of `rows`."""
    if known and known.record:
        return known.record(row)
    if schema and "task" not in schema.roles:
        return schema.record(row)
    record = as_record(row, place)
    return schema.record(row) if schema and not ("prompt" in record or "messages" in record) else record


def _record(row: dict[str, Any], schema: PromptSet | None, place: str, test: bool) -> Record:
    if not str(row.get("system") or "").strip():  # as tables fill it in where there is none
        row = {name: value for name, value in row.items() if name != "system"}
    check_record(row, place, needs_answer=not test)
    needs = getattr(schema, "needs", None)
    if needs == "reference" and row.get("response"):
        row = {"reference": row["response"]} | row
    if test and needs and needs not in row:
        raise missing_columns([needs], list(row), place)
    record = {name: row[name] for name in _KEPT if row.get(name) is not None}
    if "messages" in row:
        record["messages"] = turns(row)
    else:
        record["prompt"] = row["prompt"]
        if "system" in row:
            record["system"] = row["system"]
        if isinstance(row.get("input"), str) and row["prompt"].endswith(f"\n\n{row['input']}"):
            record["input"] = row["input"]  # the part of the prompt for which some templates have a place of its own
        if isinstance(row.get("response"), str) and row["response"]:
            record["response"] = row["response"]
    # From the prompt alone, so that it is the same in every run and tells nothing of where the file lay.
    record.setdefault("id", hashlib.sha256(prompt_key(record).encode("utf-8", "surrogatepass")).hexdigest()[:12])
    return record


def _with_answer(row: dict[str, Any], schema: PromptSet | None) -> dict[str, Any]:
    """A row of a labelled task that has a prompt and a label only is trained to answer with the label."""
    label = row.get("label")
    if getattr(schema, "needs", None) != "label" or row.get("response") or label in (None, ""):
        return row
    if not isinstance(label, str | int):
        raise InputError(f"the label {label!r} is neither a text nor a whole number")
    if "prompt" in row:
        return row | {"response": str(label)}
    turns = row.get("messages")
    if isinstance(turns, list) and turns and isinstance(turns[-1], dict) and turns[-1].get("role") == "user":
        return row | {"messages": [*turns, {"role": "assistant", "content": str(label)}]}
    return row


def _require_right(record: Record, schema: PromptSet | None, place: str) -> None:
    """Refuses a row of a task whose label is none of the task's, or whose own answer is wrong by it: no model could be
    right on it, or one that learns the answers would be wrong on all."""
    rules, label = getattr(schema, "rules", None), record.get("label")
    if schema is None or not rules or label in (None, ""):
        return
    rule, right = next(iter(rules.items()))
    answer = turns(record)[-1]
    answered = answer["role"] == "assistant"
    if not answered or answer["content"] == str(label):  # an answer of its own shows what the label should have been
        require_label(right, record, schema.name, place)
    if not answered:
        return
    try:
        fits = right(answer["content"], record)
    except (ValueError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise InputError(
            f"{place}: the row's own answer {answer['content'][:60]!r} is wrong by the task's rule `{rule}`, as its "
            f"label is {label!r}. Give the label as the answer has it"
        )


def _position(key: str, purpose: str) -> float:
    """A prompt's place in [0, 1), by its digest; independent for each purpose."""
    digest = hashlib.sha256(f"{purpose}\n{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _sliced(records: list[Record], source: Source, here: str) -> list[Record]:
    there = records[source.skip :]
    if not there or (source.take or 0) > len(there):
        wanted = f"{source.take} rows" if source.take else "rows"
        after = f" after skipping {source.skip}" if source.skip else ""
        raise InputError(
            f"{here}: {wanted} asked for{after}, but there are {len(there)}"
            f" ({len(records)} rows fit the role{' and `where`/`share`' if source.where or source.share else ''})"
        )
    return there[: source.take]


# -- the roles with parts -----------------------------------------------------------------------------------------


def _halves(
    source: Source, role: str, base: Path, roles: Roles, task: str | None
) -> tuple[list[Record], list[Record]]:
    """The test and the validation part that one source gives."""
    test = _load(source, role, "test", base, roles, task)
    if source.source == "embedded":
        # All of it, whatever `skip` and `take` choose for the test part: they are separate lists.
        validation = _load(replace(source, skip=0, take=None), role, "validation", base, roles, task)
        return test, validation
    chosen = [_position(prompt_key(record), "validation") < source.validation_share for record in test]
    if all(chosen):
        raise InputError(f"data.{role}: validation_share {source.validation_share:g} leaves no test rows")
    return [r for r, v in zip(test, chosen) if not v], [r for r, v in zip(test, chosen) if v]


def _load_test(roles: Roles, role: str, sources: list[Source], base: Path) -> None:
    test, validation = [], []
    for source in sources:
        halves = _halves(source, role, base, roles, None)
        test += halves[0]
        validation += halves[1]
    test = _without(set(), test, roles, f"data.{role}", "test", once=True)
    validation = _without(_keys(test), validation, roles, f"data.{role}", "validation", once=True)
    setattr(roles, role, test)
    setattr(roles, f"{role}_validation", validation)


def _load_selected(
    roles: Roles, sources: list[Source], base: Path, select: Callable[[list[Record]], list[Record]]
) -> None:
    """`test_harmful` as a protocol chooses it. What it would choose from the other prompts is the validation part."""
    here = "data.test_harmful"
    if any(source.validation_share for source in sources):
        raise InputError(
            f"{here}: the protocol chooses the test prompts, and validates on prompts that it leaves over; take "
            "`validation_share` out"
        )
    rows = [r for source in sources for r in _load(source, "test_harmful", "test", base, roles, raw=True)]
    roles.test_harmful = select(rows)
    roles.notes.append(f"{here}: the protocol takes {len(roles.test_harmful)} of {len(rows)} rows")
    for source in sources:
        if source.source == "embedded":
            rows += _load(replace(source, skip=0, take=None), "test_harmful", "validation", base, roles)
    taken = _keys(roles.test_harmful)
    with suppress(InputError):  # none may be left
        roles.test_harmful_validation = select([record for record in rows if prompt_key(record) not in taken])


def _load_task(roles: Roles, sources: list[Source], base: Path) -> None:
    train, test, validation = [], [], []
    names = {_task_name(source) for source in sources}
    if len(names) > 1:
        raise InputError(
            f"data.task: the sources are for different tasks ({', '.join(map(str, names))}); give one task"
        )
    roles.task_name = names.pop()
    for source in sources:
        train += _load(source, "task", "train", base, roles, roles.task_name)
        rest = _test_source(source, roles.task_name)
        if rest:
            halves = _halves(rest, "task", base, roles, roles.task_name)
            test += halves[0]
            validation += halves[1]
    test = _without(set(), test, roles, "data.task", "test", once=True)
    validation = _without(_keys(test), validation, roles, "data.task", "validation", once=True)
    roles.task_train = _without(_keys(test) | _keys(validation), train, roles, "data.task", "training", once=False)
    roles.task_test, roles.task_validation = test, validation
    if roles.task_name == "labels":  # whose labels nobody knows but the rows
        learnt = {str(record.get("label")) for record in roles.task_train}
        for label, count in Counter(str(record["label"]) for record in test).items():
            if label not in learnt:
                roles.notes.append(f"data.task: {count} test rows have the label {label!r}, which no training row has")


def _task_name(source: Source) -> str | None:
    """The task whose scorer applies; None for a user's own conversations, which have none."""
    known = _hub(source.source)
    own = (
        (known.task if "task" in known.roles else None)
        if known
        else "sentiment"
        if source.source == "embedded"
        else None
    )
    name = source.name or own
    if own and name != own:
        raise InputError(f"data.task: {source.source} is for the task {own}, not {name!r}; take `name` out")
    return find_task(name).name if name else None


def _test_source(source: Source, task: str | None) -> Source | None:
    """Where a task's test rows come from; None for a task that is not scored."""
    known = _hub(source.source)
    if source.source == "embedded":
        return replace(source, skip=0, take=None)
    if task is None:
        if source.test:
            raise InputError("data.task: test rows need a task to score them by; give its `name`")
        return None
    if isinstance(source.test, Source):
        if source.test.test or source.test.name:
            raise InputError("data.task.test: `test` and `name` belong to the task, not to its test rows")
        _check_source(replace(source.test, columns=source.test.columns or source.columns), "task")
        share = source.test.validation_share or source.validation_share
        return replace(source.test, columns=source.test.columns or source.columns, validation_share=share)
    if source.test is None and not known:
        raise InputError(
            f"data.task: {source.source} needs test rows beside it: give another file with the same columns, as in "
            "`test: path/to/test.jsonl`"
        )
    return Source(source.test or source.source, columns=source.columns, validation_share=source.validation_share)


def _keys(records: list[Record]) -> set[str]:
    return {prompt_key(record) for record in records}


def _without(taken: set[str], records: list[Record], roles: Roles, here: str, part: str, once: bool) -> list[Record]:
    """The records with none of the `taken` prompts and, if `once`, with each prompt once."""
    kept, seen = [], set(taken)
    for record in records:
        key = prompt_key(record)
        if key not in seen and taken.isdisjoint(answered_keys(record)):
            kept.append(record)
            if once:
                seen.add(key)
    if records and not kept:
        raise InputError(f"{here}: no {part} rows are left: all their prompts are in another part too")
    if len(kept) < len(records):
        roles.notes.append(
            f"{here}: {len(records) - len(kept)} {part} rows were left out, their prompts being in another part"
        )
    return kept


# -- disjointness -------------------------------------------------------------------------------------------------


def _refuse_overlap(roles: Roles) -> None:
    parts = roles.parts()
    asked = {name: {prompt_key(r): r for r in records} for name, records in parts.items()}
    # What a model learns to answer: every turn of a training conversation, and of a test one the last alone.
    tests = {name for name in parts if _PARTS.get(name) in (*TESTS, None) or name in ("task_test", "task_validation")}
    learnt = {
        name: set(asked[name]) if name in tests else {key for record in records for key in answered_keys(record)}
        for name, records in parts.items()
    }
    found = []
    for a, b in combinations(parts, 2):
        if _PARTS.get(a) == _PARTS.get(b) or (roles.paired and {a, b} == {"alignment", "defender_harmful"}):
            continue
        if b.startswith("extra:") and a in tests:
            continue  # the same question in two tests teaches nothing
        shared = sorted((asked[a].keys() & learnt[b]) | (learnt[a] & asked[b].keys()))
        if shared:
            examples = "; ".join(repr(key if len(key) <= 60 else key[:57] + "...") for key in shared[:3])
            found.append(f"{a} and {b} share {len(shared)} (such as {examples})")
    if found:
        raise InputError(
            f"data: roles must not share prompts: {'. '.join(found)}. Give them different rows: with `skip` and "
            "`take`, or, where prompts repeat, with parts by prompt, as in `share: [0, 0.5]` and `share: [0.5, 1]`"
        )
