"""Figures of bars: harmful scores, what the answers were, what the methods cost."""

from typing import Any

from mithridate.report.groups import Cost
from mithridate.report.plots import (
    BAR_AXIS,
    UNDEFENDED,
    VERDICT_COLOURS,
    Figure,
    Key,
    bounds,
    colour,
    hover,
    layout,
    title,
    wrap,
)
from mithridate.report.words import TOPOLOGIES, Label
from mithridate.results.relations import Cell, arm, attacked, measured, related
from mithridate.statistics.text import percent


def _axis(texts: list[str]) -> tuple[int, dict[str, Any]]:
    """The height of a figure with a bar for each label, from top to bottom, and the axis with them."""
    lines = max((text.count("<br>") + 1 for text in texts), default=1)
    height = 70 + len(texts) * max(32, 16 * lines + 6)
    axis = {
        "tickvals": list(range(len(texts))),
        "ticktext": texts,
        "range": [len(texts) - 0.5, -0.5],
        "automargin": True,
        "fixedrange": True,
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
    }
    return height, axis


def _texts(cells: list[Cell], names: dict[str, Label]) -> list[str]:
    return ["<br>".join(filter(None, map(wrap, (names[cell["id"]].arm, names[cell["id"]].rest)))) for cell in cells]


def verdicts_of(shares: dict[str, dict[str, float]]) -> list[str]:
    """The verdicts that occur, in the order in which they are shown."""
    return [verdict for verdict in VERDICT_COLOURS if any(verdict in of_cell for of_cell in shares.values())]


def share_keys(shares: dict[str, dict[str, float]]) -> list[Key]:
    return [Key("square", VERDICT_COLOURS[verdict], verdict) for verdict in verdicts_of(shares)]


def score_bars(cells: list[Cell], names: dict[str, Label]) -> Figure:
    """Harmful score with its interval, a bar a cell; hatched where it is a control. A dotted line marks the
    undefended score behind the runs that are compared with it."""
    cells = [cell for cell in cells if measured(cell, "harmful_score")]
    height, axis = _axis(_texts(cells, names))
    rates = [cell["rates"]["harmful_score"] for cell in cells]
    bar = {
        "type": "bar",
        "orientation": "h",
        "x": [rate["value"] for rate in rates],
        "y": list(range(len(cells))),
        "width": 0.62,
        "marker": {
            "color": [colour(cell) for cell in cells],
            "opacity": [1.0 if attacked(cell) else 0.55 for cell in cells],
            "pattern": {"shape": ["/" if cell["control"] else "" for cell in cells], "solidity": 0.35},
        },
        "error_x": bounds(rates),
        "hovertext": [hover(wrap(names[cell["id"]].full, 60), rate) for cell, rate in zip(cells, rates)],
        "hoverinfo": "text",
    }
    lines = []
    for row, cell in enumerate(cells):
        reference = related(cells, cell, "reference")
        if reference and cell["finetuning"] != "none" and measured(reference, "harmful_score"):
            x = reference["rates"]["harmful_score"]["value"]
            line = {"color": UNDEFENDED, "width": 1.5, "dash": "dot"}
            ends = {"x0": x, "x1": x, "y0": row - 0.5, "y1": row + 0.5}
            lines.append({"type": "line", "layer": "below", "line": line, **ends})
    return {
        "data": [bar],
        "layout": layout(height, xaxis={**BAR_AXIS, "title": title("Harmful score")}, yaxis=axis, shapes=lines),
    }


def share_bars(cells: list[Cell], names: dict[str, Label], shares: dict[str, dict[str, float]]) -> Figure:
    """The verdicts on the answers to harmful prompts, stacked, a bar a cell.

    Args:
        shares: {cell id: {verdict: fraction}}.
    """
    cells = [cell for cell in cells if cell["id"] in shares]
    height, axis = _axis(_texts(cells, names))
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": verdict,
            "x": [shares[cell["id"]].get(verdict, 0) for cell in cells],
            "y": list(range(len(cells))),
            "width": 0.62,
            "marker": {"color": VERDICT_COLOURS[verdict]},
            "hovertext": [
                f"{wrap(names[cell['id']].full, 60)}: {percent(shares[cell['id']].get(verdict, 0))} {verdict}"
                for cell in cells
            ],
            "hoverinfo": "text",
        }
        for verdict in verdicts_of(shares)
    ]
    return {
        "data": data,
        "layout": layout(
            height,
            barmode="stack",
            xaxis={**BAR_AXIS, "title": title("Share of answers")},
            yaxis=axis,
        ),
    }


_COSTS = (("time_ratio", "training time", 1.0), ("memory_ratio", "peak memory", 0.45))


def cost_keys() -> list[Key]:
    return [
        Key("square", UNDEFENDED, "solid: time of training and repair"),
        Key("square", "#80808073", "pale: peak memory"),
    ]


def cost_bars(costs: list[Cost]) -> Figure:
    """Time and memory of each defended method as ratios to plain fine-tuning, two bars a method; dotted: 1."""
    costs = [cost for cost in costs if cost.time_ratio or cost.memory_ratio]
    labels = [[arm(c.cell), TOPOLOGIES.get(c.cell["topology"]) or c.cell["topology"]] for c in costs]
    height, axis = _axis(["<br>".join(map(wrap, lines)) for lines in labels])
    data = []
    for number, (name, words, opacity) in enumerate(_COSTS):
        ratios = [getattr(cost, name) or 0 for cost in costs]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "x": ratios,
                "y": [row + (-0.17, 0.17)[number] for row in range(len(costs))],
                "width": 0.32,
                "marker": {"color": [colour(cost.cell) for cost in costs], "opacity": [opacity] * len(costs)},
                "hovertext": [
                    f"{wrap(arm(cost.cell), 60)}: {words} × {ratio:.2f}" for cost, ratio in zip(costs, ratios)
                ],
                "hoverinfo": "text",
            }
        )
    one = {"type": "line", "x0": 1, "x1": 1, "y0": -0.5, "y1": len(costs) - 0.5}
    line = {"color": UNDEFENDED, "width": 1.5, "dash": "dot"}
    x = {"title": title("Ratio to plain fine-tuning"), "rangemode": "tozero", "fixedrange": True, "zeroline": False}
    return {
        "data": data,
        "layout": layout(height, xaxis=x, yaxis=axis, shapes=[{**one, "layer": "below", "line": line}]),
    }
