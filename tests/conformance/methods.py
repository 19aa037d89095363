"""Every method by name, with its own example: nothing here is kept by hand but which ones are fast to have at hand."""

from dataclasses import replace
from functools import cache, partial
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
    from tests.defenses.helpers import rows

    cls = by_name(kind)[name]
    made = {field: paired_with(rows("user")) for field in getattr(cls, "paired", ())}  # what the suites train on
    return replace(cls.example(), **made, **settings)


@cache
def paired_with(dataset: Any) -> Any:
    """The same prompts with other answers."""
    return dataset.map(
        lambda row: {"completion": [{"role": "assistant", "content": "Sure " + row["prompt"][0]["content"]}]}
    )


DEFENSES = {name: partial(example, "defenses", name) for name in by_name("defenses")}
"""What makes an example of each defense, by name."""
