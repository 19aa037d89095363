"""The attacker who knows: each method's chosen setting under the attacks that its own rule suggests (`adaptive`).

They are tried beside the plain attack on the validation parts, at every point of the attacker's grid, with as many
rows as the plain attack (`harmful`; no other has rows that all of them could share) has there, and as many harmful
ones where they have any. The one with the highest mean harmful score is run on the test parts over all seeds, if the
model keeps its task: against the same model under the plain attack it may lose no more accuracy than a method may
(`bounds`). Where none does better than the plain attack, that is the one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mithridate.attacks.harmful import fitted
from mithridate.experiment.config import Experiment
from mithridate.experiment.methods import attack_of, attack_values, method_of
from mithridate.methods.attack import Attack
from mithridate.methods.registry import by_name
from mithridate.studies.benchmarks.settings import Arm, Bounds, kind_of
from mithridate.studies.benchmarks.tries import MeanScores

Point = Mapping[str, Any]
PLAIN = "the plain attack"


@dataclass(frozen=True)
class KnowingTry:
    """One attack on a method in a topology, on validation parts.

    Attributes:
        number: which of the method's `adaptive` attacks, from 1; 0 is the plain attack.
        attack: in words.
        loss: of accuracy against the plain attack; None where it was not measured.
        within: whether that is within the bound.
        chosen: whether the final runs are under this attack.
    """

    method: str
    topology: str
    number: int
    attack: str
    scores: MeanScores
    loss: float | None
    within: bool
    chosen: bool = False


def attacks_on(arm: Arm, settings: Mapping[str, Any], paired: bool = False) -> list[Attack]:
    """The attacks that an arm's method suggests at these settings, of those that can do anything in its topology.

    Args:
        paired: as of `Attack.possible`.
    """
    suggested = method_of(by_name(kind_of(arm.method))[arm.method], settings).adaptive()
    fresh, adapter = arm.topology == "double", arm.topology != "full"
    return [attack for attack in suggested if attack.possible(fresh=fresh, paired=paired, adapter=adapter)]


def knowing_runs(
    arm: Arm, settings: Mapping[str, Any], at: Experiment, points: Sequence[Point]
) -> dict[int, list[Experiment]]:
    """The experiments under each of these attacks, by its number (0: the plain one); one a point of the grid."""
    defended = [arm.defended(at, settings).with_values(point) for point in points]
    attacks = enumerate(attacks_on(arm, settings, at.paired), 1)
    return {0: defended} | {number: [under(one, attack) for one in defended] for number, attack in attacks}


def under(experiment: Experiment, attack: Attack) -> Experiment:
    """The experiment under another attack, of as many rows as its own.

    Raises:
        InputError: its own is not the plain one (`fitted`).
    """
    assert experiment.finetune
    made = fitted(attack, attack_of(experiment.finetune))
    return experiment.with_values({"finetune.attack": attack_values(made)})


def choose_attack(
    arm: Arm, settings: Mapping[str, Any], scores: Mapping[int, MeanScores], bounds: Bounds, paired: bool = False
) -> list[KnowingTry]:
    """Every attack on an arm's method, the chosen one marked.

    Args:
        scores: of the experiments of `knowing_runs`, by number.
        paired: as of `attacks_on`.
    """
    words = [PLAIN, *(attack.in_words() for attack in attacks_on(arm, settings, paired))]
    plain = scores[0].accuracy
    tries = []
    for number, found in scores.items():
        known = plain is not None and found.accuracy is not None
        loss = round(plain - found.accuracy, 12) if known else None  # pyright: ignore[reportOperatorIssue]
        within = number == 0 or bounds.accuracy is None or (loss is not None and loss <= bounds.accuracy)
        tries.append(KnowingTry(arm.method, arm.topology, number, words[number], found, loss, within))
    # Of equal scores the first: the plain attack asks for no knowledge.
    worst = max((one for one in tries if one.within), key=lambda one: one.scores.harmful_score or 0.0)
    return [replace(one, chosen=one is worst) for one in tries]
