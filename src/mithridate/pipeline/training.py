"""One training stage: a model, a data set and a defense through the Trainer, resumable, its weights left in a folder.

What is trained follows from the topology: adapters stay in fp32 over a base in the run's dtype; full weights are kept
in fp32 and computed in bf16 under autocast when the dtype is bfloat16.

A `Job` says all of it in JSON types, so that a stage can run in the command's own process or in several that
`accelerate launch` starts (`launch.py`). All of those call `run_job`; the main one writes the files.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import PreTrainedTokenizerBase, PrinterCallback, ProgressCallback, TrainerCallback

from mithridate.data.records import training_dataset
from mithridate.errors import InputError, MithridateError, first_line
from mithridate.experiment.methods import method_of
from mithridate.files import replace_file
from mithridate.methods.attack import Phase
from mithridate.methods.defense import Defense, Guard, acts
from mithridate.methods.registry import by_name
from mithridate.models import ModelFiles, load_tokenizer
from mithridate.models.embedded import EMBEDDED
from mithridate.models.folder import check_safetensors
from mithridate.models.layers import Layer, assemble, merge_adapter
from mithridate.models.quantisation import dequantised
from mithridate.pipeline.arguments import training_arguments
from mithridate.progress import Progress
from mithridate.training.cpu_head import scoring_labels_only
from mithridate.training.frozen import freeze
from mithridate.training.steps import in_given_order
from mithridate.training.trainer import DefenseTrainer

logger = logging.getLogger(__name__)

_CHECKPOINTS = "trainer"  # inside the stage's work folder; removed before the stage is finished
_LOGS = "runs"  # where transformers puts tensorboard's files
_DROPPED = "dropped.json"  # the places of the rows that a defense left out, where one may
_REACHED = "reached.json"  # how many rows the steps came to, and of how many, where not to all
_STATE = "trainer_state.json"  # what the Trainer writes last into a checkpoint, before it removes older ones


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training stage in full.

    Attributes:
        base, layers: the model to start from, as in `assemble`.
        dtype: of the base's weights, or, where all weights are trained (in fp32), of the computation.
        adapter: LoraConfig's fields, for a fresh adapter where the layers leave none to train on; None: full weights.
        rows: the training records.
        defense: fields of each defense by its name, without its data sets.
        side_rows: the records of each role that the defenses need.
        training: SFTConfig's fields.
        snapshots: optimizer steps whose weights are kept; of several phases, counted over all of them.
        template: name of the template that prompts are put into.
        models: the layers over the base of each model that the defenses need, by its kind (`Method.models`).
        phases: the trainings in a row, where they are not one over all rows.
        frozen: regular expressions; trained tensors whose whole name matches one keep their values.
        sequences: of each part, what the Trainer is to have after tokenising, by `rowcheck`; empty: not counted.
        report_to: services that are told of the training, besides local files; from the command line alone.
        verdicts: by "METHOD.FIELD", what a judge that a defense names said of each of the rows (`Defense.guards`).
    """

    base: ModelFiles
    layers: list[Layer]
    dtype: str
    adapter: dict[str, Any] | None
    rows: list[dict[str, Any]]
    defense: dict[str, dict[str, Any]]
    side_rows: dict[str, list[dict[str, Any]]]
    training: dict[str, Any]
    seed: int
    snapshots: list[int]
    progress: bool
    template: str = "chat"
    models: dict[str, list[Layer]] = field(default_factory=dict)
    phases: list[Phase] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    report_to: list[str] = field(default_factory=list)
    verdicts: dict[str, list[str | None]] = field(default_factory=dict)

    def places(self) -> list[list[int]]:
        """Of each part, the places in `rows` of those that it trains on."""
        chosen = [phase.rows for phase in self.phases] or [None]
        return [[i for i, row in enumerate(self.rows) if name in (None, row.get("phase"))] for name in chosen]

    def parts(self) -> list[Job]:
        """The phases as jobs of their own, each over the layers that this one starts from; the job itself if it has
        none.

        Raises:
            InputError: a phase has no rows, or asks for what excludes each other.
        """
        return [self._part(i) for i in range(len(self.phases))] or [self]

    def _part(self, i: int) -> Job:
        phase, where = self.phases[i], f"finetune.attack: phase {i + 1}"
        places = self.places()[i]
        rows = [self.rows[place] for place in places]
        if not rows:
            raise InputError(f"{where}: no row has the phase {phase.rows!r}")
        training = phase.trained(self.training)
        if phase.order == "given":
            if training.get("packing"):
                raise InputError(f"{where}: packing puts rows into another order than the given one; set it to false")
            training |= {"train_sampling_strategy": "sequential", "shuffle_dataset": False}
        adapter = self.adapter if phase.adapter is None else None if phase.adapter == "full" else dict(phase.adapter)
        return replace(
            self,
            rows=rows,
            training=training,
            adapter=adapter,
            frozen=[*self.frozen, *phase.frozen],
            phases=[],
            snapshots=[],
            sequences=self.sequences[i : i + 1],
            verdicts={path: [said[place] for place in places] for path, said in self.verdicts.items()},
        )


