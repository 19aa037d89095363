"""The experiment: reading a file, its types, its cells, and what of it can be checked when."""

from mithridate.experiment.check import resolve, with_defaults
from mithridate.experiment.combinations import quantisation_problems
from mithridate.experiment.model import (
    FULL,
    HARMFUL,
    Adapter,
    Align,
    Attack,
    Budget,
    Evaluate,
    Experiment,
    Finetune,
    canonical,
    resolved_yaml,
)
from mithridate.experiment.places import in_order
from mithridate.experiment.read import load_cells, load_experiment, methods_of
from mithridate.experiment.sweep import expand, swept_paths, swept_values

__all__ = [
    "FULL",
    "HARMFUL",
    "Adapter",
    "Align",
    "Attack",
    "Budget",
    "Evaluate",
    "Experiment",
    "Finetune",
    "canonical",
    "expand",
    "in_order",
    "load_cells",
    "load_experiment",
    "methods_of",
    "quantisation_problems",
    "resolve",
    "resolved_yaml",
    "swept_paths",
    "swept_values",
    "with_defaults",
]
