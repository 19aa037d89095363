"""The experiment file: YAML (or a dict) into dataclasses, every problem in it named at once, by its path.

Reading and checking the file imports no torch; `validate`, which looks into the methods and SFTConfig, does.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError, WrapValidator

from mithridate.errors import InputError
from mithridate.experiment import training_fields
from mithridate.experiment.roles import ROLES, Source, source_problems
from mithridate.experiment.yaml12 import dump_yaml, parse_yaml
from mithridate.methods.fields import adapter_of, field_problems
from mithridate.problems import error_of, explained, kind, nearest
from mithridate.store import canonical_json, stable

HARMFUL = "harmful"  # the kind of attack where none is given
VARIANTS = "variants"  # the key of a sweep that is no field's path
MAX_SAMPLES, MAX_TEMPERATURE = 1000, 2.0  # beyond them, a mistake: what is drawn at a higher temperature is noise
_LEAST = {
    "learning_rate": 0,
    "num_train_epochs": 0,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_steps": -1,
}
# What a table of results has a place for.
_IN_TABLE = (
    *("seed.", "topology.", "align.defense.", "finetune.defense.", "repair.", "finetune.adapter."),
    "finetune.attack.",
    *("finetune.training.learning_rate.", "finetune.training.max_steps."),
)


@dataclass(kw_only=True)
class Adapter:
    """The LoRA adapter of `single` and `double`, in LoraConfig's names; not used under `full`."""

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: list[str] | str = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj"])


@dataclass(kw_only=True)
class Align:
    """The alignment stage. `defense` maps names to their fields; empty for plain SFT. `training` is SFTConfig's."""

    defense: dict[str, dict[str, Any]] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class Attack:
    """The poisoned data: `size` rows, of which exactly round(harmful_ratio * size) are harmful."""

    harmful_ratio: float
    size: int


def _of_its_kind(value: Any, harmful: Any) -> Any:
    return dict(value) if isinstance(value, dict) and value.get("kind", HARMFUL) != HARMFUL else harmful(value)


if TYPE_CHECKING:
    from mithridate.evaluation import Sampling
    from mithridate.methods import Phase

    AnyAttack = Attack | dict[str, Any]
else:  # one type for pydantic, so that what is wrong with an `Attack` is not taken for an attack of another kind
    AnyAttack = Annotated[Attack, WrapValidator(_of_its_kind)]


@dataclass(kw_only=True)
class Finetune:
    """The user's fine-tune, which is the attack where harmful rows are in it.

    `attack`: of the kind `harmful`, which need not be written, an `Attack`; of another kind a mapping of `kind` and of
    the fields of the attack of that name, which `validate` looks into.
    `adapter`: a fresh one for this stage alone, or `full`: it trains all weights; None: as in alignment.
    """

    attack: AnyAttack
    defense: dict[str, dict[str, Any]] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    adapter: Adapter | Literal["full"] | None = None

    @property
    def harmful(self) -> Attack:
        """The attack, where only the harmful kind will do.

        Raises:
            InputError: it is of another kind.
        """
        if isinstance(self.attack, Attack):
            return self.attack
        raise InputError(
            f"finetune.attack: is of the kind {self.attack['kind']}, and only the kind {HARMFUL} is meant here. Give "
            "harmful_ratio and size instead"
        )


