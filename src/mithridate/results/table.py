"""The table of a run: one cell per evaluated model, computed from its records alone and paired with its twin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mithridate.evaluation import rules_of, summarise
from mithridate.evaluation.agreement import judges_in
from mithridate.experiment.config import FULL, HARMFUL, Experiment, Finetune, in_order
from mithridate.experiment.methods import acting, around_prompts, attack_config, attack_fields, attack_of, repair_of
from mithridate.files import canonical_json, stable
from mithridate.methods.base import control_name
from mithridate.protocols import JudgeUse, Protocol, Setting
from mithridate.protocols import protocol as find_protocol
from mithridate.results import decided
from mithridate.results.outcomes import Outcomes
from mithridate.results.relations import relate
from mithridate.results.schema import SCHEMA
from mithridate.statistics import steps_to

_ARM = ("alignment", "finetuning", "repair", "topology", "harmful_ratio", "control")
NONE = "none"


@dataclass
class Cell:
    """One model that was scored: what was done to it, its rows, and the rows along the attack's steps."""

    experiment: Experiment
    upto: str  # the last stage: align, finetune or repair
    rows: list[dict[str, Any]]
    key: str  # of its evaluation in the store; the same for the same model on the same prompts
    aligned: str  # the key of the aligned model that it started from
    undefended: str  # the key of the same run without any defense
    steps: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    attack_steps: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    capability: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    final: bool = True  # whether an experiment ends in this model
    swept: dict[str, Any] = field(default_factory=dict)  # further fields that the sweep varies, by path
    trained: dict[str, Any] | None = None  # rows, harmful_rows, steps, dropped and filtered, of its last training
    weights: str | None = None  # digest of the model's content; None where a server answered
    budget: dict[str, Any] | None = None  # the repair's tries within a budget, and the strength that was taken

    @property
    def alignment(self) -> str:
        align = self.experiment.align
        trained = NONE if align is None else "+".join(in_order(align.defense)) or "sft"
        hardened = repair_of(self.experiment, post_alignment=True)
        return f"{trained}+{hardened[0]}" if hardened else trained

    @property
    def finetune(self) -> Finetune | None:
        """The fine-tune, where this cell's model has been through it."""
        return self.experiment.finetune if self.upto != "align" else None

    @property
    def finetuning(self) -> str:
        return ("+".join(in_order(self.finetune.defense)) or "sft") if self.finetune else NONE

    @property
    def repair(self) -> str:
        repair = repair_of(self.experiment, post_alignment=False) if self.upto == "repair" else None
        return repair[0] if repair else NONE

    @property
    def harmful_ratio(self) -> float | None:
        """The share of the fine-tune's rows that attack; None where it is not known, too."""
        return attack_of(self.finetune).share() if self.finetune and self.known else None

    @property
    def known(self) -> bool:
        """Whether it is known how many of the fine-tune's rows attack."""
        return not self.finetune or attack_of(self.finetune).known

    @property
    def control(self) -> str | None:
        """The name of the control that this cell is, if it is one: the method without the part that is its claim."""
        acted = reversed(acting(self.experiment, self.upto))
        return next((name for method in acted if (name := control_name(method))), None)

    @property
    def defended(self) -> bool:
        return self.alignment not in (NONE, "sft") or self.finetuning not in (NONE, "sft") or self.repair != NONE

    def name(self) -> str:
        ratio = "none" if self.harmful_ratio is None else f"{self.harmful_ratio:g}"
        if self.finetune and (kind := attack_fields(self.finetune)[0]) != HARMFUL:
            ratio = kind if self.harmful_ratio is None else f"{kind}-{ratio}"
        parts = [self.alignment, self.finetuning, self.repair, self.experiment.topology, ratio]
        parts += [precision for precision in self.experiment.evaluate.precision if precision != FULL]
        return "-".join([*parts, f"s{self.experiment.seed}", *([self.control] if self.control else [])])

    @property
    def attack(self) -> tuple:
        """What a cell shares with the undefended runs that it may be compared with."""
        experiment, finetune = self.experiment, self.finetune
        adapter = (finetune.adapter, finetune.frozen) if finetune else None
        attack = str((attack_config(finetune), finetune.training, adapter)) if finetune else None
        asked = (experiment.seed, *experiment.evaluate.precision)
        return (experiment.model, experiment.topology, asked, attack, experiment.align is None)


