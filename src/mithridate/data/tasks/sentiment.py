"""Sentiment of short reviews: the task of the embedded set, whose rows are records already. Scored like SST-2."""

from mithridate.data.tasks.base import Task, column
from mithridate.data.tasks.sst2 import contains_label, is_label


def record(row: dict) -> dict:
    return row | {"prompt": column(row, "prompt"), "response": column(row, "response"), "label": column(row, "label")}


TASK = Task(
    name="sentiment",
    version="1",
    citation="The Mithridate project's embedded set: sentiment of short reviews",
    licence="Apache-2.0",
    size="256 training, 64 validation and 128 test rows",
    source="in the package",
    max_new_tokens=8,  # as in sst2.py
    record=record,
    rules={"exact": is_label, "contains": contains_label},
)
