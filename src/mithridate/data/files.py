"""Rows from JSON Lines, JSON, CSV and Parquet files, packed ones too, each with the place it came from for errors.

Only formats that hold nothing but data are read: a pickle runs code when it is opened, so none ever is.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

from mithridate.errors import InputError
from mithridate.progress import Progress

Rows = list[tuple[str, dict[str, Any]]]
"""Each row with its place, as in "train.jsonl, line 3"."""

_PACKED = (".gz", ".zst")
_TEXT = (".jsonl", ".json", ".csv")
_LONG = 32 << 20  # bytes: a smaller file is read before anybody asks how far it is
_BATCH = 1000  # rows of a Parquet file that are in memory together

csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is less than a long conversation


def read_rows(path: Path) -> Rows:
    """All rows of a file, in order; see `rows_of`."""
    return list(rows_of(path))


def rows_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file one after the other, each read when it is asked for: who stops asking reads no further. (A
    `.json` file is one value, and read whole.) Where reading takes long, it says how far it is.

    Args:
        path: a `.jsonl`, `.json` (one list of objects), `.csv` (with a header line; all values are strings) or
            `.parquet` file, the text ones also packed with gzip or zstd (`.jsonl.gz`, `.csv.zst`). Text is UTF-8, with
            or without a byte order mark.

    Raises:
        InputError: no such file (the nearest name in the folder is given), an unknown ending, no rows, or a malformed
            row, with its line or row number.
    """
    if not path.is_file():
        raise no_file(path)
    read = _READERS.get(_ending(path))
    if read is None:
        raise InputError(f"{path}: files of this kind are not read; give one that ends in {', '.join(ENDINGS)}")
    none = True
    try:
        with closing(read(path)) as rows:
            for row in rows:
                none = False
                yield row
    except (OSError, EOFError, zlib.error) as error:
        what = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {what}") from error
    if none:
        raise InputError(f"{path}: the file has no rows")


def _ending(path: Path) -> str:
    """The ending that says what a file holds: of a packed one, that before the packing's."""
    name = path.name.lower()
    packed = next((ending for ending in _PACKED if name.endswith(ending)), "")
    found = Path(name.removesuffix(packed)).suffix
    return found if not packed or found in _TEXT else f"{found}{packed}"


def readable(name: str | Path) -> bool:
    """Whether a file's name ends in what is read."""
    return _ending(Path(name)) in _READERS


def no_file(path: Path) -> InputError:
    """The error for a file that is not there, with what may be meant."""
    if path.is_dir():
        names = sorted(p.name for p in path.iterdir() if readable(p))
        inside = f": {', '.join(names[:5])}" if names else ", and it holds none that can be read"
        return InputError(f"{path}: is a folder; name one file in it{inside}")
    if not path.parent.is_dir():
        return InputError(f"{path}: no such file; there is no folder {path.parent}")
    near = get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
    return InputError(f"{path}: no such file" + (f"; did you mean {near[0]!r}?" if near else ""))


def _opened(path: Path, raw: IO[bytes]) -> Iterable[bytes]:
    """The file's lines as bytes, unpacked."""
    if path.name.lower().endswith(".gz"):
        return gzip.GzipFile(fileobj=raw)
    if path.name.lower().endswith(".zst"):
        import pyarrow as pa

        unpacked: Any = pa.input_stream(raw, compression="zstd")
        return io.BufferedReader(unpacked)
    return raw


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    size, began = path.stat().st_size, time.monotonic()
    with path.open("rb") as raw, Progress(size >> 20, f"reading {path.name}", "MiB", size > _LONG) as counted:
        for number, line in enumerate(_opened(path, raw), start=1):
            if number % 1000 == 0 and time.monotonic() - began > 1:
                counted.advance((raw.tell() >> 20) - counted.done)
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}, line {number}: not UTF-8 ({error.reason}); save the file as UTF-8"
                ) from error


def _json_lines(path: Path) -> Generator[tuple[str, dict[str, Any]]]:
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


def _json(path: Path) -> Generator[tuple[str, dict[str, Any]]]:
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


def _csv(path: Path) -> Generator[tuple[str, dict[str, Any]]]:
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


def _parquet(path: Path) -> Generator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except pa.ArrowException as error:
        raise InputError(f"{path}: not a whole Parquet file: {error}") from error


_READERS: dict[str, Callable[[Path], Generator[tuple[str, dict[str, Any]]]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
ENDINGS = (*_READERS, *(f"{text}{packed}" for text in _TEXT for packed in _PACKED))
