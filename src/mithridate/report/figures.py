"""The figures of a run: bars, curves, a trade-off and heat maps, of what `drawing` provides."""

from typing import Any

import altair as alt

from mithridate.report import drawing as draw
from mithridate.report.colours import HEAT, UNDEFENDED, VERDICT_COLOURS, colour
from mithridate.report.drawing import Figure, Key
from mithridate.report.groups import ArmCost, Sweep, front, series_of
from mithridate.report.words import TOPOLOGIES, Label
from mithridate.results.relations import Cell, arm, attacked, measured, related
from mithridate.statistics.text import percent

# --- bars -------------------------------------------------------------------------------------------------------


def _names(cells: list[Cell], names: dict[str, Label]) -> list[list[str]]:
    return [draw.wrap(names[cell["id"]].arm) + draw.wrap(names[cell["id"]].rest) for cell in cells]


def score_bars(cells: list[Cell], names: dict[str, Label]) -> Figure:
    """Harmful score with its interval, a bar a cell; open where it is a control. A dotted line marks the undefended
    score behind the runs that are compared with it."""
    cells = [cell for cell in cells if measured(cell, "harmful_score")]
    height, y = draw.bar_rows(_names(cells, names))
    rows, references = [], []
    for row, cell in enumerate(cells):
        rate = cell["rates"]["harmful_score"]
        look = {
            "hue": colour(cell),
            "opacity": 1.0 if attacked(cell) else 0.55,
            "inside": 0.15 if cell["control"] else 1,
        }
        text = draw.told(names[cell["id"]].full, rate)
        rows.append({"row": row, **{b: rate[b] for b in ("value", "low", "high")}, **look, "text": text})
        reference = related(cells, cell, "reference")
        if reference and cell["finetuning"] != "none" and measured(reference, "harmful_score"):
            references.append({"row": row, "value": reference["rates"]["harmful_score"]["value"]})
    ends = {"y": alt.Y("row:O", bandPosition=0), "y2": alt.Y2("row", bandPosition=1)}
    bars = (
        alt.Chart()
        .mark_bar(strokeWidth=1.5)
        .encode(
            x=draw.shares("value", "Harmful score"),
            y=y,
            fill=draw.given(alt.Fill, "hue"),
            stroke=draw.given(alt.Stroke, "hue"),
            opacity=alt.Opacity("opacity:Q", scale=None, legend=None),
            fillOpacity=alt.FillOpacity("inside:Q", scale=None, legend=None),
        )
    )
    intervals = draw.error_bars(x=draw.shares("low", "Harmful score"), x2="high", y=y)
    dotted = [draw.dotted(references, x=draw.shares("value", "Harmful score"), **ends)] if references else []
    chart = alt.layer(*dotted, bars, intervals, _whole_rows(y), data=draw.data(rows))
    return Figure(chart.properties(height=height), [])


def _whole_rows(y: alt.Y) -> alt.Chart:
    """What tells the text of a row wherever the pointer is in it, however short its bar."""
    return (
        alt.Chart(name=draw.HOVER)
        .mark_rect(opacity=0, height={"band": 1 / (1 - draw.GAP)})
        .encode(y=y, tooltip="text:N")
    )


def verdicts_of(shares: dict[str, dict[str, float]]) -> list[str]:
    """The verdicts that occur, in the order in which they are shown."""
    return [verdict for verdict in VERDICT_COLOURS if any(verdict in of_cell for of_cell in shares.values())]


def share_bars(cells: list[Cell], names: dict[str, Label], shares: dict[str, dict[str, float]]) -> Figure:
    """The verdicts on the answers to harmful prompts, stacked, a bar a cell.

    Args:
        shares: {cell id: {verdict: fraction}}.
    """
    cells = [cell for cell in cells if cell["id"] in shares]
    height, y = draw.bar_rows(_names(cells, names))
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
            x=draw.shares("value", "Share of answers"),
            y=y,
            fill=draw.given(alt.Fill, "hue"),
            order="order:Q",
            tooltip="text:N",
        )
    )
    keys = [Key("square", VERDICT_COLOURS[verdict], verdict) for verdict in verdicts_of(shares)]
    return Figure(alt.layer(bars, data=draw.data(rows)).properties(height=height), keys)


