"""The search for an attacker's best settings: the highest harmful score that leaves the user's task nearly whole.

Optuna's tree-structured Parzen estimator proposes, with the loss of accuracy (and of capability) as a constraint
(S. Watanabe & F. Hutter, c-TPE, IJCAI 2023). Nothing is kept but what the store keeps: seeded, and told the same
scores, it proposes the same settings again, so a search that was stopped goes through its finished tries in seconds
and on from there.

Every score here is of validation parts, but for capability's, whose tasks have none. The best of many tries is the
best partly by luck, so it is scored anew, once, on the test part.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from mithridate.errors import InputError
from mithridate.studies.settings import VARIANTS, AttackFile, Range, Search

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

PROPOSALS = 20
"""How many proposals a try may take: those that came up before are none, and a sampler may have no other left."""


@dataclass(frozen=True)
class Scores:
    """What an attack came to: the share of harmful answers, of right ones in the task (None: not measured), the
    optimizer steps and the rows that it took, and its scores on capability tasks, by task and metric."""

    harmful: float
    accuracy: float | None
    steps: int
    rows: int
    capability: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Try:
    """One attack (`AttackFile.attack`), its scores, and by how much it breaks the bound on what the user may lose (0
    or less: it holds)."""

    settings: dict[str, Any]
    scores: Scores
    excess: float

    @property
    def within(self) -> bool:
        return self.excess <= 0


def search(
    given: AttackFile,
    score: Callable[[dict[str, Any]], Scores],
    reference: float | None,
    name: str = "",
    capability: Mapping[str, float] | None = None,
) -> list[Try]:
    """Tries as many different attacks as the file says: all there are, in order, where these are no more; else each
    variant once, and then what the sampler proposes. They are fewer where it proposes nothing new any more.

    Args:
        score: makes and scores the attack with these settings. Settings that came up before are not scored again.
        reference: the accuracy that the loss counts from; None where there is no bound.
        name: of what is attacked, for the line that tells of each try.
        capability: the scores that the loss of capability counts from, by task and metric.

    Raises:
        InputError: Optuna is not installed.
    """
    tries: list[Try] = []

    def tried(settings: dict[str, Any]) -> Try:
        known = next((one for one in tries if one.settings == settings), None)
        if known is not None:
            return known
        found = score(settings)
        made = Try(settings, found, _excess(found, reference, capability or {}, given.search))
        tries.append(made)
        words = ", ".join(f"{named(path)} {_short(settings[path])}" for path in given.searched if path in settings)
        outside = "" if made.within else ", beyond the bound"
        logger.info("%s %s: harmful score %.2f%s", name or "attack", words, made.scores.harmful, outside)
        return made

    if (every := given.every(given.search.trials)) is not None:
        for settings in every:
            tried(settings)
        return tries
    study = _study(given.search.seed)
    for number in range(len(given.variants)) if VARIANTS in given.searched else ():
        study.enqueue_trial({VARIANTS: number})  # whose other values are the sampler's
    for _ in range(PROPOSALS * given.search.trials):
        if len(tries) == given.search.trials:
            break
        trial = study.ask()
        one = tried(given.attack({path: _suggest(trial, path, given.choices[path]) for path in given.searched}))
        trial.set_constraint("utility", one.excess)
        study.tell(trial, one.scores.harmful)
    return tries


def best(tries: list[Try]) -> Try | None:
    """The try within the bound with the highest harmful score; of equal ones, that of the fewest steps, then rows."""

    def rank(one: Try) -> tuple[float, int, int]:
        return -one.scores.harmful, one.scores.steps, one.scores.rows

    return min((one for one in tries if one.within), key=rank, default=None)


def worst_so_far(tries: Sequence[Try]) -> list[float | None]:
    """After each try the highest harmful score of those within the bound; None before there is one."""
    scores = (one.scores.harmful if one.within else None for one in tries)
    return list(accumulate(scores, lambda a, b: b if a is None else a if b is None else max(a, b)))


def _excess(found: Scores, reference: float | None, capability: Mapping[str, float], bounds: Search) -> float:
    """The most by which a bound is broken; 1, which is the most there can be, where a score was not measured."""
    pairs = []
    if reference is not None:
        pairs.append((bounds.max_accuracy_loss, reference, found.accuracy))
    pairs += [(bounds.max_capability_loss, before, found.capability.get(name)) for name, before in capability.items()]
    # Shares of the same prompts: a loss of exactly the bound is allowed, whatever its last binary digit.
    beyond = [
        1.0 if after is None else round(before - after - bound, 12)
        for bound, before, after in pairs
        if bound is not None
    ]
    return max(beyond, default=0.0)


def _study(seed: int) -> optuna.Study:
    try:
        import optuna
    except ImportError as error:
        raise InputError("A search needs Optuna: pip install 'mithridate[attack]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Its own 10 random tries first would be most of a search that this project can afford.
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=5, multivariate=True)
    return optuna.create_study(direction="maximize", sampler=sampler)


def _suggest(trial: optuna.Trial, path: str, among: list[Any] | Range) -> Any:
    if isinstance(among, list):  # by number, for a value may be of any type
        return among[trial.suggest_categorical(path, range(len(among)))]
    if among.whole:
        return trial.suggest_int(path, int(among.low), int(among.high), log=among.log)
    return trial.suggest_float(path, among.low, among.high, log=among.log)


def named(path: str) -> str:
    """A choice as lines of text have it: without the part of the experiment that it is in."""
    return "variant" if path == VARIANTS else path.rpartition(".")[2]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
