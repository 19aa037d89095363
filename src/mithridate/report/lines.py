"""Figures of lines: harmful score against harmful ratio and along the attack, training loss."""

from typing import Any

from mithridate.report.plots import (
    PERCENT_AXIS,
    UNDEFENDED,
    Figure,
    Key,
    bounds,
    colour,
    hover,
    layout,
    line_keys,
    styles,
    title,
    wrap,
)
from mithridate.report.words import Label
from mithridate.results.relations import (
    Cell,
    arm,
    attacked,
    before_of,
    control_of,
    defended,
    known,
    reference_of,
    undefended,
)
from mithridate.statistics.text import percent


def resistance_keys(cells: list[Cell], names: dict[str, Label]) -> list[Key]:
    return [Key("dash" if cell["control"] else "line", colour(cell), names[cell["id"]].arm) for cell in cells]


def series_of(points: list[Cell], names: dict[str, Label]) -> dict[str, list[Cell]]:
    """The points of each line: those of one method with one choice of settings, and of one seed where seeds are not
    together, in the order of the page."""
    found: dict[str, list[Cell]] = {}
    for point in points:
        label = names[point["id"]]
        found.setdefault(", ".join(filter(None, [label.arm, label.seed])), []).append(point)
    return found


def ratio_keys(points: list[Cell], names: dict[str, Label]) -> list[Key]:
    return line_keys({name: cells[0] for name, cells in series_of(points, names).items()})


def ratio_lines(points: list[Cell], names: dict[str, Label]) -> Figure:
    """Harmful score against the share of harmful rows, a line per method, with intervals. Lines stand a little beside
    each other, so that their intervals can be told apart.

    Args:
        points: fine-tuned points of one topology.
    """
    series = series_of(points, names)
    look = styles({name: cells[0] for name, cells in series.items()})
    ratios = sorted({point["harmful_ratio"] for point in points})
    aside = (ratios[-1] - ratios[0]) * 0.012
    data = []
    for number, (name, cells) in enumerate(series.items()):
        cells = sorted((c for c in cells if known(c["harmful_score"])), key=lambda c: c["harmful_ratio"])
        rates = [cell["harmful_score"] for cell in cells]
        hue, dash = look[name]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [cell["harmful_ratio"] + (number - (len(series) - 1) / 2) * aside for cell in cells],
                "y": [rate["value"] for rate in rates],
                "error_y": bounds(rates),
                "line": {"color": hue, "dash": dash, "width": 2.5},
                "marker": {"size": 7, "symbol": "circle-open" if cells and cells[0]["control"] else "circle"},
                "hovertext": [hover(wrap(names[cell["id"]].full, 60), cell["harmful_score"]) for cell in cells],
                "hoverinfo": "text",
            }
        )
    axis = {
        "tickvals": ratios,
        "ticktext": [percent(ratio) for ratio in ratios],
        "fixedrange": True,
        "zeroline": False,
    }
    return {
        "data": data,
        "layout": layout(
            400,
            xaxis={**axis, "title": title("Harmful rows among those fine-tuned on")},
            yaxis={**PERCENT_AXIS, "title": title("Harmful score"), "automargin": True},
        ),
    }


def _dash(cell: Cell) -> str:
    return "dash" if cell["control"] else "dot" if cell["harmful_ratio"] == 0 else "solid"


def training_keys(cells: list[Cell]) -> list[Key]:
    """One entry for each colour and dash; the method stands for all its runs and settings."""
    keys = {(colour(cell), _dash(cell)): arm(cell) for cell in cells}
    return [
        Key({"solid": "line"}.get(dash, dash), hue, name if dash != "dot" else f"{name}, no harmful rows")
        for (hue, dash), name in keys.items()
    ]


def curve(cell: Cell, cells: list[Cell]) -> list[tuple[int, dict[str, Any]]]:
    """(step, harmful score) from the aligned model over the attack's steps to its end; where the length of the attack
    is not known, without the end."""
    before = before_of(cell, cells)
    points = {point["step"]: point["harmful_score"] for point in cell.get("resistance") or []}
    if before:
        points[0] = before["harmful_score"]
    if (cell.get("attack") or {}).get("max_steps"):
        points[cell["attack"]["max_steps"]] = cell["harmful_score"]
    return [(step, rate) for step, rate in sorted(points.items()) if known(rate)]


def resistance_pairs(cells: list[Cell]) -> list[tuple[Cell, list[Cell]]]:
    """Each attacked defended cell that has a resistance curve, with the cells shown beside it: undefended, control."""
    result = []
    for cell in cells:
        if defended(cell) and attacked(cell) and cell.get("resistance"):
            beside = [reference_of(cell, cells), control_of(cell, cells)]
            result.append((cell, [other for other in beside if other and other.get("resistance")]))
    return result


