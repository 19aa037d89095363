"""How often the verdict rules are wrong on answers that were made and labelled after they had been frozen.

    python -m benchmarks.fresh_verdicts

prints the tables of docs/judges_measured.md from tests/evaluation/frozen_answers_2.jsonl, and those of the freeze
before from frozen_answers.jsonl, whose mistakes the present rules were then mended on. A row for each different
answer, with both readers' labels, the label taken, the verdicts of `rules-v2` and `rules-v3` at the freeze, what kind
of model gave it and how often.
Prompts and answers stand there for the embedded set alone; of AdvBench's and
AlpacaEval's prompts the row has only what was counted.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mithridate.statistics import proportion

ANSWERS = Path(__file__).parents[1] / "tests" / "evaluation"
LAST, BEFORE = ANSWERS / "frozen_answers_2.jsonl", ANSWERS / "frozen_answers.jsonl"
RULES = ("rules-v2", "rules-v3")
DRAWS = 2000
Row = dict


def read(file: Path = LAST) -> list[Row]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def weighted(rows: list[Row], hit: Callable[[Row], bool]) -> str:
    """The share of hits, each answer counted as often as it was given; bootstrap over prompts (seed 0)."""
    prompts: dict[str, list[Row]] = {}
    for row in rows:
        prompts.setdefault(row["prompt_id"], []).append(row)
    if not rows:
        return "-"
    pairs = np.array([[sum(r["times"] * hit(r) for r in of), sum(r["times"] for r in of)] for of in prompts.values()])
    drawn = pairs[np.random.default_rng(0).integers(len(pairs), size=(DRAWS, len(pairs)))].sum(axis=1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return f"{pairs[:, 0].sum() / pairs[:, 1].sum():.2f} [{low:.2f}, {high:.2f}]"


def raw(rows: list[Row], hit: Callable[[Row], bool]) -> str:
    """Hits of all different answers, with Wilson's interval."""
    if not rows:
        return "-"
    hits = sum(map(hit, rows))
    found = proportion(hits, len(rows))
    return f"{hits}/{len(rows)} {found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def by_class(rows: list[Row], of: str) -> list[str]:
    """Precision and recall of each class; an answer called `unclear` is found by no class."""
    lines = [
        "| rules | class | precision | weighted | recall | weighted |",
        "|---|---|---|---|---|---|",
    ]
    mine = [row for row in rows if row["set"] == of]
    for rules in RULES:
        for label in ("refused", "complied", "incoherent", "other"):
            given = [row for row in mine if row[rules] == label]
            true = [row for row in mine if row["label"] == label]
            cells = []
            for chosen, hit in (
                (given, lambda r, t=label: r["label"] == t),
                (true, lambda r, t=label, k=rules: r[k] == t),
            ):
                cells += [raw(chosen, hit), weighted(chosen, hit)]
            lines.append(f"| {rules} | {label} | {' | '.join(cells)} |")
    return lines


def by_kind(rows: list[Row]) -> list[str]:
    """Weighted precision and recall on harmful prompts, by what was done to the model."""
    lines = [
        "| model | n | rules | refused: precision | recall | complied: precision | recall | unclear |",
        "|---|---|---|---|---|---|---|---|",
    ]
    harmful = [row for row in rows if row["set"] == "harmful"]
    for kind in sorted({row["kind"] for row in harmful}):
        mine = [row for row in harmful if row["kind"] == kind]
        for rules in RULES:
            cells = []
            for label in ("refused", "complied"):
                given = [row for row in mine if row[rules] == label]
                true = [row for row in mine if row["label"] == label]
                cells.append(weighted(given, lambda r, t=label: r["label"] == t))
                cells.append(weighted(true, lambda r, t=label, k=rules: r[k] == t))
            unclear = weighted(mine, lambda r, k=rules: r[k] == "unclear")
            lines.append(f"| {kind} | {len(mine)} | {rules} | {' | '.join(cells)} | {unclear} |")
    return lines


def scores(rows: list[Row]) -> list[str]:
    """The harmful score that the readers' labels and each rules' verdicts give; unclear answers are unscored."""
    lines = ["| model | readers | rules-v2 | rules-v3 |", "|---|---|---|---|"]
    harmful = [row for row in rows if row["set"] == "harmful"]
    for kind in sorted({row["kind"] for row in harmful}):
        mine = [row for row in harmful if row["kind"] == kind]
        cells = []
        for key in ("label", *RULES):
            scored = [row for row in mine if row[key] != "unclear"]
            cells.append(weighted(scored, lambda r, k=key: r[k] == "complied"))
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return lines


def benign(rows: list[Row]) -> list[str]:
    lines = ["| rules | refused: precision | weighted | recall | weighted |", "|---|---|---|---|---|"]
    mine = [row for row in rows if row["set"] == "benign"]
    for rules in RULES:
        given = [row for row in mine if row[rules] == "refused"]
        true = [row for row in mine if row["label"] == "refused"]
        cells = [f(given, lambda r: r["label"] == "refused") for f in (raw, weighted)]
        cells += [f(true, lambda r, k=rules: r[k] == "refused") for f in (raw, weighted)]
        lines.append(f"| {rules} | {' | '.join(cells)} |")
    return lines


def kappa(rows: list[Row]) -> tuple[int, int, float]:
    """Answers that both readers labelled alike, of how many, and Cohen's kappa."""
    pairs = [(row["first"], row["second"]) for row in rows]
    same, n = sum(a == b for a, b in pairs), len(pairs)
    first, second = zip(*pairs, strict=True)
    chance = sum(first.count(label) * second.count(label) for label in set(first)) / n**2
    return same, n, (same / n - chance) / (1 - chance)


def tables(file: Path = LAST) -> dict[str, list[str]]:
    rows = read(file)
    return {
        "harmful": by_class(rows, "harmful"),
        "by model": by_kind(rows),
        "scores": scores(rows),
        "benign": benign(rows),
    }


if __name__ == "__main__":
    for file in (LAST, BEFORE):
        print(f"\n{file.name}")
        for name, lines in tables(file).items():
            print(f"\n{name}\n", *lines, sep="\n")
        same, n, value = kappa(read(file))
        print(f"\nreaders: {same} of {n} labels the same, Cohen's kappa {value:.2f}")
