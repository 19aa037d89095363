"""Runs experiments against the store and fills the run's folder (`folder.py`): what `mithridate run` does."""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mithridate.environment import use_huge_pages
from mithridate.errors import InputError
from mithridate.experiment.config import (
    Experiment,
    canonical,
    load_cells,
    load_experiment,
    resolve,
    swept_paths,
    swept_values,
)
from mithridate.files import canonical_json
from mithridate.pipeline.inventory import refer
from mithridate.problems import Findings, nearest
from mithridate.progress import time_left
from mithridate.results.folder import PAGE_CELLS, RunFolder
from mithridate.results.ownership import require_own

if TYPE_CHECKING:
    import pandas as pd

    from mithridate.experiment.roles import Source
    from mithridate.models import ModelFiles
    from mithridate.pipeline.executors import Executor
    from mithridate.pipeline.executors.base import Crew
    from mithridate.pipeline.stages import Chain, Stage, Workshop
    from mithridate.results.table import Cell

logger = logging.getLogger(__name__)

MODEL_STAGES = ("align", "finetune", "repair")
_UNTIL = (*MODEL_STAGES, "evaluate")


@dataclass(frozen=True)
class Allowed:
    """What no experiment file can ask for, and the command line can: as of `run`."""

    report_to: tuple[str, ...] = ()
    remote_code: bool = False


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and its table as in results.json."""

    folder: Path

    @cached_property
    def results(self) -> dict[str, Any]:
        return RunFolder(self.folder).results

    def records(self) -> pd.DataFrame:
        """One row per answer: cell, prompt, answer, verdict, judge, protocol, ... and what further judges said."""
        return RunFolder(self.folder).frame()

    @property
    def cells(self) -> list[str]:
        """The ids of the scored models."""
        return [cell["id"] for cell in self.results["cells"]]

    @property
    def report(self) -> Path:
        return self.folder / "report.html"


def run(
    experiment: str | Path | dict[str, Any],
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    until: str | None = None,
    progress: bool = True,
    executor: Executor | None = None,
    replace: bool = False,
    report_to: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Run:
    """Runs an experiment file (or the same as a dict), every cell of its sweep, and writes the run's folder.

    Each cell is scored after alignment, after the attack and after the repair; the undefended run of the same
    topology, attack and seed is added where the file itself does not ask for it, for a harmful score says little
    without it. What the store holds already is not computed again.

    Args:
        experiment: path of a YAML file, or its content as a dict.
        overrides: `path.to.field=value` strings, applied before validation.
        out: the run's folder; `runs/<name of the file>` by default.
        until: stop after this stage: `align`, `finetune` or `repair` (nothing is evaluated then), or `evaluate` (the
            undefended run is not added).
        progress: show how far the run is: its stages, and bars on a terminal or lines in a log file.
        executor: what makes the cells at the same time: `Local(workers=8)`, `Ray(...)` or `Slurm(...)` of
            `mithridate.pipeline.executors`. By default this process makes one after the other.
        replace: whether a folder that another experiment, or the user, has filled is written to all the same: what
            commands wrote there goes first.
        report_to: services that are told of the trainings, as SFTConfig's field of that name. An experiment file
            cannot ask for any.
        trust_remote_code: whether Python files that come with the model are run. Stages made with them have keys of
            their own.

    Raises:
        InputError: the file, a field, `until`, the data or the model is bad, or the folder is not this run's; nothing
            has been computed then, and every problem that was found is named.
        MithridateError: a stage failed; what was finished stays in the store and the next run goes on from there.
    """
    if isinstance(overrides, str):
        raise InputError(f"overrides: expected a list of texts, got one; give [{overrides!r}]")
    if until not in (None, *_UNTIL):
        raise InputError(f"until: no such stage `{until}`{nearest(until, _UNTIL)}")
    loaded, cells = load_cells(experiment, list(overrides))
    base, where, name = place_of(experiment)
    folder = Path(out) if out else Path("runs") / name
    cells = with_undefended(cells) if until is None else cells
    return run_cells(
        cells,
        folder,
        base,
        until=until,
        progress=progress,
        source=loaded,
        where=where,
        executor=executor,
        replace=replace,
        allowed=Allowed(tuple(report_to), trust_remote_code),
    )


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
    return replace(experiment, align=align, finetune=finetune, repair={})


def seeds_asked(experiments: Sequence[Experiment]) -> list[int]:
    """The seeds that each arm (what is left of an experiment without its seed) is asked for."""
    arms: dict[str, set[int]] = {}
    for experiment in experiments:
        arms.setdefault(canonical_json(canonical(replace(experiment, seed=0))), set()).add(experiment.seed)
    return sorted(set.intersection(*arms.values()))


def run_cells(
    experiments: list[Experiment],
    folder: Path,
    base: Path,
    *,
    until: str | None = None,
    progress: bool = True,
    source: Experiment | None = None,
    where: str = "experiment",
    notes: Sequence[str] = (),
    notify: Callable[[dict[str, Any]], None] | None = None,
    executor: Executor | None = None,
    passing: bool = False,
    owner: Any = None,
    files: Mapping[str, str] = {},
    replace: bool = False,
    allowed: Allowed = Allowed(),
) -> Run:
    """Runs the chains of `experiments` in order and writes the run's folder after each scored cell.

    Args:
        source: what is written as the resolved experiment (with its sweep); the first experiment if not given.
        where: the experiment file's name, for errors.
        notes: what a reader of the table should know, besides what the data give rise to.
        notify: called with the table (as in results.json) each time it is written: after each cell, unless they
            are quick and many.
        executor: what makes the stages; this process if not given.
        passing: the table is one of several that the folder has in turn (the tries of a search): there is no page of
            it, and what the earlier ones stand on stays in use.
        owner: what the folder belongs to, in JSON types; `source`, if not given.
        files: what is written into the folder besides, by name.
        replace, allowed: as of `run`.

    Raises:
        InputError: with every problem that is cheap to find; nothing has been computed then.
    """
    use_huge_pages()
    source, findings = source or experiments[0], Findings()
    chains = chains_of(experiments, base, where, progress, None, allowed, findings)
    # Where it is one of those that are run, what is written says all that was resolved.
    resolved = (chain.experiment for chain, one in zip(chains, experiments) if one == source)
    source = located(next(resolved, source), base)
    if not replace:
        with findings.noting():
            require_own(folder, source, owner)
    with quiet_libraries(), stages_told(progress), contextlib.ExitStack() as ending:
        for chain in chains:
            ending.callback(chain.shop.close)
        look_ahead(chains, executor, until, findings, page=not passing)
        findings.settle(where)
        filling = RunFolder(folder, base)
        filling.start(source, until not in MODEL_STAGES, owner, files, replace)
        return _run_chains(chains, filling, base, until, source, notes, notify, executor, ending, passing)


def look_ahead(
    chains: list[Chain],
    executor: Executor | None,
    until: str | None,
    findings: Findings,
    page: bool = True,
) -> None:
    """Notes what would stop a run of these chains later on, as far as it is cheap to find. `page`: whether it ends in
    one."""
    from mithridate.pipeline import precheck

    with findings.noting():
        if executor:
            executor.check(chains)
    with findings.noting():
        precheck.services(chains[0].shop.report_to)
    scored, plans = until not in MODEL_STAGES, []
    for chain in chains:
        chain.preflight(not (executor and executor.elsewhere), findings, scored)
    with findings.noting():
        plans = plans_of(chains) if scored else []
    for text in precheck.extras(chains if scored else [], page and 0 < len(plans) <= PAGE_CELLS):
        with findings.noting():
            raise InputError(text)


def chains_of(
    experiments: list[Experiment],
    base: Path,
    where: str,
    progress: bool,
    find_model: Callable[[str], ModelFiles] | None = None,
    allowed: Allowed = Allowed(),
    findings: Findings | None = None,
) -> list[Chain]:
    """The chain of each experiment, once all of them have been checked. The chains hold the experiments
    resolved.

    Args:
        find_model: finds the files of a model; `resolve_model` by default, which fetches and converts.
        findings: takes up problems that leave chains to look further into; others are raised, with what it has.

    Raises:
        InputError: an experiment, its data or its model is bad, or they have no table in common.
    """
    from mithridate.pipeline.stages import Chain

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
    shops = workshops(experiments, base, progress, find_model, allowed, found, where)
    found.settle(where)  # what a chain is made of must be valid
    chains = []
    for experiment, shop in zip(experiments, shops):
        with found.noting():
            chains.append(Chain(experiment, shop))
    if findings is None or len(chains) < len(experiments):
        found.settle(where)
    return chains


def _run_chains(
    chains: list[Chain],
    filling: RunFolder,
    base: Path,
    until: str | None,
    source: Experiment,
    extra: Sequence[str],
    notify: Callable[[dict[str, Any]], None] | None,
    executor: Executor | None,
    ending: contextlib.ExitStack,
    passing: bool,
) -> Run:
    from mithridate.results.table import Table

    folder = filling.path
    plans = [] if until in MODEL_STAGES else plans_of(chains)
    notes = [*extra, *_notes(chains)]
    for note in notes:
        logger.info("%s", note)

    if until in MODEL_STAGES:
        stages = [(chain, stage) for chain in chains for stage in chain.upto(until)]
        _refer(folder, stages)
        maker = _maker(stages, executor, base, folder, ending)
        for chain, stage in stages:
            maker.make(chain, stage)
            logger.info("%s: %s", stage.name, chain.shop.folder(stage))
        return Run(folder)

    stages = [(plan.chain, stage) for plan in plans for stage in plan.stages()]
    _refer(folder, stages)
    maker = _maker(stages, executor, base, folder, ending)
    # A judge with a model of its own comes last, so that it is loaded once and not beside a model in training.
    if any(judge.about.size != "none" for chain in chains for judge in chain.judges()):
        for chain, stage in stages:
            maker.make(chain, stage)
    experiment = chains[0].experiment
    digest, asked = chains[0].weights("base"), seeds_asked([chain.experiment for chain in chains])
    table = Table(experiment.model, experiment.evaluate.protocol, notes, digest, asked)
    for number, plan in enumerate(plans, 1):
        for stage in plan.stages():
            maker.make(plan.chain, stage)
        cell = plan.cell(maker, swept_paths(source))
        for note in table.note(plan.chain.said(plan.upto)):
            logger.info("%s", note)
        filling.add(table.add(cell), cell)
        if number == len(plans) or filling.due(number):
            results = filling.write(table, complete=number == len(plans))
            if notify:
                notify(results)
    if passing:
        return Run(folder)
    _refer(folder, stages, only=True)  # not before: until here, the folder may have an earlier run's table
    if len(table) > PAGE_CELLS:
        (folder / "report.html").unlink(missing_ok=True)  # of an earlier, smaller table
        logger.info(
            "%d cells are too many for a page, so none is written: results.json and records/ in %s have them",
            len(table),
            folder,
        )
        return Run(folder)
    with filling.writing():
        _report(folder)
    return Run(folder)


def _refer(folder: Path, stages: list[tuple[Chain, Stage]], only: bool = False) -> None:
    """Tells the store what this run stands on, so that `store gc` leaves it. `only`: and no longer what was before."""
    store = stages[0][0].shop.store if stages else None
    if store:
        refer(store, folder, [store.folder(stage.name, stage.key) for _, stage in stages], only)


@dataclass(frozen=True)
class Plan:
    """One cell to be scored: a chain, the stage after which its model is scored, and the evaluations."""

    chain: Chain
    upto: str
    evaluation: Stage
    points: dict[int, Stage]
    final: bool  # whether a chain ends in this model

    def stages(self) -> list[Stage]:
        return [*self.chain.upto(self.upto), self.evaluation, *self.points.values()]

    def cell(self, maker: _Maker, swept: list[str]) -> Cell:
        from mithridate.pipeline.stages import Chain
        from mithridate.results.table import Cell

        experiment = self.chain.experiment
        attacked = "finetune" if self.upto != "align" and experiment.finetune else "align"
        return Cell(
            experiment=experiment,
            upto=self.upto,
            final=self.final,
            rows=self.chain.rows(self.evaluation),
            key=self.evaluation.key,
            aligned=self.chain.evaluation("align").key,
            undefended=Chain(undefended(experiment), self.chain.shop).evaluation(attacked).key,
            steps={step: self.chain.rows(stage) for step, stage in self.points.items()},
            stages=[maker.costs[stage.key] for stage in self.stages()],
            attack_steps=self.chain.attack_steps() if self.upto != "align" else None,
            trained=self.chain.trained(self.upto),
            settings=self.chain.settings(self.upto),
            capability=self.chain.capability(self.evaluation),
            history=self.chain.history(self.upto),
            swept=swept_values(experiment, swept, self.upto),
            weights=self.chain.weights(self.upto),
        )


def plans_of(chains: list[Chain]) -> list[Plan]:
    """The cells of all chains in order; a model that two chains share is scored once."""
    plans, seen = [], set()
    scored = [[chain.evaluation(upto) for upto in chain.positions()] for chain in chains]
    final = {evaluations[-1].key for evaluations in scored}
    for chain, evaluations in zip(chains, scored):
        for upto, evaluation in zip(chain.positions(), evaluations):
            if evaluation.key in seen:
                continue
            seen.add(evaluation.key)
            steps = chain.experiment.evaluate.resistance if upto == "finetune" else []
            points = {step: chain.evaluation("finetune", step) for step in steps}
            plans.append(Plan(chain, upto, evaluation, points, evaluation.key in final))
    return plans


def _maker(
    stages: list[tuple[Chain, Stage]],
    executor: Executor | None,
    base: Path,
    folder: Path,
    ending: contextlib.ExitStack,
) -> _Maker:
    """What makes the stages here, or waits for those who do, which end with `ending`."""
    crew = executor.crew(stages, base, folder) if executor else None
    maker = _Maker(stages, crew)
    if crew:
        ending.enter_context(crew)
    return maker


class _Maker:
    """Makes stages in order, each once; says how far along the run is, and remembers what each stage cost.

    With a crew, it is the crew that makes them and says so.
    """

    def __init__(self, stages: list[tuple[Chain, Stage]], crew: Crew | None = None):
        self.crew = crew
        unique = {stage.key: (chain, stage) for chain, stage in stages}
        self.missing = {key: s.name for key, (c, s) in unique.items() if c.shop.store.find(s.name, key) is None}
        self.total = len(self.missing)
        self.left = Counter(self.missing.values())  # by name, the stages still to be made
        self.made: Counter[str] = Counter()  # those that were made
        self.spent: Counter[str] = Counter()  # and their seconds
        self.costs: dict[str, dict[str, Any]] = {}

    def make(self, chain: Chain, stage: Stage) -> None:
        if stage.key in self.costs:
            return
        if stage.key in self.missing and self.crew:
            self.crew.wait(chain.shop.store.folder(stage.name, stage.key))
        elif stage.key in self.missing:
            number = self.total - len(self.missing) + 1
            logger.info("[%d/%d] %s%s", number, self.total, chain.label(stage), self._time_left())
        cached = chain.shop.make(stage) and stage.key not in self.missing
        record = json.loads((chain.shop.folder(stage) / "stage.json").read_text())
        cost = {"name": stage.name, "seconds": record["seconds"], "peak_memory_bytes": _peak(record)}
        self.costs[stage.key] = {**cost, "cached": cached}
        if self.missing.pop(stage.key, None):
            self.left[stage.name] -= 1
            self.made[stage.name] += 1
            self.spent[stage.name] += record["seconds"]

    def _time_left(self) -> str:
        """The time left, once a stage of each kind that is still to come has been seen."""
        left = {name: count for name, count in self.left.items() if count}
        if not all(self.made[name] for name in left):
            return ""
        seconds = sum(count * self.spent[name] / self.made[name] for name, count in left.items())
        return f", {time_left(seconds)}"


def _peak(record: dict[str, Any]) -> int:
    """Bytes of memory: of the process that made a stage, or of all that trained it together."""
    return sum(rank["peak_memory_bytes"] for rank in record.get("ranks", ())) or record["peak_memory_bytes"]


def workshops(
    experiments: list[Experiment],
    base: Path,
    progress: bool,
    find_model: Callable[[str], ModelFiles] | None = None,
    allowed: Allowed = Allowed(),
    findings: Findings | None = None,
    where: str = "experiment",
) -> list[Workshop]:
    """One workshop for all experiments that share a model, data and dtype. Arguments as of `chains_of`.

    Raises:
        InputError: with every problem of the data and the models, and what `findings` has.
    """
    from mithridate.experiment.roles import load_roles
    from mithridate.models import resolve_model
    from mithridate.pipeline.stages import Workshop
    from mithridate.protocols import protocol
    from mithridate.store import Store

    store, shops, found = Store(), {}, Findings() if findings is None else findings
    for experiment in experiments:
        key = shop_key(experiment)
        if key in shops:
            continue
        settings, roles, files, shops[key] = experiment.evaluate, None, None, None
        with found.noting():
            select = None
            with contextlib.suppress(InputError):  # an unknown protocol: told by `resolve`
                chosen = protocol(settings.protocol)
                select = chosen.select if chosen.rows.chooses else None
            roles = load_roles(experiment.data, base, select=select, extra=settings.tasks, system=experiment.system)
        with found.noting():
            if "openai" in settings.generator:
                files = _served(experiment)
            elif find_model:
                files = find_model(_model(experiment.model, base))
            else:
                files = resolve_model(_model(experiment.model, base), allowed.remote_code)
            files = _quantised(experiment, files)
        if roles is not None and files is not None:
            dtype, services = resolve_dtype(experiment.dtype), list(allowed.report_to)
            shops[key] = Workshop(files, roles, store, dtype, progress, report_to=services)
    made = [shop for shop in shops.values() if shop is not None]
    if findings is None or len(made) < len(shops):
        found.settle(where)
    return [shops[shop_key(experiment)] for experiment in experiments]


def shop_key(experiment: Experiment) -> str:
    settings = experiment.evaluate
    served = settings.generator.get("openai")
    computed = (experiment.dtype, experiment.quantization, experiment.system)
    return str((experiment.model, experiment.data, computed, settings.protocol, settings.tasks, served))


def _quantised(experiment: Experiment, files: Any) -> Any:
    """The model's files, to be quantised as the experiment says; nothing is done to those of a server's model."""
    from mithridate.experiment.config import quantisation_problems
    from mithridate.models import stored_quantisation
    from mithridate.models.quantisation import quantised

    if "openai" in experiment.evaluate.generator:
        return files
    if (files.path / "config.json").is_file() and stored_quantisation(files.path):
        what = f"model {files.name!r}, whose weights are stored quantised"
        if problems := quantisation_problems(experiment, what):
            raise InputError("\n".join(problems))
        if experiment.quantization:
            raise InputError(f"quantization: {what}, is not quantised again. Take the field out")
    return quantised(files, experiment.quantization)


def _served(experiment: Experiment) -> Any:
    """A model behind a server: no files here, and what is stated of it in place of their digest."""
    from mithridate.files import digest
    from mithridate.models import ModelFiles

    fields = experiment.evaluate.generator["openai"]
    return ModelFiles(
        experiment.model, Path(), digest({name: fields[name] for name in ("base_url", "model", "revision")})
    )


def _model(name: str, base: Path) -> str:
    """A model's folder is found beside the experiment file, as its data are; other names are left as they are."""
    from mithridate.models import EMBEDDED

    beside = base / Path(name).expanduser()
    if name not in EMBEDDED and "/" in name and not beside.exists() and not Path(name).expanduser().exists():
        # "models/nosuch" could be an id on the Hub, but for the models that lie in that folder here
        there = [folder.parent for folder in beside.parent.glob("*/config.json")]
        if there:
            names = [str(Path(name).parent / folder.name) for folder in there]
            raise InputError(f"model: no such folder {beside}{nearest(name, names)}")
    return str(beside) if name not in EMBEDDED and beside.is_dir() else name


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
    return replace(experiment, model=_model(experiment.model, base), data=data, accelerate=launch)


