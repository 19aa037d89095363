"""What an experiment, or a model with each method, would need: the lines of `mithridate estimate`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mithridate.data.records import prompt_text, training_dataset, turns
from mithridate.errors import InputError, first_line, nearest
from mithridate.estimate import METHODS, PLAIN, REPAIRS, Estimate, RepairNeeds, estimate, repair
from mithridate.estimate.trace import Setup, config_of, whole_counts
from mithridate.experiment.config import with_defaults
from mithridate.experiment.methods import attack_of, defenses_of, part_of, plain_by, repair_of, repaired_in
from mithridate.experiment.processes import with_processes
from mithridate.experiment.roles import load_roles
from mithridate.methods.attack import Phase
from mithridate.methods.defense import Defense, arguments_of
from mithridate.methods.registry import by_name
from mithridate.models import ModelFiles, held_quantisation, load_tokenizer, resolve_model
from mithridate.models.embedded import EMBEDDED
from mithridate.models.folder import stored_quantisation
from mithridate.models.quantisation import require_trainable
from mithridate.pipeline.checkpointing import asked
from mithridate.pipeline.launch import launch_of
from mithridate.protocols import protocol

if TYPE_CHECKING:
    from mithridate.experiment.config import Budget, Experiment, Finetune
    from mithridate.experiment.roles import Roles
    from mithridate.methods.base import Method
    from mithridate.pipeline.precheck import Part
    from mithridate.pipeline.stages import ExperimentStages

GIB = 2**30

TITLES = (
    *(
        "stage",
        "method",
        "weights",
        "gradients",
        "optimizer",
        "defense state",
        "activations",
        "logits",
        "GiB / process",
    ),
    *("passes / step", "x SFT", "steps", "PFLOPs", "disk GiB"),
)


@dataclass(frozen=True)
class StageLine:
    """One stage: what it is, how it is set up, and what it needs."""

    stage: str
    setup: Setup
    needs: Estimate | RepairNeeds
    flops: int  # of the whole stage, on all processes
    tokens: int = 0  # of the whole stage, on all processes; for the time

    def cells(self) -> tuple[str, ...]:
        """As `TITLES`."""
        needs = self.needs
        total = f"{self.flops / 1e15:.3g}"
        if isinstance(needs, RepairNeeds):
            parts = [needs.weights, None, None, needs.norms, needs.activations, None, needs.total]
            kept = needs.kept
            rest = (needs.passes, "", "", total)
        else:
            parts = [needs.weights, needs.gradients, needs.optimizer, needs.extra, needs.activations, needs.head]
            parts.append(needs.total)
            kept = needs.kept + needs.checkpoints
            rest = (needs.passes, f"{needs.ratio:.2f}", str(self.setup.steps), total)
        return (self.stage, needs.method, *("" if part is None else _gib(part) for part in parts), *rest, _gib(kept))


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}" if size < 10 * GIB else f"{size / GIB:.1f}"


def of_model(
    model: str,
    setup: Setup,
    methods: Iterable[str] | Mapping[str, Mapping[str, Any]] = (*METHODS, *REPAIRS),
    rows: int = 500,
) -> list[StageLine]:
    """A training or a repair with each method: defenses, repairs and "plain", by name, with fields if given.

    Args:
        rows: of data that a method sees once, as a repair's calibration rows.

    Raises:
        InputError: no such model or method, bad fields, or a repair that this set-up has nothing for.
    """
    config, lines = config_of(model), []
    if stored := getattr(config, "quantization_config", None):
        stored = dict(stored) if isinstance(stored, dict) else stored.to_dict()
        if setup.quantization:
            raise InputError(f"--bits: the weights of {model!r} are stored quantised. Take it out")
        require_trainable(model, stored)
        setup = replace(setup, quantization=stored)
    for name in methods:
        fields = methods[name] if isinstance(methods, Mapping) else {}
        if name in by_name("repairs"):
            method = _made("repairs", name, fields)
            method.check_run(topology="full" if setup.full else "double", finetuned=True, adapter=not setup.full)
            needs = replace(repair(config, setup, method, rows), method=name)
            lines.append(StageLine("repair", setup, needs, needs.flops))
        else:
            acting = {} if name == PLAIN else {name: _made("defenses", name, fields)}
            lines.append(_training("training", config, setup, acting, rows=rows))
    return lines


def _made(kind: str, name: str, fields: Mapping[str, Any]) -> Any:
    known = by_name(kind)
    if name not in known:
        raise InputError(f"no such method {name!r}{nearest(name, (PLAIN, *known, *by_name('repairs')))}")
    try:
        return known[name].without_data(**fields)
    except TypeError as error:  # a field that is missing, or that there is not
        raise InputError(f"{name}: {error}; give fields as in {{{name}: {{FIELD: VALUE}}}}") from error


def _training(
    stage: str,
    config: Any,
    setup: Setup,
    acting: Mapping[str, Any],
    mean: int | None = None,
    rows: int = 0,
    memory: bool = True,
) -> StageLine:
    """A training with all of these defenses. `mean`: tokens of a row on average, for the operations; the longest
    counts for the memory, where it is wanted. `rows`: of the defenses' own data."""
    defenses = list(acting.values())
    if not memory and mean is not None:
        setup = replace(setup, length=mean)
    needs = replace(estimate(config, setup, defenses, rows, memory=memory), method="+".join(acting) or PLAIN)
    if mean is not None and mean < setup.length:
        shorter = estimate(config, replace(setup, length=mean), defenses, rows)
        needs = replace(needs, flops=shorter.flops, plain_flops=shorter.plain_flops, once=shorter.once)
    tokens = setup.steps * setup.accumulation * setup.processes * setup.batch * (mean or setup.length)
    return StageLine(stage, setup, needs, needs.flops * setup.steps + needs.once, tokens)


