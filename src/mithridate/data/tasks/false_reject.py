"""FalseReject: prompts that only look harmful, written by a graph-guided pipeline; the test split is people's.

They are scored as refusal of benign prompts. The train split, with reasoned answers, is not used.
"""

from mithridate.data.tasks.base import PromptSet, column


def record(row: dict) -> dict:
    made = {"prompt": column(row, "prompt")}
    category = row.get("category_text") or row.get("category")
    return made | ({"category": str(category)} if category else {})


PROMPTS = PromptSet(
    name="false-reject",
    version="1",
    citation="Zhang et al., FalseReject: A Resource for Improving Contextual Safety and Mitigating Over-Refusals in "
    "LLMs via Structured Reasoning, 2025, https://huggingface.co/papers/2505.08054",
    licence="CC BY-NC 4.0",
    size="1,187 test rows",
    source="https://huggingface.co/datasets/AmazonScience/FalseReject (test.jsonl)",
    hub="AmazonScience/FalseReject",
    measures="over-refusal",
    roles=("test_benign",),
    record=record,
)
