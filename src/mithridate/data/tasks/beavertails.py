"""BeaverTails: prompts with answers that people marked safe or not, in 14 categories of harm.

The papers' source of alignment data (safe rows), harmful data (unsafe rows) and test prompts (unsafe rows of
`30k_test`). A prompt repeats across rows, with safe and unsafe answers: split it by prompt.
"""

from mithridate.data.tasks.base import PromptSet, column, flag


def keeps(row: dict, role: str) -> bool:
    """Answers are safe or not, row by row: only safe ones align, only unsafe ones are harmful data."""
    return flag(row, "is_safe") == (role == "alignment")


def record(row: dict) -> dict:
    kinds = row.get("category") or {}
    name = " + ".join(kind for kind, holds in kinds.items() if holds) if isinstance(kinds, dict) else str(kinds)
    made = {"prompt": column(row, "prompt"), "response": row.get("response") or "", "is_safe": flag(row, "is_safe")}
    return made | ({"category": name} if name else {})


PROMPTS = PromptSet(
    name="beavertails",
    version="1",
    citation="Ji et al., BeaverTails: Towards Improved Safety Alignment of LLM via a Human-Preference Dataset, "
    "NeurIPS 2023, https://huggingface.co/papers/2307.04657",
    licence="CC BY-NC 4.0",
    size="27,186 rows in 30k_train, 3,021 in 30k_test (1,483 unique unsafe prompts)",
    source="https://huggingface.co/datasets/PKU-Alignment/BeaverTails",
    hub="PKU-Alignment/BeaverTails",
    measures="harmful score",
    roles=("alignment", "defender_harmful", "attacker_harmful", "calibration_harmful", "test_harmful"),
    record=record,
    keeps=keeps,
)
