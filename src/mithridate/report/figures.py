"""The figures, drawn by Altair: on the page by Vega in the reader's browser, for papers as SVG and PDF without one.

Names from results.json reach a figure as data, or as texts of an axis; nothing of them is markup. Everything a figure
shows also stands in a table of the page.
"""

import json
import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Any

import altair as alt
import vl_convert

from mithridate.report.colours import HEAT, UNDEFENDED, VERDICT_COLOURS, colour
from mithridate.report.groups import ArmCost, Sweep, front, series_of
from mithridate.report.words import TOPOLOGIES, Label
from mithridate.results.relations import Cell, arm, attacked, measured, related
from mithridate.statistics.text import interval, percent

_SHAPES = {"single": "circle", "double": "square", "full": "diamond"}
_STAR = "M" + "L".join(
    f"{math.sin(i * math.pi / 5) * r:.3f},{-math.cos(i * math.pi / 5) * r:.3f}" for i, r in enumerate([1, 0.4] * 5)
)
# The dashes of lines, also by name in a legend.
DASHES = {"line": [], "dash": [6, 4], "dot": [2, 3], "dashdot": [7, 3, 2, 3]}
_HOVER = "hover"  # the name of the layers that answer the pointer, of no use on paper
_PAPER_WIDTH, _LETTERS = 480, 78  # pixels, and letters of a legend's line
_GAP = 0.38  # between bars, as a share of their step
_LINE = 15  # pixels, of a label of several lines


@dataclass(frozen=True)
class Key:
    """An entry of a figure's legend: a shape ("square", "circle", "diamond", "cross", or a line: one of `DASHES`) in a
    colour, filled or open."""

    shape: str
    colour: str
    text: str
    open: bool = False


@dataclass(frozen=True)
class Figure:
    """Layers of marks, and what their colours and shapes mean."""

    chart: Any  # an alt.LayerChart; its `properties` is declared to give something else
    legend: list[Key]

    def for_page(self) -> dict[str, Any]:
        """The Vega-Lite specification, as wide as its place, in the colours of the page's style sheet."""
        chart = self.chart.properties(width="container", background="transparent")
        # The page has a legend of its own, which wraps on a phone, and words and a table for screen readers.
        look = _look("var(--ink)", "var(--line)")
        spec = chart.configure(**look, aria=False, font="system-ui, sans-serif").to_dict()
        del spec["$schema"]  # an address
        return spec

    def svg(self, title: str) -> str:
        """The text of an SVG file, light, with the legend; always the same.

        Args:
            title: for screen readers.
        """
        layers = [layer for layer in self.chart.layer if layer.name != _HOVER]
        chart = alt.layer(*layers, *_legend(self.legend), data=self.chart.data).properties(
            width=_PAPER_WIDTH, height=self.chart.height, description=title
        )
        # The legend's channels are its own. Most machines have one of the fonts, which are equally wide.
        own: Any = dict.fromkeys(("shape", "stroke", "fill", "strokeDash"), "independent")
        chart = chart.resolve_scale(**own)
        chart = chart.configure(**_look("#1b1e23", "#d5d9df"), font="DejaVu Sans, Verdana, sans-serif")
        drawn = vl_convert.vegalite_to_svg(chart.to_dict())
        opened = drawn.index(">") + 1
        return f"{drawn[:opened]}<title>{escape(title, quote=False)}</title>{drawn[opened:]}\n"


def _look(ink: str, line: str) -> dict[str, Any]:
    text = {
        "labelColor": ink,
        "titleColor": ink,
        "labelFontSize": 13,
        "titleFontSize": 13,
        "titleFontWeight": "normal",
    }
    lines = {"domainColor": line, "gridColor": line, "tickColor": line}
    return {
        "autosize": {"type": "fit-x", "contains": "padding"},
        "view": {"stroke": None},
        "axis": {**text, **lines, "labelLimit": 400, "titlePadding": 8},
        "axisY": {"labelPadding": 6},
        "legend": {"labelColor": ink, "labelFontSize": 13, "symbolSize": 180, "labelLimit": 0},
        "axisX": {"labelFlush": False},
        "rule": {"color": ink},
        "tick": {"color": ink},
        "point": {"opacity": 1},
    }


