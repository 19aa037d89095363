"""What is cheap to find before a run: set-ups that libraries refuse, rows that would not be trained, prompts too long.

Each check raises an InputError (or UnsupportedSetup) that begins with the path of a field in the experiment file.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from mithridate.data.records import conversation, prompt_key
from mithridate.errors import InputError, MithridateError, UnsupportedSetup, first_line
from mithridate.experiment.methods import around_prompts, defenses_of, plain_by, repair_of
from mithridate.files import canonical_json
from mithridate.generation.templates import CHAT, TEMPLATES, prompt_tokens
from mithridate.methods.defense import arguments_of
from mithridate.models import held_quantisation
from mithridate.pipeline import rowcheck
from mithridate.pipeline.jobs import job_of, repair_rows
from mithridate.pipeline.stages import ExperimentStages
from mithridate.problems import Findings, nearest
from mithridate.protocols import protocol

if TYPE_CHECKING:
    from mithridate.methods.base import TestTime
    from mithridate.pipeline.rowcheck import Left
    from mithridate.pipeline.training import Job
    from mithridate.training.trainer import DefenseTrainer

_FEW = 64  # rows that a set-up is tried out on; the others are counted by `rowcheck`
_EXTRAS = {
    "altair": ("report", "the report page at the end of a run"),
    "vl_convert": ("report", "the report page at the end of a run"),
    "lm_eval": ("lm-eval", "evaluate.capability"),
    "vllm": ("vllm", "evaluate.generator: vllm"),
    "openai": ("openai", "evaluate.generator: openai"),
}


@dataclass(frozen=True)
class Part:
    """One of the trainings of a stage: the only one, but where an attack has several phases.

    Attributes:
        job: as it is trained, its rows among it.
        args: its SFTConfig.
        places: of its rows, among those of the stage.
        stage: the path of its training in the experiment file, align or finetune.
        phase: its number among the attack's phases, from 1; None where it has none.
    """

    job: Job
    args: Any
    places: list[int]
    stage: str
    phase: int | None

    @property
    def before(self) -> str:
        """What stands before the path of a field in an error."""
        return f"finetune.attack: phase {self.phase}: " if self.phase else ""

    @property
    def path(self) -> str:
        return f"{self.before}{self.stage}"


def parts(chain: ExperimentStages, name: str, rows: Sequence[dict[str, Any]]) -> list[Part]:
    """The trainings of stage `name` over these rows.

    Raises:
        InputError: SFTConfig refuses the arguments, with the field; a phase has no rows, or asks for what excludes
            each other.
    """
    from mithridate.pipeline.training import training_arguments

    stage = name if name != "unaligned" else "finetune" if chain.experiment.finetune else "align"
    whole, found = job_of(chain, name, list(rows), [], []), []
    for number, (job, places) in enumerate(zip(whole.parts(), whole.places(), strict=True), 1):
        part = Part(job, None, places, stage, number if whole.phases else None)
        path, known = f"{part.path}.training", chain.context.arguments
        key = canonical_json([path, job.training, job.seed])
        if key not in known:  # it takes milliseconds to make one, and a sweep asks again and again
            made = training_arguments(job.training, Path(name), job.seed, bf16=False, progress=False, path=path)
            known[key] = made
        found.append(replace(part, args=known[key]))
    return found


def steps(chain: ExperimentStages, name: str, parts: Sequence[Part]) -> list[int]:
    """The optimizer steps of each training of a stage, with all of its rows.

    Raises:
        InputError: there would be none; or models are to be scored at steps that the attack does not reach.
    """
    planned = [_planned(chain, part, len(part.job.rows)) for part in parts]
    asked = chain.experiment.evaluate.resistance
    if name == "finetune" and asked and asked[-1] >= sum(planned):
        raise InputError(
            f"evaluate.resistance: expected steps below {sum(planned)}, the attack's last, got {asked[-1]}"
        )
    return planned


def _planned(chain: ExperimentStages, part: Part, sequences: int, *, defended: bool = True) -> int:
    from mithridate.pipeline.training import planned_steps

    defenses = defenses_of(part.job.defense) if defended else []  # which may make the run a shorter one
    try:
        return planned_steps(arguments_of(defenses, part.args, sequences), sequences, _processes(chain))
    except InputError as error:
        raise InputError(f"{part.path}.{error}") from error


def _processes(chain: ExperimentStages) -> int:
    return chain.launch.processes if chain.launch else 1


# -- rows -------------------------------------------------------------------------------------------------------------


def counted(chain: ExperimentStages, name: str, rows: Sequence[dict[str, Any]]) -> list[tuple[Part, Left]]:
    """The trainings of a stage, and what tokenising leaves of the rows of each."""
    return [(part, _left(chain, part, part.job.rows)) for part in parts(chain, name, rows)]


def _left(chain: ExperimentStages, part: Part, rows: Sequence[dict[str, Any]]) -> Left:
    return chain.context.rowcheck(chain.experiment.template).left(rows, part.args)


def trained(
    counted: Sequence[tuple[Part, Left]],
    rows: Sequence[dict[str, Any]],
    steps: int,
    dropped: Sequence[Sequence[int] | None],
) -> dict[str, Any]:
    """What a stage trained, as results.json has it: rows of which something was learnt, the harmful ones among them,
    optimizer steps, and rows of which nothing was left after tokenising (`dropped`). Where a defense chooses among
    the rows, `filtered` counts those that it left out, of the harmful and of the benign ones. A row that several
    phases train on counts once, and as left out only where all of them do without it.

    Args:
        dropped: by training, the places among its rows of those that a defense left out (`training.dropped_places`).
    """
    kept, out, given = set(), set(), set()
    for (part, left), places in zip(counted, dropped, strict=True):
        given |= set(part.places)
        out |= {part.places[i] for i in places or ()}
        kept |= {place for i, place in enumerate(part.places) if i not in {*left.lost, *(places or ())}}
    out -= kept

    def harmful(places: set[int]) -> int:
        return sum(bool(rows[place].get("poisoned")) for place in places)

    found = {"rows": len(kept), "harmful_rows": harmful(kept), "steps": steps, "dropped": len(given - kept - out)}
    if all(places is None for places in dropped):
        return found
    hit, there = harmful(out), harmful(given)
    benign = {"benign": len(out) - hit, "of_benign": len(given) - there}
    return found | {"filtered": {"harmful": hit, "of_harmful": there, **benign}}


def said(chain: ExperimentStages, name: str, counted: Sequence[tuple[Part, Left]]) -> list[str]:
    """In words, what a stage loses of its rows and of those of its defenses."""
    notes = []
    for part, left in counted:
        stage = f"{name}, phase {part.phase}" if part.phase else name
        notes += rowcheck.said(left, stage, _own_role(chain, name, part), part.args)
        for role, rows in part.job.side_rows.items():
            notes += rowcheck.said(_left(chain, part, rows), stage, role, part.args)
    return notes


def require_kept(chain: ExperimentStages, name: str, given: Sequence[dict[str, Any]]) -> None:
    """Checks the rows of a stage that were not there before the run.

    Raises:
        InputError: with all that `rows` and `steps` find.
    """
    findings, found = Findings(), parts(chain, name, given)
    rows(chain, name, found, steps(chain, name, found), findings)
    findings.settle()


def rows(chain: ExperimentStages, name: str, parts: Sequence[Part], steps: Sequence[int], findings: Findings) -> None:
    """Counts the rows of a stage's trainings, and notes what cannot be kept of what is asked: rows of the attack,
    steps, rows that fit the model's context, a defense's own rows.

    Args:
        steps: that all the rows would give, of each training.
    """
    for part, asked in zip(parts, steps, strict=True):
        with findings.noting():
            _rows(chain, name, part, asked, findings)


def _rows(chain: ExperimentStages, name: str, part: Part, steps: int, findings: Findings) -> None:
    from mithridate.pipeline.training import batches_of

    left, args, path = _left(chain, part, part.job.rows), part.args, part.path
    role, context = _own_role(chain, name, part), chain.context.longest
    with findings.noting():
        rowcheck.require_rows(left, path, role, args)
        if name == "finetune":
            rowcheck.require_attack(left, [bool(row.get("poisoned")) for row in part.job.rows], path, role, args)
        try:
            batches_of(args, left.sequences, _processes(chain))
        except InputError as error:
            raise InputError(f"{path}.{error}") from error
        made = steps if args.packing else _planned(chain, part, left.sequences)
        rowcheck.require_steps(made, steps, left, path, role, args)
    with findings.noting():
        rowcheck.require_context(left, context, path, role)
    for role, side in part.job.side_rows.items():
        # which are not packed with one another
        own = _left(chain, part, side)
        with findings.noting():
            rowcheck.require_rows(own, path, role, args)
        with findings.noting():
            rowcheck.require_context(own, context, path, role)


def _own_role(chain: ExperimentStages, name: str, part: Part) -> str:
    """The role that a training's rows are said to be of: the attacker's where all of them are harmful."""
    if name != "finetune":
        return {"align": "alignment", "unaligned": "defender_harmful"}[name]
    others = [role for role in chain.attack.data_roles().values() if role != rowcheck.ATTACKER]
    return rowcheck.ATTACKER if not others or all(row.get("poisoned") for row in part.job.rows) else others[0]


# -- set-ups ----------------------------------------------------------------------------------------------------------


def try_out(chain: ExperimentStages, name: str, parts: Sequence[Part], folder: Path) -> None:
    """Builds the trainers of a stage over one random layer of the model, on a few of the rows; so the libraries and
    the defenses have been asked.

    Raises:
        UnsupportedSetup: a defense refuses the set-up.
        InputError: SFTConfig, TRL, PEFT or transformers do, with the field that they refuse; a defense refuses one.
    """
    if chain.experiment.template == "chat":
        _ = chain.tokenizer  # with a chat template, or refused
    before = chain.free_adapter(name, "start")
    if before is not None and parts and parts[0].job.adapter != before:
        _require_merging(_one_layer(chain, before), "adapter", before)
    for part in parts:
        trainer = _try_part(chain, name, part, folder, fresh=part.job.adapter != before)
        before = part.job.adapter
        if before is not None and _merged_later(chain, name, part, parts):
            _require_merging(trainer.model, f"{part.before}adapter", before)


def _merged_later(chain: ExperimentStages, name: str, part: Part, parts: Sequence[Part]) -> bool:
    """Whether the adapter of a training is merged before the next one, which trains another."""
    if name == "align" and chain.experiment.topology == "double":
        return True
    after = parts[parts.index(part) + 1 :]
    return bool(after) and after[0].job.adapter != part.job.adapter


def _require_merging(model: Any, path: str, adapter: Mapping[str, Any]) -> None:
    """Raises InputError, naming the field, for an adapter whose change cannot be put into the weights beneath."""
    from mithridate.repairs.linears import check_adapters

    try:
        check_adapters(model)
    except UnsupportedSetup as error:
        field = "target_parameters" if adapter.get("target_parameters") else "target_modules"
        raise InputError(
            f"{path}.{field}: {error.reason} The training after it has another adapter, under which "
            "this one is merged, and it cannot be. Name nn.Linear layers alone, or go on training the same adapter "
            "(topology: single)"
        ) from error


def _try_part(chain: ExperimentStages, name: str, part: Part, folder: Path, fresh: bool) -> DefenseTrainer:
    from mithridate.pipeline.training import LIBRARY_ERRORS

    if part.job.adapter is None and _over_quantised(chain, name, part.job):
        raise InputError(
            f"{part.path}: trains all weights (adapter: full), and the base's are quantised, which hold no steps. "
            "Train an adapter, or take out quantization"
        )
    _require_layers(chain, part)
    sides = {role: _some(found, _left(chain, part, found)) for role, found in part.job.side_rows.items()}
    rows = part.job.rows[:_FEW]
    if chain.experiment.paired:  # with their pairs, wherever these stand
        known = {prompt_key(row) for side in sides.values() for row in side}
        rows += [row for row in part.job.rows[_FEW:] if prompt_key(row) in known]
    # The rows that are left out must not make fewer steps, nor several processes more.
    job = replace(
        part.job,
        rows=rows,
        side_rows=sides,
        # of which the defenses, which are asked too, may make fewer
        training=part.job.training | {"max_steps": _planned(chain, part, len(part.job.rows), defended=False)},
        progress=False,
        report_to=[],
        # The judges are asked in the run itself.
        verdicts={path: ["safe"] * len(rows) for path in chain.guards(name)},
    )
    try:
        trainer = _build(chain, name, job, folder)
        if _still(trainer) and fresh:
            raise InputError(
                f"{part.path}.frozen: of a new adapter the factors B, which are 0, are frozen, so that A has no "
                "gradient and nothing can move. Let B be trained, or train on the alignment's adapter (topology: "
                "single)"
            )
    except UnsupportedSetup as error:
        if not job.defense:
            raise
        raise UnsupportedSetup(f"{part.path}.defense: {error.reason}", error.remedy) from error
    except MithridateError:
        for role, side in part.job.side_rows.items():  # of which a defense may say less than is known here
            rowcheck.require_rows(_left(chain, part, side), part.path, role, part.args)
        raise
    except LIBRARY_ERRORS as error:
        import torch

        if isinstance(error, torch.OutOfMemoryError):
            raise
        fields = _culprits(chain, name, part, job, folder)
        place = fields[0].rpartition(".")[0] if fields else f"{part.path}.training"
        named = f" (field: {' or '.join(fields)})" if fields else ""
        raise InputError(f"{place}: {_reason(error, first_line(error))}{named}") from error
    return trainer


def _some(rows: list[dict[str, Any]], left: Left) -> list[dict[str, Any]]:
    """A few rows to try a set-up on, of those of which something is left where there are any."""
    lost = set(left.lost)
    return [row for place, row in enumerate(rows) if place not in lost][:_FEW] or rows[:_FEW]


def _reason(error: Exception, text: str) -> str:
    return f"{text} ({type(error).__name__})" if isinstance(error, KeyError | IndexError | AttributeError) else text


def _still(trainer: DefenseTrainer) -> bool:
    """Whether only factors A of adapters are trained, whose factors B are 0."""
    weights = dict(trainer.model.named_parameters())
    trained = trainer.param_names
    if not all("lora_A." in name for name in trained):
        return False
    return not any(bool(weights[name.replace("lora_A.", "lora_B.")].any()) for name in trained)


def _build(chain: ExperimentStages, name: str, job: Job, folder: Path) -> DefenseTrainer:
    """Builds the trainer of a job, and what it makes only when the training begins."""
    from transformers.utils import is_liger_kernel_available

    from mithridate.pipeline.training import trainer_of
    from mithridate.training.frozen import FROZEN

    models = dict.fromkeys(chain.model_kinds(name), lambda: chain.context.one_layer().state_dict())
    job = replace(job, adapter=_on_one_layer(job.adapter))
    try:
        trainer = trainer_of(job, chain.context.one_layer(), folder, models, copy.deepcopy(chain.tokenizer))
    except InputError as error:
        if not (job.frozen and str(error).startswith(FROZEN)):
            raise
        # of other layers than the one here; of all of them it was asked before
        job = replace(job, frozen=[])
        trainer = trainer_of(job, chain.context.one_layer(), folder, models, copy.deepcopy(chain.tokenizer))
    if trainer.args.use_liger_kernel and not is_liger_kernel_available():
        raise ImportError("use_liger_kernel needs the package liger-kernel: pip install liger-kernel")
    if _over_quantised(chain, name, job):  # which the one layer of random weights is not
        held: Any = trainer.model.get_base_model()
        held.hf_quantizer = SimpleNamespace(quantization_config=SimpleNamespace(quant_method="bitsandbytes"))
        trainer.check_setup()
    trainer.create_optimizer()
    trainer.create_scheduler(num_training_steps=trainer.args.max_steps)
    if chain.launch and chain.launch.kind == "fsdp2":
        trainer.sharded_by_plugin = True  # as it will be in each of the processes
        trainer.check_setup()
    return trainer


def _culprits(chain: ExperimentStages, name: str, part: Part, job: Job, folder: Path) -> list[str]:
    """The fields of a training by which the libraries' refusal comes: without any one of them there is none.

    Found by leaving out one at a time: their errors name fields in words of their own, if at all.

    Args:
        job: that of `part`, as it is tried out.
    """
    from mithridate.pipeline.training import LIBRARY_ERRORS

    finetune = chain.experiment.finetune
    own = part.stage == "finetune" and finetune is not None and finetune.adapter is not None
    adapter = f"{part.before}{'finetune.adapter' if own else 'adapter'}"
    tried = [
        (f"{part.path}.training.{field}", replace(job, training=_without(job.training, field)))
        for field in part.job.training
    ]
    if job.adapter:
        tried += [(f"{adapter}.{field}", replace(job, adapter=_without(job.adapter, field))) for field in job.adapter]
    found = []
    for path, other in tried:
        try:
            _build(chain, name, other, folder)
        except MithridateError:
            continue
        except LIBRARY_ERRORS:
            continue
        found.append(path)
    return found


def _on_one_layer(adapter: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """LoraConfig's fields for a model that has one layer, where they name others by number."""
    if adapter is None:
        return None
    made = {name: value for name, value in adapter.items() if name not in ("layers_to_transform", "layers_pattern")}
    targets = made.get("target_modules")
    if isinstance(targets, list):
        made["target_modules"] = list(dict.fromkeys(re.sub(r"(?<![^.])\d+(?=\.)", "0", name) for name in targets))
    elif isinstance(targets, str) and "[" not in targets:  # a regular expression
        made["target_modules"] = re.sub(r"(?<!\\)\d+", r"\\d+", targets)
    return made


