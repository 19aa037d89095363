"""RandomMask: as many entries as Antidote removes, drawn at random. Knows nothing of safety.

    m  = ceil(ratio * n) entries, drawn at random, of each row of n        W  <-  (1 - m) * W

It is Antidote's control (`score="random"`, the same code) under a name of its own, so that a budget or a benchmark can
choose its strength for itself: at the same ratio the two damage a model differently, and what is to be compared is
what they do to harmful answers at the same loss of accuracy. `targets` and `scope` are Antidote's. With `ratio` 0
nothing changes, bit for bit. No paper: Antidote's has no such control.

Cost: no pass, no data: one draw an entry. Memory: as Antidote's without its calibration.

Set-ups: Antidote's, which are refused alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from mithridate.methods.base import Method
from mithridate.repairs.antidote import Antidote, Score


@dataclass(kw_only=True)
class RandomMask(Antidote):
    """Removes entries at random (see the module's text).

    Args:
        ratio: share of the entries to remove, in [0, 1].
        targets: "adapters", "update" or "merged".
        scope: a share of each "row", of each "tensor", or of all together ("global").
        seed: of the draws.
    """

    paper: ClassVar[str] = "baseline without a paper: entries drawn at random"
    citation: ClassVar[str] = ""
    provenance: ClassVar[str] = "own"
    roles: ClassVar[dict[str, str]] = {}
    colour: ClassVar[str] = ""

    score: Score = field(init=False, default="random")

    def controls(self) -> dict[str, Method]:
        return {}
