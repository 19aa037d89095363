"""The places in a Trainer's step where defenses act: `DefenseMixin`, with one more argument, `defense`.

    rows -> get_batch_samples -> on_step_begin -> (training_step: forward, loss) x M -> on_gradients -> clip -> step
            (which batches)      (seed .grad)      (shift)               (a term)      (see, replace)     on_step_end

A gradient seeded into `.grad` before the window's micro-batches is accumulated onto by them; one that is replaced
after the last of them is what is clipped and stepped. So terms enter once per optimizer step whatever the
accumulation; clipping, mixed precision, data parallelism and logging stay the Trainer's; and the last forward and
backward is always its own `training_step`.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerCallback
from trl.trainer.sft_trainer import SFTTrainer

from mithridate.errors import InputError, MithridateError, UnsupportedSetup
from mithridate.methods.defense import Defense, acts, arguments_of
from mithridate.training.activations import ActivationShifts
from mithridate.training.gradients import global_norm
from mithridate.training.outputs import KINDS, Capture, Outputs
from mithridate.training.quantised import adapters_kept, as_stored
from mithridate.training.reach import Loss, Reach
from mithridate.training.setups import refuse_unreachable_places, refuse_wrong_training
from mithridate.training.state import load_state, refuse_inexact_resume, save_state

_NEVER = torch.iinfo(torch.int64).max


class DefenseMixin(Reach):
    """Runs defenses inside a transformers Trainer. Put it to the left: `class T(DefenseMixin, DPOTrainer)`; for
    SFTTrainer and its subclasses put `DefenseTrainer` there.

    Every run is stopped, with the step named, when its loss or its weights are no longer finite, before a checkpoint
    of them is written; a set-up in which the libraries beneath train wrongly is refused; and adapters over a quantised
    model stay in float32 (TRL rounds them to bfloat16). Otherwise, without a defense, nothing differs from the trainer
    it is mixed into.

    Args:
        defense: None, a `Defense`, or a list of them, which act together: each at its own places, in the list's order.
        models: for defenses that declare models other than "start": kind ("base", "aligned", "unaligned") -> its
            tensors by name, as a mapping, a model, or a function without arguments that returns one of these.

    Raises:
        InputError: `defense` is something else, or two of the list exclude each other.
        UnsupportedSetup: a defense does not support this set-up (reason and remedy).
    """

    more_follows = False
    """Whether the run goes on with another training, to whose end is left what a defense does when it has ended
    (`finishes`)."""

    _reads_sft = False  # whether it knows how SFTTrainer prepares data and counts tokens: `DefenseTrainer`

    def __init__(
        self,
        *args: Any,
        defense: Defense | Sequence[Defense] | None = None,
        models: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        self.defenses = _as_list(defense)
        self._models = dict(models or {})
        self._records: dict[str, tuple[Any, int]] = {}
        self._first_bad_step: Tensor | None = None
        self._resumed_from: Path | None = None
        self._passes = 0  # over the training set, begun in this run
        self._window: list[Any] = []
        self._window_step = self._begun_step = -1  # the optimizer steps that the window and on_step_begin belong to
        self._own_pass = self._past_forward = False
        self._running = False  # between the beginning and the end of a training
        self._standing: list[ActivationShifts | Capture] = []  # hooks of a training that is compiled
        self._steps_taken = 0  # calls of the Trainer's own training_step in one micro-batch
        self._asked_loss: Loss | None = None
        self._start: list[Tensor] | None = None
        self._side_rows: dict[str, tuple[Any, Any]] = {}
        if isinstance(self, SFTTrainer) and not self._reads_sft:
            raise UnsupportedSetup(
                f"{type(self).__name__}: DefenseMixin alone does not know how SFTTrainer prepares data and counts "
                "tokens.",
                "put DefenseTrainer in its place: class T(DefenseTrainer, YourSFTTrainer).",
            )
        args, kwargs = self._before(*self._arguments(args, kwargs))
        with adapters_kept(type(self), kwargs.get("model", args[0] if args else None)):
            super().__init__(*args, **kwargs)
        as_stored(self.model)
        # Accelerate's FSDP2 plugin shards the weights as the training begins
        self.sharded_by_plugin: bool = self.accelerator.is_fsdp2
        self.check_setup()
        self.add_callback(_Events(self))

    def check_setup(self) -> None:
        """Refuses a set-up in which training or a defense goes wrong; called as the trainer is built.

        Raises:
            UnsupportedSetup: with reason and remedy.
        """
        refuse_wrong_training(self)
        for d in self.defenses:
            refuse_unreachable_places(self, d)
            d.check(self)

    # -- the places where defenses act ----------------------------------------------------------------------------

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The trainer's arguments with data sets that it can read."""
        return args, kwargs

    def _before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The trainer's arguments, with the training's and the training set as the defenses make them."""
        arguing, changing = ([d for d in self.defenses if acts(d, place)] for place in ("arguments", "rows"))
        if not (arguing or changing):
            return args, kwargs
        given = inspect.signature(super().__init__).bind(*args, **kwargs)
        dataset, arguments = given.arguments.get("train_dataset"), given.arguments.get("args")
        if arguing:
            if arguments is None:
                raise UnsupportedSetup(
                    f"{type(arguing[0]).__name__}: changes the training's arguments, and none are given.",
                    "pass args=SFTConfig(...).",
                )
            rows = len(dataset) if isinstance(dataset, Sized) else None
            given.arguments["args"] = arguments_of(arguing, arguments, rows)
        for d in changing:
            if not isinstance(dataset, Dataset):
                raise UnsupportedSetup(
                    f"{type(d).__name__}: changes the training set, which is a {type(dataset).__name__} here.",
                    "pass a datasets.Dataset as train_dataset (load it without streaming).",
                )
            dataset = d.rows(dataset, 42 if arguments is None else arguments.seed)
        given.arguments["train_dataset"] = dataset
        return given.args, given.kwargs

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device):
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._optimizer_in_training_mode()
        if self._window_step != self.state.global_step:
            self._window, self._window_step = [], self.state.global_step
        chosen = batches
        for d in self.defenses if batches else ():
            if acts(d, "batches"):
                chosen = d.batches(self, chosen)
                if len(chosen) != len(batches):
                    raise MithridateError(
                        f"{type(d).__name__}.batches: was given {len(batches)} micro-batches and returned "
                        f"{len(chosen)}."
                    )
        self._window = [*self._window, *chosen]
        # the token count belongs to the window it was counted on
        return (batches, count) if chosen is batches else (chosen, self._get_num_items_in_batch(chosen, device))

    def _step_begins(self) -> None:
        if self._begun_step == self.state.global_step:
            return  # the Trainer says it per window: this is the rest of a step whose data ended within it
        self._begun_step = self.state.global_step
        self._reshard()
        for d in self.defenses:
            d.on_step_begin(self)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        step: Callable[..., Tensor] = self._own_step
        for d in reversed(self.defenses):  # the first of the list is outermost: the others see what it did
            if acts(d, "training_step"):
                step = functools.partial(d.training_step, self, step)
        self._steps_taken = 0
        loss = step(model, inputs, num_items_in_batch)
        if self._steps_taken != 1:
            names = ", ".join(type(d).__name__ for d in self.defenses if acts(d, "training_step"))
            raise MithridateError(
                f"{names}: training_step ran the Trainer's own step {self._steps_taken} times; it must end in "
                "step(...), once."
            )
        if self.accelerator.sync_gradients:  # the optimizer step's last micro-batch
            self._gradients_complete()
        bad = torch.where(torch.isfinite(loss), _NEVER, self._step)
        self._first_bad_step = bad if self._first_bad_step is None else torch.minimum(self._first_bad_step, bad)
        return loss

    def _own_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None) -> Tensor:
        self._steps_taken += 1
        self._own_pass = True
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        finally:
            self._own_pass = self._past_forward = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        if self._asked_loss is not None:
            counted = num_items_in_batch if self._divided_by(num_items_in_batch) else None
            return self._asked_loss(model, inputs, counted) * self._ranks(counted)
        terms = [d for d in self.defenses if acts(d, "loss")]
        if not (self._own_pass and terms):
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        self._own_pass = False  # what follows is asked once
        needs = {need for d in terms for need in d.needs}
        if getattr(inputs.get("labels"), "ndim", 0) != 2:
            names = ", ".join(type(d).__name__ for d in terms)
            raise UnsupportedSetup(
                f"{names}: adds a term at labelled tokens, and the batches of {type(self).__name__} have no labels of "
                "tokens.",
                "use it in a supervised fine-tuning trainer.",
            )
        labels, inputs = inputs["labels"], dict(inputs)
        if "hidden_states" in needs:
            inputs["output_hidden_states"] = True
        reference = self._reference_outputs(inputs, needs) if "reference" in needs else None
        with self._captured(model).asked(needs - {"reference"}, labels) as capture:
            loss = super().compute_loss(model, dict(inputs), num_items_in_batch=num_items_in_batch)
        outputs = capture.outputs()
        outputs.reference = reference
        counted = num_items_in_batch if self._divided_by(num_items_in_batch) else None
        ranks = self._ranks(counted)
        loss = loss if ranks == 1 else loss / ranks
        self._past_forward = True
        for d in terms:
            loss = d.loss(self, loss, model, inputs, outputs, counted)
        return loss if ranks == 1 else loss * ranks

    def _divided_by(self, num_items_in_batch: Tensor | int | None) -> bool:
        """Whether the run's own loss is a sum divided by `num_items_in_batch`; else the Trainer averages over the
        micro-batches itself."""
        if num_items_in_batch is None:
            return False
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        return bool(self.model_accepts_loss_kwargs or self.compute_loss_func) if scaled is None else scaled

    def _ranks(self, counted: Tensor | int | None) -> int:
        """What losses are multiplied by where `counted` counts the tokens of all ranks: DDP averages gradients."""
        across = self.args.average_tokens_across_devices and counted is not None
        return self.accelerator.num_processes if across else 1

    def _gradients_complete(self) -> None:
        acting = [d for d in self.defenses if acts(d, "on_gradients")]
        if not acting:
            return
        if self.accelerator.scaler is not None:
            present = [p.grad for p in self.params if p.grad is not None]
            if not torch.isfinite(global_norm(present)):
                return  # the scaler finds it, skips the step and lowers its scale
        for d in acting:
            d.on_gradients(self)

    def _step_ended(self) -> None:
        for d in self.defenses:
            d.on_step_end(self)
        self._window = []

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs or "train_loss" in logs:
            self._require_finite(weights="train_loss" in logs)  # train_loss: the last log of a run
        if "loss" in logs and self._records:
            means = torch.stack(
                [
                    torch.as_tensor(total / n, dtype=torch.float64).to(self.args.device)
                    for total, n in self._records.values()
                ]
            )
            means = self.accelerator.gather(means).view(-1, len(self._records)).mean(0).tolist()
            logs.update(zip(self._records, means, strict=True))
            self._records = {}
            for d in self.defenses:
                d.on_log(self, logs)
        super().log(logs, *args, **kwargs)

    # -- beginning, checkpoints -------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        self._resumed_from = None  # whatever an earlier start that failed has left
        self._start = None
        if resume_from_checkpoint and self.defenses:
            refuse_inexact_resume(self)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._running = False
            for hooks in self._standing:
                hooks.remove()
            self._standing = []

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._keep_start()  # the weights are still those that the run began with
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self._resumed_from = None if checkpoint is None else Path(checkpoint)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The Trainer looks for the last step only after another one: it enters the epoch again in which a run ended
        # that goes on from its last checkpoint.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _begin(self) -> None:
        self._records, self._first_bad_step, self._passes = {}, None, 0
        self._window, self._window_step, self._begun_step = [], -1, -1
        folder, self._resumed_from = self._resumed_from, None
        self._optimizer_in_training_mode()
        self._keep_start()
        self._running = True
        for d in self.defenses:
            d.on_train_begin(self)
        if folder is not None:
            load_state(self, folder, self._start)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._require_finite(weights=True)
        # before the Trainer's own files, of which trainer_state.json comes last: where that is, this is too
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        # one of a model that was sharded as it was loaded cannot be resumed (the Trainer says so): it needs no state
        if self.defenses and not self._sharded_on_load:
            save_state(self, folder, self._passes, self._start)
        super()._save_checkpoint(model, trial)

    def _keep_start(self) -> None:
        """Copies the trained weights before the first step, where a defense looks back at them."""
        wanted = any("reference" in d.needs or "start" in d.models.values() for d in self.defenses)
        if wanted and self._start is None:
            self._start = [p.detach().clone() for p in self.params]

    def _reference_outputs(self, inputs: Any, needs: set[str]) -> Outputs:
        with self.reference() as model:
            return self.outputs(model, inputs, needs - {"reference"})

    def _require_finite(self, weights: bool) -> None:
        """Raises MithridateError if a loss, or (when asked) a weight, is not finite. Called by all ranks."""
        step, what = _NEVER, "The training loss is"
        if self._first_bad_step is not None:
            step = int(self.accelerator.gather(self._first_bad_step).min())
        if step == _NEVER and weights and not torch.isfinite(global_norm(self.params)):
            step, what = self.state.global_step, "The trained weights are"
        if step != _NEVER:
            raise MithridateError(
                f"{what} not finite at step {step}; training is stopped and nothing of it is saved (checkpoints of "
                f"earlier steps are kept in {self.args.output_dir}). Lower learning_rate, or check the data."
            )


class _Events(TrainerCallback):
    def __init__(self, trainer: DefenseMixin):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._begin()

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer._passes += 1

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer._step_begins()

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer._step_ended()

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer._reshard()
        for d in self.trainer.defenses:
            if not (d.finishes and self.trainer.more_follows):
                d.on_train_end(self.trainer)


def _as_list(defense: Any) -> list[Defense]:
    given = [] if defense is None else list(defense) if isinstance(defense, list | tuple) else [defense]
    for d in given:
        if isinstance(d, type) and issubclass(d, Defense):
            raise InputError(f"defense must be an instance: {d.__name__}(...), not the class {d.__name__}.")
        if not isinstance(d, Defense):
            raise InputError(
                f"defense must be a Defense, such as those of mithridate.defenses, a list of them, or None, not {d!r}."
            )
    names = [type(d).__name__ for d in given]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UnsupportedSetup(f"{twice.pop()} is given twice.", "give each defense once.")
    unknown = [(type(d).__name__, need) for d in given for need in d.needs if need not in KINDS]
    if unknown:
        raise InputError(f"{unknown[0][0]}: needs names {unknown[0][1]!r}; there are: {', '.join(KINDS)}.")
    swapping = [type(d).__name__ for d in given if acts(d, "batches")]
    if len(swapping) > 1:
        raise UnsupportedSetup(
            f"{' and '.join(swapping)} both choose the batches of a step.", "use one of them in a run."
        )
    return given