def of_experiment(experiment: Experiment, base: Path, gpu: bool) -> list[StageLine]:
    """Each stage of an experiment, with its own settings and the lengths of its own rows.

    Args:
        base: the folder of the experiment file.
        gpu: whether it will run on GPUs.

    Raises:
        InputError: a method, the data or the model are bad, or the number of processes is open.
    """
    experiment = with_defaults(experiment)
    name = str(base / experiment.model) if (base / experiment.model).is_dir() else experiment.model
    config, tokenizer = config_of(name), _tokenizer(name, experiment.template == "chat")
    roles = load_roles(experiment.data, base, system=experiment.system)
    common = set_up(experiment, base, gpu)
    stages = [stage for stage in ("align", "harden", "finetune", "repair") if _has(experiment, stage)]
    return [line for stage in stages for line in of_stage(stage, experiment, common, roles, config, tokenizer)]


def _has(experiment: Experiment, stage: str) -> bool:
    if stage in ("align", "finetune"):
        return getattr(experiment, stage) is not None
    return repair_of(experiment, post_alignment=stage == "harden") is not None


def set_up(experiment: Experiment, base: Path, gpu: bool) -> Setup:
    """What all stages of an experiment have in common. Arguments as of `of_experiment`.

    Raises:
        InputError: the number of processes is open.
    """
    from mithridate.pipeline.context import resolve_dtype

    processes = experiment.processes or (1 if experiment.accelerate == "none" else None)
    if processes is None:
        raise InputError("processes: the number decides what each one needs; set it: -o processes=8")
    folder = base / experiment.model
    stored = stored_quantisation(folder) if folder.is_dir() else {}
    auto = "bfloat16" if gpu and experiment.dtype == "auto" else experiment.dtype
    return Setup(
        full=experiment.topology == "full",
        adapter=experiment.adapter,
        quantization=experiment.quantization or stored,
        dtype=resolve_dtype(auto),  # pyright: ignore[reportArgumentType]
        processes=processes,
        sharded=_sharded(experiment, base),
        gpu=gpu,
    )


def of_stage(
    stage: str,
    experiment: Experiment,
    common: Setup,
    roles: Roles,
    config: Any,
    tokenizer: Any,
    *,
    memory: bool = True,
) -> list[StageLine]:
    """A stage of an experiment, with all methods that act in it; a line for each training of the attack.

    Args:
        stage: align, harden (a repair before the user's run), finetune or repair; one that the experiment has.
        common: from `set_up`.
        config: the model's configuration.
        tokenizer: the model's.
        memory: whether that is wanted; where it is not, the lines' means nothing.
    """
    template = experiment.template
    if stage in ("harden", "repair"):
        found = repair_of(experiment, post_alignment=stage == "harden")
        assert found
        lengths = _lengths_of(found[1], roles, tokenizer, template)
        setup = replace(
            _over(common, experiment, stage),
            batch=8,
            length=max((total for total, _ in lengths), default=1),
            dtype=repaired_in(experiment, stage, common.dtype),
        )
        needs = replace(repair(config, setup, found[1], len(lengths), memory=memory), method=found[0])
        if stage == "repair" and experiment.budget:
            needs = replace(needs, flops=_tried(needs.flops, experiment, experiment.budget, roles, config, tokenizer))
        return [StageLine(stage, setup, needs, needs.flops)]
    settings = getattr(experiment, stage)
    acting = dict(zip(settings.defense, defenses_of(settings.defense)))
    own = sum(
        len(_lengths_of(method, roles, tokenizer, template))
        for method in acting.values()
        if method.cost().once_passes or method.cost().once_forwards
    )
    parts = [(stage, Phase(), roles.alignment)] if stage == "align" else _phases(settings, roles, experiment.seed)
    lines = []
    for number, (name, phase, rows) in enumerate(parts, 1):
        adapter = experiment.adapter_of(stage) or experiment.adapter
        full = experiment.adapter_of(stage) is None
        if phase.adapter is not None:
            adapter, full = (adapter, True) if phase.adapter == "full" else (phase.adapter, False)
        lengths = _lengths(rows, tokenizer, template)
        training = phase.trained(settings.training)
        frozen = () if stage == "align" else (*settings.frozen, *phase.frozen)
        trained = replace(_over(common, experiment, stage, number), full=full, adapter=adapter, frozen=frozen)
        setup, mean = _set_up(trained, training, lengths, experiment.seed, common.gpu, name, list(acting.values()))
        snapshots = len(experiment.evaluate.resistance) if stage == "finetune" else 0
        lines.append(_training(name, config, replace(setup, snapshots=snapshots), acting, mean, own, memory))
    return lines


