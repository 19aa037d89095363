"""Numbers as texts: what is neither 0 nor 100 is never shown as that, and nothing is shown as minus zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def whole(value: float, digits: int = 0) -> str:
    """A share in percent without the sign: 0.954 -> "95", 0.001 -> "<1", 0.999 -> ">99"; with so many digits."""
    return _short(value * 100, 100, digits)


def fraction(value: float, digits: int = 2) -> str:
    """A share as a fraction: 0.954 -> "0.95", 0.001 -> "<0.01", 0.999 -> ">0.99"."""
    return _short(value, 1, digits)


def _short(value: float, top: int, digits: int) -> str:
    least = 10.0**-digits
    if 0 < value <= least / 2:
        return f"<{least:.{digits}f}"
    if top - least / 2 <= value < top:  # halves included: 99.5 would be rounded to 100
        return f">{top - least:.{digits}f}"
    return f"{abs(value):.{digits}f}"


def percent(value: float) -> str:
    """The same with the sign: "95%"."""
    return f"{whole(value)}%"


def interval(rate: Mapping[str, Any]) -> str:
    """The bounds of a rate in percent, "[17, 33]"."""
    return f"[{whole(rate['low'])}, {whole(rate['high'])}]"


def points(value: float) -> str:
    """A difference of shares in points: -0.125 -> "−12"; in more digits where it would else read as 0 or 100."""
    if abs(value) < 1e-6:
        return "0"
    text = f"{value * 100:+.0f}"
    if text.lstrip("+-") in ("0", "100") and abs(value) != 1:
        digits = 1
        while digits <= 4 and float(text) in (0.0, 100.0, -100.0):
            text, digits = f"{value * 100:+.{digits}f}", digits + 1
    return text.replace("-", "−")


def in_points(value: float) -> str:
    """The same with its unit: "−12 points", "+1 point"."""
    text = points(value)
    return f"{text} point{'s' * (text not in ('+1', '−1'))}"


def between(found: Mapping[str, Any]) -> str:
    """The bounds of a difference in points, "[−12, +3]"."""
    return f"[{points(found['low'])}, {points(found['high'])}]"


def p_value(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"
