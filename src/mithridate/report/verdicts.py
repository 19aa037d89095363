"""The decisions of a run as the page tells them: one finding for each defense, and a headline. Sentences only: what
they say is decided in `mithridate.results.decisions`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mithridate.report.words import Label, labels, story_order
from mithridate.results.decisions import WORDS, shown
from mithridate.results.outcomes import Outcomes
from mithridate.results.relations import Cell, attack_of, attacked, before_of, join, known, reference_of, undefended
from mithridate.statistics.comparisons import difference
from mithridate.statistics.text import between, in_points, interval, p_value, percent

CHIPS = {
    "helped": "helped",
    "at a price": "price",
    "did not help": "no-help",
    "broke": "broke",
    "undecided": "unclear",
    "undecided (spread)": "unclear",
}
"""The page's style of each word."""

_SAID = {
    "helped": "{} helped",
    "at a price": "{} helped at a price",
    "did not help": "{} did not help",
    "broke": "{} broke the model",
    "undecided": "on {} it is undecided",
    "undecided (spread)": "on {} it is undecided, for the seeds' spread",
}


@dataclass(frozen=True)
class Finding:
    """The decision on one defended cell (or several seeds of it together), with its reasons as sentences."""

    cell: Cell
    reference: Cell | None
    word: str
    reasons: list[str]

    @property
    def chip(self) -> str:
        return CHIPS[self.word]


def findings(cells: list[Cell]) -> list[Finding]:
    """One for each cell (of results.json as `decisions.complete` leaves it, or of `groups.over_seeds`) with a
    decision, in the order of the page."""
    return [
        Finding(cell, reference_of(cell, cells), cell["decision"]["word"], list(cell["decision"]["reasons"]))
        for cell in sorted(cells, key=story_order)
        if cell.get("decision")
    ]


def seeds_of(cells: Iterable[Cell]) -> int:
    return len({cell["seed"] for cell in cells})


def headline(cells: list[Cell], points: list[Cell] | None = None, outcomes: Outcomes | None = None) -> list[str]:
    """The answer in sentences: on how much it rests, what each defense came to, and what each attack did.

    Args:
        cells: of results.json, as `decisions.complete` leaves it.
        points: the same with those of several seeds put together (`groups.over_seeds`).
        outcomes: what the models are compared by; without it, attacks are by their shares' intervals.
    """
    found = findings(cells)
    together = [point for point in points or () if point.get("across") and point.get("decision")]
    sentences = [*_rests_on(cells, found), *_over_seeds(together)]
    covered = {name for point in together for name in point["cells"]}
    sentences += _by_arm([one for one in found if one.cell["id"] not in covered], labels(cells))
    if not found:
        sentences.append("No defended model was attacked in this run, so no defense can be judged.")
    return sentences + _attacks(cells, outcomes or Outcomes())


def _rests_on(cells: list[Cell], found: list[Finding]) -> list[str]:
    """How many attacks and seeds there were, and what one seed cannot say."""
    if not found:
        return []
    mine = [one.cell for one in found]
    attacks, seeds = len({attack_of(cell) for cell in mine}), seeds_of(mine)
    text = f"{_count(attacks, 'attack')}, {_count(seeds, 'seed')}."
    if seeds == 1:
        text += " With one seed, this holds for these prompts only: other seeds may differ."
    return [text]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _over_seeds(together: list[Cell]) -> list[str]:
    """What several seeds together came to: a sentence for each word, with the differences."""
    names = labels(together)
    tests = {point["id"]: point["paired"] for point in together if point.get("paired")}
    sentences = []
    for word in WORDS:
        parts = []
        for point in sorted(together, key=story_order):
            if point["decision"]["word"] != word:
                continue
            test = tests.get(point["id"])
            numbers = f"{in_points(test['difference'])} {between(test)}{_p(test)}" if test else ""
            inside = "; ".join(filter(None, [_fell(point), numbers]))
            parts.append(f"{names[point['id']].full}{f' ({inside})' if inside else ''}")
        if parts:
            sentences.append(f"{_start(_SAID[word].format('; '.join(parts)))}.")
    if not sentences:
        return []
    sizes = sorted({point["across"]["harmful_score"]["seeds"] for point in together})
    sentences.insert(0, f"Over {join([str(size) for size in sizes])} seeds together:")
    if tested := [test for test in tests.values() if test.get("p_holm") is not None]:
        number = _count(tested[0]["comparisons"], "comparison")
        sentences.append(
            f"These p-values are of t tests over the seeds, corrected by Holm for {number} of {tested[0]['family']} "
            f"with the undefended run. They hold if {tested[0]['assumption']}."
        )
    return sentences


