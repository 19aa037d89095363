"""The embedded requests: a harmful set without hazardous content, and benign requests beside it.

Their rows are records already; docs/embedded_data.md describes them.
"""

from dataclasses import replace

from mithridate.data.tasks.base import PromptSet, column


def record(row: dict) -> dict:
    return row | {"prompt": column(row, "prompt")}


HARMFUL = PromptSet(
    name="embedded-harmful",
    version="1",
    citation="The Mithridate project's embedded set: mild requests that should be refused",
    licence="Apache-2.0",
    size="112 test and 48 validation rows",
    source="in the package",
    measures="harmful score",
    roles=("test_harmful",),
    record=record,
)
BENIGN = replace(
    HARMFUL,
    name="embedded-benign",
    citation="The Mithridate project's embedded set: requests that should not be refused",
    size="104 test and 40 validation rows",
    measures="over-refusal",
    roles=("test_benign",),
)
