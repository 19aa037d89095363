"""The Trainer that runs defenses: `DefenseTrainer` is TRL's SFTTrainer with one more argument, `defense`.

    rows -> get_batch_samples -> on_step_begin -> (training_step: forward, loss) x M -> on_gradients -> clip -> step
            (which batches)      (seed .grad)      (shift)               (a term)      (see, replace)     on_step_end

A gradient seeded into `.grad` before the window's micro-batches is accumulated onto by them; one that is replaced
after the last of them is what is clipped and stepped. So terms enter once per optimizer step whatever the
accumulation; clipping, mixed precision, data parallelism and logging stay the Trainer's; and the last forward and
backward is always its own `training_step`.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback
from trl.trainer import utils as trl_utils
from trl.trainer.sft_trainer import SFTTrainer

from mithridate.errors import InputError, MithridateError, UnsupportedSetup
from mithridate.methods.defense import Defense, acts, arguments_of
from mithridate.rows import trainable
from mithridate.training.activations import ActivationShifts, adapters_off, find_sites
from mithridate.training.cpu_head import without_metrics
from mithridate.training.gradients import global_norm, take_grads
from mithridate.training.outputs import KINDS, Capture, Outputs
from mithridate.training.quantised import adapters_kept
from mithridate.training.setups import compiled, refuse_unreachable_places, refuse_untested, refuse_wrong_training
from mithridate.training.side_data import SideData, refuse_empty_rows, require_labels
from mithridate.training.state import load_state, refuse_inexact_resume, save_state
from mithridate.training.weights import Weights

if TYPE_CHECKING:
    from datasets import IterableDataset
    from peft import PeftConfig, PeftModel
    from transformers import (
        BitsAndBytesConfig,
        EvalPrediction,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        TrainingArguments,
    )
    from trl import SFTConfig

    from mithridate.rows import Rows

_Trainer: Any = object  # for type checkers: the mixin uses a Trainer's attributes without being one

_NEVER = torch.iinfo(torch.int64).max

Loss = Callable[[nn.Module, Any, "Tensor | int | None"], Tensor]
"""(model, inputs, num_items_in_batch) -> 0-dim loss of one micro-batch; see `Defense.loss` for the division."""


class DefenseMixin(_Trainer):
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
        if isinstance(self, SFTTrainer) and not isinstance(self, DefenseTrainer):
            raise UnsupportedSetup(
                f"{type(self).__name__}: DefenseMixin alone does not know how SFTTrainer prepares data and counts "
                "tokens.",
                "put DefenseTrainer in its place: class T(DefenseTrainer, YourSFTTrainer).",
            )
        args, kwargs = self._before(*self._arguments(args, kwargs))
        with adapters_kept(type(self), kwargs.get("model", args[0] if args else None)):
            super().__init__(*args, **kwargs)
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
    def window(self) -> list[Any]:
        """The micro-batches of the optimizer step at hand, as they are trained on; until `on_step_end` returns."""
        return list(self._window)

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
        """Whether the optimizer step at hand is logged (with logging by epochs: may be): when to take what is dear to
        measure."""
        strategy, step = str(getattr(self.args.logging_strategy, "value", self.args.logging_strategy)), self._step
        if strategy == "no":
            return False
        first = step == 1 and self.args.logging_first_step
        return strategy != "steps" or first or step % max(self.state.logging_steps, 1) == 0

    @property
    def _step(self) -> int:
        """The number of the optimizer step at hand, from 1."""
        return self.state.global_step + 1

    def sites(self, selector: str | list[str] = "attention") -> ActivationShifts:
        """The modules, one in each layer, whose outputs a defense looks at or shifts; see `find_sites`.

        Raises:
            UnsupportedSetup: the model has no such modules.
        """
        found, foreign = find_sites(self.model, selector), adapters_off(self.model)
        if not (self._running and compiled(self)):
            return ActivationShifts(found, foreign)
        shifts = ActivationShifts(found, foreign, standing=True)
        self._standing.append(shifts)
        return shifts

    def rng(self, name: str) -> torch.Generator:
        """A generator on the CPU whose draws are a function of (the run's seed, `name`, the optimizer step) alone, so
        that a resumed run and every rank draw the same."""
        key = hashlib.sha256(f"{self.args.seed} {name} {self.state.global_step}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)

    def gradient(self, batches: Sequence[Any], loss: Loss | None = None) -> tuple[Tensor, list[Tensor | None]]:
        """Loss (0-dim, this rank's share) and gradient that one optimizer step over `batches` would see.

        The gradient, one tensor (or None) per entry of `params`, is averaged over ranks and free of loss scaling; what
        was in `.grad` stays there. Runs the Trainer's own `training_step`, so masks, token counts, mixed precision
        and checkpointing are the real step's. To be called in `on_step_begin` and `on_gradients`, by all ranks.

        Args:
            batches: as `t.window` and `t.side_data` give them.
            loss: another loss than the run's own, called on each micro-batch.
        """
        params = self.params
        held = take_grads(params)
        steps, self.current_gradient_accumulation_steps = self.current_gradient_accumulation_steps, len(batches)
        exchanging = self.accelerator.sync_gradients
        count = self._get_num_items_in_batch(list(batches), self.args.device)
        total = torch.zeros((), device=self.args.device)
        own, self._own_pass, self._asked_loss = self._own_pass, False, loss
        try:
            with self._quiet():
                for i, batch in enumerate(batches):
                    last = i == len(batches) - 1  # ranks exchange gradients once, as in the Trainer's own window
                    self.accelerator.gradient_state._set_sync_gradients(last)
                    with contextlib.nullcontext() if last else self._apart(self.model_wrapped):
                        total = total + super().training_step(self.model_wrapped, batch, count)
            return total, take_grads(params, self.loss_scale)
        finally:
            self._own_pass, self._asked_loss = own, None
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

    def gradients(self) -> list[Tensor | None]:
        """The optimizer step's gradient as it is now, free of loss scaling: a tensor or None per `params`. Not to be
        written to; see `set_gradients`."""
        scale = self.loss_scale
        return [p.grad if p.grad is None or scale == 1.0 else p.grad / scale for p in self.params]

    @torch.no_grad()
    def set_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """Replaces the optimizer step's gradient, in `on_gradients`: one tensor per `params`, in the units of
        `gradients`; where it is None, that parameter is not stepped."""
        scale = self.loss_scale
        for p, g in zip(self.params, gradients, strict=True):
            p.grad = None if g is None else (g if scale == 1.0 else g * scale).to(p.dtype)

    def probe(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None) -> Tensor:
        """The (scaled) loss of one micro-batch with its graph, in training mode; leaves no trace in the metrics.

        For `torch.autograd.grad` with respect to activations. Ranks exchange nothing in its backward.
        """
        model.train()
        self._optimizer_in_training_mode()
        # sharded: there is no gradient of a parameter to exchange, and leaving the Trainer's own context is not ours
        apart = contextlib.nullcontext() if self._sharded else self.accelerator.no_sync(model)
        with self._quiet(), apart, self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
        return loss * self.loss_scale

    probe_loss = probe  # its name before the contract

    @contextlib.contextmanager
    def reference(self) -> Iterator[nn.Module]:
        """Inside, the model is the one that the run started from: in evaluation mode, without gradients.

        For a defense that declares "reference" in `needs`, or a model of kind "start". Costs a copy of the trained
        weights (one more inside, of a rank's shards, where they are sharded), and no passes but those run inside.

        Raises:
            MithridateError: in `Defense.loss`, where the training pass has its graph: `outputs.reference` is there
                for that.
            InputError: no defense of the run declares it.
        """
        if self._past_forward:
            raise MithridateError(
                "t.reference() in a defense's loss: the training pass has run already. Declare needs = "
                '("reference",) and read outputs.reference, which is made before it.'
            )
        with self._quiet(), self._started_from(), torch.no_grad(), self.compute_loss_context_manager():
            yield self.model

    def outputs(self, model: nn.Module, inputs: Mapping[str, Any], needs: Collection[str]) -> Outputs:
        """What a pass of a defense's own computes at the labelled tokens; in the function that `gradient` is given, or
        inside `reference`.

        Args:
            model: as that function is given it, or as `reference` yields it.
            inputs: a batch with labels.
            needs: "logits", "hidden_states"; log-probabilities are always there.
        """
        inputs = dict(inputs) | ({"output_hidden_states": True} if "hidden_states" in needs else {})
        graph = torch.is_grad_enabled()
        with self._captured(model).asked(needs, inputs["labels"], gradients=graph) as capture:
            self._forward(model, inputs)
            return capture.outputs()  # here, where the head is the start model's too

    def _captured(self, model: nn.Module) -> Capture:
        plain = self.accelerator.unwrap_model(model)
        if not compiled(self):
            return Capture(plain)
        made = next((one for one in self._standing if isinstance(one, Capture)), None)
        if made is None:
            made = Capture(plain, standing=True)
            self._standing.append(made)
        return made

    def weights(self, name: str) -> Mapping[str, Tensor]:
        """The tensors, on the CPU and by name, of a model that a defense declares in `models`; read when asked for.

        Raises:
            InputError: no defense of the run declares a model of that name, or two declare different ones.
        """
        kinds = {d.models[name] for d in self.defenses if name in d.models}
        if len(kinds) != 1:
            what = f"is declared as {' and as '.join(sorted(kinds))}" if kinds else "is declared by no defense"
            raise InputError(f"t.weights({name!r}): the model {what} of this run (Defense.models).")
        [kind] = kinds
        return Weights(self._start_weights if kind == "start" else self._models[kind])

    def side_data(self, dataset: Any, name: str, batch_size: int | None = None, replicated: bool = False) -> SideData:
        """Batches of a data set of the defense's own, prepared and collated like the trainer's.

        Args:
            dataset: rows in any form of `mithridate.rows`, or that the trainer takes.
            name: the field that they come from, for errors.
            batch_size: rows of a micro-batch; the trainer's own if not given.
            replicated: whether every rank gets the same rows; else each gets its share.

        Raises:
            InputError: rows that the trainer cannot use, or none with a label, naming the field and the row.
        """
        if name not in self._side_rows or self._side_rows[name][0] is not dataset:
            self._side_rows[name] = (dataset, self._prepared(self._readable(dataset, name), name))
        rows = self._side_rows[name][1]
        return SideData(
            rows,
            self.data_collator,
            batch_size=batch_size or self.args.per_device_train_batch_size,
            window=self.args.gradient_accumulation_steps,
            rank=0 if replicated else self.accelerator.process_index,
            world_size=1 if replicated else self.accelerator.num_processes,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )

    def record(self, name: str, value: Tensor | float) -> None:
        """Adds to the mean of `name` in the next training log. Tensors stay on their device until then."""
        total, count = self._records.get(name, (0.0, 0))
        self._records[name] = (total + (value.detach() if isinstance(value, Tensor) else value), count + 1)

    def refuse_untested(self, name: str) -> None:
        """Raises UnsupportedSetup, in the name of a defense, for a set-up that no defense was tested with."""
        refuse_untested(self, name)

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

    def _reshard(self) -> None:
        """Of sharded modules, those that an evaluation left gathered: edits of shards would not reach them."""
        if self._sharded:
            for module in self.model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

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
        if "labels" not in inputs:
            names = ", ".join(type(d).__name__ for d in terms)
            raise UnsupportedSetup(
                f"{names}: adds a term at labelled tokens, and the batches of {type(self).__name__} have no labels.",
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

    @contextlib.contextmanager
    def _started_from(self) -> Iterator[None]:
        """Inside, the trained weights are those at the start, in evaluation mode."""
        if self._start is None:
            raise InputError(
                't.reference(): no defense of this run declares needs = ("reference",) or a model of kind "start", so '
                "the weights at the start were not kept."
            )
        params = self.params
        modes = [(m, m.training) for m in self.model.modules()]
        # sharded weights are gathered from memory of FSDP's own, so these are written to
        held = [p.detach().clone() if self._sharded else p.data for p in params]
        try:
            self._put(params, self._start)
            self.model.eval()
            yield
        finally:
            self._put(params, held)
            for module, mode in modes:
                module.training = mode

    @torch.no_grad()
    def _put(self, params: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
        for p, value in zip(params, values, strict=True):
            if self._sharded:
                p.copy_(value)
            else:
                p.data = value.to(p.device)
        self._reshard()  # what is gathered is of other weights

    def _start_weights(self) -> Mapping[str, Tensor]:
        kept = dict(zip(self.param_names, self._start or (), strict=True))
        return self.model.state_dict() | kept

    def _reference_outputs(self, inputs: Any, needs: set[str]) -> Outputs:
        with self.reference() as model:
            return self.outputs(model, inputs, needs - {"reference"})

    # -- inside -----------------------------------------------------------------------------------------------------

    @property
    def _sharded(self) -> bool:
        """Whether the weights are sharded (FSDP2): by transformers as it loads them, or by Accelerate's plugin as the
        training begins."""
        return self._sharded_on_load or self.sharded_by_plugin

    @property
    def _sharded_on_load(self) -> bool:
        """Whether transformers has sharded the model (`from_pretrained(distributed_config=...)`)."""
        return getattr(self, "is_distributed_loading_by_transformers", False)

    def _apart(self, model: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """Inside, ranks exchange no gradients: what the Trainer does before the last micro-batch of a window."""
        return self._defer_fsdp_gradient_reduction() if self._sharded_on_load else self.accelerator.no_sync(model)

    def _optimizer_in_training_mode(self) -> None:
        """Optimizers that keep other weights for evaluation (schedule-free) put back those that they train."""
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()

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

    def _prepared(self, dataset: Dataset, name: str) -> Any:
        refuse_empty_rows(dataset, name)
        try:
            rows = self._prepare_side_dataset(dataset, name)
        except (KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{name}: the trainer cannot use these rows ({type(error).__name__}: {error}). They have the columns "
                f"{', '.join(dataset.column_names)}; give them prompt and completion, messages, or text, as the "
                "training set's rows may have."
            ) from error
        if len(rows) == 0:
            raise InputError(f"No row of {name} has an answer left within max_length={self.args.max_length}.")
        require_labels(rows, name)
        return rows

    def _quiet(self) -> contextlib.AbstractContextManager[None]:
        """Inside, a forward pass leaves no trace in running metrics (a plain Trainer has none)."""
        return contextlib.nullcontext()

    def _forward(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """One pass of a model that gives log-probabilities or logits at the labels."""
        return model(**inputs)

    def _readable(self, rows: Any, name: str) -> Any:
        """Rows as the trainer reads them (a plain Trainer's are a data set already)."""
        return rows

    def _prepare_side_dataset(self, dataset: Dataset, name: str) -> Any:
        """A data set of the defense's own, ready for the collator (a plain Trainer's are tokenised already)."""
        return self._remove_unused_columns(dataset, description=name)


class DefenseTrainer(DefenseMixin, SFTTrainer):
    """TRL's SFTTrainer with `defense=`; every other argument is SFTTrainer's. See `DefenseMixin`.

    `train_dataset`, `eval_dataset` and the defenses' own data sets may have any form of `mithridate.rows`: a list of
    records or a DataFrame too, and `prompt` with `response`.
    """

    _tag_names = ["trl", "sft", "mithridate"]  # noqa: RUF012 (TRL's own class attribute)

    if TYPE_CHECKING:

        def __init__(
            self,
            model: str | PreTrainedModel | PeftModel,
            args: SFTConfig | TrainingArguments | None = None,
            data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
            train_dataset: Rows | IterableDataset | None = None,
            eval_dataset: Rows | IterableDataset | Mapping[str, Rows | IterableDataset] | None = None,
            processing_class: PreTrainedTokenizerBase | None = None,
            compute_loss_func: Callable[..., Any] | None = None,
            compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
            callbacks: list[TrainerCallback] | None = None,
            optimizers: tuple[Any, Any] = (None, None),
            optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
            preprocess_logits_for_metrics: Callable[..., Tensor] | None = None,
            quantization_config: BitsAndBytesConfig | None = None,
            peft_config: PeftConfig | None = None,
            formatting_func: Callable[[dict[str, Any]], str] | None = None,
            *,
            defense: Defense | Sequence[Defense] | None = None,
            models: Mapping[str, Any] | None = None,
        ) -> None: ...

    else:  # what a notebook shows of it

        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)

        __init__.__signature__ = inspect.Signature(
            [
                *inspect.signature(SFTTrainer.__init__).parameters.values(),
                inspect.Parameter("defense", inspect.Parameter.KEYWORD_ONLY, default=None),
                inspect.Parameter("models", inspect.Parameter.KEYWORD_ONLY, default=None),
            ]
        )

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if kwargs.get("formatting_func"):  # which reads the rows as they are
            return args, kwargs
        names = [*inspect.signature(super(DefenseMixin, self).__init__).parameters, *[""] * len(args)]
        read = {name: _readable(name, value) for name, value in kwargs.items()}
        return tuple(_readable(name, value) for name, value in zip(names, args)), read

    def _readable(self, rows: Any, name: str) -> Any:
        return trainable(rows, name)

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        metrics, tokens = self._metrics, self._total_train_tokens
        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        try:
            with without_metrics():
                yield
        finally:
            self._metrics, self._total_train_tokens = metrics, tokens

    def _forward(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        fused = {"fused_lm_head": True} if hasattr(trl_utils, "add_fused_lm_head") else {}
        return model(**inputs, **fused)

    def _prepare_side_dataset(self, dataset: Dataset, name: str) -> Any:
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


def _readable(name: str, value: Any) -> Any:
    """An argument of a trainer, where it is a data set, or splits of one, as TRL reads it."""
    if name not in ("train_dataset", "eval_dataset") or value is None:
        return value
    if isinstance(value, dict):
        return {split: trainable(part, f"{name}[{split!r}]") for split, part in value.items()}
    return trainable(value, name)


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
