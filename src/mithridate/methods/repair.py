"""What a repair is: a method that is applied once to a finished model."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mithridate.methods.base import Method

if TYPE_CHECKING:
    from mithridate.repairs.delta import Delta


@dataclass(kw_only=True)
class Repair(Method):
    """Base of repairs: after the user's run (`stage` "post-fine-tuning") or before it ("post-alignment").

    `check` and `apply` get the same arguments: the model, for each of `data_roles()` its rows (a list of records, or
    tokenised rows), for each of `model_inputs()` that model, and `tokenizer`. What is not needed is not given.
    """

    stage: ClassVar[str] = "post-fine-tuning"

    def check_run(self, *, topology: str, finetuned: bool, adapter: bool) -> None:
        """Refuses what an experiment asks for in vain, in the words of its file, before a model is there.

        Args:
            topology: single, double or full.
            finetuned: whether there is a fine-tune before the repair.
            adapter: whether the model that is repaired has an adapter of its own that is not merged.

        Raises:
            InputError: with the remedy.
        """

    def run_notes(self, *, topology: str, aligned: bool, finetuned: bool) -> list[str]:
        """What a reader of a run's table should know of what the repair acts on, in words.

        Args:
            topology: single, double or full.
            aligned, finetuned: whether there is an alignment, and a fine-tune, before the repair.
        """
        return []

    def check(self, model: Any, **inputs: Any) -> None:
        """Refuses what cannot be done, before any compute is spent; the pipeline asks it on one random layer first.

        Raises:
            UnsupportedSetup: with the reason and a remedy.
        """

    @abstractmethod
    def apply(self, model: Any, **inputs: Any) -> Delta:
        """Changes the model in place and returns what it changed."""
