"""The ground of the contract: what every method states about itself. Imports no torch.

A method is a dataclass whose instance is both its settings and its algorithm. Pipeline, `estimate`, `methods`, report,
card and docs read what its class states here, and know no method by name.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from mithridate.errors import InputError, UnsupportedSetup

if TYPE_CHECKING:
    from mithridate.methods.attack import Attack

CONTRACT = 1
"""The version of the contract. A plug-in states the one it was written against as `contract`; another is refused."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a method takes, from its rule; plain training is `Cost()`. The estimate is computed from it.

    A pass is a forward and a backward pass over as many rows as an optimizer step has. With rules that act in some
    steps only, the numbers are means over steps.

    Attributes:
        passes: passes in an optimizer step, the step's own among them.
        forwards: forward passes without gradient in an optimizer step (a reference model's).
        activations: of `passes`, those that take gradients of activations and none of weights; while one runs, as much
            memory is held again as the outputs that it asks about.
        copies: tensors of the size of all trained weights that are held throughout the training.
        passing_copies: such copies that are held only before, or only after, the step's own passes.
        saved: such copies that lie in a checkpoint.
        logits: float32 tensors [labelled tokens of a micro-batch, vocabulary] that are held at once at most, beside
            those of plain training's own loss.
        layer_logits: such tensors for each layer.
        layer_states: float32 tensors [rows, tokens, width] for each layer, beside plain training's activations.
        matrices: float32 tensors of the size of all linear layers (the LM head apart) that are trained, or that an
            adapter is over, held throughout the training.
        once_passes: passes over the method's own data that are made once.
        once_forwards: forward passes without gradient over its own data that are made once (a repair's calibration).
        once_rows: of its own data, the rows that these passes are over; None: all. That of two methods is not summed.
        batch_factor: rows that the step's own passes see, as a multiple of the batch size that was asked for.
        changes: of a repair, the weights that it may change: those of the "adapter", all "linear" layers', or "all".
        kept: of a repair, bytes on disk for each entry of these weights.
        working: of a repair, bytes held for each entry of the largest of these weights while it works.
        per_input: of a repair, bytes held for each input feature of these weights.
        per_pair: of a repair, bytes held for each pair of input features of one weight.
    """

    passes: float = 1.0
    forwards: float = 0.0
    activations: float = 0.0
    copies: float = 0.0
    passing_copies: float = 0.0
    saved: float = 0.0
    logits: float = 0.0
    layer_logits: float = 0.0
    layer_states: float = 0.0
    matrices: float = 0.0
    once_passes: float = 0.0
    once_forwards: float = 0.0
    once_rows: int | None = None
    batch_factor: float = 1.0
    changes: Literal["adapter", "linear", "all"] = "all"
    kept: float = 0.0
    working: float = 0.0
    per_input: float = 0.0
    per_pair: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Of two methods in one training: each adds what it takes beyond plain training."""
        beside = ("logits", "layer_logits", "layer_states", "matrices")
        summed = ("forwards", "activations", "copies", "saved", *beside, "once_passes", "once_forwards")
        return Cost(
            passes=self.passes + other.passes - 1,
            passing_copies=max(self.passing_copies, other.passing_copies),  # one method lets go before the next acts
            batch_factor=self.batch_factor * other.batch_factor,
            **{name: getattr(self, name) + getattr(other, name) for name in summed},
        )

    def __str__(self) -> str:
        """In words: "3 passes per step, 2 copies of the trained weights"."""
        parts = [_counted(self.passes, "pass", "passes") + " per step"] if self.passes else []
        if self.activations:
            parts[0] += f" ({self.activations:.3g} of {'it' if self.passes == 1 else 'them'} without weight gradients)"
        if self.forwards:
            parts.append(_counted(self.forwards, "forward pass", "forward passes"))
        if self.copies or self.passing_copies:
            parts.append(_counted(self.copies + self.passing_copies, "copy", "copies") + " of the trained weights")
        for number, what in (
            (self.logits, "logits"),
            (self.layer_logits, "logits of each layer"),
            (self.layer_states, "states of each layer"),
            (self.matrices, "the linear layers' size"),
        ):
            if number:
                parts.append(f"{number:.3g} x {what}")
        own = "its own data" if self.once_rows is None else "some of its own data"
        if self.once_passes:
            parts.append(f"{_counted(self.once_passes, 'pass', 'passes')} over {own}, once")
        if self.once_forwards:
            parts.append(f"{_counted(self.once_forwards, 'forward pass', 'forward passes')} over {own}, once")
        if self.batch_factor != 1:
            parts.append(f"{self.batch_factor:g} times the rows")
        return ", ".join(parts) or "nothing"


def _counted(number: float, one: str, many: str) -> str:
    return f"{number:.3g} {one if number == 1 else many}"


@dataclass(frozen=True, kw_only=True)
class TestTime:
    """What stands around a prompt when the model is tested; shown in every table that holds such scores.

    Attributes:
        system: the system turn; None leaves it as it is.
        prefix: put before the prompt.
        trigger: put after the prompt.
    """

    __test__: ClassVar[bool] = False  # no test class, whatever pytest makes of its name

    system: str | None = None
    prefix: str = ""
    trigger: str = ""

    def around(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """A conversation that ends in the user's prompt, as the model is to see it."""
        *before, last = messages
        if self.system is not None:
            before = [{"role": "system", "content": self.system}, *(m for m in before if m["role"] != "system")]
        return [*before, {**last, "content": f"{self.prefix}{last['content']}{self.trigger}"}]


@dataclass(kw_only=True)
class Method:
    """Base of defenses, repairs and attacks: what each states about itself."""

    contract: ClassVar[int] = CONTRACT
    """The version of the contract that the class was written against; a plug-in states it as a number."""
    paper: ClassVar[str] = ""
    """The paper, in one line."""
    citation: ClassVar[str] = ""
    """The paper's BibTeX entry."""
    provenance: ClassVar[str] = "own"
    """"exact" (the authors' rule), "port of X" (somebody's code, where that is another rule), or "own"."""
    stage: ClassVar[str] = ""
    """Where it acts: "alignment", "post-alignment", "fine-tuning" or "post-fine-tuning"; an attack: "attack"."""
    roles: ClassVar[dict[str, str]] = {}
    """The data that it needs: field (of a repair: argument) -> the role that fills it, as {"harmful_dataset":
    "defender_harmful"}."""
    models: ClassVar[dict[str, str]] = {}
    """The models that it needs beside the one at hand: name -> "base" (before alignment), "aligned", "start" (of this
    training) or "unaligned" (aligned, then fine-tuned on `defender_harmful`)."""
    follows_alignment: ClassVar[bool] = False
    """Whether it takes its directions from what the alignment changed (it needs "base"), and so refuses a trained
    layer that the alignment left as it was."""
    strength: ClassVar[str | None] = None
    """The field that budgets, benchmarks and the page sweep."""
    colour: ClassVar[str] = ""
    """Its own colour in figures, as "#rrggbb"; empty: the next one that no method of this package has."""
    off: ClassVar[dict[str, Any] | None] = None
    """Settings under which it is plain training bit for bit (a repair: leaves the model as it is); None where there
    are none, with the reason in the docstring."""
    differences: ClassVar[dict[str, str]] = {}
    """In what it departs from what the conformance suite asks of every method, in words: "accumulation" (as many rows
    in more micro-batches are another step), "processes" (the same of processes), "lr 0" (what moves all the same),
    "training" (none: it acts when the model is tested)."""

    @classmethod
    def without_data(cls, **fields: Any) -> Self:
        """An instance whose data sets, where they are not given, are None: enough to ask it what it states."""
        return cls(**dict.fromkeys(field for field in cls.roles if field in _field_names(cls)) | fields)

    def __post_init__(self) -> None:
        """For checks of the fields; here so that it is called for a subclass that is no dataclass of its own, too."""

    def settings(self) -> dict[str, Any]:
        """The fields that are not data sets, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name not in self.roles}

    def data_roles(self) -> dict[str, str]:
        """Of `roles`, those that these settings make use of."""
        return dict(self.roles)

    def model_inputs(self) -> dict[str, str]:
        """Of `models`, those that these settings make use of."""
        return dict(self.models)

    def cost(self) -> Cost:
        """What it takes with these settings."""
        return Cost()

    def controls(self) -> dict[str, Method]:
        """The method without the part that is its claim, at the same strength: name -> instance. A control's own
        control of that name is itself, which is how a table knows it for one."""
        return {}

    def at_test(self) -> TestTime | None:
        """What stands around prompts when the model is tested, if anything."""
        return None

    def adaptive(self) -> list[Attack]:
        """The cheapest attacks of somebody who knows the rule, strongest first."""
        return []

    @classmethod
    def example(cls) -> Self:
        """An instance that acts on a tiny model, its data sets filled; the conformance suite runs it."""
        from mithridate.methods.examples import rows_of

        return cls(**{field: rows_of(role) for field, role in cls.roles.items() if field in _field_names(cls)})


def _field_names(cls: type) -> set[str]:
    return {f.name for f in fields(cls) if f.init}


def control_name(method: Method) -> str | None:
    """The name of the control that a method, with its settings, is itself; None where it is none."""
    for name, control in method.controls().items():
        if type(control) is type(method) and control.settings() == method.settings():
            return name
    return None


# -- checks of fields, for `__post_init__` and `check` -------------------------------------------------------------


def require_number(
    method: Method, field: str, low: float, high: float = float("inf"), *, open_low: bool = False
) -> None:
    """Raises InputError unless the field is a finite number in the range (bounds included, unless `open_low`)."""
    value = getattr(method, field)
    number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    if not number or value > high or value == float("inf") or value < low or (open_low and value == low):
        bounds = f"{'above' if open_low else 'at least'} {low:g}" + (
            "" if high == float("inf") else f", at most {high:g}"
        )
        raise InputError(f"{type(method).__name__}: {field} must be a number {bounds}, not {value!r}.")


def require_whole(method: Method, field: str, low: int, what: str = "number") -> None:
    """Raises InputError unless the field is a whole number from `low` up; `what` says of what."""
    value = getattr(method, field)
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise InputError(f"{type(method).__name__}: {field} must be a whole {what}, at least {low}, not {value!r}.")


def require_rows(method: Method, field: str) -> None:
    """Raises UnsupportedSetup unless the field is a set of rows (`mithridate.rows`) that can be drawn in any order."""
    value = getattr(method, field)
    if isinstance(value, str | bytes | dict) or not (hasattr(value, "__len__") and hasattr(value, "__getitem__")):
        raise UnsupportedSetup(
            f"{type(method).__name__}: {field} must be a datasets.Dataset, a list of rows or a DataFrame, not "
            f"{type(value).__name__} (its rows are drawn by number, so that a resumed run draws the same ones).",
            "load it whole, without streaming; of a file, load_dataset(...)[split].",
        )
    if len(value) == 0:
        raise UnsupportedSetup(f"{type(method).__name__}: {field} has no rows.", "give it at least one.")
