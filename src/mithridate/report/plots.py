"""What all figures share. A figure is a plotly figure in a plain dict, drawn by the page's script, or by `pictures`.

No colour of text, grid or paper is set here: the page sets them, light or dark. Everything a figure shows also
stands in a table of the page.
"""

import textwrap
from dataclasses import dataclass
from typing import Any

from mithridate.relations import Cell, defenses_of
from mithridate.statistics.text import interval, percent

Figure = dict[str, Any]

# Okabe and Ito's colours, which colour-blind readers can tell apart, on white as on near-black. One for each defense,
# the same in all figures; marker and dash tell runs apart as well.
UNDEFENDED = "#808080"
COLOURS = {
    ("Vaccine",): "#009E73",
    ("Booster",): "#0072B2",
    ("Lisa",): "#E69F00",
    ("Antidote",): "#CC79A7",
    ("Vaccine", "Booster"): "#56B4E9",
}
OTHER_COLOUR = "#D55E00"
# Tol's muted colours, so that a verdict is never taken for a defense.
# Of rules (four verdicts) and of judges of harm (two), and what no judge could score.
VERDICT_COLOURS = {
    "refused": "#44AA99",
    "safe": "#44AA99",
    "other": "#DDCC77",
    "incoherent": "#88CCEE",
    "complied": "#AA4466",
    "harmful": "#AA4466",
    "unscored": "#BBBBBB",
}
SYMBOLS = {"single": "circle", "double": "square", "full": "diamond"}

PERCENT_AXIS = {"range": [-0.02, 1.04], "tickformat": ".0%", "dtick": 0.25, "zeroline": False, "fixedrange": True}
# Fewer labels, so that they have room on a phone.
BAR_AXIS = {
    **PERCENT_AXIS,
    "range": [0, 1.02],
    "tickvals": [0, 0.25, 0.5, 0.75, 1],
    "ticktext": ["0%", "", "50%", "", "100%"],
}
_FONT = {"family": "system-ui, sans-serif", "size": 13}


@dataclass(frozen=True)
class Key:
    """An entry of a figure's legend: a shape ("square", "circle", "diamond", "cross", or a line: "line", "dash",
    "dot", "dashdot") in a colour, filled or open."""

    shape: str
    colour: str
    text: str
    open: bool = False


def colour(cell: Cell) -> str:
    names = tuple(name for name, _ in defenses_of(cell))
    return COLOURS.get(names, OTHER_COLOUR) if names else UNDEFENDED


def bounds(rates: list[dict[str, Any]], thickness: float = 1.5) -> dict[str, Any]:
    """Error bars from the intervals (plotly wants distances from the value)."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, rate["high"] - rate["value"]) for rate in rates],  # rounding apart, at 0 and 1
        "arrayminus": [max(0.0, rate["value"] - rate["low"]) for rate in rates],
        "thickness": thickness,
        "width": 4,
    }


def hover(name: str, rate: dict[str, Any]) -> str:
    seeds = f"{rate['seeds']} seeds, " if rate.get("seeds") else ""
    numbers = f"{percent(rate['value'])}, interval {interval(rate)}".replace("<", "&lt;")
    return f"{name}: {numbers}, {seeds}n = {rate['n']}"


def wrap(text: str, width: int = 28) -> str:
    # Labels hold names from results.json. plotly reads a small markup in text: keep them from being markup.
    lines = textwrap.wrap(text, width, break_on_hyphens=False)
    return "<br>".join(line.replace("&", "&amp;").replace("<", "&lt;") for line in lines)


def title(text: str) -> dict[str, Any]:
    return {"text": text, "font": {"size": 13}, "standoff": 8}


def layout(height: int, **more: Any) -> dict[str, Any]:
    return {
        "height": height,
        "font": _FONT,
        "margin": {"l": 8, "r": 24, "t": 12, "b": 48},
        "showlegend": False,  # the page has its own, which wraps on a phone
        "dragmode": False,
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
        **more,
    }


def styles(series: dict[str, Cell]) -> dict[str, tuple[str, str]]:
    """A colour and a dash for each series, given by its name and one of its cells: the defense's colour, and dashes
    that tell series of one colour apart (a control is never solid)."""
    found: dict[str, tuple[str, str]] = {}
    for name, cell in series.items():
        hue = colour(cell)
        taken = [dash for other, dash in found.values() if other == hue]
        able = ("dash", "dot", "dashdot") if cell["control"] else ("solid", "dot", "dashdot", "dash")
        found[name] = hue, next((dash for dash in able if dash not in taken), able[-1])
    return found


def line_keys(series: dict[str, Cell]) -> list[Key]:
    """The legend of lines in those `styles`."""
    return [Key("line" if dash == "solid" else dash, hue, name) for name, (hue, dash) in styles(series).items()]
