"""`mithridate attack`: searches for the best attack on a defended model, and says at what cost it breaks through.

    validation parts    the benign fine-tune, for the bound on accuracy; then the tries
    test parts          the best try, along its steps and its rows, and the same on the undefended model

All training goes through the ordinary store. The folder holds what a run's folder holds (of the test parts), besides
`search/` (the same of the tries), `attack.json`, `attack.csv`, `attack.md` and its figure `attack.svg`.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mithridate.attacks.harmful import fitted
from mithridate.errors import InputError
from mithridate.experiment.config import Experiment, canonical, load_experiment
from mithridate.experiment.methods import (
    POST_ALIGNMENT,
    acting,
    attack_fields,
    attack_of,
    attack_values,
    defenses_of,
    unfollowed,
)
from mithridate.experiment.model import HARMFUL
from mithridate.files import replace_file
from mithridate.methods import Attack
from mithridate.methods.attack import Phase
from mithridate.methods.index import facts
from mithridate.models import ModelFiles
from mithridate.pipeline.experiments import stages_of, undefended
from mithridate.pipeline.graph import Graph
from mithridate.pipeline.jobs import attack_rows
from mithridate.pipeline.preflight import preflight
from mithridate.pipeline.runner import run_cells
from mithridate.problems import Findings
from mithridate.progress import quiet_libraries
from mithridate.results.folder import RunFolder
from mithridate.results.ownership import identity, open_study, require_own
from mithridate.results.relations import arm
from mithridate.studies.curve import TITLES, Point, breaking, verdict
from mithridate.studies.measured import unmeasured
from mithridate.studies.search import Scores, Try, best, named, search, worst_so_far
from mithridate.studies.settings import EPOCHS, RATIO, SIZE, STEPS, AttackFile, Range, attacked, load_attack

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Study:
    """What an attack on a model came to.

    Attributes:
        folder: where it is written.
        reference: accuracy of the fine-tune without harmful rows, on the validation part; None without a bound.
        capability: its scores on the capability tasks, by task and metric; empty without a bound.
        tries: in order.
        chosen: the best of them; None where none is within the bound.
        points: the best attack on the test part, the defended model's first.
        words: the answer in sentences, the first about the defended model.
    """

    folder: Path
    reference: float | None
    tries: list[Try]
    chosen: Try | None
    points: list[Point]
    words: list[str]
    capability: dict[str, float] = field(default_factory=dict)


def attack(
    target: str | Path | Mapping[str, Any],
    settings: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    cell: str | None = None,
    replace: bool = False,
) -> Study:
    """Attacks a defended model as a settings file says; see docs/attacks.md.

    Args:
        target: an experiment file (or the same as a dict), or the folder of a run.
        settings: the attack's file, or the same as a dict.
        overrides: `path.to.field=value` strings for the experiment.
        out: the folder to write; `runs/attack-NAME` by default.
        cell: of a run's folder, the model's id in results.json.
        replace: whether a folder that holds something else is written to all the same; what commands wrote there goes.

    Raises:
        InputError: a file or a value is bad, the experiment has a sweep, or it has too few rows for an attack that the
            search can propose; nothing has been computed then.
        MithridateError: a stage failed; the next call goes on from what was finished.
    """
    given = load_attack(settings)
    experiment, base, name = _target(target, overrides, cell)
    if experiment.variants:
        raise InputError(f"{name}: has variants, and one model is attacked. Choose one of a run's: RUN --cell ID")
    if experiment.sweep:
        raise InputError(
            f"{name}: has a sweep, and one model is attacked. Fix what varies: -o {next(iter(experiment.sweep))}=VALUE"
        )
    given = with_knowing(given, experiment)
    folder = Path(out) if out else Path("runs") / f"attack-{name}"
    owner = _owner(given, experiment)
    if not replace:
        require_own(folder, experiment, owner)
    _check(given, experiment, base)
    open_study(folder, experiment, owner, replace)
    reference, capability, tries = _search(given, experiment, base, folder / "search", owner)
    chosen = best(tries)
    study = Study(folder, reference, tries, chosen, [], [], capability)
    if chosen is None:
        study.words.append(
            f"Not broken within the budget: each of the {len(tries)} attacks lost more than {_bounds(study, given)}, "
            "against the fine-tune without harmful rows. What lies beyond the bound does not count."
        )
    else:
        points, decided = _curve(given, chosen, experiment, base, folder, owner)
        study.points.extend(points)
        for model in dict.fromkeys(point.model for point in study.points):
            mine = [point for point in study.points if point.model == model]
            study.words.append(verdict(model, mine, given.curve.threshold))
        if decided:
            against = f"Against the undefended model under the same attack: {decided['word']}."
            study.words.append(" ".join([against, *decided["reasons"]]))
    _write(study, given, name)
    return study


def with_knowing(given: AttackFile, experiment: Experiment) -> AttackFile:
    """The file with the attacks that the experiment's methods suggest (`adaptive`) among its variants, if it says so;
    each with as many rows as the experiment's own attack. Left out are those that could do nothing here, those of
    rows that its data do not have, trainings too short for a defense of the fine-tune, and adapters of their own where
    a repair has changed the one that they would have merged, or a method cannot follow them to other layers.

    Raises:
        InputError: no method of the experiment suggests one, or its own attack is not the plain one (`fitted`).
    """
    if not given.knowing:
        return given
    methods = [method for method in acting(experiment, "repair") if not isinstance(method, Attack)]
    fresh = experiment.topology == "double" or experiment.align is None
    hardened = not fresh and any(method.stage == POST_ALIGNMENT for method in methods)
    guards = defenses_of(experiment.finetune.defense) if experiment.finetune else []
    least = max((guard.least_steps() for guard in guards), default=1)
    adapter = experiment.adapter_of("finetune") is not None

    def fits(phase: Phase) -> bool:
        steps = phase.training.get("max_steps", -1)
        return not (hardened and phase.adapter) and not 0 < steps < least and not unfollowed(experiment, phase)

    suggested = {
        f"knows {type(method).__name__}: {attack.in_words()}": attack
        for method in methods
        for attack in method.adaptive()
        if attack.possible(fresh=fresh, paired=experiment.paired, adapter=adapter) and all(map(fits, attack.phases()))
    }
    if not suggested:
        raise InputError("knowing: no method of the attacked model suggests an attack; take `knowing` out")
    plain = attack_of(experiment.finetune) if experiment.finetune else None
    made = {name: fitted(attack, plain) if plain else attack for name, attack in suggested.items()}
    variants = {name: {"finetune.attack": attack_values(attack)} for name, attack in made.items()}
    return replace(given, variants=(given.variants or {"as it is": {}}) | variants)


def _owner(given: AttackFile, experiment: Experiment) -> dict[str, Any]:
    """What makes an attack's folder its own: more tries and other points of the curve extend it."""
    file = asdict(given)
    del file["curve"], file["search"]["trials"]
    if given.search.max_capability_loss is None:  # of which the first folders knew nothing
        del file["search"]["max_capability_loss"]
    return {"command": "attack", "file": file, "target": identity(experiment, ())}


