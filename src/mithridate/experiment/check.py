"""What only the methods, SFTConfig and LoraConfig can tell of an experiment. `resolve` imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mithridate import generation, judges
from mithridate.data import tasks
from mithridate.errors import Findings, InputError
from mithridate.experiment import adapter_fields, training_fields
from mithridate.experiment.methods import (
    POST_ALIGNMENT,
    attack_of,
    defenses_of,
    follows,
    method_of,
    repair_of,
    trained_adapter,
)
from mithridate.experiment.model import FULL, Align, Attack, Budget, Experiment, Finetune
from mithridate.experiment.processes import with_processes
from mithridate.methods import by_name
from mithridate.methods.fields import field_problems
from mithridate.models.quantisation import PRECISIONS, quantisation_of
from mithridate.problems import error_of, nearest
from mithridate.protocols import PROTOCOLS

if TYPE_CHECKING:
    from mithridate.methods import Phase

_LEAST = {
    "learning_rate": 0,
    "num_train_epochs": 0,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_steps": -1,
}


def resolve(experiment: Experiment, base: Path, where: str = "experiment") -> Experiment:
    """The experiment as it is run: `with_defaults`, and `with_processes` of a file in the folder `base`.

    Raises:
        InputError: with every problem found, one a line.
        UnsupportedSetup: the Accelerate file asks for something else than DDP or FSDP2 on one machine.
    """
    found, made = Findings(), experiment
    with found.noting():
        made = with_defaults(experiment, where)
    with found.noting():
        made = with_processes(made, base)
    found.settle(where)
    return made


def with_defaults(experiment: Experiment, where: str = "experiment") -> Experiment:
    """The experiment with the methods' fields that were not given filled in with their defaults, once the names and
    fields of its methods, of SFTConfig and of LoraConfig have been checked, before any compute is spent.

    What acts is what is recorded, and what the stage's key is made of. Imports torch. `where` is the file's name, for
    errors. What is filled in already stays as it is.

    Raises:
        InputError: with every problem found, one a line.
    """
    problems: list[str] = []
    stages: dict[str, Align | Finetune] = {}
    for name in ("align", "finetune"):
        settings: Align | Finetune | None = getattr(experiment, name)
        if settings is None:
            continue
        defense = _filled(f"{name}.defense", settings.defense, by_name("defenses"), problems)
        problems += _stage_problems(name, settings.defense, by_name("defenses"))
        problems += _training_problems(f"{name}.training", settings.training)
        if isinstance(settings, Finetune):
            attack = _attack(settings.attack, by_name("attacks"), problems)
            stages[name] = replace(settings, defense=defense, attack=attack)
        else:
            stages[name] = replace(settings, defense=defense)
    repair = _filled("repair", experiment.repair, by_name("repairs"), problems)
    problems += _adapter_problems(experiment)
    problems += _evaluate_problems(experiment)
    made = replace(experiment, **stages, repair=repair)  # pyright: ignore[reportArgumentType]
    if not problems:
        problems += _place_problems(made)
    if not problems and made.budget:
        made = _budgeted(made, made.budget, problems)
    if problems:
        raise error_of(where, problems)
    return made


def _evaluate_problems(experiment: Experiment) -> list[str]:
    """Names and fields of protocol, generator, judges and tasks, and that each task has what scores it."""
    settings, problems = experiment.evaluate, []
    if settings.protocol not in PROTOCOLS:
        problems.append(
            f"evaluate.protocol: no such protocol `{settings.protocol}`{nearest(settings.protocol, PROTOCOLS)}"
        )
    elif experiment.system is not None and PROTOCOLS[settings.protocol].template != "chat":
        problems.append(
            f"system: the protocol {settings.protocol} asks in one text without turns. Leave out `system`, or choose "
            "a protocol that asks in the model's chat template"
        )
    kinds = set()
    for name, values in settings.judges.items():
        try:
            kinds.add(judges.judge({name: values}).kind)
        except InputError as error:
            problems.append(f"evaluate.judges: {error}")
    problems += [f"evaluate.generator: {problem}" for problem in generation.problems(settings.generator)]
    if "openai" in settings.generator and (experiment.align or experiment.finetune or experiment.repair):
        problems.append(
            "evaluate.generator: a server answers as the model that it runs, which no stage here has made. Set align, "
            "finetune and repair to none, or export the models and serve them one at a time"
        )
    for name in settings.precision:
        try:
            if name != FULL:
                quantisation_of(PRECISIONS[name], f"evaluate.precision: {name}")
        except InputError as error:
            problems.append(str(error))
    if settings.capability and settings.generator.keys() - {"transformers"}:
        problems.append(
            "evaluate.capability: lm-eval asks a model in this process; set evaluate.generator: transformers"
        )
    for name in settings.tasks:
        if name not in tasks.TASKS:
            problems.append(f"evaluate.tasks.{name}: no such task{nearest(name, tasks.TASKS)}")
        elif not tasks.TASKS[name].rules and "quality" not in kinds:
            problems.append(
                f"evaluate.tasks.{name}: is scored by win rate; give evaluate.judges one that compares: win-rate"
            )
    return problems


_PLACES = {"alignment": "align", "fine-tuning": "finetune"}  # of a defense, by its stage


def _stage_problems(stage: str, defense: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Defenses that are for another stage than the one that they stand in."""
    return [
        f"{stage}.defense.{name}: is a defense of {known[name].stage}, and would not be one here. Set it under "
        f"{place}.defense"
        for name in defense
        if name in known and (place := _PLACES.get(known[name].stage, stage)) != stage
    ]


