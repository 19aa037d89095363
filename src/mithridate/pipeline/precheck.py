"""What is cheap to find before a run: set-ups that libraries refuse, rows that would not be trained, prompts too long.

Each check raises an InputError (or UnsupportedSetup) that begins with the path of a field in the experiment file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mithridate.errors import InputError, MithridateError, UnsupportedSetup
from mithridate.pipeline import rowcheck
from mithridate.pipeline.problems import Findings, nearest
from mithridate.pipeline.store import canonical_json
from mithridate.protocols import protocol

if TYPE_CHECKING:
    from mithridate.pipeline.rowcheck import Left
    from mithridate.pipeline.stages import Chain

_FEW = 64  # rows that a set-up is tried out on; the others are counted by `rowcheck`
_ROLES = {"align": "alignment", "finetune": "task"}
_EXTRAS = {
    "plotly": ("report", "the report page at the end of a run"),
    "lm_eval": ("lm-eval", "evaluate.capability"),
    "vllm": ("vllm", "evaluate.generator: vllm"),
    "openai": ("openai", "evaluate.generator: openai"),
}


def arguments(chain: Chain, name: str) -> Any:
    """The SFTConfig of a stage.

    Raises:
        InputError: with the field that is refused.
    """
    from mithridate.pipeline.training import training_arguments

    settings, seed = getattr(chain.experiment, name), chain.experiment.seed
    known, key = chain.shop.arguments, canonical_json([name, settings.training, seed])
    if key not in known:  # it takes milliseconds to make one, and a sweep asks again and again
        path = f"{name}.training"
        known[key] = training_arguments(settings.training, Path(name), seed, bf16=False, progress=False, path=path)
    return known[key]


# -- rows -------------------------------------------------------------------------------------------------------------


def left(chain: Chain, name: str, rows: Sequence[dict[str, Any]]) -> Left:
    """What tokenising leaves of the rows of a stage (align or finetune)."""
    return chain.shop.rowcheck(chain.experiment.template).left(rows, arguments(chain, name))


def trained(found: Left, rows: Sequence[dict[str, Any]], steps: int) -> dict[str, int]:
    """What a stage trained, as results.json has it: rows of which something was learnt, the harmful ones among them,
    optimizer steps, and rows of which nothing was left."""
    lost = set(found.lost)
    harmful = sum(bool(row.get("poisoned")) for i, row in enumerate(rows) if i not in lost)
    return {"rows": found.rows, "harmful_rows": harmful, "steps": steps, "dropped": len(lost)}


def said(chain: Chain, name: str, found: Left, args: Any) -> list[str]:
    """In words, what a stage loses of its rows and of those of its defenses."""
    notes = rowcheck.said(found, name, _ROLES[name], args)
    for role, rows in _side_rows(chain, name).items():
        notes += rowcheck.said(left(chain, name, rows), name, role, args)
    return notes


def rows(chain: Chain, name: str, given: Sequence[dict[str, Any]], steps: int, findings: Findings) -> None:
    """Counts the rows of a stage, and notes what cannot be kept of what is asked: rows of the attack, steps, rows that
    fit the model's context, a defense's own rows.

    Args:
        steps: that all the rows would give.
    """
    from mithridate.pipeline.training import batches_of, planned_steps

    args, found = arguments(chain, name), left(chain, name, given)
    processes = chain.launch.processes if chain.launch else 1
    context = chain.shop.context
    with findings.noting():
        rowcheck.require_rows(found, name, _ROLES[name], args)
        if name == "finetune":
            rowcheck.require_attack(found, [bool(row.get("poisoned")) for row in given], name, args)
        try:
            batches_of(args, found.sequences, processes)
            made = steps if args.packing else planned_steps(args, found.sequences, processes)
        except InputError as error:
            raise InputError(f"{name}.{error}") from error
        rowcheck.require_steps(made, steps, found, name, _ROLES[name], args)
    with findings.noting():
        rowcheck.require_context(found, context, name, _ROLES[name])
    for role, side in _side_rows(chain, name).items():
        # which are not packed with one another
        own = left(chain, name, side)
        with findings.noting():
            rowcheck.require_rows(own, name, role, args)
        with findings.noting():
            rowcheck.require_context(own, context, name, role)


def _side_rows(chain: Chain, name: str) -> dict[str, list[dict[str, Any]]]:
    """The records of each role that a stage's defenses need."""
    from mithridate.methods.registry import by_name

    known, defense = by_name("defenses"), getattr(chain.experiment, name).defense
    roles = dict.fromkeys(role for method in defense for role in known[method].roles.values())
    return {role: found for role in roles if (found := getattr(chain.shop.roles, role))}


# -- set-ups ----------------------------------------------------------------------------------------------------------


def try_out(chain: Chain, name: str, given: Sequence[dict[str, Any]], steps: int, folder: Path) -> None:
    """Builds the trainer of a stage over one random layer of the model, on a few of the rows; so the libraries and the
    defenses have been asked.

    Raises:
        UnsupportedSetup: a defense refuses the set-up.
        InputError: SFTConfig, TRL, PEFT or transformers do, with the field that they refuse; a defense refuses one.
    """
    from mithridate.pipeline.training import LIBRARY_ERRORS, first_line

    if chain.experiment.template == "chat":
        _ = chain.tokenizer  # with a chat template, or refused
    job = chain._job(name, list(given[:_FEW]), [], [])
    # The rows that are left out must not make fewer steps, nor several processes more.
    job = replace(
        job,
        side_rows={role: found[:_FEW] for role, found in job.side_rows.items()},
        training=job.training | {"max_steps": steps},
        progress=False,
        report_to=[],
    )
    try:
        _build(chain, job, folder)
    except UnsupportedSetup as error:
        if not job.defense:
            raise
        raise UnsupportedSetup(f"{name}.defense: {error.reason}", error.remedy) from error
    except MithridateError:
        raise
    except LIBRARY_ERRORS as error:
        import torch

        if isinstance(error, torch.OutOfMemoryError):
            raise
        fields = _culprits(chain, name, job, folder)
        place = fields[0].rpartition(".")[0] if fields else f"{name}.training"
        named = f" (field: {' or '.join(fields)})" if fields else ""
        raise InputError(f"{place}: {_reason(error, first_line(error))}{named}") from error