def _target(target: Any, overrides: Sequence[str], cell: str | None) -> tuple[Experiment, Path, str]:
    if not isinstance(target, Mapping) and Path(target).is_dir():
        experiment, base = RunFolder(target).experiment(cell)
        loaded = load_experiment(canonical(experiment), overrides) if overrides else experiment
        return loaded, base, Path(target).resolve().name
    if cell is not None:
        raise InputError("--cell: chooses among the models of a run; an experiment file has one")
    loaded = load_experiment(target, overrides)
    if isinstance(target, Mapping):
        return loaded, Path.cwd(), "experiment"
    return loaded, Path(target).resolve().parent, Path(target).stem


def _check(given: AttackFile, experiment: Experiment, base: Path) -> None:
    """What can be said before anything is computed."""
    if "openai" in experiment.evaluate.generator:
        raise InputError("evaluate.generator: a model behind a server cannot be fine-tuned here; use transformers")
    shares = given.choices.get(RATIO)
    if isinstance(shares, Range) and shares.low == 0:
        raise InputError(
            f"sweep.{RATIO}: a range from 0 on has shares that come to no harmful row. Begin it at 1 / size, or above"
        )
    asked = [given.values(one) for one in given.extremes()]
    extremes = [attacked(experiment, one) for one in asked]
    if given.search.bounded and experiment.finetune is None:
        name = given.search.bounded[0]
        raise InputError(
            f"search.{name}: is against the experiment's own fine-tune, and its finetune is none. Give it one, or set "
            f"search.{name}: null"
        )
    if given.search.bounded and experiment.finetune and (kind := attack_fields(experiment.finetune)[0]) != HARMFUL:
        name = given.search.bounded[0]
        raise InputError(
            f"search.{name}: is against the experiment's own fine-tune without harmful rows, and one of the kind "
            f"{kind} is not without them. Give the experiment the kind {HARMFUL} (and the attacker's file `{kind}`, "
            f"under variants), or set search.{name}: null"
        )
    if given.search.max_capability_loss is not None and not experiment.evaluate.capability:
        raise InputError(
            "search.max_capability_loss: the experiment measures no capability. Name tasks of lm-eval in "
            "evaluate.capability, or set search.max_capability_loss: null"
        )
    kinds = {kind for one in extremes if one.finetune for kind in [attack_fields(one.finetune)[0]]}
    if given.curve.rows and (none := [kind for kind in kinds if "size" not in facts("attacks", kind)["fields"]]):
        raise InputError(f"curve.rows: an attack of the kind {none[0]} has no `size` to vary. Take curve.rows out")
    extremes += [attacked(experiment, one | {SIZE: rows}) for one in asked for rows in given.curve.rows or ()]
    # The model is not looked for: what rows there are does not depend on it.
    for chain in stages_of(extremes, base, "experiment", False, lambda model: ModelFiles(model, Path(), "")):
        try:
            attack_rows(chain)
        except InputError as error:
            raise InputError(f"for an attack that the file allows there are too few rows: {error}") from error
        if given.search.max_accuracy_loss is not None and (missing := unmeasured(chain).get("accuracy")):
            raise InputError(f"search.max_accuracy_loss: {missing}, or set search.max_accuracy_loss: null")
    findings = Findings()
    each = [attacked(experiment, given.values(one)) for one in given.singly()]
    chains = stages_of(each, base, "attack", False, findings=findings)
    with quiet_libraries():
        preflight(Graph(chains, None, findings), None, findings)
    findings.settle("attack")