def resolve_dtype(dtype: str) -> str:
    """`auto`: bfloat16 where the hardware computes in it (GPU, or a CPU with AVX512-BF16 or AMX), else float32."""
    import torch

    if dtype != "auto":
        return dtype
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "float32"


def _notes(chains: list[Chain]) -> list[str]:
    """What is particular about a run's data, and about what a repair acts on, in words."""
    from mithridate.experiment.methods import method_of
    from mithridate.methods import by_name

    notes = []
    for chain in chains:
        roles = chain.shop.roles
        shared = ["data.defender_harmful has prompts of data.alignment, as the file allows (paired: true)"]
        notes += roles.notes + shared * roles.paired
        if (system := chain.experiment.system) is not None:
            turn = f"is {system!r}" if system else "is empty, in place of the model's default"
            notes.append(f"The system turn {turn}, in training and at the test")
        facts = {
            "topology": chain.experiment.topology,
            "aligned": bool(chain.align),
            "finetuned": bool(chain.finetune),
        }
        for name, settings in chain.experiment.repair.items():
            repair = method_of(by_name("repairs")[name], settings)
            notes += [f"{name} {note}" for note in repair.run_notes(**facts)]
    return list(dict.fromkeys(notes))


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside, no bars of the libraries' own beside those of the stages, unless something is being looked for."""
    import datasets
    from transformers.utils import logging as bars

    if logger.isEnabledFor(logging.DEBUG):
        yield
        return
    shown, data_shown = bars.is_progress_bar_enabled(), datasets.is_progress_bar_enabled()
    bars.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
        if data_shown:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def stages_told(shown: bool) -> Iterator[None]:
    """Inside, the lines of a run's stages go to stderr where nobody listens to the log, as in a script or notebook."""
    ours = logging.getLogger("mithridate")
    if not shown or ours.hasHandlers():
        yield
        return
    handler, level = logging.StreamHandler(), ours.level
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours.addHandler(handler)
    ours.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(level)


