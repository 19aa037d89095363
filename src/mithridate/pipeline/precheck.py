"""What is cheap to find before a run: rows that would not be trained, prompts too long, packages that are not there.
Its set-ups are tried by `setupcheck`.

Each check raises an InputError that begins with the path of a field in the experiment file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mithridate.data.records import conversation
from mithridate.errors import InputError
from mithridate.experiment.methods import around_prompts, defenses_of, repaired_in, trained_adapter
from mithridate.files import canonical_json
from mithridate.generation.templates import CHAT, TEMPLATES, prompt_tokens
from mithridate.methods.defense import acts, arguments_of
from mithridate.pipeline import rowcheck
from mithridate.pipeline.jobs import job_of
from mithridate.pipeline.stages import ExperimentStages
from mithridate.problems import Findings, nearest
from mithridate.protocols import protocol
from mithridate.training.steps import in_given_order

if TYPE_CHECKING:
    from mithridate.methods.base import TestTime
    from mithridate.pipeline.rowcheck import Left
    from mithridate.pipeline.training import Job

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
    from mithridate.pipeline.arguments import training_arguments

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
        InputError: there would be none; or models are to be scored at steps that the attack does not reach, or of
            which it is not known whether it does.
    """
    found = [planned(chain, part, len(part.job.rows)) for part in parts]
    asked = chain.experiment.evaluate.resistance
    if name == "finetune" and asked:
        for part in parts:
            _require_known_steps(part)
    if name == "finetune" and asked and asked[-1] >= sum(found):
        raise InputError(f"evaluate.resistance: expected steps below {sum(found)}, the attack's last, got {asked[-1]}")
    return found


def _require_known_steps(part: Part) -> None:
    """Raises InputError where a training is as long as the rows that its defenses make of those that were given."""
    defenses = defenses_of(part.job.defense)
    changing = [type(one).__name__ for one in defenses if acts(one, "rows")]
    if changing and in_given_order(part.args) and arguments_of(defenses, part.args, len(part.job.rows)).max_steps <= 0:
        raise InputError(
            f"evaluate.resistance: {part.before}one pass over the rows in their given order is as long as "
            f"{' and '.join(changing)} makes them, which is known only in the run. Leave `resistance` out"
        )


def planned(chain: ExperimentStages, part: Part, sequences: int, *, defended: bool = True) -> int:
    """The optimizer steps of a training with so many sequences."""
    from mithridate.pipeline.arguments import planned_steps

    defenses = defenses_of(part.job.defense) if defended else []  # which may make the run a shorter one
    try:
        return planned_steps(arguments_of(defenses, part.args, sequences), sequences, _processes(chain))
    except InputError as error:
        raise InputError(f"{part.path}.{error}") from error


def between(chain: ExperimentStages) -> None:
    """Whether a fine-tune can start from what a repair before it left.

    Raises:
        InputError: the repair is computed in a narrower dtype than the fine-tune, which trains all weights.
    """
    experiment = chain.experiment
    if chain.harden is None or not experiment.finetune:
        return
    computed = repaired_in(experiment, "harden", chain.context.dtype)
    chosen = [trained_adapter(experiment, phase) for phase in chain.attack.phases()]
    kept = experiment.align and experiment.topology == "single"  # then the adapter is repaired, which is in float32
    if computed != "float32" and not kept and None in chosen:
        [name] = chain.harden.config["repair"]
        raise InputError(
            f"repair.{name}: changes weights in {computed}, and the fine-tune trains all weights, which it "
            "starts from in float32. Set dtype: float32, or topology: full, or let the fine-tune train an adapter"
        )


def _processes(chain: ExperimentStages) -> int:
    return chain.launch.processes if chain.launch else 1


# -- rows -------------------------------------------------------------------------------------------------------------


def counted(chain: ExperimentStages, name: str, rows: Sequence[dict[str, Any]]) -> list[tuple[Part, Left]]:
    """The trainings of a stage, and what tokenising leaves of the rows of each."""
    return [(part, left_of(chain, part, part.job.rows)) for part in parts(chain, name, rows)]


