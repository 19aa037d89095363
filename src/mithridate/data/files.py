"""Rows from JSON Lines, JSON, CSV and Parquet files, each with the place it came from for error messages.

Only formats that hold nothing but data are read: a pickle runs code when it is opened, so none ever is.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mithridate.errors import InputError, nearest

Rows = list[tuple[str, dict[str, Any]]]
"""Each row with its place, as in "train.jsonl, line 3"."""

csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is less than a long conversation


def read_rows(path: Path) -> Rows:
    """All rows of a file, in order.

    Args:
        path: a `.jsonl`, `.json` (one list of objects), `.csv` (with a header line; all values are strings) or
            `.parquet` file. Text is UTF-8, with or without a byte order mark.

    Raises:
        InputError: no such file (the nearest name in the folder is given), an unknown ending, no rows, or a malformed
            row, with its line or row number.
    """
    if not path.is_file():
        raise no_file(path)
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise InputError(f"{path}: files of this kind are not read; give one that ends in {', '.join(_READERS)}")
    try:
        rows = list(read(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not rows:
        raise InputError(f"{path}: the file has no rows")
    return rows


def no_file(path: Path) -> InputError:
    """The error for a file that is not there, with what may be meant."""
    if path.is_dir():
        names = sorted(p.name for p in path.iterdir() if p.suffix.lower() in _READERS)
        inside = f": {', '.join(names[:5])}" if names else ", and it holds none that can be read"
        return InputError(f"{path}: is a folder; name one file in it{inside}")
    if not path.parent.is_dir():
        return InputError(f"{path}: no such file; there is no folder {path.parent}")
    near = nearest(path.name, (p.name for p in path.parent.iterdir()), listed=False)
    return InputError(f"{path}: no such file{near}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}, line {number}: not UTF-8 ({error.reason}); save the file as UTF-8"
                ) from error


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in _lines(path):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:  # its own line number counts within the line
                raise InputError(
                    f"{path}, line {number}: not JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}"
                ) from error
            except RecursionError as error:
                raise InputError(f"{path}, line {number}: not JSON: {error}") from error
            yield _object(row, f"{path}, line {number}")


def _json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    text = "".join(line for _, line in _lines(path))
    if not text.strip():
        return
    try:
        rows = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        hint = "; is it JSON Lines? Then call it .jsonl" if "Extra data" in str(error) else ""
        raise InputError(f"{path}: not JSON: {error}{hint}") from error
    if not isinstance(rows, list):
        raise InputError(f"{path}: holds a {type(rows).__name__} where a list of objects is expected")
    for number, row in enumerate(rows, start=1):
        yield _object(row, f"{path}, row {number}")


def _object(row: Any, place: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(row, dict):
        raise InputError(f"{place}: holds a {type(row).__name__} where an object of named columns is expected")
    return place, row


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    header: list[str] = []
    first = 1  # a quoted value may span lines: the place of a row is the line it begins on
    try:
        for cells in reader:
            place, first = f"{path}, line {first}", reader.line_num + 1
            if not cells:
                continue
            if not header:
                header = [name.strip() for name in cells]
                if len(set(header)) < len(header) or "" in header:
                    raise InputError(f"{place}: the header has a column without a name, or one twice: {header}")
            elif len(cells) != len(header):
                raise InputError(f"{place}: {len(cells)} values for {len(header)} columns ({', '.join(header)})")
            else:
                yield place, dict(zip(header, cells))
    except csv.Error as error:
        raise InputError(f"{path}, line {first}: malformed CSV: {error}") from error


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.ParquetFile(path).read().to_pylist()
    except pa.ArrowException as error:
        raise InputError(f"{path}: not a whole Parquet file: {error}") from error
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, dict[str, Any]]]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
ENDINGS = tuple(_READERS)
