"""One training stage: a model, a data set and a defense through the Trainer, resumable, its weights left in a folder.

What is trained follows from the topology: adapters stay in fp32 over a base in the run's dtype; full weights are kept
in fp32 and computed in bf16 under autocast when the dtype is bfloat16.

A `Job` says all of it in JSON types, so that a stage can run in the command's own process or in several that
`accelerate launch` starts (`launch.py`). All of those call `run_job`; the main one writes the files.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import PreTrainedTokenizerBase, PrinterCallback, ProgressCallback, TrainerCallback
from trl import SFTConfig

from mithridate.checkpoints import Layer, assemble
from mithridate.defenses.base import Defense
from mithridate.errors import InputError, MithridateError
from mithridate.methods.defense import acts
from mithridate.models import EMBEDDED, ModelFiles, check_safetensors, load_tokenizer
from mithridate.training.cpu_head import scoring_labels_only
from mithridate.training.trainer import DefenseTrainer

logger = logging.getLogger(__name__)

_CHECKPOINTS = "trainer"  # inside the stage's work folder; removed before the stage is finished
_LOGS = "runs"  # where transformers puts tensorboard's files
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
        snapshots: optimizer steps whose weights are kept.
        template: name of the template that prompts are put into.
        sequences: what the Trainer is to have after tokenising, by `rowcheck`; None: not counted.
        report_to: services that are told of the training, besides local files; from the command line alone.
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
    sequences: int | None = None
    report_to: list[str] = field(default_factory=list)


class _Bar(ProgressCallback):
    """The Trainer's bar without a line for each log: the curves are in `history.json`."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        pass

    def close(self) -> None:
        """Ends the bar's line, so that what is said of an interrupt or an error stands on one of its own."""
        if self.training_bar is not None:
            self.training_bar.close()


class _Keep(TrainerCallback):
    """Keeps the weights of the asked-for steps (for resistance curves)."""

    def __init__(self, trainer: DefenseTrainer, snapshots: list[int], folder: Path):
        self.trainer, self.snapshots, self.folder = trainer, set(snapshots), folder

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.snapshots:
            _save(self.trainer, self.folder / f"step-{state.global_step}")


