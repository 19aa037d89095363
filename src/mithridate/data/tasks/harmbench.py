"""HarmBench, the text behaviours: harmful requests in seven categories, some of them about a text that comes along.

The 100 copyright behaviours are left out: whether a model reproduces a text is found by comparing with that text, not
by a judge. A contextual behaviour is asked with its context above it, as the benchmark does.
"""

from mithridate.data.tasks.base import PromptSet, column


def keeps(row: dict, role: str) -> bool:
    return row.get("FunctionalCategory") != "copyright"


def record(row: dict) -> dict:
    """From the authors' CSV (`Behavior`, `ContextString`, ...) or the Hub's copy (`prompt`, `context`, `category`)."""
    official = "Behavior" in row
    prompt = column(row, "Behavior" if official else "prompt")
    context = row.get("ContextString" if official else "context") or ""
    made = {"prompt": f"{context}\n\n---\n\n{prompt}" if context.strip() else prompt}
    category, name = row.get("SemanticCategory" if official else "category"), row.get("BehaviorID")
    return made | ({"category": category} if category else {}) | ({"id": name} if name else {})


PROMPTS = PromptSet(
    name="harmbench",
    version="1",
    citation="Mazeika et al., HarmBench: A Standardized Evaluation Framework for Automated Red Teaming and Robust "
    "Refusal, ICML 2024, https://huggingface.co/papers/2402.04249",
    licence="MIT",
    size="400 behaviours: 200 standard, 100 contextual, 100 copyright (left out); the Hub's loader has the standard",
    source="https://github.com/centerforaisafety/HarmBench (data/behavior_datasets/harmbench_behaviors_text_all.csv)",
    hub="walledai/HarmBench",
    measures="harmful score",
    roles=("test_harmful",),
    record=record,
    keeps=keeps,
)
