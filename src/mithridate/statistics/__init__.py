"""Intervals and tests for shares of answers. scipy does the arithmetic; every share is a fraction, every interval 95
%.

- `shares`: one share; of single answers, of several answers per prompt, with answers that a judge left unscored.
- `comparisons`: two runs on the same prompts or on different ones, with one or several answers each; Holm's
  correction across a table.
- `seeds`: one share, or one difference, over several seeds.
- `needed`: how many prompts and seeds decide a limit.
- `detectable`: the smallest difference that a comparison could have seen.
- `corrected`: a share counted by a judge who errs at known rates.
- `resistance`: how many steps an attack takes.
"""

from mithridate.statistics.comparisons import holm, paired, paired_by_prompt, unpaired
from mithridate.statistics.corrected import ErrorRates, corrected
from mithridate.statistics.detectable import detectable_paired
from mithridate.statistics.resistance import steps_to
from mithridate.statistics.seeds import across_seeds, paired_across_seeds
from mithridate.statistics.shares import (
    CONFIDENCE,
    by_prompt,
    foreseen,
    proportion,
    proportion_by_prompt,
    proportion_of,
    proportion_with_unscored,
)

__all__ = [
    "CONFIDENCE",
    "ErrorRates",
    "across_seeds",
    "by_prompt",
    "corrected",
    "detectable_paired",
    "foreseen",
    "holm",
    "paired",
    "paired_across_seeds",
    "paired_by_prompt",
    "proportion",
    "proportion_by_prompt",
    "proportion_of",
    "proportion_with_unscored",
    "steps_to",
    "unpaired",
]
