"""What a benchmark's tests say, in sentences: each method against the undefended run, its controls and the trivial
baselines; and which setting of each was chosen. Nothing here is worded by hand for one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.results_page.evidence import Evidence
from mithridate.results.decisions import shown
from mithridate.statistics.text import between, in_points, interval, p_value, whole
from mithridate.studies.benchmarks.settings import UNDEFENDED
from mithridate.studies.benchmarks.standings import Entrant, differences

BASELINES = (
    *("wiseft", "lox", "kl", "ewc", "ldifs", "safetymix", "ptst", "lowerlr", "fewersteps"),
    *("randommask", "randomnoise"),
)
"""What costs next to nothing, so that whoever claims more has to beat it."""
COSTS = {"accuracy": (-1, "accuracy"), "benign_refusal": (1, "benign refusal"), "incoherent": (1, "broken answers")}
Test = Mapping[str, Any]


def settings_in_words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def rate(share: Test | None) -> str:
    """A share in percent with its interval: "40 % [30, 50]"."""
    if not share or share.get("value") is None:
        return "not measured"
    bounds = f" {interval(share)}" if share.get("low") is not None else ""
    return f"{whole(share['value'])} %{bounds}"


def size(test: Test) -> str:
    """A difference with its interval and p-value: "−12 points [−20, −4], p = 0.01"."""
    said = in_points(test["difference"])
    if test.get("low") is not None:
        said += f" {between(test)}"
    p = test.get("p_holm")
    found = p_value(test.get("p_value") if p is None else p)
    return f"{said}, {found}" if found else said


def told(test: Test | None, other: str) -> str:
    """A difference of harmful scores to another model, as a clause."""
    if not test or test.get("difference") is None:
        return f"not compared with {other}: one of the two was not measured"
    way = shown(test)
    if not way:
        why = test.get("spread") or (test.get("note") if test.get("p_value") is None else None)
        return f"not shown to differ from {other}: {size(test)}{f' ({why})' if why else ''}"
    return f"{'higher' if way > 0 else 'lower'} than {other}: {size(test)}"


def of_each(evidence: Evidence, topology: str) -> Iterator[str]:
    """A line for each method: its score, the undefended run's beside it, its controls', and what it cost."""
    rows = evidence.standings(topology)
    yield f"- **{UNDEFENDED}**: harmful score {rate(rows[UNDEFENDED]['rates']['harmful_score'])}."
    for name, row in rows.items():
        entrant = row["entrant"]
        if name == UNDEFENDED or entrant["of"]:
            continue
        said = [f"harmful score {rate(row['rates']['harmful_score'])}"]
        said.append(told(row["against"]["harmful_score"], "the undefended run"))
        controls = {other: one for other, one in rows.items() if one["entrant"]["of"] == name}
        said += [told(one["control"], f"its control {other.partition(', ')[2]}") for other, one in controls.items()]
        if not controls:
            said.append("no control of its own was run")
        said.append(cost(row["against"]))
        words = settings_in_words(entrant["settings"])
        yield f"- **{name}**{f' ({words})' if words else ''}: {'; '.join(said)}."


def cost(against: Mapping[str, Test | None]) -> str:
    """What became of the other rates against the undefended run, and which of them is shown to have got worse."""
    said, worse = [], []
    for name, (way, words) in COSTS.items():
        test = against.get(name)
        if not test or test.get("difference") is None:
            said.append(f"{words} not measured")
            continue
        said.append(f"{words} {size(test)}")
        if shown(test) == way:
            worse.append(words)
    return f"costs: {', '.join(said)}; shown to be worse: {', '.join(worse) or 'none'}"


def against_baselines(evidence: Evidence, topology: str) -> Iterator[str]:
    """Each method that is no baseline against every baseline, at what was chosen of both with the same number of
    tries."""
    entrants = evidence.entrants(topology)
    methods = [one for name, one in entrants.items() if one.of is None and name not in (UNDEFENDED, *BASELINES)]
    baselines = [one for name, one in entrants.items() if one.of is None and name in BASELINES]
    pairs = [(method, baseline) for method in methods for baseline in baselines]
    if not pairs:
        yield "There is no method beside the trivial baselines, or no baseline beside the methods, to compare with."
        return
    kinds = {"for other seeds": differences(pairs, evidence.outcomes)} if len(entrants[UNDEFENDED].cells) > 2 else {}
    kinds["of the models at hand"] = differences(pairs, evidence.outcomes, here=True)
    for method in methods:
        said = [f"{kind}, {_sides(method, pairs, tests)}" for kind, tests in kinds.items()]
        yield f"- **{method.name}**, {len(baselines)} baselines: {'; '.join(said)}."
    yield ""
    yield from folded(
        f"The {len(pairs)} differences, corrected by Holm together ({topology})",
        ["method", "baseline", *kinds],
        [
            [a.name, b.name, *(size(tests[i]) if _known(tests[i]) else "" for tests in kinds.values())]
            for i, (a, b) in enumerate(pairs)
        ],
    )


def _known(test: Test | None) -> bool:
    return bool(test) and test["difference"] is not None


def _sides(method: Entrant, pairs: Sequence[tuple[Entrant, Entrant]], tests: Sequence[Test | None]) -> str:
    sides: dict[int, list[str]] = {-1: [], 1: [], 0: []}
    for (one, baseline), test in zip(pairs, tests, strict=True):
        if one is method:
            sides[shown(test)].append(baseline.name)
    words = {way: ", ".join(names) or "none" for way, names in sides.items()}
    return f"lower than {words[-1]}; higher than {words[1]}; not told apart from {words[0]}"


# -- what was tried ---------------------------------------------------------------------------------------------------


def place(tries: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any]) -> str:
    """Where in its range each number that was tried lies: "rho: the highest of 0.1 to 1"."""
    said = []
    for name, value in chosen.items():
        values = [one["settings"].get(name) for one in tries]
        if not all(isinstance(one, int | float) for one in values) or len(set(values)) < 2:
            continue
        low, high = min(values), max(values)
        where = "the lowest" if value == low else "the highest" if value == high else "inside"
        said.append(f"{name}: {where} of {low:g} to {high:g}")
    return "; ".join(said)


def choices(evidence: Evidence) -> Iterator[str]:
    """The chosen setting of each method, where it lies in its range, and whether it is within the bounds."""
    rows, edges, beyond = [], [], []
    for topology in evidence.topologies:
        tried: dict[str, list[Mapping[str, Any]]] = {}
        for one in evidence.found["tries"]:
            if one["topology"] == topology:
                tried.setdefault(one["method"], []).append(one)
        for method, tries in tried.items():
            chosen = next(one for one in tries if one["chosen"])
            where = place(tries, chosen["settings"])
            if "est of " in where:
                edges.append(f"{method} ({topology}; {where})")
            if not chosen["within"]:
                beyond.append(f"{method} ({topology})")
            score = chosen["scores"]["harmful_score"]
            rows.append(
                [
                    *(topology, method, settings_in_words(chosen["settings"]), where),
                    "" if score is None else f"{whole(score)} %",
                    "within" if chosen["within"] else f"beyond by {100 * chosen['excess']:.1f} points",
                ]
            )
    if not rows:
        yield "Nothing was tuned."
        return
    yield from table(["topology", "method", "chosen", "in its range", "harmful score, validation", "bounds"], rows)
    yield ""
    if edges:
        yield f"At an edge of what was tried, beyond which a better one may lie: {', '.join(edges)}."
    else:
        yield "Every chosen number lies inside of what was tried."
    if beyond:
        yield f"No try is within the bounds, so that the one which exceeds them least was run: {', '.join(beyond)}."
    given = evidence.found["file"]["as_given"]
    if given:
        yield f"Not tuned, and at the settings that the file gives: {', '.join(given)}."


def all_tries(evidence: Evidence) -> Iterator[str]:
    """Every try."""
    rates = ("harmful_score", "accuracy", "benign_refusal", "incoherent")
    rows = []
    for one in evidence.found["tries"]:
        scores = [one["scores"][name] for name in rates]
        rows.append(
            [
                *(one["topology"], one["method"], str(one["number"]), settings_in_words(one["settings"])),
                *("" if score is None else f"{whole(score)} %" for score in scores),
                "" if one["within"] else f"{100 * one['excess']:.1f} points",
                "yes" if one["chosen"] else "",
            ]
        )
    titles = ["topology", "method", "try", "settings", *(name.replace("_", " ") for name in rates)]
    yield from folded(f"All {len(rows)} tries, on validation parts", [*titles, "beyond the bounds", "chosen"], rows)


def all_knowing(evidence: Evidence) -> Iterator[str]:
    """Every attack by somebody who knows a method's rule, on validation parts."""
    rows = [
        [
            *(one["topology"], one["method"], one["attack"], rate(one["scores"] and _share(one["scores"]))),
            "" if one["loss"] is None else f"{100 * one['loss']:.1f} points",
            "within" if one["within"] else "beyond",
            "yes" if one["chosen"] else "",
        ]
        for one in evidence.found["knowing"]
    ]
    titles = ["topology", "method", "attack", "harmful score", "accuracy lost to the plain attack", "bound", "chosen"]
    yield from folded(
        f"All {len(rows)} attacks that the methods' own rules suggest, on validation parts", titles, rows
    )


def _share(scores: Mapping[str, Any]) -> Test:
    return {"value": scores["harmful_score"]}


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield f"|{'---|' * len(titles)}"
    for row in rows:
        yield f"| {' | '.join(cell or '–' for cell in row)} |"


def folded(title: str, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table that a click opens."""
    yield f'<details markdown="1"><summary>{title}</summary>'
    yield ""
    yield from table(titles, rows)
    yield ""
    yield "</details>"
