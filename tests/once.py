"""What the libraries work out anew for each trainer, half the time of a run of a few steps: here, once a process."""

import copy
import functools
from dataclasses import fields
from typing import Any

import accelerate.utils.imports
from datasets import Dataset
from transformers import TrainingArguments
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from trl import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

# -- the tokenised rows -----------------------------------------------------------------------------------------------

# What TRL adds to the training arguments says how rows are prepared; the seed shuffles them before they are packed.
_ASKED = sorted({f.name for f in fields(SFTConfig)} - {f.name for f in fields(TrainingArguments)} | {"seed"})
_prepare = SFTTrainer._prepare_dataset
_prepared: dict[tuple[str, ...], Dataset] = {}


@functools.wraps(_prepare)
def _prepare_once(self: Any, dataset: Any, processing_class: Any, args: Any, packing: Any, formatting_func: Any, name):
    """TRL's own result for the same rows (by `datasets`' fingerprint), tokenizer and arguments."""
    fast = isinstance(processing_class, PreTrainedTokenizerBase) and processing_class.is_fast
    if not (isinstance(dataset, Dataset) and fast and formatting_func is None):
        return _prepare(self, dataset, processing_class, args, packing, formatting_func, name)
    template = processing_class.chat_template
    tokenizer = (type(processing_class), processing_class.backend_tokenizer.to_str(), processing_class, template)
    asked = [(field, getattr(args, field)) for field in _ASKED]
    key = (
        dataset._fingerprint,
        *map(repr, (tokenizer, self.chat_template, self.completion_only_loss, asked, packing)),
    )
    if key not in _prepared:
        _prepared[key] = _prepare(self, dataset, processing_class, args, packing, formatting_func, name)
    return copy.copy(_prepared[key])


SFTTrainer._prepare_dataset = _prepare_once


# -- whether a package is there ---------------------------------------------------------------------------------------

_look = accelerate.utils.imports._is_package_available
_there: set[str] = set()


@functools.wraps(_look)
def _look_once(pkg_name: str, metadata_name: str | None = None) -> bool | None:
    """Accelerate reads a package's metadata at each question. What is missing may be so for a test's sake only."""
    if (key := f"{pkg_name} {metadata_name}") in _there:
        return True
    found = _look(pkg_name, metadata_name)
    if found:
        _there.add(key)
    return found


accelerate.utils.imports._is_package_available = _look_once
