"""The stages of one experiment, and what each depends on, which is its key (`building.py` says how it is made).

A stage is a pure function of its configuration, its parents and its data; the digest of these is its key in the store.
The chain of an experiment is

    align -> harden -> finetune -> repair        each followed by evaluate where a cell of the table asks for it

where `harden` is a repair before the user's run. Beside it lies what a method asks for: the rows of an attack that
looks at the model (`attack-rows`), the aligned model fine-tuned on harmful rows (`unaligned`). And a model is never
stored whole: it is the base plus the layers (adapters, weights, changes of a repair) that the stages left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mithridate.data.tasks import TASKS
from mithridate.errors import InputError
from mithridate.experiment.config import FULL, Align, Experiment, Finetune, in_order
from mithridate.experiment.methods import (
    around_prompts,
    attack_config,
    attack_fields,
    attack_in_words,
    attack_of,
    defenses_of,
    part_of,
    repair_of,
    repair_settings,
    repaired_in,
    trained_adapter,
)
from mithridate.judges.base import Judge
from mithridate.methods import Attack, Defense, Method, Phase
from mithridate.methods.defense import acts
from mithridate.methods.registry import KINDS, by_name, code_of
from mithridate.models import require_chat_template
from mithridate.pipeline.context import RunContext
from mithridate.pipeline.launch import launch_of
from mithridate.protocols import PROTOCOLS, protocol
from mithridate.store import Store

# Raised when the same inputs no longer give the same artefact.
VERSIONS = {
    **{"align": 1, "harden": 1, "unaligned": 1, "attack-rows": 1, "finetune": 1},
    **{"repair": 2, "evaluate": 2},
}

_NOT_GIVEN = "required by this experiment, but missing"
VALIDATION = "task_validation"  # the part of the data that budgets are held on
# What of a generator's fields decides how fast it answers, and not what.
_PACE = ("batch_size", "concurrency", "timeout", "retries", "api_key_env")


@dataclass(frozen=True)
class Stage:
    """A pure function's name and arguments, whose result the store keeps under their digest."""

    name: str
    config: dict[str, Any]
    parents: dict[str, str]
    data: dict[str, str]

    @cached_property
    def key(self) -> str:
        return Store.key(self.name, self.config, self.parents, self.data, VERSIONS[self.name])


