"""The Trainer that runs defenses: `DefenseTrainer` is TRL's SFTTrainer with one more argument, `defense`.

    get_batch_samples  ->  on_step_begin  ->  training_step x M  ->  clip  ->  step
    (which batches)        (seed .grad)       (shift the forward)

A gradient seeded into `.grad` before the window's micro-batches is accumulated onto by them. So extra terms are added
once per optimizer step whatever the accumulation; clipping, mixed precision, data parallelism and logging stay the
Trainer's; and the last forward and backward is always its own, untouched `training_step`.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback
from trl.trainer.sft_trainer import SFTTrainer

from mithridate.errors import InputError, MithridateError, UnsupportedSetup
from mithridate.methods.defense import Defense
from mithridate.training.cpu_head import without_metrics
from mithridate.training.gradients import global_norm, take_grads
from mithridate.training.setups import refuse_untested, refuse_wrong_training
from mithridate.training.side_data import SideData

_Trainer: Any = object  # for type checkers: the mixin uses a Trainer's attributes without being one

_NEVER = torch.iinfo(torch.int64).max


class DefenseMixin(_Trainer):
    """Runs defenses inside a transformers Trainer. Put it to the left: `class T(DefenseMixin, Trainer)`.

    Every run is stopped, with the step named, when its loss or its weights are no longer finite, before a checkpoint
    of them is written; and a set-up in which the libraries beneath train wrongly is refused. Otherwise, without a
    defense, nothing differs from the trainer it is mixed into.

    Args:
        defense: None, a `Defense`, or a list of them, which act together: each at its own places.

    Raises:
        InputError: `defense` is something else, or two of the list exclude each other.
        UnsupportedSetup: a defense does not support this set-up (reason and remedy).
    """

    def __init__(self, *args: Any, defense: Defense | Sequence[Defense] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.defenses = _as_list(defense)
        self._records: dict[str, tuple[Any, int]] = {}
        self._first_bad_step: Tensor | None = None
        self._resumed_from: Path | None = None
        refuse_wrong_training(self)
        for d in self.defenses:
            d.check(self)
        self.add_callback(_Events(self))

    def refuse_untested(self, name: str) -> None:
        """Raises UnsupportedSetup, in the name of a defense, for a set-up that no defense was tested with."""
        refuse_untested(self, name)

    # -- what a defense may use -----------------------------------------------------------------------------------

    @property
    def params(self) -> list[nn.Parameter]:
        """The trainable parameters."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def param_names(self) -> list[str]:
        """The names of `params`, in the same order."""
        return [name for name, p in self.model.named_parameters() if p.requires_grad]

    @property
    def loss_scale(self) -> float:
        """What losses are multiplied by before backward (fp16 mixed precision; else 1)."""
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else scaler.get_scale()

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """What autocast rounds weights to before products; None without mixed precision."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)

    @property
    def logging_now(self) -> bool:
        """Whether the optimizer step at hand ends in a training log: when to take what is dear to measure."""
        step, by_steps = self.state.global_step + 1, self.args.logging_strategy == "steps"
        first = step == 1 and self.args.logging_first_step
        return not by_steps or first or step % max(self.state.logging_steps, 1) == 0

    def gradient(self, batches: Sequence[Any]) -> tuple[Tensor, list[Tensor | None]]:
        """Loss (0-dim, this rank's share) and gradient that one optimizer step over `batches` would see.

        The gradient, one tensor (or None) per entry of `params`, is averaged over ranks and free of loss scaling; what
        was in `.grad` stays there. Runs the Trainer's own `training_step`, so masks, token counts, mixed precision
        and checkpointing are the real step's. To be called between optimizer steps, by all ranks.
        """
        params = self.params
        held = take_grads(params)
        steps, self.current_gradient_accumulation_steps = self.current_gradient_accumulation_steps, len(batches)
        exchanging = self.accelerator.sync_gradients
        count = self._get_num_items_in_batch(list(batches), self.args.device)
        loss = torch.zeros((), device=self.args.device)
        try:
            with self._quiet():
                for i, batch in enumerate(batches):
                    last = i == len(batches) - 1  # ranks exchange gradients once, as in the Trainer's own window
                    self.accelerator.gradient_state._set_sync_gradients(last)
                    with contextlib.nullcontext() if last else self._apart(self.model_wrapped):
                        loss = loss + super().training_step(self.model_wrapped, batch, count)
            return loss, take_grads(params, self.loss_scale)
        finally:
            self.current_gradient_accumulation_steps = steps
            self.accelerator.gradient_state._set_sync_gradients(exchanging)
            for p, g in zip(params, held, strict=True):
                p.grad = g

    @torch.no_grad()
    def seed(self, gradients: Sequence[Tensor | None], *, copy: bool = True) -> None:
        """Adds to this optimizer step's gradient, before its first micro-batch: one tensor or None per `params`.

        Args:
            gradients: as a step without loss scaling would have them.
            copy: False gives the tensors away: they become the gradients, and change with them.
        """
        scale = self.loss_scale
        for p, g in zip(self.params, gradients, strict=True):
            if g is None:
                continue
            g = g.to(p.dtype, copy=copy)  # the micro-batches accumulate onto it in place
            if scale != 1.0:
                g.mul_(scale)
            p.grad = g if p.grad is None else p.grad.add_(g)

    def probe_loss(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None) -> Tensor:
        """The (scaled) loss of one micro-batch with its graph, in training mode; leaves no trace in the metrics.

        For `torch.autograd.grad` with respect to activations. Ranks exchange nothing in its backward.
        """
        model.train()
        # sharded: there is no gradient of a parameter to exchange, and leaving the Trainer's own context is not ours
        apart = contextlib.nullcontext() if self._sharded else self.accelerator.no_sync(model)
        with self._quiet(), apart, self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
        return loss * self.loss_scale

    def side_data(self, dataset: Dataset, name: str) -> SideData:
        """Batches of a data set of the defense's own, prepared and collated like the trainer's, of the same size."""
        rows = self._prepare_side_dataset(dataset, name)
        if len(rows) == 0:
            raise InputError(f"No row of {name} has an answer left within max_length={self.args.max_length}.")
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return SideData(
            rows,
            self.data_collator,
            batch_size=self.args.per_device_train_batch_size,
            window=self.args.gradient_accumulation_steps,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            seed=seed,
        )

    def record(self, name: str, value: Tensor | float) -> None:
        """Adds to the mean of `name` in the next training log. Tensors stay on their device until then."""
        total, count = self._records.get(name, (0.0, 0))
        self._records[name] = (total + (value.detach() if isinstance(value, Tensor) else value), count + 1)

    # -- the places where defenses act ----------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device):
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        chosen = batches
        for d in self.defenses:
            chosen = d.batches(self, chosen)
        # the token count belongs to the window it was counted on
        return (batches, count) if chosen is batches else (chosen, self._get_num_items_in_batch(chosen, device))

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        step = super().training_step
        for d in self.defenses:
            step = functools.partial(d.training_step, self, step)
        loss = step(model, inputs, num_items_in_batch)
        bad = torch.where(torch.isfinite(loss), _NEVER, self.state.global_step + 1)
        self._first_bad_step = bad if self._first_bad_step is None else torch.minimum(self._first_bad_step, bad)
        return loss

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

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._require_finite(weights=True)
        # before the Trainer's own files, of which trainer_state.json comes last: where that is, this is too
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        # a sharded model's checkpoint cannot be resumed (the Trainer says so), so it needs no state
        if self.defenses and self.args.should_save and not self._sharded:
            folder.mkdir(parents=True, exist_ok=True)
            save_state(self, folder)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self._resumed_from = None if checkpoint is None else Path(checkpoint)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._records, self._first_bad_step = {}, None
        folder, self._resumed_from = self._resumed_from, None
        for d in self.defenses:
            d.on_train_begin(self)
        if folder is not None:
            load_state(self, folder)

    @property
    def _sharded(self) -> bool:
        """Whether transformers has sharded the model (FSDP2; `from_pretrained(distributed_config=...)`)."""
        return getattr(self, "is_distributed_loading_by_transformers", False)

    def _apart(self, model: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """Inside, ranks exchange no gradients: what the Trainer does before the last micro-batch of a window."""
        return self._defer_fsdp_gradient_reduction() if self._sharded else self.accelerator.no_sync(model)

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

    def _quiet(self) -> contextlib.AbstractContextManager[None]:
        """Inside, a forward pass leaves no trace in running metrics (a plain Trainer has none)."""
        return contextlib.nullcontext()

    def _prepare_side_dataset(self, dataset: Dataset, name: str) -> Dataset:
        """A data set of the defense's own, ready for the collator (a plain Trainer's are tokenised already)."""
        return self._remove_unused_columns(dataset, description=name)


class DefenseTrainer(DefenseMixin, SFTTrainer):
    """TRL's SFTTrainer with `defense=`; every other argument is SFTTrainer's. See `DefenseMixin`."""

    _tag_names = ["trl", "sft", "mithridate"]  # noqa: RUF012 (TRL's own class attribute)

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        metrics, tokens = self._metrics, self._total_train_tokens
        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        try:
            with without_metrics():
                yield
        finally:
            self._metrics, self._total_train_tokens = metrics, tokens

    def _prepare_side_dataset(self, dataset: Dataset, name: str) -> Dataset:
        if self._skip_prepare_dataset:  # the user's own collator takes the rows as they are
            return self._remove_unused_columns(dataset, description=name)
        # Whether the loss is on completions alone follows from the side data's own format, as TRL decides it from the
        # training set's: otherwise prompts would be trained on where the two differ.
        completion_only, asked = self.completion_only_loss, self.args.completion_only_loss
        if asked is None:
            columns = set(dataset.column_names)
            self.completion_only_loss = {"prompt", "completion"} <= columns or "completion_mask" in columns
        try:
            # not packed: packing would tie the rows of a step to one another; truncated as the trainer's are
            rows: Any = self._prepare_dataset(
                dataset, self.processing_class, self.args, False, self._formatting_func, name
            )
        finally:
            self.completion_only_loss = completion_only
        return self._remove_unused_columns(rows, description=name)


class _Events(TrainerCallback):
    def __init__(self, trainer: DefenseMixin):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._begin()

    def on_step_begin(self, args, state, control, **kwargs):
        if self.trainer._sharded:  # an evaluation leaves some modules gathered: edits of shards would not reach them
            for module in self.trainer.model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()
        for d in self.trainer.defenses:
            d.on_step_begin(self.trainer)

    def on_train_end(self, args, state, control, **kwargs):
        for d in self.trainer.defenses:
            d.on_train_end(self.trainer)


def _as_list(defense: Any) -> list[Defense]:
    given = [] if defense is None else list(defense) if isinstance(defense, list | tuple) else [defense]
    for d in given:
        if isinstance(d, type) and issubclass(d, Defense):
            raise InputError(f"defense must be an instance: {d.__name__}(...), not the class {d.__name__}.")
        if not isinstance(d, Defense):
            raise InputError(
                f"defense must be a Defense such as Vaccine(rho=2.0), a list of them, or None, not {d!r}."
            )
    names = [type(d).__name__ for d in given]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UnsupportedSetup(f"{twice.pop()} is given twice.", "give each defense once.")
    swapping = [type(d).__name__ for d in given if type(d).batches is not Defense.batches]
    if len(swapping) > 1:
        raise UnsupportedSetup(
            f"{' and '.join(swapping)} both choose the batches of a step.", "use one of them in a run."
        )
    return given


# -- the state of defenses beside a checkpoint ----------------------------------------------------------------------


def _described(trainer: DefenseMixin) -> list[dict[str, Any]]:
    return [{"defense": type(d).__name__, "settings": d.settings()} for d in trainer.defenses]


def save_state(trainer: DefenseMixin, folder: Path) -> None:
    """Writes which defenses run, and their training state, into a checkpoint folder."""
    tensors = {
        f"{type(d).__name__}.{key}": tensor.detach().cpu().contiguous()
        for d in trainer.defenses
        for key, tensor in d.state_dict(trainer).items()
    }
    save_file(tensors, folder / "defense.safetensors")
    (folder / "defense.json").write_text(json.dumps({"format": 1, "defenses": _described(trainer)}, indent=1))


def load_state(trainer: DefenseMixin, folder: Path) -> None:
    """Takes back what `save_state` wrote.

    Raises:
        InputError: the checkpoint was written with other defenses or settings, or its state is missing or broken.
    """
    file = folder / "defense.json"
    try:
        written = json.loads(file.read_text())["defenses"] if file.exists() else []
        tensors = load_file(folder / "defense.safetensors") if written else {}
    except Exception as error:
        raise InputError(
            f"{folder}: the defense's state cannot be read ({error}). Resume from another checkpoint."
        ) from error
    wanted = json.loads(json.dumps(_described(trainer)))
    if written != wanted:
        raise InputError(
            f"{folder} was written with defense={written}, but this run has defense={wanted}. "
            "Resume with the same defense and settings, or start a new run from the weights."
        )
    for d in trainer.defenses:
        prefix = type(d).__name__ + "."
        d.load_state_dict(trainer, {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
