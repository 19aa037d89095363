"""The data roles of an experiment, loaded from their sources and disjoint by prompt.

A defense that was aligned on the prompts it is tested on, or that shares harmful rows with the attacker, shows
nothing. So any prompt that two roles share is refused, with one exception that the experiment file states:
`paired: true` on `defender_harmful` allows the prompts of `alignment` (the setting of the Booster authors).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

from mithridate.data.embedded import NAMES
from mithridate.data.files import no_file
from mithridate.data.records import Record, answered_keys, later_turns, prompt_key
from mithridate.data.tasks import task as find_task
from mithridate.errors import Findings, InputError, nearest
from mithridate.experiment.sources import Source, hub_set, load_source, position, source_path

TRAINING = ("alignment", "defender_harmful", "attacker_harmful", "calibration_harmful", "helpful")
TESTS = ("test_harmful", "test_benign")
ROLES = (*TRAINING, "task", *TESTS)


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
            rows = [
                record for source in sources for record in load_source(source, "task", "test", base, roles.notes, name)
            ]
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
        setattr(
            roles,
            role,
            [record for source in sources for record in load_source(source, role, "train", base, roles.notes)],
        )
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
                    if (
                        name != "embedded"
                        and not hub_set(name)
                        and not (path := source_path(name, base, role)).is_file()
                    ):
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
    own = NAMES.get(role) if source.source == "embedded" else None
    named = source.name and source.name != own
    if named and role != "task" and (hub_set(source.source) or source.source == "embedded"):
        other = f", or write `name: {own}`" if own else ""
        raise InputError(f"{here}: {source.source} says itself what its rows are; take `name` out{other}")
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


# -- the roles with parts -----------------------------------------------------------------------------------------


def _halves(
    source: Source, role: str, base: Path, roles: Roles, task: str | None
) -> tuple[list[Record], list[Record]]:
    """The test and the validation part that one source gives."""
    test = load_source(source, role, "test", base, roles.notes, task)
    if source.source == "embedded":
        # All of it, whatever `skip` and `take` choose for the test part: they are separate lists.
        validation = load_source(replace(source, skip=0, take=None), role, "validation", base, roles.notes, task)
        return test, validation
    chosen = [position(prompt_key(record), "validation") < source.validation_share for record in test]
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
    rows = [r for source in sources for r in load_source(source, "test_harmful", "test", base, roles.notes, raw=True)]
    roles.test_harmful = select(rows)
    roles.notes.append(f"{here}: the protocol takes {len(roles.test_harmful)} of {len(rows)} rows")
    for source in sources:
        if source.source == "embedded":
            rows += load_source(replace(source, skip=0, take=None), "test_harmful", "validation", base, roles.notes)
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
        train += load_source(source, "task", "train", base, roles.notes, roles.task_name)
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
        learnt = {str(record.get("label")).casefold() for record in roles.task_train}  # as answers are compared
        for label, count in Counter(str(record["label"]) for record in test).items():
            if label.casefold() not in learnt:
                roles.notes.append(f"data.task: {count} test rows have the label {label!r}, which no training row has")


def _task_name(source: Source) -> str | None:
    """The task whose scorer applies; None for a user's own conversations, which have none."""
    known = hub_set(source.source)
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
    known = hub_set(source.source)
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
        key, learnt = prompt_key(record), answered_keys(record) | (set() if once else later_turns(record))
        if key not in seen and taken.isdisjoint(learnt):
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
    later = {name: {key for record in records for key in later_turns(record)} for name, records in parts.items()}
    found = []
    for a, b in combinations(parts, 2):
        if _PARTS.get(a) == _PARTS.get(b) or (roles.paired and {a, b} == {"alignment", "defender_harmful"}):
            continue
        if b.startswith("extra:") and a in tests:
            continue  # the same question in two tests teaches nothing
        shared = (asked[a].keys() & learnt[b]) | (learnt[a] & asked[b].keys())
        for test, other in ((a, b), (b, a)):
            if test in tests and other not in tests:
                shared |= asked[test].keys() & later[other]
        if shared:
            shared = sorted(shared)
            examples = "; ".join(repr(key if len(key) <= 60 else key[:57] + "...") for key in shared[:3])
            found.append(f"{a} and {b} share {len(shared)} (such as {examples})")
    if found:
        raise InputError(
            f"data: roles must not share prompts: {'. '.join(found)}. Give them different rows: with `skip` and "
            "`take`, or, where prompts repeat, with parts by prompt, as in `share: [0, 0.5]` and `share: [0.5, 1]`"
        )
