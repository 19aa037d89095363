"""OR-Bench: prompts that only look toxic, to find over-refusal; beside them, toxic ones that should be refused.

The hard ones (`or-bench-hard-1k`) fill `test_benign` and are scored as refusal of benign prompts; the toxic ones
(`or-bench-toxic`) fill `test_harmful`. Rows do not say which they are: from files, each role names its own.
"""

from mithridate.data.tasks.base import PromptSet, column


def record(row: dict) -> dict:
    made = {"prompt": column(row, "prompt")}
    return made | ({"category": str(row["category"])} if row.get("category") not in (None, "") else {})


PROMPTS = PromptSet(
    name="or-bench",
    version="1",
    citation="Cui et al., OR-Bench: An Over-Refusal Benchmark for Large Language Models, ICML 2025, "
    "https://huggingface.co/papers/2405.20947",
    licence="CC BY 4.0",
    size="the hard thousand and some six hundred toxic ones; the 80,000 are not used",
    source="https://huggingface.co/datasets/bench-llm/or-bench (or-bench-hard-1k.csv, or-bench-toxic.csv)",
    hub="bench-llm/or-bench",
    measures="over-refusal",
    roles=("test_benign", "test_harmful"),
    record=record,
)
