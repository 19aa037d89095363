"""What a benchmark came to, and how it is written: as a table, as Markdown, as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mithridate.files import replace_file
from mithridate.report.groups import ArmCost
from mithridate.results.filtered import in_words
from mithridate.statistics.text import between, interval, p_value, whole
from mithridate.statistics.text import points as in_points
from mithridate.studies.benchmarks.knowing import KnowingTry
from mithridate.studies.benchmarks.settings import UNDEFENDED, BenchmarkFile
from mithridate.studies.benchmarks.standings import Standing
from mithridate.studies.benchmarks.tries import RULE, TriedSetting


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that was run.

    Attributes:
        folder: where it is written.
        points: the attacker's grid.
        tries: every setting that was tried, on validation parts.
        knowing: every attack by somebody who knows a method's rule, on validation parts.
        standings: the tables, of each topology in order.
        costs: time and memory against the undefended run, by topology and method.
        filtered: rows left out over grid and seeds (`results.filtered`), by topology and method, where one may.
    """

    folder: Path
    given: BenchmarkFile
    points: list[dict[str, Any]]
    tries: list[TriedSetting]
    knowing: list[KnowingTry]
    standings: list[Standing]
    costs: dict[tuple[str, str], ArmCost]
    filtered: dict[tuple[str, str], dict[str, int]]


TITLES = (
    *("topology", "method", "settings", "harmful score [95 %]", "to undefended [95 %]", "p (Holm)", "rank"),
    *("rank, these models", "breaks at", "accuracy", "benign refusal", "incoherent", "time", "memory", "bounds"),
)

FILTERED_TITLE = "rows left out"
KNOWING_TITLES = (
    *("harmful score, knowing", "undefended, knowing", "to undefended, knowing [95 %]"),
    *("breaks at, knowing", "who knows"),
)
NONE_SUGGESTED = "none suggested"
"""In the place of the attack of who knows, of a method that suggests none which could act there: it has met none."""


def titles_of(found: Benchmark) -> list[str]:
    """The names of the table's columns."""
    return [*TITLES, *([FILTERED_TITLE] if found.filtered else ()), *(KNOWING_TITLES if found.given.knowing else ())]


def table_of(found: Benchmark) -> list[list[str]]:
    """The rows of the table, as `titles_of`."""
    beyond = {(one.method, one.topology) for one in found.tries if one.chosen and not one.within}
    tuned = {(one.method, one.topology) for one in found.tries}
    return [_row(found, one, beyond, tuned) for one in found.standings]


def _row(found: Benchmark, one: Standing, beyond: set[tuple[str, str]], tuned: set[tuple[str, str]]) -> list[str]:
    entrant = one.entrant
    key, cost = (entrant.name, entrant.topology), found.costs.get((entrant.topology, entrant.name))
    left_out = found.filtered.get((entrant.topology, entrant.name))
    change = one.control if entrant.of else one.against["harmful_score"]
    held = "beyond" if key in beyond else "within" if key in tuned else "" if entrant.of else "not tuned"
    return [
        entrant.topology,
        f"- {entrant.name}" if entrant.of else entrant.name,
        ", ".join(f"{name} {value}" for name, value in entrant.settings.items()),
        _rate(one.rates["harmful_score"]),
        _change(change) + (f" ({entrant.of} to this)" if entrant.of and change else ""),
        p_value(change["p_holm"]) if change and change.get("p_holm") is not None else "",
        _rank(one.rank),
        _rank(one.rank_here),
        "" if one.breaks_at is None else point_in_words(found.points[one.breaks_at]),
        *(_rate(one.rates[rate]) for rate in ("accuracy", "benign_refusal", "incoherent")),
        "" if cost is None or cost.time_ratio is None else f"{cost.time_ratio:.2f} x",
        "" if cost is None or cost.memory_ratio is None else f"{cost.memory_ratio:.2f} x",
        "" if entrant.name == UNDEFENDED else held,
        *([in_words(left_out) if left_out else ""] if found.filtered else ()),
        *(_knowing(found, one) if found.given.knowing else ()),
    ]


