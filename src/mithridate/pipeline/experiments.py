"""The experiments of a run, their undefended twins among them, resolved to their stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mithridate.errors import InputError
from mithridate.experiment.config import Experiment, canonical, resolve
from mithridate.experiment.sources import Source
from mithridate.files import canonical_json
from mithridate.models import ModelFiles
from mithridate.pipeline.context import NOTHING_ALLOWED, Allowed, contexts_of, located_model
from mithridate.pipeline.stages import ExperimentStages
from mithridate.problems import Findings


def place_of(experiment: str | Path | dict[str, Any]) -> tuple[Path, str, str]:
    """What relative paths of an experiment are relative to, what errors call it, and the name of its run."""
    if isinstance(experiment, dict):
        return Path.cwd(), "experiment", "experiment"
    return Path(experiment).resolve().parent, str(experiment), Path(experiment).stem


def with_undefended(experiments: list[Experiment]) -> list[Experiment]:
    """Puts before each experiment its undefended twin, once; equal experiments are kept once."""
    wanted: dict[str, Experiment] = {}
    for experiment in experiments:
        for each in (undefended(experiment), experiment):
            wanted.setdefault(canonical_json(canonical(each)), each)
    return list(wanted.values())


def undefended(experiment: Experiment) -> Experiment:
    """The same experiment without any defense or repair."""
    align = experiment.align and replace(experiment.align, defense={})
    finetune = experiment.finetune and replace(experiment.finetune, defense={})
    return replace(experiment, align=align, finetune=finetune, repair={}, budget=None)


def seeds_asked(experiments: Sequence[Experiment]) -> list[int]:
    """The seeds that each arm (what is left of an experiment without its seed) is asked for."""
    arms: dict[str, set[int]] = {}
    for experiment in experiments:
        arms.setdefault(canonical_json(canonical(replace(experiment, seed=0))), set()).add(experiment.seed)
    return sorted(set.intersection(*arms.values()))


def stages_of(
    experiments: list[Experiment],
    base: Path,
    where: str,
    progress: bool,
    find_model: Callable[[str], ModelFiles] | None = None,
    allowed: Allowed = NOTHING_ALLOWED,
    findings: Findings | None = None,
) -> list[ExperimentStages]:
    """The stages of each experiment, once all of them have been checked. They hold the experiments resolved.

    Args:
        find_model: finds the files of a model; `resolve_model` by default, which fetches and converts.
        findings: takes up problems that leave stages to look further into; others are raised, with what it has.

    Raises:
        InputError: an experiment, its data or its model is bad, or they have no table in common.
    """
    found = Findings() if findings is None else findings
    asked, experiments = experiments, []
    for experiment in asked:
        made = experiment
        with found.noting():
            made = resolve(experiment, base, where)
        experiments.append(made)
    if len(protocols := {experiment.evaluate.protocol for experiment in experiments}) > 1:
        raise InputError(
            f"{where}: scores of different protocols ({', '.join(sorted(protocols))}) have no table in common. Run "
            "the file once for each, with -o evaluate.protocol=NAME and an --out of its own: what they share is kept."
        )
    one_each = {"model": [e.model for e in experiments], "evaluate.judges": [e.evaluate.judges for e in experiments]}
    for path, values in one_each.items():
        if len({canonical_json(value) for value in values}) > 1:
            raise InputError(
                f"{where}: a table is of one value of {path}, and here are several. Run the file once for each, with "
                f"-o {path}=VALUE and an --out of its own: what they share is kept."
            )
    contexts = contexts_of(experiments, base, progress, find_model, allowed, found, where)
    found.settle(where)  # what a chain is made of must be valid
    chains = []
    for experiment, context in zip(experiments, contexts):
        with found.noting():
            chains.append(ExperimentStages(experiment, context))
    if findings is None or len(chains) < len(experiments):
        found.settle(where)
    return chains


def located(experiment: Experiment, base: Path) -> Experiment:
    """The experiment with whole paths, so that it can be run from its copy in the run's folder."""

    def file(name: str) -> str:
        path = base / Path(name).expanduser()
        return str(path) if path.is_file() else name

    def placed(source: Source) -> Source:
        test = file(source.test) if isinstance(source.test, str) else source.test and placed(source.test)
        return replace(source, source=file(source.source), test=test)

    data = {role: [placed(source) for source in sources] for role, sources in experiment.data.items()}
    launch = file(experiment.accelerate)
    return replace(experiment, model=located_model(experiment.model, base), data=data, accelerate=launch)