class _Bar(TrainerCallback):
    """How far the training is, without a line for each log: the curves are in `history.json`."""

    def __init__(self):
        self._shown: Progress | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._shown = Progress(state.max_steps, "training", "steps", done=state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        assert self._shown is not None
        self._shown.advance(state.global_step - self._shown.done)

    def on_train_end(self, args, state, control, **kwargs):
        self.close()

    def close(self) -> None:
        """Ends the bar's line, so that what is said of an interrupt or an error stands on one of its own."""
        if self._shown is not None:
            self._shown.close()


class _Keep(TrainerCallback):
    """Keeps the weights of the asked-for steps (for resistance curves), which count from `before` steps on, and of the
    checkpoints the newest, unless the user says how many."""

    def __init__(self, trainer: DefenseTrainer, snapshots: list[int], folder: Path, before: int = 0):
        self.trainer, self.snapshots, self.folder, self.before = trainer, set(snapshots), folder, before

    def on_step_end(self, args, state, control, **kwargs):
        step = self.before + state.global_step
        if step in self.snapshots:
            _save(self.trainer, self.folder / f"step-{step}")

    def on_save(self, args, state, control, **kwargs):
        # The Trainer's own `save_total_limit` removes the one before as soon as the main process has written its part
        # of the new one. Killed before the others have written theirs, a training would have none to go on from.
        self.trainer.accelerator.wait_for_everyone()
        if args.save_total_limit is None and state.is_world_process_zero:
            for checkpoint in _checkpoints(Path(str(args.output_dir)))[:-1]:
                _remove(checkpoint)


def _save(trainer: DefenseTrainer, folder: Path) -> None:
    """Saves the trained weights from the main process. Called by all processes: sharded weights are gathered first."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.is_fsdp_enabled:
        whole = trainer.accelerator.get_state_dict(trainer.model)
        if trainer.is_world_process_zero():
            save_weights(model, folder, whole)
    elif trainer.is_world_process_zero():
        save_weights(model, folder)


def save_weights(model: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
    """Saves an adapter (PEFT model) or full weights (plain model) as safetensors; `weights` where it does not hold
    them whole."""
    model.save_pretrained(folder, state_dict=weights, safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card; the model card is written by export


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))


def _last_whole(folder: Path, processes: int = 1) -> str | None:
    """The newest checkpoint that all processes wrote to its end; those that they did not are removed."""
    newest = None
    for checkpoint in _checkpoints(folder):
        if _is_whole(checkpoint, processes):
            newest = checkpoint
        else:
            _remove(checkpoint)
    return str(newest) if newest else None


def _is_whole(checkpoint: Path, processes: int) -> bool:
    if processes > 1 and len(list(checkpoint.glob("rng_state_*.pth"))) != processes:
        return False  # each process writes its own, and the main one does not wait for them
    try:
        json.loads((checkpoint / _STATE).read_text())
        for file in checkpoint.glob("*.safetensors"):  # after a loss of power, an early file may be cut off too
            check_safetensors(file)
    except (OSError, ValueError, InputError):
        return False
    return all(zipfile.is_zipfile(file) for kind in ("*.pt*", "*.bin") for file in checkpoint.glob(kind))


def _remove(checkpoint: Path) -> None:
    (checkpoint / _STATE).unlink(missing_ok=True)  # first: a half-removed checkpoint must not pass for a whole one
    shutil.rmtree(checkpoint)


def build_trainer(
    work: Path,
    *,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    defense: list[Defense],
    training: dict[str, Any],
    peft_config: LoraConfig | None,
    seed: int,
    bf16: bool,
    progress: bool,
    models: Mapping[str, Callable[[], Any]] | None = None,
    report_to: Sequence[str] = (),
) -> DefenseTrainer:
    """The trainer of one stage; its checkpoints go into `work`.

    Raises:
        UnsupportedSetup: a defense does not support the set-up.
        InputError: SFTConfig refuses the training arguments.
    """
    further: dict[str, Any] = {"models": models} if models else {}
    trainer = DefenseTrainer(
        model=model,
        args=training_arguments(training, work / _CHECKPOINTS, seed, bf16, progress, report_to=report_to),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=peft_config,
        defense=defense,
        **further,
    )
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    if progress:
        trainer.add_callback(_Bar)
    return trainer


def trainer_of(
    job: Job,
    model: Any,
    work: Path,
    models: Mapping[str, Callable[[], Any]] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> DefenseTrainer:
    """The trainer of a job of one phase over `model`; building it checks the defenses against the set-up.

    Args:
        models: functions that return the tensors of each of the job's models by name; made from its layers, if not
            given.
        tokenizer: the model's, which the trainer may change; loaded, if not given.

    Raises:
        UnsupportedSetup: as `build_trainer`.
        InputError: as `build_trainer`; or an expression of `frozen` matches no trained tensor, or all are frozen.
    """
    if tokenizer is None:
        tokenizer = load_tokenizer(job.base, needs_chat_template=job.template == "chat")
    defenses = []
    for name, settings in job.defense.items():
        cls = by_name("defenses")[name]
        data = {
            field: training_dataset(job.side_rows[role], tokenizer, job.template)
            for field, role in method_of(cls, settings).data_roles().items()
        }
        guards = {field: f"{name}.{field}" for field in cls.guards if settings.get(field) is not None}
        asked = {field: _said_before(job.verdicts[path]) for field, path in guards.items()}
        defenses.append(method_of(cls, {**settings, **asked}, data))
    if models is None:
        dtype = getattr(torch, job.dtype)
        models = {kind: partial(tensors_of, job.base, layers, dtype) for kind, layers in job.models.items()}
    fresh = job.adapter is not None and not isinstance(model, PeftModel)
    trainer = build_trainer(
        work,
        model=model,
        tokenizer=tokenizer,
        dataset=training_dataset(job.rows, tokenizer, job.template),
        defense=defenses,
        training=job.training,
        peft_config=lora(job.adapter) if fresh and job.adapter else None,
        seed=job.seed,
        bf16=job.adapter is None and job.dtype == "bfloat16",
        progress=job.progress,
        models=models,
        report_to=job.report_to,
    )
    freeze(trainer.model, job.frozen)  # before the optimizer is made, so that it never knows of these tensors
    return trainer


def _said_before(verdicts: list[str | None]) -> Guard:
    """A guard that judged the job's rows, which a defense gives it in their order."""

    def said_before(rows: Sequence[Sequence[tuple[str, str]]]) -> list[str | None]:
        return verdicts

    return said_before


def tensors_of(base: ModelFiles, layers: list[Layer], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a chain's model by name, on the CPU, an adapter merged into the weights."""
    return merge_adapter(dequantised(assemble(base, layers, dtype))).state_dict()


def lora(fields: dict[str, Any]) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", **fields)


def run_job(job: Job, work: Path, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """Does a job: what `train` leaves is in `work` then. Called by each of the processes that train together.

    Of several phases, each leaves that in a folder of its own, and `phases.json` says what they were; see
    `phase_layers`.
    """
    if not job.phases:
        train(_trainer(job, work, callbacks), work, job.snapshots)
        return
    main = int(os.environ.get("RANK", "0")) == 0
    parts, layers, done = job.parts(), job.layers, []
    earlier = [_finished(work / f"phase-{i}") for i in range(1, len(parts) + 1)]
    for i, (part, steps) in enumerate(zip(parts, earlier), 1):
        folder, before = work / f"phase-{i}", sum(phase["steps"] for phase in done)
        start = _under(layers, job.adapter, done, part.adapter)
        if steps is None:
            trainer = _trainer(replace(part, layers=start), folder, callbacks)
            trainer.more_follows = i < len(parts)
            train(trainer, folder, job.snapshots, work / "snapshots", before)
            steps = trainer.state.global_step
            if main:
                replace_file(folder / _FINISHED, json.dumps(steps))
            trainer.accelerator.wait_for_everyone()
        done.append({"steps": steps, "adapter": part.adapter})
        layers = _over(start, done, folder / "model")
    if main:
        _bring_together(work, done)


_FINISHED = "finished.json"  # in a phase's folder: its optimizer steps, once all else is there


def _finished(folder: Path) -> int | None:
    return json.loads((folder / _FINISHED).read_text()) if (folder / _FINISHED).exists() else None


def _bring_together(work: Path, phases: list[dict[str, Any]]) -> None:
    """The phases' logs as one, with their steps counted on; and what the phases were."""
    log, before = [], 0
    for i, phase in enumerate(phases, 1):
        entries = json.loads((work / f"phase-{i}" / "history.json").read_text())
        log += [entry | {"step": entry["step"] + before} for entry in entries]
        before += phase["steps"]
    (work / "history.json").write_text(json.dumps(log, indent=1))
    (work / _PHASES).write_text(json.dumps(phases, indent=1))


_PHASES = "phases.json"  # steps and adapter of each phase


def phase_layers(layers: list[Layer], adapter: dict[str, Any] | None, folder: Path, step: int | None) -> list[Layer]:
    """The layers of a model after a fine-tune: those that it started from, and what its phases left.

    A phase with another adapter than the one before has that one merged into the weights under it.

    Args:
        layers: those that it started from.
        adapter: of the stage, on which the first phase goes on where the layers leave one to train on.
        folder: the stage's.
        step: an optimizer step whose weights were kept; None: the last.
    """
    snapshot = folder / f"snapshots/step-{step}"
    if not (folder / _PHASES).exists():
        return [*layers, Layer("adapter" if adapter else "weights", snapshot if step else folder / "model")]
    phases, before = json.loads((folder / _PHASES).read_text()), 0
    for i, phase in enumerate(phases, 1):
        last = step is not None and step <= before + phase["steps"]
        path = snapshot if last else folder / f"phase-{i}" / "model"
        start = _under(layers, adapter, phases[: i - 1], phase["adapter"])
        layers = _over(start, phases[:i], path)
        before += phase["steps"]
        if last:
            break
    return layers


def _under(
    layers: list[Layer], adapter: dict[str, Any] | None, done: list[dict[str, Any]], next: dict[str, Any] | None
) -> list[Layer]:
    """What a phase with the adapter `next` starts from: an adapter that it does not go on training is merged."""
    before = done[-1]["adapter"] if done else adapter
    if next == before:
        return layers
    if not layers or layers[-1].kind != "adapter" or layers[-1].merge:
        return layers
    *rest, last = layers
    while rest and rest[-1].kind == "adapter" and not rest[-1].merge:  # trained on since: `last` is in its place
        rest.pop()
    return [*rest, replace(last, merge=True)]


def _over(start: list[Layer], done: list[dict[str, Any]], path: Path) -> list[Layer]:
    """The layers after the last of the phases `done`, which started from `start`."""
    adapter = done[-1]["adapter"]
    trained_on = len(done) > 1 and done[-2]["adapter"] == adapter  # the same weights: in place of the phase before
    return [*(start[:-1] if trained_on else start), Layer("adapter" if adapter else "weights", path)]


def _trainer(job: Job, work: Path, callbacks: Sequence[TrainerCallback]) -> DefenseTrainer:
    """The trainer of a job of one phase, over its own model."""
    # Full weights are trained in fp32 whatever the compute dtype: bf16 storage rounds small updates away.
    dtype = torch.float32 if job.adapter is None else getattr(torch, job.dtype)
    model: Any = assemble(job.base, job.layers, dtype, trainable=True)  # on the CPU: the Trainer places it
    if job.base.name in EMBEDDED and not torch.cuda.is_available():
        # The embedded data are short: plain attention trains on them about 1.2 times as fast as the fused kernel.
        model.set_attn_implementation("eager")
    trainer = trainer_of(job, model, work)
    _require_sequences(trainer, job.sequences)
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


def dropped_places(job: Job, work: Path) -> list[list[int] | None]:
    """Of each part of a job that was done in `work`, the places among its rows of those that a defense left out; None
    where no defense may."""
    return [_left(one / _DROPPED) for one in _folders(job, work)]


def rows_reached(job: Job, work: Path) -> list[tuple[int, int] | None]:
    """Of each part of a job that was done in `work`, how many rows its steps came to, and how many there were, with
    those that a defense adds (packs, where rows are packed); None where they came to all."""
    found = (_left(one / _REACHED) for one in _folders(job, work))
    return [None if one is None else (one[0], one[1]) for one in found]


def _folders(job: Job, work: Path) -> list[Path]:
    return [work / f"phase-{i}" for i in range(1, len(job.phases) + 1)] or [work]


def _left(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _reached(trainer: DefenseTrainer) -> int:
    """How many rows the steps of a finished training came to."""
    args, state, rows = trainer.args, trainer.state, len(trainer.train_dataset)
    batch = args.per_device_train_batch_size * trainer.accelerator.num_processes
    of_a_pass = rows - rows % batch if args.dataloader_drop_last else rows
    if (state.epoch or 0) > 1 and not in_given_order(args):
        return rows  # what one pass drops at its end is not what the next one does
    return min(of_a_pass, state.global_step * args.gradient_accumulation_steps * batch)


def _require_sequences(trainer: DefenseTrainer, counted: list[int]) -> None:
    """Raises MithridateError where the Trainer has other rows than were counted before, where they were. A defense
    that chooses the rows itself is not held to it."""
    chosen = any(acts(defense, "rows") for defense in trainer.defenses)
    for expected in () if chosen else counted:
        if len(trainer.train_dataset) != expected:
            raise MithridateError(
                f"the Trainer has {len(trainer.train_dataset)} rows after tokenising, and {expected} were counted "
                "before; nothing is trained. This version of TRL prepares rows in another way than the one that was "
                "tested."
            )


def _require_steps(trainer: DefenseTrainer) -> None:
    """Raises MithridateError where the training ended before its last planned step, or after it."""
    made, planned = trainer.state.global_step, trainer.state.max_steps
    if made > planned:
        raise MithridateError(
            f"the training made {made} optimizer steps, and {planned} were planned, so it is not kept as finished. "
            "This version of transformers ends a run in another way than the one that was tested."
        )
    if made < planned or made == 0:
        raise MithridateError(
            f"the training ended after {made} of {planned} optimizer steps, so it is not kept as finished. Its rows "
            "ran out or something stopped it: check the rows, per_device_train_batch_size and dataloader_drop_last."
        )


def train(
    trainer: DefenseTrainer, work: Path, snapshots: list[int], kept: Path | None = None, before: int = 0
) -> None:
    """Trains and leaves `model/`, `history.json` and, for each snapshot, `snapshots/step-N/` in `work`.

    Where `before` steps of earlier phases count too, the snapshots are in `kept`.

    Called again on the same folder after a kill, it goes on from the last whole checkpoint. Called by each of the
    processes that train together; the main one writes.
    """
    folder, main = work / _CHECKPOINTS, trainer.is_world_process_zero()
    trainer.add_callback(_Keep(trainer, snapshots, kept or work / "snapshots", before))
    # Looked up once and told to all: looking removes what is not whole.
    resume = [_last_whole(folder, trainer.accelerator.num_processes) if main and folder.exists() else None]
    broadcast_object_list(resume)
    if resume[0]:
        logger.info("resuming from step %s", resume[0].rsplit("-", 1)[1])
    try:
        with scoring_labels_only(trainer.model):
            trainer.train(resume_from_checkpoint=resume[0])
    except BaseException as error:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, _Bar):
                callback.close()
        if isinstance(error, torch.OutOfMemoryError):
            raise MithridateError(
                f"out of memory in training ({first_line(error)}). Halve per_device_train_batch_size and double "
                "gradient_accumulation_steps, set activation_checkpointing: true, train an adapter over 4 bit "
                "(quantization), or end what else is on the GPU"
            ) from error
        raise
    _require_steps(trainer)
    _save(trainer, work / "model")
    if main:
        (work / "history.json").write_text(json.dumps(trainer.state.log_history, indent=1))
        first = next((defense for defense in trainer.defenses if acts(defense, "rows")), None)
        if first and first.dropped is not None:  # of others, the places are not those of the job's rows
            (work / _DROPPED).write_text(json.dumps(first.dropped))
        if (reached := _reached(trainer)) < (rows := len(trainer.train_dataset)):
            (work / _REACHED).write_text(json.dumps([reached, rows]))
    trainer.accelerator.wait_for_everyone()  # the other processes' part of the last checkpoint is written
    if main:
        if (folder / _LOGS).is_dir():  # of services that write local files (tensorboard)
            (folder / _LOGS).rename(work / "logs")
        for checkpoint in _checkpoints(folder):
            _remove(checkpoint)
        shutil.rmtree(folder, ignore_errors=True)
