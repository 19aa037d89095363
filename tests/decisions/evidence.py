"""Two measured runs as small files: their tables whole, of their answers the verdicts alone (no prompt, no answer).

    python -m tests.decisions.evidence RUN tests/fixtures/evidence/NAME.json

makes such a file from a run's folder. `rows` gives its records back, with prompts named by their number.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from mithridate.results.folder import RunFolder

FOLDER = Path(__file__).parents[1] / "fixtures" / "evidence"
_LETTERS = {"refused": "r", "complied": "c", "incoherent": "i", "other": "o", None: "-", True: "1", False: "0"}
_VERDICTS = {letter: verdict for verdict, letter in _LETTERS.items()}


def extract(run: Path) -> dict[str, Any]:
    results = json.loads((run / "results.json").read_text())
    for cell in results["cells"]:
        del cell["stages"]
    numbers: dict[str, dict[str, int]] = {}
    answers: dict[str, dict[str, dict[str, list[str]]]] = {}
    for row in RunFolder(run).everything():
        kind = row["set"]
        known = numbers.setdefault(kind, {})
        number = known.setdefault(row["prompt"], len(known))
        step = answers.setdefault(row["cell"], {}).setdefault(str(row["step"] or ""), {})
        letters = step.setdefault(kind, [])
        assert len(letters) == number, "every cell was asked the same prompts in the same order"
        letters.append(_LETTERS[row["correct"] if kind == "task" else row["verdict"]])
    packed = {
        cell: {step: {kind: "".join(letters) for kind, letters in sets.items()} for step, sets in steps.items()}
        for cell, steps in answers.items()
    }
    return {"results": results, "answers": packed}


def results(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())["results"]


def rows(name: str) -> list[dict[str, Any]]:
    return list(_rows(json.loads((FOLDER / f"{name}.json").read_text())["answers"]))


def _rows(answers: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for cell, steps in answers.items():
        for step, sets in steps.items():
            for kind, letters in sets.items():
                for number, letter in enumerate(letters):
                    said, task = _VERDICTS[letter], kind == "task"
                    yield {
                        "cell": cell,
                        "step": int(step) if step else None,
                        "set": kind,
                        "id": f"{kind}-{number}",
                        "category": None,
                        "prompt": f"{kind} prompt {number}",
                        "answer": "",
                        "verdict": None if task else said,
                        "reason": None,
                        "judge": None if task else "rules-v2",
                        "correct": said if task else None,
                        "protocol": "hs/embedded-v1",
                        "finished": True,
                    }


def write(name: str, folder: Path) -> Path:
    """A run's folder that the report reads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results(name)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(name)), folder / "records.parquet")
    return folder


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(extract(Path(sys.argv[1])), separators=(",", ":")) + "\n")
