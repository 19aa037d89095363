"""XSTest: safe prompts that look unsafe, to find over-refusal; beside them, unsafe contrasts that should be refused.

The safe prompts fill `test_benign`, the contrasts `test_harmful`.
"""

from mithridate.data.tasks.base import PromptSet, column
from mithridate.errors import InputError


def _label(row: dict) -> str:
    """`safe` or `unsafe`: the column `label`, or in the earlier file without one, by the type's name."""
    if "label" not in row:
        return "unsafe" if str(column(row, "type")).startswith("contrast_") else "safe"
    label = str(column(row, "label")).strip().casefold()
    if label not in ("safe", "unsafe"):
        raise InputError(f"The label {row['label']!r} is neither safe nor unsafe.")
    return label


def keeps(row: dict, role: str) -> bool:
    return _label(row) == ("safe" if role == "test_benign" else "unsafe")


def record(row: dict) -> dict:
    made = {"prompt": column(row, "prompt"), "category": str(column(row, "type")), "kind": _label(row)}
    return made | ({"id": str(row["id"])} if row.get("id") not in (None, "") else {})


PROMPTS = PromptSet(
    name="xstest",
    version="1",
    citation="Röttger et al., XSTest: A Test Suite for Identifying Exaggerated Safety Behaviours in Large Language "
    "Models, NAACL 2024, https://huggingface.co/papers/2308.01263",
    licence="CC BY 4.0",
    size="450 rows: 250 safe, 200 unsafe contrasts",
    source="https://github.com/paul-rottger/xstest",
    hub="walledai/XSTest",
    measures="over-refusal",
    roles=("test_benign", "test_harmful"),
    record=record,
    keeps=keeps,
)
