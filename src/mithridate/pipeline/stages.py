"""The stages of one experiment: what each depends on (its key), and how it is made.

A stage is a pure function of its configuration, its parents and its data; the digest of these is its key in the store.
The chain of an experiment is

    align -> finetune -> repair        each followed by evaluate where a cell of the table asks for it

and a model is never stored whole: it is the base plus the layers (adapters, weights, masks) that the stages left.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from mithridate.errors import InputError
from mithridate.judges import judge
from mithridate.judges.base import Judge
from mithridate.models import ModelFiles
from mithridate.pipeline.config import Align, Attack, Evaluate, Experiment, Finetune
from mithridate.pipeline.generators import Generators
from mithridate.pipeline.launch import launch_of
from mithridate.pipeline.store import MANIFEST, Store, canonical_json, digest
from mithridate.protocols import protocol
from mithridate.sources.roles import Roles

# Raised when the same inputs no longer give the same artefact.
VERSIONS = {"align": 1, "finetune": 1, "repair": 1, "evaluate": 2}

_NOT_GIVEN = "needed by this experiment and not given"
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
    generators: Generators = field(default_factory=Generators)

    @cached_property
    def tokenizer(self) -> Any:
        from mithridate.models import load_tokenizer

        return load_tokenizer(self.base, needs_chat_template=False)  # a chain asks for one where it needs it

    @property
    def torch_dtype(self) -> Any:
        import torch

        return getattr(torch, self.dtype)

    def one_layer(self) -> Any:
        """A model of the base's architecture with one layer of random weights: enough to check a set-up on."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(self.base.path)
        config.num_hidden_layers = 1
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:1]
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)

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
        self.align = self._align(experiment.align) if experiment.align else None
        self.finetune = self._finetune(experiment.finetune) if experiment.finetune else None
        self.repair = self._repair() if experiment.repair else None

    @cached_property
    def tokenizer(self) -> Any:
        """Of the base model, with a chat template where prompts are put into that, in training or at the test."""
        from mithridate.models import load_tokenizer

        templates = (self.experiment.template, protocol(self.experiment.evaluate.protocol).template)
        return load_tokenizer(self.shop.base, needs_chat_template="chat" in templates)

    def stages(self) -> list[Stage]:
        return [stage for stage in (self.align, self.finetune, self.repair) if stage]

    def upto(self, name: str) -> list[Stage]:
        """The chain's stages as far as stage `name`."""
        order = ("align", "finetune", "repair")
        return [stage for stage in self.stages() if order.index(stage.name) <= order.index(name)]

    def positions(self) -> list[str]:
        """The stages after which the model is scored: always the aligned model (or, unaligned, the base) first."""
        return ["align"] + [stage.name for stage in self.stages() if stage.name != "align"]

    def label(self, stage: Stage) -> str:
        """What a stage does, in words, for the line that announces it."""
        words = [stage.name, *stage.config.get("defense", {}), *stage.config.get("repair", {})]
        if "attack" in stage.config:
            words.append(f"ratio {stage.config['attack']['harmful_ratio']:g} {stage.config['topology']}")
        if stage.config.get("step"):
            words.append(f"at step {stage.config['step']}")
        return " ".join(words)

    def rows(self, evaluation: Stage) -> list[dict[str, Any]]:
        """The records of an evaluation, one row a prompt, with the verdicts of the judges as they are now.

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
            return self._train(work, "align", "base", self.shop.roles.alignment, [])

        return Stage("align", config, self._parents(None), data, build)

    def _finetune(self, finetune: Finetune) -> Stage:
        config = self._trained("finetune") | {
            "topology": self.experiment.topology,
            "attack": vars(finetune.attack),
            "snapshots": self.experiment.evaluate.resistance,
        }
        roles = ["task_train"] + ["attacker_harmful"] * (finetune.attack.harmful_ratio > 0)
        data = self._data(roles, finetune.defense)

        def build(work: Path) -> dict[str, Any]:
            rows = self._attack_rows(finetune.attack)
            return self._train(work, "finetune", "align", rows, self.experiment.evaluate.resistance)

        return Stage("finetune", config, self._parents(self.align), data, build)

    def _repair(self) -> Stage:
        config = {"repair": self.experiment.repair, "topology": self.experiment.topology, "dtype": self.shop.dtype}
        config |= self._template()
        parents = self._parents(self.finetune or self.align)
        return Stage("repair", config, parents, self._data(["calibration_harmful"], {}), self._build_repair)

    def evaluation(self, upto: str, step: int | None = None) -> Stage:
        """The evaluation of the model after stage `upto`, or at attack step `step` (no benign prompts there)."""
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
        if sampling := settings.sampling(self.experiment.seed):  # nothing for greedy answers, which need no seed
            config["sampling"] = vars(sampling)
        parent = {"align": self.align, "finetune": self.finetune, "repair": self.repair}[upto]

        def build(work: Path) -> None:
            self._build_evaluation(work, sets, upto, step, stage.key)

        stage = Stage("evaluate", config, self._parents(parent), self._data(list(sets.values()), {}), build)
        return stage

    def _parents(self, parent: Stage | None) -> dict[str, str]:
        return {parent.name: parent.key} if parent else {"model": self.shop.base.digest}

    def _adapter(self, name: str) -> dict[str, Any] | None:
        """LoraConfig's fields for a training stage; None where it trains all weights."""
        adapter = self.experiment.adapter_of(name)
        return vars(adapter) if adapter else None

    def _template(self) -> dict[str, str]:
        """Nothing for the chat template, which was the only one when the first keys were made."""
        return {"template": self.experiment.template} if self.experiment.template != "chat" else {}

    def _trained(self, name: str) -> dict[str, Any]:
        settings = getattr(self.experiment, name)
        return {
            "defense": settings.defense,
            "training": settings.training,
            "seed": self.experiment.seed,
            "dtype": self.shop.dtype,
            "adapter": self._adapter(name),
            **self._template(),
            # Nothing for one process, in which nothing is launched. Of the file, only its kind changes a number.
            **({"launch": {"kind": self.launch.kind, "processes": self.launch.processes}} if self.launch else {}),
        }

    def _data(self, roles: list[str], defense: dict[str, Any]) -> dict[str, str]:
        from mithridate.defenses import by_name

        for name in defense:
            roles = roles + list(by_name()[name].roles.values())
        for role in roles:
            if role not in self.shop.roles.parts():
                raise InputError(f"data.{role.removesuffix('_train')}: {_NOT_GIVEN}")
        return {role: self.shop.roles.digests[role] for role in sorted(set(roles))}

    # -- how each stage is made -------------------------------------------------------------------

    def _attack_rows(self, attack: Attack) -> list[dict]:
        from mithridate.attacks.poisoning import poison

        return poison(
            benign=self.shop.roles.task_train,
            harmful=self.shop.roles.attacker_harmful,
            ratio=attack.harmful_ratio,
            size=attack.size,
            seed=self.experiment.seed,
        )

    def _train(self, work: Path, name: str, start: str, rows: list[dict], snapshots: list[int]) -> dict[str, Any]:
        """Trains in this process, or in several. Returns what `stage.json` is to say of the latter."""
        from mithridate.pipeline import launch, training

        job = self._job(name, rows, self.layers(start), snapshots)
        if self.launch:
            return launch.run(job, self.launch, work)
        training.run_job(job, work)
        return {}

    def _job(self, name: str, rows: list[dict], layers: list[Any], snapshots: list[int]) -> Any:
        from mithridate.defenses import by_name
        from mithridate.pipeline.training import Job

        settings = getattr(self.experiment, name)
        roles = {role for method in settings.defense for role in by_name()[method].roles.values()}
        return Job(
            base=self.shop.base,
            layers=layers,
            dtype=self.shop.dtype,
            adapter=self._adapter(name),
            rows=rows,
            defense=settings.defense,
            side_rows={role: getattr(self.shop.roles, role) for role in roles},
            training=settings.training,
            seed=self.experiment.seed,
            snapshots=snapshots,
            progress=self.shop.progress,
            template=self.experiment.template,
        )

    def _build_repair(self, work: Path) -> None:
        from mithridate.repairs import by_name
        from mithridate.sources.records import training_dataset

        [(name, settings)] = self.experiment.repair.items()
        rows: Any = self.shop.roles.calibration_harmful
        if self.experiment.template != "chat":
            rows = training_dataset(rows, self.tokenizer, self.experiment.template)
        upto = "finetune" if self.finetune else "align"
        report = by_name()[name](**settings).apply(
            self.load(upto),
            calibration=rows,
            tokenizer=self.tokenizer,
            aligned=self.load("align") if settings.get("targets") == "update" else None,
        )
        report.save(work / "model")

    def _build_evaluation(self, work: Path, sets: dict[str, str], upto: str, step: int | None, key: str) -> None:
        import pandas as pd

        from mithridate.evaluation import answers

        settings, parts = self.experiment.evaluate, self.shop.roles.parts()
        records = {name: parts[role][: settings.limit] for name, role in sets.items()}
        generator = self.shop.generators.open(self, upto, step)
        try:
            chosen, cache = protocol(settings.protocol), self.shop.store.root / "answers"
            sampling = settings.sampling(self.experiment.seed)
            rows = answers(generator, records, chosen, cache, self.shop.progress, key, sampling)
            if settings.capability and step is None:
                self._measure_capability(generator, work)
        finally:
            generator.close()
        pd.DataFrame(rows).to_parquet(work / "records.parquet")

    def _measure_capability(self, generator: Any, work: Path) -> None:
        from mithridate.tasks.capability import capability

        settings = self.experiment.evaluate
        scores = capability(generator.model, self.shop.tokenizer, settings.capability, limit=settings.limit)
        (work / "capability.json").write_text(json.dumps([vars(score) for score in scores], indent=1))

    # -- before any compute ------------------------------------------------------------------------

    def preflight(self, here: bool = True) -> None:
        """Tries out the set-up of every training stage that is not in the store, over one random layer of the model.

        So what a defense, the adapter or SFTConfig refuses is refused now, not after the stages before it have been
        computed.

        Args:
            here: whether this machine is the one that will train.

        Raises:
            UnsupportedSetup: with reason and remedy.
            InputError: an adapter that does not fit, training arguments that SFTConfig refuses, too few rows for the
                attack, or a resistance step that the attack does not reach.
        """
        for stage in self.upto("finetune"):
            # The seed only chooses among the rows.
            config = {name: value for name, value in stage.config.items() if name != "seed"}
            asked = digest([stage.name, config, stage.data, self.shop.base.digest])
            if asked in self.shop.checked or self.shop.store.find(stage.name, stage.key):
                continue
            self.shop.checked.add(asked)
            if self.launch and here:
                self.launch.check()
            finetune = self.experiment.finetune if stage.name == "finetune" else None
            rows = self._attack_rows(finetune.attack) if finetune else self.shop.roles.alignment
            steps = self._steps(stage.name, len(rows))
            # Nor do the learning rate and the share of harmful rows change what is refused.
            config["training"] = {name: v for name, v in config["training"].items() if name != "learning_rate"}
            setup = digest(["set-up", stage.name, config | {"attack": len(rows)}, stage.data, self.shop.base.digest])
            if setup not in self.shop.checked:
                with tempfile.TemporaryDirectory() as folder:
                    self._try_out(stage.name, rows, steps, Path(folder))
                self.shop.checked.add(setup)

    def _steps(self, name: str, rows: int) -> int:
        """The optimizer steps of a training; so SFTConfig has been asked."""
        from mithridate.pipeline.training import planned_steps, training_arguments

        settings, evaluate = getattr(self.experiment, name), self.experiment.evaluate
        try:
            args = training_arguments(settings.training, Path(name), self.experiment.seed, bf16=False, progress=False)
            steps = planned_steps(args, rows, self.launch.processes if self.launch else 1)
        except InputError as error:
            raise InputError(f"{name}.{error}") from error
        if name == "finetune" and evaluate.resistance and evaluate.resistance[-1] >= steps:
            raise InputError(
                f"evaluate.resistance: expected steps below {steps}, the attack's last, got {evaluate.resistance[-1]}"
            )
        return steps

    def _try_out(self, name: str, rows: list[dict], steps: int, folder: Path) -> None:
        from peft import get_peft_model

        from mithridate.pipeline.training import lora, trainer_of
        from mithridate.sources.records import training_dataset

        settings, tokenizer = getattr(self.experiment, name), self.tokenizer
        if adapter := self._adapter(name):
            try:
                get_peft_model(self.shop.one_layer(), lora(adapter))
            except ValueError as error:
                raise InputError(f"adapter: {error}") from error
        if not settings.defense:
            training_dataset(rows, tokenizer, self.experiment.template)
            return
        job = self._job(name, rows, [], [])
        if self.launch:  # several processes take fewer steps through the same rows than this one would
            job = replace(job, training=job.training | {"max_steps": steps})
        trainer = trainer_of(job, self.shop.one_layer(), folder)
        if self.launch and self.launch.kind == "fsdp2":
            trainer.is_fsdp_enabled = True  # as it will be in each of the processes
            for defense in trainer.defenses:
                defense.check(trainer)

    # -- the model after a stage ------------------------------------------------------------------

    def layers(self, upto: str, step: int | None = None) -> list[Any]:
        """The layers over the base model after stage `upto` (at attack step `step` of the fine-tune, if given)."""
        from mithridate.checkpoints import Layer

        def kind(stage: str) -> Literal["adapter", "weights"]:
            return "adapter" if self._adapter(stage) else "weights"

        layers = []
        if self.align and upto != "base":
            folder = self.shop.folder(self.align) / "model"
            layers.append(Layer(kind("align"), folder, merge=self.experiment.topology == "double"))
        if self.finetune and upto in ("finetune", "repair"):
            folder = self.shop.folder(self.finetune)
            layers.append(Layer(kind("finetune"), folder / f"snapshots/step-{step}" if step else folder / "model"))
        if self.repair and upto == "repair":
            layers.append(Layer("mask", self.shop.folder(self.repair) / "model"))
        return layers

    def digest(self, upto: str, step: int | None = None) -> str:
        """Of the content of the model after stage `upto`."""
        return digest(self.content(self.layers(upto, step)))

    def weights(self, upto: str) -> str | None:
        """The same, of the base model alone where `upto` is "base"; None where a server answers, whose weights nobody
        here knows."""
        if "openai" in self.experiment.evaluate.generator:
            return None
        return self.shop.base.digest if upto == "base" else self.digest(upto)

    def content(self, layers: list[Any]) -> list[Any]:
        """Digests of the base's files and of those of every layer, and how they are put together."""
        parts: list[Any] = [self.shop.base.digest, self.shop.dtype]
        for layer in layers:
            root = next(folder for folder in layer.path.parents if (folder / MANIFEST).exists())
            files = json.loads((root / MANIFEST).read_text())["files"]
            inside = f"{layer.path.relative_to(root).as_posix()}/"
            digests = {name: file["sha256"] for name, file in files.items() if name.startswith(inside)}
            parts.append([layer.kind, layer.merge, digests])
        return parts

    def load(self, upto: str, step: int | None = None) -> Any:
        import torch

        from mithridate.checkpoints import assemble

        model: Any = assemble(self.shop.base, self.layers(upto, step), self.shop.torch_dtype)
        return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _deciding(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _PACE}