def of_part(chain: ExperimentStages, part: Part, checkpointing: bool) -> Estimate:
    """One training of a stage as it is about to be made on GPUs here, whatever it says of checkpointing. Of the rows,
    and of those of the methods' own, the longest counts."""
    context, job, launch = chain.context, part.job, chain.launch
    common = Setup(
        full=job.adapter is None,
        adapter=job.adapter or chain.experiment.adapter,
        quantization=held_quantisation(job.base),
        dtype=context.dtype,  # pyright: ignore[reportArgumentType]
        frozen=tuple(job.frozen),
        processes=launch.processes if launch else 1,
        sharded=launch is not None and launch.kind == "fsdp2",
    )
    common = _over(common, chain.experiment, part.stage, part.phase or 1)
    defenses = defenses_of(job.defense)
    lengths = _lengths(job.rows, chain.tokenizer, job.template)
    setup, _ = _set_up(common, job.training, lengths, job.seed, True, part.stage, defenses)
    own = [total for rows in job.side_rows.values() for total, _ in _lengths(rows, chain.tokenizer, job.template)]
    longest = max([setup.length, *(min(total, part.args.max_length or total) for total in own)])
    return estimate(context.config, replace(setup, length=longest, checkpointing=checkpointing), defenses)


def _over(common: Setup, experiment: Experiment, stage: str, phase: int | None = None) -> Setup:
    """The set-up of a stage by what its quantised base is by then: a repair that changed weights dequantised it, or
    it carries the adapters that were trained before and are not trained on.

    Args:
        phase: which of the trainings of the attack, from 1; None: the last.
    """
    if not common.quantization or stage not in ("finetune", "repair") or experiment.finetune is None:
        return common
    if plain_by(experiment, stage):
        return replace(common, quantization={})
    carried: list[Mapping[str, Any]] = []
    free: Any = None  # LoraConfig's fields of one that is trained on, or carried where another is trained
    if experiment.align and experiment.topology == "double":
        carried.append(experiment.adapter)
    elif experiment.align:
        free = experiment.adapter_of("align")
    for part in attack_of(experiment.finetune).phases()[:phase]:
        own = experiment.adapter_of("finetune") if part.adapter is None else part.adapter
        if free is not None and own != free:
            carried.append(free)
        free = None if own == "full" else own
    return replace(common, carried=tuple(carried))


def _tried(flops: int, experiment: Experiment, budget: Budget, roles: Roles, config: Any, tokenizer: Any) -> int:
    """Operations of a repair, of `flops` at one strength, where all strengths of a budget are tried, as they are where
    none fits."""
    assert roles.task_name is not None  # `check` has asked for one
    use, tries = protocol(experiment.evaluate.protocol).task(roles.task_name), len(budget.strengths)
    rows = use.prepare(roles.task_validation[: experiment.evaluate.limit])
    answered = of_answers(config, tokenizer, rows, use.decoding().max_new_tokens)
    return tries * flops + (tries + 1) * answered


def _phases(finetune: Finetune, roles: Roles, seed: int) -> list[tuple[str, Phase, list[dict[str, Any]]]]:
    """The trainings of an attack: what each is called, and its rows."""
    attack = attack_of(finetune)
    if attack.needs_model:
        raise InputError(
            "finetune.attack: its rows depend on the model, so that what their training takes is not known before"
        )
    given = {name: getattr(roles, part_of(role)) for name, role in attack.data_roles().items()}
    rows, phases = attack.rows(given, seed), attack.phases()
    names = ["finetune"] if len(phases) == 1 else [f"finetune {i}" for i in range(1, len(phases) + 1)]
    return [
        (name, phase, [row for row in rows if phase.rows is None or row.get("phase") == phase.rows])
        for name, phase in zip(names, phases)
    ]


