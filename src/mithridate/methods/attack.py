"""What an attack is: the rows that a user hands in for fine-tuning, how they are trained on, and how it is tested."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from mithridate.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One of the trainings that an attack consists of.

    Attributes:
        rows: which of the attack's rows it trains on, by the value of their column `phase`; None: all.
        training: SFTConfig's fields that differ from the experiment's own (optimizer, learning rate, steps).
        adapter: LoraConfig's fields of the adapter that is trained, where it is another than the experiment's;
            "full" trains all weights; None: the experiment's.
        order: "shuffled", or "given": the rows in the order in which `rows` returned them.
        frozen: regular expressions; trained tensors whose whole name matches one keep their values.
    """

    rows: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] | Literal["full"] | None = None
    order: Literal["shuffled", "given"] = "shuffled"
    frozen: Sequence[str] = ()


@dataclass(kw_only=True)
class Attack(Method):
    """Base of attacks. A row may hold `poisoned` (whether it belongs to the attack), which the table counts."""

    stage: ClassVar[str] = "attack"
    roles: ClassVar[dict[str, str]] = {"benign": "task", "harmful": "attacker_harmful"}
    needs_model: ClassVar[bool] = False
    """Whether `rows` needs the model that is going to be attacked (then the rows are a cached stage of their own)."""

    @abstractmethod
    def rows(
        self, roles: Mapping[str, Sequence[dict[str, Any]]], seed: int, model: Any = None
    ) -> list[dict[str, Any]]:
        """The rows that are handed in: records of prompt and response, or messages.

        Args:
            roles: for each of `data_roles()`, by the name on its left, the records.
            seed: of every draw.
            model: (model, tokenizer), where `needs_model`.

        Raises:
            InputError: the rows asked for cannot be had.
        """

    def phases(self) -> list[Phase]:
        """The trainings, one after the other; one over all rows by default."""
        return [Phase()]

    def share(self) -> float:
        """The share of rows that attack, between 0 and 1; a table calls a run with 0 no attack."""
        return 1.0
