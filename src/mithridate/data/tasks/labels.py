"""Any labels of a user's own: rows of a prompt and its right label, as in `{"prompt": "...", "label": "billing"}`.

The rule `exact`: the whole answer, without blanks around it and a full stop at its end, is the label, in any capitals.
A label may be a text or a whole number.
"""

from mithridate.data.tasks.base import Task, column


def record(row: dict) -> dict:
    label = column(row, "label")
    return row | {"prompt": column(row, "prompt"), "response": row.get("response") or str(label), "label": label}


def is_label(answer: str, record: dict) -> bool:
    if not isinstance(record["label"], str | int):
        raise ValueError("it is a text or a whole number")
    return answer.strip().removesuffix(".").casefold() == str(record["label"]).strip().removesuffix(".").casefold()


TASK = Task(
    name="labels",
    version="1",
    citation="None: the rows are the user's own",
    licence="the user's",
    size="any",
    source="a file of the user's",
    max_new_tokens=16,
    record=record,
    rules={"exact": is_label},
)