def _report(folder: Path) -> None:
    from mithridate.report.build import build_report

    build_report(folder)


def export_cell(
    run_folder: str | Path,
    cell: str,
    out: str | Path,
    merged: bool = True,
    trust_remote_code: bool = False,
    verdict: str | Path | None = None,
    check: int = 4,
) -> Path:
    """Writes the model of one cell of a run as a folder that plain transformers (merged) or PEFT (adapter) loads.

    Args:
        trust_remote_code: as of `run`, which was called with it.
        verdict: file of a gate's verdict, for the model's card; by default verdict.json in the run's folder, if there.
        check: how many harmful and how many benign prompts of the run the written model is asked again: the answers
            must be those that were measured. 0 asks none.

    Raises:
        InputError: no such run or cell, its stages are no longer in the store, or the file of `verdict` has none on
            this model; or `check` is below 0.
        MithridateError: it cannot be written, or answers otherwise than the model that was measured.
    """
    from mithridate.pipeline.export import export
    from mithridate.pipeline.stages import Chain
    from mithridate.report.card import Story
    from mithridate.results.release.label import VERDICT_FILE, label_of
    from mithridate.store import MANIFEST

    if check < 0:
        raise InputError(f"check: expected a number of prompts from 0 on, got {check}")
    folder = RunFolder(run_folder)
    row, recipe = folder.cell(cell), folder.recipe(cell)
    experiment = load_experiment(recipe["experiment"])
    allowed = Allowed(remote_code=trust_remote_code)
    [shop] = workshops([experiment], Path(recipe["base"]), progress=False, allowed=allowed)
    chain = Chain(experiment, shop)
    stages = [json.loads((shop.folder(stage) / MANIFEST).read_text()) for stage in chain.upto(recipe["upto"])]
    label, given = None, Path(verdict) if verdict else folder.path / VERDICT_FILE
    if verdict or given.exists():
        label = label_of(given, cell, chain.weights(recipe["upto"]), folder.sha256)
        if verdict and label.outcome is None:
            raise InputError(f"--verdict {verdict}: {label.why}. Let the gate judge this model: --cell {cell}")
    story = Story(folder.results, row, recipe["experiment"], stages, label)
    layers = chain.layers(recipe["upto"])
    made = export(shop.base, layers, shop.torch_dtype, shop.tokenizer, Path(out), merged=merged, story=story)
    if check:
        from mithridate.pipeline.export_check import check_export

        with quiet_libraries():
            logger.info("%s", check_export(chain, recipe["upto"], made, _final_rows(folder, cell), check))
    return made