def _lengths_of(method: Method, roles: Roles, tokenizer: Any, template: str) -> list[tuple[int, int]]:
    """Of each row of the data that a method needs of its own."""
    rows = [row for role in method.data_roles().values() for row in getattr(roles, part_of(role))]
    return _lengths(rows, tokenizer, template) if method.data_roles() else []


def of_answers(config: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]], new_tokens: int) -> int:
    """Operations of answering `rows` with as many tokens as allowed, every token going through the model once.

    Attention over what came before is not in it, which counts for little beside the weights at the lengths of prompts.
    """
    weights = whole_counts(config, Setup(full=True)).all
    prompts = tokenizer([prompt_text(dict(row)) for row in rows], add_special_tokens=False)["input_ids"]
    return 2 * weights * (sum(map(len, prompts)) + new_tokens * len(rows))


def _sharded(experiment: Experiment, base: Path) -> bool:
    if experiment.accelerate == "none":
        return False
    launch = launch_of(with_processes(experiment, base))
    return launch is not None and launch.kind == "fsdp2"


def _set_up(
    common: Setup,
    training: dict[str, Any],
    lengths: list[tuple[int, int]],
    seed: int,
    gpu: bool,
    stage: str,
    defenses: Sequence[Defense] = (),
) -> tuple[Setup, int]:
    """The set-up of a stage, and the tokens of a row on average; `lengths` as `_lengths` gives them."""
    from mithridate.pipeline.arguments import planned_steps, training_arguments

    try:
        # fp32 here: whether this machine could compute otherwise is not what is asked
        args = training_arguments(training, Path("unused"), seed, bf16=False, progress=False)
        steps = planned_steps(arguments_of(defenses, args, len(lengths)), len(lengths), common.processes)
    except InputError as error:
        raise InputError(f"{stage}.{error}") from error
    most = args.max_length or max(total for total, _ in lengths)
    longest = sorted((min(total, most) for total, _ in lengths), reverse=True)
    answers = sorted((answer for _, answer in lengths), reverse=True)[: args.per_device_train_batch_size]
    checkpointing = asked(training)  # not from `args`, whose default is this machine's
    setup = replace(
        common,
        batch=args.per_device_train_batch_size,
        length=most if args.packing else longest[0],
        scored=None if args.packing else max(round(sum(answers) / len(answers)), 1),
        accumulation=args.gradient_accumulation_steps,
        optimizer=str(getattr(args.optim, "value", args.optim)),
        steps=steps,
        checkpointing=gpu if checkpointing is None else checkpointing,
    )
    return setup, max(round(sum(longest) / len(longest)), 1)


def _lengths(rows: Any, tokenizer: Any, template: str) -> list[tuple[int, int]]:
    """Of each row, the tokens of all turns and those after the last prompt."""
    from mithridate.repairs.input_norms import token_ids

    if not rows:
        raise InputError("data: a role that this experiment needs has no rows")
    if template != "chat":
        labels: Any = training_dataset(rows, tokenizer, template)["labels"]
        return [(len(one), sum(label != -100 for label in one)) for one in labels]
    found = []
    for row, ids in zip(rows, token_ids(rows, tokenizer)):
        before = tokenizer.apply_chat_template(turns(row)[:-1], tokenize=False, add_generation_prompt=True)
        asked = tokenizer(before, add_special_tokens=False)["input_ids"]
        found.append((len(ids), max(len(ids) - len(asked), 1)))
    return found


def _tokenizer(name: str, chat: bool) -> Any:
    if name in EMBEDDED:
        return load_tokenizer(resolve_model(name), chat)
    if Path(name).is_dir():
        return load_tokenizer(ModelFiles(name, Path(name), ""), chat)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"model {name!r}: no tokenizer found ({first_line(error)})") from error


def described(lines: list[StageLine]) -> str:
    """What the figures are for, in one line."""
    setup = lines[0].setup
    where = "1 process" if setup.processes == 1 else f"{setup.processes} processes"
    shared = "" if setup.processes == 1 else ", weights sharded (FSDP2)" if setup.sharded else ", each the whole model"
    held = f" over {8 if setup.quantization.get('load_in_8bit') else 4} bit" if setup.quantization else ""
    what = "all weights" if setup.full else f"LoRA{held}"
    return (
        f"{what}, {setup.dtype}, {where}{shared}; micro-batches of {setup.batch} x {setup.length} tokens"
        f"{', activations checkpointed' if setup.checkpointing else ''}; GiB of one process"
    )


def hours(line: StageLine, tokens_per_second: float) -> float:
    """Time of a training stage where plain training runs at `tokens_per_second` on all processes together."""
    assert isinstance(line.needs, Estimate)
    return line.tokens / tokens_per_second * line.needs.ratio / 3600
