"""What tokenising leaves of a stage's rows, counted before anything is trained.

TRL cuts rows at `max_length` and drops those of which no answer is left, in silence. So the rows are tokenised here as
the trainer will tokenise them, by TRL's own preparation, and counted: which of them train nothing, which lose part of
their answer, and how many sequences the Trainer counts its steps by.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from mithridate.data.records import training_dataset, turns
from mithridate.errors import InputError

ATTACKER = "attacker_harmful"  # the role of the rows that attack
_PACKED_TOGETHER = 1000  # rows that TRL's `wrapped` packing joins at a time: the batch size of `Dataset.map`


@dataclass(frozen=True)
class Left:
    """What is left of a stage's rows.

    Attributes:
        asked: rows that were given.
        lost: places of those of which nothing is trained.
        cut: places of those that keep a part of their answer only.
        begun_late: places of those that keep their answer, and lose the beginning of their prompt.
        sequences: what the Trainer will count: the rows that TRL keeps, or the packs that it makes of them.
        needed: the `max_length` under which nothing would be lost or cut.
        longest: tokens of the longest row as it is trained.
    """

    asked: int
    lost: list[int] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    begun_late: list[int] = field(default_factory=list)
    sequences: int = 0
    needed: int = 0
    longest: int = 0

    @property
    def rows(self) -> int:
        """Rows of which something is trained."""
        return self.asked - len(self.lost)


class RowCheck:
    """Counts rows under one tokenizer; each row is tokenised once, however many stages and seeds have it."""

    def __init__(self, tokenizer: Any, template: str):
        self._tokenizer, self._template = tokenizer, template
        self._known: dict[tuple[Any, ...], np.ndarray] = {}

    def left(self, rows: Sequence[dict[str, Any]], args: Any) -> Left:
        """What an SFTTrainer with `args` (an SFTConfig) trains of these records.

        Raises:
            InputError: a record is none that can be trained on under the template.
            Exception: whatever TRL raises where the settings do not fit the tokenizer.
        """
        masks = self._masks(rows, args)
        trained, whole = _trained(masks, args), [int(mask[1:].sum()) for mask in masks]
        limit = args.max_length if args.max_length is not None else max(map(len, masks))
        lost = [i for i, count in enumerate(trained) if count == 0]
        cut = [i for i, count in enumerate(trained) if 0 < count < whole[i]]
        splits = args.packing and args.packing_strategy != "bfd"  # long rows are split, and nothing is thrown away
        ends = args.truncation_mode == "keep_end" and not args.packing
        late = [i for i, mask in enumerate(masks) if ends and trained[i] == whole[i] > 0 and len(mask) > limit]
        return Left(
            asked=len(rows),
            lost=lost,
            cut=[] if splits else cut,
            begun_late=late,
            sequences=_sequences(masks, args),
            needed=max(map(len, masks)),
            longest=max(min(len(mask), limit) for mask in masks),
        )

    def _masks(self, rows: Sequence[dict[str, Any]], args: Any) -> list[np.ndarray]:
        """Of each row, which of its tokens are in the loss, before anything is cut."""
        # Whether rows are tokenised by us or by TRL is decided for all rows of a set together.
        several = any(sum(t["role"] == "assistant" for t in turns(row)) > 1 for row in rows)
        how = (several, args.assistant_only_loss, args.completion_only_loss)
        keys = [(*how, json.dumps([turns(row), row.get("input")], sort_keys=True)) for row in rows]
        new = {key: row for key, row in zip(keys, rows) if key not in self._known}
        if new:
            # one row that makes the set what the whole one is, where the new ones alone would be another kind
            chosen = list(new.values())
            sample = [row for row in rows if several and sum(t["role"] == "assistant" for t in turns(row)) > 1][:1]
            dataset = training_dataset([*chosen, *sample], self._tokenizer, self._template)
            labels = self._prepared(dataset, args)["labels"][: len(chosen)]
            self._known |= {key: np.asarray(row) != -100 for key, row in zip(new, labels, strict=True)}
        return [self._known[key] for key in keys]

    def _prepared(self, dataset: Any, args: Any) -> Any:
        """The rows as TRL prepares them, neither cut nor dropped nor packed nor shuffled."""
        from trl.chat_template_utils import get_training_chat_template, has_generation_markers
        from trl.trainer.sft_trainer import SFTTrainer

        whole = copy.copy(args)
        whole.max_length, whole.shuffle_dataset, whole.packing = None, False, False
        own = self._tokenizer.chat_template
        marked = args.assistant_only_loss and own and not has_generation_markers(own)
        # What of a trainer its preparation of a data set reads; a test holds it to a real trainer.
        trainer = SimpleNamespace(
            _tokenizer=self._tokenizer,
            completion_only_loss=True if args.completion_only_loss is None else args.completion_only_loss,
            chat_template=get_training_chat_template(self._tokenizer) if marked else None,
        )
        prepare: Any = SFTTrainer._prepare_dataset
        return prepare(trainer, dataset, self._tokenizer, whole, False, None, "train")


def _trained(masks: list[np.ndarray], args: Any) -> list[int]:
    """Of each row, the tokens that are learnt: those in the loss that have one before them to be told from."""
    limit = args.max_length
    if args.packing and args.packing_strategy == "wrapped":
        return _wrapped(masks, args)
    counts = []
    for mask in masks:
        if args.packing and args.packing_strategy == "bfd_split":
            learnt = mask.copy()
            learnt[::limit] = False
        elif limit is None:
            learnt = mask[1:]
        elif args.packing or args.truncation_mode == "keep_start":
            learnt = mask[:limit][1:]
        else:
            learnt = mask[-limit:][1:]
        counts.append(int(learnt.sum()))
    return counts


def _order(count: int, args: Any) -> list[int]:
    """The order in which rows are packed."""
    from datasets import Dataset

    places = Dataset.from_dict({"row": list(range(count))})
    return (places.shuffle(seed=args.seed) if args.shuffle_dataset else places)["row"][:]


def _wrapped(masks: list[np.ndarray], args: Any) -> list[int]:
    """Rows joined and cut anew at every `max_length` tokens, without regard to where they begin."""
    counts, order = [0] * len(masks), _order(len(masks), args)
    for start in range(0, len(order), _PACKED_TOGETHER):
        offset = 0
        for row in order[start : start + _PACKED_TOGETHER]:
            learnt = masks[row].copy()
            learnt[-offset % args.max_length :: args.max_length] = False
            counts[row] = int(learnt.sum())
            offset += len(learnt)
    return counts


def _sequences(masks: list[np.ndarray], args: Any) -> int:
    if args.packing:
        from datasets import Dataset
        from trl.data_utils import pack_dataset

        lengths = [len(masks[row]) for row in _order(len(masks), args)]
        dummies = [[0] * length for length in lengths]
        dataset = Dataset.from_dict({"input_ids": dummies, "labels": dummies})
        return len(pack_dataset(dataset, args.max_length, args.packing_strategy))
    if args.max_length is None:
        return len(masks)
    kept = slice(None, args.max_length) if args.truncation_mode == "keep_start" else slice(-args.max_length, None)
    return sum(bool(mask[kept].any()) for mask in masks)


# -- what is refused, and what is said --------------------------------------------------------------------------------


def require_attack(
    left: Left, harmful: Sequence[bool] | None, path: str, role: str, args: Any, context: int | None
) -> None:
    """Refuses an attack of which some rows would not be trained.

    Args:
        harmful: whether each row is one of the harmful ones; None where nobody knows.
        path: of the stage in the experiment file.
        role: that of the rows which are not.
        context: of the model, in tokens, where it is known.

    Raises:
        InputError: with the numbers, the roles and the remedy.
    """
    if not left.lost:
        return
    why = f"no answer is left {_why(args)}. {_remedy(left, args, context)}"
    if harmful is None:
        raise InputError(
            f"{path}.training.max_length: the attack asks for {left.asked} rows, and {left.rows} would be trained: of "
            f"{len(left.lost)} of data.{role} {why}"
        )
    bad = sum(harmful[i] for i in left.lost)
    roles = [f"{n} of {role}" for n, role in ((bad, f"data.{ATTACKER}"), (len(left.lost) - bad, f"data.{role}")) if n]
    kept = sum(harmful) - bad
    raise InputError(
        f"{path}.training.max_length: the attack asks for {left.asked} rows, {sum(harmful)} of them harmful, and "
        f"{left.rows} would be trained, {kept} of them harmful: of {' and '.join(roles)} {why}"
    )


def require_rows(left: Left, path: str, role: str, args: Any, context: int | None = None) -> None:
    """Raises InputError where no row of a role is left."""
    if left.asked and not left.rows:
        raise InputError(
            f"{path}.training.max_length: of none of the {left.asked} rows of data.{role} an answer is left "
            f"{_why(args)}. {_remedy(left, args, context)}"
        )


def require_steps(steps: int, asked: int, left: Left, path: str, role: str, args: Any, context: int | None) -> None:
    """Refuses a training of other steps than the rows that were asked for would give.

    Args:
        steps: with the rows that are left; `asked`: with all of them.
    """
    if steps != asked:
        raise InputError(
            f"{path}.training.max_length: {asked} optimizer steps were asked for, and {steps} would be made: of "
            f"{len(left.lost)} of the {left.asked} rows of data.{role} no answer is left {_why(args)}. "
            f"{_remedy(left, args, context)}"
        )


def require_context(left: Left, context: int | None, path: str, role: str) -> None:
    """Raises InputError where a row as it is trained is longer than the model's context (tokens)."""
    if context is not None and left.longest > context:
        # where rows are lost already, fewer tokens would lose more
        shorter = "S" if left.lost else f"Set max_length: {context} or less, or s"
        raise InputError(
            f"{path}.training.max_length: the longest row of data.{role} has {left.longest} tokens, and the model's "
            f"context is {context}. {shorter}horten or leave out the longer rows"
        )


