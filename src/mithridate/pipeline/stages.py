"""The stages of one experiment: what each depends on (its key), and how it is made.

A stage is a pure function of its configuration, its parents and its data; the digest of these is its key in the store.
The chain of an experiment is

    align -> harden -> finetune -> repair        each followed by evaluate where a cell of the table asks for it

where `harden` is a repair before the user's run. Beside it lies what a method asks for: the rows of an attack that
looks at the model (`attack-rows`), the aligned model fine-tuned on harmful rows (`unaligned`). And a model is never
stored whole: it is the base plus the layers (adapters, weights, changes of a repair) that the stages left.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mithridate.errors import InputError
from mithridate.experiment.config import Align, Evaluate, Experiment, Finetune, in_order
from mithridate.experiment.methods import (
    around_prompts,
    attack_config,
    attack_in_words,
    attack_of,
    defenses_of,
    part_of,
    repair_of,
)
from mithridate.experiment.roles import Roles
from mithridate.files import canonical_json, digest
from mithridate.judges import judge
from mithridate.judges.base import Judge
from mithridate.methods import Attack, Method, Phase, Repair
from mithridate.models import ModelFiles
from mithridate.pipeline.generators import Generators
from mithridate.pipeline.launch import launch_of
from mithridate.pipeline.rowcheck import RowCheck
from mithridate.problems import Findings
from mithridate.protocols import protocol
from mithridate.store import MANIFEST, Store

if TYPE_CHECKING:
    from mithridate.pipeline.training import Job

# Raised when the same inputs no longer give the same artefact.
VERSIONS = {
    **{"align": 1, "harden": 1, "unaligned": 1, "attack-rows": 1, "finetune": 1},
    **{"repair": 2, "evaluate": 2},
}
_ROWS = "rows.json"  # of `attack-rows`

_NOT_GIVEN = "required by this experiment, but missing"
# What of a generator's fields decides how fast it answers, and not what.
_PACE = ("batch_size", "concurrency", "timeout", "retries", "api_key_env")


@dataclass(frozen=True)
class Stage:
    """One node of the graph: `build` fills a work folder with the stage's files, and returns what `stage.json` is to
    record besides, if anything."""

    name: str
    config: dict[str, Any]
    parents: dict[str, str]
    data: dict[str, str]
    build: Callable[[Path], dict[str, Any] | None] = field(compare=False, repr=False)

    @cached_property
    def key(self) -> str:
        return Store.key(self.name, self.config, self.parents, self.data, VERSIONS[self.name])


@dataclass
class Workshop:
    """What the stages of one run share: the base model, the data, the store, and how to compute."""

    base: ModelFiles
    roles: Roles
    store: Store
    dtype: str  # "float32" or "bfloat16"
    progress: bool = True
    checked: set[str] = field(default_factory=set)  # digests of what was tried out already
    opened: dict[str, list[Judge]] = field(default_factory=dict)  # judges by how they are set, until `close`
    counting: dict[str, RowCheck] = field(default_factory=dict)  # by template
    arguments: dict[str, Any] = field(default_factory=dict)  # SFTConfigs, as `precheck.parts` makes them
    report_to: list[str] = field(default_factory=list)  # services that trainings are reported to
    generators: Generators = field(default_factory=Generators)

    @cached_property
    def tokenizer(self) -> Any:
        from mithridate.models import load_tokenizer

        return load_tokenizer(self.base, needs_chat_template=False)  # a chain asks for one where it needs it

    @property
    def here(self) -> bool:
        """Whether the base model's files are on this machine (a server's, or one that is not fetched yet, are not)."""
        return self.base.path != Path() and (self.base.path / "config.json").is_file()

    @cached_property
    def context(self) -> int | None:
        """Tokens that the base model reads at most; None where its configuration, or its absence, does not say."""
        if not self.here:
            return None
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    @cached_property
    def config(self) -> Any:
        from mithridate.models import load_config

        return load_config(self.base)

    def rowcheck(self, template: str) -> RowCheck:
        """What counts rows under a template."""
        return self.counting.setdefault(template, RowCheck(self.tokenizer, template))

    @property
    def torch_dtype(self) -> Any:
        import torch

        return getattr(torch, self.dtype)

    def one_layer(self) -> Any:
        """A model of the base's architecture with one layer of random weights: enough to check a set-up on."""
        import torch
        from transformers import AutoModelForCausalLM

        from mithridate.models import shortened

        config = shortened(self.config, 1, others=1)
        code = {"trust_remote_code": True} if self.base.remote_code else {}
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, **code)

    def judges(self, evaluate: Evaluate) -> list[Judge]:
        """The judges of an evaluation, its protocol's first; each model is loaded once, and only when it judges."""
        from mithridate.evaluation import judges_of

        key = canonical_json([evaluate.protocol, evaluate.judges])
        if key not in self.opened:
            further = [judge({name: fields}) for name, fields in evaluate.judges.items()]
            self.opened[key] = judges_of(protocol(evaluate.protocol), further)
        return self.opened[key]

    def close(self) -> None:
        """Frees the judges' models and connections, and what answers."""
        self.generators.close()
        for judges in self.opened.values():
            for each in judges:
                each.close()
        self.opened.clear()

    def folder(self, stage: Stage) -> Path:
        found = self.store.find(stage.name, stage.key)
        if found is None:
            raise InputError(
                f"stage {stage.name} {stage.key[:12]} is not in the store {self.store.root}: run it first"
            )
        return found

    def make(self, stage: Stage) -> bool:
        """Makes the stage unless the store has it. Returns whether it was there."""
        if self.store.find(stage.name, stage.key) is not None:
            return True
        meta = {"config": stage.config, "parents": stage.parents, "data": stage.data, "version": VERSIONS[stage.name]}
        with self.store.building(stage.name, stage.key, meta) as work:
            if work is not None:  # None: another process finished it while this one waited for the lock
                meta |= stage.build(work) or {}
        return False


