"""`DefenseTrainer`: TRL's SFTTrainer with one more argument, `defense`."""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerCallback
from trl.trainer import utils as trl_utils
from trl.trainer.sft_trainer import SFTTrainer

from mithridate.methods.defense import Defense
from mithridate.training.cpu_head import without_metrics
from mithridate.training.mixin import DefenseMixin
from mithridate.training_rows import as_it_is, trainable

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


class DefenseTrainer(DefenseMixin, SFTTrainer):
    """TRL's SFTTrainer with `defense=`; every other argument is SFTTrainer's. See `DefenseMixin`.

    `train_dataset`, `eval_dataset` and the defenses' own data sets may have any form of `mithridate.rows`: a list of
    records or a DataFrame too, and `prompt` with `response`.
    """

    _reads_sft = True
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
        as_read = as_it_is if kwargs.get("formatting_func") else trainable
        names = [*inspect.signature(super(DefenseMixin, self).__init__).parameters, *[""] * len(args)]
        read = {name: _readable(name, value, as_read) for name, value in kwargs.items()}
        return tuple(_readable(name, value, as_read) for name, value in zip(names, args)), read

    def _readable(self, rows: Any, name: str) -> Any:
        return (as_it_is if self._formatting_func else trainable)(rows, name)

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        with super()._quiet(), without_metrics():
            yield

    def _wanted_rows(self) -> str:
        return "give them prompt and completion, messages, or text, as the training set's rows may have."

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


def _readable(name: str, value: Any, as_read: Callable[[Any, str], Any]) -> Any:
    """An argument of a trainer, where it is a data set, or splits of one, as TRL reads it."""
    if name not in ("train_dataset", "eval_dataset") or value is None:
        return value
    if isinstance(value, dict) and name == "eval_dataset":
        return {split: as_read(part, f"{name}[{split!r}]") for split, part in value.items()}
    return as_read(value, name)
