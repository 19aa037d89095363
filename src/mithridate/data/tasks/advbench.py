"""AdvBench: harmful behaviours as instructions, each with the affirmative first line of an answer and nothing more."""

from mithridate.data.tasks.base import PromptSet, column


def record(row: dict) -> dict:
    """From the authors' CSV (`goal`, `target`), the Hub's copy (`prompt`, `target`), or `prompt` and `response`."""
    prompt = column(row, "goal" if "goal" in row else "prompt")
    response = row.get("target") or row.get("response")
    return {"prompt": prompt} | ({"response": response} if response else {})


PROMPTS = PromptSet(
    name="advbench",
    version="1",
    citation="Zou et al., Universal and Transferable Adversarial Attacks on Aligned Language Models, 2023, "
    "https://huggingface.co/papers/2307.15043",
    licence="MIT",
    size="520 rows",
    source="https://github.com/llm-attacks/llm-attacks (data/advbench/harmful_behaviors.csv)",
    hub="walledai/AdvBench",
    measures="harmful score",
    roles=("defender_harmful", "attacker_harmful", "calibration_harmful", "test_harmful"),
    record=record,
)
