"""`mithridate reproduce`: runs a preset, and puts the paper's numbers beside ours.

The folder holds what a run's folder holds, besides `reproduce.json` and `reproduce.md` (and, where settings are
chosen, `tuning/` and `tuning.json`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mithridate.data.hub import HUB
from mithridate.errors import InputError, MithridateError
from mithridate.evaluation import judges_of
from mithridate.experiment.roles import load_roles
from mithridate.files import replace_file
from mithridate.judges import judge
from mithridate.pipeline.experiments import undefended
from mithridate.pipeline.runner import run_cells
from mithridate.protocols import protocol
from mithridate.results.folder import RunFolder
from mithridate.results.ownership import open_study
from mithridate.statistics.text import whole
from mithridate.studies.presets.book import MARKS, SFT, Preset, preset
from mithridate.studies.presets.scaled import Asked, Case, PresetPlan, plan
from mithridate.studies.presets.tuning import Tried, tuned

MEASURES = ("harmful_score", "accuracy")
TITLES = ("arm", "at", "harmful score, paper", "here [95 %]", "accuracy, paper", "here [95 %]", "prompts", "seeds")


@dataclass(frozen=True)
class ComparedArm:
    """One arm at one place: the paper's numbers with their mark (None: it has none), and ours with intervals."""

    arm: str
    at: str
    paper: dict[str, float | None]
    mark: str | None
    ours: dict[str, dict[str, Any]]
    seeds: int

    def cells(self) -> list[str]:
        """As `TITLES`; shares in percent, the mark behind a paper's number."""
        shown = [self.arm, self.at]
        for name in MEASURES:
            theirs = self.paper.get(name)
            shown += ["-" if theirs is None else f"{100 * theirs:.1f} [{self.mark}]", _rate(self.ours.get(name, {}))]
        score = self.ours.get("harmful_score", {})
        return [*shown, str(score.get("n") or score.get("prompts") or "-"), str(self.seeds)]


@dataclass(frozen=True)
class Reproduction:
    """A preset that was run.

    Attributes:
        folder: where it is written.
        lines: the comparison.
        deviations: in what the run departs from the preset and its protocol.
        tries: how settings were chosen, where they were.
    """

    preset: Preset
    folder: Path
    lines: list[ComparedArm]
    deviations: list[str]
    tries: list[Tried] = field(default_factory=list)


def prepare(name: str, asked: Asked) -> PresetPlan:
    """The plan of a preset, with the undefended run in the topology of each case that has none."""
    made = plan(preset(name), asked)
    cases, seen = [], [case.experiment for case in made.cases]
    for case in made.cases:
        twin = undefended(case.experiment)
        if twin not in seen:
            seen.append(twin)
            own = twin.topology == made.preset.fields["topology"].value or "topology" in case.at
            cases.append(Case(SFT if own else f"{SFT}, topology {twin.topology}", case.at, twin))
        cases.append(case)
    return PresetPlan(made.preset, cases, made.deviations)


def reproduce(name: str, asked: Asked, out: str | Path | None = None, replace: bool = False) -> Reproduction:
    """Runs a preset, or what is asked of it.

    Args:
        name: one of `presets.NAMES`.
        out: the folder; `runs/NAME` by default.
        replace: whether a folder that holds something else is written to all the same; what commands wrote there goes.

    Raises:
        InputError: something asked for is bad, or data are not at hand; nothing has been computed then.
        MithridateError: a stage failed; the next call goes on from what was finished.
    """
    made, base = prepare(name, asked), Path.cwd()
    _at_hand(made, base)
    folder = Path(out) if out else Path("runs") / name
    owner = {"command": "reproduce", "preset": name, **asdict(asked)}
    del owner["arms"]  # more of them extend the same folder
    open_study(folder, made.cases[0].experiment, owner, replace)
    cases, tries = tuned(made, folder, base, owner)
    run_cells([case.experiment for case in cases], folder, base, owner=owner)
    table = RunFolder(folder)
    lines = compare(made.preset, cases, table)
    deviations = [*made.deviations, *table.results["deviations"], *_single_seed(cases), *_inferred(made.preset)]
    found = Reproduction(made.preset, folder, lines, list(dict.fromkeys(deviations)), tries)
    replace_file(folder / "reproduce.json", json.dumps(_json(found), indent=1))
    replace_file(folder / "reproduce.md", markdown(found))
    return found


