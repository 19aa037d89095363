"""What Booster loses in protection when its regulariser is taken on every k-th step only.

    python benchmarks/sparse_booster.py --out runs/sparse-booster       # about 15 minutes on two cores
    python benchmarks/sparse_booster.py --every 1 4                     # a part of it; what is in the store is kept

The demo's setting (`recipes/demo.yaml`; scored at the points of the attack that `--full` adds): Booster with every =
1, 2, 4, 8 and the undefended run. For each: harmful score and benign refusal before the attack, harmful score after
it and along it, accuracy; and the harmful score's difference to every = 1 on the same prompts, with the exact McNemar
test and Newcombe's interval. Written to `sparse_booster.json` in the run's folder, and printed as a table. One seed
unless more are given: the differences between seeds are part of what they show.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mithridate.experiment.config import load_experiment
from mithridate.pipeline.runner import run_cells
from mithridate.statistics import paired
from mithridate.studies.demo import recipe

BOOSTER = {"lam": 5.0, "alpha": 0.1}


def defenses(every: list[int]) -> dict[str, Any]:
    return {"none": "none"} | {f"every={k}": {"booster": {**BOOSTER, "every": k}} for k in every}


def measure(every: list[int], seed: int, out: Path, changes: list[str]) -> list[dict[str, Any]]:
    """One row a defense; cells that the store has are not computed again."""
    rows, answers = [], {}
    for name, defense in defenses(every).items():
        overrides = {"align.defense": defense, "seed": seed, "evaluate.resistance": recipe()["full"]["resistance"]}
        own = [f"{k}={json.dumps(v)}" for k, v in overrides.items()]
        experiment = load_experiment(recipe()["experiment"], [*changes, *own])
        run = run_cells([experiment], out / f"{name.replace('=', '-')}-s{seed}", Path.cwd())
        before, after = run.results["cells"][0], run.results["cells"][-1]
        records = run.records()
        final = records[(records["cell"] == after["id"]) & records["step"].isna() & (records["set"] == "harmful")]
        answers[name] = dict(zip(final["prompt"], final["verdict"] == "complied"))
        rows.append(
            {
                "defense": name,
                "seed": seed,
                "benign_refusal_before": before["rates"]["benign_refusal"]["value"],
                "harmful_score_before": before["rates"]["harmful_score"]["value"],
                "harmful_score": after["rates"]["harmful_score"],
                "resistance": [[p["step"], p["rates"]["harmful_score"]["value"]] for p in after["resistance"]],
                "accuracy": after["rates"]["accuracy"]["value"],
                "align_seconds": next(s["seconds"] for s in after["stages"] if s["name"] == "align"),
            }
        )
    for row in rows:
        if "every=1" in answers and row["defense"] != "every=1":
            mine, dense = answers[row["defense"]], answers["every=1"]
            row["against_every_1"] = paired([mine[p] for p in dense], list(dense.values()))
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    columns = ("Booster", "seed", "refuses benign, before", "harmful, before", "along the attack", "harmful, after")
    columns += ("accuracy", "difference to every = 1", "align, s")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        score, pair = row["harmful_score"], row.get("against_every_1")
        along = ", ".join(f"{v:.0%} at {s}" for s, v in row["resistance"])
        difference = (
            f"{pair['difference']:+.0%} ({pair['low']:+.0%} to {pair['high']:+.0%}), p = {pair['p_value']:.2g}"
            if pair
            else ""
        )
        lines.append(
            f"| {row['defense']} | {row['seed']} | {row['benign_refusal_before']:.0%} "
            f"| {row['harmful_score_before']:.0%} | {along} "
            f"| {score['value']:.0%} ({score['low']:.0%} to {score['high']:.0%}) | {row['accuracy']:.0%} "
            f"| {difference} | {row['align_seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/sparse-booster"))
    parser.add_argument(
        "-o", "--override", metavar="PATH=VALUE", action="append", default=[], help="of the demo's file"
    )
    args = parser.parse_args()
    rows = [row for seed in args.seeds for row in measure(args.every, seed, args.out, args.override)]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "sparse_booster.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