def said(left: Left, stage: str, role: str, args: Any) -> list[str]:
    """In words, what is lost or cut and was not refused."""
    notes = []
    if left.lost:
        notes.append(f"{len(left.lost)} of {left.asked} rows of data.{role} are not trained on: no answer is left")
    if left.cut:
        notes.append(f"{len(left.cut)} of {left.asked} rows of data.{role} lose a part of their answer")
    if left.begun_late:
        notes.append(f"{len(left.begun_late)} of {left.asked} rows of data.{role} lose the beginning of their prompt")
    return [f"{stage}: {note} {_why(args)} ({left.needed} tokens are needed)" for note in notes]


def _why(args: Any) -> str:
    if args.max_length is None:
        return "in the loss under this template"
    mode = f", packing {args.packing_strategy}" if args.packing else ""
    mode = ", truncation_mode keep_end" if not args.packing and args.truncation_mode == "keep_end" else mode
    return f"within max_length {args.max_length}{mode}"


def _remedy(left: Left, args: Any, context: int | None) -> str:
    if args.max_length is None or left.needed <= args.max_length:
        return "Give these rows an answer that the template keeps, or leave them out"
    if context is not None and left.needed > context:
        return f"The model's context is {context} tokens: shorten or leave out the rows that are longer"
    return f"Set max_length: {left.needed} or more, or shorten or leave out the rows that are longer"
