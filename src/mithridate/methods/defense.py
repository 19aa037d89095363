"""What a defense is: a method that acts at named places round the Trainer's own untouched step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mithridate.methods.base import Method

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn

    from mithridate.training.mixin import DefenseMixin
    from mithridate.training.outputs import Outputs


Guard = Callable[[Sequence[Sequence[tuple[str, str]]]], Sequence[str | None]]
"""Says of each row of a training set, given as what is asked and what is said to it turn by turn, whether it is
"harmful" or "safe"; None where it cannot tell."""


@dataclass(kw_only=True)
class Defense(Method):
    """Base of all training-time defenses. Override the places where yours acts; each may use the trainer's verbs.

        arguments          before the trainer exists: the training's arguments
        rows               before the trainer exists: the training set
        batches            the micro-batches of the coming optimizer step (of several defenses, one may choose them)
        on_step_begin      no gradient is there yet: t.gradient, t.seed
        training_step      round one micro-batch's forward and backward: shift the forward
          loss             the training pass's loss and outputs: add a term
        on_gradients       the step's gradient is complete: t.gradients, t.set_gradients
        on_step_end        the optimizer has stepped

    The trainer `t` offers these verbs, and everything a Trainer has: `t.params`, `t.window`, `t.sites`, `t.rng`,
    `t.gradient`, `t.seed`, `t.gradients`, `t.set_gradients`, `t.probe`, `t.reference`, `t.weights`, `t.side_data`,
    `t.record`. The last forward and backward of a step is always the Trainer's own. In a list of defenses each acts
    in the list's order, and sees what the former ones did.
    """

    stage: ClassVar[str] = "alignment"
    needs: ClassVar[Sequence[str]] = ()
    """What `loss` wants to see beside the log-probabilities: "logits", "hidden_states", "reference"."""

    finishes: ClassVar[bool] = False
    """Whether `on_train_end` changes the weights: those of an earlier step are then no model of this method. Of a run
    in several trainings it is asked for at the end of the last one alone (`DefenseMixin.more_follows`)."""

    paired: ClassVar[Sequence[str]] = ()
    """Fields whose rows must have the prompts of the training set."""

    guards: ClassVar[Sequence[str]] = ()
    """Fields that hold a `Guard`, or None. An experiment names a judge of harm there, whose verdicts it has before the
    training begins; in Python, `mithridate.evaluation.guard_of` makes one of a judge."""

    def check(self, t: DefenseMixin) -> None:
        """Refuses what is not supported, when the trainer is built. Extend it with `super().check(t)`.

        Raises:
            UnsupportedSetup: with the reason and a remedy.
        """
        t.refuse_untested(type(self).__name__)

    def least_steps(self) -> int:
        """Optimizer steps below which a run with it is refused."""
        return 1

    def arguments(self, args: Any, rows: int | None) -> Any:
        """The training's arguments, before the trainer exists.

        Args:
            args: TrainingArguments; a copy, which may be changed and returned.
            rows: of the training set as it was given; None: a stream.
        """
        return args

    def rows(self, dataset: Dataset, seed: int) -> Dataset:
        """The training set, before the trainer exists (which tokenises it); tokenised rows may be returned too."""
        return dataset

    @property
    def dropped(self) -> Sequence[int] | None:
        """Of the data set that `rows` was given last, the places of those that it left out, for the run's record of
        what was trained; None: it leaves none out, whatever the rows."""
        return None

    def on_train_begin(self, t: DefenseMixin) -> None:
        """Model and optimizer are ready, no step is done. A resumed run calls `load_state_dict` right after."""

    def batches(self, t: DefenseMixin, batches: list[Any]) -> list[Any]:
        """The micro-batches of the coming optimizer step, as many as were given; `batches` itself leaves them.

        Exclusive: of several defenses in one run, only one may override it. A stream that ends within a step gives
        the rest of the step's micro-batches in a second call; `t.window` then holds the ones before.
        """
        return batches

    def on_step_begin(self, t: DefenseMixin) -> None:
        """Once per optimizer step, before its micro-batches, when there is no gradient yet: the place to `t.seed`."""

    def training_step(
        self,
        t: DefenseMixin,
        step: Callable[[nn.Module, Any, Any], Tensor],
        model: nn.Module,
        inputs: Any,
        num_items_in_batch: Tensor | int | None,
    ) -> Tensor:
        """Forward and backward of one micro-batch. Must end in `step(model, inputs, num_items_in_batch)`, once."""
        return step(model, inputs, num_items_in_batch)

    def loss(
        self,
        t: DefenseMixin,
        loss: Tensor,
        model: nn.Module,
        inputs: Any,
        outputs: Outputs,
        num_items_in_batch: Tensor | int | None,
    ) -> Tensor:
        """The loss (0-dim) of one micro-batch's training pass; in `t.gradient`, probes and evaluation it is not asked.

        A sum over labelled tokens is to be divided by `num_items_in_batch`, which counts those of the whole optimizer
        step (over all ranks, where `average_tokens_across_devices` is on); so accumulation changes nothing. Where it
        is None, a mean over the micro-batch is asked for, and the Trainer averages over micro-batches.
        """
        return loss

    def on_gradients(self, t: DefenseMixin) -> None:
        """After the last micro-batch: the gradient is complete, ranks agree, nothing is clipped. Not called where the
        loss scaler is going to skip the step (fp16)."""

    def on_step_end(self, t: DefenseMixin) -> None:
        """After the optimizer's step; `t.state.global_step` counts it already."""

    def on_log(self, t: DefenseMixin, logs: dict[str, float]) -> None:
        """`logs` is about to be logged, with the means of what was recorded since the last time."""

    def state_dict(self, t: DefenseMixin) -> dict[str, Tensor]:
        """Training state to save with a checkpoint (none by default)."""
        return {}

    def load_state_dict(self, t: DefenseMixin, state: dict[str, Tensor]) -> None:
        """Takes back what `state_dict` returned."""

    def on_train_end(self, t: DefenseMixin) -> None:
        """Training has ended normally: the place to let go of tensors, and to change the weights for good."""


def acts(defense: Defense, place: str) -> bool:
    """Whether a defense overrides one of the places."""
    return getattr(type(defense), place) is not getattr(Defense, place)


def arguments_of(defenses: Sequence[Defense], args: Any, rows: int | None) -> Any:
    """The training's arguments as the defenses make them, in their order; `args` is left as it is."""
    for defense in defenses:
        if acts(defense, "arguments"):
            args = defense.arguments(copy.copy(args), rows)
    return args
