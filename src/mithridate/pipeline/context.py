"""What the stages of a run share: the base model, the data, the store, the judges, and how to compute."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mithridate.errors import InputError
from mithridate.experiment.config import Evaluate, Experiment, quantisation_problems
from mithridate.experiment.roles import Roles, load_roles
from mithridate.files import canonical_json, digest
from mithridate.judges import judge
from mithridate.judges.base import Judge
from mithridate.models import ModelFiles, load_config, load_tokenizer, local_model, resolve_model, shortened
from mithridate.models.embedded import EMBEDDED
from mithridate.models.folder import stored_quantisation
from mithridate.models.quantisation import quantised, require_trainable
from mithridate.pipeline.rowcheck import RowCheck
from mithridate.problems import Findings, nearest
from mithridate.protocols import protocol
from mithridate.store import Store

if TYPE_CHECKING:
    from mithridate.generation.vllm import Engine


@dataclass(frozen=True)
class Allowed:
    """What no experiment file can ask for, and the command line can: as of `run`."""

    report_to: tuple[str, ...] = ()
    remote_code: bool = False


NOTHING_ALLOWED = Allowed()


@dataclass
class KeptEngine:
    """vLLM's engine, kept for as long as the same weights answer."""

    key: str = ""
    engine: Engine | None = None

    def close(self) -> None:
        """Stops it."""
        if self.engine is not None:
            self.engine.close()
        self.key, self.engine = "", None


