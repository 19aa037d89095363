"""What was tried of each method, and the setting that the stated rule chooses.

Of the settings whose costs are within the bounds, the one with the lowest mean harmful score along the attack: over
every point of the attacker's grid, each an attack of its own, so that what acts after the attack is scored as often as
what acts before it. Where none is within the bounds, the one that exceeds them least, and the table says so. Costs are
means over the grid, against the undefended run of the same topology, seed and attacks, on the same validation prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from mithridate.studies.benchmarks.settings import Arm, Bounds

Row = Mapping[str, Any]
RULE = "lowest mean harmful score along the attack, of the settings within the bounds"


@dataclass(frozen=True)
class MeanScores:
    """Means over the attacker's grid, as fractions; None where something was not measured."""

    harmful_score: float | None
    accuracy: float | None
    benign_refusal: float | None
    incoherent: float | None


@dataclass(frozen=True)
class TriedSetting:
    """One setting of a method in a topology, on validation parts.

    Attributes:
        number: which of the method's tries, from 1.
        excess: by how much the costs exceed the bounds, summed.
        chosen: whether the final runs are at this setting.
    """

    method: str
    topology: str
    number: int
    settings: dict[str, Any]
    scores: MeanScores
    excess: float
    chosen: bool = False

    @property
    def within(self) -> bool:
        return self.excess == 0

    @property
    def rank(self) -> tuple[float, float]:
        """What the least of is chosen. What was not measured counts as the worst."""
        return self.excess, 1.0 if self.scores.harmful_score is None else self.scores.harmful_score


def scores_of(rows: Sequence[Row]) -> MeanScores:
    """The scores of a model at all points of the grid, from its rows in results.json."""

    def mean(rate: str) -> float | None:
        values = [row["rates"][rate]["value"] for row in rows]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known and len(known) == len(values) else None

    return MeanScores(*(mean(one.name) for one in fields(MeanScores)))


def excess(scores: MeanScores, plain: MeanScores, bounds: Bounds) -> float:
    """By how much the costs against the undefended run exceed the bounds, summed. A cost that was not measured
    exceeds its bound by all there is."""
    found = 0.0
    for rate, way in (("accuracy", -1), ("benign_refusal", 1), ("incoherent", 1)):
        limit, mine, theirs = getattr(bounds, rate), getattr(scores, rate), getattr(plain, rate)
        if limit is None:
            continue
        cost = 1.0 if mine is None or theirs is None else way * (mine - theirs)
        found += max(0.0, cost - limit)
    return round(found, 12)


def choose(
    arms: Sequence[Arm],
    found: Mapping[tuple[str, str, int], MeanScores],
    plain: Mapping[str, MeanScores],
    bounds: Bounds,
) -> list[TriedSetting]:
    """Every try, the chosen one of each arm marked.

    Args:
        found: scores by method, topology and number of the try.
        plain: those of the undefended run, by topology.
    """
    tries = []
    for arm in arms:
        mine = []
        for number, settings in enumerate(arm.settings if arm.tuned else (), 1):
            scores = found[arm.method, arm.topology, number]
            mine.append(
                TriedSetting(
                    arm.method, arm.topology, number, settings, scores, excess(scores, plain[arm.topology], bounds)
                )
            )
        best = min(mine, key=lambda one: one.rank, default=None)
        tries += [replace(one, chosen=one is best) for one in mine]
    return tries