def _legend(keys: list[Key]) -> list[alt.Chart]:
    """A mark that cannot be seen and has the legend."""
    if not keys:
        return []
    columns = max(1, _LETTERS // max(len(key.text) + 6 for key in keys))
    texts = _chosen([[key.text] for key in keys])
    legend = alt.Legend(title=None, orient="bottom", columns=columns, labelExpr=texts, symbolOpacity=1, offset=12)

    def channel(values: list[Any]) -> dict[str, Any]:
        return {"scale": alt.Scale(domain=list(range(len(keys))), range=values), "legend": legend}

    looks = {
        "shape": alt.Shape("key:N", **channel(["stroke" if key.shape in DASHES else key.shape for key in keys])),
        "stroke": alt.Stroke("key:N", **channel([key.colour for key in keys])),
        "fill": alt.Fill("key:N", **channel(["transparent" if key.open else key.colour for key in keys])),
        "strokeDash": alt.StrokeDash("key:N", **channel([DASHES.get(key.shape, []) for key in keys])),
    }
    rows = [{"key": number} for number in range(len(keys))]
    return [alt.Chart(_data(rows)).mark_point(opacity=0, strokeWidth=2).encode(**looks)]


# --- what figures share -----------------------------------------------------------------------------------------


def _data(rows: Iterable[dict[str, Any]]) -> alt.Data:
    return alt.Data(values=list(rows))


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, 28, break_on_hyphens=False)


def _told(name: str, rate: dict[str, Any]) -> str:
    seeds = f"{rate['seeds']} seeds, " if rate.get("seeds") else ""
    return f"{name}: {percent(rate['value'])}, interval {interval(rate)}, {seeds}n = {rate['n']}"


def _chosen(texts: list[list[str]]) -> str:
    """The expression that gives the mark of number `datum.value` its text, in lines."""
    return f"{json.dumps(texts)}[datum.value]"


def _places(texts: list[list[str]], **more: Any) -> alt.Axis:
    """An axis with a text for each of the places 0, 1, ..."""
    return alt.Axis(labelExpr=_chosen(texts), labelAngle=0, ticks=False, grid=False, domain=False, **more)


def _middle(texts: list[list[str]]) -> dict[str, Any]:
    """The offset that has each text of several lines stand in the middle of its place."""
    counts = [len(text) for text in texts]
    conditions = [
        {"test": f"{json.dumps(counts)}[datum.value] == {lines}", "value": (1 - lines) * _LINE / 2}
        for lines in sorted(set(counts))
    ]
    return {"condition": conditions, "value": 0}


def _rows(texts: list[list[str]]) -> tuple[int, alt.Y]:
    """The height of a figure with a bar for each text, from top to bottom, and the axis with them."""
    lines = max((len(text) for text in texts), default=1)
    axis = _places(texts, title=None, labelOffset=_middle(texts), labelLineHeight=_LINE)
    return len(texts) * max(32, _LINE * lines + 6), alt.Y("row:O", axis=axis, scale=alt.Scale(padding=_GAP))


def _shares(field: str, title: str) -> alt.X:
    """The axis of bars in percent; fewer labels, so that they have room on a phone."""
    axis = alt.Axis(values=[0, 0.25, 0.5, 0.75, 1], labelExpr="datum.index % 0.5 ? '' : format(datum.value, '.0%')")
    return alt.X(f"{field}:Q", title=title, axis=axis, scale=alt.Scale(domain=[0, 1.02], nice=False))


def _percents(channel: Any, field: str, title: str, low: float = -0.02, high: float = 1.04, step: float = 0.25) -> Any:
    values = [round(number * step, 2) for number in range(round(1 / step) + 1) if number * step >= low]
    scale = alt.Scale(domain=[low, high], nice=False, zero=False)
    return channel(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(values=values, format=".0%"))


def _score_axis(field: str = "value") -> alt.Y:
    return _percents(alt.Y, field, "Harmful score")


def _given(channel: Any, field: str) -> Any:
    """A channel whose value is in the rows themselves."""
    return channel(f"{field}:N", scale=None, legend=None)


def _dotted(rows: Iterable[dict[str, Any]], **encoding: Any) -> alt.Chart:
    return (
        alt.Chart(_data(rows))
        .mark_rule(color=UNDEFENDED, strokeWidth=1.5, strokeDash=DASHES["dot"])
        .encode(**encoding)
    )


