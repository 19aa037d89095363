"""Files that are written whole or not at all, and digests of values and of files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mithridate.errors import InputError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path to write to, and puts what is there in the place of `path` when the block ends well."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")  # two processes may write the same file
    try:
        yield aside
        aside.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk does not say of what
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        aside.unlink(missing_ok=True)


def replace_file(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def stable(value: Any, path: str = "") -> Any:
    """`value` in the one form that equal configurations share: JSON types only, keys sorted, 1.0 written as 1.

    Raises:
        InputError: a value that is not JSON (or is not finite), with its path.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): stable(value[key], f"{path}.{key}") for key in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [stable(item, f"{path}.{i}") for i, item in enumerate(value)]
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() else value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise InputError(f"{path.lstrip('.')}: {value!r} ({type(value).__name__}) cannot be part of a configuration")


def canonical_json(value: Any) -> str:
    """The text that is hashed: the same for equal configurations, on every machine."""
    return json.dumps(stable(value), separators=(",", ":"), ensure_ascii=True)


def digest(value: Any) -> str:
    """SHA-256 (64 hex digits) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 (64 hex digits) of a value's JSON with sorted keys, numbers as they are (1.0 is not 1)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (64 hex digits) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_fault(error: ValueError) -> str:
    """What is wrong with a JSON text and where, from `json`'s error: "Invalid control character: line 1 column 9"."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    return f"{error.msg.removesuffix(' at')}: line {error.lineno} column {error.colno}"
