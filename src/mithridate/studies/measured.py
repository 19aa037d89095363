"""What a model's costs are measured on, asked before anything is computed: a bound on what nobody measures is none."""

from __future__ import annotations

from mithridate.evaluation.shares import broken_teller
from mithridate.pipeline.stages import ExperimentStages
from mithridate.protocols import protocol


def unmeasured(chain: ExperimentStages) -> dict[str, str]:
    """The rates that a model of this chain would not have, of those that studies bound; each with what is missing, and
    what to do about it.

    Raises:
        InputError: there are no harmful prompts.
    """
    settings, roles, sets, found = chain.experiment.evaluate, chain.context.roles, chain.sets(), {}
    part, task = settings.part, roles.task_name
    if not roles.task_train:
        found["accuracy"] = "there is no data.task. Give one, with its validation_share"
    elif task is None:
        found["accuracy"] = "data.task has no `name` by which its answers are scored. Give it, test rows and all"
    elif f"task:{task}" not in sets:
        found["accuracy"] = f"data.task has no {part} part. Give its validation_share"
    elif not protocol(settings.protocol).task(task).rule:
        found["accuracy"] = f"answers to {task} are compared by a judge, and not right or wrong. Take another task"
    if "benign" not in sets:
        found["benign_refusal"] = (
            f"data.test_benign has no {part} part. Give its validation_share"
            if roles.test_benign
            else "there is no data.test_benign. Give one, with its validation_share"
        )
    if broken_teller(protocol(settings.protocol)) is None:
        found["incoherent"] = f"no judge of {settings.protocol} tells broken answers. Take another protocol"
    return found
