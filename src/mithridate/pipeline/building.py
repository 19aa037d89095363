"""How each stage is made from those before it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mithridate.data.tasks.capability import capability
from mithridate.evaluation import answers, guard_of
from mithridate.experiment.methods import around_prompts, repair_of, repaired_in
from mithridate.methods import Repair
from mithridate.models.quantisation import dequantised
from mithridate.pipeline import checkpointing, precheck
from mithridate.pipeline.assembly import aligned_layers, input_layers, load, load_layers
from mithridate.pipeline.budgets import repair_within
from mithridate.pipeline.generators import open_generator
from mithridate.pipeline.jobs import ATTACK_ROWS, attack_rows, job_of, made_rows, repair_rows
from mithridate.pipeline.stages import VERSIONS, ExperimentStages, Stage
from mithridate.protocols import protocol
from mithridate.results.parts import write
from mithridate.rows import exchanges

if TYPE_CHECKING:
    from mithridate.repairs.delta import Delta


def make(chain: ExperimentStages, stage: Stage) -> bool:
    """Makes a stage of a chain, unless the store has it. Returns whether it was there."""
    store = chain.context.store
    if store.find(stage.name, stage.key) is not None:
        return True
    meta = {"config": stage.config, "parents": stage.parents, "data": stage.data, "version": VERSIONS[stage.name]}
    with store.building(stage.name, stage.key, meta) as work:
        if work is not None:  # None: another process finished it while this one waited for the lock
            meta |= BUILD[stage.name](chain, stage, work) or {}
    return False


def _align(chain: ExperimentStages, stage: Stage, work: Path) -> dict[str, Any]:
    return _train(chain, work, "align", chain.context.roles.alignment, input_layers(chain, "align", "start"))


def _attack_rows(chain: ExperimentStages, stage: Stage, work: Path) -> None:
    rows = made_rows(chain, chain.attack, (load(chain, "align"), chain.tokenizer))
    (work / ATTACK_ROWS).write_text(json.dumps(rows), encoding="utf-8")


def _unaligned(chain: ExperimentStages, stage: Stage, work: Path) -> dict[str, Any]:
    hardened = chain.harden is not None and chain.harden.key in stage.parents.values()
    start = aligned_layers(chain, chain.harden if hardened else chain.align)
    return _train(chain, work, "unaligned", chain.context.roles.defender_harmful, start)


def _finetune(chain: ExperimentStages, stage: Stage, work: Path) -> dict[str, Any]:
    rows = attack_rows(chain)
    if chain.attack.needs_model:  # else this was found out before any compute
        precheck.require_kept(chain, "finetune", rows)
    start = input_layers(chain, "finetune", "start")
    return _train(chain, work, "finetune", rows, start, chain.experiment.evaluate.resistance)


def _train(
    chain: ExperimentStages, work: Path, name: str, rows: list[dict], start: list[Any], snapshots: Sequence[int] = ()
) -> dict[str, Any]:
    """Trains in this process, or in several. Returns what `stage.json` is to say of it: what was trained, and of
    several processes."""
    from mithridate.pipeline import launch, training

    job, counted = job_of(chain, name, rows, start, list(snapshots)), precheck.counted(chain, name, rows)
    job = replace(
        job,
        models={kind: input_layers(chain, name, kind) for kind in chain.model_kinds(name)},
        sequences=[left.sequences for _, left in counted],
    )
    verdicts = _guarded(chain, name, rows)
    job = replace(job, verdicts=verdicts)
    record: dict[str, Any] = {}
    if found := checkpointing.chosen(chain, [part for part, _ in counted]):
        job = replace(job, training=found.training() | job.training)
        record["activation_checkpointing"] = found.record()
    if chain.launch:
        record |= launch.run(job, chain.launch, work)
    else:
        training.run_job(job, work)
    steps = json.loads((work / "history.json").read_text())[-1]["step"]
    dropped, reached = training.dropped_places(job, work), training.rows_reached(job, work)
    record["trained"] = precheck.trained(counted, rows, steps, dropped, reached)
    untold = {path: said.count(None) for path, said in verdicts.items() if None in said}
    notes = [f"{name}: {path} could not tell of {count} rows" for path, count in untold.items()]
    return record | {"said": [*precheck.said(chain, name, counted), *notes]}


def _guarded(chain: ExperimentStages, name: str, rows: list[dict]) -> dict[str, list[str | None]]:
    """What the judges that the defenses of a training name say of its rows, by "METHOD.FIELD". Asked here, so that
    of several processes that train none loads a judge."""
    cache, progress = chain.context.store.root / "verdicts", chain.context.progress
    turns = [exchanges(row) or [] for row in rows]
    return {
        path: list(guard_of(judge, cache, progress, f"{name} {path}")(turns))
        for path, (judge, _) in chain.guards(name).items()
    }


def _repair(chain: ExperimentStages, stage: Stage, work: Path) -> dict[str, Any] | None:
    chosen = repair_of(chain.experiment, post_alignment=stage.name == "harden")
    assert chosen
    name, repair = chosen
    plain = repair.cost().changes != "adapter"  # 4 and 8 bits hold no new values
    dtype = repaired_in(chain.experiment, stage.name, chain.context.dtype)

    def load(kind: str) -> Any:
        model = load_layers(chain, input_layers(chain, stage.name, kind), dtype)
        return dequantised(model) if plain else model

    models = {field: load(kind) for field, kind in repair.model_inputs().items()}
    rows = repair_rows(chain, repair)

    def repaired(one: Repair) -> tuple[Any, Delta]:
        model = load("repaired")
        delta = one.apply(model, **rows, **models, tokenizer=chain.tokenizer)
        delta.dequantised = plain
        return model, delta

    if stage.name == "repair" and chain.experiment.budget:
        return repair_within(chain, chain.experiment.budget, name, repair, repaired, work)
    repaired(repair)[1].save(work / "model")
    return None


def _evaluate(chain: ExperimentStages, stage: Stage, work: Path) -> dict[str, Any]:
    upto, step = stage.config["upto"], stage.config["step"]
    settings, parts, sets = chain.experiment.evaluate, chain.context.roles.parts(), chain.sets(step)
    records = {name: parts[role][: settings.limit] for name, role in sets.items()}
    generator = open_generator(chain, upto, step)
    try:
        chosen, cache = protocol(settings.protocol), chain.context.store.root / "answers"
        around, sampling = around_prompts(chain.experiment, upto), settings.sampling(chain.experiment.seed)
        rows = answers(generator, records, chosen, cache, chain.context.progress, stage.key, around, sampling)
        if settings.capability and step is None:
            _measure_capability(chain, generator, work)
    finally:
        generator.close()
    write(work / "records.parquet", rows)
    sizes = getattr(generator, "batch_sizes", None)  # of one that chooses its batches here; a server chooses its own
    return {"batch_sizes": sorted(sizes)} if sizes else {}


def _measure_capability(chain: ExperimentStages, generator: Any, work: Path) -> None:
    settings = chain.experiment.evaluate
    scores = capability(generator.model, chain.context.tokenizer, settings.capability, limit=settings.limit)
    (work / "capability.json").write_text(json.dumps([vars(score) for score in scores], indent=1))


BUILD: dict[str, Callable[[ExperimentStages, Stage, Path], dict[str, Any] | None]] = {
    **{"align": _align, "harden": _repair, "unaligned": _unaligned, "attack-rows": _attack_rows},
    **{"finetune": _finetune, "repair": _repair, "evaluate": _evaluate},
}
