"""Training-time defenses, one a file."""

from mithridate.methods.defense import Defense
from mithridate.methods.registry import by_name as _by_name


def by_name() -> dict[str, type[Defense]]:
    """Every defense by its lower-case class name; see `mithridate.methods.by_name`."""
    return _by_name("defenses")
