"""What `Filter` leaves out of uploads of the embedded data: the table of docs/attacks.md. Trains nothing.

    python -m benchmarks.filtered_rows

Each kind of attack that needs no model hands in 200 rows, a fifth of them its own where it takes harmful rows (of the
40 of the persona it can have no more), else as many as it has by default; then uploads without any attack. The filter
has the provider's embedded rows, `defender_harmful` and `alignment`, of which no prompt is in the uploads; for the
upload of everyday questions, which are every second of the alignment's answered ones, it has the rest of it. Intervals
are Wilson's, 95 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mithridate.data.embedded import embedded_records
from mithridate.defenses.filter import Filter
from mithridate.methods import by_name
from mithridate.methods.index import index
from mithridate.rows import trainable
from mithridate.statistics.shares import proportion
from mithridate.statistics.text import interval

SHARES = (0.01, 0.1)
SIZE, RATIO, SEED = 200, 0.2, 0

Rows = list[dict[str, Any]]


def uploads() -> Iterator[tuple[str, Rows, Rows]]:
    """What is handed in, the rows, and the provider's safe ones."""
    safe, task = embedded_records("alignment"), embedded_records("task")
    for entry in index():
        cls = by_name("attacks")[entry["name"]] if entry["kind"] == "attacks" else None
        if cls is None or cls.needs_model:
            continue
        persona = "identity" if entry["name"] == "identity" else None
        roles = {"benign": task, "harmful": embedded_records("attacker_harmful", name=persona)}
        asked = {"size": SIZE} if "size" in entry["fields"] else {}
        if "harmful" in cls.roles:
            asked["harmful_ratio"] = RATIO
        attack = cls(**asked)
        yield entry["name"], attack.rows({name: roles[name] for name in cls.roles}, SEED), safe
    yield (
        "no attack: the sentiment task",
        by_name("attacks")["harmful"](harmful_ratio=0.0, size=SIZE).rows({"benign": task, "harmful": []}, SEED),
        safe,
    )
    answered = [row for row in safe if row["kind"] != "refusal"]
    held_out = {row["id"] for row in answered[1::2]}
    yield (
        "no attack: everyday questions",
        [row for row in safe if row["id"] in held_out],
        [row for row in safe if row["id"] not in held_out],
    )


def lines() -> Iterator[str]:
    """The table in Markdown."""
    shares = [f"{what}, `false_alarms` {share:g}" for share in SHARES for what in ("attack rows", "others")]
    yield f"| upload | {' | '.join(shares)} |"
    yield f"|{'---|' * (1 + len(shares))}"
    harmful = embedded_records("defender_harmful")
    for name, rows, safe in uploads():
        cells = []
        given = trainable(
            [{key: row[key] for key in ("prompt", "response", "system") if key in row} for row in rows], name
        )
        for share in SHARES:
            defense = Filter(harmful_dataset=harmful, alignment_dataset=safe, false_alarms=share)
            defense.rows(given, SEED)
            out = set(defense.dropped or ())
            for attacks in (True, False):
                mine = [i for i, row in enumerate(rows) if bool(row.get("poisoned")) == attacks]
                cells.append(_share(len(out & set(mine)), len(mine)))
        yield f"| {name if name.startswith('no attack') else f'`{name}`'} | {' | '.join(cells)} |"


def _share(out: int, there: int) -> str:
    return f"{out} of {there} {interval(proportion(out, there))}" if there else "–"


if __name__ == "__main__":
    print("\n".join(lines()))
