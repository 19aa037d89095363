"""An experiment with other values at some of its paths."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mithridate.experiment.config import Experiment, canonical, load_experiment


def with_values(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """The experiment with these values at these dotted paths. Raises InputError as `load_experiment`."""
    return load_experiment(canonical(experiment), [f"{path}={json.dumps(value)}" for path, value in values.items()])
