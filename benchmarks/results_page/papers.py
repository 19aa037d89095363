"""The papers' own numbers (`papers.yaml`, and the tables of the presets) beside a benchmark's: where the order of the
methods is another one, and in what the two set-ups differ. Both are computed; nobody says here what causes what."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from benchmarks.results_page.evidence import Evidence
from benchmarks.results_page.findings import folded, size, table
from mithridate.errors import InputError
from mithridate.experiment.config import Experiment, load_experiment
from mithridate.experiment.yaml12 import read_yaml
from mithridate.methods.steps import optimizer_steps
from mithridate.protocols import protocol
from mithridate.results.decisions import shown
from mithridate.studies.benchmarks.settings import UNDEFENDED
from mithridate.studies.benchmarks.standings import differences
from mithridate.studies.presets import Preset, preset

FILE = Path(__file__).with_name("papers.yaml")
HERE = {"sft": UNDEFENDED, "bso": "lisa, no-proximal-term"}
"""What a paper's row is called here, where that is not its own name."""
MEASURES = ("harmful_score", "accuracy")
TITLES = ("", "there", "here")
Setup = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One method's numbers in a paper's table, as fractions: one a column, and their means.

    Attributes:
        other_rule: why it is not evidence about the method of that name here; empty if it is.
        note: what else has to be known.
    """

    harmful_score: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    means: dict[str, float] = field(default_factory=dict)
    other_rule: str = ""
    note: str = ""

    def mean(self, measure: str) -> float | None:
        cells = getattr(self, measure)
        return self.means.get(measure, sum(cells) / len(cells) if cells else None)


@dataclass(frozen=True)
class PaperTable:
    """A table, its rows by the paper's names, and the set-up that it belongs to."""

    name: str
    paper: str
    source: str
    mark: str
    at: list[str]
    rows: dict[str, PaperRow]
    setup: Setup


@cache
def book() -> tuple[list[PaperTable], dict[str, int]]:
    """The tables, and the numbers of parameters by model."""
    raw = read_yaml(FILE, "the papers' tables")
    tables = [_table(one) for one in raw["tables"]]
    for one in tables:
        for name, row in one.rows.items():
            for measure in MEASURES:
                if (cells := getattr(row, measure)) and len(cells) != len(one.at):
                    said = f"{len(cells)} numbers in {len(one.at)} columns"
                    raise InputError(f"{FILE.name}: {one.name}: {name}.{measure}: {said}")
    return tables, raw["parameters"]


def _table(raw: Mapping[str, Any]) -> PaperTable:
    rows = {name: PaperRow(**row) for name, row in raw["rows"].items()}
    if "preset" not in raw:
        return PaperTable(raw["name"], raw["paper"], raw["source"], raw["mark"], raw["at"], rows, dict(raw["setup"]))
    known = preset(raw["preset"])
    numbers = known.numbers
    assert numbers is not None and known.paper is not None
    setup = setup_of_preset(known) | raw.get("setup", {})
    if raw.get("without_its_numbers"):
        return PaperTable(raw["name"], raw["paper"], raw["source"], raw["mark"], raw["at"], rows, setup)
    own = {
        arm: PaperRow(
            harmful_score=numbers.harmful_score.get(arm, []),
            accuracy=numbers.accuracy.get(arm, []),
            means={measure: means[arm] for measure, means in numbers.means.items() if arm in means},
        )
        for arm in known.variants
    }
    at = [f"{value:g}" for value in numbers.at]
    return PaperTable(raw["name"], known.paper, numbers.table, numbers.mark, at, own | rows, setup)


# -- set-ups ----------------------------------------------------------------------------------------------------------


def setup_of(experiment: Experiment, values: Mapping[str, Sequence[Any]]) -> Setup:
    """What a set-up is, in a few words for each part of it; what an experiment does not say is left out.

    Args:
        values: of what is varied, by path.
    """
    used = protocol(experiment.evaluate.protocol)
    finetune, align, data = experiment.finetune, experiment.align, experiment.data
    found: Setup = {"model": str(experiment.model), "judge": used.judge.name, "protocol": used.name}
    found["topology"] = experiment.topology
    if experiment.adapter:
        found["adapter"] = f"r {experiment.adapter['r']} on {', '.join(experiment.adapter['target_modules'])}"
    for role, words in (("alignment", "alignment data"), ("attacker_harmful", "harmful data"), ("task", "task")):
        if role in data:
            found[words] = ", ".join(f"{one.source} {one.name or ''}".strip() for one in data[role])
    if align and "alignment" in data and (rows := data["alignment"][0].take):
        found |= {"alignment rows": str(rows), "alignment steps": str(optimizer_steps(align.training, rows))}
    elif align and align.training.get("max_steps", -1) > 0:
        found["alignment steps"] = str(align.training["max_steps"])
    if align:
        found["alignment's learning rate"] = _numbers([align.training.get("learning_rate")])
    if finetune:
        attack = finetune.harmful
        sizes = values.get("finetune.attack.size", [attack.size])
        ratios = values.get("finetune.attack.harmful_ratio", [attack.harmful_ratio])
        lengths = values.get("finetune.training.max_steps")
        steps = lengths or [optimizer_steps(finetune.training, rows) for rows in sizes]
        rates = values.get("finetune.training.learning_rate", [finetune.training.get("learning_rate")])
        found |= {"user's rows": _numbers(sizes), "harmful ratio": _numbers(ratios), "user's steps": _numbers(steps)}
        found |= {"user's learning rate": _numbers(rates)}
    return {name: value for name, value in found.items() if value}


