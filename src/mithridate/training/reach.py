"""What a defense may use of the run that it acts in: the `t` of `Defense.on_step_begin(t)` and of its other places."""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from mithridate.errors import InputError, MithridateError
from mithridate.methods.defense import Defense
from mithridate.training.activations import ActivationShifts, adapters_off, find_sites
from mithridate.training.gradients import take_grads
from mithridate.training.outputs import Capture, Outputs
from mithridate.training.quantised import without_dropout
from mithridate.training.setups import compiled, refuse_untested
from mithridate.training.side_data import SideData, refuse_empty_rows, require_labels
from mithridate.training.weights import Weights

_Trainer: Any = object  # for type checkers: the mixin uses a Trainer's attributes without being one

Loss = Callable[[nn.Module, Any, "Tensor | int | None"], Tensor]
"""(model, inputs, num_items_in_batch) -> 0-dim loss of one micro-batch; see `Defense.loss` for the division."""


class Reach(_Trainer):
    """The part of `DefenseMixin` that defenses call: parameters and gradients, further passes, the model at the start,
    rows of their own, the log."""

    defenses: list[Defense]
    sharded_by_plugin: bool
    _models: dict[str, Any]
    _records: dict[str, tuple[Any, int]]  # name -> (sum, count) since the last log
    _side_rows: dict[str, tuple[Any, Any]]  # name -> (as given, as prepared)
    _start: list[Tensor] | None  # the trained weights before the first step, where a defense looks back at them
    _window: list[Any]
    _standing: list[ActivationShifts | Capture]  # hooks of a training that is compiled
    _running: bool  # between the beginning and the end of a training
    _own_pass: bool  # the Trainer's own forward is due
    _past_forward: bool
    _asked_loss: Loss | None  # of a further pass

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

    # -- inside -----------------------------------------------------------------------------------------------------

    def _start_weights(self) -> Mapping[str, Tensor]:
        kept = dict(zip(self.param_names, self._start or (), strict=True))
        return self.model.state_dict() | kept

    @contextlib.contextmanager
    def _started_from(self) -> Iterator[None]:
        """Inside, the trained weights are those at the start, in evaluation mode."""
        if self._start is None:
            raise InputError(
                't.reference(): no defense of this run declares needs = ("reference",) or a model of kind "start", so '
                "the weights at the start were not kept."
            )
        params = self.params
        # sharded weights are gathered from memory of FSDP's own, so these are written to
        held = [p.detach().clone() if self._sharded else p.data for p in params]
        try:
            self._put(params, self._start)
            with without_dropout(self.model):
                yield
        finally:
            self._put(params, held)

    @torch.no_grad()
    def _put(self, params: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
        for p, value in zip(params, values, strict=True):
            if self._sharded:
                p.copy_(value)
            else:
                p.data = value.to(p.device)
        self._reshard()  # what is gathered is of other weights

    def _reshard(self) -> None:
        """Of sharded modules, those that an evaluation left gathered: edits of shards would not reach them."""
        if self._sharded:
            for module in self.model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

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

    def _prepared(self, dataset: Dataset, name: str) -> Any:
        refuse_empty_rows(dataset, name)
        try:
            rows = self._prepare_side_dataset(dataset, name)
        except (KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{name}: the trainer cannot use these rows ({type(error).__name__}: {error}). They have the columns "
                f"{', '.join(dataset.column_names)}; {self._wanted_rows()}"
            ) from error
        if len(rows) == 0:
            raise InputError(f"No row of {name} has an answer left within max_length={self.args.max_length}.")
        require_labels(rows, name)
        return rows

    def _wanted_rows(self) -> str:
        columns = ", ".join(getattr(self.train_dataset, "column_names", None) or ())
        return f"give them ready for the collator, as the trainer has prepared the training set: {columns}."

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """Inside, a forward pass leaves no trace in running metrics, where TRL's trainers keep them."""
        kept = {name: getattr(self, name) for name in ("_metrics", "_total_train_tokens") if hasattr(self, name)}
        if "_metrics" in kept:
            self._metrics = {mode: defaultdict(list) for mode in kept["_metrics"]}
        try:
            yield
        finally:
            for name, value in kept.items():
                setattr(self, name, value)

    def _forward(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """One pass of a model that gives log-probabilities or logits at the labels."""
        return model(**inputs)

    def _readable(self, rows: Any, name: str) -> Any:
        """Rows as the trainer reads them (a plain Trainer's are a data set already)."""
        return rows

    def _prepare_side_dataset(self, dataset: Dataset, name: str) -> Any:
        """A data set of the defense's own, ready for the collator (a plain Trainer's are tokenised already)."""
        return self._remove_unused_columns(dataset, description=name)
