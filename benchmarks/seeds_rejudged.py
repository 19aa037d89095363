"""A run over its seeds, its stored answers judged again by today's rules: "Four seeds" of docs/benchmarks.md.

    python benchmarks/seeds_rejudged.py RUN

RUN is the folder of a run with several seeds, of any version that wrote `records.parquet`. Nothing in it is changed.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet

from mithridate.judges import verdict
from mithridate.statistics.seeds import across_seeds, paired_across_seeds

TITLES = ("model", "harmful score", "benign refusal", "accuracy", "minus undefended", "p")


def outcomes(rows: list[dict[str, Any]], cells: list[str], kind: str, label: str | None) -> list[list[float | None]]:
    """One row per seed, one column per prompt; None where the rules cannot tell."""
    found = []
    for cell in cells:
        mine = sorted(
            (row for row in rows if row["cell"] == cell and row["set"] == kind), key=lambda row: row["prompt"]
        )
        if label is None:
            found.append([float(row["correct"]) for row in mine])
        else:
            said = [verdict(row["prompt"], row["answer"], set=kind).label for row in mine]
            found.append([None if word == "unclear" else float(word == label) for word in said])
    return found


def percent(rate: dict[str, Any]) -> str:
    return f"{100 * rate['value']:.0f} [{100 * rate['low']:.0f}, {100 * rate['high']:.0f}]"


def table(run: Path) -> list[tuple[str, ...]]:
    groups = json.loads((run / "results.json").read_text())["across_seeds"]
    columns = ["cell", "set", "step", "prompt", "answer", "correct"]
    rows = pyarrow.parquet.read_table(run / "records.parquet", columns=columns).to_pylist()
    rows = [row for row in rows if row["step"] is None]
    harmful = [outcomes(rows, group["cells"], "harmful", "complied") for group in groups]
    undefended = {
        group["topology"]: scores
        for group, scores in zip(groups, harmful, strict=True)
        if (group["alignment"], group["finetuning"], group["repair"]) == ("sft", "sft", "none")
    }
    lines = []
    for group, scores in zip(groups, harmful, strict=True):
        attacked, reference = group["finetuning"] != "none", undefended[group["topology"]]
        against = paired_across_seeds(scores, reference) if attacked and scores is not reference else None
        parts = [group["alignment"], group["finetuning"], group["repair"], group["topology"]]
        lines.append(
            (
                " ".join([*parts, *([f"({group['control']})"] if group["control"] else [])]),
                percent(across_seeds(scores)),
                percent(across_seeds(outcomes(rows, group["cells"], "benign", "refused"))),
                percent(across_seeds(outcomes(rows, group["cells"], "task", None))),
                percent({**against, "value": against["difference"]}) if against else "",
                f"{against['p_value']:.2g}" if against else "",
            )
        )
    return lines


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {Path(__file__).name} RUN")
    for line in (TITLES, ("---",) * len(TITLES), *table(Path(sys.argv[1]))):
        print(f"| {' | '.join(line)} |")
