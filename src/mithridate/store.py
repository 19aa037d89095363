"""Where finished work is kept: one folder per stage, named by the digest of everything that went into it.

    <root>/<stage>-<first 12 of key>/   a finished artefact and its `stage.json`; never written to again
    <root>/work/<same name>/            one being made; left there by a kill or an error, so that the stage can resume
    <root>/locks/<same name>.lock       held by the process that makes it
    <root>/corrupt/<same name>-<time>/  an artefact whose files no longer match their digests, moved aside

Nothing is ever half-written under a final name: an artefact is built in `work/`, then synced to disk and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mithridate.environment import PeakMemory, hardware, versions
from mithridate.errors import InputError, MithridateError
from mithridate.files import digest, file_digest

logger = logging.getLogger(__name__)

MANIFEST = "stage.json"
_FULL = ("No space left on device", "Disk quota exceeded", "File too large", "basic_ios::clear")
_FULL_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FEW_BYTES = 1 << 20  # with less than this left, an error without a clear text is the disk's


def default_root() -> Path:
    """`MITHRIDATE_STORE`, or `mithridate/store` in the user's cache folder."""
    if given := os.environ.get("MITHRIDATE_STORE"):
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "mithridate" / "store"


class Store:
    """A folder of finished stages, shared by any number of processes.

    Args:
        root: the folder; made when the first artefact is. Default: `default_root()`.
    """

    def __init__(self, root: Path | str | None = None):
        self.root = Path(root).expanduser().absolute() if root is not None else default_root().absolute()
        # Of each artefact, a digest of its manifest and of its files' times when their own digests last matched.
        self._verified: dict[Path, bytes] = {}

    @staticmethod
    def key(
        stage: str, config: Mapping[str, Any], parents: Mapping[str, str], data: Mapping[str, str], version: int
    ) -> str:
        """The digest (64 hex digits) that names a stage's result.

        Args:
            stage: the stage's name.
            config: its resolved configuration, JSON types only.
            parents: the keys of the stages (and the digest of the model) it starts from.
            data: the digests of the records it reads.
            version: raised whenever the stage's code gives another result for the same inputs.
        """
        return digest({"stage": stage, "config": config, "parents": parents, "data": data, "version": version})

    def folder(self, stage: str, key: str) -> Path:
        """Where the finished artefact is or will be."""
        return self.root / f"{stage}-{key[:12]}"

    def find(self, stage: str, key: str) -> Path | None:
        """The finished artefact, its files checked against their digests; None where there is none.

        A corrupted artefact is moved aside, with a warning, and counts as absent. Digests are read once per process,
        and again when a file's size or time has changed.
        """
        folder = self.folder(stage, key)
        if not folder.is_dir():
            return None
        if self._problem(folder, key) is None:
            return folder
        with self.locked(folder.name):  # another process may have moved it aside and made it anew meanwhile
            return folder if self._sound(folder, key) else None

    def whole(self, stage: str, key: str) -> bool:
        """Whether the finished artefact is there and as it was written. Unlike `find`, changes nothing."""
        folder = self.folder(stage, key)
        return folder.is_dir() and self._problem(folder, key) is None

    @contextlib.contextmanager
    def building(self, stage: str, key: str, meta: dict[str, Any]) -> Iterator[Path | None]:
        """Gives the folder to build a stage in, and makes what is in it the finished artefact when the block ends.

        One process builds a key at a time. Another waits, and is given None where the first has finished it: then
        there is nothing to do. The folder still holds what an interrupted build left, so that the stage can resume.

            with store.building(stage, key, meta) as work:
                if work is not None:
                    build(work)

        Args:
            meta: what `stage.json` records besides the store's own entries (configuration, parents, data, version);
                read when the block ends, so the block may add to it.

        Raises:
            MithridateError: the disk is full. What was built is kept in the work folder.
        """
        final = self.folder(stage, key)
        work = self.root / "work" / final.name
        with self.locked(final.name):
            if self._sound(final, key):
                yield None
                return
            with self._disk_full_explained():
                work.mkdir(parents=True, exist_ok=True)
                started, clock = _now(), time.perf_counter()
                with PeakMemory() as peak:
                    yield work
                manifest = {
                    "stage": stage,
                    "key": key,
                    **meta,
                    "versions": versions(),
                    "hardware": hardware(),
                    "started": started,
                    "finished": _now(),
                    "seconds": round(time.perf_counter() - clock, 3),
                    "peak_memory_bytes": peak.bytes,
                    "peak_gpu_memory_bytes": peak.gpu_bytes,
                    "files": {
                        str(path.relative_to(work).as_posix()): {
                            "bytes": path.stat().st_size,
                            "sha256": file_digest(path),
                        }
                        for path in _files(work)
                    },
                }
                manifest["digest"] = seal(manifest)
                (work / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
                for path in [*_files(work), work / MANIFEST, *(p for p in work.rglob("*") if p.is_dir()), work]:
                    _sync(path)
                work.rename(final)
                _sync(self.root)

    def _problem(self, folder: Path, key: str) -> str | None:
        """What is wrong with a finished artefact, in words; None where every file is as it was written."""
        try:
            text = (folder / MANIFEST).read_text(encoding="utf-8")
            manifest = json.loads(text)
            if manifest.pop("digest") != seal(manifest):
                return f"{MANIFEST} was changed"
            if manifest["key"] != key:
                return f"{MANIFEST} belongs to the key {manifest['key']}"
            stats = {name: (folder / name).stat() for name in manifest["files"]}
        except FileNotFoundError as error:
            return f"{Path(error.filename).name} is missing"
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{MANIFEST} is not readable"
        for name, written in manifest["files"].items():
            if stats[name].st_size != written["bytes"]:
                return f"{name} has {stats[name].st_size} bytes instead of {written['bytes']}"
        times = [(name, stat.st_mtime_ns, stat.st_ino) for name, stat in stats.items()]
        seen = hashlib.sha256(repr((text, times)).encode()).digest()
        if self._verified.get(folder) != seen:
            for name, written in manifest["files"].items():
                if file_digest(folder / name) != written["sha256"]:
                    return f"{name} does not match its digest"
            self._verified[folder] = seen
        return None

    def _sound(self, folder: Path, key: str) -> bool:
        """Whether a whole artefact is there; a corrupted one is moved aside. Called with the lock held."""
        if not folder.is_dir():
            return False
        problem = self._problem(folder, key)
        if problem is None:
            return True
        aside = self.root / "corrupt" / f"{folder.name}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        aside.parent.mkdir(exist_ok=True)
        folder.rename(aside)
        logger.warning("stored %s is corrupted (%s): moved to %s, to be computed again", folder.name, problem, aside)
        return False

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """The lock of one artefact. The kernel frees it when its holder dies, however it dies."""
        locks = self.root / "locks"
        lock = FileLock(locks / f"{name}.lock")
        try:
            locks.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                logger.warning("another process is working on %s: waiting for it", name)
                lock.acquire(poll_interval=0.2)
        except OSError as error:
            raise InputError(
                f"the store {self.root} cannot be written ({error.strerror}): set MITHRIDATE_STORE to another folder"
            ) from error
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _disk_full_explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not disk_full(error, self.root):
                raise
            free = shutil.disk_usage(self.root).free
            raise MithridateError(
                f"no space left on the disk of the store {self.root} ({free / 1e6:.0f} MB free), or a file there "
                "became larger than is allowed (`ulimit -f`): free some, or set MITHRIDATE_STORE to a folder on a "
                "larger disk. The work so far is kept; the next run continues it."
            ) from error


def disk_full(error: BaseException | None, folder: Path) -> bool:
    """Whether an error comes of a full disk, or of the size that a file may have: by its number, by its text, or
    (torch gives neither) by what is left."""
    seen = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL_NUMBERS:
            return True
        if any(text in str(seen) for text in _FULL):
            return True
        seen = seen.__cause__ or seen.__context__
    is_torch = isinstance(error, RuntimeError) and "PytorchStreamWriter" in str(error)
    return is_torch and shutil.disk_usage(folder).free < _FEW_BYTES


def seal(manifest: dict[str, Any]) -> str:
    """SHA-256 (64 hex digits) of a manifest without its `digest`, which this becomes."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows syncs no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
