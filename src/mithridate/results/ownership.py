"""Whose a folder is: a run writes only into a new or empty one, and into its own.

`experiment.yaml` in a run's folder begins with a line that holds two digests: of what the folder belongs to (the
experiment without its swept values, or what a study was asked for), and of the rest of the file, so that a file that a
user wrote or changed is not taken for it. Runs from before there was such a line are known by the file's form, and by
the table beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mithridate.errors import InputError
from mithridate.experiment.config import (
    Experiment,
    canonical,
    load_experiment,
    resolved_yaml,
    swept_paths,
    with_defaults,
)
from mithridate.experiment.yaml12 import dump_yaml, parse_yaml
from mithridate.files import digest, replace_file

FILE = "experiment.yaml"
# What the commands write into their folders.
OWN = (
    *(FILE, "results.json", "records.parquet", "records", "verdicts", "cells.json", "history.json", "report.html"),
    *("judges.json", "tuning.jsonl", "tuning.json", "tuning", "search", "knowing"),
    *("attack.json", "attack.csv", "attack.md", "attack.svg", "benchmark.json", "benchmark.csv", "benchmark.md"),
    *("reproduce.json", "reproduce.md", "slurm", "verdict.json"),
)
_LINE = re.compile(r"# Written by mithridate: (run|study) ([0-9a-f]{16}), content ([0-9a-f]{16})\. .*\n")
_REMEDY = "Give another folder (--out), or --replace to put this run in its place"


def text_of(source: Experiment, owner: Any = None) -> str:
    """The resolved experiment as it is written into the folder of a run.

    Args:
        owner: what the folder belongs to, in JSON types; the experiment, if not given.
    """
    body = resolved_yaml(source)
    belongs = digest(identity(source, swept_paths(source)) if owner is None else owner)
    kind = "run" if owner is None else "study"
    line = (
        f"# Written by mithridate: {kind} {belongs[:16]}, content {_short(body)}. To change it, copy it elsewhere.\n"
    )
    return line + body


def require_own(folder: Path, source: Experiment, owner: Any = None) -> None:
    """Raises InputError where a folder holds something that is not this run's: a file of the user's own, another
    experiment, other files. Arguments as of `text_of`.

    The same experiment with other swept values is the same run, extended.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}: is a file. Give a folder")
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
    if not names:
        return
    file = folder / FILE
    if not file.is_file():
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise InputError(f"--out {folder}: holds files that no run wrote ({shown}). {_REMEDY}")
    found = _read(file)
    if found is None:
        raise InputError(
            f"--out {folder}: {file} is your own (or was changed since a run wrote it), and would be overwritten. "
            f"Give another folder (--out), or --replace to overwrite it (a copy is kept as {FILE}.bak)"
        )
    there, study = found
    if owner is not None and study == digest(owner)[:16]:
        return
    if owner is None and study is None:
        swept = [*swept_paths(there), *swept_paths(source)]
        if identity(there, swept) == identity(source, swept):
            return
    raise InputError(f"--out {folder}: holds {_told(there, source)}. {_REMEDY}")


def open_study(folder: Path, source: Experiment, owner: Any, replacing: bool = False) -> None:
    """Takes a folder for a study of several runs, before the first of them: from now on it is the study's.

    Args:
        source: what its experiment file holds until a run of it says otherwise.
        owner: as of `text_of`.
        replacing: whether what is there goes first.

    Raises:
        InputError: as `require_own`, or the folder cannot be made.
    """
    if not replacing:
        require_own(folder, source, owner)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if replacing:
            clear(folder)
        if not (folder / FILE).exists():
            replace_file(folder / FILE, text_of(source, owner))
    except OSError as error:
        raise InputError(f"--out {folder}: cannot be written ({error.strerror}). Give a folder that can.") from error


def clear(folder: Path) -> None:
    """Removes what commands wrote into a folder (`--replace`). An experiment file of the user's own is kept aside;
    other files are left."""
    file = folder / FILE
    if file.is_file() and _read(file) is None:
        file.rename(folder / f"{FILE}.bak")
    for name in OWN:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _told(there: Experiment, source: Experiment) -> str:
    """In what another experiment differs, in words."""
    swept = [*swept_paths(there), *swept_paths(source)]
    mine, theirs = (dict(_flat(identity(one, swept))) for one in (source, there))
    differ = [path for path in {**theirs, **mine} if mine.get(path) != theirs.get(path)]
    shown = ", ".join(differ[:3]) + (", ..." if len(differ) > 3 else "")
    return f"another experiment (it differs in {shown})" if differ else "what another command wrote"


def _flat(value: Any, path: str = "") -> Any:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{path}.{name}" if path else name)
    else:
        yield path, value


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(file: Path) -> tuple[Experiment, str | None] | None:
    """A run's own experiment file, and the digest of the study that its folder belongs to (None: to the experiment);
    None where no run wrote it."""
    try:
        text = file.read_text(encoding="utf-8")
        line = _LINE.match(text)
        body = text[line.end() :] if line else text
        if line and line[3] != _short(body):
            return None
        experiment = load_experiment(file)
        whole = (file.parent / "cells.json").is_file() and dump_yaml(parse_yaml(body, str(file))) == body
        if not line and not whole:
            return None
    except (InputError, OSError, ValueError):
        return None
    return experiment, line[2] if line and line[1] == "study" else None


def identity(experiment: Experiment, swept: Sequence[str]) -> dict[str, Any]:
    """What makes an experiment the one that it is: its fields, but those at `swept` paths, with the defaults of its
    methods filled in."""
    filled = replace(experiment, sweep={}, variants={})
    with contextlib.suppress(InputError):  # it is only filled in here; what is wrong with it is said elsewhere
        filled = with_defaults(filled)
    if filled.accelerate == "none":
        filled = replace(filled, processes=1)
    raw = canonical(filled)
    del raw["sweep"]
    for path in swept:
        _remove(raw, path.split("."))
    return raw


def _remove(node: Any, path: list[str]) -> None:
    """Takes the field at a path out of nested fields, where it is."""
    if isinstance(node, list) and len(node) == 1 and not path[0].isdigit():
        node = node[0]
    if isinstance(node, list):
        node = {str(i): value for i, value in enumerate(node)}
    if not isinstance(node, dict) or path[0] not in node:
        return
    if len(path) == 1:
        del node[path[0]]
    else:
        _remove(node[path[0]], path[1:])
