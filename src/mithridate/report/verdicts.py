"""The decisions of a run as the page tells them: what each defense left of the attack, at what price, in which order.
Sentences only: what they say is decided in `mithridate.results.decisions`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mithridate.report.words import rows_in_words, story_order
from mithridate.results.decisions import TOLERANCE, bound, shown
from mithridate.results.relations import Cell, arm, measured, related
from mithridate.statistics.text import interval, percent

_SAID = {
    "helped": "helped",
    "at a price": "helped at a price",
    "did not help": "did not help",
    "broke": "broke the model",
    "undecided": "undecided",
    "undecided (spread)": "undecided, for the seeds' spread",
}
# (rate, its name, which way is worse): what a defense may cost. Those of broken text are told where they are more than
# a little worse.
_PRICES = (
    ("accuracy", "task accuracy", -1),
    ("benign_refusal", "benign requests refused", 1),
    ("benign_other", "benign requests neither answered nor refused", 1),
    ("benign_incoherent", "broken answers to benign requests", 1),
    ("incoherent", "broken answers to harmful prompts", 1),
)
_TOLD = ("accuracy", "benign_refusal")


@dataclass(frozen=True)
class DefenseDecision:
    """The decision on one defended cell (or several seeds of it together), with its reasons as sentences.

    Attributes:
        reference: the undefended run of the same attack.
        before: the model that the undefended run was made from.
        control: the cell's control.
    """

    cell: Cell
    reference: Cell | None
    before: Cell | None
    control: Cell | None
    word: str
    reasons: list[str]

    @property
    def faced(self) -> Cell:
        """The undefended run, by which its attack is known: a defense may itself put something round the prompts."""
        return self.reference or self.cell

    @property
    def lowered(self) -> bool:
        """Whether the harmful score is shown to have fallen, and the model is not broken; the price may be open."""
        fell = shown(self.cell.get("paired")) == -1
        return self.word in ("helped", "at a price") or (self.word == "undecided" and fell)

    @property
    def back(self) -> bool:
        """Whether it is shown to be within 10 points of the model before the attack: of what it still answers, the
        whole interval."""
        left, first = measured(self.cell, "harmful_score"), measured(self.before, "harmful_score")
        near = left and first and bound(left, first["value"] + TOLERANCE) == "below"
        return bool(near) and self.lowered

    @property
    def said(self) -> str:
        """The word with what is left: "helped, still answers 62%"."""
        word = "price undecided" if self.word == "undecided" and self.lowered else _SAID[self.word]
        left = measured(self.cell, "harmful_score")
        if not left or self.word == "broke":  # a broken model answers nothing at all
            return word
        return f"{word}, still answers {percent(left['value'])}"

    @property
    def chip(self) -> str:
        """The page's style of it. That a defense helped is not yet good news."""
        if self.word in ("helped", "at a price"):
            return "helped" if self.word == "helped" and self.back else "price"
        return {"did not help": "no-help", "broke": "broke"}.get(self.word, "unclear")

    @property
    def left(self) -> str:
        """What is left of the attack, beside what it did to the undefended run."""
        left, plain, first = (measured(one, "harmful_score") for one in (self.cell, self.reference, self.before))
        if not left:
            return ""
        text = f"Answers {share(left)} of {prompts(left)}"
        if plain:
            text += f"; without a defense {share(plain)}"
        if first:
            text += f", before the attack {share(first)}"
        return f"{text}."

    @property
    def price(self) -> str:
        """What else changed against the undefended run."""
        parts = []
        for rate, name, way in _PRICES:
            ours, theirs = measured(self.cell, rate), measured(self.reference, rate)
            if not ours or not theirs:
                continue
            if rate in _TOLD or way * (ours["value"] - theirs["value"]) > TOLERANCE / 2:
                parts.append(f"{name} {percent(ours['value'])} against {percent(theirs['value'])}")
        return f"{capital('; '.join(parts))}." if parts else ""

    @property
    def beside_control(self) -> str:
        """What came of the comparison with its control, which the reasons tell with its numbers."""
        told = f"{arm(self.control)}: " if self.control else None
        reason = next((one for one in self.reasons if told and one.startswith(told)), "")
        return f"Beside its control: {reason.rpartition(': ')[2]}" if reason else ""


def findings(cells: list[Cell]) -> list[DefenseDecision]:
    """One for each cell (of results.json as `decided.complete` leaves it, or of `groups.over_seeds`) with a
    decision, in the order of the page."""
    found = []
    for cell in sorted(cells, key=story_order):
        if made := cell.get("decision"):
            reference, control = related(cells, cell, "reference"), related(cells, cell, "nearest_control")
            before = related(cells, reference, "aligned")
            found.append(DefenseDecision(cell, reference, before, control, made["word"], list(made["reasons"])))
    return found


def ranked(cells: list[Cell]) -> dict[str, list[DefenseDecision]]:
    """The findings by the harmful rows of their attacks (in words), the attacks that did most to the undefended runs
    first. Of each, by what is left in whole percents, then by the price; what broke its model comes last."""
    groups: dict[str, list[DefenseDecision]] = {}
    for one in findings(cells):
        groups.setdefault(rows_in_words(one.faced), []).append(one)
    return {
        rows: sorted(found, key=_rank) for rows, found in sorted(groups.items(), key=lambda group: -_harm(group[1]))
    }


def _rank(one: DefenseDecision) -> tuple[Any, ...]:
    left = measured(one.cell, "harmful_score")
    cost = 0.0
    for rate, _, way in _PRICES:
        ours, theirs = measured(one.cell, rate), measured(one.reference, rate)
        if ours and theirs:
            cost += max(0.0, way * (ours["value"] - theirs["value"]))
    shown_as = percent(left["value"]) if left else "101%"  # equal is what reads as equal
    return one.word == "broke", int(shown_as.strip("<>%")), {"<": -1, ">": 1}.get(shown_as[0], 0), cost


def _harm(found: list[DefenseDecision]) -> float:
    scores = [rate["value"] for one in found if (rate := measured(one.reference, "harmful_score"))]
    return sum(scores) / len(scores) if scores else 0.0


def share(rate: Mapping[str, Any]) -> str:
    return f"{percent(rate['value'])} {interval(rate)}"


def prompts(rate: Mapping[str, Any]) -> str:
    return "tries at harmful prompts" if rate.get("samples") else "harmful prompts"


def capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
