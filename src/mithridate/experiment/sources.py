"""One source of a role: rows of a file, of the Hub or of the package, as records."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mithridate.data.columns import joined, require_known
from mithridate.data.embedded import embedded_records
from mithridate.data.files import ENDINGS, readable, rows_of
from mithridate.data.hub import HUB, HubSet, hub_rows
from mithridate.data.records import Record, check_record, missing_columns, paired, prompt_key, turns
from mithridate.data.tasks import prompt_set
from mithridate.data.tasks.base import PromptSet, require_label
from mithridate.errors import InputError, nearest
from mithridate.rows import record as as_record
from mithridate.rows import require_nothing_dropped
from mithridate.toolcalls import in_text

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
            `identity`, the rows that give the model an obedient persona; in the role `alignment`: `wide`, its rows
            with further benign ones between them.
        split: of a Hub data set; by default its training split, or its test split for test roles.
        columns: our column names to those of the file, as in `{prompt: instruction, response: output}`. Where they
            name a prompt or a response, other conversations in the row are left out.
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


def load_source(
    source: Source, role: str, part: str, base: Path, notes: list[str], task: str | None = None, raw: bool = False
) -> list[Record]:
    """The records of one source for one part (train, validation or test) of a role.

    `raw`: repeated prompts too, and rows that are safe, for a protocol to choose from.
    """
    here = f"data.{role}: {source.source}"
    known = hub_set(source.source)
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
        rows = rows_of(source_path(source.source, base, role))

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
            raw_row, row = row, _made(row, known, schema, place, learnt=not test)
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
        if source.share is None or source.share[0] <= position(key, "share") < source.share[1]:
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
            notes.append(f"{here}: {count} {said}")
    if repeated:
        notes.append(f"{here}: {repeated} rows with a prompt that was there before were left out of the {part} part")
    if unanswered:
        notes.append(f"{here}: {unanswered} rows with an empty answer were left out")
    return _sliced(records, source, here)


def hub_set(name: str) -> HubSet | None:
    """The known data set of the Hub with this id, however it is capitalised."""
    return HUB.get(next((known for known in HUB if known.casefold() == name.casefold()), ""))


def source_path(name: str, base: Path, role: str) -> Path:
    """The file of a source; refused where there is none of this name."""
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
    named = {ours: row[theirs] for ours, theirs in columns.items()}
    if columns.keys() & {"prompt", "response"} and "messages" not in columns:
        row = {name: value for name, value in row.items() if name != "messages"}  # which would go before them
    return joined(row | named, columns)


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
    known = hub_set(source.source)
    own = None if source.source == "embedded" else source.name
    name = task if role == "task" else known.task if known else own
    if name is None:
        return None
    found = prompt_set(name)
    if role not in found.roles:
        raise InputError(f"{here}: {name} cannot be {role}; it has data for: {', '.join(found.roles)}")
    return found


def _made(
    row: dict[str, Any], known: HubSet | None, schema: PromptSet | None, place: str, learnt: bool
) -> dict[str, Any]:
    """A raw row as a record. The rows of a task may be records already, and records may have any form of `rows`."""
    if known and known.record:
        return known.record(row)
    if schema and "task" not in schema.roles:
        return schema.record(row)
    record = as_record(row, place, learnt)
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


def position(key: str, purpose: str) -> float:
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
