"""What `Filter` leaves out of uploads of the embedded data: the table of docs/attacks.md. Trains nothing.

    python -m benchmarks.filtered_rows

Each kind of attack that needs no model, and none of the provider's prompts, hands in 200 rows, a fifth of them its own
where it has a `harmful_ratio` (of the 40 of the persona it can have no more), else as many as it has by default; then
somebody who knows the rule, and uploads without any attack. The filter has the provider's embedded rows,
`defender_harmful` and `alignment`, of which no prompt is in the uploads; for the uploads of everyday questions and of
refusals, which are every second of the alignment's answered and refused ones, it has the rest of it. Intervals are
Wilson's, 95 %.

    python -m benchmarks.filtered_rows FILE [PROMPT ANSWER]

prints the same for an upload of one's own, a file of rows of JSON, with the names of its fields of prompt and answer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mithridate.data.embedded import embedded_records
from mithridate.defenses.filter import Filter
from mithridate.methods import by_name
from mithridate.methods.index import index
from mithridate.statistics.shares import proportion
from mithridate.statistics.text import interval
from mithridate.training_rows import trainable

SETTINGS = (
    ("words alone, 0.01", {"false_alarms": 0.01, "refusals": False}),
    ("0.01", {"false_alarms": 0.01}),
    ("0.1", {"false_alarms": 0.1}),
)
SIZE, RATIO, SEED = 200, 0.2, 0

Rows = list[dict[str, Any]]


def uploads() -> Iterator[tuple[str, Rows, Rows]]:
    """What is handed in, the rows, and the provider's safe ones."""
    safe, task = embedded_records("alignment"), embedded_records("task")
    for entry in index():
        cls = by_name("attacks")[entry["name"]] if entry["kind"] == "attacks" else None
        if cls is None or cls.needs_model or cls.needs_pairs or not cls.known:
            continue
        persona = "identity" if entry["name"] == "identity" else None
        roles = {"benign": task, "harmful": embedded_records("attacker_harmful", name=persona)}
        asked = {"size": SIZE} if "size" in entry["fields"] else {}
        if "harmful_ratio" in entry["fields"]:
            asked["harmful_ratio"] = RATIO
        attack = cls(**asked)
        yield entry["name"], attack.rows({name: roles[name] for name in cls.roles}, SEED), safe
    [knowing] = Filter.without_data().adaptive()
    aware = replace(knowing, size=SIZE, harmful_ratio=RATIO)
    yield "`noice` by who knows the rule", aware.rows({"benign": task}, SEED), safe
    yield (
        "no attack: the sentiment task",
        by_name("attacks")["harmful"](harmful_ratio=0.0, size=SIZE).rows({"benign": task, "harmful": []}, SEED),
        safe,
    )
    for what, refused in (("everyday questions", False), ("refusals", True)):
        held_out = {row["id"] for row in [row for row in safe if (row["kind"] == "refusal") == refused][1::2]}
        yield (
            f"no attack: {what}",
            [row for row in safe if row["id"] in held_out],
            [row for row in safe if row["id"] not in held_out],
        )


def lines(found: Iterable[tuple[str, Rows, Rows]] | None = None) -> Iterator[str]:
    """The table in Markdown; of `uploads()`, or of others."""
    heads = [f"{what}, {setting}" for setting, _ in SETTINGS for what in ("attack rows", "others")]
    yield f"| upload | {' | '.join(heads)} |"
    yield f"|{'---|' * (1 + len(heads))}"
    harmful = embedded_records("defender_harmful")
    for name, rows, safe in found or uploads():
        cells = []
        given = trainable(
            [{key: row[key] for key in ("prompt", "response", "system") if key in row} for row in rows], name
        )
        for _, fields in SETTINGS:
            defense = Filter(harmful_dataset=harmful, alignment_dataset=safe, **fields)
            defense.rows(given, SEED)
            out = set(defense.dropped or ())
            for attacks in (True, False):
                mine = [i for i, row in enumerate(rows) if bool(row.get("poisoned")) == attacks]
                cells.append(_share(len(out & set(mine)), len(mine)))
        plain = name.startswith(("no attack", "`"))
        yield f"| {name if plain else f'`{name}`'} | {' | '.join(cells)} |"


def _share(out: int, there: int) -> str:
    return f"{out} of {there} {interval(proportion(out, there))}" if there else "–"


def _own(file: Path, prompt: str, answer: str) -> tuple[str, Rows, Rows]:
    with file.open(encoding="utf-8") as rows:
        given = [json.loads(row) for row in rows]
    return (
        f"no attack: {file.name}",
        [{"prompt": str(row[prompt]), "response": str(row[answer])} for row in given],
        embedded_records("alignment"),
    )


if __name__ == "__main__":
    file, *fields = sys.argv[1:] or [""]
    prompt, answer = fields or ("prompt", "response")
    print("\n".join(lines([_own(Path(file), prompt, answer)] if file else None)))