def _require_layers(chain: ExperimentStages, part: Part) -> None:
    """Raises InputError for an adapter or frozen tensors that the whole model has no place for: by its names, without
    its weights."""
    from mithridate.estimate.trace import Setup, whole

    adapter, frozen = part.job.adapter, tuple(part.job.frozen)
    if chain.context.base.remote_code or not (frozen or (adapter and adapter != _on_one_layer(adapter))):
        return
    setup = Setup(full=adapter is None, adapter=adapter or chain.experiment.adapter, frozen=frozen, dtype="float32")
    try:
        whole(chain.context.config, setup)
    except InputError as error:
        raise InputError(f"{part.before}{error}") from error


def _over_quantised(chain: ExperimentStages, name: str, job: Job) -> bool:
    return bool(held_quantisation(job.base)) and not plain_by(chain.experiment, name)


def _without(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


def try_repair(chain: ExperimentStages, name: str) -> None:
    """Asks the repair of stage `name` (harden or repair) on one random layer, with the adapters of the models that it
    will get.

    Raises:
        UnsupportedSetup: it refuses them.
        InputError: PEFT refuses an adapter.
    """
    chosen = repair_of(chain.experiment, post_alignment=name == "harden")
    if chosen is None or not chain.context.here:
        return
    _, repair = chosen
    # Each an object of its own, as they will be.
    models = {
        field: _one_layer(chain, chain.free_adapter(name, kind)) for field, kind in repair.model_inputs().items()
    }
    model = _one_layer(chain, chain.free_adapter(name, "repaired"))
    repair.check(model, **repair_rows(chain, repair), **models, tokenizer=chain.tokenizer)


def _one_layer(chain: ExperimentStages, adapter: dict[str, Any] | None) -> Any:
    from peft import get_peft_model

    from mithridate.pipeline.training import lora

    model = chain.context.one_layer()
    if adapter is None:
        return model
    try:
        return get_peft_model(model, lora(_on_one_layer(adapter) or {}))
    except ValueError as error:
        raise InputError(f"adapter: {error}") from error


# -- tests ------------------------------------------------------------------------------------------------------------


def system_turn(chain: ExperimentStages) -> None:
    """Whether a system turn reaches the model, where the experiment sets one.

    Raises:
        InputError: the model's chat template refuses system turns, or leaves them out.
    """
    system = chain.experiment.system
    if system is None or not chain.context.here:
        return
    said = system.strip() or "You are brief."  # an empty turn shows nothing of itself
    turns = [{"role": "system", "content": said}, {"role": "user", "content": "How are you?"}]
    try:
        read = chain.tokenizer.decode(prompt_tokens(chain.tokenizer, turns, CHAT))
    except InputError as error:
        raise InputError(f"system: {error}") from error
    if said not in read:
        raise InputError("system: the model's chat template leaves system turns out. Leave out `system`")


def around_tests(chain: ExperimentStages) -> None:
    """Whether what stands around prompts at the test reaches the model.

    Raises:
        InputError: the model's chat template leaves it out.
    """
    template = TEMPLATES[protocol(chain.experiment.evaluate.protocol).template]
    for each in (one for upto in chain.positions() for one in around_prompts(chain.experiment, upto)):
        if not chain.context.here:
            return
        ids = prompt_tokens(chain.tokenizer, each.around([{"role": "user", "content": "How are you?"}]), template)
        read = chain.tokenizer.decode(ids)
        for part in (each.system or "", each.prefix, each.trigger):
            if part.strip() not in read:
                raise InputError(
                    f"the model's chat template leaves out what a method puts around prompts at the test "
                    f"({part.strip()[:60]!r}), so that the test would say nothing of it"
                )


def tests(chain: ExperimentStages) -> None:
    """Whether the answers to every test set can be scored, and every prompt fits the model's context, with what stands
    around it and the longest answer that is allowed.

    Raises:
        InputError: with every set of which one cannot, or does not.
    """
    from mithridate.data.records import asked, prompt_text
    from mithridate.evaluation import require_scored, surrounded

    context, settings, findings = chain.context.longest, chain.experiment.evaluate, Findings()
    sets = chain.sets()  # some are needed, whatever they hold
    chosen = protocol(settings.protocol)
    for name, role in sets.items():
        key = f"scored {settings.protocol} {name} {settings.limit} {chain.context.roles.digests[role]}"
        if key not in chain.context.checked:
            chain.context.checked.add(key)
            with findings.noting(f"data.{_role(role)}: "):
                require_scored(name, chain.context.roles.parts()[role][: settings.limit], chosen)
    if context is None:
        findings.settle("data")
        return
    template = TEMPLATES[chosen.template]

    def tokens(record: dict[str, Any], around: Sequence[TestTime]) -> int:
        return len(prompt_tokens(chain.tokenizer, surrounded(asked(record), around), template))

    tested = [around_prompts(chain.experiment, upto) for upto in chain.positions()]
    around = max(tested, key=lambda one: tokens({"prompt": "a"}, one))
    least = tokens({"prompt": "a"}, around)
    for name, role in sets.items():
        key = f"fits {settings.protocol} {name} {role} {settings.limit} {around} {chain.context.roles.digests[role]}"
        if key in chain.context.checked:
            continue
        chain.context.checked.add(key)
        task = name.partition(":")[2]
        use = chosen.task(task) if task else None
        records = chain.context.roles.parts()[role][: settings.limit]
        records = use.prepare(records) if use else records
        room = context - (use.decoding() if use else chosen.decoding).max_new_tokens
        with findings.noting(f"data.{_role(role)}: "):
            if least > room:
                raise InputError(f"the model's context of {context} tokens leaves no room for a prompt and an answer")
            # A token has a byte at least, so that most prompts need not be tokenised to know that they fit.
            near = [(i, r) for i, r in enumerate(records, 1) if len(_text(r).encode(errors="replace")) + least > room]
            counts = [(count, i, record) for i, record in near if (count := tokens(record, around)) > room]
            if counts:
                count, i, record = max(counts, key=lambda one: one[0])
                raise InputError(
                    f"{len(counts)} of {len(records)} prompts do not fit the model's context of {context} tokens with "
                    f"an answer of up to {context - room}. The longest, number {i}, has {count} tokens and begins "
                    f"{prompt_text(record)[:60]!r}. Shorten them or leave them out"
                )
    findings.settle("data")


def _text(record: dict[str, Any]) -> str:
    return "".join(f"{turn['content']}{' ' * 16}" for turn in conversation(record))


def _role(part: str) -> str:
    """The path in `data` of a part of the roles."""
    if part.startswith("extra:"):
        return part
    return "task.test" if part.startswith("task_") else part.removesuffix("_validation")


def services(names: Sequence[str]) -> None:
    """Whether trainings can be reported to these services (`run --report-to`).

    Raises:
        InputError: transformers knows none of that name, or its package is not installed.
    """
    from transformers.integrations import integration_utils

    for name in names:
        known = integration_utils.INTEGRATION_TO_CALLBACK
        if name not in known:
            raise InputError(f"--report-to {name}: no such service{nearest(name, known)}")
        if name not in integration_utils.get_available_reporting_integrations():
            raise InputError(f"--report-to {name}: the package of this service is not installed")


def extras(chains: Sequence[ExperimentStages], page: bool) -> Iterator[str]:
    """Packages that the end of a run needs and that are not installed, in words.

    Args:
        page: whether there will be a report page.
    """
    needed = {"altair", "vl_convert"} if page else set()
    for chain in chains:
        settings = chain.experiment.evaluate
        needed |= {"lm_eval"} if settings.capability else set()
        needed |= _EXTRAS.keys() & settings.generator.keys()
    for module in sorted(needed):
        if find_spec(module) is None:
            extra, what = _EXTRAS[module]
            yield f"{what} needs the package {module}: pip install 'mithridate[{extra}]'"