def _nearest(x: Any, y: Any) -> alt.Chart:
    """The text of the point that is nearest to the pointer, and a ring round it."""
    near = alt.selection_point(nearest=True, on="pointerover", clear="pointerout", empty=False)
    ring = alt.when(near).then(alt.value(1)).otherwise(alt.value(0))
    # What is pointed at is Vega-Lite's cell round the point; its datum is the point's mark, whose datum is the row.
    text = alt.value(alt.ExprRef("(datum.datum || datum).text"))
    chart = alt.Chart(name=_HOVER).mark_point(size=220, strokeWidth=2)
    return chart.encode(x=x, y=y, stroke=_given(alt.Stroke, "hue"), opacity=ring, tooltip=text).add_params(near)


def _intervals(**encoding: Any) -> alt.Chart:
    return alt.Chart().mark_errorbar(ticks=True, thickness=1.5).encode(tooltip=alt.value(None), **encoding)


def _lines(x: alt.X) -> list[alt.Chart]:
    """Lines of points with intervals, over x."""
    y, hue = _score_axis(), _given(alt.Stroke, "hue")
    dash = _given(alt.StrokeDash, "dash")
    line = alt.Chart().mark_line(strokeWidth=2.5).encode(x=x, y=y, stroke=hue, strokeDash=dash, detail="series:N")
    points = alt.Chart().mark_point(size=50, strokeWidth=2).encode(x=x, y=y, stroke=hue, fill=_given(alt.Fill, "fill"))
    intervals = _intervals(x=x, y=_score_axis("low"), y2="high", color=_given(alt.Color, "hue"))
    return [intervals, line, points, _nearest(x, y)]


def _styles(series: dict[str, Cell]) -> dict[str, Key]:
    """A colour and a dash for each series, given by its name and one of its cells: the defense's colour, and dashes
    that tell series of one colour apart (a control is never solid)."""
    found: dict[str, Key] = {}
    for name, cell in series.items():
        hue = colour(cell)
        taken = [key.shape for key in found.values() if key.colour == hue]
        able = ("dash", "dot", "dashdot") if cell["control"] else ("line", "dot", "dashdot", "dash")
        found[name] = Key(next((dash for dash in able if dash not in taken), able[-1]), hue, name)
    return found


def _point(x: float, rate: dict[str, Any], key: Key, cell: Cell, name: str) -> dict[str, Any]:
    """A point of `_lines`."""
    return {
        "x": x,
        **{bound: rate[bound] for bound in ("value", "low", "high")},
        "series": key.text,
        "hue": key.colour,
        "fill": "transparent" if cell["control"] else key.colour,
        "dash": DASHES[key.shape],
        "text": _told(name, rate),
    }


# --- bars -------------------------------------------------------------------------------------------------------


def _names(cells: list[Cell], names: dict[str, Label]) -> list[list[str]]:
    return [_wrap(names[cell["id"]].arm) + _wrap(names[cell["id"]].rest) for cell in cells]


def score_bars(cells: list[Cell], names: dict[str, Label]) -> Figure:
    """Harmful score with its interval, a bar a cell; open where it is a control. A dotted line marks the undefended
    score behind the runs that are compared with it."""
    cells = [cell for cell in cells if measured(cell, "harmful_score")]
    height, y = _rows(_names(cells, names))
    rows, references = [], []
    for row, cell in enumerate(cells):
        rate = cell["rates"]["harmful_score"]
        look = {
            "hue": colour(cell),
            "opacity": 1.0 if attacked(cell) else 0.55,
            "inside": 0.15 if cell["control"] else 1,
        }
        text = _told(names[cell["id"]].full, rate)
        rows.append({"row": row, **{b: rate[b] for b in ("value", "low", "high")}, **look, "text": text})
        reference = related(cells, cell, "reference")
        if reference and cell["finetuning"] != "none" and measured(reference, "harmful_score"):
            references.append({"row": row, "value": reference["rates"]["harmful_score"]["value"]})
    ends = {"y": alt.Y("row:O", bandPosition=0), "y2": alt.Y2("row", bandPosition=1)}
    bars = (
        alt.Chart()
        .mark_bar(strokeWidth=1.5)
        .encode(
            x=_shares("value", "Harmful score"),
            y=y,
            fill=_given(alt.Fill, "hue"),
            stroke=_given(alt.Stroke, "hue"),
            opacity=alt.Opacity("opacity:Q", scale=None, legend=None),
            fillOpacity=alt.FillOpacity("inside:Q", scale=None, legend=None),
        )
    )
    intervals = _intervals(x=_shares("low", "Harmful score"), x2="high", y=y)
    dotted = [_dotted(references, x=_shares("value", "Harmful score"), **ends)] if references else []
    chart = alt.layer(*dotted, bars, intervals, _whole_rows(y), data=_data(rows))
    return Figure(chart.properties(height=height), [])