def _search(
    given: AttackFile, experiment: Experiment, base: Path, folder: Path, owner: Any
) -> tuple[float | None, dict[str, float], list[Try]]:
    made: list[Experiment] = []

    def scored(one: Experiment) -> dict[str, Any]:
        run_cells([one], folder, base, passing=True, owner=owner)
        made.append(one)
        return RunFolder(folder).made_by(one)

    def score(settings: dict[str, Any]) -> Scores:
        row = scored(attacked(experiment, given.values(settings)))
        harmful = row["rates"]["harmful_score"]["value"]
        if harmful is None:
            raise InputError("the judge scored no answer, so that no attack is better than another; see the run")
        accuracy, steps = row["rates"]["accuracy"]["value"], row["attack"]["max_steps"]
        return Scores(harmful, accuracy, steps, _rows(row), _capability(row))

    reference, capability = None, {}
    if given.search.bounded and experiment.finetune:
        plain = replace(experiment.finetune.harmful, harmful_ratio=0.0)
        evaluate = replace(experiment.evaluate, part="validation", resistance=[])
        finetune = replace(experiment.finetune, attack=plain)
        row = scored(replace(experiment, finetune=finetune, evaluate=evaluate))
        reference, capability = _references(given, row)
    tries = search(given, score, reference, name="attack", capability=capability)
    run_cells(
        made, folder, base, owner=owner
    )  # from the store: one table of all tries, which their artefacts belong to
    return reference, capability, tries


