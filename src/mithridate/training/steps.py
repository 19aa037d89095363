"""How many optimizer steps a run takes, before a Trainer has computed it (which it does when training starts)."""

from __future__ import annotations

from typing import Any

from mithridate.errors import UnsupportedSetup
from mithridate.methods.steps import optimizer_steps


def steps_of(args: Any, rows: int | None) -> int:
    """The optimizer steps of a run over `rows` prepared examples (None: a stream, which has max_steps), by its
    TrainingArguments."""
    return args.max_steps if rows is None else optimizer_steps(vars(args), rows, args.world_size)


def steps_ahead(args: Any, rows: int | None, who: str) -> int:
    """The same of rows that are not prepared yet; `who` asks, for the error.

    Raises:
        UnsupportedSetup: it is not known before they are (a stream, packing).
    """
    if args.max_steps <= 0 and (rows is None or getattr(args, "packing", False)):
        raise UnsupportedSetup(
            f"{who}: the training set is {'a stream' if rows is None else 'packed'}, so how many steps the run takes "
            "is not known before it.",
            "set max_steps.",
        )
    return steps_of(args, rows)


def with_steps_kept(args: Any, rows: int | None, who: str) -> Any:
    """Arguments under which a run over rows that a defense changes makes as many optimizer steps as without it.

    Where epochs of rows in their given order are asked for, they are left as epochs, of the changed rows: what stands
    last in that order (as the harmful rows of `RetainThenForget` do) is reached by whole passes alone, and a further
    pass would begin with what stands first.

    Args:
        args: a copy, which is changed.
        rows: as they were given; None: a stream.
        who: as of `steps_ahead`.

    Raises:
        UnsupportedSetup: as `steps_ahead`.
    """
    steps = steps_ahead(args, rows, who)
    if not in_given_order(args):
        args.max_steps = steps
    return args


def in_given_order(args: Any) -> bool:
    """Whether rows are trained on in the order in which they were given."""
    sequential = getattr(args, "train_sampling_strategy", None) == "sequential"
    return sequential and not getattr(args, "shuffle_dataset", False)
