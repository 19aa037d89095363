"""Prompt sets and tasks: how a row becomes a prompt, and, for the users' tasks, when an answer counts as right.

Each is a small versioned file. The users' tasks are scored by named rules, to the letter of the papers' protocols
(`mithridate.protocols` says which protocol uses which); the answers to the other prompt sets are for judges.
`task(name)` and `prompt_set(name)` find them by name, tasks of other packages (entry points in `mithridate.tasks`)
too. General capability, by lm-eval's own tasks: `capability.py`.
"""

from collections.abc import Mapping
from typing import TypeVar

from mithridate.data.tasks import (
    advbench,
    agnews,
    alpaca_eval,
    beavertails,
    embedded,
    false_reject,
    gsm8k,
    harmbench,
    hexphi,
    labels,
    or_bench,
    sentiment,
    sst2,
    xstest,
)
from mithridate.data.tasks.base import PromptSet, Task
from mithridate.errors import InputError, nearest
from mithridate.methods.registry import Registry


def _no_task(found: object) -> str | None:
    return None if isinstance(found, Task) else "is not a Task of mithridate.data.tasks.base"


_OWN = {module.TASK.name: module.TASK for module in (sentiment, sst2, agnews, gsm8k, alpaca_eval, labels)}
TASKS: Registry[Task] = Registry("tasks", _OWN, _no_task)
PROMPT_SETS: dict[str, PromptSet] = {
    known.name: known
    for known in (
        embedded.HARMFUL,
        embedded.BENIGN,
        *(module.PROMPTS for module in (beavertails, advbench, harmbench, hexphi, xstest, or_bench, false_reject)),
        *_OWN.values(),
    )
}
"""Those of this package."""
Kind = TypeVar("Kind", bound=PromptSet)

__all__ = ["PROMPT_SETS", "TASKS", "PromptSet", "Task", "prompt_set", "task"]


def task(name: str) -> Task:
    """The task of that name. Raises `InputError`, naming the nearest valid name, where there is none."""
    return _found(name, TASKS, "task")


def prompt_set(name: str) -> PromptSet:
    """The prompt set of that name, tasks among them. Raises `InputError` like `task`."""
    return TASKS[name] if name in TASKS else _found(name, PROMPT_SETS, "prompt set")


def _found(name: str, known: Mapping[str, Kind], what: str) -> Kind:
    if name in known:
        return known[name]
    hint = nearest(name, known, listed=False) or "."
    raise InputError(f"Unknown {what} {name!r}{hint} {what.capitalize()}s: {', '.join(known)}.")
