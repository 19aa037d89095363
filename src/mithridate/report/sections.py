"""Which figures a run has, each with its words and its table.

A run of few cells shows each of them. A grid shows what several seeds come to together, a figure for each topology and
harmful ratio, and lines by method.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from mithridate.report import figures
from mithridate.report.figures import Figure
from mithridate.report.groups import costs, curve, front, resistance_pairs, resistance_series, series_of, sweeps
from mithridate.report.load import LoadedRun, final
from mithridate.report.tables import (
    DECISION,
    NOTHING,
    Column,
    Entry,
    Table,
    decision_entry,
    methods_cost_table,
    name_column,
    name_entry,
    rate_column,
    rate_entry,
)
from mithridate.report.verdicts import ranked
from mithridate.report.words import TOPOLOGIES, Label, attack_of_kind, rows_in_words, rows_of
from mithridate.results.relations import Cell, arm, attacked, measured, related, undefended
from mithridate.statistics.text import percent

SECTIONS = ("opening", "ratios", "scores", "shares", "resistance", "trade", "maps", "costs", "curves")
# More than so many bars or lines in one figure are split by harmful ratio.
_MANY = 16
# More than so many curves along the attack are put together by method.
_MANY_CURVES = 6


@dataclass
class FigureWithTable:
    """A figure, what it shows in words, and its table for those who cannot see it. `id` is also its file's name."""

    id: str
    title: str
    description: str
    figure: Figure
    table: Table


def sections(run: LoadedRun) -> dict[str, list[FigureWithTable]]:
    """The figures by section of the page."""
    made = {
        "opening": _opening(run),
        "ratios": _ratios(run),
        "scores": _scores(run),
        "shares": _shares(run),
        "resistance": _resistance(run),
        "trade": _trade(run),
        "maps": _maps(run),
        "costs": _costs(run),
        "curves": _curves(run),
    }
    found: dict[str, list[FigureWithTable]] = {}
    taken: set[str] = set()
    for section in SECTIONS:
        found[section] = []
        for title, text, figure, table in made[section]:
            slug = re.sub(r"[^a-z0-9.]+", "-", f"{section} {title}".lower()).strip("-.")
            name, number = slug, 2
            while name in taken:
                name, number = f"{slug}-{number}", number + 1
            taken.add(name)
            table.name = name
            found[section].append(FigureWithTable(name, title, text, figure, table))
    return found


_Made = Iterator[tuple[str, str, Figure, Table]]


