"""Where `Defense` was before all methods had one contract (`mithridate.methods`); the name stays importable here."""

from mithridate.methods.base import require_number, require_rows
from mithridate.methods.defense import Defense

__all__ = ["Defense", "require_number", "require_rows"]
