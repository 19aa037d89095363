"""The figure of an attack: the worst case so far over the tries; the chosen attack along its steps and its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from mithridate.report.colours import UNDEFENDED
from mithridate.report.drawing import DASHES, Figure, Key, beside, data, line_layers, score_axis
from mithridate.studies.curve import Point
from mithridate.studies.search import Try, worst_so_far

_HEIGHT = 260
_TARGET = "#b3261e"


def attack_figure(tries: Sequence[Try], points: Sequence[Point], threshold: float) -> str:
    """The text of an SVG file.

    Args:
        tries: in order, on validation parts.
        points: of the chosen attack on the test part, the attacked model's first.
        threshold: of a broken model.
    """
    panels = [(_tries(tries, threshold), "Worst case over the tries (validation)")]
    for along, heading in (("steps", "The chosen attack, by steps"), ("rows", "The chosen attack, by rows")):
        if mine := [point for point in points if point.along == along and point.harmful_score["value"] is not None]:
            panels.append((_curve(mine, along, threshold), heading))
    return beside(panels, "Harmful score over the tries of an attack, and along the chosen one")


def _tries(tries: Sequence[Try], threshold: float) -> Figure:
    room = alt.Scale(domain=[0.5, len(tries) + 0.5])
    x, y = alt.X("x:Q", title="Try", axis=_whole(len(tries)), scale=room), score_axis()
    rows = [
        {"x": number, "value": one.scores.harmful, "fill": _TARGET if one.within else "transparent"}
        for number, one in enumerate(tries, 1)
    ]
    worst = [{"x": number, "value": score} for number, score in enumerate(worst_so_far(tries), 1) if score is not None]
    layers = [
        alt.Chart(data(worst)).mark_line(color=_TARGET, strokeWidth=2.5, interpolate="step-after").encode(x=x, y=y),
        alt.Chart(data(rows))
        .mark_point(size=50, stroke=_TARGET, strokeWidth=2)
        .encode(x=x, y=y, fill=alt.Fill("fill:N", scale=None, legend=None)),
        _threshold(threshold),
    ]
    legend = [
        Key("line", _TARGET, "worst so far"),
        Key("circle", _TARGET, "a try"),
        *[Key("circle", _TARGET, "beyond the bound on utility", open=True)] * (not all(one.within for one in tries)),
    ]
    return Figure(alt.layer(*layers, data=data([])).properties(height=_HEIGHT), legend)


def _curve(points: Sequence[Point], along: str, threshold: float) -> Figure:
    models = list(dict.fromkeys(point.model for point in points))
    hues = {model: _TARGET if model == models[0] else UNDEFENDED for model in models}
    rows = [
        {
            **{"x": getattr(point, along), "series": point.model, "hue": hues[point.model], "dash": DASHES["line"]},
            **{bound: point.harmful_score[bound] for bound in ("value", "low", "high")},
            **{"fill": hues[point.model], "text": ""},
        }
        for point in sorted(points, key=lambda point: getattr(point, along))
    ]
    title = {"steps": "Optimizer steps", "rows": "Rows handed in"}[along]
    x = alt.X("x:Q", title=title, scale=alt.Scale(zero=True))
    layers = [*line_layers(x), _threshold(threshold)]
    legend = [Key("line", hues[model], model) for model in models]
    return Figure(alt.layer(*layers, data=data(rows)).properties(height=_HEIGHT), legend)


def _threshold(value: float) -> alt.Chart:
    return (
        alt.Chart(data([{"value": value}]))
        .mark_rule(strokeWidth=1, strokeDash=DASHES["dash"], opacity=0.6)
        .encode(y=score_axis())
    )


def _whole(count: int) -> Any:
    step = max(1, -(-count // 8))
    return alt.Axis(values=list(range(1, count + 1, step)), format="d", grid=False)
