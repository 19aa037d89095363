"""What figures are made of, drawn by Altair: on the page by Vega in the reader's browser, for papers as SVG and PDF
without one.

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

from mithridate.report.colours import UNDEFENDED, colour
from mithridate.results.relations import Cell
from mithridate.statistics.text import interval, percent

SHAPES = {"single": "circle", "double": "square", "full": "diamond"}
STAR = "M" + "L".join(
    f"{math.sin(i * math.pi / 5) * r:.3f},{-math.cos(i * math.pi / 5) * r:.3f}" for i, r in enumerate([1, 0.4] * 5)
)
# The dashes of lines, also by name in a legend.
DASHES = {"line": [], "dash": [6, 4], "dot": [2, 3], "dashdot": [7, 3, 2, 3]}
HOVER = "hover"  # the name of the layers that answer the pointer, of no use on paper
_PAPER_WIDTH, _LETTERS = 480, 78  # pixels, and letters of a legend's line
GAP = 0.38  # between bars, as a share of their step
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
        return _on_paper(self.with_legend(_PAPER_WIDTH, description=title), title)

    def with_legend(self, width: int, **properties: Any) -> Any:
        """What of it stands on paper, with its legend below."""
        layers = [layer for layer in self.chart.layer if layer.name != HOVER]
        chart = alt.layer(*layers, *_legend(self.legend), data=self.chart.data)
        # The legend's channels are its own. Most machines have one of the fonts, which are equally wide.
        return chart.properties(width=width, height=self.chart.height, **properties).resolve_scale(**_APART)


def beside(panels: list[tuple[Figure, str]], title: str) -> str:
    """The text of an SVG file with several figures beside each other, each under its own heading; always the same."""
    charts = [one.with_legend(_PAPER_WIDTH * 2 // 3, title=heading) for one, heading in panels]
    return _on_paper(alt.hconcat(*charts, spacing=30).resolve_scale(**_APART).resolve_legend(**_APART), title)


_APART: Any = dict.fromkeys(("shape", "stroke", "fill", "strokeDash"), "independent")


def _on_paper(chart: Any, title: str) -> str:
    look = _look("#1b1e23", "#d5d9df")
    if isinstance(chart, alt.HConcatChart):
        del look["autosize"]  # only for a figure alone
    chart = chart.configure(**look, font="DejaVu Sans, Verdana, sans-serif")
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
    return [alt.Chart(data(rows)).mark_point(opacity=0, strokeWidth=2).encode(**looks)]


# --- what figures share -----------------------------------------------------------------------------------------


def data(rows: Iterable[dict[str, Any]]) -> alt.Data:
    return alt.Data(values=list(rows))


def wrap(text: str) -> list[str]:
    return textwrap.wrap(text, 28, break_on_hyphens=False)


def told(name: str, rate: dict[str, Any]) -> str:
    seeds = f"{rate['seeds']} seeds, " if rate.get("seeds") else ""
    return f"{name}: {percent(rate['value'])}, interval {interval(rate)}, {seeds}n = {rate['n']}"


def _chosen(texts: list[list[str]]) -> str:
    """The expression that gives the mark of number `datum.value` its text, in lines."""
    return f"{json.dumps(texts)}[datum.value]"


def places(texts: list[list[str]], **more: Any) -> alt.Axis:
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


def bar_rows(texts: list[list[str]]) -> tuple[int, alt.Y]:
    """The height of a figure with a bar for each text, from top to bottom, and the axis with them."""
    lines = max((len(text) for text in texts), default=1)
    axis = places(texts, title=None, labelOffset=_middle(texts), labelLineHeight=_LINE)
    return len(texts) * max(32, _LINE * lines + 6), alt.Y("row:O", axis=axis, scale=alt.Scale(padding=GAP))


def shares(field: str, title: str) -> alt.X:
    """The axis of bars in percent; fewer labels, so that they have room on a phone."""
    axis = alt.Axis(values=[0, 0.25, 0.5, 0.75, 1], labelExpr="datum.index % 0.5 ? '' : format(datum.value, '.0%')")
    return alt.X(f"{field}:Q", title=title, axis=axis, scale=alt.Scale(domain=[0, 1.02], nice=False))


def percents(channel: Any, field: str, title: str, low: float = -0.02, high: float = 1.04, step: float = 0.25) -> Any:
    values = [round(number * step, 2) for number in range(round(1 / step) + 1) if number * step >= low]
    scale = alt.Scale(domain=[low, high], nice=False, zero=False)
    return channel(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(values=values, format=".0%"))


def score_axis(field: str = "value") -> alt.Y:
    return percents(alt.Y, field, "Harmful score")


def given(channel: Any, field: str) -> Any:
    """A channel whose value is in the rows themselves."""
    return channel(f"{field}:N", scale=None, legend=None)


def dotted(rows: Iterable[dict[str, Any]], **encoding: Any) -> alt.Chart:
    return (
        alt.Chart(data(rows)).mark_rule(color=UNDEFENDED, strokeWidth=1.5, strokeDash=DASHES["dot"]).encode(**encoding)
    )


def nearest(x: Any, y: Any) -> alt.Chart:
    """The text of the point that is nearest to the pointer, and a ring round it."""
    near = alt.selection_point(nearest=True, on="pointerover", clear="pointerout", empty=False)
    ring = alt.when(near).then(alt.value(1)).otherwise(alt.value(0))
    # What is pointed at is Vega-Lite's cell round the point; its datum is the point's mark, whose datum is the row.
    text = alt.value(alt.ExprRef("(datum.datum || datum).text"))
    chart = alt.Chart(name=HOVER).mark_point(size=220, strokeWidth=2)
    return chart.encode(x=x, y=y, stroke=given(alt.Stroke, "hue"), opacity=ring, tooltip=text).add_params(near)


def error_bars(**encoding: Any) -> alt.Chart:
    return alt.Chart().mark_errorbar(ticks=True, thickness=1.5).encode(tooltip=alt.value(None), **encoding)


def line_layers(x: alt.X) -> list[alt.Chart]:
    """Lines of points with intervals, over x."""
    y, hue = score_axis(), given(alt.Stroke, "hue")
    dash = given(alt.StrokeDash, "dash")
    line = alt.Chart().mark_line(strokeWidth=2.5).encode(x=x, y=y, stroke=hue, strokeDash=dash, detail="series:N")
    points = alt.Chart().mark_point(size=50, strokeWidth=2).encode(x=x, y=y, stroke=hue, fill=given(alt.Fill, "fill"))
    intervals = error_bars(x=x, y=score_axis("low"), y2="high", color=given(alt.Color, "hue"))
    return [intervals, line, points, nearest(x, y)]


def styles(series: dict[str, Cell]) -> dict[str, Key]:
    """A colour and a dash for each series, given by its name and one of its cells: the defense's colour, and dashes
    that tell series of one colour apart (a control is never solid)."""
    found: dict[str, Key] = {}
    for name, cell in series.items():
        hue = colour(cell)
        taken = [key.shape for key in found.values() if key.colour == hue]
        able = ("dash", "dot", "dashdot") if cell["control"] else ("line", "dot", "dashdot", "dash")
        found[name] = Key(next((dash for dash in able if dash not in taken), able[-1]), hue, name)
    return found


def point(x: float, rate: dict[str, Any], key: Key, cell: Cell, name: str) -> dict[str, Any]:
    """A point of `line_layers`."""
    return {
        "x": x,
        **{bound: rate[bound] for bound in ("value", "low", "high")},
        "series": key.text,
        "hue": key.colour,
        "fill": "transparent" if cell["control"] else key.colour,
        "dash": DASHES[key.shape],
        "text": told(name, rate),
    }