class Chain:
    """The model stages of one experiment; a stage that the experiment leaves out is None."""

    def __init__(self, experiment: Experiment, shop: Workshop):
        self.experiment, self.shop = experiment, shop
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
        from mithridate.models import load_tokenizer

        templates = (self.experiment.template, protocol(self.experiment.evaluate.protocol).template)
        return load_tokenizer(self.shop.base, needs_chat_template="chat" in templates)

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

    def rows(self, evaluation: Stage) -> list[dict[str, Any]]:
        """The records of an evaluation, one row per prompt, with the verdicts of the judges as they are now.

        The answers are what took long; verdicts are kept by content, so that no answer is judged twice alike.
        """
        import pyarrow.parquet as pq

        from mithridate.evaluation import judged

        rows = pq.read_table(self.shop.folder(evaluation) / "records.parquet").to_pylist()
        settings = self.experiment.evaluate
        cache = self.shop.store.root / "verdicts"
        return judged(rows, protocol(settings.protocol), self.judges(), cache, self.shop.progress, evaluation.key)

    def judges(self) -> list[Judge]:
        """Those of the evaluation's protocol, then the experiment's further ones."""
        return self.shop.judges(self.experiment.evaluate)

    def capability(self, evaluation: Stage) -> list[dict[str, Any]]:
        """The scores on lm-eval's tasks, where the experiment asks for some."""
        path = self.shop.folder(evaluation) / "capability.json"
        return json.loads(path.read_text()) if path.exists() else []

    def history(self, upto: str) -> list[dict[str, Any]]:
        """The training log of the stage, where it trained."""
        path = self.shop.folder(self.upto(upto)[-1]) / "history.json" if self.upto(upto) else None
        return json.loads(path.read_text()) if path and path.exists() else []

    def attack_steps(self) -> int | None:
        """Optimizer steps that the fine-tune took."""
        history = self.history("finetune")
        return history[-1]["step"] if history and self.finetune else None

    def trained(self, upto: str) -> dict[str, int] | None:
        """What the last training as far as stage `upto` trained (`precheck.trained`); None where there was none, or it
        was made before this was recorded."""
        found = [one.get("trained") for one in self._manifests(upto) if one["stage"] in ("align", "finetune")]
        return found[-1] if found else None

    def said(self, upto: str) -> list[str]:
        """What the trainings as far as stage `upto` lost of their rows, in words."""
        return [text for one in self._manifests(upto) for text in one.get("said", ())]

    def _manifests(self, upto: str) -> list[dict[str, Any]]:
        return [json.loads((self.shop.folder(stage) / MANIFEST).read_text()) for stage in self.upto(upto)]

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

        def build(work: Path) -> dict[str, Any]:
            return self._train(work, "align", self.shop.roles.alignment, [])

        return Stage("align", config, self._parents(None), data, build)

    def _finetune(self, finetune: Finetune) -> Stage:
        attack = attack_of(finetune)
        phases = self._phases(attack)
        config = self._trained("finetune") | {
            "topology": self.experiment.topology,
            "attack": attack_config(finetune),
            "snapshots": self.experiment.evaluate.resistance,
            **({"phases": [vars(phase) for phase in phases]} if phases else {}),
        }
        parents = self._parents(self.start)
        if attack.needs_model:
            rows = self._attack_rows_stage(finetune, attack)
            self.aside.setdefault("finetune", []).append(rows)
            parents, data = parents | {rows.name: rows.key}, self._data([], finetune.defense)
        else:
            data = self._data(self._attack_roles(attack), finetune.defense)
        parents |= self._asked("finetune", self.start, defenses_of(finetune.defense))

        def build(work: Path) -> dict[str, Any]:
            from mithridate.pipeline import precheck

            rows, resistance = self.attack_rows(), self.experiment.evaluate.resistance
            if attack.needs_model:  # else this was found out before any compute
                precheck.require_kept(self, "finetune", rows)
            return self._train(work, "finetune", rows, resistance)

        return Stage("finetune", config, parents, data, build)

    def _attack_rows_stage(self, finetune: Finetune, attack: Attack) -> Stage:
        """The rows of an attack that looks at the model which is going to be attacked."""
        config = {
            "attack": attack_config(finetune),
            "seed": self.experiment.seed,
            "topology": self.experiment.topology,  # says how the model is put together
            "dtype": self.shop.dtype,
        }

        def build(work: Path) -> None:
            rows = self._made_rows(attack, (self.load("align"), self.tokenizer))
            (work / _ROWS).write_text(json.dumps(rows), encoding="utf-8")

        roles = self._data(self._attack_roles(attack), {})
        return Stage("attack-rows", config, self._parents(self.start), roles, build)

    def _unaligned(self, aligned: Stage | None) -> Stage:
        """The aligned model after a fine-tune, without any defense, on the harmful rows that a defender has."""
        config = self._trained("unaligned") | {"topology": self.experiment.topology}

        def build(work: Path) -> dict[str, Any]:
            return self._train(work, "unaligned", self.shop.roles.defender_harmful, [], aligned)

        return Stage("unaligned", config, self._parents(aligned), self._data(["defender_harmful"], {}), build)

    def _repair(self, name: str, parent: Stage | None) -> Stage | None:
        """The repair of stage `harden` (before the user's run) or `repair` (after it), if there is one."""
        chosen = repair_of(self.experiment, post_alignment=name == "harden")
        if chosen is None:
            return None
        method, repair = chosen
        settings = {method: self.experiment.repair[method]}
        config = {"repair": settings, "topology": self.experiment.topology, "dtype": self.shop.dtype}
        config |= self._template()
        data = self._data([*repair.data_roles().values()], {})
        parents = self._parents(parent) | self._asked(name, self.align if name == "harden" else self.start, [repair])
        return Stage(name, config, parents, data, lambda work: self._build_repair(work, name, repair))

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
        if self.shop.roles.task_name:
            sets[f"task:{self.shop.roles.task_name}"] = f"task_{settings.part}"
        if step is None:
            sets |= {f"extra:{name}": f"extra:{name}" for name in settings.tasks}
        parts = self.shop.roles.parts()
        sets = {name: role for name, role in sets.items() if role in parts}
        if "harmful" not in sets:
            missing = "has no validation part; set validation_share" if self.shop.roles.test_harmful else _NOT_GIVEN
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
            "dtype": self.shop.dtype,
        }
        if settings.capability and step is None:
            config["capability"] = settings.capability
        around = around_prompts(self.experiment, upto)
        if around:
            config["at_test"] = [vars(each) for each in around]
        if sampling := settings.sampling(self.experiment.seed):  # nothing for greedy answers, which need no seed
            config["sampling"] = vars(sampling)
        parent = {"align": self.start, "finetune": self.finetune, "repair": self.repair}[upto]

        def build(work: Path) -> None:
            self._build_evaluation(work, sets, upto, step, stage.key)

        stage = Stage("evaluate", config, self._parents(parent), self._data(list(sets.values()), {}), build)
        return stage

    def _parents(self, parent: Stage | None) -> dict[str, str]:
        return {parent.name: parent.key} if parent else {"model": self.shop.base.digest}

    def _adapter(self, name: str) -> dict[str, Any] | None:
        """LoraConfig's fields for a training stage; None where it trains all weights."""
        adapter = self.experiment.adapter_of("finetune" if name == "unaligned" else name)
        return dict(adapter) if adapter else None

    def _template(self) -> dict[str, str]:
        """Nothing for the chat template, which was the only one when the first keys were made."""
        return {"template": self.experiment.template} if self.experiment.template != "chat" else {}

    def _training(self, name: str) -> Align | Finetune:
        """Defense and training of a stage; those of `unaligned` are the fine-tune's, or the alignment's."""
        if name != "unaligned":
            return getattr(self.experiment, name)
        like = self.experiment.finetune or self.experiment.align
        return Align(training=like.training if like else {})

    def _trained(self, name: str) -> dict[str, Any]:
        settings = self._training(name)
        order = list(settings.defense)
        return {
            "defense": settings.defense,
            **({"order": order} if order != in_order(order) else {}),
            "training": settings.training,
            "seed": self.experiment.seed,
            "dtype": self.shop.dtype,
            "adapter": self._adapter(name),
            **self._template(),
            **({"remote_code": True} if self.shop.base.remote_code else {}),
            # Nothing for one process, in which nothing is launched. Of the file, only its kind changes a number.
            **({"launch": {"kind": self.launch.kind, "processes": self.launch.processes}} if self.launch else {}),
        }

    def _data(self, roles: list[str], defense: dict[str, Any]) -> dict[str, str]:
        roles = [*roles, *(role for method in defenses_of(defense) for role in method.data_roles().values())]
        for role in map(part_of, roles):
            if role not in self.shop.roles.parts():
                raise InputError(f"data.{role.removesuffix('_train')}: {_NOT_GIVEN}")
        return {role: self.shop.roles.digests[role] for role in sorted(set(map(part_of, roles)))}

    def _attack_roles(self, attack: Attack) -> list[str]:
        return list(attack.data_roles().values())

    def _records(self, role: str) -> list[dict[str, Any]]:
        return getattr(self.shop.roles, part_of(role))

    # -- how each stage is made -------------------------------------------------------------------

    @cached_property
    def _attack(self) -> Attack:
        assert self.experiment.finetune
        return attack_of(self.experiment.finetune)

    def _phases(self, attack: Attack) -> list[Phase]:
        """None of them where there is one training over all rows, as there was for the first keys."""
        phases = attack.phases()
        return [] if phases == [Phase()] else phases

    def attack_rows(self) -> list[dict[str, Any]]:
        """What is handed in for fine-tuning; of an attack that needs the model, once that stage is there."""
        if not self._attack.needs_model:
            return self._made_rows(self._attack)
        [stage] = [stage for stage in self.aside["finetune"] if stage.name == "attack-rows"]
        return json.loads((self.shop.folder(stage) / _ROWS).read_text(encoding="utf-8"))

    def _made_rows(self, attack: Attack, model: Any = None) -> list[dict[str, Any]]:
        roles = {name: self._records(role) for name, role in attack.data_roles().items()}
        try:
            rows = attack.rows(roles, self.experiment.seed, model)
        except InputError as error:
            raise InputError(f"finetune.attack: {error}") from error
        if not rows:
            raise InputError("finetune.attack: it has made no row of the data, so that there is nothing to train on")
        return rows

    def _train(
        self, work: Path, name: str, rows: list[dict], snapshots: list[int], aligned: Stage | None = None
    ) -> dict[str, Any]:
        """Trains in this process, or in several. Returns what `stage.json` is to say of it: what was trained, and of
        several processes."""
        from mithridate.pipeline import launch, precheck, training

        start = self._model(name, "start") if name != "unaligned" else self._aligned(aligned)
        job, counted = self._job(name, rows, start, snapshots), precheck.counted(self, name, rows)
        job = replace(
            job,
            models={kind: self._model(name, kind) for kind in self._kinds(name)},
            sequences=[left.sequences for _, left in counted],
        )
        record: dict[str, Any] = {}
        if self.launch:
            record = launch.run(job, self.launch, work)
        else:
            training.run_job(job, work)
        steps = json.loads((work / "history.json").read_text())[-1]["step"]
        record["trained"] = precheck.trained(counted, rows, steps)
        return record | {"said": precheck.said(self, name, counted)}

    def _kinds(self, name: str) -> set[str]:
        """The models that the defenses of a training need. The one that it starts from is the trainer's own."""
        methods = defenses_of(self._training(name).defense)
        return {kind for method in methods for kind in method.model_inputs().values()} - {"start"}

    def _job(self, name: str, rows: list[dict], layers: list[Any], snapshots: list[int]) -> Job:
        from mithridate.pipeline.training import Job

        settings = self._training(name)
        roles = {role for method in defenses_of(settings.defense) for role in method.data_roles().values()}
        return Job(
            base=self.shop.base,
            layers=layers,
            dtype=self.shop.dtype,
            adapter=self._adapter(name),
            rows=rows,
            defense=settings.defense,
            side_rows={role: self._records(role) for role in roles},
            training=settings.training,
            seed=self.experiment.seed,
            snapshots=snapshots,
            progress=self.shop.progress,
            template=self.experiment.template,
            phases=self._phases(self._attack) if name == "finetune" else [],
            report_to=self.shop.report_to,
        )

    def _build_repair(self, work: Path, name: str, repair: Repair) -> None:
        from mithridate.models.quantisation import dequantised

        def load(kind: str) -> Any:
            model = self._load(self._model(name, kind))
            return model if repair.cost().changes == "adapter" else dequantised(model)  # 4 bits hold no new values

        models = {field: load(kind) for field, kind in repair.model_inputs().items()}
        model = load("repaired")
        repair.apply(model, **self._rows_of(repair), **models, tokenizer=self.tokenizer).save(work / "model")

    def _rows_of(self, repair: Repair) -> dict[str, Any]:
        """The rows of a repair by argument: records, or tokenised ones where the template is not the model's own."""
        from mithridate.data.records import training_dataset

        rows = {name: self._records(role) for name, role in repair.data_roles().items()}
        if self.experiment.template == "chat":
            return rows
        template = self.experiment.template
        return {name: training_dataset(records, self.tokenizer, template) for name, records in rows.items()}

    def _build_evaluation(self, work: Path, sets: dict[str, str], upto: str, step: int | None, key: str) -> None:
        from mithridate.evaluation import answers
        from mithridate.results.parts import write

        settings, parts = self.experiment.evaluate, self.shop.roles.parts()
        records = {name: parts[role][: settings.limit] for name, role in sets.items()}
        generator = self.shop.generators.open(self, upto, step)
        try:
            chosen, cache = protocol(settings.protocol), self.shop.store.root / "answers"
            around, sampling = around_prompts(self.experiment, upto), settings.sampling(self.experiment.seed)
            rows = answers(generator, records, chosen, cache, self.shop.progress, key, around, sampling)
            if settings.capability and step is None:
                self._measure_capability(generator, work)
        finally:
            generator.close()
        write(work / "records.parquet", rows)

    def _measure_capability(self, generator: Any, work: Path) -> None:
        from mithridate.data.tasks.capability import capability

        settings = self.experiment.evaluate
        scores = capability(generator.model, self.shop.tokenizer, settings.capability, limit=settings.limit)
        (work / "capability.json").write_text(json.dumps([vars(score) for score in scores], indent=1))

    # -- before any compute ------------------------------------------------------------------------

    def preflight(self, here: bool = True, findings: Findings | None = None, scored: bool = True) -> None:
        """Finds what is cheap to find, before anything is computed: tries out the set-up of every training stage that
        is not in the store, over one random layer of the model; counts what tokenising leaves of its rows; and looks
        whether the test prompts fit the model.

        So what a defense, the adapter or SFTConfig refuses is refused now, not after the stages before it have been
        computed.

        Args:
            here: whether this machine is the one that will train.
            findings: takes up the problems, which are raised at the end where it is not given.
            scored: whether models will be tested.

        Raises:
            UnsupportedSetup: with reason and remedy.
            InputError: an adapter that does not fit, training arguments that SFTConfig or TRL refuses, too few rows
                for the attack, rows of which nothing would be trained, a resistance step that the attack does not
                reach, prompts that do not fit; all of them at once.
        """
        from mithridate.pipeline import precheck

        found = Findings() if findings is None else findings
        precheck.system_turn(self)  # alone: every row would say the same
        for stage in self.stages():
            if stage.name == "attack-rows":
                continue  # only its own model can tell
            # The seed only chooses among the rows, which a check that is tied to it counts.
            config = {name: value for name, value in stage.config.items() if name != "seed"}
            seed = self.experiment.seed if stage.name == "finetune" else None
            changed = self._free(stage.name, "repaired")
            asked = digest([stage.name, config, changed, stage.data, self.shop.base.digest, seed])
            if asked in self.shop.checked or self.shop.store.whole(stage.name, stage.key):
                continue
            self.shop.checked.add(asked)
            if stage.name in ("harden", "repair"):
                with found.noting():
                    precheck.try_repair(self, stage.name)
                continue
            with found.noting():
                if self.launch and here:
                    self.launch.check()
            with found.noting():
                self._check_training(stage, config, found)
        if scored:
            with found.noting():
                precheck.around_tests(self)
            with found.noting():
                precheck.tests(self)
        if findings is None:
            found.settle("experiment")

    def _check_training(self, stage: Stage, config: dict[str, Any], findings: Findings) -> None:
        from mithridate.pipeline import precheck

        rows = self._rows_to_try(stage.name)
        parts = precheck.parts(self, stage.name, rows)
        steps = precheck.steps(self, stage.name, parts)
        if not self.shop.here:
            return
        # Nor do the learning rate and the share of harmful rows change what is refused.
        config["training"] = {name: v for name, v in config["training"].items() if name != "learning_rate"}
        config["attack"] = config.get("attack", {}).get("kind")
        setup = digest(["set-up", stage.name, config | {"rows": len(rows)}, stage.data, self.shop.base.digest])
        if setup not in self.shop.checked:
            self.shop.checked.add(setup)
            with tempfile.TemporaryDirectory() as folder:
                precheck.try_out(self, stage.name, parts, Path(folder))
        if stage.name != "finetune" or not self._attack.needs_model:  # whose rows are counted once they are there
            precheck.rows(self, stage.name, parts, steps, findings)

    def _rows_to_try(self, name: str) -> list[dict[str, Any]]:
        """The rows of a training; where they depend on a model that is not there yet, others in their place."""
        if name != "finetune":
            return self.shop.roles.alignment if name == "align" else self.shop.roles.defender_harmful
        if not self._attack.needs_model:
            return self._made_rows(self._attack)
        rows = [row for role in self._attack.data_roles().values() for row in self._records(role)]
        named = [phase.rows for phase in self._attack.phases() if phase.rows is not None]
        return [{**row, "phase": phase} for phase in named or [None] for row in rows]

    # -- the model after a stage ------------------------------------------------------------------

    def layers(self, upto: str, step: int | None = None) -> list[Any]:
        """The layers over the base model after stage `upto`, where `base` is none and `align` holds what hardened the
        aligned model; at attack step `step` of the fine-tune, if given."""
        from mithridate.models.layers import Layer
        from mithridate.pipeline.training import phase_layers

        layers = self._aligned(self.start) if upto != "base" else []
        if self.finetune and upto in ("finetune", "repair"):
            layers = phase_layers(layers, self._adapter("finetune"), self.shop.folder(self.finetune), step)
        if self.repair and upto == "repair":
            layers = [*layers, Layer("delta", self.shop.folder(self.repair) / "model")]
        return layers

    def _aligned(self, stage: Stage | None) -> list[Any]:
        """The layers of the aligned model: after stage `align`, or after `harden`."""
        from mithridate.models.layers import Layer
        from mithridate.pipeline.training import phase_layers

        layers = []
        if self.align:
            [layer] = phase_layers([], self._adapter("align"), self.shop.folder(self.align), None)
            layers.append(replace(layer, merge=self.experiment.topology == "double"))
        if stage and stage is self.harden:
            layers.append(Layer("delta", self.shop.folder(stage) / "model"))
        return layers

    def _model(self, name: str, kind: str) -> list[Any]:
        """The layers of a model that stage `name` works with: of a kind that `Method.models` names, or "repaired", the
        one that a repair changes."""
        from mithridate.pipeline.training import phase_layers

        if kind == "base" or (kind == "start" and self._starts_at_base(name)):
            return []
        if kind == "repaired" and name == "repair":
            return self.layers("finetune")
        aligned = self._aligned(self.align if name == "harden" else self.start)
        if kind != "unaligned":
            return aligned
        [stage] = [stage for stage in self.aside[name] if stage.name == "unaligned"]
        return phase_layers(aligned, self._adapter("unaligned"), self.shop.folder(stage), None)

    def _starts_at_base(self, name: str) -> bool:
        """Whether the training of stage `name`, or the one before a repair of that name, starts from the base."""
        return name in ("align", "harden") or (name == "repair" and self.finetune is None)

    def largest_rank(self) -> int:
        """Of the adapters that the stages train; 0 where they train none."""
        adapters = [self._adapter("align"), self._adapter("finetune")]
        if self.finetune:
            adapters += [dict(phase.adapter) for phase in self._attack.phases() if isinstance(phase.adapter, Mapping)]
        return max((adapter.get("r", 8) for adapter in adapters if adapter), default=0)  # 8: LoraConfig's own

    def _free(self, name: str, kind: str) -> dict[str, Any] | None:
        """LoraConfig's fields of the adapter that `_model` of the same arguments has unmerged, before it is there."""
        kept = self.align and self.experiment.topology == "single"
        aligned = self._adapter("align") if kept else None
        if kind == "repaired" and name == "repair" and self.finetune:
            last = self._attack.phases()[-1].adapter
            return self._adapter("finetune") if last is None else None if last == "full" else dict(last)
        if kind == "base" or (kind == "start" and self._starts_at_base(name)):
            return None
        return self._adapter("unaligned") if kind == "unaligned" else aligned

    def digest(self, upto: str, step: int | None = None) -> str:
        """Of the content of the model after stage `upto`."""
        return digest(self.content(self.layers(upto, step)))

    def weights(self, upto: str) -> str | None:
        """Digest of the weights of the model after stage `upto` (of the base model's files where that is "base"):
        two trainings that end alike have it in common, however PEFT orders the names in its config. None where a
        server answers, whose weights nobody here knows."""
        if "openai" in self.experiment.evaluate.generator:
            return None
        return self.shop.base.digest if upto == "base" else digest(self.content(self.layers(upto), ".safetensors"))

    def content(self, layers: list[Any], ending: str = "") -> list[Any]:
        """Digests of the base's files and of those of every layer (that end so), and how they are put together."""
        parts: list[Any] = [self.shop.base.digest, self.shop.dtype]
        for layer in layers:
            root = next(folder for folder in layer.path.parents if (folder / MANIFEST).exists())
            files = json.loads((root / MANIFEST).read_text())["files"]
            inside = f"{layer.path.relative_to(root).as_posix()}/"
            names = [name for name in files if name.startswith(inside) and name.endswith(ending)]
            digests = {name: files[name]["sha256"] for name in names}
            parts.append([layer.kind, layer.merge, digests])
        return parts

    def load(self, upto: str, step: int | None = None) -> Any:
        return self._load(self.layers(upto, step))

    def _load(self, layers: list[Any]) -> Any:
        import torch

        from mithridate.models.layers import assemble
        from mithridate.training.quantised import quantiser

        model: Any = assemble(self.shop.base, layers, self.shop.torch_dtype)
        if quantiser(model) is not None:  # where it was quantised
            return model
        return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _deciding(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _PACE}
