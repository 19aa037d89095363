"""Every method by name, with its own example: nothing here is kept by hand but which ones are fast to have at hand."""

from typing import Any

import pytest

from mithridate.methods import by_name

# Run by `make test`; the others, which may be many, by `make test-all`.
FAST = {"vaccine", "booster", "lisa", "antidote", "harmful"}


def every(kind: str) -> list[Any]:
    """Parameters for a test: the names of all methods of a kind, those that are not `FAST` marked slow."""
    return [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in sorted(by_name(kind))]


def example(kind: str, name: str, **settings: Any) -> Any:
    """The method's own example, with other settings where they are given."""
    from dataclasses import replace

    return replace(by_name(kind)[name].example(), **settings)


DEFENSES = {name: cls.example for name, cls in by_name("defenses").items()}
"""What makes an example of each defense, by name."""
