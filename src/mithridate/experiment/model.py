"""What an experiment is: its types, with the values that they allow, and how raw values become one.

The same types give the file's JSON Schema (`schema.py`). Imports no torch. An experiment is never changed in place;
`with_values` and `dataclasses.replace` give another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError, WrapValidator
from typing_extensions import TypedDict

from mithridate.errors import InputError
from mithridate.experiment import combinations, places
from mithridate.experiment.roles import ROLES
from mithridate.experiment.sources import Source
from mithridate.experiment.yaml12 import dump_yaml
from mithridate.files import canonical_json, stable
from mithridate.methods.fields import adapter_of
from mithridate.problems import error_of, explained, nearest

if TYPE_CHECKING:
    from mithridate.evaluation import Sampling

HARMFUL = "harmful"  # the kind of attack where none is given


def _need(holds: Callable[[Any], bool], words: str) -> AfterValidator:
    def checked(value: Any) -> Any:
        if not holds(value):
            raise places.said(f"expected {words}, got {value}")
        return value

    return AfterValidator(checked)


def _role(name: str) -> str:
    if name not in ROLES:
        raise places.said(f"no such role{nearest(name, ROLES)}")
    return name


# The descriptions say what errors say that was expected.
Fraction = Annotated[float, Field(ge=0, le=1, description="a fraction from 0 to 1")]
Count = Annotated[int, Field(ge=1, description="at least 1")]
Rows = Annotated[int, Field(ge=1, description="at least 1 row")]
Seed = Annotated[int, Field(ge=0, lt=2**32, description="an integer from 0 to 4294967295")]
Samples = Annotated[int, Field(ge=1, le=1000, description="1 to 1000 answers to a prompt")]
# Beyond it, what is drawn is noise.
Temperature = Annotated[float, Field(ge=0, le=2, description="above 0, up to 2")]
Steps = Annotated[
    list[int], _need(lambda steps: all(a < b for a, b in pairwise([0, *steps])), "ascending steps from 1 up")
]
Modules = Annotated[list[str] | str, _need(bool, "at least one module")]
Methods = Annotated[dict[str, dict[str, Any]], BeforeValidator(places.methods)]
Defenses = Annotated[dict[str, dict[str, Any]], BeforeValidator(places.defenses)]
FULL = "full"
Precisions = Annotated[
    list[Literal["full", "int8", "nf4"]],
    BeforeValidator(places.listed),
    _need(lambda given: given and len(set(given)) == len(given), "one or several different precisions"),
]
Patterns = Annotated[list[str], BeforeValidator(places.listed)]
Sources = Annotated[list[Source], BeforeValidator(places.listed)]
Variants = Annotated[dict[str, dict[str, Any]], BeforeValidator(places.variants)]


class Adapter(TypedDict):
    """The LoRA adapter of `single` and `double`: any of LoraConfig's fields, of which these have defaults of their
    own; not used under `full`.

    Args:
        r: rank of the adapter.
        lora_alpha: its strength: updates are multiplied by lora_alpha / r.
        lora_dropout: share of the adapter's inputs that is dropped in training.
        target_modules: names of the layers that it is over.
    """

    __pydantic_config__ = ConfigDict(extra="allow")  # pyright: ignore[reportGeneralTypeIssues]

    r: Count
    lora_alpha: Count
    lora_dropout: Annotated[float, Field(ge=0, lt=1, description="a fraction below 1")]
    target_modules: Modules


ADAPTER = Adapter(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=["q_proj", "k_proj", "v_proj"])
"""What an adapter is where the file does not say."""

if TYPE_CHECKING:
    GivenAdapter = Adapter
else:
    GivenAdapter = Annotated[
        Adapter, BeforeValidator(lambda given: {**ADAPTER, **given} if isinstance(given, dict) else given)
    ]


@dataclass(frozen=True, kw_only=True)
class Align:
    """The alignment stage.

    Args:
        defense: one or several methods of the alignment stage, by name, with their fields; none for plain training.
        training: fields of TRL's SFTConfig.
    """

    defense: Defenses = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Attack:
    """The poisoned data: `size` rows, of which exactly round(harmful_ratio * size) are harmful.

    Args:
        harmful_ratio: the share of harmful rows, from 0 to 1.
        size: rows of the user's upload.
    """

    harmful_ratio: Fraction
    size: Rows


def _of_its_kind(value: Any, harmful: Any) -> Any:
    if isinstance(value, dict) and "kind" in value:
        own = {name: inner for name, inner in value.items() if name != "kind"}
        return harmful(own) if value["kind"] == HARMFUL else value
    return harmful(value)


if TYPE_CHECKING:
    AnyAttack = Attack | dict[str, Any]
else:  # one type for pydantic, so that what is wrong with an `Attack` is not taken for an attack of another kind
    AnyAttack = Annotated[Attack, WrapValidator(_of_its_kind)]


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """The user's fine-tune, which is the attack where harmful rows are in it.

    Args:
        attack: of the kind `harmful`, which need not be written, an `Attack`; of another kind a mapping of `kind` and
            of the fields of the attack of that name, which `resolve` looks into.
        defense: one or several methods of the fine-tuning stage, by name, with their fields; none for plain training.
        training: fields of TRL's SFTConfig.
        adapter: a fresh one for this stage alone, or `full`: it trains all weights; none: as in alignment.
        frozen: regular expressions; trained tensors whose whole name matches one keep the values that they start with.
    """

    attack: AnyAttack
    defense: Defenses = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    adapter: GivenAdapter | Literal["full"] | None = None
    frozen: Patterns = field(default_factory=list)

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


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """How every model of the experiment is scored.

    Args:
        protocol: how prompts are asked and answers judged, by name.
        generator: what answers, by name or as {name: {field: value}}: transformers, vllm or openai (a server; then
            there are no stages).
        judges: judges beside the protocol's, written like defenses; one of the protocol's own gets its fields here.
        tasks: further tasks by name, each with the source of its test rows.
        capability: names of tasks of lm-eval.
        resistance: the attack's optimizer steps at which the model is scored on the way, ascending.
        part: which part of the test sets.
        precision: of the weights that answer: `full` as they were trained, `int8` or `nf4` quantised by bitsandbytes
            once the model is made; each of several is a row of the table.
        limit: only that many prompts of each set.
        samples: so many answers to each harmful and benign prompt, drawn at `temperature`; neither: one greedy answer.
        temperature: at which answers are drawn, with the experiment's seed.
    """

    protocol: str = "hs/embedded-v1"
    generator: Methods = field(default_factory=lambda: {"transformers": {}})
    judges: Methods = field(default_factory=dict)
    tasks: dict[str, Sources] = field(default_factory=dict)
    capability: list[str] = field(default_factory=list)
    resistance: Steps = field(default_factory=list)
    part: Literal["test", "validation"] = "test"
    precision: Precisions = field(default_factory=lambda: [FULL])
    limit: Count | None = None
    samples: Samples | None = None
    temperature: Temperature | None = None

    def sampling(self, seed: int) -> Sampling | None:
        """How answers are drawn; None where they are greedy."""
        from mithridate.evaluation import Sampling

        drawn = self.samples is not None and self.temperature is not None
        return Sampling(self.samples, self.temperature, seed) if drawn else None  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the repair after the fine-tune may cost; the strongest setting within it is taken.

    Args:
        accuracy: how much of the task's accuracy may be lost against the unrepaired model on the validation part, by
            the upper end of the difference's 95 % interval.
        strengths: the values of the repair's strength that may be taken; if not given, the one that the repair has and
            five more, each half as far from the value that changes nothing.
    """

    accuracy: Fraction
    strengths: list[int | float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment file. A stage that is not run is None (`repair`: empty).

    Args:
        model: the model that everything starts from: an embedded one's name, a folder or a Hub id.
        data: where the rows of each role come from: one source or a list of them.
        seed: of data, training and sampling.
        topology: `single`: one adapter, aligned and then trained on; `double`: the aligned adapter is merged and the
            user's fine-tune has a fresh one; `full`: all weights are trained.
        dtype: of the base model's weights; `auto`: as they are stored.
        quantization: bitsandbytes' own fields (load_in_4bit and the like), by which the base model is quantised as it
            is loaded; none for not at all.
        template: what prompts are put into in training: the model's own `chat` template, or that of a paper's
            protocol.
        system: the system turn before every conversation without one of its own, in training and at the test; empty
            for an empty turn, none for what the model's template puts there by itself.
        accelerate: how several processes train together: ddp, fsdp2, the path of an Accelerate configuration, or none.
        processes: how many; one per GPU, or as that file says, if not given.
        adapter: the LoRA adapter of `single` and `double`: fields of LoraConfig.
        align: the alignment stage; none: the model is aligned already.
        finetune: the user's fine-tune, which is the attack where harmful rows are in it; none: the aligned model is
            scored.
        repair: one or several methods after the fine-tune, by name, with their fields; none for no repair.
        budget: what the repair may cost, which chooses its strength; none: that is as `repair` says.
        evaluate: how every model is scored.
        variants: a list or mapping of {dotted path: value}, each of which sets several fields of the file at once ({}
            for none).
        sweep: lists of values by dotted path, of which every combination is run, of each variant; what a variant sets
            itself is not varied.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    model: Annotated[str, Field(pattern=r"\S", description="a name, a folder or a Hub id")]
    data: dict[Annotated[str, AfterValidator(_role)], Sources]
    seed: Seed = 0
    topology: Literal["single", "double", "full"] = "double"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Annotated[dict[str, Any], BeforeValidator(places.or_nothing)] = field(default_factory=dict)
    template: Literal["chat", "alpaca", "alpaca-newline"] = "chat"
    system: str | None = None
    accelerate: Annotated[str, Field(pattern=r"\S", description="none, ddp, fsdp2 or a file")] = "none"
    processes: Count | None = None
    adapter: GivenAdapter = field(default_factory=lambda: Adapter(**ADAPTER))
    align: Annotated[Align | None, BeforeValidator(places.or_none)] = None
    finetune: Annotated[Finetune | None, BeforeValidator(places.or_none)] = None
    repair: Methods = field(default_factory=dict)
    budget: Annotated[Budget | None, BeforeValidator(places.or_none)] = None
    evaluate: Evaluate = field(default_factory=Evaluate)
    variants: Variants = field(default_factory=dict)
    sweep: dict[str, list[Any]] = field(default_factory=dict)

    def adapter_of(self, stage: str) -> Adapter | None:
        """The adapter that the stage `align` or `finetune` trains; None where it trains all weights."""
        own = self.finetune.adapter if stage == "finetune" and self.finetune else None
        if own is None:
            return None if self.topology == "full" else self.adapter
        return None if own == "full" else own

    @property
    def paired(self) -> bool:
        """Whether `defender_harmful` may have the prompts of `alignment`."""
        return any(source.paired for source in self.data.get("defender_harmful", []))

    def with_values(self, values: Mapping[str, Any]) -> Experiment:
        """The experiment with these values of fields, by dotted path, each as a file would have it.

        Raises:
            InputError: with every problem that this makes, one a line.
        """
        made, problems = parsed(places.put_all(plain(self), values))
        if made is None or problems:
            raise error_of("experiment", problems)
        return made


_PARTS = {
    (): Experiment,
    ("adapter",): Adapter,
    ("align",): Align,
    ("finetune",): Finetune,
    ("finetune", "attack"): Attack,
    ("finetune", "adapter"): Adapter,
    ("budget",): Budget,
    ("evaluate",): Evaluate,
    ("data",): Source,
}


def parsed(raw: Mapping[str, Any]) -> tuple[Experiment | None, list[str]]:
    """The experiment that raw values say, and what is wrong with it."""
    try:
        text = canonical_json(raw)
    except InputError as error:
        return None, [str(error)]
    try:
        # From JSON: strictness then means JSON's types (an int for a float is right, a string for an int is not).
        experiment = adapter_of(Experiment).validate_json(text, strict=True)
    except ValidationError as error:
        return None, explained(error, raw, _PARTS)
    # JSON's keys came sorted; the order of these is the file's.
    ordered = {
        "sweep": dict(raw.get("sweep") or {}),
        "variants": {name: experiment.variants[name] for name in places.variants(raw.get("variants"))},
    }
    experiment = replace(experiment, **ordered)
    return experiment, combinations.problems(experiment)


def plain(experiment: Experiment) -> dict[str, Any]:
    """The experiment as mappings and lists, as a file would have it; defenses that act in an order of their own are a
    list, which keeps it."""
    raw = asdict(experiment)
    for name, absent in (("quantization", {}), ("system", None), ("budget", None), ("variants", {})):
        if raw[name] == absent:  # as in files from before there was the field, whose digests stay theirs
            del raw[name]
    if raw["evaluate"]["precision"] == [FULL]:
        del raw["evaluate"]["precision"]
    if raw["finetune"] and not raw["finetune"]["frozen"]:
        del raw["finetune"]["frozen"]
    for stage in ("align", "finetune"):
        methods = raw[stage]["defense"] if raw[stage] else {}
        if list(methods) != places.in_order(methods):
            raw[stage]["defense"] = [{name: fields} for name, fields in methods.items()]
    return raw


def canonical(experiment: Experiment) -> dict[str, Any]:
    """The experiment as JSON types in one fixed form, every field present (`quantization`, `system`, `budget`,
    `variants`, `finetune.frozen` and `evaluate.precision` where they are given); `load_experiment` reads it back."""
    return stable(plain(experiment))


def resolved_yaml(experiment: Experiment) -> str:
    """The experiment with every field, as a file that `run` takes; of data sources, what was given."""
    raw = plain(experiment)
    for sources in (*raw["data"].values(), *raw["evaluate"]["tasks"].values()):
        sources[:] = [{name: value for name, value in source.items() if value is not None} for source in sources]
    return dump_yaml(raw)
