"""Training-time defenses, one per file."""

from collections.abc import Mapping

from mithridate.methods.defense import Defense
from mithridate.methods.registry import by_name as _by_name


def by_name() -> Mapping[str, type[Defense]]:
    """Every defense by its lower-case class name; see `mithridate.methods.by_name`."""
    return _by_name("defenses")
