"""What a method is, for everybody: the contract of defenses, repairs and attacks, and how they are found by name."""

from mithridate.methods.attack import Attack, Phase
from mithridate.methods.base import CONTRACT, Cost, Method, TestTime
from mithridate.methods.defense import Defense
from mithridate.methods.registry import by_name
from mithridate.methods.repair import Repair

__all__ = ["CONTRACT", "Attack", "Cost", "Defense", "Method", "Phase", "Repair", "TestTime", "by_name"]
