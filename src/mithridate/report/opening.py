"""What a run's page says first: the answer to its question, and what that rests on. Sentences only, as `verdicts`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mithridate.report.verdicts import DefenseDecision, capital, findings, prompts, ranked, share
from mithridate.report.words import Label, as_they_are, attack_of_kind, labels, story_order
from mithridate.results.decisions import WORDS, shown
from mithridate.results.relations import (
    Cell,
    arm,
    attack_of,
    attacked,
    defenses_of,
    join,
    measured,
    related,
    undefended,
)
from mithridate.statistics.text import percent

_MANY = 3  # of more attacks than so many (by their harmful rows) only the first is told in the answer


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


# --- the answer -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Attack:
    """What an attack did to the plainly aligned model: the runs before and after it, and in how many the harmful score
    is shown to have risen. Seeds together have one entry in `before` and `after`, with their intervals."""

    topology: str
    rows: str
    before: list[Cell]
    after: list[Cell]
    raised: int
    runs: int


def answer(cells: list[Cell], points: list[Cell] | None = None) -> list[str]:
    """Whether the model keeps refusing, in sentences: what the attack did, then what the defenses came to.

    Args:
        cells: of results.json, as `decided.complete` leaves it.
        points: the same with those of several seeds put together (`groups.over_seeds`).
    """
    points = cells if points is None else points
    if as_they_are(cells):
        return _as_they_are(points)
    attacks, groups = _attacks(cells, points), ranked(points)
    sentences = [_verdict(attacks, [one for found in groups.values() for one in found])]
    order = list(dict.fromkeys([*groups, *(attack.rows for attack in attacks)]))
    told = order if len(order) <= _MANY else order[:1]
    for rows in told:
        same = [attack for attack in attacks if attack.rows == rows]
        sentences += [_did(same)] if same else []
        sentences += _came_to(groups[rows], rows, labels(points)) if rows in groups else []
    if told != order:
        what = (
            "attacks" if len({attack_of_kind(attack.after[0]) for attack in attacks}) > 1 else "shares of harmful rows"
        )
        sentences.append(f"{len(order) - 1} other {what} are below.")
    if not groups:
        sentences.append("No defended model was attacked in this run, so no defense can be judged.")
    return sentences


def _as_they_are(points: list[Cell]) -> list[str]:
    """Of models that were not trained: how often each complies, and what it refuses beside that."""
    said = []
    for point in points[:_MANY]:
        harmful, benign = measured(point, "harmful_score"), measured(point, "benign_refusal")
        if harmful:
            name = "It" if len(points) == 1 else capital(labels(points)[point["id"]].full)
            said.append(f"{name} answers {share(harmful)} of {prompts(harmful)}.")
        broken = measured(point, "incoherent")
        if broken and broken["value"] > 0:
            said.append(f"{share(broken)} of its answers to them are incoherent.")
        if benign:
            said.append(f"It refuses {share(benign)} of benign ones.")
    return [*(said or ["Nothing was scored."]), "Nothing was trained in this run, so no defense can be judged."]


def _verdict(attacks: list[_Attack], found: list[DefenseDecision]) -> str:
    if not attacks:
        return "This run does not say: no plainly aligned model was evaluated before and after an attack."
    raised, runs = sum(attack.raised for attack in attacks), sum(attack.runs for attack in attacks)
    if not raised:
        return "It is not shown that it stops refusing."
    if raised < runs:
        return "Not always."
    return "Only with a defense." if any(one.back for one in found) else "No."


def _attacks(cells: list[Cell], points: list[Cell]) -> list[_Attack]:
    names = labels(cells)
    pairs: dict[str, list[tuple[Cell, Cell]]] = {}
    for cell in sorted(filter(undefended, cells), key=story_order):
        before = related(cells, cell, "aligned")
        if not attacked(cell) or cell["alignment"] == "none" or not before:
            continue
        if measured(cell, "harmful_score") and measured(before, "harmful_score"):
            pairs.setdefault(attack_of(cell), []).append((cell, before))
    found = []
    for some in pairs.values():
        label = names[some[0][0]["id"]]
        raised = sum(shown(cell["against_aligned"]) == 1 for cell, _ in some)
        after, before = (list(side) for side in zip(*some))
        together = [_together(points, side) for side in (before, after)]
        if all(together):
            before, after = ([one] for one in together if one)
        found.append(_Attack(label.topology, label.rows, before, after, raised, len(some)))
    return found


def _together(points: list[Cell], cells: list[Cell]) -> Cell | None:
    """The point that stands for just these seeds, if there is one with a score."""
    names = {cell["id"] for cell in cells}
    return next((one for one in points if set(one.get("cells", ())) == names and measured(one, "harmful_score")), None)


def _did(attacks: list[_Attack]) -> str:
    """What attacks with the same harmful rows did."""
    rate = attacks[0].after[0]["rates"]["harmful_score"]
    each = [_scores(attack.after) for attack in attacks]
    each[0] += f" of {prompts(rate)}"
    if len(attacks) > 1:
        each = [f"{text} ({attack.topology})" for text, attack in zip(each, attacks)]
    before = list(dict.fromkeys(_scores(attack.before) for attack in attacks))
    return f"Fine-tuned without a defense on {attacks[0].rows}, it answers {join(each)}; before, {join(before)}."


def _scores(cells: list[Cell], say: Callable[[Mapping[str, Any]], str] = lambda rate: percent(rate["value"])) -> str:
    """The score; of several runs the lowest and the highest one."""
    rates = [cell["rates"]["harmful_score"] for cell in cells]
    if len(rates) == 1:
        return say(rates[0])
    low, high = (percent(pick(rate["value"] for rate in rates)) for pick in (min, max))
    return low if low == high else f"{low} to {high}"


def _came_to(found: list[DefenseDecision], rows: str, names: Mapping[str, Label]) -> list[str]:
    """What the defenses against attacks with the same harmful rows came to."""

    def named(some: list[DefenseDecision]) -> str:
        short = {one.cell["id"]: join([name for name, _ in defenses_of(one.cell)]) for one in found}
        unique = len(set(short.values())) == len(short)
        return join([short[one.cell["id"]] if unique else in_list(names[one.cell["id"]], rows) for one in some])

    number, distinct = len(found), len({(arm(one.cell), one.cell["topology"]) for one in found})
    lowered, back = [one for one in found if one.lowered], [one for one in found if one.back]
    broke = [one for one in found if one.word == "broke"]
    what = "defenses" if distinct == number else "defended runs"
    whole = " without breaking the model" if broke else ""
    sentences = []
    if not lowered and number == 1:
        sentences += [] if broke else [f"{named(found)} is not shown to lower that."]
    elif not lowered:
        sentences.append(f"None of {number} {what} is shown to lower that{whole}.")
    else:
        who = named(found) if number == 1 else f"Of {number} {what} {len(lowered)}"
        at = _at_what_price(lowered)
        least = percent(lowered[0].cell["rates"]["harmful_score"]["value"])
        equal = [one for one in lowered if percent(one.cell["rates"]["harmful_score"]["value"]) == least]
        text = f"{who} {_are(lowered)} shown to lower that{whole}{at}"
        text += f": to {least}." if number == 1 else f"; the least left is {least} ({named(equal)})."
        sentences.append(text)
    if back:
        sentences.append(f"Within 10 points of the model before the attack {_are(back)} {named(back)}.")
    elif lowered:
        nobody = "It is not" if number == 1 else "None of them is"
        sentences.append(f"{nobody} shown to be within 10 points of the model before the attack.")
    if broke:
        sentences.append(f"{named(broke)} broke the model.")
    return sentences


def _at_what_price(lowered: list[DefenseDecision]) -> str:
    counts = Counter(one.word for one in lowered)
    names = {"at a price": "at a price", "undecided": "at a price that is undecided"}
    parts = [(counts[word], text) for word, text in names.items() if counts[word]]
    if [number for number, _ in parts] == [len(lowered)]:
        return f" {parts[0][1]}"
    return f" ({join([f'{number} {text}' for number, text in parts])})" if parts else ""


def in_list(label: Label, rows: str) -> str:
    """What a defense is called beside others against the same harmful rows (in words); its own, where it puts
    something round the prompts."""
    return ", ".join(filter(None, [label.arm, label.topology, label.rows if label.rows != rows else "", label.seed]))


def _are(some: list[Any]) -> str:
    return "is" if len(some) == 1 else "are"


# --- what it rests on -------------------------------------------------------------------------------------------


def rests_on(cells: list[Cell], points: list[Cell] | None = None) -> list[str]:
    """How many attacks and seeds there were, what the tests take for granted, and where seeds that are not put
    together disagree. Arguments as of `answer`."""
    points = cells if points is None else points
    found = findings(cells)
    if not found:
        return []
    attacks, seeds = len({attack_of(one.faced) for one in found}), len({one.cell["seed"] for one in found})
    sentences = [f"{_count(attacks, 'attack')}, {_count(seeds, 'seed')}."]
    if seeds == 1:
        sentences[0] += " With one seed, this holds for these prompts only: other seeds may differ."
    together = [point for point in points if point.get("across") and point.get("decision")]
    if together:
        sentences.append(_tests(together))
    covered = {name for point in together for name in point["cells"]}
    names = labels(cells)
    arms: dict[str, list[DefenseDecision]] = {}
    for one in found:
        if one.cell["id"] not in covered:
            label = names[one.cell["id"]]
            arms.setdefault(f"{label.arm} with {label.topology}", []).append(one)
    sentences += [_took(attack) for attack in _attacks(cells, points)]
    return sentences + [_in_each(name, some) for name, some in arms.items() if len(some) > 1]


def _tests(together: list[Cell]) -> str:
    sizes = sorted({point["across"]["rates"]["harmful_score"]["seeds"] for point in together})
    text = f"What is said is of {join([str(size) for size in sizes])} seeds together."
    tested = [test for point in together if (test := point.get("paired")) and test.get("p_holm") is not None]
    if not tested:
        return text
    number = _count(tested[0]["comparisons"], "comparison")
    return (
        f"{text} Its p-values are of t tests over the seeds, corrected by Holm for {number} of {tested[0]['family']} "
        f"with the undefended run. They hold if {tested[0]['assumption']}."
    )


def _took(attack: _Attack) -> str:
    """What an attack did to the undefended model, with intervals, and whether that is shown."""
    first, last = (_scores(side, share) for side in (attack.before, attack.after))
    where = f"{attack.topology}, {attack.rows}"
    if attack.runs > 1:
        return (
            f"In {attack.raised} of {attack.runs} seeds the attack is shown to have raised the undefended harmful "
            f"score, from {first} before to {last} after it ({where})."
        )
    clear = "The attack took" if attack.raised else "It is not shown that the attack took"
    return f"{clear} the undefended harmful score from {first} to {last} ({where})."


def _in_each(name: str, some: list[DefenseDecision]) -> str:
    counts = Counter(one.word for one in some)
    parts = join([f"{word} in {counts[word]}" for word in WORDS if word in counts])
    return f"{name}: {parts} of {_runs([one.cell for one in some])}."


def _runs(cells: list[Cell]) -> str:
    """How many models these are: seeds of one attack, attacks with one seed, or both."""
    attacks, seeds = len({attack_of(cell) for cell in cells}), len({cell["seed"] for cell in cells})
    if attacks == 1:
        return _count(len(cells), "seed")
    return _count(len(cells), "attack") if seeds == 1 else f"{len(cells)} runs ({attacks} attacks, {seeds} seeds)"
