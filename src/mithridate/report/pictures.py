"""A figure of the page as an SVG for papers, drawn by matplotlib: light, with its legend, always the same bytes.

Of plotly's figures it knows what `bars`, `lines` and `planes` use, and draws from the same numbers.
"""

import html
import io
import math
from typing import Any

from mithridate.errors import InputError
from mithridate.report.plots import Figure, Key

_DASHES: dict[str, Any] = {"solid": "-", "line": "-", "dash": "--", "dot": ":", "dashdot": "-."}
_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "cross": "P", "star": "*"}
_INK, _GRID = "#1b1e23", "#d5d9df"
_WIDTH = 6.4  # inches
_PIXELS = 96  # an inch, of the page's heights
_LETTERS, _LEGEND = 95, 0.2  # of a legend's line, and its height in inches
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "mithridate",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "hatch.linewidth": 0.8,
    "axes.edgecolor": _GRID,
}


def svg(figure: Figure, legend: list[Key], title: str) -> str:
    """The figure as the text of an SVG file.

    Args:
        figure: from `sections`.
        legend: what its colours and shapes mean.
        title: the SVG's title, for screen readers.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        raise InputError("Figures need matplotlib. Install it: pip install 'mithridate[report]'.") from None
    layout = figure["layout"]
    with matplotlib.rc_context(_STYLE):
        columns = max(1, _LETTERS // max((len(key.text) + 6 for key in legend), default=_LETTERS))
        height = layout["height"] / _PIXELS + _LEGEND * math.ceil(len(legend) / columns)
        canvas = Canvas(figsize=(_WIDTH, height), layout="constrained")
        axes = canvas.subplots()
        ends: dict[float, float] = {}  # of the bars at each place, where the next one is stacked
        for trace in figure["data"]:
            if trace["type"] == "bar":
                _bars(axes, trace, ends)
            else:
                {"scatter": _scatter, "heatmap": _heat}[trace["type"]](axes, trace)
        _axis(axes.xaxis, layout["xaxis"], axes.set_xlim)
        _axis(axes.yaxis, layout["yaxis"], axes.set_ylim)
        for shape in layout.get("shapes", ()):
            _line(axes, shape)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        if legend:
            handles = [_handle(key) for key in legend]
            canvas.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
        written = io.StringIO()
        canvas.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    return written.getvalue()


def _plain(text: str) -> str:
    """The text of a label, without plotly's markup."""
    return html.unescape(text.replace("<br>", "\n"))


def _listed(value: Any, count: int) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value] * count


def _bars(axes: Any, trace: dict[str, Any], ends: dict[float, float]) -> None:
    marker, count = trace["marker"], len(trace["y"])
    colours, opacities = _listed(marker["color"], count), _listed(marker.get("opacity", 1.0), count)
    hatches = _listed(marker.get("pattern", {}).get("shape", ""), count)
    for i, (x, y) in enumerate(zip(trace["x"], trace["y"])):
        left = ends.get(y, 0.0)
        ends[y] = left + x
        looks = {"color": colours[i], "alpha": opacities[i], "hatch": hatches[i] * 3, "edgecolor": "white"}
        axes.barh(y, x, left=left, height=trace["width"], **looks, linewidth=0)
    if "error_x" in trace:
        error = [trace["error_x"]["arrayminus"], trace["error_x"]["array"]]
        axes.errorbar(trace["x"], trace["y"], xerr=error, fmt="none", ecolor=_INK, elinewidth=1, capsize=2)


def _scatter(axes: Any, trace: dict[str, Any]) -> None:
    line, marker, mode = trace.get("line", {}), trace.get("marker", {}), trace["mode"]
    hue = line.get("color") or marker["color"]
    symbol, _, unfilled = marker.get("symbol", "circle").partition("-")
    errors = {axis: trace[axis] for axis in ("error_x", "error_y") if axis in trace}
    axes.errorbar(
        trace["x"],
        trace["y"],
        **{f"{axis[-1]}err": [error["arrayminus"], error["array"]] for axis, error in errors.items()},
        color=hue,
        linestyle=_DASHES[line.get("dash", "solid")] if "lines" in mode else "none",
        linewidth=line.get("width", 1.5) * 0.75,
        drawstyle="steps-pre" if line.get("shape") == "vh" else "default",
        marker=_MARKERS[symbol] if "markers" in mode else "none",
        markersize=marker.get("size", 6) * 0.65,
        markerfacecolor="white" if unfilled else hue,
        elinewidth=0.8,
        capsize=2 if any(error["width"] for error in errors.values()) else 0,
    )


def _heat(axes: Any, trace: dict[str, Any]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("heat", [tuple(stop) for stop in trace["colorscale"]])
    values = [[float("nan") if value is None else value for value in row] for row in trace["z"]]
    axes.imshow(values, cmap=colours, vmin=trace["zmin"], vmax=trace["zmax"], aspect="auto", origin="lower")
    for y, row in enumerate(trace["text"]):
        for x, text in enumerate(row):
            axes.text(x, y, text, ha="center", va="center", color="white" if (trace["z"][y][x] or 0) > 0.65 else _INK)


def _axis(axis: Any, given: dict[str, Any], set_limits: Any) -> None:
    from matplotlib.ticker import MultipleLocator, PercentFormatter

    if "title" in given:
        axis.set_label_text(given["title"]["text"])
    if "tickvals" in given:
        axis.set_ticks(given["tickvals"], labels=[_plain(text) for text in given["ticktext"]])
    elif given.get("tickformat") == ".0%":
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.set_major_locator(MultipleLocator(given["dtick"]))
    if "range" in given:
        set_limits(*given["range"])
    elif given.get("rangemode") == "tozero":
        set_limits(0, None)
    if given.get("showgrid") is not False:
        axis.grid(color=_GRID, linewidth=0.6)


def _line(axes: Any, shape: dict[str, Any]) -> None:
    looks = {
        "color": shape["line"]["color"],
        "linewidth": 1,
        "linestyle": _DASHES[shape["line"]["dash"]],
        "zorder": 0.9,
    }
    if shape.get("xref") == "paper":
        axes.axhline(shape["y0"], **looks)
    else:
        axes.plot([shape["x0"], shape["x1"]], [shape["y0"], shape["y1"]], **looks)


def _handle(key: Key) -> Any:
    from matplotlib.lines import Line2D

    if key.shape in _DASHES:
        return Line2D([], [], color=key.colour, linestyle=_DASHES[key.shape], linewidth=2, label=key.text)
    face = "white" if key.open else key.colour
    marker = _MARKERS[key.shape]
    return Line2D([], [], color=key.colour, marker=marker, markerfacecolor=face, linestyle="none", label=key.text)
