"""The tables of docs/attacks.md: what each attack leaves of the undefended model, and of the defended ones.

    kept=benchmarks/results/attack-kinds.json
    python -m benchmarks.attacks_table runs/attack_kinds runs/opposite runs/identity --keep $kept
    python -m benchmarks.attacks_table $kept      # the tables anew

The first call keeps what the tables need of the runs' results.json; the second prints them from that. A test compares
them with the page.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mithridate.files import replace_file
from mithridate.report.words import trained_otherwise

NONE = "no defense"
ALIGNED = "aligned, before the attack"
COSTS = ("accuracy", "benign_refusal", "incoherent")
LEVEL = 0.05  # of Holm's p


def kept(folder: Path) -> list[dict[str, Any]]:
    """The cells of a run's folder, as far as the tables need them, and what was measured on the way of a training as
    cells of their own; a cell that several runs share is kept of each."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    cells = []
    for cell in results["cells"]:
        if cell["control"]:
            continue
        name, defense, paired = name_of(cell), defense_of(cell), cell["paired"]
        for point in cell["resistance"]:
            on_the_way = {"attack": f"{name}, step {point['step']}", "defense": defense}
            cells.append(on_the_way | {"rates": _shown(point["rates"]), "paired": None})
        tested = {field: paired[field] for field in ("difference", "p_holm")} if paired else None
        cells.append({"attack": name, "defense": defense, "rates": _shown(cell["rates"]), "paired": tested})
    return cells


def _shown(rates: dict[str, Any]) -> dict[str, Any]:
    return {
        name: rates[name] for name in ("harmful_score", *COSTS) if name in rates and rates[name]["value"] is not None
    }


def defense_of(cell: dict[str, Any]) -> str:
    """The methods of a cell of results.json."""
    own = [name for name in (cell["alignment"], cell["finetuning"], cell["repair"]) if name not in ("sft", "none")]
    return " + ".join(own) or NONE


def name_of(cell: dict[str, Any]) -> str:
    """The attack of a cell of results.json: the kind of its rows; where it is another training than the experiment's
    own, what is particular about that; the precision in which the model was asked."""
    precision = (cell.get("swept") or {}).get("evaluate.precision", "full")
    return ", ".join([*_attack(cell), *([precision] if precision != "full" else [])])


def _attack(cell: dict[str, Any]) -> list[str]:
    if not (attack := cell["attack"]):
        return [ALIGNED]
    name, other = f"`{attack.get('kind', 'harmful')}`", trained_otherwise(cell)
    without = ["ratio 0"] if attack.get("harmful_ratio") == 0 else []
    return [name, *without, *other, *([f"rate {attack['learning_rate']:g}"] if other else [])]


def tables(cells: list[dict[str, Any]]) -> str:
    """Harmful scores, then costs: a row for each attack, a column for each defense. A star where a defended model's
    score is below the undefended one's by the paired test, corrected by Holm within its run."""
    found = {(cell["attack"], cell["defense"]): cell for cell in reversed(cells)}  # of several, that of the first run
    attacks = list(dict.fromkeys(cell["attack"] for cell in cells))
    defenses = list(dict.fromkeys(cell["defense"] for cell in cells))
    parts = []
    for head, show in (("harmful score", _score), ("accuracy / benign refusal / incoherent", _costs)):
        rows = [f"| {head} | {' | '.join(defenses)} |", "|---" * (len(defenses) + 1) + "|"]
        for attack in attacks:
            shown = [show(found[attack, one]) if (attack, one) in found else "–" for one in defenses]
            rows.append(f"| {attack} | {' | '.join(shown)} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def _score(cell: dict[str, Any]) -> str:
    score, paired = cell["rates"]["harmful_score"], cell["paired"]
    low, high = (f"{100 * score[end]:.0f}" for end in ("low", "high"))
    lower = paired and paired["difference"] < 0 and paired["p_holm"] is not None and paired["p_holm"] < LEVEL
    return f"{100 * score['value']:.0f} [{low}, {high}]{' *' if lower else ''}"


def _costs(cell: dict[str, Any]) -> str:
    return " / ".join(f"{100 * cell['rates'][name]['value']:.0f}" if name in cell["rates"] else "–" for name in COSTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, or one file of what was kept of them")
    parser.add_argument("--keep", type=Path, help="where to keep what the tables are made of")
    given = parser.parse_args()
    if given.runs[0].is_file():
        cells = json.loads(given.runs[0].read_text(encoding="utf-8"))
    else:
        cells = [cell for run in given.runs for cell in kept(run)]
    if given.keep:
        replace_file(given.keep, json.dumps(cells, indent=1) + "\n")
    print(tables(cells))


if __name__ == "__main__":
    main()