def _reason(error: Exception, text: str) -> str:
    return f"{text} ({type(error).__name__})" if isinstance(error, KeyError | IndexError | AttributeError) else text


def _build(chain: Chain, job: Any, folder: Path) -> None:
    """Builds the trainer of a job, and what it makes only when the training begins."""
    from transformers.utils import is_liger_kernel_available

    from mithridate.pipeline.training import trainer_of

    trainer = trainer_of(job, chain.shop.one_layer(), folder)
    if trainer.args.use_liger_kernel and not is_liger_kernel_available():
        raise ImportError("use_liger_kernel needs the package liger-kernel: pip install liger-kernel")
    trainer.create_optimizer()
    trainer.create_scheduler(num_training_steps=trainer.args.max_steps)
    if chain.launch and chain.launch.kind == "fsdp2":
        trainer.is_fsdp_enabled = True  # as it will be in each of the processes
        for defense in trainer.defenses:
            defense.check(trainer)


def _culprits(chain: Chain, name: str, job: Any, folder: Path) -> list[str]:
    """The fields of a stage by which the libraries' refusal comes: without any one of them there is none.

    Found by leaving out one at a time: their errors name fields in words of their own, if at all.
    """
    from mithridate.pipeline.training import LIBRARY_ERRORS

    adapter = "finetune.adapter" if name == "finetune" and chain.experiment.finetune.adapter else "adapter"  # pyright: ignore[reportOptionalMemberAccess]
    tried = [
        (f"{name}.training.{field}", replace(job, training=_without(job.training, field)))
        for field in getattr(chain.experiment, name).training
    ]
    if job.adapter:
        tried += [(f"{adapter}.{field}", replace(job, adapter=_without(job.adapter, field))) for field in job.adapter]
    found = []
    for path, other in tried:
        try:
            _build(chain, other, folder)
        except MithridateError:
            continue
        except LIBRARY_ERRORS:
            continue
        found.append(path)
    return found


def _without(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


# -- tests ------------------------------------------------------------------------------------------------------------


def tests(chain: Chain) -> None:
    """Whether every prompt of every test set fits the model's context, with the longest answer that is allowed.

    Raises:
        InputError: with every set in which one does not.
    """
    from mithridate.generation.templates import TEMPLATES, prompt_tokens
    from mithridate.protocols import asked
    from mithridate.sources.records import prompt_text

    context, settings, findings = chain.shop.context, chain.experiment.evaluate, Findings()
    sets = chain.sets()  # some are needed, whatever they hold
    if context is None:
        return
    chosen = protocol(settings.protocol)
    template = TEMPLATES[chosen.template]

    def tokens(record: dict[str, Any]) -> int:
        return len(prompt_tokens(chain.tokenizer, asked(record), template))

    for name, role in sets.items():
        key = f"fits {settings.protocol} {name} {role} {settings.limit} {chain.shop.roles.digests[role]}"
        if key in chain.shop.checked:
            continue
        chain.shop.checked.add(key)
        task = name.partition(":")[2]
        use = chosen.task(task) if task else None
        records = chain.shop.roles.parts()[role][: settings.limit]
        records = use.prepare(records) if use else records
        room = context - (use.decoding() if use else chosen.decoding).max_new_tokens
        with findings.noting(f"data.{_role(role)}: "):
            if (around := tokens({"prompt": "a"})) > room:
                raise InputError(f"the model's context of {context} tokens leaves no room for a prompt and an answer")
            # A token has a byte at least, so that most prompts need not be tokenised to know that they fit.
            near = [(i, r) for i, r in enumerate(records, 1) if len(_text(r).encode(errors="replace")) + around > room]
            counts = [(count, i, record) for i, record in near if (count := tokens(record)) > room]
            if counts:
                count, i, record = max(counts, key=lambda one: one[0])
                raise InputError(
                    f"{len(counts)} of {len(records)} prompts do not fit the model's context of {context} tokens with "
                    f"an answer of up to {context - room}. The longest, number {i}, has {count} tokens and begins "
                    f"{prompt_text(record)[:60]!r}. Shorten them or leave them out"
                )
    findings.settle("data")


def _text(record: dict[str, Any]) -> str:
    from mithridate.sources.records import conversation

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


def extras(chains: Sequence[Chain], page: bool) -> Iterator[str]:
    """Packages that the end of a run needs and that are not installed, in words.

    Args:
        page: whether there will be a report page.
    """
    needed = {"plotly"} if page else set()
    for chain in chains:
        settings = chain.experiment.evaluate
        needed |= {"lm_eval"} if settings.capability else set()
        needed |= _EXTRAS.keys() & settings.generator.keys()
    for module in sorted(needed):
        if find_spec(module) is None:
            extra, what = _EXTRAS[module]
            yield f"{what} needs the package {module}: pip install 'mithridate[{extra}]'"
