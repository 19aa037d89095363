"""Values of an experiment that are right each for itself and do not go together. Imports no torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mithridate.errors import MithridateError
from mithridate.experiment import adapter_fields, training_fields
from mithridate.experiment.processes import read_accelerate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mithridate.experiment.model import Evaluate, Experiment


def problems(experiment: Experiment) -> list[str]:
    """What an experiment asks for that cannot be together, or that no file may ask for."""
    return [
        *_system(experiment),
        *_processes(experiment),
        *(quantisation_problems(experiment, "quantization") if experiment.quantization else []),
        *_adapters(experiment),
        *_frozen(experiment),
        *_sampling(experiment.evaluate),
        *_precision(experiment.evaluate),
        *_resistance(experiment),
        *_not_for_files(experiment),
    ]


def _system(experiment: Experiment) -> list[str]:
    if experiment.system is None or experiment.template == "chat":
        return []
    return [
        f"system: the template {experiment.template} is one text without turns. Leave out `system`, or set "
        "template: chat"
    ]


def _processes(experiment: Experiment) -> list[str]:
    if experiment.accelerate == "none" and (experiment.processes or 1) > 1:
        return ["processes: several processes need accelerate: ddp (or fsdp2, or a file)"]
    return []


def _adapters(experiment: Experiment) -> list[str]:
    found, own = list(adapter_fields.problems("adapter", experiment.adapter)), None
    if experiment.finetune and (own := experiment.finetune.adapter) and own != "full":
        found += adapter_fields.problems("finetune.adapter", own)
    if own is not None and experiment.topology == "single":
        found.append(
            "finetune.adapter: topology: single goes on training the alignment's adapter. Take it out, or set "
            "topology: double"
        )
    return found


def _frozen(experiment: Experiment) -> list[str]:
    found = []
    for pattern in experiment.finetune.frozen if experiment.finetune else ():
        try:
            re.compile(pattern)
        except re.error as error:
            found.append(f"finetune.frozen: {pattern!r} is no regular expression: {error}")
    return found


def _resistance(experiment: Experiment) -> list[str]:
    steps, finetune = experiment.evaluate.resistance, experiment.finetune
    if not steps or finetune is None or isinstance(finetune.attack, dict):
        return []  # attacks of other kinds may have trainings of their own
    end: Any = finetune.training.get("max_steps")
    if isinstance(end, int) and 0 < end <= steps[-1]:
        return [f"evaluate.resistance: expected steps below finetune.training.max_steps ({end}), got {steps}"]
    return []


def _not_for_files(experiment: Experiment) -> list[str]:
    found, finetune, evaluate = [], experiment.finetune, experiment.evaluate
    if finetune and isinstance(finetune.attack, dict):
        found += training_fields.anywhere("finetune.attack", finetune.attack)
    for stage in ("align", "finetune"):
        if settings := getattr(experiment, stage):
            found += training_fields.problems(f"{stage}.training", settings.training)
            found += _methods(f"{stage}.defense", settings.defense)
    found += _methods("repair", experiment.repair)
    for name in ("generator", "judges"):
        found += training_fields.anywhere(f"evaluate.{name}", getattr(evaluate, name))
    return found


def _methods(path: str, given: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, fields in given.items():  # a method's own `token` is one of the tokenizer's, no secret
        yield from training_fields.anywhere(f"{path}.{name}", {key: fields[key] for key in fields if key != "token"})


def quantisation_problems(experiment: Experiment, what: str) -> list[str]:
    """What an experiment asks for that weights in 4 or 8 bit cannot hold. `what` says where they come from."""
    problems = []
    for stage in ("align", "finetune"):
        if getattr(experiment, stage) is not None and experiment.adapter_of(stage) is None:
            problems.append(f"{what}: {stage} trains all weights, and quantised ones hold no steps. Train an adapter")
    if experiment.evaluate.precision != ["full"]:
        problems.append(f"{what}: what is quantised is not quantised once more. Take out evaluate.precision")
    if _shards(experiment.accelerate):
        problems.append(f"{what}: quantised weights are not sharded here. Set accelerate: ddp or none")
    if "vllm" in experiment.evaluate.generator:
        problems.append(f"{what}: vllm would be given the dequantised model. Set evaluate.generator: transformers")
    return problems


def _shards(accelerate: str) -> bool:
    """Whether an Accelerate configuration shards weights; what is wrong with a file is said elsewhere."""
    try:
        return accelerate != "none" and read_accelerate(accelerate)[1] == "fsdp2"
    except MithridateError:
        return False


def _precision(evaluate: Evaluate) -> list[str]:
    if evaluate.precision == ["full"] or "transformers" in evaluate.generator:
        return []
    return ["evaluate.precision: is of models that transformers runs here. Set evaluate.generator: transformers"]


def _sampling(evaluate: Evaluate) -> list[str]:
    """Samples and their temperature go together, and neither without the other."""
    samples, temperature = evaluate.samples, evaluate.temperature
    if samples is None and temperature is None:
        return []
    found = []
    if samples is None:
        found.append("evaluate.temperature: needs evaluate.samples, the number of answers drawn for each prompt")
    if temperature is None:
        found.append("evaluate.samples: needs evaluate.temperature: without one, all samples are the greedy answer")
    elif temperature == 0:
        found.append(
            "evaluate.temperature: at 0 all samples are the greedy answer; leave out both it and evaluate.samples"
        )
    return found
