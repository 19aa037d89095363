"""What a store holds: each artefact with what it cost, whether it is whole, and whether any run still refers to it.

Before it makes anything, a run notes in the store which artefacts it will stand on (`<root>/runs/<digest of the run's
folder>.json`). An artefact is in use while such a run's folder is there, or while one that is in use was made from it.
What a run stands on whose folder is gone is removed only when that is said: the folder may have been moved.
A note grows until a run has finished the table in its folder: then it names what this table stands on, and no more.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mithridate.errors import InputError
from mithridate.experiment.methods import attack_in_words
from mithridate.files import replace_file
from mithridate.store import MANIFEST, Store, seal

_RUNS = "runs"  # also the name of the lock under which notes are written, and under which `collect` relies on them
_ARTEFACTS = f"*-{'?' * 12}/{MANIFEST}"
_REMOVED = ".removed"


@dataclass(frozen=True)
class Artefact:
    """One finished stage in a store: its folder, its `stage.json`, and whether a run still needs it."""

    folder: Path
    manifest: dict[str, Any]
    used: bool

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def bytes(self) -> int:
        return sum(file["bytes"] for file in self.manifest["files"].values())

    @property
    def what(self) -> str:
        """What the stage did, in a few words, from its configuration."""
        config = self.manifest.get("config", {})
        words = [*config.get("defense", {}), *config.get("repair", {})]
        if attack := config.get("attack"):
            words.append(attack_in_words(attack))
        said = {"protocol": "", "upto": "after ", "step": "step ", "seed": "seed "}
        words += [f"{said[key]}{config[key]}" for key in said if config.get(key) is not None]
        return ", ".join(words)


def in_units(size: float) -> str:
    """A number of bytes in words."""
    for unit, many in (("GB", 1e9), ("MB", 1e6)):
        if size >= many:
            return f"{size / many:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"


def register_run(store: Store, run: Path, artefacts: Iterable[Path], only: bool = False) -> None:
    """Notes that the run in folder `run` stands on these artefacts, besides what it noted before.

    Args:
        only: in place of what it noted before, which nothing in its folder speaks of any more.

    Raises:
        InputError: what it noted before cannot be read.
    """
    run = run.absolute()
    note = store.root / _RUNS / f"{hashlib.sha256(str(run).encode()).hexdigest()[:16]}.json"
    names = {path.name for path in artefacts}
    with store.locked(_RUNS):
        if not only and note.exists():
            names.update(_read(note)["artefacts"])
        note.parent.mkdir(exist_ok=True)
        replace_file(note, json.dumps({"run": str(run), "artefacts": sorted(names)}))


def _read(note: Path) -> dict[str, Any]:
    """What a run noted. One that cannot be read is never taken for none: `collect` would remove what it stands on."""
    try:
        written = json.loads(note.read_text(encoding="utf-8"))
        names = written["artefacts"]
        if isinstance(written["run"], str) and isinstance(names, list) and all(isinstance(one, str) for one in names):
            return written
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(
        f"{note}: cannot be read, and says what a run stands on. Delete this file and start again every run whose "
        "stages are to be kept, before `mithridate store gc --delete`: it notes them anew, and computes none of them."
    )


def inventory(store: Store) -> list[Artefact]:
    """The finished artefacts, oldest first. One whose `stage.json` is damaged is not listed: `verify` names it.

    Raises:
        InputError: what a run noted cannot be read.
    """
    manifests = {}
    for path in sorted(store.root.glob(_ARTEFACTS)):
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            whole = manifest["digest"] == seal({name: manifest[name] for name in manifest if name != "digest"})
        except (OSError, ValueError, KeyError, TypeError):  # OSError: another `collect` has just removed it
            continue
        if whole:  # then it has all that is read of it
            manifests[path.parent] = manifest
    used = _used(store, manifests)
    found = [Artefact(folder, manifest, folder.name in used) for folder, manifest in manifests.items()]
    return sorted(found, key=lambda artefact: (artefact.manifest.get("finished", ""), artefact.name))


def made_for(store: Store, run: Path) -> list[Artefact]:
    """Those that the run in this folder, and runs in folders below it, stand on; oldest first.

    Raises:
        InputError: what a run noted cannot be read.
    """
    run, found = run.absolute(), inventory(store)
    notes = [_read(note) for note in (store.root / _RUNS).glob("*.json")]
    own = [name for note in notes if Path(note["run"]).is_relative_to(run) for name in note["artefacts"]]
    needed = _with_parents(own, {artefact.folder: artefact.manifest for artefact in found})
    return [artefact for artefact in found if artefact.name in needed]


def _used(store: Store, manifests: dict[Path, dict[str, Any]], gone: bool = False) -> set[str]:
    """Those that runs stand on; with `gone`, also runs whose folders are not there."""
    todo = []
    for note in (store.root / _RUNS).glob("*.json"):
        written = _read(note)
        if gone or (Path(written["run"]) / "experiment.yaml").exists():
            todo += written["artefacts"]
    return _with_parents(todo, manifests)


def of_gone_runs(store: Store) -> dict[Path, list[Artefact]]:
    """By the folder of a run that is not there (any more, or at the moment), what it stands on and no other run does.

    Raises:
        InputError: what a run noted cannot be read.
    """
    unused = {artefact.name: artefact for artefact in inventory(store) if not artefact.used}
    manifests = {artefact.folder: artefact.manifest for artefact in unused.values()}
    notes = [_read(note) for note in sorted((store.root / _RUNS).glob("*.json"))]
    found = {Path(note["run"]): _with_parents(note["artefacts"], manifests) for note in notes}
    found = {run: [one for name, one in unused.items() if name in names] for run, names in found.items()}
    return {run: mine for run, mine in found.items() if mine and not (run / "experiment.yaml").exists()}


def _with_parents(todo: list[str], manifests: dict[Path, dict[str, Any]]) -> set[str]:
    """Artefacts by name, with all that they were made from."""
    names = {manifest.get("key"): folder.name for folder, manifest in manifests.items()}
    parents = {
        folder.name: {names[key] for key in manifest.get("parents", {}).values() if key in names}
        for folder, manifest in manifests.items()
    }
    found: set[str] = set()
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += parents.get(name, ())
    return found


def find(store: Store, name: str) -> Artefact:
    """The artefact whose folder's name, or key, begins with `name`.

    Raises:
        InputError: there is none, or there are several.
    """
    found = [a for a in inventory(store) if a.name.startswith(name) or a.manifest["key"].startswith(name)]
    if len(found) != 1:
        many = ", ".join(artefact.name for artefact in found[:5])
        what = f"several artefacts ({many}, ...)" if found else "no artefact"
        raise InputError(f"{name!r}: {what} of that name in the store {store.root}; see `mithridate store ls`")
    return found[0]


def verify(store: Store) -> list[tuple[str, bool]]:
    """Each artefact's name and whether its files match their digests; one that does not is moved aside.

    What was moved aside is computed again when a run next needs it.

    Raises:
        InputError: there is no such store.
    """
    if not store.root.is_dir():
        raise InputError(f"the store {store.root} is not there: set MITHRIDATE_STORE to the folder of one")
    checked = []
    for folder in sorted(path.parent for path in store.root.glob(_ARTEFACTS)):
        stage, _, short = folder.name.rpartition("-")
        try:
            key = str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["key"])
        except (ValueError, KeyError, TypeError):
            key = ""
        # With a damaged key, another folder or none would be looked at; the short one leads here, and does not match.
        checked.append((folder.name, store.find(stage, key if key.startswith(short) else short) is not None))
    return checked


def collect(store: Store, delete: bool, gone: bool = False) -> list[Artefact]:
    """The artefacts that no run refers to any more; removed where `delete` is true.

    Args:
        gone: whether those count, too, that only runs refer to whose folders are not there. They may have been moved.
    """
    found = inventory(store)
    kept = set() if gone else _used(store, {artefact.folder: artefact.manifest for artefact in found}, gone=True)
    unused = [artefact for artefact in found if not artefact.used and artefact.name not in kept]
    if not delete:
        return unused
    work = store.root / "work"
    for aside in work.glob(f".*{_REMOVED}"):  # left by one that was killed; or another is at it, then it has the lock
        with store.locked(aside.name[1:].removesuffix(_REMOVED)):
            if aside.exists():
                shutil.rmtree(aside)
    removed, manifests = [], {artefact.folder: artefact.manifest for artefact in found}
    for artefact in unused:
        aside = work / f".{artefact.name}{_REMOVED}"  # out of sight at once, however long it takes
        work.mkdir(exist_ok=True)
        with store.locked(artefact.name):
            with store.locked(_RUNS):  # a run may have noted it since, and none does between here and the renaming
                if artefact.name in _used(store, manifests, gone=not gone) or not artefact.folder.exists():
                    continue
                artefact.folder.rename(aside)
            shutil.rmtree(aside)
        removed.append(artefact)
    return removed