def _whole_rows(y: alt.Y) -> alt.Chart:
    """What tells the text of a row wherever the pointer is in it, however short its bar."""
    return alt.Chart(name=_HOVER).mark_rect(opacity=0, height={"band": 1 / (1 - _GAP)}).encode(y=y, tooltip="text:N")


def verdicts_of(shares: dict[str, dict[str, float]]) -> list[str]:
    """The verdicts that occur, in the order in which they are shown."""
    return [verdict for verdict in VERDICT_COLOURS if any(verdict in of_cell for of_cell in shares.values())]


def share_bars(cells: list[Cell], names: dict[str, Label], shares: dict[str, dict[str, float]]) -> Figure:
    """The verdicts on the answers to harmful prompts, stacked, a bar a cell.

    Args:
        shares: {cell id: {verdict: fraction}}.
    """
    cells = [cell for cell in cells if cell["id"] in shares]
    height, y = _rows(_names(cells, names))
    rows = [
        {
            "row": row,
            "value": shares[cell["id"]].get(verdict, 0),
            "order": number,
            "hue": VERDICT_COLOURS[verdict],
            "text": f"{names[cell['id']].full}: {percent(shares[cell['id']].get(verdict, 0))} {verdict}",
        }
        for row, cell in enumerate(cells)
        for number, verdict in enumerate(verdicts_of(shares))
    ]
    bars = (
        alt.Chart()
        .mark_bar()
        .encode(
            x=_shares("value", "Share of answers"),
            y=y,
            fill=_given(alt.Fill, "hue"),
            order="order:Q",
            tooltip="text:N",
        )
    )
    keys = [Key("square", VERDICT_COLOURS[verdict], verdict) for verdict in verdicts_of(shares)]
    return Figure(alt.layer(bars, data=_data(rows)).properties(height=height), keys)


def cost_bars(costs: list[ArmCost]) -> Figure:
    """Time and memory of each defended method as ratios to plain fine-tuning, two bars a method; dotted: 1."""
    costs = [cost for cost in costs if cost.time_ratio or cost.memory_ratio]
    labels = [(arm(cost.cell), TOPOLOGIES.get(cost.cell["topology"]) or cost.cell["topology"]) for cost in costs]
    height, y = _rows([[line for text in texts for line in _wrap(text)] for texts in labels])
    rows = [
        {"row": row, "kind": kind, "value": ratio or 0, "hue": colour(cost.cell), "opacity": opacity}
        | {"text": f"{arm(cost.cell)}: {words} × {ratio or 0:.2f}"}
        for row, cost in enumerate(costs)
        for kind, (words, ratio, opacity) in enumerate(
            [("training time", cost.time_ratio, 1.0), ("peak memory", cost.memory_ratio, 0.45)]
        )
    ]
    bars = (
        alt.Chart()
        .mark_bar()
        .encode(
            x=alt.X("value:Q", title="× plain fine-tuning", axis=alt.Axis(tickCount=6)),
            y=y,
            yOffset="kind:N",
            fill=_given(alt.Fill, "hue"),
            opacity=alt.Opacity("opacity:Q", scale=None, legend=None),
            tooltip="text:N",
        )
    )
    keys = [
        Key("square", UNDEFENDED, "solid: time of training and repair"),
        Key("square", "#80808073", "pale: peak memory"),
    ]
    one = _dotted([{"value": 1}], x="value:Q")
    return Figure(alt.layer(one, bars, data=_data(rows)).properties(height=height), keys)


# --- lines ------------------------------------------------------------------------------------------------------


