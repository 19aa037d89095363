"""Figures of two fields: harmful score against task accuracy, and heat maps of sweeps."""

from typing import Any

from mithridate.report.groups import Sweep, front
from mithridate.report.plots import (
    PERCENT_AXIS,
    SYMBOLS,
    UNDEFENDED,
    Figure,
    Key,
    bounds,
    colour,
    hover,
    layout,
    title,
    wrap,
)
from mithridate.report.words import Label
from mithridate.results.relations import Cell, arm, measured
from mithridate.statistics.text import percent


def trade_off_keys(points: list[Cell], names: dict[str, Label]) -> list[Key]:
    """One entry for each method, which stands for all its settings."""
    several = len({point["topology"] for point in points}) > 1
    keys = {
        Key(
            SYMBOLS.get(point["topology"], "cross"),
            colour(point),
            arm(point) + (f", {names[point['id']].topology}" if several else ""),
            bool(point["control"]),
        ): None
        for point in points
        if measured(point, "harmful_score") and measured(point, "accuracy")
    }
    return [*keys, *([Key("dot", UNDEFENDED, "Pareto front")] if len(front(points)) > 1 else [])]


def trade_off(points: list[Cell], names: dict[str, Label]) -> Figure:
    """Task accuracy against harmful score, both with intervals, a point a run: low and to the right is good. Dotted
    stairs: the Pareto front."""
    points = [point for point in points if measured(point, "harmful_score") and measured(point, "accuracy")]
    data: list[dict[str, Any]] = []
    for point in points:
        score, accuracy = point["rates"]["harmful_score"], point["rates"]["accuracy"]
        symbol = SYMBOLS.get(point["topology"], "cross")
        hue = colour(point)
        name = wrap(names[point["id"]].full, 60)
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [accuracy["value"]],
                "y": [score["value"]],
                "error_x": {**bounds([accuracy], 1), "color": hue, "width": 0},
                "error_y": {**bounds([score], 1), "color": hue, "width": 0},
                "marker": {
                    "size": 13,
                    "color": hue,
                    "symbol": f"{symbol}-open" if point["control"] else symbol,
                    "line": {"width": 2.5, "color": hue},
                },
                "hovertext": [f"{hover(name, score)}<br>{hover('accuracy', accuracy)}"],
                "hoverinfo": "text",
            }
        )
    best = front(points)
    if len(best) > 1:
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [point["rates"]["accuracy"]["value"] for point in best],
                "y": [point["rates"]["harmful_score"]["value"] for point in best],
                "line": {"color": UNDEFENDED, "width": 1.5, "dash": "dot", "shape": "vh"},
                "hoverinfo": "skip",
            }
        )
    lowest = min((point["rates"]["accuracy"]["low"] for point in points), default=0.0)
    return {
        "data": data,
        "layout": layout(
            460,
            xaxis={
                **PERCENT_AXIS,
                "title": title("Task accuracy"),
                "range": [max(0, lowest - 0.05), 1.02],
                "dtick": 0.1 if lowest > 0.4 else 0.2,
            },
            yaxis={**PERCENT_AXIS, "title": title("Harmful score"), "automargin": True},
        ),
    }


# From light to dark, the same in light and dark pages: what is dark is bad. Tol's "YlOrBr", for colour-blind readers.
_SCALE = ["#FFFBD5", "#FEE391", "#FEC44F", "#FB9A29", "#CC4C02", "#662506"]
HEAT = [[i / (len(_SCALE) - 1), hue] for i, hue in enumerate(_SCALE)]


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
    rows = [[sweep.cells.get((x, y)) for x in xs] for y in ys]
    rates = [[measured(cell, "harmful_score") for cell in row] for row in rows]
    heat = {
        "type": "heatmap",
        "x": list(range(len(xs))),
        "y": list(range(len(ys))),
        "z": [[rate["value"] if rate else None for rate in row] for row in rates],
        "text": [[percent(rate["value"]) if rate else "" for rate in row] for row in rates],
        "texttemplate": "%{text}",
        "hovertext": [
            [hover(wrap(names[c["id"]].full, 60), r) if c and r else "" for c, r in zip(row, given)]
            for row, given in zip(rows, rates)
        ],
        "hoverinfo": "text",
        "zmin": 0,
        "zmax": 1,
        "colorscale": HEAT,
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
    }

    def axis(name: str, values: list[Any]) -> dict[str, Any]:
        texts = [wrap(field_value(name, value)) for value in values]
        ticks = {"tickvals": list(range(len(values))), "ticktext": texts, "ticks": "", "showgrid": False}
        return {**ticks, "title": title(field_title(name)), "fixedrange": True, "zeroline": False, "automargin": True}

    return {
        "data": [heat],
        "layout": layout(110 + 52 * len(ys), xaxis=axis(sweep.x, xs), yaxis=axis(sweep.y, ys)),
    }