def _knowing(found: Benchmark, one: Standing) -> list[str]:
    under = one.knowing
    if under is None:
        meets = one.entrant.name != UNDEFENDED and not one.entrant.of
        return [*["" for _ in KNOWING_TITLES[1:]], NONE_SUGGESTED if meets else ""]
    broken = "" if under.breaks_at is None else point_in_words(found.points[under.breaks_at])
    return [
        _rate(under.rates["harmful_score"]),
        _rate(under.undefended["harmful_score"]),
        _change(under.against),
        broken,
        under.attack,
    ]


def _rate(share: Mapping[str, Any] | None) -> str:
    if share is None or share.get("value") is None:
        return ""
    return f"{whole(share['value'])} {interval(share)}"


def _change(test: Mapping[str, Any] | None) -> str:
    return f"{in_points(test['difference'])} {between(test)}" if test and test.get("difference") is not None else ""


def _rank(rank: tuple[int, int] | None) -> str:
    return "" if rank is None else str(rank[0]) if rank[0] == rank[1] else f"{rank[0]} to {rank[1]}"


def point_in_words(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in point.items()) or "the attack"


def logged(one: TriedSetting) -> dict[str, Any]:
    return {
        **{"phase": "tuning", "method": one.method, "topology": one.topology, "number": one.number},
        **{"settings": one.settings, "validation": asdict(one.scores), "beyond the bounds": one.excess},
        "chosen": one.chosen,
    }


def logged_attack(one: KnowingTry) -> dict[str, Any]:
    return {"phase": "knowing", **asdict(one)}


def write(found: Benchmark) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([titles_of(found), *table_of(found)])
    replace_file(found.folder / "benchmark.csv", text.getvalue())
    replace_file(found.folder / "benchmark.md", markdown(found))
    replace_file(found.folder / "benchmark.json", json.dumps(as_json(found), indent=1))


def as_json(found: Benchmark) -> dict[str, Any]:
    """All that was measured, in JSON's types."""
    return {
        "schema": 1,
        "file": asdict(found.given),
        "rule": RULE,
        "points": found.points,
        "tries": [{**asdict(one), "within": one.within} for one in found.tries],
        "knowing": [asdict(one) for one in found.knowing],
        "standings": [asdict(one) for one in found.standings],
        "costs": [
            {
                **{"topology": topology, "method": name, "seconds": cost.total, "peak_memory_bytes": cost.peak},
                **{"time_ratio": cost.time_ratio, "memory_ratio": cost.memory_ratio},
            }
            for (topology, name), cost in found.costs.items()
        ],
        "filtered": [
            {"topology": topology, "method": name, **counts} for (topology, name), counts in found.filtered.items()
        ],
    }


def markdown(found: Benchmark) -> str:
    """The table, and how it came about, as Markdown."""
    given, tuned = found.given, sorted({one.method for one in found.tries})
    seeds = f"{len(given.seeds)} seeds" if len(given.seeds) > 1 else "1 seed"
    bounds = ", ".join(f"{name} {value:g}" for name, value in vars(given.bounds).items() if value is not None)
    lines = [
        f"{given.tries} tries for each of {len(tuned)} methods in each topology, on validation parts, with a seed of "
        f"their own. Chosen: {RULE} ({bounds or 'none'}). Then once on the test parts, {seeds}.",
        "",
        f"The attacker's grid: {'; '.join(map(point_in_words, found.points))}.",
        "",
        f"| {' | '.join(titles_of(found))} |",
        f"|{'---|' * len(titles_of(found))}",
        *(f"| {' | '.join(cell or '–' for cell in row)} |" for row in table_of(found)),
        "",
        "Harmful scores, accuracy and the rest are means over the grid. Rank: the best and the worst rank that tests "
        "of every pair, corrected by Holm, leave open, for other seeds and for the models at hand. Breaks at: the "
        "first point of the grid at which the harmful score's interval lies above one half. Time and memory: of "
        "training and repair, against the undefended run.",
        "",
    ]
    if found.filtered:
        lines += ["Rows left out: by the method, of what was handed in, over the grid and the seeds.", ""]
    if given.knowing:
        lines += [
            "Knowing: under the attack that the method's own rule suggests, the one of them (and of the plain attack) "
            "with the highest harmful score on the validation parts that keeps the task within the bound; with as "
            "many rows as the plain attack, and as many harmful ones where it has any. Beside it the undefended run "
            "under the same.",
            "",
        ]
    return "\n".join(lines)
