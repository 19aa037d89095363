"""What all figures share. A figure is a plotly figure in a plain dict, drawn by the page's script, or by `pictures`.

No colour of text, grid or paper is set here: the page sets them, light or dark. Everything a figure shows also
stands in a table of the page.
"""

import textwrap
from dataclasses import dataclass
from typing import Any

from mithridate.results.relations import Cell, defenses_of, method_facts
from mithridate.statistics.text import interval, percent

Figure = dict[str, Any]

# Okabe and Ito's colours, which colour-blind readers can tell apart, on white as on near-black. A method has its own
# (`Method.colour`); combinations and methods without one take the rest in order of appearance, the same in all figures
# of a page. Where these run out, they begin anew: marker, dash and label tell runs apart as well.
UNDEFENDED = "#808080"
FREE_COLOURS = ("#56B4E9", "#D55E00", "#B89A00", "#8A5A44")
# Tol's muted colours, so that a verdict is never taken for a defense.
# Of rules (five verdicts) and of judges of harm (two), and what no judge could score.
VERDICT_COLOURS = {
    "refused": "#44AA99",
    "safe": "#44AA99",
    "other": "#DDCC77",
    "incoherent": "#88CCEE",
    "complied": "#AA4466",
    "harmful": "#AA4466",
    "unclear": "#DDDDDD",
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


def paint(cells: list[Cell]) -> None:
    """Gives each cell of a page its `colour`; to be called once for a page, with its cells in order."""
    chosen: dict[tuple[str, ...], str] = {}
    for cell in cells:
        names = tuple(name for name, _ in defenses_of(cell))
        if names and names not in chosen:
            taken = sum(hue in FREE_COLOURS for hue in chosen.values())
            chosen[names] = _own_colour(names) or FREE_COLOURS[taken % len(FREE_COLOURS)]
        cell["colour"] = chosen[names] if names else UNDEFENDED


def _own_colour(names: tuple[str, ...]) -> str | None:
    found = method_facts(names[0].lower()) if len(names) == 1 else None
    return found["colour"] if found else None


def colour(cell: Cell) -> str:
    """The colour that `paint` gave it, or that of a page with this cell alone."""
    if "colour" not in cell:
        paint([alone := dict(cell)])
        return alone["colour"]
    return cell["colour"]


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