def _topologies(points: Iterable[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    points = list(points)
    for topology in dict.fromkeys(point["topology"] for point in points):
        yield TOPOLOGIES.get(topology) or topology, [point for point in points if point["topology"] == topology]


def _split(points: list[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    """(what they have in common in words, points): by topology, and by the attack's rows where they are many."""
    for where, of_topology in _topologies(points):
        parts = _by_rows(of_topology)
        if len(of_topology) <= _MANY or len(parts) == 1:
            yield where, of_topology
        else:
            yield from ((f"{where}, {words or 'before fine-tuning'}", some) for words, some in parts)


def _by_rows(points: Iterable[Cell]) -> list[tuple[str, list[Cell]]]:
    """(their attack's rows in words, points)."""
    groups: dict[tuple[float | None, str], list[Cell]] = {}
    for point in points:
        groups.setdefault(rows_of(point), []).append(point)
    return [(rows_in_words(some[0]), some) for some in groups.values()]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# --- the opening ------------------------------------------------------------------------------------------------


def _opening(run: LoadedRun) -> _Made:
    """What the attack did, then what each defense left, in the order of the findings: of the attacks with the most
    effect, where there are several."""
    rows, found = next(iter(ranked(run.points).items()), ("", []))
    left = [one.cell for one in found]
    plain = {one.reference["id"]: one.reference for one in found if one.reference}
    if not found:
        plain = {point["id"]: point for point in run.points if undefended(point) and attacked(point)}
    before = [other for point in plain.values() if (other := related(run.points, point, "aligned"))]
    points = [one for one in (*before, *plain.values(), *left) if measured(one, "harmful_score")]
    if not points:
        return
    title = "Share of harmful prompts that are answered, before the attack, after it, and with each defense"
    title += f": {rows}" if rows else ""
    if len(points) > _MANY:
        title += f" (the first {_MANY} of {len(points)} runs)"
        points = points[:_MANY]
    several = len({point["topology"] for point in points}) > 1
    parts = {  # what all have in common is in the title
        name: [label.topology if several else "", "" if rows == label.rows else label.rows]
        for name, label in run.point_names.items()
    }
    names = {
        name: replace(label, topology="", rows=", ".join(filter(None, parts[name])))
        for name, label in run.point_names.items()
    }
    entries = [
        [
            name_entry(point, run.point_names),
            *(rate_entry(point["rates"].get(rate)) for rate in ("harmful_score", "accuracy", "benign_refusal")),
            decision_entry(point),
        ]
        for point in points
    ]
    columns = [
        name_column(),
        rate_column("Harmful score", "harmful_score"),
        rate_column("Task accuracy", "accuracy"),
        rate_column("Benign refusal", "benign_refusal"),
        DECISION,
    ]
    table = Table("", title, columns, entries)
    text = f"Bars: harmful score of {len(points)} runs, with 95% intervals: before the attack, after it without a "
    text += f"defense, then with {len(left)} defenses in the order of the list below the figure."
    yield title, text, figures.score_bars(points, names), table


# --- scores -----------------------------------------------------------------------------------------------------


def _ratios(run: LoadedRun) -> _Made:
    tuned = [point for point in run.points if point["finetuning"] != "none"]
    for where, points, kind in _kinds(tuned):
        ratios = sorted({point["harmful_ratio"] for point in points})
        if len(ratios) < 2:
            continue
        series = series_of(points, run.point_names)
        rows = []
        for name, cells in series.items():
            of_ratio = {cell["harmful_ratio"]: cell["rates"]["harmful_score"] for cell in cells}
            rows.append([Entry(name), *(rate_entry(of_ratio.get(ratio)) for ratio in ratios)])
        columns = [rate_column(f"{percent(ratio)} {kind} rows", f"harmful_score_at_{ratio:g}") for ratio in ratios]
        table = Table("", f"Harmful score by the share of {kind} rows, {where}", [Column("Run"), *columns], rows)
        text = f"Lines: harmful score of {len(series)} methods with {where} at {len(ratios)} shares of {kind} rows."
        title = _capital(where) if kind == "harmful" else f"{_capital(where)}, {kind} rows"
        yield title, text, figures.ratio_lines(points, run.point_names), table


def _kinds(points: list[Cell]) -> Iterator[tuple[str, list[Cell], str]]:
    """(topology and training in words, points, kind of their attack's rows); no rows of that kind are among those of
    each."""
    for where, of_topology in _topologies(points):
        of_attack: dict[tuple[str, ...], list[Cell]] = {}
        for point in of_topology:
            of_attack.setdefault(attack_of_kind(point), []).append(point)
        for (kind, *training), some in of_attack.items():
            if any(point["harmful_ratio"] for point in some):
                yield ", ".join([where, *training]), some, kind


def _scores(run: LoadedRun) -> _Made:
    names = run.point_names
    for where, points in _split(run.points):
        rates = [rate_entry(point["rates"]["harmful_score"]) for point in points]
        rows = [[name_entry(point, names, topology=False), rate] for point, rate in zip(points, rates)]
        columns = [name_column(), rate_column("Harmful score", "harmful_score")]
        table = Table("", f"Harmful score, {where}", columns, rows)
        text = f"Bars: harmful score of {len(points)} runs with {where}, with 95% intervals."
        yield _capital(where), text, figures.score_bars(points, names), table


def _shares(run: LoadedRun) -> _Made:
    shares, names = _verdict_shares(run), run.point_names
    verdicts = figures.verdicts_of(shares)
    for where, points in _split([point for point in run.points if point["id"] in shares]):
        rows = []
        for point in points:
            given = [shares[point["id"]].get(verdict, 0) for verdict in verdicts]
            entries = [Entry(percent(share), values=(share,)) for share in given]
            rows.append([name_entry(point, names, topology=False), *entries])
        columns = [name_column(), *(Column(verdict, (verdict,)) for verdict in verdicts)]
        table = Table("", f"Answers to harmful prompts, {where}", columns, rows)
        text = f"Stacked bars: the share of each verdict in {len(points)} runs with {where}."
        yield _capital(where), text, figures.share_bars(points, names, shares), table


def _verdict_shares(run: LoadedRun) -> dict[str, dict[str, float]]:
    """{point: {verdict: share of its final answers to harmful prompts}}."""
    point_of = {name: point["id"] for point in run.points for name in point["cells"]}
    counts: dict[str, dict[str, int]] = {}
    for row in run.records:
        if row["set"] == "harmful" and final(row) and row["cell"] in point_of:
            of_point = counts.setdefault(point_of[row["cell"]], {})
            verdict = row["verdict"] or "unscored"
            of_point[verdict] = of_point.get(verdict, 0) + 1
    return {
        point: {verdict: n / sum(of_point.values()) for verdict, n in of_point.items()}
        for point, of_point in counts.items()
    }


# --- along the attack -------------------------------------------------------------------------------------------


def _resistance(run: LoadedRun) -> _Made:
    pairs = resistance_pairs(run.cells)
    if len(pairs) > _MANY_CURVES:
        yield from _resistance_together(run)
        return
    for cell, beside in pairs:
        name = run.names[cell["id"]].full
        text = f"Lines: harmful score along the attack's steps, {name}, beside the undefended run."
        series = {run.names[one["id"]].arm: (one, dict(curve(one, run.cells))) for one in (cell, *beside)}
        yield name, text, figures.along_the_attack(series, stars=True), _curve_table(series)


def _resistance_together(run: LoadedRun) -> _Made:
    able = [cell for cell in run.cells if attacked(cell) and cell.get("resistance")]
    for words, same in _by_rows(able):
        for where, cells in _topologies(same):
            series = resistance_series(cells, run.cells, run.names)
            seeds = max(sum(run.names[c["id"]].arm == name for c in cells) for name in series)
            title = f"{_capital(where)}, {words}"
            steps = sorted({step for _, points in series.values() for step in points})
            rows = [
                [Entry(str(step)), *(rate_entry(points.get(step)) for _, points in series.values())] for step in steps
            ]
            spread = "; in brackets the lowest and highest of the seeds" if seeds > 1 else ""
            caption = f"Harmful score along the attack's steps, {title.lower()}{spread}"
            columns = [Column("Step"), *(rate_column(name, name) for name in series)]
            text = f"Lines: harmful score along the attack's steps of {len(series)} methods, {title.lower()}."
            if seeds > 1:
                text += " Means over seeds; the bars span the lowest and highest seed."
            yield title, text, figures.along_the_attack(series), Table("", caption, columns, rows)


def _curve_table(series: dict[str, Any]) -> Table:
    steps = sorted({step for _, points in series.values() for step in points})
    rows = [[Entry(str(step)), *(rate_entry(points.get(step)) for _, points in series.values())] for step in steps]
    halves = [cell.get("steps_to_half") for cell, _ in series.values()]
    passed = [Entry(f"step {half:.0f}") if half is not None else NOTHING for half in halves]
    rows.append([Entry("passes one half at"), *passed])
    columns = [Column("Step"), *(rate_column(name, name) for name in series)]
    return Table("", "Harmful score along the attack's steps", columns, rows)


# --- two fields -------------------------------------------------------------------------------------------------


def _trade(run: LoadedRun) -> _Made:
    hit, names = [point for point in run.points if attacked(point)], run.point_names
    for words, points in _by_rows(hit):
        best = [point["id"] for point in front(points)]
        rows = [
            [
                name_entry(point, names),
                rate_entry(point["rates"]["accuracy"]),
                rate_entry(point["rates"]["harmful_score"]),
                Entry("yes" if point["id"] in best else "no"),
            ]
            for point in points
        ]
        columns = [
            name_column(),
            rate_column("Task accuracy", "accuracy"),
            rate_column("Harmful score", "harmful_score"),
            Column("On the Pareto front"),
        ]
        table = Table("", f"Task accuracy and harmful score after the attack, {words}", columns, rows)
        text = f"Points: task accuracy and harmful score of {len(points)} attacked runs, {words}, with 95% intervals."
        if len(best) > 1:
            text += " A dotted line joins the runs that no other beats on both."
        yield f"After the attack, {words}", text, figures.trade_off(points, names), table


def _maps(run: LoadedRun) -> _Made:
    for sweep in sweeps(run.points):
        first = next(iter(sweep.cells.values()))
        where = TOPOLOGIES.get(first["topology"]) or first["topology"]
        fixed = [
            f"{figures.field_title(name)} {figures.field_value(name, value)}" for name, value in sweep.fixed.items()
        ]
        title = ", ".join([arm(first), where, *fixed])
        x, y = figures.field_title(sweep.x), figures.field_title(sweep.y)
        rows = [
            [
                Entry(figures.field_value(sweep.y, value), values=(value,)),
                *(rate_entry(measured(sweep.cells.get((other, value)), "harmful_score")) for other in sweep.values(0)),
            ]
            for value in sweep.values(1)
        ]
        texts = [figures.field_value(sweep.x, value) for value in sweep.values(0)]
        columns = [Column(y, (sweep.y,)), *(rate_column(f"{x} {text}", f"{sweep.x}={text}") for text in texts)]
        table = Table("", f"Harmful score by {y.lower()} and {x.lower()}: {title}", columns, rows)
        text = f"Heat map: harmful score by {y.lower()} (rows) and {x.lower()} (columns), {title}."
        yield title, text, figures.heat_map(sweep, run.point_names), table


# --- costs and training -----------------------------------------------------------------------------------------


def _costs(run: LoadedRun) -> _Made:
    found = costs(run.cells)
    if not found:
        return
    if any(cost.time_ratio or cost.memory_ratio for cost in found):
        text = "Bars: training time and peak memory of each method, as ratios to plain fine-tuning (1, dotted)."
        yield "Of each method", text, figures.cost_bars(found), methods_cost_table(found)


def _curves(run: LoadedRun) -> _Made:
    for title, stage in (("Alignment", False), ("Fine-tuning", True)):
        cells = [c for c in run.cells if run.history.get(c["id"]) and (c["finetuning"] != "none") == stage]
        parts = [(title, cells)]
        if len(cells) > _MANY and stage:
            parts = [(f"{title}, {words}", some) for words, some in _by_rows(cells)]
        for name, some in parts:
            if some:
                text = f"Lines: training loss along the steps, {name[:1].lower()}{name[1:]} of {len(some)} runs."
                figure = figures.training_curves(run.history, some, run.names)
                yield name, text, figure, _history_table(run.history, some, run.names)


def _history_table(history: dict[str, Any], cells: list[Cell], names: dict[str, Label]) -> Table:
    rows = []
    for cell in cells:
        points = [row for row in history[cell["id"]] if row.get("loss") is not None]
        if points:
            picked = sorted({round(i * (len(points) - 1) / 3) for i in range(4)})
            text = ", ".join(f"step {points[i]['step']}: {points[i]['loss']:.3g}" for i in picked)
            rows.append([name_entry(cell, names), Entry(text)])
    caption = "Training loss at a few steps; all of them are in history.json"
    return Table("", caption, [name_column(), Column("Loss")], rows)
