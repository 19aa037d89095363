"""Reads an experiment file, or the same as a dict: every problem in it is named at once, by its path. No torch."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from mithridate.errors import InputError
from mithridate.experiment import places, training_fields
from mithridate.experiment.model import Experiment, parsed
from mithridate.experiment.roles import source_problems
from mithridate.experiment.sources import Source
from mithridate.experiment.sweep import expand, overlap, sweep_problems
from mithridate.experiment.yaml12 import parse_yaml
from mithridate.files import canonical_json
from mithridate.methods.fields import adapter_of
from mithridate.problems import error_of, kind, nearest

logger = logging.getLogger(__name__)

VARIANTS = "variants"


def load_experiment(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of `load_cells`, without its cells."""
    return _load(source, overrides)[0]


def load_cells(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> tuple[Experiment, list[Experiment]]:
    """Reads an experiment and its cells, and checks all that can be checked without torch.

    With a `sweep`, the fields of the result are those of its first cell before its variant; `expand` gives all cells.

    Args:
        source: path of a YAML file, or the same as a dict.
        overrides: `path.to.field=value` strings, the value in YAML; applied in order, before anything is checked.

    Raises:
        InputError: with every problem found, one a line, each with its path.
    """
    experiment, cells, old = _load(source, overrides)
    for line in old:
        logger.warning("%s: %s", "experiment" if isinstance(source, Mapping) else source, line)
    return experiment, cells


def _load(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str]
) -> tuple[Experiment, list[Experiment], list[str]]:
    """The experiment, its cells, and how what is written in an old form is written now."""
    if isinstance(source, Mapping):
        where, raw, base = "experiment", dict(source), Path()
    else:
        where, raw, base = str(source), _read(Path(source)), Path(source).parent
    problems: list[str] = []
    raw, old = _modern(raw)
    for override in overrides:
        try:
            raw, _ = _modern(_overridden(raw, override))
        except InputError as error:
            # What YAML says of the value names the override already.
            problems.append(str(error) if str(error).startswith("-o ") else f"-o {override}: {error}")
    if problems:
        raise error_of(where, problems)

    sweep = raw["sweep"] if isinstance(raw.get("sweep"), dict) else {}
    problems += sweep_problems(sweep, _variants(raw))
    for path, values in sweep.items() if not problems else ():
        try:
            raw = places.put(raw, path, values[0])
        except InputError as error:
            problems.append(f"sweep.{path}: {error}")
    experiment, found = parsed(raw | {"sweep": {}} if problems else raw)
    problems += found
    if problems or experiment is None:
        raise error_of(where, list(dict.fromkeys([*problems, *_refused_in(raw), *_data_problems(raw, base)])))
    return experiment, expand(experiment, where), old


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        folder = path.parent
        others = [str(folder / p.name) for p in folder.glob("*.y*ml")] if folder.is_dir() else []
        raise InputError(f"{path}: no such file{nearest(str(path), others, listed=False)}") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder; give an experiment file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); give an experiment file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    raw = parse_yaml(text, str(path))
    if raw is None:
        raise InputError(f"{path}: the file is empty; see the README for an experiment file")
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected fields (`model: ...`), got {kind(raw)}")
    return raw


def _modern(raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A file in today's form, and a line for each old form in it."""
    sweep = raw.get("sweep")
    if not isinstance(sweep, dict) or VARIANTS not in sweep:
        return raw, []
    if VARIANTS in raw:
        raise InputError("sweep.variants, variants: are the same; put both into `variants`, at the top of the file")
    rest = {path: values for path, values in sweep.items() if path != VARIANTS}
    line = "sweep.variants is an old form: write `variants: [...]` at the top of the file, outside `sweep`"
    return {**raw, "sweep": rest, VARIANTS: sweep[VARIANTS]}, [line]


def _variants(raw: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return places.variants(raw.get(VARIANTS))
    except PydanticCustomError:
        return {}  # told when the whole file is read


def _overridden(raw: dict[str, Any], override: str) -> dict[str, Any]:
    """The file with one `path.to.field=value`. A field that is swept is fixed by it."""
    path, equals, value = override.partition("=")
    path = path.strip()
    if not equals or not path:
        raise InputError("expected path.to.field=value")
    sweep = raw.get("sweep") or {}
    if path.split(".")[0] not in ("sweep", VARIANTS):
        for name, values in _variants(raw).items():
            if any(overlap(path, other) for other in values):
                raise InputError(f"`{path}` is set by variants.{name}, which would undo it; override variants.{name}")
        for swept in sweep if isinstance(sweep, dict) else ():
            if path != swept and overlap(path, swept):
                raise InputError(f"`{swept}` is swept, which would undo it; override sweep.{swept} or {swept} itself")
    given = parse_yaml(value, f"-o {override}", lines=False)
    if isinstance(sweep, dict) and path in sweep:
        raw = {**raw, "sweep": {name: values for name, values in sweep.items() if name != path}}
    for key, there in (("sweep", sweep), (VARIANTS, _variants(raw))):
        if path.startswith(f"{key}.") and isinstance(there, dict):  # the rest is one key, dots and all
            return {**raw, key: {**there, path.removeprefix(f"{key}."): given}}
    return places.put(raw, path, given)


def _refused_in(raw: Mapping[str, Any]) -> list[str]:
    """Of a file that is wrong elsewhere, the fields of trainings that no file may have."""
    found = []
    for name in ("align", "finetune"):
        stage = raw.get(name)
        training = stage.get("training") if isinstance(stage, dict) else None
        found += training_fields.problems(f"{name}.training", training) if isinstance(training, dict) else []
    return found


def _data_problems(raw: Mapping[str, Any], base: Path) -> list[str]:
    """What is wrong with the sources of a file that is wrong elsewhere, so that both are told at once."""
    found: dict[str, list[Source]] = {}
    data = raw.get("data")
    for role, sources in data.items() if isinstance(data, dict) else ():
        with contextlib.suppress(ValidationError, InputError):  # of another form: told already
            text = canonical_json(places.listed(sources))
            found[role] = adapter_of(list[Source]).validate_json(text, strict=True)
    return source_problems(found, base)


def methods_of(words: Sequence[str], where: str) -> dict[str, dict[str, Any]]:
    """Methods as an experiment file writes them, from the command line: {name: {field: value}}.

    Raises:
        InputError: a word is not of that form, or a name appears twice.
    """
    try:
        return places.methods([parse_yaml(word, where, lines=False) for word in words])
    except PydanticCustomError as error:
        raise InputError(f"{where}: {error}") from error
