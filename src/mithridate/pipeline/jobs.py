"""What a training or a repair is given: its rows, and the job in full."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mithridate.data.records import training_dataset
from mithridate.errors import InputError
from mithridate.experiment.methods import defenses_of
from mithridate.methods import Attack, Repair
from mithridate.pipeline.stages import ExperimentStages

if TYPE_CHECKING:
    from mithridate.pipeline.training import Job

ATTACK_ROWS = "rows.json"  # of stage `attack-rows`


def attack_rows(chain: ExperimentStages) -> list[dict[str, Any]]:
    """What is handed in for fine-tuning; of an attack that needs the model, once that stage is there."""
    if not chain.attack.needs_model:
        return made_rows(chain, chain.attack)
    [stage] = [stage for stage in chain.aside["finetune"] if stage.name == "attack-rows"]
    return json.loads((chain.folder(stage) / ATTACK_ROWS).read_text(encoding="utf-8"))


def made_rows(chain: ExperimentStages, attack: Attack, model: Any = None) -> list[dict[str, Any]]:
    """The rows of an attack; `model`: the model and its tokenizer, where the attack looks at them."""
    roles = {name: chain.records(role) for name, role in attack.data_roles().items()}
    try:
        rows = attack.rows(roles, chain.experiment.seed, model)
    except InputError as error:
        raise InputError(f"finetune.attack: {error}") from error
    if not rows:
        raise InputError("finetune.attack: it has made no row of the data, so that there is nothing to train on")
    return rows


def job_of(chain: ExperimentStages, name: str, rows: list[dict], layers: list[Any], snapshots: list[int]) -> Job:
    """The training of stage `name` over `layers`."""
    from mithridate.pipeline.training import Job

    settings = chain.training(name)
    roles = {role for method in defenses_of(settings.defense) for role in method.data_roles().values()}
    return Job(
        base=chain.context.base,
        layers=layers,
        dtype=chain.context.dtype,
        adapter=chain.adapter(name),
        rows=rows,
        defense=settings.defense,
        side_rows={role: chain.records(role) for role in roles},
        training=settings.training,
        seed=chain.experiment.seed,
        snapshots=snapshots,
        progress=chain.context.progress,
        template=chain.experiment.template,
        phases=chain.phases(chain.attack) if name == "finetune" else [],
        frozen=chain.frozen(name),
        report_to=chain.context.report_to,
    )


def repair_rows(chain: ExperimentStages, repair: Repair) -> dict[str, Any]:
    """The rows of a repair by argument: records, or tokenised ones where the template is not the model's own."""
    rows = {name: chain.records(role) for name, role in repair.data_roles().items()}
    if chain.experiment.template == "chat":
        return rows
    template = chain.experiment.template
    return {name: training_dataset(records, chain.tokenizer, template) for name, records in rows.items()}


def rows_to_try(chain: ExperimentStages, name: str) -> list[dict[str, Any]]:
    """The rows of a training; where they depend on a model that is not there yet, others in their place."""
    if name != "finetune":
        return chain.context.roles.alignment if name == "align" else chain.context.roles.defender_harmful
    if not chain.attack.needs_model:
        return made_rows(chain, chain.attack)
    try:
        rows = chain.attack.candidates({name: chain.records(role) for name, role in chain.attack.data_roles().items()})
    except InputError as error:
        raise InputError(f"finetune.attack: {error}") from error
    rows = rows[: getattr(chain.attack, "size", None)]
    named = [phase.rows for phase in chain.attack.phases() if phase.rows is not None]
    return [{**row, "phase": phase} for phase in named or [None] for row in rows]
