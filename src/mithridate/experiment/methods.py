"""The methods that an experiment names, as objects."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from mithridate.experiment.model import HARMFUL, Experiment, Finetune
from mithridate.experiment.model import Attack as Poisoned
from mithridate.methods.attack import Attack, Phase
from mithridate.methods.base import Method, TestTime
from mithridate.methods.defense import Defense
from mithridate.methods.registry import by_name
from mithridate.methods.repair import Repair

POST_ALIGNMENT = "post-alignment"


def method_of(cls: type[Any], settings: Mapping[str, Any], data: Mapping[str, Any] = {}) -> Any:
    """A method with these settings; the fields that are data sets are None, but for those in `data`."""
    return cls.without_data(**settings, **data)


def attack_of(finetune: Finetune) -> Attack:
    """The attack of a fine-tune."""
    kind, settings = attack_fields(finetune)
    return by_name("attacks")[kind](**settings)


def attack_fields(finetune: Finetune) -> tuple[str, dict[str, Any]]:
    """The kind of a fine-tune's attack, and its own fields."""
    if isinstance(finetune.attack, Poisoned):
        return HARMFUL, dict(vars(finetune.attack))
    own = {name: value for name, value in finetune.attack.items() if name != "kind"}
    return finetune.attack["kind"], own


def named(method: Method) -> tuple[str, dict[str, Any]]:
    """A method as an experiment has it: its name, and its fields that are not None."""
    return type(method).__name__.lower(), {name: v for name, v in method.settings().items() if v is not None}


def attack_values(attack: Attack) -> dict[str, Any]:
    """An attack as the field `finetune.attack` has it."""
    kind, own = named(attack)
    return {"kind": kind, **own}


def attack_config(finetune: Finetune) -> dict[str, Any]:
    """A fine-tune's attack in its stage's key, which holds no kind for the one that was the only one at first."""
    kind, own = attack_fields(finetune)
    return own if kind == HARMFUL else {"kind": kind, **own}


def attack_in_words(config: Mapping[str, Any]) -> str:
    """An attack, as a stage's key has it, in a word or two."""
    return config["kind"] if "kind" in config else f"ratio {config['harmful_ratio']:g}"


def defenses_of(settings: Mapping[str, Mapping[str, Any]]) -> list[Defense]:
    """The defenses of a stage, in the order in which they act."""
    return [method_of(by_name("defenses")[name], fields) for name, fields in settings.items()]


def repair_of(experiment: Experiment, post_alignment: bool) -> tuple[str, Repair] | None:
    """Name and repair of the one that acts before the user's run (`post_alignment`) or after it, drawing by the
    experiment's seed where it draws."""
    for name, settings in experiment.repair.items():
        cls = by_name("repairs")[name]
        if (cls.stage == POST_ALIGNMENT) == post_alignment:
            return name, _drawing(method_of(cls, settings), experiment.seed)
    return None


def _drawing(repair: Repair, seed: int) -> Repair:
    """The same repair, whose draws are others at another seed of the experiment. At seed 0 they are by the repair's
    own alone, as they were everywhere at first."""
    own = repair.settings().get("seed")
    if not seed or own is None:
        return repair
    drawn = hashlib.sha256(f"{seed} {own}".encode()).digest()
    return replace(repair, seed=int.from_bytes(drawn[:6], "big"))


def trained_adapter(experiment: Experiment, phase: Phase) -> Mapping[str, Any] | None:
    """LoraConfig's fields of the adapter that a training of the fine-tune's attack trains; None where it trains all
    weights."""
    if phase.adapter is None:
        return experiment.adapter_of("finetune")
    return None if phase.adapter == "full" else phase.adapter


def repaired_in(experiment: Experiment, stage: str, dtype: str) -> str:
    """The dtype in which stage `harden` or `repair` computes, where models are loaded in `dtype`. Weights that the
    alignment trained are kept in float32, and a fine-tune that trains them all starts from them as they are, so that
    the repair between the two is in float32, too; what is measured is rounded as it is loaded."""
    return "float32" if stage == "harden" and experiment.adapter_of("align") is None else dtype