def table(cells: list[Cell], model: str, protocol: str, notes: list[str]) -> dict[str, Any]:
    """results.json of finished cells, as `ResultsTable` makes it."""
    made = ResultsTable(model, protocol, notes)
    for cell in cells:
        made.add(cell)
    return made.results()


@dataclass(frozen=True)
class _Entry:
    """What the table keeps of a cell: its row but for what other cells add to it, and what finds those."""

    row: dict[str, Any]
    seed: int
    key: str
    aligned: str
    undefended: str
    attack: tuple
    defended: bool


class ResultsTable:
    """results.json (`schema`), built up cell by cell.

    Cells keep their order; equal names are told apart by a number. Of a cell's rows only the outcomes are kept, so a
    grid's answers need not be in memory together. Time and memory grow with the number of cells, and no faster.

    Args:
        model: its name, as the experiment has it.
        protocol: the name of the protocol.
        notes: in words, what is particular about the data: rows left out, prompts shared on purpose.
        model_digest: of the content of the model that the cells were made from; None where it is a server's.
        seeds_asked: the seeds that every arm of the experiment was asked for.
    """

    def __init__(
        self,
        model: str,
        protocol: str,
        notes: list[str],
        model_digest: str | None = None,
        seeds_asked: Sequence[int] = (),
    ):
        self._head = {"schema": SCHEMA, "protocol": protocol}
        self._model, self._notes = {"model": model, "model_digest": model_digest}, list(notes)
        self._seeds_asked = list(seeds_asked)
        self._judges: dict[str, None] = {}  # by name, in the order of their first verdicts
        self._entries: dict[str, _Entry] = {}  # by id
        self._numbers: dict[str, int] = {}  # the last number that told equal names apart
        self._by_key: dict[str, str] = {}  # the first cell of each evaluation
        self._twins: dict[tuple, list[str]] = {}  # the undefended cells of each attack
        self._groups: dict[str, list[str]] = {}  # cells that differ in nothing but the seed
        self._settings: dict[tuple[Setting, str, str | None], None] = {}  # the ways in which cells were evaluated
        self._outcomes = Outcomes()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, cell: Cell) -> str:
        """Adds a cell; returns its id in the table."""
        name, number = cell.name(), self._numbers.get(cell.name(), 1)
        while name in self._entries:
            number += 1
            name = f"{cell.name()}-{number}"
        self._numbers[cell.name()] = number
        row = _row(cell, name)
        entry = _Entry(
            row=row,
            seed=cell.experiment.seed,
            key=cell.key,
            aligned=cell.aligned,
            undefended=cell.undefended,
            attack=cell.attack,
            defended=cell.defended,
        )
        for step, rows in ((None, cell.rows), *cell.steps.items()):
            self._outcomes.add(name, rows, step)
        self._entries[name] = entry
        self._by_key.setdefault(cell.key, name)
        if not cell.defended:
            self._twins.setdefault(cell.attack, []).append(name)
        same = {key: row.get(key) for key in (*_ARM, "settings", "attack", "swept")}
        self._groups.setdefault(canonical_json(same), []).append(name)
        self._settings[_setting(cell), cell.experiment.evaluate.protocol, _trained(cell)] = None
        self._judges |= dict.fromkeys(judges_in(cell.rows))
        return name

    def note(self, notes: list[str]) -> list[str]:
        """Adds what a reader of the table should know; returns what it did not have yet."""
        new = [note for note in notes if note not in self._notes]
        self._notes += new
        return new

    def results(self, complete: bool = True) -> dict[str, Any]:
        """The table of the cells so far; `complete` says whether these are all.

        `deviations` says in what the run departs from its protocol, `decision` what each defense came to.
        """
        pairs = {name: self._paired(name) for name in self._entries}
        rows = [
            entry.row | self._kin(name, pairs[name]) | {"steps_to_half": self._steps_to_half(entry)}
            for name, entry in self._entries.items()
        ]
        found = {
            **self._head,
            "complete": complete,
            "part": "+".join(sorted({setting.part for setting, _, _ in self._settings})),
            "rules": rules_of(find_protocol(self._head["protocol"])),
            "judges": list(self._judges),
            "deviations": self._deviations(),
            **self._model,
            "seeds_asked": self._seeds_asked,
            "notes": list(self._notes),
            "cells": relate(rows),
            "across_seeds": self._across_seeds(),
        }
        return decided.complete(found, self._outcomes)

    def _paired(self, name: str) -> dict[str, Any] | None:
        """Harmful score against the undefended run of the same topology, attack and seed, on the same prompts."""
        entry = self._entries[name]
        if not entry.defended:
            return None
        for other in self._twins_of(entry):
            if found := self._outcomes.paired(name, other, "harmful_score"):
                return {"against": other, **found}
        return None

    def _kin(self, name: str, pair: dict[str, Any] | None) -> dict[str, Any]:
        """The comparison with the undefended run, and what the run's stages tell of the cells that belong with one."""
        entry = self._entries[name]
        if not entry.row["attack"]:
            return {"paired": pair}
        twins = self._twins_of(entry) if entry.defended else iter(())
        reference = pair["against"] if pair else next(twins, None)
        return {"paired": pair, "reference": reference, "aligned": self._by_key.get(entry.aligned)}

    def _twins_of(self, entry: _Entry) -> Iterator[str]:
        """The very same run without the defense; then, for where that is not in the table, others of that attack."""
        twins = self._twins.get(entry.attack, ())
        exact = self._by_key.get(entry.undefended)
        if exact and not self._entries[exact].defended and self._entries[exact].attack == entry.attack:
            yield exact
        yield from (name for name in twins if name != exact)

    def _steps_to_half(self, entry: _Entry) -> int | None:
        """The attack step at which the harmful score passes one half, from the aligned model (step 0) to the last."""
        row = entry.row
        steps = row["attack"] and row["attack"]["max_steps"]
        if steps is None or row["repair"] != NONE:
            return None
        start = self._by_key.get(entry.aligned)
        points = [(0, _score(self._entries[start].row))] if start else []
        points += [(point["step"], _score(point)) for point in row["resistance"]]
        return steps_to([*points, (steps, _score(row))], 0.5)

    def _deviations(self) -> list[str]:
        """In what the evaluations depart from their protocol, in words."""
        seeds, found = len({entry.seed for entry in self._entries.values()}), []
        for setting, name, trained in self._settings:
            protocol = find_protocol(name)
            found += protocol.deviations(replace(setting, seeds=seeds))
            if trained not in (None, protocol.template):
                found.append(f"training template: {trained} in place of {protocol.template}")
        return list(dict.fromkeys(found))

    def _across_seeds(self) -> list[dict[str, Any]]:
        """The groups of cells that differ in nothing but the seed; `decided.complete` says what they come to.

        Only prompts that every seed was asked are in it. Compared with the undefended runs of the same seeds.
        """
        return [
            {key: self._entries[group[0]].row[key] for key in _ARM} | {"cells": list(group)}
            for group in self._groups.values()
            if len({self._entries[name].seed for name in group}) >= max(2, len(group))
        ]