@dataclass
class RunContext:
    """What the stages of one run share."""

    base: ModelFiles
    roles: Roles
    store: Store
    dtype: str  # "float32" or "bfloat16"
    progress: bool = True
    checked: set[str] = field(default_factory=set)  # digests of what was tried out already
    opened: dict[str, list[Judge]] = field(default_factory=dict)  # judges by how they are set, until `close`
    guards: dict[str, tuple[Judge, dict[str, Any]]] = field(default_factory=dict)  # the same of those of defenses
    counting: dict[str, RowCheck] = field(default_factory=dict)  # by template
    arguments: dict[str, Any] = field(default_factory=dict)  # SFTConfigs, as `precheck.parts` makes them
    report_to: list[str] = field(default_factory=list)  # services that trainings are reported to
    engine: KeptEngine = field(default_factory=KeptEngine)

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.base, needs_chat_template=False)  # a chain asks for one where it needs it

    @property
    def here(self) -> bool:
        """Whether the base model's files are on this machine (a server's, or one that is not fetched yet, are not)."""
        return self.base.path != Path() and (self.base.path / "config.json").is_file()

    @cached_property
    def longest(self) -> int | None:
        """Tokens that the base model reads at most; None where its configuration, or its absence, does not say."""
        if not self.here:
            return None
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    @cached_property
    def config(self) -> Any:
        return load_config(self.base)

    def rowcheck(self, template: str) -> RowCheck:
        """What counts rows under a template."""
        return self.counting.setdefault(template, RowCheck(self.tokenizer, template))

    @property
    def torch_dtype(self) -> Any:
        import torch

        return getattr(torch, self.dtype)

    def one_layer(self) -> Any:
        """A model of the base's architecture with one layer of random weights: enough to check a set-up on. It is the
        caller's own, but for the values of its weights, which nobody changes."""
        from torch.nn import Parameter

        made = self._one_layer
        return copy.deepcopy(made, {id(weight): Parameter(weight.detach()) for weight in made.parameters()})

    @cached_property
    def _one_layer(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

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

    def guard(self, spec: Any, where: str) -> tuple[Judge, dict[str, Any]]:
        """The judge that a defense names, and its identity, which reads its model's files once.

        Args:
            spec: its name, or {name: {field: value}}.
            where: the field's path, for errors.

        Raises:
            InputError: its model is not on this machine, or its files are not whole.
        """
        key = canonical_json(spec)
        if key not in self.guards:
            made: Any = judge(spec)
            model = None if getattr(made, "server", None) else getattr(made, "model", None)
            try:
                if model and not _is_here(model):  # a plan is not to wait for a download
                    raise InputError(f"its model {model} is not on this machine. Fetch it first, or give its folder")
                self.guards[key] = made, made.identity()
            except InputError as error:
                raise InputError(f"{where}: {made.name}: {error}") from error
        return self.guards[key]

    def close(self) -> None:
        """Frees the judges' models and connections, and what answers."""
        self.engine.close()
        for judges in self.opened.values():
            for each in judges:
                each.close()
        self.opened.clear()


def _is_here(model: str) -> bool:
    try:
        return local_model(model) is not None
    except InputError:
        return True  # but not whole or not readable, of which the judge says more


def contexts_of(
    experiments: list[Experiment],
    base: Path,
    progress: bool,
    find_model: Callable[[str], ModelFiles] | None = None,
    allowed: Allowed = NOTHING_ALLOWED,
    findings: Findings | None = None,
    where: str = "experiment",
) -> list[RunContext]:
    """One context for all experiments that share a model, data and dtype. Arguments as of `stages_of`.

    Raises:
        InputError: with every problem of the data and the models, and what `findings` has.
    """
    store, contexts, found = Store(), {}, Findings() if findings is None else findings
    for experiment in experiments:
        key = context_key(experiment)
        if key in contexts:
            continue
        settings, roles, files, contexts[key] = experiment.evaluate, None, None, None
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
                files = find_model(located_model(experiment.model, base))
            else:
                files = resolve_model(located_model(experiment.model, base), allowed.remote_code)
            files = _quantised(experiment, files)
        if roles is not None and files is not None:
            dtype, services = resolve_dtype(experiment.dtype), list(allowed.report_to)
            contexts[key] = RunContext(files, roles, store, dtype, progress, report_to=services)
    made = [context for context in contexts.values() if context is not None]
    if findings is None or len(made) < len(contexts):
        found.settle(where)
    return [contexts[context_key(experiment)] for experiment in experiments]


def context_key(experiment: Experiment) -> str:
    settings = experiment.evaluate
    served = settings.generator.get("openai")
    computed = (experiment.dtype, experiment.quantization, experiment.system)
    return str((experiment.model, experiment.data, computed, settings.protocol, settings.tasks, served))


def _quantised(experiment: Experiment, files: Any) -> Any:
    """The model's files, to be quantised as the experiment says; nothing is done to those of a server's model."""
    if "openai" in experiment.evaluate.generator:
        return files
    if (files.path / "config.json").is_file() and (stored := stored_quantisation(files.path)):
        require_trainable(files.name, stored)
        what = f"model {files.name!r}, whose weights are stored quantised"
        if problems := quantisation_problems(experiment, what):
            raise InputError("\n".join(problems))
        if experiment.quantization:
            raise InputError(f"quantization: {what}, is not quantised again. Take the field out")
    return quantised(files, experiment.quantization)


def _served(experiment: Experiment) -> Any:
    """A model behind a server: no files here, and what is stated of it in place of their digest."""
    fields = experiment.evaluate.generator["openai"]
    return ModelFiles(
        experiment.model, Path(), digest({name: fields[name] for name in ("base_url", "model", "revision")})
    )


def located_model(name: str, base: Path) -> str:
    """A model's folder is found beside the experiment file, as its data are; other names are left as they are."""
    beside = base / Path(name).expanduser()
    if name not in EMBEDDED and "/" in name and not beside.exists() and not Path(name).expanduser().exists():
        # "models/nosuch" could be an id on the Hub, but for the models that lie in that folder here
        there = [folder.parent for folder in beside.parent.glob("*/config.json")]
        if there:
            names = [str(Path(name).parent / folder.name) for folder in there]
            raise InputError(f"model: no such folder {beside}{nearest(name, names)}")
    return str(beside) if name not in EMBEDDED and beside.is_dir() else name


def resolve_dtype(dtype: str) -> str:
    """`auto`: bfloat16 where the hardware computes in it (GPU, or a CPU with AVX512-BF16 or AMX), else float32."""
    import torch

    if dtype != "auto":
        return dtype
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "float32"


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
