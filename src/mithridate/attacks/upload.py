"""A user's upload as it is: all of its rows, whatever is among them. No attack of ours; what one is, nobody says."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mithridate.errors import InputError
from mithridate.methods.attack import Attack


@dataclass(kw_only=True)
class Upload(Attack):
    """The rows of `task`, all of them, in an order by the seed.

    How many of them attack is not known (`known`): tables say so, and the model is compared with the aligned one as an
    attacked model is.
    """

    paper: ClassVar[str] = "a user's own rows"
    provenance: ClassVar[str] = "own"
    roles: ClassVar[dict[str, str]] = {"benign": "task"}
    known: ClassVar[bool] = False

    def rows(
        self, roles: Mapping[str, Sequence[dict[str, Any]]], seed: int, model: Any = None
    ) -> list[dict[str, Any]]:
        given = [{**row, "poisoned": True} for row in roles["benign"]]
        if not given:
            raise InputError("the upload has no rows")
        random.Random(seed).shuffle(given)
        return given
