"""A customer's upload in the place of an experiment's fine-tuning data: one aligned model, many customers."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_core import PydanticCustomError

from mithridate.data.files import ENDINGS, rows_of
from mithridate.errors import InputError
from mithridate.experiment import places
from mithridate.experiment.sweep import overlap
from mithridate.experiment.yaml12 import parse_yaml

_TAKEN = ("data.task", "data.attacker_harmful", "finetune.attack")  # what an upload takes the place of

logger = logging.getLogger(__name__)


def name_of(file: Path) -> str:
    """A file's name without the ending that says its format."""
    ending = max((one for one in ENDINGS if file.name.lower().endswith(one)), key=len, default="")
    return file.name[: len(file.name) - len(ending)]


def of_upload(file: str | Path, experiment: str | Path | Mapping[str, Any] | None = None) -> list[str]:
    """The overrides with which an experiment fine-tunes on exactly the rows of a file, in an order by its seed.

    The rows are the user's, whatever is among them (the attack of the kind `upload`): the experiment adds no harmful
    ones. Its alignment and its tests are as before, so that a stored alignment is not computed again. The upload has
    no test rows of its own, hence no accuracy.

    Args:
        file: in any format and form that a source may have; relative to the current folder.
        experiment: the file or mapping that they are for. The rows of its attack are then taken out, which are not
            used, so that the upload may have some of them; and so is what its sweep or its variants vary of the attack
            and of the task, with a line in the log.

    Raises:
        InputError: no such file, or one without rows or of a kind that is not read; or the experiment varies a field
            that holds the attack or the task among others.
    """
    path = Path(file).expanduser().absolute()
    try:
        if next(iter(rows_of(path)), None) is None:
            raise InputError(f"{path}: the file has no rows")
    except InputError as error:
        raise InputError(f"--upload {error}") from error
    values = _without_attack(experiment)
    values |= {"data.task": {"source": str(path)}, "finetune.attack": {"kind": "upload"}}
    return [f"{name}={json.dumps(value, default=str)}" for name, value in values.items()]


def _without_attack(experiment: str | Path | Mapping[str, Any] | None) -> dict[str, Any]:
    """The data, the sweep and the variants of an experiment without what an upload takes the place of.

    Of a file that cannot be read, nothing: what is wrong with it is said where it is read in earnest.
    """
    raw: Any = experiment
    if isinstance(experiment, str | Path):
        with contextlib.suppress(OSError, UnicodeDecodeError, InputError):
            raw = parse_yaml(Path(experiment).read_text(encoding="utf-8"), str(experiment))
    raw = raw if isinstance(raw, Mapping) else {}
    sweep = dict(raw["sweep"]) if isinstance(raw.get("sweep"), Mapping) else {}
    older, variants = sweep.pop("variants", None), {}  # `sweep.variants` is their old place
    with contextlib.suppress(PydanticCustomError):
        variants = places.variants(raw.get("variants", older))
    paths = dict.fromkeys(path for values in (sweep, *variants.values()) for path in values)
    varied = [path for path in paths if _taken(path)]
    found: dict[str, Any] = {}
    if varied:
        logger.info("not varied, for an upload takes its place: %s", ", ".join(varied))
        kept: dict[str, Any] = {}
        for name, values in variants.items():
            left = {path: value for path, value in values.items() if path not in varied}
            if left not in kept.values():  # two that differed in the attack alone are one
                kept[name] = left
        found["sweep"] = {path: values for path, values in sweep.items() if path not in varied}
        found["variants"] = {} if list(kept.values()) == [{}] else kept
    data = raw.get("data")
    # of data that is varied elsewhere, no whole can be given
    if isinstance(data, Mapping) and not any(overlap(path, "data") for path in paths if path not in varied):
        found["data"] = {role: sources for role, sources in data.items() if f"data.{role}" not in _TAKEN}
    return found


def _taken(path: str) -> bool:
    """Whether a dotted path lies in what an upload takes the place of."""
    for taken in _TAKEN:
        if overlap(path, taken) and len(path) < len(taken):
            raise InputError(
                f"--upload: the experiment varies `{path}`, in which `{taken}` stands, whose place an upload takes. "
                f"Vary the fields below `{path}` one by one"
            )
    return any(overlap(path, taken) for taken in _TAKEN)
