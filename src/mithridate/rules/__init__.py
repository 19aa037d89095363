"""The written rules that read an answer: does it refuse, does it comply, is it broken?

A judge gives them out (`mithridate.judges`), and a defense may ask them what an upload teaches.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Verdict:
    """What written rules say of an answer: the `label`, and the `reason`: the rule that fired and its words."""

    label: Literal["refused", "complied", "incoherent", "other", "unclear"]
    reason: str
