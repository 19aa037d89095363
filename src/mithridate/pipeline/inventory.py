"""What a store holds: each artefact with what it cost, whether it is whole, and whether any run still refers to it.

Before it makes anything, a run notes in the store which artefacts it will stand on (`<root>/runs/<digest of the run's
folder>.json`). An artefact is in use while such a run's folder is there, or while one that is in use was made from it.
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
from mithridate.pipeline.store import MANIFEST, Store, replace_file

_RUNS = "runs"


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
            words.append(f"ratio {attack['harmful_ratio']:g}")
        words += [
            f"{key} {config[key]}" for key in ("protocol", "upto", "step", "seed") if config.get(key) is not None
        ]
        return ", ".join(words)


def refer(store: Store, run: Path, artefacts: Iterable[Path]) -> None:
    """Notes that the run in folder `run` stands on these artefacts, in place of what it noted before."""
    run = run.absolute()
    note = store.root / _RUNS / f"{hashlib.sha256(str(run).encode()).hexdigest()[:16]}.json"
    note.parent.mkdir(parents=True, exist_ok=True)
    replace_file(note, json.dumps({"run": str(run), "artefacts": sorted({path.name for path in artefacts})}))


def inventory(store: Store) -> list[Artefact]:
    """The finished artefacts, oldest first. One without a readable `stage.json` is not listed: `verify` names it."""
    manifests = {}
    for path in sorted(store.root.glob(f"*/{MANIFEST}")):
        try:
            manifests[path.parent] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
    used = _used(store, manifests)
    found = [Artefact(folder, manifest, folder.name in used) for folder, manifest in manifests.items()]
    return sorted(found, key=lambda artefact: (artefact.manifest.get("finished", ""), artefact.name))


def _used(store: Store, manifests: dict[Path, dict[str, Any]]) -> set[str]:
    names = {manifest.get("key"): folder.name for folder, manifest in manifests.items()}
    parents = {
        folder.name: {names[key] for key in manifest.get("parents", {}).values() if key in names}
        for folder, manifest in manifests.items()
    }
    todo = []
    for note in (store.root / _RUNS).glob("*.json"):
        written = json.loads(note.read_text())
        if (Path(written["run"]) / "experiment.yaml").exists():
            todo += written["artefacts"]
    used: set[str] = set()
    while todo:
        name = todo.pop()
        if name not in used:
            used.add(name)
            todo += parents.get(name, ())
    return used


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
    """
    checked = []
    for folder in sorted(path.parent for path in store.root.glob(f"*/{MANIFEST}")):
        stage, _, short = folder.name.rpartition("-")
        try:
            key = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["key"]
        except (ValueError, KeyError, TypeError):
            key = short  # its manifest is damaged: whatever the key, it does not match
        checked.append((folder.name, store.find(stage, key) is not None))
    return checked


def collect(store: Store, delete: bool) -> list[Artefact]:
    """The artefacts that no run refers to any more; removed where `delete` is true."""
    unused = [artefact for artefact in inventory(store) if not artefact.used]
    for artefact in unused if delete else ():
        aside = store.root / "work" / f".{artefact.name}.removed"  # out of sight at once, however long it takes
        aside.parent.mkdir(exist_ok=True)
        with store.locked(artefact.name):
            artefact.folder.rename(aside)
        shutil.rmtree(aside)
    return unused