def _save(trainer: DefenseTrainer, folder: Path) -> None:
    """Saves the trained weights from the main process. Called by all processes: sharded weights are gathered first."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.is_fsdp_enabled:  # not exercised without GPUs: Accelerate shards nothing on CPUs
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


def _last_whole(folder: Path, processes: int = 1) -> str | None:
    """The newest checkpoint that all processes wrote to its end; those that they did not are removed."""
    newest = None
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rsplit("-", 1)[1])):
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


def training_arguments(
    training: dict[str, Any],
    folder: Path,
    seed: int,
    bf16: bool,
    progress: bool,
    path: str = "training",
    report_to: Sequence[str] = (),
) -> SFTConfig:
    """SFTConfig with the project's defaults under the user's values.

    The defaults that differ from TRL's: no reporting to outside services, no gradient checkpointing on CPU (where
    memory is not what is short), a checkpoint every quarter of the run.

    Args:
        path: of the fields in the experiment file, for errors.
        report_to: services besides those of `training`.

    Raises:
        InputError: SFTConfig refuses the values; with the field that it refuses.
    """
    steps = int(training.get("max_steps", -1))
    values: dict[str, Any] = {
        "seed": seed,
        "data_seed": seed,
        "report_to": "none",
        "save_strategy": "steps",
        "save_steps": max(10, -(-steps // 4)) if steps > 0 else 0.25,
        "save_total_limit": 1,
        "logging_steps": 5,
        "bf16": bf16,
        "disable_tqdm": not progress,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "gradient_checkpointing": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        **training,
        "output_dir": str(folder),
    }
    own = training.get("report_to", [])
    local = [name for name in (own if isinstance(own, list) else [own]) if name != "none"]
    services = values["report_to"] = list(dict.fromkeys([*local, *report_to])) or "none"
    try:
        args = SFTConfig(**values)
    except LIBRARY_ERRORS as error:
        culprit = next((name for name in training if _passes(SFTConfig, values, name)), None)
        field = f" (field: {path}.{culprit})" if culprit else ""
        raise InputError(f"{path}: {first_line(error)}{field}") from error
    args.report_to = [] if services == "none" else services  # which adds services of its own on some clusters
    args._n_gpu = min(
        args.n_gpu, 1
    )  # one process uses one GPU; several are for several processes (DDP), never threads
    return args


LIBRARY_ERRORS = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError, OSError),
    *(RuntimeError, NotImplementedError, AssertionError),
)
"""What TRL, PEFT and transformers raise for settings that do not fit."""


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _passes(cls: Any, values: dict[str, Any], name: str) -> bool:
    """Whether a class takes the values without one of them."""
    try:
        cls(**{key: value for key, value in values.items() if key != name})
    except LIBRARY_ERRORS:
        return False
    return True


def batches_of(args: SFTConfig, sequences: int, processes: int = 1) -> int:
    """The micro-batches of one pass over so many rows (or packs) on each process.

    Raises:
        InputError: there is none, so that the training would be of zero steps.
    """
    batch = args.per_device_train_batch_size * processes
    batches = sequences // batch if args.dataloader_drop_last else math.ceil(sequences / batch)
    if batches == 0:
        several = f" on each of {processes} processes" if processes > 1 else ""
        raise InputError(
            "training.dataloader_drop_last: not one optimizer step would be made: "
            f"{sequences} {'packs' if args.packing else 'rows'} do not fill a batch of "
            f"{args.per_device_train_batch_size}{several}, and what does not fill one is dropped. Lower "
            "per_device_train_batch_size, give more rows, or set "
            "dataloader_drop_last: false"
        )
    return batches


def planned_steps(args: SFTConfig, rows: int, processes: int = 1) -> int:
    """The optimizer steps of a run over `rows` examples.

    Raises:
        InputError: there would be none; the examples are packed, and `max_steps` is not set.
    """
    if args.max_steps > 0:
        if not args.packing:
            batches_of(args, rows, processes)
        return args.max_steps
    if args.packing:
        raise InputError(
            "training.packing: how many steps a run over packed rows takes is known only once they are packed; set "
            "max_steps, or packing: false"
        )
    batches = batches_of(args, rows, processes)
    return math.ceil(args.num_train_epochs * max(math.ceil(batches / args.gradient_accumulation_steps), 1))


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
    report_to: Sequence[str] = (),
) -> DefenseTrainer:
    """The trainer of one stage; its checkpoints go into `work`.

    Raises:
        UnsupportedSetup: a defense does not support the set-up.
        InputError: SFTConfig refuses the training arguments.
    """
    trainer = DefenseTrainer(
        model=model,
        args=training_arguments(training, work / _CHECKPOINTS, seed, bf16, progress, report_to=report_to),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=peft_config,
        defense=defense,
    )
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    if progress:
        trainer.add_callback(_Bar)
    return trainer


def trainer_of(job: Job, model: Any, work: Path) -> DefenseTrainer:
    """The trainer of a job over `model`; building it checks the defenses against the set-up. As `build_trainer`."""
    from mithridate.defenses import by_name
    from mithridate.sources.records import training_dataset

    tokenizer = load_tokenizer(job.base, needs_chat_template=job.template == "chat")
    defenses = []
    for name, settings in job.defense.items():
        cls = by_name()[name]
        data = {
            field: training_dataset(job.side_rows[role], tokenizer, job.template) for field, role in cls.roles.items()
        }
        defenses.append(cls(**data, **settings))
    fresh = job.adapter is not None and not isinstance(model, PeftModel)
    return build_trainer(
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
        report_to=job.report_to,
    )


def lora(fields: dict[str, Any]) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", **fields)


def run_job(job: Job, work: Path, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """Does a job: what `train` leaves is in `work` then. Called by each of the processes that train together."""
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
    train(trainer, work, job.snapshots)


def _require_sequences(trainer: DefenseTrainer, expected: int | None) -> None:
    """Raises MithridateError where the Trainer has other rows than were counted before. A defense that chooses the
    rows itself is not held to it."""
    chosen = any(acts(defense, "rows") for defense in trainer.defenses)
    if expected is not None and not chosen and len(trainer.train_dataset) != expected:
        raise MithridateError(
            f"the Trainer has {len(trainer.train_dataset)} rows after tokenising, and {expected} were counted before; "
            "nothing is trained. This version of TRL prepares rows in another way than the one that was tested."
        )


def _require_steps(trainer: DefenseTrainer) -> None:
    """Raises MithridateError where the training ended before its last planned step."""
    made, planned = trainer.state.global_step, trainer.state.max_steps
    if made < planned or made == 0:
        raise MithridateError(
            f"the training ended after {made} of {planned} optimizer steps, so it is not kept as finished. Its rows "
            "ran out or something stopped it: check the rows, per_device_train_batch_size and dataloader_drop_last."
        )


def train(trainer: DefenseTrainer, work: Path, snapshots: list[int]) -> None:
    """Trains and leaves `model/`, `history.json` and, for each snapshot, `snapshots/step-N/` in `work`.

    Called again on the same folder after a kill, it goes on from the last whole checkpoint. Called by each of the
    processes that train together; the main one writes.
    """
    folder, main = work / _CHECKPOINTS, trainer.is_world_process_zero()
    trainer.add_callback(_Keep(trainer, snapshots, work / "snapshots"))
    # Looked up once and told to all: looking removes what is not whole.
    resume = [_last_whole(folder, trainer.accelerator.num_processes) if main and folder.exists() else None]
    broadcast_object_list(resume)
    if resume[0]:
        logger.info("resuming from step %s", resume[0].rsplit("-", 1)[1])
    try:
        with scoring_labels_only():
            trainer.train(resume_from_checkpoint=resume[0])
    except BaseException:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, _Bar):
                callback.close()
        raise
    _require_steps(trainer)
    _save(trainer, work / "model")
    if main:
        (work / "history.json").write_text(json.dumps(trainer.state.log_history, indent=1))
    trainer.accelerator.wait_for_everyone()  # the other processes' part of the last checkpoint is written
    if main:
        if (folder / _LOGS).is_dir():  # of services that write local files (tensorboard)
            (folder / _LOGS).rename(work / "logs")
        for checkpoint in folder.glob("checkpoint-*"):
            _remove(checkpoint)
        shutil.rmtree(folder, ignore_errors=True)
