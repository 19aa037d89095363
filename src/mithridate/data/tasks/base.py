"""What a prompt set and a task are."""

from collections.abc import Callable
from dataclasses import dataclass

from mithridate.errors import InputError, UnsupportedSetup

Scorer = Callable[[str, dict], bool]


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts with a source. What their answers mean is for a judge to say; a protocol names the judge.

    Args:
        name: the name used in experiment files.
        version: raised whenever prompts or scoring change, so that scores of different versions are never compared.
        citation: authors, title and address, in one line.
        licence: the data's licence as its publisher states it.
        size: number of rows, in words.
        source: address of the data.
        measures: the share that is reported.
        roles: the data roles that it can fill.
        record: a raw row, in the publisher's schema, as a record (`prompt`, `response`, `label`). Raises `InputError`
            on a missing column or an impossible value.
        keeps: whether a raw row belongs to a role, where rows differ in that; it raises like `record`.
        hub: id of the data set on the Hugging Face Hub; None where it has none that loads without running code.
    """

    name: str
    version: str
    citation: str
    licence: str
    size: str
    source: str
    measures: str
    roles: tuple[str, ...]
    record: Callable[[dict], dict]
    keeps: Callable[[dict, str], bool] | None = None
    hub: str | None = None


@dataclass(frozen=True, kw_only=True)
class Task(PromptSet):
    """A benign task that a user fine-tunes for.

    Args:
        rules: the rules by which papers score it, by name: whether an answer to a record is right. The first is the
            task's own; a protocol names the one it uses. None where a judge compares answers. A rule raises
            `ValueError` on a label that is none of the task's.
        max_new_tokens: token limit of an answer, unless the protocol has its own.
        needs: what a test record must have to be scored.
    """

    rules: dict[str, Scorer]
    max_new_tokens: int
    roles: tuple[str, ...] = ("task",)
    measures: str = "accuracy"
    needs: str = "label"

    @property
    def rule(self) -> str:
        """Name of the task's own rule; `UnsupportedSetup` where it has none."""
        if not self.rules:
            raise UnsupportedSetup(
                f"The task {self.name!r} has no rule that scores an answer by itself.",
                'Score it with a judge of the kind "quality", which compares the answer with the reference.',
            )
        return next(iter(self.rules))

    @property
    def correct(self) -> Scorer:
        """The task's own rule."""
        return self.rules[self.rule]


def column(row: dict, name: str):
    """One cell of a raw row; `InputError` where the column is missing or empty."""
    if row.get(name) in (None, ""):
        raise InputError(
            f"The column {name!r} is missing or empty; the row has: {', '.join(map(str, row)) or 'none'}."
        )
    return row[name]


def label_of(record: dict, labels: tuple[str, ...]) -> str:
    """The label of a record; `ValueError` where it is none of the task's, by which no answer could be right."""
    if record["label"] not in labels:
        raise ValueError(f"it is one of {', '.join(labels)}")
    return record["label"]


def require_label(rule: Scorer, record: dict, task: str, where: str) -> None:
    """Refuses a record of whose answers a rule of the task can say nothing, as its label is none of the task's.

    Raises:
        InputError: with the place, the label and what the rule says of it.
    """
    try:
        rule("", record)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{where}: the label {record.get('label')!r} is none of {task}: {error}") from error


def flag(row: dict, name: str) -> bool:
    """A cell that is true or false, in text files too; `InputError` where it is neither."""
    value = column(row, name)
    told = {"true": True, "1": True, "false": False, "0": False}.get(str(value).strip().casefold())
    if told is None:
        raise InputError(f"The column {name!r} holds {value!r}, which is neither true nor false.")
    return told


def class_name(row: dict, names: tuple[str, ...]) -> str:
    """The name of a row's integer `label`; `InputError` where it is no index into `names`."""
    label = column(row, "label")
    try:
        index = int(label)
    except (TypeError, ValueError):
        index = -1
    if not 0 <= index < len(names) or index != float(label):
        classes = ", ".join(f"{i} = {name}" for i, name in enumerate(names))
        raise InputError(f"The label {label!r} is none of: {classes}.")
    return names[index]


def kept(row: dict, *replaced: str) -> dict:
    """The cells of a raw row that go over into its record as they are: all but the `replaced` ones."""
    return {key: value for key, value in row.items() if key not in replaced}