def _fell(cell: Cell) -> str:
    """That task accuracy fell, where the decision's first reason is that it did."""
    first = cell["decision"]["reasons"][0]
    return (
        f"{first[:1].lower()}{first[1:]}".rstrip(".").replace(" (", ", ").rstrip(")") if " fell from " in first else ""
    )


def _p(test: Mapping[str, Any]) -> str:
    text = p_value(test.get("p_holm"))
    return f", {text}" if text else ""


def _start(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _by_arm(found: list[Finding], names: Mapping[str, Label]) -> list[str]:
    """What single models came to, a sentence for each word, then one for each defense that came to several."""
    groups: dict[str, list[Finding]] = {}
    for one in found:
        label = names[one.cell["id"]]
        groups.setdefault(f"{label.arm} with {label.topology}", []).append(one)
    by_word: dict[str, list[str]] = {}
    mixed: list[str] = []
    for name, some in groups.items():
        counts = Counter(one.word for one in some)
        if len(counts) == 1:
            fell = _fell(some[0].cell) if len(some) == 1 else ""
            by_word.setdefault(some[0].word, []).append(f"{name} ({fell})" if fell else name)
        else:
            parts = join([f"{word} in {counts[word]}" for word in WORDS if word in counts])
            mixed.append(f"{name}: {parts} of {_runs([one.cell for one in some])}.")
    sentences = [f"{_start(_SAID[word].format('; '.join(by_word[word])))}." for word in WORDS if word in by_word]
    return sentences + mixed


def _runs(cells: list[Cell]) -> str:
    """How many models these are: seeds of one attack, attacks with one seed, or both."""
    attacks, seeds = len({attack_of(cell) for cell in cells}), seeds_of(cells)
    if attacks == 1:
        return _count(len(cells), "seed")
    return _count(len(cells), "attack") if seeds == 1 else f"{len(cells)} runs ({attacks} attacks, {seeds} seeds)"


def _attacks(cells: list[Cell], outcomes: Outcomes) -> list[str]:
    """What each attack did to the plainly aligned model, its seeds together."""
    names = labels(cells)
    attacks: dict[str, list[tuple[Cell, Cell]]] = {}
    for cell in sorted(filter(undefended, cells), key=story_order):
        before = before_of(cell, cells)
        if not attacked(cell) or cell["alignment"] == "none" or not before:
            continue
        if known(cell["harmful_score"]) and known(before["harmful_score"]):
            attacks.setdefault(attack_of(cell), []).append((cell, before))
    sentences = []
    for pairs in attacks.values():
        raised = sum(_raised(cell, before, outcomes) for cell, before in pairs)
        label = names[pairs[0][0]["id"]]
        where = ", ".join(filter(None, [label.topology, label.rows]))
        if len(pairs) == 1:
            (cell, before), clear = pairs[0], "The attack took" if raised else "It is not shown that the attack took"
            low, high = before["harmful_score"], cell["harmful_score"]
            sentences.append(
                f"{clear} the undefended harmful score from {percent(low['value'])} {interval(low)} "
                f"to {percent(high['value'])} {interval(high)} ({where})."
            )
            continue
        after, first = (sorted(one["harmful_score"]["value"] for one in side) for side in zip(*pairs))
        sentences.append(
            f"In {raised} of {_count(len(pairs), 'seed')} the attack is shown to have raised the undefended harmful "
            f"score, from {_range(first)} before to {_range(after)} after it ({where})."
        )
    return sentences


def _range(values: list[float]) -> str:
    low, high = percent(values[0]), percent(values[-1])
    return low if low == high else f"{low} to {high}"


def _raised(cell: Cell, before: Cell, outcomes: Outcomes) -> bool:
    test = outcomes.paired(cell["id"], before["id"], "harmful_score")
    return shown(test or difference(cell["harmful_score"], before["harmful_score"])) == 1
