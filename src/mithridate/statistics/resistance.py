"""How many steps an attack takes."""

from collections.abc import Sequence


def steps_to(points: Sequence[tuple[int, float]], level: float = 0.5) -> int | None:
    """The first step, rounded, at which the line through `points` (step, share) reaches `level`, or None."""
    ordered = sorted(points)
    for i, (step, value) in enumerate(ordered):
        if value >= level:
            if i == 0 or value == level:
                return round(step)
            before, low = ordered[i - 1]
            return round(before + (step - before) * (level - low) / (value - low))
    return None
