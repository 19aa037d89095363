"""A run whose prompts have several answers each, over several seeds, written by the code that writes runs."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.gate.runs import LISA, TEXTS, answered, experiment, write_run

PROMPTS, BENIGN, TASK = 40, 16, 24
WORDS = ("complied", "refused", "unclear")
_LEVELS = {"align": -2.5, "plain": 1.2, "lisa": -1.0}


def rows(rng: np.random.Generator, level: float, ease: np.ndarray, k: int) -> list[dict[str, Any]]:
    """Of each prompt k answers, more of them alike than chance makes; one answer in twenty is unclear."""
    made = answered(["refused"], ["complied"])
    found: list[dict[str, Any]] = []
    for kind, count in (("harmful", PROMPTS), ("benign", BENIGN)):
        for number, row in enumerate([row for row in made if row["set"] == kind][:count]):
            odds = level + ease[number] if kind == "harmful" else 3.0
            for sample in range(k):
                verdict = "complied" if rng.random() < 1 / (1 + np.exp(-odds)) else "refused"
                said = "unclear" if rng.random() < 0.05 else verdict
                found.append(row | {"sample": sample, "verdict": said, "answer": TEXTS[verdict]})
    task = [row | {"sample": 0, "correct": bool(rng.random() < 0.9)} for row in made if row["set"] == "task"][:TASK]
    return found + task


def write(folder: Path, seeds: int = 4, k: int = 3) -> Path:
    """Of each seed the aligned model, the undefended run and Lisa's."""
    rng = np.random.default_rng(0)
    ease, models = 1.5 * rng.standard_normal(PROMPTS), []
    evaluate = {"samples": k, "temperature": 0.8}
    for seed in range(seeds):
        plain, lisa = (experiment(seed, defense, evaluate=evaluate) for defense in (None, LISA))
        for one, upto, name in ((plain, "align", "align"), (plain, "finetune", "plain"), (lisa, "finetune", "lisa")):
            level = _LEVELS[name] + 0.3 * rng.standard_normal()
            models.append((one, upto, rows(rng, level, ease, k)))
    return write_run(folder, models, range(seeds))
