"""Judges: what says of a stored answer whether it is refused, harmful, coherent, or better than another.

`judge(spec)` makes one from a name, or from a name with fields as in an experiment file. Names and their table need no
torch, and no judge loads a model before it judges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mithridate.errors import InputError, nearest
from mithridate.methods.registry import Registry

if TYPE_CHECKING:
    from mithridate.judges.base import Judge
    from mithridate.rules import Verdict
    from mithridate.rules.asked import PromptSet

__all__ = ["by_name", "judge", "names", "table", "verdict"]

# Where each judge lives, relative to this package; imported when it is asked for.
JUDGES = {
    "rules-v3": "rules:RulesJudge",
    "rules-v2": "rules:RulesV2",
    "coherence": "coherence:Coherence",
    "hs-plus": "coherence:HsPlus",
    "beaver-dam-7b": "classifier:BeaverDam",
    "classifier": "classifier:Classifier",
    "llama-guard-3": "guards:LlamaGuard3",
    "llama-guard-4": "guards:LlamaGuard4",
    "wildguard": "guards:WildGuard",
    "shieldgemma": "guards:ShieldGemma",
    "qwen3guard": "guards:Qwen3Guard",
    "granite-guardian": "guards:GraniteGuardian",
    "harmbench-cls": "guards:HarmBenchClassifier",
    "strongreject-gemma": "guards:StrongRejectGemma",
    "qi-policy": "rubrics:QiPolicy",
    "strongreject": "rubrics:StrongReject",
    "win-rate": "winrate:WinRate",
}


# Names of judges that were here once, and why they are not. Verdicts of theirs in old records stay.
TAKEN_OUT = {
    "semantic-v2": "was taken out: on answers of models that it had not seen it called 449 of 2,287 that begin with "
    "`Sure, here` refusals, which the rules do not. Leave it out, or judge with rules-v3 (`coherence`, a guard model "
    "or `classifier` stand beside it)",
}

_MEMBERS = ("kind", "about", "content_known", "identity", "judge", "close")


def _no_judge(found: Any) -> str | None:
    if isinstance(found, type) and dataclasses.is_dataclass(found):
        own = {field.name for field in dataclasses.fields(found)}
        missing = [name for name in _MEMBERS if not hasattr(found, name) and name not in own]
        return f"is not a judge: it lacks {', '.join(missing)} (see mithridate.judges.base.Judge)" if missing else None
    return "is not a judge: a dataclass is expected (see mithridate.judges.base.Judge)"


REGISTRY: Registry[type[Judge]] = Registry(
    "judges", {name: f"{__name__}.{where}" for name, where in JUDGES.items()}, _no_judge
)


def by_name(name: str) -> type[Judge]:
    """The class of a judge: one of `JUDGES`, or of the entry-point group `mithridate.judges`.

    Raises:
        InputError: no judge has that name, it was taken out, or another package's cannot be loaded.
    """
    if name in TAKEN_OUT:
        raise InputError(f"judge `{name}` {TAKEN_OUT[name]}")
    if name in REGISTRY:
        return REGISTRY[name]
    raise InputError(f"no such judge `{name}`{nearest(str(name), REGISTRY)}")


def verdict(prompt: str, answer: str, set: PromptSet = "harmful") -> Verdict:
    """The shipped rules (`rules-v3`) on one answer.

    Args:
        prompt: what was asked.
        answer: what was answered, whole or cut off.
        set: "harmful" for a request that should be refused, "benign" for one that should not be.

    Returns:
        A `Verdict`: its `label` (refused, complied, incoherent, other or unclear: docs/judges_measured.md says what
        they mean and how often they are wrong) and its `reason`, the rule that fired with the words it found.

    Raises:
        InputError: another `set`.
    """
    from mithridate.rules.answers import verdict as rules

    if not isinstance(prompt, str) or not isinstance(answer, str):
        raise InputError(f"verdict: expected two texts, got {type(prompt).__name__} and {type(answer).__name__}.")
    if set not in ("harmful", "benign"):
        raise InputError(f"verdict: set is {set!r}; give 'harmful' or 'benign'.")
    return rules(prompt, answer, set)


def names() -> list[str]:
    """Those of `JUDGES`, and those that installed packages declare."""
    return list(REGISTRY)


def judge(spec: str | Mapping[str, Mapping[str, Any] | None]) -> Judge:
    """A judge from its name, or from {name: {field: value}} as an experiment file has it.

    Raises:
        InputError: no such judge or field (the nearest is named), a missing field, or a value that does not fit.
    """
    if isinstance(spec, str):
        spec = {spec: {}}
    if not isinstance(spec, Mapping) or len(spec) != 1:
        raise InputError(f"a judge is a name or {{name: {{field: value}}}}, with one name, not {spec!r}")
    name, values = next(iter(spec.items()))
    cls = by_name(name)
    if not isinstance(values, Mapping | None):
        raise InputError(f"judge `{name}`: expected fields, got {values!r}")
    return _made(name, cls, dict(values or {}))


def table() -> list[dict[str, str]]:
    """A row for each judge: name, kind, model, licence, size, source, and how it was exercised here."""
    rows = []
    for name in JUDGES:
        cls: Any = by_name(name)
        defaults = {f.name: f.default for f in dataclasses.fields(cls)}
        model = defaults.get("model")
        kind = getattr(cls, "kinds", defaults["kind"])
        row = {"name": name, "kind": kind, "model": model if isinstance(model, str) else ""}
        rows.append(row | dataclasses.asdict(cls.about))
    return rows


def _made(name: str, cls: Any, values: dict[str, Any]) -> Any:
    """An instance, its fields checked by name and type."""
    from mithridate.methods.fields import field_problems
    from mithridate.problems import error_of

    known = {f.name: f for f in dataclasses.fields(cls) if f.init and f.name != "generator"}
    problems = field_problems("", values, cls, list(known))
    needed = (dataclasses.MISSING, dataclasses.MISSING)
    problems += [
        f"{field}: missing"
        for field, f in known.items()
        if (f.default, f.default_factory) == needed and field not in values
    ]
    if problems:
        raise error_of(f"judge `{name}`", [problem.removeprefix(".") for problem in problems])
    return cls(**values)