def ratio_lines(points: list[Cell], names: dict[str, Label]) -> Figure:
    """Harmful score against the share of harmful rows, a line per method, with intervals. Lines stand a little beside
    each other, so that their intervals can be told apart.

    Args:
        points: fine-tuned points of one topology.
    """
    series = series_of(points, names)
    keys = _styles({name: cells[0] for name, cells in series.items()})
    ratios = sorted({point["harmful_ratio"] for point in points})
    aside = (ratios[-1] - ratios[0]) * 0.012
    rows = [
        _point(
            cell["harmful_ratio"] + (number - (len(series) - 1) / 2) * aside,
            cell["rates"]["harmful_score"],
            keys[name],
            cell,
            names[cell["id"]].full,
        )
        for number, (name, cells) in enumerate(series.items())
        for cell in cells
        if measured(cell, "harmful_score")
    ]
    edge = aside * (len(series) + 1) / 2
    x = alt.X(
        "x:Q",
        title="Share of harmful rows",
        scale=alt.Scale(domain=[ratios[0] - edge, ratios[-1] + edge], nice=False, zero=False, padding=8),
        axis=alt.Axis(values=ratios, format=".3~%"),
    )
    return Figure(alt.layer(*_lines(x), data=_data(rows)).properties(height=330), list(keys.values()))


def along_the_attack(series: dict[str, tuple[Cell, dict[int, dict[str, Any]]]], stars: bool = False) -> Figure:
    """Harmful score along the attack's steps, a line per method; dotted: one half.

    Args:
        series: {name: (one of its cells, {step: rate})}.
        stars: a star where a cell passes one half.
    """
    keys = _styles({name: cell for name, (cell, _) in series.items()})
    rows = [
        _point(step, rate, keys[name], cell, f"{name}, step {step}")
        for name, (cell, points) in series.items()
        for step, rate in points.items()
    ]
    x = alt.X("x:Q", title="Steps of the attack", axis=alt.Axis(tickCount=6))
    half = _dotted([{"value": 0.5}], y=_score_axis())
    passed = [
        {"x": cell["steps_to_half"], "value": 0.5, "hue": keys[name].colour}
        | {"text": f"{name}: passes one half at step {cell['steps_to_half']:.0f}"}
        for name, (cell, _) in series.items()
        if stars and cell.get("steps_to_half") is not None
    ]
    star = alt.Chart(_data(passed)).mark_point(shape=_STAR, size=225, stroke="white", strokeWidth=1)
    star = star.encode(x=x, y=_score_axis(), fill=_given(alt.Fill, "hue"), tooltip="text:N")
    layers = [half, *_lines(x), *([star] if passed else [])]
    return Figure(alt.layer(*layers, data=_data(rows)).properties(height=250), list(keys.values()))


def training_curves(history: dict[str, list[dict[str, Any]]], cells: list[Cell], names: dict[str, Label]) -> Figure:
    """Training loss along the steps, a line per cell. In the legend a method stands for all its runs and settings."""
    rows, keys = [], {}
    for cell in cells:
        dash = "dash" if cell["control"] else "dot" if cell["harmful_ratio"] == 0 else "line"
        key = Key(dash, colour(cell), f"{arm(cell)}, no harmful rows" if dash == "dot" else arm(cell))
        keys[key.colour, key.shape] = key
        rows += [
            {"x": row["step"], "value": row["loss"], "series": cell["id"], "hue": key.colour, "dash": DASHES[dash]}
            | {"text": f"{names[cell['id']].full}\nstep {row['step']}: loss {row['loss']:.3g}"}
            for row in history[cell["id"]]
            if row.get("loss") is not None
        ]
    x, y = (
        alt.X("x:Q", title="Step", axis=alt.Axis(tickCount=6)),
        alt.Y("value:Q", title="Training loss", scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=6)),
    )
    looks = {"stroke": _given(alt.Stroke, "hue"), "strokeDash": _given(alt.StrokeDash, "dash"), "detail": "series:N"}
    line = alt.Chart().mark_line(strokeWidth=1.5).encode(x=x, y=y, **looks)
    chart = alt.layer(line, _nearest(x, y), data=_data(rows))
    return Figure(chart.properties(height=270), list(keys.values()))


# --- two fields -------------------------------------------------------------------------------------------------