def _filled(
    path: str, methods: Mapping[str, dict[str, Any]], known: Mapping[str, Any], problems: list[str]
) -> dict[str, dict[str, Any]]:
    """The methods with all their fields; notes what is wrong with them."""
    found = {}
    for name, values in methods.items():
        if name in known:
            found[name] = _all_fields(f"{path}.{name}", values, known[name], problems)
        else:
            problems.append(f"{path}.{name}: no such method{nearest(name, known)}")
    return found


def _attack(attack: Attack | dict[str, Any], known: Mapping[str, Any], problems: list[str]) -> Any:
    """The attack with all its fields. The harmful one has them, and has been checked."""
    if isinstance(attack, Attack):
        return attack
    own = {name: value for name, value in attack.items() if name != "kind"}
    if attack["kind"] not in known:
        problems.append(
            f"finetune.attack.kind: no such attack `{attack['kind']}`{nearest(str(attack['kind']), known)}"
        )
        return attack
    return {**attack, **_all_fields("finetune.attack", own, known[attack["kind"]], problems)}


def _all_fields(path: str, values: dict[str, Any], cls: Any, problems: list[str]) -> dict[str, Any]:
    """The fields of one method, those that were not given with their defaults; notes what is wrong with them."""
    names = [f.name for f in fields(cls) if f.init and f.name not in cls.roles]
    found = [f"{path}.{f}: comes from data.{cls.roles[f]}; leave it out" for f in values if f in cls.roles]
    own = {field: value for field, value in values.items() if field not in cls.roles}
    found += field_problems(path, own, cls, names)
    asked = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
    found += [
        f"{path}.{name}: missing; there is no value that would do for all"
        for name in names
        if name in asked - own.keys()
    ]
    if not found:
        try:
            method = method_of(cls, values)
            for field in getattr(cls, "guards", ()):
                if getattr(method, field) is not None:
                    _require_guard(field, getattr(method, field))
            return {**values, **{field: getattr(method, field) for field in names}}
        except (InputError, TypeError, ValueError) as error:  # the method's own checks of its values
            found.append(f"{path}: {error}")
    problems += found
    return values


def _require_guard(field: str, spec: Any) -> None:
    try:
        judge = judges.judge(spec)
    except InputError as error:
        raise InputError(f"{field}: {error}") from error
    if judge.kind != "harm":
        raise InputError(f"{field}: `{judge.name}` is a judge of {judge.kind}; give one of harm")


def _adapter_problems(experiment: Experiment) -> list[str]:
    own = experiment.finetune.adapter if experiment.finetune else None
    problems = _lora_problems("adapter", experiment.adapter)
    return problems + (_lora_problems("finetune.adapter", own) if isinstance(own, Mapping) else [])


def _lora_problems(path: str, adapter: Mapping[str, Any]) -> list[str]:
    from peft import LoraConfig

    names = [f.name for f in fields(LoraConfig) if f.init and f.name not in adapter_fields.NOT_IN_ADAPTER]
    known = {name: value for name, value in adapter.items() if name not in adapter_fields.NOT_IN_ADAPTER}
    return field_problems(path, known, LoraConfig, names)


def _place_problems(experiment: Experiment) -> list[str]:
    """Methods where they cannot act, or that would have nothing to act on."""
    problems = []
    placed: dict[bool, list[str]] = {True: [], False: []}
    for name, values in experiment.repair.items():
        cls = by_name("repairs")[name]
        before = cls.stage == POST_ALIGNMENT
        placed[before].append(name)
        finetuned = experiment.finetune is not None and not before
        if experiment.finetune and not before:
            last = attack_of(experiment.finetune).phases()[-1]
            kept = trained_adapter(experiment, last) is not None
        else:
            adapter = experiment.adapter_of("align") is not None
            kept = adapter and experiment.align is not None and experiment.topology == "single"
        method = method_of(cls, values)
        if experiment.align is None and {"base", "aligned"} <= set(method.model_inputs().values()):
            problems.append(
                f"repair.{name}: compares the aligned model with the base, and `align` is none, so that they are one. "
                "Set `align`"
            )
        try:
            method.check_run(topology=experiment.topology, finetuned=finetuned, adapter=kept)
        except InputError as error:  # which begins with the field that is wrong, where it is one
            own = str(error).partition(":")[0] in method.settings()
            problems.append(f"repair.{name}{'.' if own else ': '}{error}")
    for before, names in placed.items():
        if len(names) > 1:
            where = "between alignment and fine-tuning" if before else "after fine-tuning"
            problems.append(f"repair: expected one repair {where}, got {len(names)}: {', '.join(names)}")
    if experiment.finetune:
        guards = experiment.finetune.defense
        for name, method in zip(guards, defenses_of(guards)):
            if experiment.align is None and follows(method):
                problems.append(
                    f"finetune.defense.{name}: takes its directions from what the alignment changed, and `align` is "
                    "none. Set `align`"
                )
            if method.finishes and experiment.evaluate.resistance:
                problems.append(
                    f"evaluate.resistance: {name} changes the weights when the training has ended, so that there is "
                    "no model of it on the way. Leave `resistance` out; `mithridate attack` makes an attack of its "
                    "own for each of curve.steps"
                )
        problems += _phase_problems(experiment, attack_of(experiment.finetune).phases(), bool(placed[True]))
    chosen = experiment.align.defense if experiment.align else {}
    for name, method in zip(chosen, defenses_of(chosen)):
        later = {kind for kind in method.model_inputs().values() if kind not in ("base", "start")}
        if later:
            problems.append(
                f"align.defense.{name}: needs a model ({', '.join(sorted(later))}) that is there only after the "
                "alignment. Put it under finetune.defense"
            )
    return problems