def cost_bars(costs: list[ArmCost]) -> Figure:
    """Time and memory of each defended method as ratios to plain fine-tuning, two bars a method; dotted: 1."""
    costs = [cost for cost in costs if cost.time_ratio or cost.memory_ratio]
    labels = [(arm(cost.cell), TOPOLOGIES.get(cost.cell["topology"]) or cost.cell["topology"]) for cost in costs]
    height, y = draw.bar_rows([[line for text in texts for line in draw.wrap(text)] for texts in labels])
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
            fill=draw.given(alt.Fill, "hue"),
            opacity=alt.Opacity("opacity:Q", scale=None, legend=None),
            tooltip="text:N",
        )
    )
    keys = [
        Key("square", UNDEFENDED, "solid: time of training and repair"),
        Key("square", "#80808073", "pale: peak memory"),
    ]
    one = draw.dotted([{"value": 1}], x="value:Q")
    return Figure(alt.layer(one, bars, data=draw.data(rows)).properties(height=height), keys)


# --- lines ------------------------------------------------------------------------------------------------------


def ratio_lines(points: list[Cell], names: dict[str, Label]) -> Figure:
    """Harmful score against the share of harmful rows, a line per method, with intervals. Lines stand a little beside
    each other, so that their intervals can be told apart.

    Args:
        points: fine-tuned points of one topology, their attacks' rows of one kind.
    """
    series = series_of(points, names)
    keys = draw.styles({name: cells[0] for name, cells in series.items()})
    ratios = sorted({point["harmful_ratio"] for point in points})
    aside = (ratios[-1] - ratios[0]) * 0.012
    rows = [
        draw.point(
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
    return Figure(alt.layer(*draw.line_layers(x), data=draw.data(rows)).properties(height=330), list(keys.values()))


def along_the_attack(series: dict[str, tuple[Cell, dict[int, dict[str, Any]]]], stars: bool = False) -> Figure:
    """Harmful score along the attack's steps, a line per method; dotted: one half.

    Args:
        series: {name: (one of its cells, {step: rate})}.
        stars: a star where a cell passes one half.
    """
    keys = draw.styles({name: cell for name, (cell, _) in series.items()})
    rows = [
        draw.point(step, rate, keys[name], cell, f"{name}, step {step}")
        for name, (cell, points) in series.items()
        for step, rate in points.items()
    ]
    x = alt.X("x:Q", title="Steps of the attack", axis=alt.Axis(tickCount=6))
    half = draw.dotted([{"value": 0.5}], y=draw.score_axis())
    passed = [
        {"x": cell["steps_to_half"], "value": 0.5, "hue": keys[name].colour}
        | {"text": f"{name}: passes one half at step {cell['steps_to_half']:.0f}"}
        for name, (cell, _) in series.items()
        if stars and cell.get("steps_to_half") is not None
    ]
    star = alt.Chart(draw.data(passed)).mark_point(shape=draw.STAR, size=225, stroke="white", strokeWidth=1)
    star = star.encode(x=x, y=draw.score_axis(), fill=draw.given(alt.Fill, "hue"), tooltip="text:N")
    layers = [half, *draw.line_layers(x), *([star] if passed else [])]
    return Figure(alt.layer(*layers, data=draw.data(rows)).properties(height=250), list(keys.values()))


def training_curves(history: dict[str, list[dict[str, Any]]], cells: list[Cell], names: dict[str, Label]) -> Figure:
    """Training loss along the steps, a line per cell. In the legend a method stands for all its runs and settings."""
    rows, keys = [], {}
    for cell in cells:
        dash = "dash" if cell["control"] else "dot" if cell["harmful_ratio"] == 0 else "line"
        key = Key(dash, colour(cell), f"{arm(cell)}, no harmful rows" if dash == "dot" else arm(cell))
        keys[key.colour, key.shape] = key
        rows += [
            {
                "x": row["step"],
                "value": row["loss"],
                "series": cell["id"],
                "hue": key.colour,
                "dash": draw.DASHES[dash],
            }
            | {"text": f"{names[cell['id']].full}\nstep {row['step']}: loss {row['loss']:.3g}"}
            for row in history[cell["id"]]
            if row.get("loss") is not None
        ]
    x, y = (
        alt.X("x:Q", title="Step", axis=alt.Axis(tickCount=6)),
        alt.Y("value:Q", title="Training loss", scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=6)),
    )
    looks = {
        "stroke": draw.given(alt.Stroke, "hue"),
        "strokeDash": draw.given(alt.StrokeDash, "dash"),
        "detail": "series:N",
    }
    line = alt.Chart().mark_line(strokeWidth=1.5).encode(x=x, y=y, **looks)
    chart = alt.layer(line, draw.nearest(x, y), data=draw.data(rows))
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
        key = Key(draw.SHAPES.get(point["topology"], "cross"), colour(point), name, bool(point["control"]))
        keys[key] = None
        rows.append(
            {"x": accuracy["value"], "x_low": accuracy["low"], "x_high": accuracy["high"]}
            | {"value": score["value"], "low": score["low"], "high": score["high"]}
            | {"hue": key.colour, "shape": key.shape, "fill": "transparent" if key.open else key.colour}
            | {"text": f"{draw.told(names[point['id']].full, score)}\n{draw.told('accuracy', accuracy)}"}
        )
    lowest = min((row["x_low"] for row in rows), default=0.0)
    low, step = max(0, lowest - 0.05), 0.1 if lowest > 0.4 else 0.2

    def x(field: str) -> alt.X:
        return draw.percents(alt.X, field, "Task accuracy", low, 1.02, step)

    y, hue = draw.score_axis(), draw.given(alt.Color, "hue")
    layers = [
        alt.Chart().mark_rule().encode(x=x("x_low"), x2="x_high", y=y, color=hue),
        alt.Chart().mark_rule().encode(x=x("x"), y=draw.score_axis("low"), y2="high", color=hue),
        alt.Chart()
        .mark_point(size=130, strokeWidth=2.5)
        .encode(
            x=x("x"),
            y=y,
            stroke=draw.given(alt.Stroke, "hue"),
            fill=draw.given(alt.Fill, "fill"),
            shape=draw.given(alt.Shape, "shape"),
        ),
        draw.nearest(x("x"), y),
    ]
    best = front(points)
    if len(best) > 1:
        stairs = [
            {"x": point["rates"]["accuracy"]["value"], "value": point["rates"]["harmful_score"]["value"]}
            for point in best
        ]
        line = alt.Chart(draw.data(stairs)).mark_line(interpolate="step-before", color=UNDEFENDED, strokeWidth=1.5)
        layers.insert(0, line.encode(x=x("x"), y=y, strokeDash=alt.value(draw.DASHES["dot"])))
        keys[Key("dot", UNDEFENDED, "Pareto front")] = None
    return Figure(alt.layer(*layers, data=draw.data(rows)).properties(height=400), list(keys))


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
        | {"text": draw.told(names[cell["id"]].full, rate)}
        for (x, y), cell in sweep.cells.items()
        if (rate := measured(cell, "harmful_score"))
    ]

    def axis(field: str, values: list[Any]) -> alt.Axis:
        return draw.places([draw.wrap(field_value(field, value)) for value in values], title=field_title(field))

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
    return Figure(alt.layer(*layers, data=draw.data(rows)).properties(height=52 * len(ys)), [])
