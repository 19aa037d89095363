"""Rows from JSON Lines, JSON, CSV and Parquet files, packed ones too, each with the place it came from for errors.

Only formats that hold nothing but data are read: a pickle runs code when it is opened, so none ever is.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any, cast

from mithridate.errors import InputError, nearest
from mithridate.progress import Progress

Rows = list[tuple[str, dict[str, Any]]]
"""Each row with its place, as in "train.jsonl, line 3"."""

_PACKED = (".gz", ".zst")
_TEXT = (".jsonl", ".json", ".csv")
_HINTS = {
    ".ndjson": ". These are JSON Lines: rename it to .jsonl",
    ".tsv": ". Write it with commas: pandas.read_csv(path, sep='\\t').to_csv('rows.csv', index=False)",
    ".xlsx": ". Save the sheet as CSV (UTF-8)",
}
_LONG = 32 << 20  # bytes: a smaller file is read before anybody asks how far it is
_BATCH = 1000  # rows of a Parquet file that are in memory together
_PIECE = 1 << 18  # bytes of a JSON file that are read at once
_BLANK = re.compile(r"[ \t\n\r]*")
_TAIL = 32  # characters: what is torn off within so many of the end may be whole in the file

csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is less than a long conversation


def read_rows(path: Path) -> Rows:
    """All rows of a file, in order; see `rows_of`."""
    return list(rows_of(path))


def rows_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file one after the other, each read when it is asked for: who stops asking reads no further. Where
    reading takes long, it says how far it is.

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
        raise InputError(
            f"{path}: files of this kind are not read; give one that ends in {', '.join(ENDINGS)}"
            f"{_HINTS.get(_ending(path), '')}"
        )
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
    near = nearest(path.name, (p.name for p in path.parent.iterdir()), listed=False)
    return InputError(f"{path}: no such file{near}")


def _unpacked(path: Path, raw: IO[bytes]) -> IO[bytes]:
    if path.name.lower().endswith(".gz"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
    if path.name.lower().endswith(".zst"):
        import pyarrow as pa

        unpacked: Any = pa.input_stream(raw, compression="zstd")
        return io.BufferedReader(unpacked)
    return raw


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], Callable[[], None]]]:
    """The file, unpacked, and what to call now and then, which shows how far it is read."""
    size, began = path.stat().st_size, time.monotonic()
    with path.open("rb") as raw, Progress(size >> 20, f"reading {path.name}", "MiB", size > _LONG) as counted:

        def tell() -> None:
            if time.monotonic() - began > 1:
                counted.advance((raw.tell() >> 20) - counted.done)

        yield _unpacked(path, raw), tell


def _not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> InputError:
    return InputError(f"{path}, line {line}: not UTF-8 ({error.reason}); save the file as UTF-8")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with _opened(path) as (file, tell):
        for number, line in enumerate(file, start=1):
            if number % 1000 == 0:
                tell()
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number, error) from error


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
    with _opened(path) as (file, tell):
        text = _Text(path, file, tell)
        if not text.next():
            return
        if text.next() != "[":
            value = text.value()
            if text.next():
                raise text.fault("Extra data")
            raise InputError(f"{path}: holds a {type(value).__name__} where a list of objects is expected")
        number, mark = 0, text.take()
        if text.next() == "]":
            mark = text.take()
        while mark != "]":
            number += 1
            yield _object(text.value(), f"{path}, row {number}")
            if text.next() not in (",", "]"):
                raise text.fault("Expecting ',' delimiter")
            mark = text.take()
        if text.next():
            raise text.fault("Extra data")


class _Text:
    """The text of a JSON file, of which no more is in memory than the value that is read and a piece of what follows.

    Errors are those of `json.loads` of the whole text, their line and column too.
    """

    def __init__(self, path: Path, file: IO[bytes], tell: Callable[[], None]):
        self._path, self._file, self._tell = path, file, tell
        self._utf8, self._decode = codecs.getincrementaldecoder("utf-8-sig")(), json.JSONDecoder().raw_decode
        self._text, self._at, self._ended = "", 0, False
        self._before, self._lines, self._line = 0, 0, 0  # characters and line ends let go; where the last line began

    def next(self) -> str:
        """The next character that is no white space, which stays; nothing where the text has ended."""
        while True:
            found = _BLANK.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self) -> str:
        """That character, left behind."""
        found = self.next()
        self._at += 1
        return found

    def value(self) -> Any:
        """The next value, left behind."""
        self.next()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                torn = error.pos > len(self._text) - _TAIL or error.msg.startswith("Unterminated string")
                if not (torn and self._more()):
                    raise self.fault(error.msg, error.pos) from error
            except RecursionError as error:
                raise InputError(f"{self._path}: not JSON: {error}") from error
            else:
                # a number may go on
                if end < len(self._text) - _TAIL or isinstance(value, dict) or not self._more():
                    self._at = end
                    return value

    def fault(self, what: str, at: int | None = None) -> InputError:
        """The error for what stands there."""
        at = self._at if at is None else at
        ends = self._text.count("\n", 0, at)
        begun = self._before + self._text.rindex("\n", 0, at) + 1 if ends else self._line
        column = self._before + at - begun + 1
        hint = "; is it JSON Lines? Then call it .jsonl" if what == "Extra data" else ""
        where = f"line {self._lines + ends + 1} column {column} (char {self._before + at})"
        return InputError(f"{self._path}: not JSON: {what}: {where}{hint}")

    def _more(self) -> bool:
        """Reads on, twice as much for each time that it did not do for one value, and lets go what was left behind."""
        if self._ended:
            return False
        gone = self._text[: self._at]
        if ends := gone.count("\n"):
            self._line = self._before + gone.rindex("\n") + 1
        self._before, self._lines = self._before + len(gone), self._lines + ends
        self._text, self._at = self._text[self._at :], 0
        piece = self._file.read(max(_PIECE, len(self._text)))
        self._tell()
        self._ended = not piece
        try:
            self._text += self._utf8.decode(piece, final=self._ended)
        except UnicodeDecodeError as error:
            line = 1 + self._lines + self._text.count("\n") + error.object[: error.start].count(b"\n")
            raise _not_utf8(self._path, line, error) from error
        return True


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
                if len(header) == 1 and (other := next((mark for mark in ";\t|" if mark in header[0]), None)):
                    raise InputError(
                        f"{place}: values stand apart by {other!r}, and commas are expected. Write it so: "
                        f"pandas.read_csv(path, sep={other!r}).to_csv('rows.csv', index=False)"
                    )
                if len(set(header)) < len(header) or "" in header:
                    index = "; pandas writes one without a name for its index: write it with index=False, or name it"
                    raise InputError(
                        f"{place}: the header has a column without a name, or one twice: {header}"
                        + index * (header[0] == "")
                    )
            elif len(cells) != len(header):
                raise InputError(f"{place}: {len(cells)} values for {len(header)} columns ({', '.join(header)})")
            else:
                yield place, dict(zip(header, cells))
    except csv.Error as error:
        if "new-line character" in str(error):
            raise InputError(
                f"{path}, line {first}: lines end in a carriage return alone. Save the file with line feeds"
            ) from error
        raise InputError(f"{path}, line {first}: malformed CSV: {error}") from error


def _parquet(path: Path) -> Generator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        with pq.ParquetFile(path) as file:
            count, long = file.metadata.num_rows, path.stat().st_size > _LONG
            with Progress(count, f"reading {path.name}", "rows", long) as counted:
                for batch in file.iter_batches(batch_size=_BATCH):
                    for row in batch.to_pylist():
                        number += 1
                        yield f"{path}, row {number}", row
                    counted.advance(len(batch))
    except pa.ArrowException as error:
        raise InputError(f"{path}: not a whole Parquet file: {error}") from error


_READERS: dict[str, Callable[[Path], Generator[tuple[str, dict[str, Any]]]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
ENDINGS = (*_READERS, *(f"{text}{packed}" for text in _TEXT for packed in _PACKED))