@dataclass(kw_only=True)
class Evaluate:
    """How every model of the experiment is scored.

    `generator`: what answers, by name or as {name: {field: value}}: transformers, vllm or openai (a server; then there
    are no stages). `judges`: judges beside the protocol's, written like defenses; one of the protocol's own gets its
    fields here. `tasks`: further tasks by name, each with the source of its test rows. `capability`: names of tasks of
    lm-eval. `resistance`: the attack's optimizer steps at which the model is scored on the way, ascending. `part`:
    which part of the test sets. `limit`: only that many prompts of each set. `samples`: so many answers to each
    harmful and benign prompt, drawn at `temperature` with the experiment's seed; neither: one greedy answer.
    """

    protocol: str = "hs/embedded-v1"
    generator: dict[str, dict[str, Any]] = field(default_factory=lambda: {"transformers": {}})
    judges: dict[str, dict[str, Any]] = field(default_factory=dict)
    tasks: dict[str, list[Source]] = field(default_factory=dict)
    capability: list[str] = field(default_factory=list)
    resistance: list[int] = field(default_factory=list)
    part: Literal["test", "validation"] = "test"
    limit: int | None = None
    samples: int | None = None
    temperature: float | None = None

    def sampling(self, seed: int) -> Sampling | None:
        """How answers are drawn; None where they are greedy."""
        from mithridate.evaluation import Sampling

        drawn = self.samples is not None and self.temperature is not None
        return Sampling(self.samples, self.temperature, seed) if drawn else None  # pyright: ignore[reportArgumentType]


@dataclass(kw_only=True)
class Experiment:
    """One experiment file. A stage that is not run is None (`repair`: empty).

    `template`: what prompts are put into in training: the model's own `chat` template, or that of a paper's protocol.
    `system`: the system turn before every conversation without one of its own, in training and at the test; empty for
    an empty turn, none for what the model's template puts there by itself.
    `quantization`: bitsandbytes' own fields (load_in_4bit and the like), by which the base model is quantised as it is
    loaded; none for not at all. `accelerate`: how several processes train together: ddp, fsdp2, the path of an
    Accelerate configuration, or none. `processes`: how many; one per GPU, or as that file says, if not given. `sweep`:
    lists of values by dotted path, of which every combination is run; under `variants`, mappings of dotted paths to
    values, each of which sets several fields of the file at once ({} for none).
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    model: str
    data: dict[str, list[Source]]
    seed: int = 0
    topology: Literal["single", "double", "full"] = "double"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: dict[str, Any] = field(default_factory=dict)
    template: Literal["chat", "alpaca", "alpaca-newline"] = "chat"
    system: str | None = None
    accelerate: str = "none"
    processes: int | None = None
    adapter: Adapter = field(default_factory=Adapter)
    align: Align | None = None
    finetune: Finetune | None = None
    repair: dict[str, dict[str, Any]] = field(default_factory=dict)
    evaluate: Evaluate = field(default_factory=Evaluate)
    sweep: dict[str, list[Any]] = field(default_factory=dict)

    def adapter_of(self, stage: str) -> Adapter | None:
        """The adapter that the stage `align` or `finetune` trains; None where it trains all weights."""
        own = self.finetune.adapter if stage == "finetune" and self.finetune else None
        if own is None:
            return None if self.topology == "full" else self.adapter
        return None if own == "full" else own


_PARTS = {
    (): Experiment,
    ("adapter",): Adapter,
    ("align",): Align,
    ("finetune",): Finetune,
    ("finetune", "attack"): Attack,
    ("finetune", "adapter"): Adapter,
    ("evaluate",): Evaluate,
    ("data",): Source,
}
_METHODS = (
    ("align", "defense"),
    ("finetune", "defense"),
    ("repair",),
    ("evaluate", "generator"),
    ("evaluate", "judges"),
)


# -- reading ------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        folder = path.parent
        others = [str(folder / p.name) for p in folder.glob("*.y*ml")] if folder.is_dir() else []
        raise InputError(f"{path}: no such file{nearest(str(path), others, listed=False)}") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder; give an experiment file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); give an experiment file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    raw = parse_yaml(text, str(path))
    if raw is None:
        raise InputError(f"{path}: the file is empty; see the README for an experiment file")
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected fields (`model: ...`), got {kind(raw)}")
    return raw


def load_experiment(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of `load_cells`, without its cells."""
    return load_cells(source, overrides)[0]


