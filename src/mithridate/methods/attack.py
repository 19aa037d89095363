"""What an attack is: the rows that a user hands in for fine-tuning, how they are trained on, and how it is tested."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar, Literal

from mithridate.errors import InputError
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
        rate: the learning rate, as a multiple of the experiment's own.
        length: optimizer steps, or epochs where the experiment states no steps, as a multiple of its own.
    """

    rows: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] | Literal["full"] | None = None
    order: Literal["shuffled", "given"] = "shuffled"
    frozen: Sequence[str] = ()
    rate: float = 1.0
    length: float = 1.0

    def trained(self, training: Mapping[str, Any]) -> dict[str, Any]:
        """The experiment's fields of SFTConfig as this training has them.

        Raises:
            InputError: it is to have a multiple of what they do not state.
        """
        made = {**training, **self.training}
        if self.rate != 1:
            made["learning_rate"] = _stated(made, "learning_rate") * self.rate
        if self.length != 1 and made.get("max_steps", -1) > 0:
            made["max_steps"] = max(1, round(made["max_steps"] * self.length))
        elif self.length != 1:
            made["num_train_epochs"] = _stated(made, "num_train_epochs") * self.length
        return made

    def key(self) -> dict[str, Any]:
        """What a stage's key has of it: not what it leaves as it is, if the first keys had no such field."""
        later = {"rate": 1.0, "length": 1.0}
        return {name: value for name, value in vars(self).items() if name not in later or value != later[name]}


def _stated(training: Mapping[str, Any], field: str) -> float:
    if not isinstance(value := training.get(field), int | float):
        raise InputError(
            f"finetune.training.{field}: the attack takes a multiple of it, and it is not stated; give its value"
        )
    return value


@dataclass(kw_only=True)
class Attack(Method):
    """Base of attacks. A row may hold `poisoned` (whether it belongs to the attack), which the table counts."""

    stage: ClassVar[str] = "attack"
    roles: ClassVar[dict[str, str]] = {"benign": "task", "harmful": "attacker_harmful"}
    needs_pairs: ClassVar[bool] = False
    """Whether it needs `defender_harmful` with the prompts of `alignment` (`paired: true`); else it is not suggested
    (`adaptive`)."""
    known: ClassVar[bool] = True
    """Whether it is known which rows attack; of a user's own upload it is not, and tables say nothing of a share."""
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

    def candidates(self, roles: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Where it `needs_model`, the rows that it chooses among, before there is one; of those a set-up is tried out.

        Args:
            roles: as of `rows`.

        Raises:
            InputError: too few rows.
        """
        return [row for rows in roles.values() for row in rows]

    def phases(self) -> list[Phase]:
        """The trainings, one after the other; one over all rows by default."""
        return [Phase()]

    def acts(self, *, fresh: bool, adapter: bool = True) -> bool:
        """Whether its training can move anything, and can be had; one that cannot is not suggested (`adaptive`).

        Args:
            fresh: whether the user's adapter is a new one (topology double), and not the alignment's, trained on.
            adapter: whether the user's fine-tune trains an adapter, and not all weights.
        """
        return True

    def possible(self, *, fresh: bool, paired: bool, adapter: bool = True) -> bool:
        """Whether it is worth suggesting: it acts, and the data have the rows that it needs.

        Args:
            fresh, adapter: as of `acts`.
            paired: whether the data have harmful answers to the alignment's own prompts (`needs_pairs`).
        """
        return self.acts(fresh=fresh, adapter=adapter) and (paired or not self.needs_pairs)

    def ended_after(self, steps: int) -> tuple[Attack, int] | None:
        """The attack that ends after so many optimizer steps, and the experiment's `max_steps` with which it does;
        None where its trainings are not as long as the experiment says."""
        first, *more = self.phases()
        if more or first.length != 1 or {"max_steps", "num_train_epochs"} & first.training.keys():
            return None
        return self, steps

    def share(self) -> float:
        """The share of rows that attack, between 0 and 1; a table calls a run with 0 no attack."""
        return 1.0

    def in_words(self) -> str:
        """Its kind, and what differs from the kind's defaults besides rows: "scheduled (leap 10)"."""
        plain = {field.name: _default(field) for field in fields(self)}
        own = {name: value for name, value in self.settings().items() if name not in ("size", "harmful_ratio")}
        said = [f"{name} {_short(value)}" for name, value in own.items() if value != plain[name]]
        return type(self).__name__.lower() + (f" ({', '.join(said)})" if said else "")


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(one)}" for name, one in value.items())
    return f"{value:.3g}" if isinstance(value, float) else repr(value) if value == "" else str(value)
