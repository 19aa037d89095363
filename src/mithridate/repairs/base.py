"""Where `Repair` was before all methods had one contract (`mithridate.methods`); the name stays importable here."""

from mithridate.methods.repair import Repair

__all__ = ["Repair"]