def load_cells(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> tuple[Experiment, list[Experiment]]:
    """Reads an experiment and the cells of its sweep, and checks all that can be checked without torch.

    With a `sweep`, the fields of the result are those of its first cell before its variant; `expand` gives all cells.

    Args:
        source: path of a YAML file, or the same as a dict.
        overrides: `path.to.field=value` strings, the value in YAML; applied in order, before anything is checked.

    Raises:
        InputError: with every problem found, one a line, each with its path.
    """
    if isinstance(source, Mapping):
        where, raw = "experiment", copy.deepcopy(dict(source))
    else:
        where, raw = str(source), _read(Path(source))
    problems: list[str] = []
    _normalise(raw)
    for override in overrides:
        problem = _override(raw, override)
        problems += [f"-o {override}: {problem}"] if problem else []
    if problems:
        raise error_of(where, problems)

    sweep = raw.get("sweep")
    if isinstance(sweep, dict):
        problems += _sweep_problems(sweep)
        for path, values in sweep.items() if not problems else ():
            if path != VARIANTS:  # which may leave fields as the file has them, so the file must be whole without
                problem = _set(raw, path, copy.deepcopy(values[0]))
                problems += [f"sweep.{path}: {problem}"] if problem else []
    experiment, found = _parse(raw | {"sweep": {}} if problems else raw)
    problems += found
    if problems or experiment is None:
        base = Path(source).parent if not isinstance(source, Mapping) else Path()
        raise error_of(where, list(dict.fromkeys([*problems, *_refused_in(raw), *_data_problems(raw, base)])))
    return experiment, expand(experiment, where)


def _refused_in(raw: dict[str, Any]) -> list[str]:
    """Of a file that is wrong elsewhere, the fields of trainings that no file may have."""
    found = []
    for name in ("align", "finetune"):
        stage = raw.get(name)
        training = stage.get("training") if isinstance(stage, dict) else None
        found += training_fields.problems(f"{name}.training", training) if isinstance(training, dict) else []
    return found


def _data_problems(raw: dict[str, Any], base: Path) -> list[str]:
    """What is wrong with the sources of a file that is wrong elsewhere, so that both are told at once."""
    found: dict[str, list[Source]] = {}
    data = raw.get("data")
    for role, sources in data.items() if isinstance(data, dict) else ():
        with contextlib.suppress(ValidationError, InputError):  # of another form: told already
            found[role] = TypeAdapter(list[Source]).validate_json(canonical_json(sources), strict=True)
    return source_problems(found, base)


def _override(raw: dict[str, Any], override: str) -> str | None:
    """Applies one `path.to.field=value`, in place. A field that is swept is fixed by it."""
    path, equals, value = override.partition("=")
    path = path.strip()
    if not equals or not path:
        return "expected path.to.field=value"
    if path.split(".")[0] == VARIANTS:
        return f"`{VARIANTS}` is no field of its own; override sweep.{VARIANTS}"
    sweep = raw.get("sweep") or {}
    for swept, values in list(sweep.items()) if isinstance(sweep, dict) else []:
        if swept == VARIANTS and any(_overlap(path, other) for other in _swept(swept, values)):
            return f"`{path}` is set by sweep.{VARIANTS}, which would undo it; override sweep.{VARIANTS}"
        if path == swept:
            del sweep[swept]
        elif _overlap(path, swept):
            return f"`{swept}` is swept, which would undo it; override sweep.{swept} or {swept} itself"
    parsed = parse_yaml(value, f"-o {override}", lines=False)
    if path.startswith("sweep.") and isinstance(sweep, dict):  # the rest is one key, dots and all
        raw["sweep"] = {**sweep, path.removeprefix("sweep."): parsed}
        return None
    problem = _set(raw, path, parsed)
    _normalise(raw)
    return problem


def expand(experiment: Experiment, where: str = "experiment") -> list[Experiment]:
    """The cells of an experiment's sweep, the last path varying fastest; the experiment itself where it has none.

    Raises:
        InputError: a cell is not a valid experiment.
    """
    if not experiment.sweep:
        return [experiment]
    base = json.dumps(_plain(experiment) | {"sweep": {}})
    cells, problems = [], {}
    for values in itertools.product(*experiment.sweep.values()):
        raw = json.loads(base)  # a fresh copy; several times faster than deepcopy
        _normalise(raw)
        chosen = dict(zip(experiment.sweep, values))
        found = []
        for key, value in chosen.items():
            for path, one in value.items() if key == VARIANTS else [(key, value)]:
                problem = _set(raw, path, stable(one, path))
                found += [f"sweep.{key}: {problem}"] if problem else []
                _normalise(raw)
        cell, more = _parse(raw, json.dumps(raw, sort_keys=True))  # canonical: the base was, and the values are now
        label = ", ".join(f"{path}={json.dumps(value)}" for path, value in chosen.items())
        for problem in [*found, *more]:
            problems.setdefault(problem, f"{problem} (with {label})")
        cells.append(cell)
    if problems:
        raise error_of(where, list(problems.values()))
    return cells


def canonical(experiment: Experiment) -> dict[str, Any]:
    """The experiment as JSON types in one fixed form, every field present (`quantization` and `system` where they are
    given); `load_experiment` reads it back."""
    return stable(_plain(experiment))


def _plain(experiment: Experiment) -> dict[str, Any]:
    """The experiment as mappings and lists; defenses that act in an order of their own are a list, which keeps it."""
    raw = asdict(experiment)
    for name, absent in (("quantization", {}), ("system", None)):
        if raw[name] == absent:  # as in files from before there was the field, whose digests stay theirs
            del raw[name]
    for stage in ("align", "finetune"):
        methods = raw[stage]["defense"] if raw[stage] else {}
        if list(methods) != in_order(methods):
            raw[stage]["defense"] = [{name: fields} for name, fields in methods.items()]
    return raw


def resolved_yaml(experiment: Experiment) -> str:
    """The experiment with every field, as a file that `run` takes; of data sources, what was given."""
    raw = _plain(experiment)
    for sources in (*raw["data"].values(), *raw["evaluate"]["tasks"].values()):
        sources[:] = [{name: value for name, value in source.items() if value is not None} for source in sources]
    return dump_yaml(raw)


# -- from raw values to dataclasses ----------------------------------------------------------------


def _normalise(raw: dict[str, Any]) -> list[str]:
    """Brings the shorthands into one form, in place; returns the problems, and leaves what has them as it is.

    A stage that is `none` becomes None, methods become {name: {field: value}}, a role's source a list of sources.
    """
    problems = []
    for stage in ("align", "finetune"):
        if raw.get(stage) == "none":
            raw[stage] = None
    if raw.get("quantization", {}) in ("none", None):
        raw["quantization"] = {}
    finetune = raw.get("finetune")
    if isinstance(finetune, dict) and isinstance(finetune.get("attack"), dict):
        attack = finetune["attack"]
        if attack.get("kind") == HARMFUL:
            finetune["attack"] = {name: value for name, value in attack.items() if name != "kind"}
    for path in _METHODS:
        owner = raw.get(path[0]) if len(path) == 2 else raw
        if isinstance(owner, dict) and path[-1] in owner:
            methods, found = _methods(owner[path[-1]])
            problems += [f"{'.'.join(path)}: {problem}" for problem in found]
            if not found:
                owner[path[-1]] = methods
    evaluate = raw.get("evaluate")
    for owner, key in ((raw, "data"), (evaluate, "tasks")):
        if isinstance(owner, dict) and isinstance(owner.get(key), dict):
            owner[key] = {name: value if isinstance(value, list) else [value] for name, value in owner[key].items()}
    return problems


def _methods(spec: Any) -> tuple[dict[str, Any], list[str]]:
    """none | name | {name: {field: value}} | a list of these, as {name: {field: value}}."""
    if spec is None or spec == "none":
        return {}, []
    if isinstance(spec, str):
        return {spec: {}}, []
    if isinstance(spec, dict):
        methods = {name: {} if values is None else values for name, values in spec.items()}
        wrong = [f"{name}: expected fields, got {kind(v)}" for name, v in methods.items() if not isinstance(v, dict)]
        if wrong:
            return {}, wrong
        return (_Listed(methods) if isinstance(spec, _Listed) else _ordered(methods)), []
    if isinstance(spec, list):
        methods, problems = _Listed(), []
        for item in spec:
            more, found = _methods(item)
            problems += found + [f"{name} appears twice" for name in more if name in methods]
            methods |= more
        return methods, problems
    return {}, [f"expected none, a name, {{name: {{field: value}}}} or a list of these, got {kind(spec)}"]


def methods_of(words: Sequence[str], where: str) -> dict[str, dict[str, Any]]:
    """Methods as an experiment file writes them, from the command line: {name: {field: value}}.

    Raises:
        InputError: a word is not of that form, or a name appears twice.
    """
    found, problems = _methods([parse_yaml(word, where, lines=False) for word in words])
    if problems:
        raise InputError(f"{where}: {problems[0]}")
    return found


class _Listed(dict[str, Any]):
    """Methods that were written as a list: they act in its order. Those of a mapping act in the canonical one."""


def _ordered(methods: dict[str, Any]) -> dict[str, Any]:
    return {name: methods[name] for name in in_order(methods)}


def in_order(names: Iterable[str]) -> list[str]:
    """Names of methods in the canonical order, so that a combination has one name."""
    return sorted(names, reverse=True)


def _set(node: Any, path: str, value: Any, walked: str = "") -> str | None:
    """Sets the field at a dotted path, in place. Returns the problem where the path leads nowhere."""
    key, _, rest = path.partition(".")
    if isinstance(node, list) and len(node) == 1 and not key.isdigit():
        node = node[0]  # a role with one source, which the file may write without the list
    if isinstance(node, list) and not (key.isdigit() and int(key) < len(node)):
        return f"`{walked}` is a list of {len(node)}: `{key}` is no place in it"
    if not isinstance(node, dict | list):
        return f"`{walked}` is {kind(node)}: there is no `{key}` below it"
    place: Any = int(key) if isinstance(node, list) else key
    if not rest:
        node[place] = value
        return None
    if isinstance(node, dict):
        node.setdefault(key, {})
    return _set(node[place], rest, value, f"{walked}.{key}" if walked else key)


def _parse(raw: dict[str, Any], text: str | None = None) -> tuple[Experiment | None, list[str]]:
    """The experiment, and what is wrong with it. `text`: its canonical JSON, where the caller has that."""
    problems = _normalise(raw)
    given = raw.get("data")
    for role in given if isinstance(given, dict) else ():
        if role not in ROLES:
            problems.append(f"data.{role}: no such role{nearest(role, ROLES)}")
    try:
        text = text or canonical_json(raw)
    except InputError as error:
        return None, [*problems, str(error)]
    try:
        # From JSON: strictness then means JSON's types (an int for a float is right, a string for an int is not).
        experiment = adapter_of(Experiment).validate_json(text, strict=True)
    except ValidationError as error:
        named = tuple(problem.partition(":")[0] for problem in problems)
        return None, problems + [text for text in explained(error, raw, _PARTS) if not text.startswith(named)]
    # JSON's keys came sorted; the order of these is the file's.
    experiment.sweep = raw.get("sweep") or {}
    for name in ("align", "finetune"):
        if stage := getattr(experiment, name):
            stage.defense = {method: stage.defense[method] for method in raw[name].get("defense") or {}}
    return experiment, problems + _value_problems(experiment)


# -- values ----------------------------------------------------------------------------------------


def _sweep_problems(sweep: dict[str, Any]) -> list[str]:
    problems = []
    for path, values in sweep.items():
        if not isinstance(values, list) or not values:
            problems.append(f"sweep.{path}: expected a list of values, got {kind(values) if values else 'none'}")
        elif len({json.dumps(stable(value)) for value in values}) < len(values):
            problems.append(f"sweep.{path}: a value appears twice")
        if path.split(".")[0] == "sweep":
            problems.append(f"sweep.{path}: a sweep cannot vary itself")
        if path == VARIANTS and isinstance(values, list) and not all(isinstance(v, dict) for v in values):
            problems.append(f"sweep.{path}: expected a list of mappings, each of dotted paths to values")
            continue
        for other in sweep:
            for inner, outer in itertools.product(_swept(path, values), _swept(other, sweep[other])):
                if other != path and (inner.startswith(f"{outer}.") or (inner == outer and path == VARIANTS)):
                    problems.append(f"sweep.{path}: lies inside `{outer}`, which is swept too; put both into one list")
    return problems


def _swept(key: str, values: Any) -> list[str]:
    """The paths of the fields that one key of a sweep sets."""
    if key != VARIANTS:
        return [key]
    found = [path for value in values if isinstance(value, dict) for path in value] if isinstance(values, list) else []
    return list(dict.fromkeys(found))


def swept_paths(sweep: Mapping[str, Any]) -> list[str]:
    """The dotted paths of all fields that a sweep varies."""
    return list(dict.fromkeys(path for key, values in sweep.items() for path in _swept(key, values)))


def swept_values(experiment: Experiment, paths: Sequence[str], upto: str) -> dict[str, Any]:
    """A cell's values of swept fields that have no place of their own in a table (as the seed has one), by path.

    Of a single source, its given fields: {"data.task": {"source": "embedded", "name": "sst2"}}.

    Args:
        experiment: the cell's.
        paths: as `swept_paths` gives them.
        upto: the last stage that the cell's model has been through: what later ones were set to is left out.
    """
    later = {"align": ("finetune.", "repair."), "finetune": ("repair.",)}.get(upto, ())
    found = {}
    for path in paths:
        if f"{path}.".startswith((*_IN_TABLE, *later)):
            continue
        value: Any = asdict(experiment)
        for key in path.split("."):
            if isinstance(value, list) and not key.isdigit():
                value = value[0] if len(value) == 1 else None
            if isinstance(value, dict):
                value = value.get(key)
            elif isinstance(value, list):
                value = value[int(key)] if int(key) < len(value) else None
            else:
                value = None
        found[path] = _given(value)
    return found


def _given(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0]
    return {k: v for k, v in value.items() if v not in (None, 0, False)} if isinstance(value, dict) else value


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _value_problems(experiment: Experiment) -> list[str]:
    """Values of the right type that mean nothing."""
    problems = []

    def need(holds: bool, path: str, expected: str) -> None:
        if not holds:
            value: Any = experiment
            for key in path.split("."):
                value = value[key] if isinstance(value, dict) else getattr(value, key)
            problems.append(f"{path}: expected {expected}, got {value}")

    evaluate = experiment.evaluate
    steps = evaluate.resistance
    need(bool(experiment.model.strip()), "model", "a name, a folder or a Hub id")
    need(0 <= experiment.seed < 2**32, "seed", "an integer from 0 to 4294967295")
    need(bool(experiment.accelerate.strip()), "accelerate", "none, ddp, fsdp2 or a file")
    if experiment.system is not None and experiment.template != "chat":
        problems.append(
            f"system: the template {experiment.template} is one text without turns. Leave out `system`, or set "
            "template: chat"
        )
    need(experiment.processes is None or experiment.processes >= 1, "processes", "at least 1")
    if experiment.accelerate == "none" and (experiment.processes or 1) > 1:
        problems.append("processes: several processes need accelerate: ddp (or fsdp2, or a file)")
    if experiment.quantization:
        problems += quantisation_problems(experiment, "quantization")
    own = experiment.finetune.adapter if experiment.finetune else None
    for path, adapter in (("adapter", experiment.adapter), ("finetune.adapter", own)):
        if isinstance(adapter, Adapter):
            need(adapter.r >= 1, f"{path}.r", "at least 1")
            need(adapter.lora_alpha >= 1, f"{path}.lora_alpha", "at least 1")
            need(0 <= adapter.lora_dropout < 1, f"{path}.lora_dropout", "a fraction below 1")
            need(bool(adapter.target_modules), f"{path}.target_modules", "at least one module")
    if own is not None and experiment.topology == "single":
        problems.append(
            "finetune.adapter: topology: single goes on training the alignment's adapter. Take it out, or set "
            "topology: double"
        )
    need(evaluate.limit is None or evaluate.limit >= 1, "evaluate.limit", "at least 1")
    problems += _sampling_problems(evaluate)
    need(all(a < b for a, b in itertools.pairwise([0, *steps])), "evaluate.resistance", "ascending steps from 1 up")
    if experiment.finetune:
        attack, end = experiment.finetune.attack, experiment.finetune.training.get("max_steps")
        if isinstance(attack, Attack):
            need(0 <= attack.harmful_ratio <= 1, "finetune.attack.harmful_ratio", "a fraction from 0 to 1")
            need(attack.size >= 1, "finetune.attack.size", "at least 1 row")
            if steps and isinstance(end, int) and end > 0:  # attacks of other kinds may have trainings of their own
                need(steps[-1] < end, "evaluate.resistance", f"steps below finetune.training.max_steps ({end})")
        else:
            problems += training_fields.anywhere("finetune.attack", attack)
    for stage in ("align", "finetune"):
        if settings := getattr(experiment, stage):
            problems += training_fields.problems(f"{stage}.training", settings.training)
            problems += training_fields.anywhere(f"{stage}.defense", settings.defense)
    problems += training_fields.anywhere("repair", experiment.repair)
    for name in ("generator", "judges"):
        problems += training_fields.anywhere(f"evaluate.{name}", getattr(evaluate, name))
    return problems


def quantisation_problems(experiment: Experiment, what: str) -> list[str]:
    """What an experiment asks for that weights in 4 or 8 bit cannot hold. `what` says where they come from."""
    problems = []
    for stage in ("align", "finetune"):
        if getattr(experiment, stage) is not None and experiment.adapter_of(stage) is None:
            problems.append(f"{what}: {stage} trains all weights, and quantised ones hold no steps. Train an adapter")
    if experiment.topology == "double" and experiment.align and experiment.finetune:
        problems.append(
            f"{what}: topology: double merges the alignment's adapter, for which the weights are dequantised, so that "
            "the fine-tune would not train over a quantised base. Set topology: single, or align: none"
        )
    if experiment.accelerate == "fsdp2":
        problems.append(f"{what}: quantised weights are not sharded here. Set accelerate: ddp or none")
    if "vllm" in experiment.evaluate.generator:
        problems.append(f"{what}: vllm would be given the dequantised model. Set evaluate.generator: transformers")
    return problems


def _sampling_problems(evaluate: Evaluate) -> list[str]:
    """Samples and their temperature go together, and neither without the other."""
    samples, temperature = evaluate.samples, evaluate.temperature
    if samples is None and temperature is None:
        return []
    problems = []
    if samples is None:
        problems.append("evaluate.temperature: needs evaluate.samples, the number of answers drawn for each prompt")
    elif not 1 <= samples <= MAX_SAMPLES:
        problems.append(f"evaluate.samples: expected 1 to {MAX_SAMPLES} answers to a prompt, got {samples}")
    if temperature is None:
        problems.append("evaluate.samples: needs evaluate.temperature: without one, all samples are the greedy answer")
    elif temperature == 0:
        problems.append(
            "evaluate.temperature: at 0 all samples are the greedy answer; leave out both it and evaluate.samples"
        )
    elif not 0 < temperature <= MAX_TEMPERATURE:
        problems.append(f"evaluate.temperature: expected above 0, up to {MAX_TEMPERATURE:g}, got {temperature:g}")
    return problems


# -- what only the methods themselves can tell -----------------------------------------------------


def validate(experiment: Experiment, where: str = "experiment") -> None:
    """Checks the names and fields of methods and of SFTConfig, before any compute is spent. Imports torch.

    The methods' fields that were not given are filled in with their defaults, in place: what acts is what is recorded,
    and what the stage's key is made of. `where` is the file's name, for errors.

    Raises:
        InputError: with every problem found, one a line.
    """
    from mithridate.methods import by_name

    problems = []
    for stage in ("align", "finetune"):
        settings = getattr(experiment, stage)
        if settings is not None:
            problems += _method_problems(f"{stage}.defense", settings.defense, by_name("defenses"))
            problems += _stage_problems(stage, settings.defense, by_name("defenses"))
            problems += _training_problems(f"{stage}.training", settings.training)
    if experiment.finetune:
        problems += _attack_problems(experiment.finetune.attack, by_name("attacks"))
    problems += _method_problems("repair", experiment.repair, by_name("repairs"))
    problems += _evaluate_problems(experiment)
    if not problems:
        problems += _place_problems(experiment)
    if problems:
        raise error_of(where, problems)


def _evaluate_problems(experiment: Experiment) -> list[str]:
    """Names and fields of protocol, generator, judges and tasks, and that each task has what scores it."""
    from mithridate import generation, judges
    from mithridate.data import tasks
    from mithridate.protocols import PROTOCOLS

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


def _method_problems(path: str, methods: dict[str, dict[str, Any]], known: Mapping[str, Any]) -> list[str]:
    problems = []
    for name, values in methods.items():
        if name in known:
            problems += _own_problems(f"{path}.{name}", values, known[name])
        else:
            problems.append(f"{path}.{name}: no such method{nearest(name, known)}")
    return problems


def _attack_problems(attack: Attack | dict[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Of an attack of another kind than the harmful one, which has been checked."""
    if isinstance(attack, Attack):
        return []
    own = {name: value for name, value in attack.items() if name != "kind"}
    if attack["kind"] not in known:
        return [f"finetune.attack.kind: no such attack `{attack['kind']}`{nearest(str(attack['kind']), known)}"]
    problems = _own_problems("finetune.attack", own, known[attack["kind"]])
    attack |= own
    return problems


def _own_problems(path: str, values: dict[str, Any], cls: Any) -> list[str]:
    """Of the fields of one method; those that were not given are filled in, in place."""
    from mithridate.experiment.methods import method_of

    names = [f.name for f in fields(cls) if f.init and f.name not in cls.roles]
    problems = [f"{path}.{f}: comes from data.{cls.roles[f]}; leave it out" for f in values if f in cls.roles]
    own = {field: value for field, value in values.items() if field not in cls.roles}
    problems += field_problems(path, own, cls, names)
    if not problems:
        try:
            method = method_of(cls, values)
            values |= {field: getattr(method, field) for field in names}
        except (InputError, TypeError, ValueError) as error:  # the method's own checks of its values
            problems.append(f"{path}: {error}")
    return problems


def _place_problems(experiment: Experiment) -> list[str]:
    """Methods where they cannot act, or that would have nothing to act on."""
    from mithridate.experiment.methods import POST_ALIGNMENT, attack_of, defenses_of, method_of
    from mithridate.methods import by_name

    problems = []
    placed: dict[bool, list[str]] = {True: [], False: []}
    for name, values in experiment.repair.items():
        cls = by_name("repairs")[name]
        before = cls.stage == POST_ALIGNMENT
        placed[before].append(name)
        finetuned = experiment.finetune is not None and not before
        adapter = experiment.adapter_of("finetune" if finetuned else "align") is not None
        kept = adapter and (finetuned or (experiment.align is not None and experiment.topology == "single"))
        try:
            method_of(cls, values).check_run(topology=experiment.topology, finetuned=finetuned, adapter=kept)
        except InputError as error:
            problems.append(f"repair.{name}.{error}")
    for before, names in placed.items():
        if len(names) > 1:
            where = "between alignment and fine-tuning" if before else "after fine-tuning"
            problems.append(f"repair: expected one repair {where}, got {len(names)}: {', '.join(names)}")
    if experiment.finetune:
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


def _phase_problems(experiment: Experiment, phases: Sequence[Phase], hardened: bool) -> list[str]:
    """What the trainings of an attack ask for beside the experiment's own."""
    problems = []
    for number, phase in enumerate(phases, 1):
        where = f"finetune.attack: phase {number}"
        problems += _training_problems(f"{where}: training", dict(phase.training))
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