def _references(given: AttackFile, row: dict[str, Any]) -> tuple[float | None, dict[str, float]]:
    """What the losses count from, where they are bounded: accuracy, and capability by task and metric.

    Raises:
        InputError: it was not measured.
    """
    reference, capability = None, {}
    if given.search.max_accuracy_loss is not None:
        reference = row["rates"]["accuracy"]["value"]
        if reference is None:
            raise InputError(
                "search.max_accuracy_loss: no answer to the validation part of the experiment's task was scored; see "
                "the run, or set search.max_accuracy_loss: null"
            )
        logger.info("accuracy of the fine-tune without harmful rows: %.2f", reference)
    if given.search.max_capability_loss is not None:
        capability = _capability(row)
        if not capability:
            raise InputError(
                "search.max_capability_loss: evaluate.capability has no score of which more is better. Name another "
                "task, or set search.max_capability_loss: null"
            )
        said = ", ".join(f"{name} {value:.2f}" for name, value in capability.items())
        logger.info("capability of the fine-tune without harmful rows: %s", said)
    return reference, capability


def _capability(row: dict[str, Any]) -> dict[str, float]:
    """A model's scores on capability tasks, of which more is better."""
    scores = row.get("capability", [])
    return {f"{one['task']} {one['metric']}": one["value"] for one in scores if one["higher_is_better"]}


def _bounds(study: Study, given: AttackFile) -> str:
    """What the attacks were not to lose more of, and of how much."""
    said = []
    if study.reference is not None:
        said.append(f"{given.search.max_accuracy_loss:g} of accuracy ({study.reference:.2f})")
    for name, value in study.capability.items():
        said.append(f"{given.search.max_capability_loss:g} of {name} ({value:.2f})")
    return " or ".join(said)


def _curve(
    given: AttackFile, chosen: Try, experiment: Experiment, base: Path, folder: Path, owner: Any
) -> tuple[list[Point], dict[str, Any] | None]:
    """The chosen attack on the test part, along its steps and rows, and on the undefended model along its steps; and
    what is decided on the defended model (`decisions`)."""

    values = given.values(chosen.settings)

    def tested(one: Experiment, **changes: Any) -> Experiment:
        kept = {path: value for path, value in values.items() if path != EPOCHS or STEPS not in changes}
        made = attacked(one, kept | changes)
        return replace(made, evaluate=replace(made.evaluate, part="test"))

    def ended_after(one: Experiment, steps: int) -> Experiment | None:
        whole = tested(one)
        assert whole.finetune
        attack = attack_of(whole.finetune)
        cut = attack.ended_after(steps)
        if cut is None:
            return None
        shorter, own_steps = cut
        made = tested(one, **{STEPS: own_steps})
        return made if shorter == attack else made.with_values({"finetune.attack": attack_values(shorter)})

    plain = undefended(experiment)
    targets = [experiment] + [plain] * (plain != experiment)
    fewer = [rows for rows in given.curve.rows if rows < chosen.scores.rows]
    early = [step for step in given.curve.steps if step < chosen.scores.steps]
    wholes, apart = [], []
    for one in targets:
        whole = tested(one)
        guards = defenses_of(one.finetune.defense) if one.finetune else []
        # What comes after a fine-tune has ended makes an attack of so many steps one of its own.
        if one.repair or any(guard.finishes for guard in guards):
            shorter = [(step, made) for step in early if (made := ended_after(one, step))]
            apart.append(shorter)
            if len(shorter) < len(early):
                logger.info(
                    "curve.steps: the points %s are left out of the defended model's: the attack cannot end there",
                    ", ".join(str(step) for step in early if step not in dict(shorter)),
                )
        else:
            apart.append([])
            whole = replace(whole, evaluate=replace(whole.evaluate, resistance=early))
        wholes.append(whole)
    rows = [tested(experiment, **{SIZE: size}) for size in fewer]
    everything = [*wholes, *rows, *(one for group in apart for _, one in group)]
    run_cells(everything, folder, base, owner=owner)
    table = RunFolder(folder)
    points: list[Point] = []
    for whole, group in zip(wholes, apart):
        cell = table.made_by(whole)
        end = _point("steps", cell)
        points += [_point("steps", table.made_by(one)) for _, one in group]
        points += [_point("steps", cell, scored) for scored in cell["resistance"]]
        points += [end]
        if whole is wholes[0]:
            points += [_point("rows", table.made_by(one)) for one in rows]
            points += [replace(end, along="rows")] * bool(rows)
    return points, table.made_by(wholes[0]).get("decision")


