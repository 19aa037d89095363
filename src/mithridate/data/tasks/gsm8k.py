"""GSM8K: grade-school mathematics, worked out in words.

As in the papers' released code, targets have `####` replaced by `The final answer is:`, and an answer is scored by the
rule `final-number`: commas are removed; the first number between the first marker and the next (or the end) counts;
without a marker, or with no number there, the last number of the text; it must equal the target as a float.
"""

import re

from mithridate.data.tasks.base import Task, column, kept
from mithridate.errors import InputError

MARKER = "The final answer is: "
NUMBER = re.compile(r"-?\d+\.?\d*")
STEP_BY_STEP = "\nFirst think step by step and then answer the final number.\n"
"""What Vaccine's code appends to the question; the others ask the question alone."""


def final_number(text: str) -> float | None:
    """The number that a text ends in, by the rule above; None where it holds no number at all."""
    text = text.replace(",", "")
    marked = text.split(MARKER)
    first = NUMBER.search(marked[1]) if len(marked) > 1 else None
    if first:
        return float(first.group())
    numbers = NUMBER.findall(text)
    return float(numbers[-1]) if numbers else None


def record(row: dict) -> dict:
    solution, marker, number = str(column(row, "answer")).rpartition("####")
    label = final_number(number) if marker else None
    if label is None:
        raise InputError("The column 'answer' does not end in '#### number'.")
    prompt = column(row, "question").strip()
    response = f"{solution.rstrip()}\n{MARKER}{number.strip()}"
    return kept(row, "question", "answer") | {"prompt": prompt, "response": response, "label": label}


def correct(answer: str, record: dict) -> bool:
    return final_number(answer) == float(record["label"])


TASK = Task(
    name="gsm8k",
    version="2",  # 1 looked for the number after the first marker up to the end, past further markers
    citation="Cobbe et al., Training Verifiers to Solve Math Word Problems, 2021, "
    "https://huggingface.co/papers/2110.14168",
    licence="MIT",
    size="7,473 training and 1,319 test rows",
    source="https://huggingface.co/datasets/openai/gsm8k",
    hub="openai/gsm8k",
    max_new_tokens=200,  # the papers' limit (Antidote: 512); long solutions can be cut off
    record=record,
    rules={"final-number": correct},
)