def compare(chosen: Preset, cases: list[Case], table: RunFolder) -> list[ComparedArm]:
    """The paper's numbers beside those of a run; what both average over, in a last line of each arm."""
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        at = ", ".join(
            f"{path.rpartition('.')[2]} {value:g}" if isinstance(value, float | int) else str(value)
            for path, value in case.at.items()
        )
        groups.setdefault((case.arm, at), []).append(case)
    numbers, lines = chosen.numbers, []
    for (arm, at), mine in groups.items():
        rows = [table.made_by(case.experiment) for case in mine]
        column = mine[0].at.get(numbers.over) if numbers else None
        paper = {name: numbers.cell(name, arm, column) if numbers else None for name in MEASURES}
        mark = numbers.mark if numbers and any(value is not None for value in paper.values()) else None
        lines.append(ComparedArm(arm, at, paper, mark, _ours(rows, table), len(rows)))
    if numbers:
        for arm in dict.fromkeys(case.arm for case in cases):
            means = {name: numbers.means.get(name, {}).get(arm) for name in MEASURES}
            mine = [line for line in lines if line.arm == arm]
            if len(mine) == len(numbers.at) and any(value is not None for value in means.values()):
                ours = {name: {"value": _mean([line.ours[name].get("value") for line in mine])} for name in MEASURES}
                lines.append(ComparedArm(arm, "mean of these", means, numbers.mark, ours, mine[0].seeds))
    return lines


def _ours(rows: list[dict[str, Any]], table: RunFolder) -> dict[str, dict[str, Any]]:
    if len(rows) == 1:
        return {name: rows[0]["rates"][name] for name in MEASURES}
    ids = {row["id"] for row in rows}
    for group in table.results["across_seeds"]:
        if set(group["cells"]) == ids:
            return {name: group["rates"][name] or {} for name in MEASURES}
    raise MithridateError(f"{table.path}: the seeds of {rows[0]['id']} are not together in its table; run it again")


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _at_hand(made: PresetPlan, base: Path) -> None:
    """Loads the data and looks for the judges' models once, so that what is missing is said before anything is
    trained."""
    experiment = made.cases[0].experiment  # all cases have the same data and judges
    chosen, settings = protocol(experiment.evaluate.protocol), experiment.evaluate
    missing = sorted(role for role, given in experiment.data.items() if any(one.source in HUB for one in given))
    try:
        load_roles(experiment.data, base, select=chosen.select if chosen.rows.chooses else None)
    except InputError:
        raise
    except MithridateError as error:
        raise InputError(
            f"{made.preset.name}: {error}. Its data are public, and not shipped: {', '.join(missing)} come from the "
            "Hub. Give files of your own with --data ROLE=FILE, or rehearse on the embedded data with --embedded"
        ) from error
    judges = judges_of(chosen, [judge({name: fields}) for name, fields in settings.judges.items()])
    try:
        for one in judges:
            one.identity()
    except MithridateError as error:
        raise InputError(
            f"{made.preset.name}: the protocol {chosen.name} has a judge that is not available: {error} A judge's "
            "fields are set by -o evaluate.judges='{NAME: {model: FOLDER}}', another protocol by "
            "-o evaluate.protocol=NAME"
        ) from error
    finally:
        for one in judges:
            one.close()


def _inferred(chosen: Preset) -> list[str]:
    """The values of a paper's preset that are not the authors' own."""
    paths = [path for path, given in chosen.sources().items() if given.mark == "I"] if chosen.paper else []
    return [f"inferred or chosen here, not known from the authors (mark I): {', '.join(paths)}"] if paths else []


def _single_seed(cases: list[Case]) -> list[str]:
    seeds = {case.experiment.seed for case in cases}
    return ["one seed, as in the papers: the intervals are over prompts alone"] if len(seeds) == 1 else []


def _rate(share: dict[str, Any]) -> str:
    if share.get("value") is None:
        return "-"
    value = whole(share["value"], 1)
    return value if share.get("low") is None else f"{value} [{whole(share['low'], 1)}, {whole(share['high'], 1)}]"


def _json(found: Reproduction) -> dict[str, Any]:
    return {
        "schema": 1,
        "preset": found.preset.name,
        "paper": found.preset.paper,
        "table": found.preset.numbers and found.preset.numbers.table,
        "lines": [asdict(line) for line in found.lines],
        "deviations": found.deviations,
        "differences": [asdict(note) for note in found.preset.differences],
        "tries": [asdict(one) for one in found.tries],
    }


def markdown(found: Reproduction) -> str:
    """The comparison as Markdown, with every deviation."""
    chosen = found.preset
    lines = [f"# {chosen.name}: {chosen.title}", ""]
    if chosen.numbers:
        lines += [f"The paper's numbers: {chosen.numbers.table} ({chosen.paper}). Percent.", ""]
    lines += [f"| {' | '.join(TITLES)} |", f"|{'---|' * len(TITLES)}"]
    lines += [f"| {' | '.join(line.cells())} |" for line in found.lines]
    lines += ["", "Deviations from the preset:", "", *(f"- {text}" for text in found.deviations or ["nothing"])]
    lines += ["", "What else differs, from what is known:", ""]
    lines += [f"- {note.text} [{note.mark}]" for note in chosen.differences]
    lines += ["", f"Marks: {'; '.join(f'[{mark}] {meaning}' for mark, meaning in MARKS.items())}."]
    return "\n".join(lines) + "\n"