def plain_by(experiment: Experiment, stage: str) -> bool:
    """Whether a quantised base has been dequantised before `stage`: by a repair that changed its weights."""
    if stage not in ("finetune", "repair") or experiment.finetune is None:
        return False
    hardened = repair_of(experiment, post_alignment=True)
    return bool(hardened and hardened[1].cost().changes != "adapter")


def repair_settings(experiment: Experiment, name: str) -> dict[str, Any]:
    """The fields of an experiment's repair as keys and tables have them: where a budget chooses its strength, the
    budget is in the place of that."""
    settings, cls = dict(experiment.repair[name]), by_name("repairs")[name]
    if experiment.budget and cls.stage != POST_ALIGNMENT:
        settings[cls.strength] = asdict(experiment.budget)
    return settings


def unfollowed(experiment: Experiment, phase: Phase) -> list[str]:
    """The methods that cannot act on a training of the user's, for it trains layers that the alignment left as they
    were (`Method.follows_alignment`), as far as the fields of adapters say where no model is at hand; before a run,
    `setupcheck.require_followed` asks the model."""
    if experiment.align is None or experiment.finetune is None:
        return []
    trained = trained_adapter(experiment, phase)
    aligned = experiment.adapter_of("align")
    if aligned is None or not _wider(aligned, trained or {"target_modules": "all-linear"}):
        return []
    return [type(one).__name__ for one in acting(experiment, "repair") if follows(one)]


def _wider(aligned: Mapping[str, Any], trained: Mapping[str, Any]) -> bool:
    """Whether an adapter is over layers that the alignment's is not over, as far as can be told by their fields."""
    if (only := aligned.get("layers_to_transform")) and trained.get("layers_to_transform") != only:
        return True
    before, after = aligned.get("target_modules"), trained.get("target_modules")
    if not isinstance(before, list) or not isinstance(after, list):
        return isinstance(before, list) and after == "all-linear"
    ends = tuple(f".{name}" for name in before)  # "self_attn.q_proj" is one of those that "q_proj" names
    return any(name not in before and not name.endswith(ends) for name in after)


def follows(method: Method) -> bool:
    """Whether a method, with its settings, takes its directions from what the alignment changed."""
    return method.follows_alignment and "base" in method.model_inputs().values()


def upto_stage(experiment: Mapping[str, Any], last: str) -> dict[str, Any]:
    """The fields of an experiment, as `canonical` gives them, without the stages after `last` (align, finetune or
    repair): what makes the model that is there after it."""
    found = dict(experiment)
    if last != "repair":
        kept = {name: own for name, own in found["repair"].items() if by_name("repairs")[name].stage == POST_ALIGNMENT}
        found = {name: value for name, value in found.items() if name != "budget"} | {"repair": kept}
    return found | {"finetune": None} if last == "align" else found


def acting(experiment: Experiment, upto: str) -> list[Method]:
    """The methods that a model has been through up to stage `upto` (align, finetune or repair), in order."""
    found: list[Method] = [*defenses_of(experiment.align.defense)] if experiment.align else []
    if hardening := repair_of(experiment, post_alignment=True):
        found.append(hardening[1])
    if experiment.finetune and upto != "align":
        found += [*defenses_of(experiment.finetune.defense), attack_of(experiment.finetune)]
    if upto == "repair" and (repair := repair_of(experiment, post_alignment=False)):
        found.append(repair[1])
    return found


def around_prompts(experiment: Experiment, upto: str) -> list[TestTime]:
    """What stands around prompts when the model after stage `upto` is tested; the first is put there first."""
    return [found for method in acting(experiment, upto) if (found := method.at_test())]


def part_of(role: str) -> str:
    """The part of a role that methods get, as `Roles` calls it: of the task, its training rows."""
    return "task_train" if role == "task" else role
