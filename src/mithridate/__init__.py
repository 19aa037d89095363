"""Defenses against harmful fine-tuning of language models: their exact update rules, the attack, the measurement."""

import importlib
from typing import TYPE_CHECKING, Any

from mithridate import _moved

if TYPE_CHECKING:
    from mithridate.attacks.poisoning import poison
    from mithridate.defenses.asft import AsFT
    from mithridate.defenses.base import Defense
    from mithridate.defenses.booster import Booster
    from mithridate.defenses.constrainedsft import ConstrainedSFT
    from mithridate.defenses.ctrap import CTRAP
    from mithridate.defenses.deepenedrefusals import DeepenedRefusals
    from mithridate.defenses.ewc import EWC
    from mithridate.defenses.fewersteps import FewerSteps
    from mithridate.defenses.filter import Filter
    from mithridate.defenses.kl import KL
    from mithridate.defenses.ldifs import LDIFS
    from mithridate.defenses.lisa import Lisa
    from mithridate.defenses.lowerlr import LowerLR
    from mithridate.defenses.panacea import Panacea
    from mithridate.defenses.ptst import PTST
    from mithridate.defenses.repnoise import RepNoise
    from mithridate.defenses.safegrad import SafeGrad
    from mithridate.defenses.safetymix import SafetyMix
    from mithridate.defenses.sbr import SBR
    from mithridate.defenses.tvaccine import TVaccine
    from mithridate.defenses.vaccine import Vaccine
    from mithridate.errors import InputError, MithridateError, UnsupportedSetup
    from mithridate.evaluation import Evaluation, evaluate
    from mithridate.pipeline.runner import Run, run
    from mithridate.repairs.antidote import Antidote
    from mithridate.repairs.lox import LoX
    from mithridate.repairs.randommask import RandomMask
    from mithridate.repairs.randomnoise import RandomNoise
    from mithridate.repairs.resta import RESTA
    from mithridate.repairs.safedelta import SafeDelta
    from mithridate.repairs.safelora import SafeLoRA
    from mithridate.repairs.wiseft import WiSEFT
    from mithridate.results.comparison import Comparison, compare
    from mithridate.results.release import GateVerdict, Limits, gate
    from mithridate.training.mixin import DefenseMixin
    from mithridate.training.trainer import DefenseTrainer

__version__ = "0.1.0"

_moved.install()

# Where each public name lives. Imported on first use (PEP 562), so that `import mithridate` needs no torch.
_PUBLIC = {
    "Antidote": "mithridate.repairs.antidote",
    "AsFT": "mithridate.defenses.asft",
    "Booster": "mithridate.defenses.booster",
    "CTRAP": "mithridate.defenses.ctrap",
    "DeepenedRefusals": "mithridate.defenses.deepenedrefusals",
    "Defense": "mithridate.defenses.base",
    "ConstrainedSFT": "mithridate.defenses.constrainedsft",
    "Comparison": "mithridate.results.comparison",
    "DefenseMixin": "mithridate.training.mixin",
    "DefenseTrainer": "mithridate.training.trainer",
    "Evaluation": "mithridate.evaluation",
    "GateVerdict": "mithridate.results.release",
    "InputError": "mithridate.errors",
    "Limits": "mithridate.results.release",
    "EWC": "mithridate.defenses.ewc",
    "FewerSteps": "mithridate.defenses.fewersteps",
    "Filter": "mithridate.defenses.filter",
    "KL": "mithridate.defenses.kl",
    "LDIFS": "mithridate.defenses.ldifs",
    "Lisa": "mithridate.defenses.lisa",
    "LoX": "mithridate.repairs.lox",
    "LowerLR": "mithridate.defenses.lowerlr",
    "MithridateError": "mithridate.errors",
    "PTST": "mithridate.defenses.ptst",
    "Panacea": "mithridate.defenses.panacea",
    "RESTA": "mithridate.repairs.resta",
    "RandomMask": "mithridate.repairs.randommask",
    "RandomNoise": "mithridate.repairs.randomnoise",
    "RepNoise": "mithridate.defenses.repnoise",
    "Run": "mithridate.pipeline.runner",
    "SBR": "mithridate.defenses.sbr",
    "SafeDelta": "mithridate.repairs.safedelta",
    "SafeGrad": "mithridate.defenses.safegrad",
    "SafeLoRA": "mithridate.repairs.safelora",
    "SafetyMix": "mithridate.defenses.safetymix",
    "TVaccine": "mithridate.defenses.tvaccine",
    "UnsupportedSetup": "mithridate.errors",
    "Vaccine": "mithridate.defenses.vaccine",
    "compare": "mithridate.results.comparison",
    "WiSEFT": "mithridate.repairs.wiseft",
    "evaluate": "mithridate.evaluation",
    "gate": "mithridate.results.release",
    "poison": "mithridate.attacks.poisoning",
    "run": "mithridate.pipeline.runner",
}

__all__ = [
    "CTRAP",
    "EWC",
    "KL",
    "LDIFS",
    "PTST",
    "RESTA",
    "SBR",
    "Antidote",
    "AsFT",
    "Booster",
    "Comparison",
    "ConstrainedSFT",
    "DeepenedRefusals",
    "Defense",
    "DefenseMixin",
    "DefenseTrainer",
    "Evaluation",
    "FewerSteps",
    "Filter",
    "GateVerdict",
    "InputError",
    "Limits",
    "Lisa",
    "LoX",
    "LowerLR",
    "MithridateError",
    "Panacea",
    "RandomMask",
    "RandomNoise",
    "RepNoise",
    "Run",
    "SafeDelta",
    "SafeGrad",
    "SafeLoRA",
    "SafetyMix",
    "TVaccine",
    "UnsupportedSetup",
    "Vaccine",
    "WiSEFT",
    "compare",
    "evaluate",
    "gate",
    "poison",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