class ExperimentStages:
    """The model stages of one experiment; a stage that the experiment leaves out is None."""

    def __init__(self, experiment: Experiment, context: RunContext):
        self.experiment, self.context = experiment, context
        self.launch = launch_of(experiment)
        self.aside: dict[str, list[Stage]] = {}  # what a stage needs besides the model before it, by the stage's name
        self.align = self._align(experiment.align) if experiment.align else None
        self.harden = self._repair("harden", self.align)
        self.start = self.harden or self.align  # the aligned model; None: it is the base
        self.finetune = self._finetune(experiment.finetune) if experiment.finetune else None
        self.repair = self._repair("repair", self.finetune or self.start)

    @cached_property
    def tokenizer(self) -> Any:
        """Of the base model, with a chat template where prompts are put into that, in training or at the test."""
        templates = (self.experiment.template, protocol(self.experiment.evaluate.protocol).template)
        tokenizer = self.context.tokenizer
        if "chat" in templates:
            require_chat_template(self.context.base, tokenizer)
        return tokenizer

    def stages(self) -> list[Stage]:
        """All of them, each after those that it depends on."""
        main = [stage for stage in (self.align, self.harden, self.finetune, self.repair) if stage]
        found = [one for stage in main for one in (*self.aside.get(stage.name, ()), stage)]
        return list({stage.key: stage for stage in found}.values())

    def upto(self, name: str) -> list[Stage]:
        """The chain's stages as far as the model after `name`: align (hardened, where it is), finetune or repair."""
        last = {
            "align": self.start,
            "finetune": self.finetune or self.start,
            "repair": self.repair or self.finetune or self.start,
        }[name]
        stages = self.stages()
        return stages[: stages.index(last) + 1] if last else []

    def positions(self) -> list[str]:
        """The stages after which the model is scored: always the aligned model (or, unaligned, the base) first."""
        return ["align"] + [name for name in ("finetune", "repair") if getattr(self, name)]

    def label(self, stage: Stage) -> str:
        """What a stage does, in words, for the line that announces it."""
        words = [stage.name, *stage.config.get("defense", {}), *stage.config.get("repair", {})]
        if "attack" in stage.config:
            words += [attack_in_words(stage.config["attack"]), stage.config.get("topology", "")]
        if stage.config.get("step"):
            words.append(f"at step {stage.config['step']}")
        return " ".join(filter(None, words))

    def folder(self, stage: Stage) -> Path:
        """Where the store has the stage's artefact.

        Raises:
            InputError: it has none.
        """
        store = self.context.store
        found = store.find(stage.name, stage.key)
        if found is None:
            raise InputError(f"stage {stage.name} {stage.key[:12]} is not in the store {store.root}: run it first")
        return found

    def judges(self) -> list[Judge]:
        """Those of the evaluation's protocol, then the experiment's further ones."""
        return self.context.judges(self.experiment.evaluate)

    @property
    def judged_by_models(self) -> bool:
        """Whether a judge is a model, of any size, that has to be loaded or reached."""
        return any(judge.about.size != "none" for judge in self.judges())

    @property
    def loads_anew(self) -> bool:
        """Whether each model is loaded anew to answer, and nothing else is, so that any process may ask it."""
        return "vllm" not in self.experiment.evaluate.generator and not self.judged_by_models

    def settings(self, upto: str) -> dict[str, Any]:
        """The values of every method that acted as far as stage `upto`, by name."""
        chosen: dict[str, Any] = {}
        for stage in self.upto(upto):
            chosen |= stage.config.get("defense", {}) | stage.config.get("repair", {})
        return chosen

    # -- what each stage depends on ---------------------------------------------------------------

    def _align(self, align: Align) -> Stage:
        config = self._trained("align")
        data = self._data(["alignment"], align.defense)

        return Stage("align", config, self._parents(None), data)

    def _finetune(self, finetune: Finetune) -> Stage:
        attack = attack_of(finetune)
        phases = self.phases(attack)
        config = self._trained("finetune") | {
            "topology": self.experiment.topology,
            "attack": attack_config(finetune),
            **_code(defenses=finetune.defense, attacks=[attack_fields(finetune)[0]]),
            "snapshots": self.experiment.evaluate.resistance,
            **({"frozen": finetune.frozen} if finetune.frozen else {}),
            **({"phases": [phase.key() for phase in phases]} if phases else {}),
            **({"revised": 1} if _revised(phases, defenses_of(finetune.defense)) else {}),
        }
        parents = self._parents(self.start)
        if attack.needs_model:
            rows = self._attack_rows_stage(finetune, attack)
            self.aside.setdefault("finetune", []).append(rows)
            parents, data = parents | {rows.name: rows.key}, self._data([], finetune.defense)
        else:
            data = self._data(self._attack_roles(attack), finetune.defense)
        parents |= self._asked("finetune", self.start, defenses_of(finetune.defense))

        return Stage("finetune", config, parents, data)

    def _attack_rows_stage(self, finetune: Finetune, attack: Attack) -> Stage:
        """The rows of an attack that looks at the model which is going to be attacked."""
        config = {
            "attack": attack_config(finetune),
            **_code(attacks=[attack_fields(finetune)[0]]),
            "seed": self.experiment.seed,
            "topology": self.experiment.topology,  # says how the model is put together
            "dtype": self.context.dtype,
        }

        roles = self._data(self._attack_roles(attack), {})
        return Stage("attack-rows", config, self._parents(self.start), roles)

    def _unaligned(self, aligned: Stage | None) -> Stage:
        """The aligned model after a fine-tune, without any defense, on the harmful rows that a defender has."""
        config = self._trained("unaligned") | {"topology": self.experiment.topology}

        return Stage("unaligned", config, self._parents(aligned), self._data(["defender_harmful"], {}))

    def _repair(self, name: str, parent: Stage | None) -> Stage | None:
        """The repair of stage `harden` (before the user's run) or `repair` (after it), if there is one."""
        chosen = repair_of(self.experiment, post_alignment=name == "harden")
        if chosen is None:
            return None
        method, repair = chosen
        settings = {method: repair_settings(self.experiment, method)}
        dtype = repaired_in(self.experiment, name, self.context.dtype)
        config = {"repair": settings, "topology": self.experiment.topology, "dtype": dtype}
        config |= self._template() | _code(repairs=[method])
        if self.experiment.seed and "seed" in repair.settings():
            config["seed"] = self.experiment.seed  # `repair_of` has put it into the method's own
        roles = [*repair.data_roles().values()]
        if name == "repair" and self.experiment.budget:
            config["asked"] = self._asked_within_budget()
            roles.append(VALIDATION)
        data = self._data(roles, {})
        parents = self._parents(parent) | self._asked(name, self.align if name == "harden" else self.start, [repair])
        return Stage(name, config, parents, data)

    def _asked_within_budget(self) -> dict[str, Any]:
        """How the models are asked that a repair under a budget tries.

        Raises:
            InputError: the task has no validation part, or no rule that scores its answers.
        """
        settings, task = self.experiment.evaluate, self.context.roles.task_name
        if task is None or VALIDATION not in self.context.roles.parts():
            raise InputError("budget.accuracy: data.task has no validation part; set validation_share")
        if not protocol(settings.protocol).task(task).rule:
            raise InputError(
                f"budget.accuracy: answers to {task} are not right or wrong but compared by a judge. Take a task with "
                "a rule, or leave `budget` out"
            )
        around = [around_prompts(self.experiment, upto) for upto in ("finetune", "repair")]
        return {
            "protocol": settings.protocol,
            "generator": {name: _deciding(fields) for name, fields in settings.generator.items()},
            "limit": settings.limit,
            **_code(protocols=[settings.protocol], tasks=[task]),
            **({"at_test": [[vars(one) for one in each] for each in around]} if any(around) else {}),
        }

    def _asked(self, name: str, aligned: Stage | None, methods: Sequence[Method]) -> dict[str, str]:
        """The stages beside the chain that stage `name` needs, for models that its methods ask for: name to key."""
        if not any("unaligned" in method.model_inputs().values() for method in methods):
            return {}
        stage = self._unaligned(aligned)
        self.aside.setdefault(name, []).append(stage)
        return {stage.name: stage.key}

    def sets(self, step: int | None = None) -> dict[str, str]:
        """What a model is asked, as `answers` names it, and the part of the roles that holds it.

        Raises:
            InputError: there are no harmful prompts.
        """
        settings = self.experiment.evaluate
        suffix = "_validation" if settings.part == "validation" else ""
        sets = {"harmful": f"test_harmful{suffix}"}
        if step is None:
            sets["benign"] = f"test_benign{suffix}"
        if self.context.roles.task_name:
            sets[f"task:{self.context.roles.task_name}"] = f"task_{settings.part}"
        if step is None:
            sets |= {f"extra:{name}": f"extra:{name}" for name in settings.tasks}
        parts = self.context.roles.parts()
        sets = {name: role for name, role in sets.items() if role in parts}
        if "harmful" not in sets:
            missing = "has no validation part; set validation_share" if self.context.roles.test_harmful else _NOT_GIVEN
            raise InputError(f"data.test_harmful: {missing}")
        return sets

    def evaluation(self, upto: str, step: int | None = None) -> Stage:
        """The evaluation of the model after stage `upto`, or at attack step `step` (no benign prompts there)."""
        settings, sets = self.experiment.evaluate, self.sets(step)
        config = {
            "protocol": settings.protocol,
            "generator": {name: _deciding(fields) for name, fields in settings.generator.items()},
            "limit": settings.limit,
            "sets": sorted(sets),
            "upto": upto,
            "step": step,
            "topology": self.experiment.topology,
            "dtype": self.context.dtype,
            **_code(protocols=[settings.protocol], tasks=[task for name in sets if (task := name.partition(":")[2])]),
        }
        if settings.capability and step is None:
            config["capability"] = settings.capability
        if self.precision != FULL:
            config["precision"] = self.precision
        around = around_prompts(self.experiment, upto)
        if around:
            config["at_test"] = [vars(each) for each in around]
        if sampling := settings.sampling(self.experiment.seed):  # nothing for greedy answers, which need no seed
            config["sampling"] = vars(sampling)
        parent = {"align": self.start, "finetune": self.finetune, "repair": self.repair}[upto]

        return Stage("evaluate", config, self._parents(parent), self._data(list(sets.values()), {}))

    @property
    def precision(self) -> str:
        """Of the weights that answer.

        Raises:
            InputError: there are several, where one model is asked.
        """
        if len(several := self.experiment.evaluate.precision) > 1:
            raise InputError(
                f"evaluate.precision: one model is asked here, and several ({', '.join(several)}) are cells of a run. "
                f"Set one: -o evaluate.precision={several[0]}"
            )
        return self.experiment.evaluate.precision[0]

    def _parents(self, parent: Stage | None) -> dict[str, str]:
        return {parent.name: parent.key} if parent else {"model": self.context.base.digest}

    def adapter(self, name: str) -> dict[str, Any] | None:
        """LoraConfig's fields for a training stage; None where it trains all weights."""
        adapter = self.experiment.adapter_of("finetune" if name == "unaligned" else name)
        return dict(adapter) if adapter else None

    def frozen(self, name: str) -> list[str]:
        """Patterns of the names of tensors that the training of stage `name` leaves as they are."""
        return self.experiment.finetune.frozen if name == "finetune" and self.experiment.finetune else []

    def _template(self) -> dict[str, str]:
        """Nothing for the chat template, which was the only one when the first keys were made."""
        return {"template": self.experiment.template} if self.experiment.template != "chat" else {}

    def training(self, name: str) -> Align | Finetune:
        """Defense and training of a stage; those of `unaligned` are the fine-tune's, or the alignment's."""
        if name != "unaligned":
            return getattr(self.experiment, name)
        like = self.experiment.finetune or self.experiment.align
        return Align(training=like.training if like else {})

    def _trained(self, name: str) -> dict[str, Any]:
        settings = self.training(name)
        order = list(settings.defense)
        return {
            "defense": settings.defense,
            **({"order": order} if order != in_order(order) else {}),
            **({"guards": {path: who for path, (_, who) in guards.items()}} if (guards := self.guards(name)) else {}),
            **_code(defenses=settings.defense),
            "training": settings.training,
            "seed": self.experiment.seed,
            "dtype": self.context.dtype,
            "adapter": self.adapter(name),
            **self._template(),
            **({"remote_code": True} if self.context.base.remote_code else {}),
            # Nothing for one process, in which nothing is launched. Of the file, only its kind changes a number.
            **({"launch": {"kind": self.launch.kind, "processes": self.launch.processes}} if self.launch else {}),
        }

    def _data(self, roles: list[str], defense: dict[str, Any]) -> dict[str, str]:
        roles = [*roles, *(role for method in defenses_of(defense) for role in method.data_roles().values())]
        for role in map(part_of, roles):
            if role not in self.context.roles.parts():
                raise InputError(f"data.{role.removesuffix('_train')}: {_NOT_GIVEN}")
        return {role: self.context.roles.digests[role] for role in sorted(set(map(part_of, roles)))}

    def _attack_roles(self, attack: Attack) -> list[str]:
        return list(attack.data_roles().values())

    def records(self, role: str) -> list[dict[str, Any]]:
        """The rows of a data role."""
        return getattr(self.context.roles, part_of(role))

    @cached_property
    def attack(self) -> Attack:
        """That of the fine-tune, which there is."""
        assert self.experiment.finetune
        return attack_of(self.experiment.finetune)

    def phases(self, attack: Attack) -> list[Phase]:
        """None of them where there is one training over all rows, as there was for the first keys."""
        phases = attack.phases()
        return [] if phases == [Phase()] else phases

    def guards(self, name: str) -> dict[str, tuple[Judge, dict[str, Any]]]:
        """The judges, with their identities, that the defenses of a training name: by "METHOD.FIELD".

        Raises:
            InputError: the model of one is not there.
        """
        chosen, where = self.training(name).defense, f"{name}.defense"
        asked = {
            f"{method}.{field}": spec
            for method, one in zip(chosen, defenses_of(chosen), strict=True)
            for field in one.guards
            if (spec := getattr(one, field)) is not None
        }
        return {path: self.context.guard(spec, f"{where}.{path}") for path, spec in asked.items()}

    def model_kinds(self, name: str) -> set[str]:
        """The models that the defenses of a training need. The one that it starts from is the trainer's own."""
        methods = defenses_of(self.training(name).defense)
        return {kind for method in methods for kind in method.model_inputs().values()} - {"start"}

    def starts_at_base(self, name: str) -> bool:
        """Whether the training of stage `name`, or the one before a repair of that name, starts from the base."""
        return name in ("align", "harden") or (name == "repair" and self.finetune is None)

    def largest_rank(self) -> int:
        """Of the adapters that the stages train; 0 where they train none."""
        adapters = [self.adapter("align"), self.adapter("finetune")]
        if self.finetune:
            adapters += [dict(phase.adapter) for phase in self.attack.phases() if isinstance(phase.adapter, Mapping)]
        return max((adapter.get("r", 8) for adapter in adapters if adapter), default=0)  # 8: LoraConfig's own

    def free_adapter(self, name: str, kind: str) -> dict[str, Any] | None:
        """LoraConfig's fields of the adapter that the model of `assembly.input_layers` will have unmerged."""
        kept = self.align and self.experiment.topology == "single"
        aligned = self.adapter("align") if kept else None
        if kind == "repaired" and name == "repair" and self.finetune:
            last = trained_adapter(self.experiment, self.attack.phases()[-1])
            return None if last is None else dict(last)
        if kind == "base" or (kind == "start" and self.starts_at_base(name)):
            return None
        return self.adapter("unaligned") if kind == "unaligned" else aligned


def _revised(phases: Sequence[Phase], defenses: Sequence[Defense]) -> bool:
    """Whether the first keys are of something else: a defense that changes the rows kept the steps of an attack in a
    given order, and one that finishes did so after each of several trainings."""
    cut_short = any(phase.order == "given" for phase in phases) and any(acts(one, "rows") for one in defenses)
    return cut_short or (len(phases) > 1 and any(one.finishes for one in defenses))


def _code(**kinds: Iterable[str]) -> dict[str, Any]:
    """The code of methods, tasks and protocols from other packages, by kind and name, and of tasks of this one the
    version, beside the first, of which the first keys said nothing."""
    registries = {kind: by_name(kind) for kind in KINDS} | {"tasks": TASKS, "protocols": PROTOCOLS}
    found = code_of(kinds, registries)
    own = [TASKS[name] for name in kinds.get("tasks", ()) if name in TASKS.own]
    found |= {f"tasks.{task.name}": task.version for task in own if task.version != "1"}
    return {"code": found} if found else {}


def _deciding(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _PACE}