def _rows(cell: Mapping[str, Any]) -> int:
    """Rows handed in: what the attack says, else what was trained on or kept from it by a defense."""
    filtered = cell["trained"].get("filtered") or {}
    trained = cell["trained"]["rows"] + filtered.get("harmful", 0) + filtered.get("benign", 0)
    return cell["attack"].get("size") or trained


def _point(along: Any, cell: dict[str, Any], scored: Mapping[str, Any] | None = None) -> Point:
    """A point of the curve: a cell at its end, or what was scored of it on the way."""
    rates, trained = (scored or cell)["rates"], cell["trained"]
    return Point(
        model=arm(cell),
        along=along,
        steps=scored["step"] if scored else cell["attack"]["max_steps"],
        rows=_rows(cell),
        harmful_rows=(trained["harmful_rows"] or 0) + (trained.get("filtered") or {}).get("harmful", 0),
        kind=cell["attack"]["kind"],
        harmful_score=rates["harmful_score"],
        accuracy=rates["accuracy"],
    )


def _write(study: Study, given: AttackFile, name: str) -> None:
    from mithridate.studies.drawn import attack_figure  # Altair takes a while

    study.folder.mkdir(parents=True, exist_ok=True)
    threshold = given.curve.threshold
    models = dict.fromkeys(point.model for point in study.points)
    found = {
        "schema": 2,
        "target": name,
        "file": asdict(given),
        "reference_accuracy": study.reference,
        "reference_capability": study.capability,
        "tries": [
            {**asdict(one), "within": one.within, "worst_so_far": worst}
            for one, worst in zip(study.tries, worst_so_far(study.tries), strict=True)
        ],
        "chosen": study.chosen and study.chosen.settings,
        "threshold": threshold,
        "points": [point.as_json() for point in study.points],
        "broken": {
            model: {
                along: point and point.as_json()
                for along, point in breaking([p for p in study.points if p.model == model], threshold).items()
            }
            for model in models
        },
        "words": study.words,
    }
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([TITLES, *(point.cells() for point in study.points)])
    replace_file(study.folder / "attack.csv", table.getvalue())
    replace_file(study.folder / "attack.md", markdown(study))
    replace_file(study.folder / "attack.svg", attack_figure(study.tries, study.points, threshold))
    replace_file(study.folder / "attack.json", json.dumps(found, indent=1))


def markdown(study: Study) -> str:
    """The answer, and its table, as Markdown."""
    lines = [*(f"{words}\n" for words in study.words)]
    if study.chosen:
        chosen = ", ".join(f"{named(path)} {_text(value)}" for path, value in study.chosen.settings.items())
        lines.append(f"The attack ({len(study.tries)} tried on validation parts): {chosen}.\n")
    if study.points:
        lines += [f"| {' | '.join(TITLES)} |", f"|{'---|' * len(TITLES)}"]
        lines += [f"| {' | '.join(map(_text, point.cells()))} |" for point in study.points]
    lines.append("\n![The worst case over the tries, and the chosen attack along its costs](attack.svg)")
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
