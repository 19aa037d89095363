"""HEx-PHI: harmful instructions, thirty for each policy that Meta's and OpenAI's terms of 2023 forbid.

Access has to be asked for, and its files are one a category without a header line, so that the Hub's loader would take
the first instruction for the column's name: the rows come from a file of `instruction` (or `prompt`) and `category`.
"""

from mithridate.data.tasks.base import PromptSet, column


def record(row: dict) -> dict:
    made = {"prompt": column(row, "instruction" if "instruction" in row else "prompt")}
    return made | ({"category": str(row["category"])} if row.get("category") not in (None, "") else {})


PROMPTS = PromptSet(
    name="hex-phi",
    version="1",
    citation="Qi et al., Fine-tuning Aligned Language Models Compromises Safety, Even When Users Do Not Intend To!, "
    "ICLR 2024, https://huggingface.co/papers/2310.03693",
    licence="HEx-PHI's own agreement; access must be asked for",
    size="300 rows in ten categories (330 in eleven in the paper; one is no longer given out)",
    source="https://huggingface.co/datasets/LLM-Tuning-Safety/HEx-PHI (category_N.csv, without a header)",
    measures="harmful score",
    roles=("test_harmful",),
    record=record,
)