def trade_off(points: list[Cell], names: dict[str, Label]) -> Figure:
    """Task accuracy against harmful score, both with intervals, a point a run: low and to the right is good. Dotted
    stairs: the Pareto front. In the legend a method stands for all its settings."""
    points = [point for point in points if measured(point, "harmful_score") and measured(point, "accuracy")]
    several = len({point["topology"] for point in points}) > 1
    rows, keys = [], {}
    for point in points:
        score, accuracy = point["rates"]["harmful_score"], point["rates"]["accuracy"]
        name = arm(point) + (f", {names[point['id']].topology}" if several else "")
        key = Key(_SHAPES.get(point["topology"], "cross"), colour(point), name, bool(point["control"]))
        keys[key] = None
        rows.append(
            {"x": accuracy["value"], "x_low": accuracy["low"], "x_high": accuracy["high"]}
            | {"value": score["value"], "low": score["low"], "high": score["high"]}
            | {"hue": key.colour, "shape": key.shape, "fill": "transparent" if key.open else key.colour}
            | {"text": f"{_told(names[point['id']].full, score)}\n{_told('accuracy', accuracy)}"}
        )
    lowest = min((row["x_low"] for row in rows), default=0.0)
    low, step = max(0, lowest - 0.05), 0.1 if lowest > 0.4 else 0.2

    def x(field: str) -> alt.X:
        return _percents(alt.X, field, "Task accuracy", low, 1.02, step)

    y, hue = _score_axis(), _given(alt.Color, "hue")
    layers = [
        alt.Chart().mark_rule().encode(x=x("x_low"), x2="x_high", y=y, color=hue),
        alt.Chart().mark_rule().encode(x=x("x"), y=_score_axis("low"), y2="high", color=hue),
        alt.Chart()
        .mark_point(size=130, strokeWidth=2.5)
        .encode(
            x=x("x"),
            y=y,
            stroke=_given(alt.Stroke, "hue"),
            fill=_given(alt.Fill, "fill"),
            shape=_given(alt.Shape, "shape"),
        ),
        _nearest(x("x"), y),
    ]
    best = front(points)
    if len(best) > 1:
        stairs = [
            {"x": point["rates"]["accuracy"]["value"], "value": point["rates"]["harmful_score"]["value"]}
            for point in best
        ]
        line = alt.Chart(_data(stairs)).mark_line(interpolate="step-before", color=UNDEFENDED, strokeWidth=1.5)
        layers.insert(0, line.encode(x=x("x"), y=y, strokeDash=alt.value(DASHES["dot"])))
        keys[Key("dot", UNDEFENDED, "Pareto front")] = None
    return Figure(alt.layer(*layers, data=_data(rows)).properties(height=400), list(keys))


def field_value(name: str, value: Any) -> str:
    """A swept value in words."""
    if value is None:
        return "none"
    return (
        percent(value) if name == "harmful_ratio" else f"{value:g}" if isinstance(value, int | float) else str(value)
    )


def field_title(name: str) -> str:
    """A swept field in words: "name.alpha" -> "name: alpha"."""
    return {"harmful_ratio": "Harmful rows"}.get(name) or name.replace(".", ": ").replace("_", " ")


def heat_map(sweep: Sweep, names: dict[str, Label]) -> Figure:
    """Harmful score over two swept fields, each square with its percentage; blank where there is no run."""
    xs, ys = sweep.values(0), sweep.values(1)
    rows = [
        {"column": xs.index(x), "row": ys.index(y), "value": rate["value"], "percent": percent(rate["value"])}
        | {"text": _told(names[cell["id"]].full, rate)}
        for (x, y), cell in sweep.cells.items()
        if (rate := measured(cell, "harmful_score"))
    ]

    def axis(field: str, values: list[Any]) -> alt.Axis:
        return _places([_wrap(field_value(field, value)) for value in values], title=field_title(field))

    squares = alt.Chart().encode(
        x=alt.X("column:O", axis=axis(sweep.x, xs), scale=alt.Scale(domain=list(range(len(xs))), padding=0.02)),
        y=alt.Y("row:O", axis=axis(sweep.y, ys), scale=alt.Scale(domain=list(range(len(ys)))[::-1], padding=0.02)),
        tooltip="text:N",
    )
    heat = alt.Fill("value:Q", scale=alt.Scale(domain=[0, 1], range=list(HEAT)), legend=None)
    ink = alt.when("datum.value > 0.65").then(alt.value("white")).otherwise(alt.value("#1b1e23"))
    layers = [
        squares.mark_rect().encode(fill=heat),
        squares.mark_text(fontSize=13).encode(text="percent:N", color=ink),
    ]
    return Figure(alt.layer(*layers, data=_data(rows)).properties(height=52 * len(ys)), [])