def _final_rows(folder: RunFolder, cell: str) -> list[dict[str, Any]]:
    """The records of a cell from its end."""
    rows = folder.final(cell, further=True)
    return [{key: value for key, value in row.items() if key != "step"} for row in rows]


def redacted(row: dict[str, Any]) -> dict[str, Any]:
    """A record without what the model said: its answer, and the reasons of verdicts."""
    said = {name for name in row if name == "reason" or name.endswith("/reason")}
    return {**row, **dict.fromkeys(said, "redacted"), "answer": f"[redacted: {len(row['answer'])} characters]"}


def export_log(run_folder: str | Path, cell: str, out: str | Path, redact: bool = False) -> Path:
    """Writes the records of one cell of a run as an Inspect log (a .json file).

    Args:
        redact: leaves out what models said: answers, and the reasons of verdicts, which quote them. Verdicts stay.

    Raises:
        InputError: no such run or cell, or a file name or folder that cannot be.
        MithridateError: it cannot be written.
    """
    from mithridate.results.inspect_log import write_log

    folder = RunFolder(run_folder)
    found, rows = folder.cell(cell), _final_rows(folder, cell)
    rows = [redacted(row) for row in rows] if redact else rows
    shares = {name: rate for name, rate in found["rates"].items() if rate}
    shares |= {"extra": found["extra"]} if found.get("extra") else {}
    about = {"cell": cell, "settings": found["settings"]}
    return write_log(out, rows, folder.results["model"], shares, about)