_TRIES = 6  # where a budget does not say which strengths may be taken


def _budgeted(experiment: Experiment, budget: Budget, problems: list[str]) -> Experiment:
    """The experiment with the strengths that its budget may take, strongest first, of which the repair has the
    strongest; notes what is wrong with the budget."""
    chosen = repair_of(experiment, post_alignment=False)
    if chosen is None:
        problems.append(
            "budget: there is no repair after the fine-tune whose strength it could choose. Set `repair`, or leave "
            "`budget` out; the strength of a defense is chosen by a benchmark"
        )
        return experiment
    name, repair = chosen
    strength = repair.strength
    value: Any = getattr(repair, strength) if strength else None
    if strength is None or not isinstance(value, int | float) or isinstance(value, bool):
        problems.append(
            f"budget: repair.{name} has no strength that it could choose, for none of its fields says how much it "
            "does. Leave `budget` out"
        )
        return experiment
    if "task" not in experiment.data:
        problems.append(
            "budget.accuracy: the experiment has no data.task whose accuracy could be held. Give it one, or leave "
            "`budget` out"
        )
    if experiment.evaluate.generator.keys() != {"transformers"}:
        problems.append("budget: models that are only tried are answered for by transformers. Set evaluate.generator")
    nothing: Any = (repair.off or {}).get(strength, 0)
    halves = [nothing + (value - nothing) / 2**i for i in range(_TRIES)]
    found = budget.strengths or halves
    for one in found:
        try:
            method_of(type(repair), {**experiment.repair[name], strength: one})
        except InputError as error:
            problems.append(f"budget.strengths: {one}: {error}")
    if nothing in found:
        where = "budget.strengths" if budget.strengths else f"repair.{name}.{strength}"
        problems.append(f"{where}: {nothing:g} changes nothing, which is what is left where no strength fits anyway")
    elif len(set(found)) < len(found):
        problems.append(f"budget.strengths: expected different values, got {budget.strengths}")
    found = sorted(found, key=lambda one: abs(one - nothing), reverse=True)
    repairs = {**experiment.repair, name: {**experiment.repair[name], strength: found[0]}}
    return replace(experiment, repair=repairs, budget=replace(budget, strengths=found))


def _phase_problems(experiment: Experiment, phases: Sequence[Phase], hardened: bool) -> list[str]:
    """What the trainings of an attack ask for beside the experiment's own."""
    problems, training = [], experiment.finetune.training if experiment.finetune else {}
    for number, phase in enumerate(phases, 1):
        where = f"finetune.attack: phase {number}"
        problems += _training_problems(f"{where}: training", dict(phase.training))
        if isinstance(phase.adapter, Mapping):
            problems += adapter_fields.problems(f"{where}: adapter", phase.adapter)
            problems += _lora_problems(f"{where}: adapter", phase.adapter)
        try:
            phase.trained(training)
        except InputError as error:
            problems.append(str(error))
        if phase.adapter is not None and experiment.topology == "single" and hardened and experiment.align:
            problems.append(
                f"{where}: has an adapter of its own, so that the alignment's is merged, and the repair before "
                "fine-tuning may have changed that one. Set topology: double"
            )
    return problems


def _training_problems(path: str, training: dict[str, Any]) -> list[str]:
    from trl.trainer.sft_config import SFTConfig

    names = [f.name for f in fields(SFTConfig) if f.init]
    problems = training_fields.problems(path, training)  # again, for experiments that no file was read for
    problems += field_problems(path, training, SFTConfig, names)
    if not problems:
        problems += [
            f"{path}.{name}: expected at least {least}, got {training[name]}"
            for name, least in _LEAST.items()
            if name in training and training[name] < least
        ]
        if training.get("max_steps") == 0:  # the Trainer would take it for "not set" and train whole epochs
            problems.append(f"{path}.max_steps: expected at least 1 (or -1: num_train_epochs counts), got 0")
        if training.get("num_train_epochs") == 0 and training.get("max_steps", -1) < 0:
            problems.append(f"{path}.num_train_epochs: expected more than 0 where max_steps is not set, got 0")
    return problems