def setup_of_preset(known: Preset) -> Setup:
    """That of a preset's table; where an arm has a topology of its own, that is said."""
    arms = {arm: load_experiment(known.experiment(arm)) for arm in known.variants}
    plain = next(iter(arms.values()))
    found = setup_of(plain, {path: given.value for path, given in known.sweep.items()})
    others = {arm: one.topology for arm, one in arms.items() if one.topology != plain.topology}
    if others:
        found["topology"] += " (" + ", ".join(f"{arm}: {topology}" for arm, topology in others.items()) + ")"
    return found | {"seeds": "1", "harmful prompts": str(protocol(plain.evaluate.protocol).rows.count)}


def setup_here(evidence: Evidence, topology: str) -> Setup:
    """That of the benchmark, in one of its topologies."""
    file = evidence.found["file"]
    found = setup_of(evidence.experiment, file["attack"]) | {"topology": topology, "seeds": str(len(file["seeds"]))}
    scores = [one["rates"]["harmful_score"] or {} for one in evidence.standings(topology).values()]
    # the most of any method: a prompt that one seed has no score of is missing from a mean over seeds
    if asked := max(score.get("prompts", score.get("n")) or 0 for score in scores):
        found["harmful prompts"] = str(asked)
    return found


def different(theirs: Setup, ours: Setup, parameters: Mapping[str, int]) -> list[list[str]]:
    """In what two set-ups differ, of what is known of both, as `TITLES`."""
    rows = [[name, theirs[name], ours[name]] for name in theirs if name in ours and ours[name] != theirs[name]]
    sizes = [parameters.get(one.get("model", "")) for one in (theirs, ours)]
    if sizes[0] and sizes[1] and sizes[0] != sizes[1]:
        rows.insert(0, ["parameters, millions", *(f"{one / 1e6:.0f}" for one in sizes if one)])
    return rows


def _numbers(values: Sequence[Any]) -> str:
    known = [value for value in values if value is not None]
    return ", ".join(f"{value:g}" if isinstance(value, int | float) else str(value) for value in known)


# -- the order --------------------------------------------------------------------------------------------------------


def orders(evidence: Evidence, topology: str, theirs: PaperTable) -> tuple[dict[str, float], dict[str, float]]:
    """Mean harmful scores of the methods of both by the names here, from the lowest up: the paper's, and ours."""
    rows = evidence.standings(topology)
    paper, ours = {}, {}
    for name, row in theirs.rows.items():
        here, score = HERE.get(name, name), row.mean("harmful_score")
        mine = (rows[here]["rates"]["harmful_score"] or {}).get("value") if here in rows else None
        if mine is not None and score is not None and not row.other_rule:
            paper[here], ours[here] = round(score, 9), round(mine, 9)  # what is equal but for rounding ties
    return _sorted(paper), _sorted(ours)


def _sorted(scores: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(scores.items(), key=lambda item: item[1]))


def _chain(scores: Mapping[str, float]) -> str:
    """ "booster < lisa = vaccine"."""
    names = list(scores)
    signs = [" = " if scores[a] == scores[b] else " < " for a, b in pairwise(names)]
    return "".join(f"{name}{sign}" for name, sign in zip(names, [*signs, ""], strict=True))


def compared(evidence: Evidence, topology: str, theirs: PaperTable, parameters: Mapping[str, int]) -> Iterator[str]:
    """Whether the order is the paper's; else which change places, by our tests, and what differs."""
    paper, ours = orders(evidence, topology, theirs)
    if len(paper) < 2:
        yield f"`{evidence.name}` ({topology}): no two of its methods were run, by these rules."
        return
    listed = f"by harmful score, there: {_chain(paper)}; in `{evidence.name}` ({topology}): {_chain(ours)}"
    swapped = [(a, b) for a, b in combinations(paper, 2) if ours[a] > ours[b]]
    if not swapped:
        yield f"No two change places {listed}."
        return
    yield f"Another order {listed}."
    yield ""
    entrants = evidence.entrants(topology)
    tests = differences([(entrants[a], entrants[b]) for a, b in swapped], evidence.outcomes)
    for (a, b), test in zip(swapped, tests, strict=True):
        if not test or test["difference"] is None:
            continue
        sure = "shown" if shown(test) else "not shown"
        yield f"- *{a}* is below *{b}* there; here it is above: {size(test)}, which is {sure} by our test."
    yield ""
    rows = different(theirs.setup, setup_here(evidence, topology), parameters)
    yield from folded(f"In what the two set-ups differ, as far as both are known ({len(rows)})", TITLES, rows)


# -- what is written --------------------------------------------------------------------------------------------------


def numbers(theirs: PaperTable) -> Iterator[str]:
    """A paper's table, in percent, with the notes on its rows."""
    yield f"{theirs.paper} [{theirs.mark}]: {theirs.source}. Percent."
    yield ""
    lines = []
    for measure in MEASURES:
        for name, row in theirs.rows.items():
            if (mean := row.mean(measure)) is None:
                continue
            cells = getattr(row, measure) or [None] * len(theirs.at)
            mark = "" if not (row.other_rule or row.note) else " *"
            lines.append([f"{measure.replace('_', ' ')}, {name}{mark}", *map(_percent, cells), _percent(mean)])
    yield from table(["", *theirs.at, "mean"], lines)
    notes = [f"{name}: {_note(row)}" for name, row in theirs.rows.items() if row.other_rule or row.note]
    if notes:
        yield ""
        yield f"\\* {'; '.join(notes)}."
    yield ""
    setup = [f"{name} {value}" for name, value in theirs.setup.items()]
    yield f"Set-up: {'; '.join(setup)}."


def _note(row: PaperRow) -> str:
    return "; ".join(filter(None, [row.other_rule and f"another rule than the one here: {row.other_rule}", row.note]))


def _percent(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{100 * value:.4g}"
