"""SST-2: is a sentence from a film review positive or negative?

Instruction as in the released code of the papers. Its rules:

- `exact` (Booster, Antidote, Lisa): the whole answer, stripped, is the label word, its first letter small or capital;
- `contains` (Vaccine): the label word stands somewhere in the answer, so one that names both words counts as right.
"""

from mithridate.data.tasks.base import Task, class_name, column, kept, label_of

INSTRUCTION = "Analyze the sentiment of the input, and respond only positive or negative"
LABELS = ("negative", "positive")


def record(row: dict) -> dict:
    label, text = class_name(row, LABELS), column(row, "sentence").strip()
    made = {"prompt": f"{INSTRUCTION}\n\n{text}", "input": text, "response": label, "label": label}
    return kept(row, "sentence") | made


def is_label(answer: str, record: dict) -> bool:
    label = label_of(record, LABELS)
    return answer.strip() in (label, label.capitalize())


def contains_label(answer: str, record: dict) -> bool:
    label = label_of(record, LABELS)
    return label in answer or label.capitalize() in answer


TASK = Task(
    name="sst2",
    version="1",
    citation="Socher et al., Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank, "
    "EMNLP 2013, https://aclanthology.org/D13-1170",
    licence="not stated by the publisher (research use)",
    size="67,349 training and 872 validation rows; the test rows have no labels",
    source="https://huggingface.co/datasets/stanfordnlp/sst2",
    hub="stanfordnlp/sst2",
    max_new_tokens=8,  # the papers allow 200: an answer that has not ended after 8 is not the label word alone
    record=record,
    rules={"exact": is_label, "contains": contains_label},
)