def _setting(cell: Cell) -> Setting:
    """How a cell was evaluated, to be compared with its protocol."""
    experiment, settings = cell.experiment, cell.experiment.evaluate
    protocol, sampling = find_protocol(settings.protocol), settings.sampling(experiment.seed)
    given = settings.judges.get(protocol.judge.name) or {}
    use = protocol.judge
    known = ("threshold", "max_tokens", "batch_size")  # compared by themselves; of no effect on a verdict
    judge = JudgeUse(use.name, given.get("threshold", use.threshold), given.get("max_tokens", use.max_tokens))
    sources = {
        role: "+".join(s.source for s in experiment.data.get(role, ())) for role in ("test_harmful", "test_benign")
    }
    count = {
        kind: sum(row["set"] == kind and not row.get("sample") for row in cell.rows) for kind in ("harmful", "benign")
    }
    parts = {name for name, given in settings.tasks.items() if any(source.take is not None for source in given)}
    tasks = Counter(row["task"] for row in cell.rows if row["set"] in ("task", "extra"))
    return Setting(
        source=sources.get("test_harmful", "none"),
        n=count["harmful"],
        template=protocol.template,
        decoding=sampling.decoding(protocol.decoding) if sampling else protocol.decoding,
        judge=judge,
        part=settings.part,
        samples=settings.samples or 1,
        benign_source=sources.get("test_benign"),
        benign_n=count["benign"] or None,
        chosen=tuple(_chosen(experiment, protocol)),
        judge_fields=tuple((name, str(value)) for name, value in sorted(given.items()) if name not in known),
        tasks=tuple(sorted((name, n) for name, n in tasks.items() if settings.limit or name in parts)),
    )


