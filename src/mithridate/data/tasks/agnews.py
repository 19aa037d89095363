"""AG News: which of four categories is a news article in?

Instruction as in the released code of the papers. Its rules:

- `exact` (Booster, Antidote, Lisa): the whole answer, stripped, is the category or its small-letter form; for the
  fourth category, `Sci/Tech` or `sci` (so `sci/tech` is wrong);
- `contains` (Vaccine): one of these stands somewhere in the answer, inside a word too ("discipline" holds `sci`).
"""

from mithridate.data.tasks.base import Task, class_name, column, kept, label_of

LABELS = ("World", "Sports", "Business", "Sci/Tech")
INSTRUCTION = "Categorize the news article given in the input into one of the 4 categories:\n\n" + "\n".join(LABELS)


def record(row: dict) -> dict:
    label, text = class_name(row, LABELS), column(row, "text").strip()
    made = {"prompt": f"{INSTRUCTION}\n\n{text}", "input": text, "response": label, "label": label}
    return kept(row, "text") | made


def _forms(record: dict) -> tuple[str, str]:
    label = label_of(record, LABELS)
    return label, "sci" if label == "Sci/Tech" else label.lower()


def is_category(answer: str, record: dict) -> bool:
    return answer.strip() in _forms(record)


def contains_category(answer: str, record: dict) -> bool:
    return any(form in answer for form in _forms(record))


TASK = Task(
    name="agnews",
    version="1",
    citation="Zhang, Zhao and LeCun, Character-level Convolutional Networks for Text Classification, NeurIPS 2015, "
    "https://huggingface.co/papers/1509.01626",
    licence="non-commercial research use",
    size="120,000 training and 7,600 test rows",
    source="https://huggingface.co/datasets/fancyzhx/ag_news",
    hub="fancyzhx/ag_news",
    max_new_tokens=8,  # the papers allow 200: an answer that has not ended after 8 is not a category alone
    record=record,
    rules={"exact": is_category, "contains": contains_category},
)