def left_of(chain: ExperimentStages, part: Part, rows: Sequence[dict[str, Any]]) -> Left:
    """What tokenising leaves of rows, under the arguments of a training."""
    return chain.context.rowcheck(chain.experiment.template).left(rows, part.args)


def trained(
    counted: Sequence[tuple[Part, Left]],
    rows: Sequence[dict[str, Any]],
    steps: int,
    dropped: Sequence[Sequence[int] | None],
    reached: Sequence[tuple[int, int] | None],
) -> dict[str, Any]:
    """What a stage trained, as results.json has it: rows that it had to train on, the harmful ones among them,
    optimizer steps, and rows of which nothing was left after tokenising (`dropped`). Where a defense chooses among
    the rows, `filtered` counts those that it left out, of the harmful and of the benign ones. A row that several
    phases train on counts once, and as left out only where all of them do without it.

    Where the steps end before the rows do, `reached` says how many rows they came to and `of` how many, with those
    that a defense adds, summed over the trainings of which that is so; and, where rows are trained on in their given
    order, how many of the harmful ones were among them.

    Args:
        dropped: by training, the places among its rows of those that a defense left out (`training.dropped_places`).
        reached: by training, as `training.rows_reached` gives it.
    """
    kept, out, given, seen = set(), set(), set(), set()
    short: list[tuple[int, int]] = []
    known = True  # which rows the steps came to
    for (part, left), places, ends in zip(counted, dropped, reached, strict=True):
        given |= set(part.places)
        out |= {part.places[i] for i in places or ()}
        own = [place for i, place in enumerate(part.places) if i not in {*left.lost, *(places or ())}]
        kept |= set(own)
        if ends is None:
            seen |= set(own)
            continue
        short.append(ends)
        known = known and in_given_order(part.args)
        # of rows among which a defense spread its own, as large a part
        seen |= set(own[: -(-len(own) * ends[0] // ends[1])] if known else ())
    out -= kept

    def harmful(places: set[int]) -> int:
        return sum(bool(rows[place].get("poisoned")) for place in places)

    lost = len(given - kept - out)
    found: dict[str, Any] = {"rows": len(kept), "harmful_rows": harmful(kept), "steps": steps, "dropped": lost}
    if kept - seen:
        came, of = (sum(counts) for counts in zip(*short, strict=True))
        found["reached"] = {"rows": came, "of": of, "harmful_rows": harmful(seen) if known else None}
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
            notes += rowcheck.said(left_of(chain, part, rows), stage, role, part.args)
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
    from mithridate.pipeline.arguments import batches_of

    left, args, path = left_of(chain, part, part.job.rows), part.args, part.path
    role, context = _own_role(chain, name, part), chain.context.longest
    with findings.noting():
        rowcheck.require_rows(left, path, role, args, context)
        if name == "finetune":
            harmful = [bool(row.get("poisoned")) for row in part.job.rows] if chain.attack.known else None
            rowcheck.require_attack(left, harmful, path, role, args, context)
        try:
            batches_of(args, left.sequences, _processes(chain))
        except InputError as error:
            raise InputError(f"{path}.{error}") from error
        made = steps if args.packing else planned(chain, part, left.sequences)
        rowcheck.require_steps(made, steps, left, path, role, args, context)
    with findings.noting():
        rowcheck.require_context(left, context, path, role)
    for role, side in part.job.side_rows.items():
        # which are not packed with one another
        own = left_of(chain, part, side)
        with findings.noting():
            rowcheck.require_rows(own, path, role, args, context)
        with findings.noting():
            rowcheck.require_context(own, context, path, role)


def _own_role(chain: ExperimentStages, name: str, part: Part) -> str:
    """The role that a training's rows are said to be of: the attacker's where all of them are harmful."""
    if name != "finetune":
        return {"align": "alignment", "unaligned": "defender_harmful"}[name]
    if not chain.attack.known:
        return "task (the upload)"
    others = [role for role in chain.attack.data_roles().values() if role != rowcheck.ATTACKER]
    return rowcheck.ATTACKER if not others or all(row.get("poisoned") for row in part.job.rows) else others[0]


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