def _chosen(experiment: Experiment, protocol: Protocol) -> Iterator[str]:
    """What an experiment's sources choose among the rows of the test sets, beside the protocol."""
    asked = {"test_harmful": protocol.rows} | ({"test_benign": protocol.benign} if protocol.benign else {})
    for role, rows in asked.items():
        for source in experiment.data.get(role, ()):
            if source.split not in (None, rows.split):
                yield f"{role}, split {source.split}"
            for name in ("where", "share", "skip"):
                if value := getattr(source, name):
                    yield f"{role}, {name} {value}"


def _trained(cell: Cell) -> str | None:
    """The template that a cell's model was trained with; None where it was not."""
    return cell.experiment.template if cell.experiment.align or cell.experiment.finetune else None


def _row(cell: Cell, name: str) -> dict[str, Any]:
    """A cell of results.json; None where other cells have a say in it."""
    return {
        "id": name,
        "alignment": cell.alignment,
        "finetuning": cell.finetuning,
        "repair": cell.repair,
        "topology": cell.experiment.topology,
        "seed": cell.experiment.seed,
        "harmful_ratio": cell.harmful_ratio,
        "attack": _attack(cell, cell.finetune) if cell.finetune else None,
        "trained": cell.trained and {**cell.trained, **({} if cell.known else {"harmful_rows": None})},
        "control": cell.control,
        "final": cell.final,
        "settings": cell.settings,
        **({"budget": cell.budget} if cell.budget else {}),
        **({"swept": cell.swept} if cell.swept else {}),
        **_rates(cell.rows),
        **({"capability": cell.capability} if cell.capability else {}),
        "paired": None,
        "resistance": [{"step": step, **_rates(rows)} for step, rows in sorted(cell.steps.items())],
        "steps_to_half": None,
        "weights_digest": cell.weights,
        "stages": cell.stages,
    }


def _rates(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """`rates`, and beside them those of further tasks."""
    rates = summarise(rows)
    extra = rates.pop("extra", None)
    return {"rates": rates, **({"extra": extra} if extra else {})}


def _score(scored: dict[str, Any]) -> Any:
    return scored["rates"]["harmful_score"]["value"]


def _attack(cell: Cell, finetune: Finetune) -> dict[str, Any]:
    """The fine-tune that a cell's model has been through, as results.json has it."""
    kind, own = attack_fields(finetune)
    return {
        "kind": kind,
        **stable(own),
        "max_steps": cell.attack_steps,
        "learning_rate": finetune.training.get("learning_rate"),
        **({"adapter": stable(asdict(finetune)["adapter"])} if finetune.adapter else {}),
        **({"frozen": finetune.frozen} if finetune.frozen else {}),
        "training": stable(finetune.training),
        "at_test": [vars(each) for each in around_prompts(cell.experiment, cell.upto)] or None,
    }