def resistance_series(cells: list[Cell], everything: list[Cell], names: dict[str, Label]) -> dict[str, Any]:
    """The curves of several seeds together: {method: (one of its cells, {step: rate})}.

    The rate is the mean over seeds with the lowest and highest seed as its bounds; of a single seed, its own.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(names[cell["id"]].arm, []).append(cell)
    found: dict[str, Any] = {}
    for name, group in groups.items():
        curves = [dict(curve(cell, everything)) for cell in group]
        steps = sorted(set.intersection(*(set(points) for points in curves)))
        found[name] = group[0], {step: _together([points[step] for points in curves]) for step in steps}
    return found


def _together(rates: list[dict[str, Any]]) -> dict[str, Any]:
    if len(rates) == 1:
        return rates[0]
    values = [rate["value"] for rate in rates]
    mean = sum(values) / len(values)
    return {"value": mean, "low": min(values), "high": max(values), "seeds": len(values), "n": rates[0]["n"]}


def resistance_together(series: dict[str, Any]) -> Figure:
    """Harmful score along the attack's steps, a line per method; from `resistance_series`."""
    look = styles({name: cell for name, (cell, _) in series.items()})
    data = []
    for name, (cell, points) in series.items():
        hue, dash = look[name]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": list(points),
                "y": [rate["value"] for rate in points.values()],
                "error_y": bounds(list(points.values())),
                "line": {"color": hue, "dash": dash, "width": 2.5},
                "marker": {"size": 7, "symbol": "circle-open" if cell["control"] else "circle"},
                "hovertext": [hover(f"{wrap(name, 60)}, step {step}", rate) for step, rate in points.items()],
                "hoverinfo": "text",
            }
        )
    return {"data": data, "layout": _along_the_attack()}


def _along_the_attack() -> dict[str, Any]:
    half = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 0.5, "y1": 0.5, "layer": "below"}
    return layout(
        320,
        xaxis={
            "title": title("Steps of the attack"),
            "rangemode": "tozero",
            "fixedrange": True,
            "zeroline": False,
        },
        yaxis={**PERCENT_AXIS, "title": title("Harmful score"), "automargin": True},
        shapes=[{**half, "line": {"color": UNDEFENDED, "width": 1, "dash": "dot"}}],
    )


def resistance_lines(cell: Cell, beside: list[Cell], cells: list[Cell], names: dict[str, Label]) -> Figure:
    """Harmful score along the attack's steps, with intervals; a star where it passes one half."""
    data: list[dict[str, Any]] = []
    for one in [*beside, cell]:
        name = "No defense" if undefended(one) else wrap(names[one["id"]].arm, 60)
        points = curve(one, cells)
        rates = [rate for _, rate in points]
        dash = "dash" if one["control"] else "solid"
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [step for step, _ in points],
                "y": [rate["value"] for rate in rates],
                "error_y": bounds(rates),
                "line": {"color": colour(one), "dash": dash, "width": 2.5},
                "marker": {"size": 7, "symbol": "circle" if one is cell else "square"},
                "hovertext": [hover(f"{name}, step {step}", rate) for step, rate in points],
                "hoverinfo": "text",
            }
        )
        if one.get("steps_to_half") is not None:
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [one["steps_to_half"]],
                    "y": [0.5],
                    "marker": {
                        "symbol": "star",
                        "size": 15,
                        "color": colour(one),
                        "line": {"width": 1, "color": "white"},
                    },
                    "hovertext": [f"{name}: passes one half at step {one['steps_to_half']:.0f}"],
                    "hoverinfo": "text",
                }
            )
    return {"data": data, "layout": _along_the_attack()}


def training_curves(history: dict[str, list[dict[str, Any]]], cells: list[Cell], names: dict[str, Label]) -> Figure:
    """Training loss along the steps, a line per cell."""
    data = []
    for cell in cells:
        rows = [row for row in history[cell["id"]] if row.get("loss") is not None]
        if rows:
            name = names[cell["id"]].full
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": [row["step"] for row in rows],
                    "y": [row["loss"] for row in rows],
                    "line": {
                        "color": colour(cell),
                        "width": 1.5,
                        "dash": _dash(cell),
                    },
                    "hovertext": [f"{wrap(name, 60)}<br>step {row['step']}: loss {row['loss']:.3g}" for row in rows],
                    "hoverinfo": "text",
                }
            )
    return {
        "data": data,
        "layout": layout(
            340,
            xaxis={"title": title("Step"), "fixedrange": True, "zeroline": False},
            yaxis={"title": title("Training loss"), "automargin": True, "fixedrange": True, "rangemode": "tozero"},
        ),
    }
