"""The folder of a run: what is written there, whole or not at all, and when.

`results.json`, `records.parquet`, `cells.json` (how to make each cell again), `history.json` (training curves) and
`experiment.yaml` (resolved). The table is there to look at while the rest fills in: it is written anew after every
cell, as long as that costs little beside the cells themselves, and in a large grid of quick ones each time it has
grown by half. So writing takes time in proportion to the number of cells, and records wait on disk, not in memory.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mithridate.errors import InputError, MithridateError
from mithridate.experiment.config import Experiment, canonical
from mithridate.results import ownership
from mithridate.store import file_digest, replace_file, replacing

if TYPE_CHECKING:
    import pyarrow as pa

    from mithridate.results.table import Cell, Table

RECORDS = "records.parquet"
PAGE_CELLS = 1000  # of a larger table, neither page nor terminal shows anything that can be read
_GROWN = 1.5  # written again when there are so many times the cells that were there before
_CHEAP = 20  # or when making the last cells took so many times what writing took
_GROUP_ROWS = 50_000  # records that are in memory together while they are written


class Folder:
    """A run's folder, while the run fills it.

    Args:
        path: the folder; made with the first file.
        base: what relative paths of the experiments are relative to.
    """

    def __init__(self, path: Path, base: Path):
        self.path, self._base = path, base
        self._recipes: dict[str, str] = {}  # JSON, by the cell's id
        self._rows: dict[str, int] = {}  # how many records it has
        self._histories: dict[str, str] = {}
        self._records = _Records(path)
        self._written, self._cost, self._last = 0, 0.0, time.monotonic()

    def start(
        self, source: Experiment, tabled: bool, owner: Any = None, files: Mapping[str, str] = {}, replace: bool = False
    ) -> None:
        """Makes the folder and writes the resolved experiment. What it has of an earlier run's table, if this run will
        write one, is marked as incomplete: it is no longer what the experiment says.

        Args:
            owner: what the folder belongs to, if not to the experiment (`ownership`).
            files: further files, by name.
            replace: whether what commands wrote there before goes first.

        Raises:
            InputError: the folder cannot be made.
            MithridateError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"--out {self.path}: cannot be made ({error.strerror}). Give a folder that can."
            ) from error
        with self.writing():
            if replace:
                ownership.clear(self.path)
            replace_file(self.path / ownership.FILE, ownership.text_of(source, owner))
            for name, text in files.items():
                replace_file(self.path / name, text)
            table = self.path / "results.json"
            if tabled and table.exists():
                with contextlib.suppress(ValueError, TypeError):  # one that cannot be read is no table
                    old = json.loads(table.read_text())
                    replace_file(table, json.dumps(old | {"complete": False}, indent=1))

    def add(self, name: str, cell: Cell) -> None:
        """Takes over what is to be written of a cell besides its row in the table."""
        rows = [{"cell": name, "step": None, **row} for row in cell.rows]
        rows += [{"cell": name, "step": step, **row} for step, found in cell.steps.items() for row in found]
        with self.writing():
            self._records.add(rows)
        recipe = {"experiment": canonical(cell.experiment), "base": str(self._base), "upto": cell.upto}
        self._recipes[name], self._rows[name] = json.dumps(recipe), len(rows)
        self._histories[name] = json.dumps(cell.history)

    def due(self, cells: int) -> bool:
        """Whether to write the table, which has so many cells by now."""
        return cells >= _GROWN * self._written or time.monotonic() - self._last >= _CHEAP * self._cost

    def write(self, table: Table, complete: bool) -> dict[str, Any]:
        """Writes all of it, results.json last: where it is, everything that it speaks of is there. Returns the table.

        Raises:
            MithridateError: the folder cannot be written.
        """
        began, results = time.monotonic(), table.results(complete)
        with self.writing():
            path = self.path / RECORDS
            self._records.write(path)
            sha256 = file_digest(path)
            for cell in results["cells"]:
                cell["records"] = {"file": RECORDS, "sha256": sha256, "rows": self._rows[cell["id"]]}
            replace_file(self.path / "history.json", _joined(self._histories))
            replace_file(self.path / "cells.json", _joined(self._recipes))
            replace_file(self.path / "results.json", json.dumps(results, indent=1))
        self._written, self._last = len(table), time.monotonic()
        self._cost = self._last - began
        return results

    def close(self) -> None:
        self._records.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MithridateError(
                f"{self.path}: cannot be written ({error.strerror or error}). Make room there, or give another --out. "
                "What was computed is in the store, and the next run continues from it."
            ) from error


def reseal(folder: Path, before: str) -> None:
    """Writes the digest of the records as they are now into results.json, for every cell whose records had the digest
    `before`. So columns can be added to records; where they were not the table's own before, they do not become it."""
    path = folder / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {"cells": []}
    stale = [entry for cell in results["cells"] if (entry := cell.get("records") or {}).get("sha256") == before]
    for entry in stale:
        entry["sha256"] = file_digest(folder / RECORDS)
    if stale:
        replace_file(path, json.dumps(results, indent=1))


def _joined(texts: dict[str, str]) -> str:
    """One JSON object of JSON texts, one a line."""
    return "{" + ",\n".join(f"{json.dumps(name)}: {text}" for name, text in texts.items()) + "}"


class _Records:
    """Records that wait, cell by cell, in a file without a name: it vanishes with the process, however that ends.

    Args:
        folder: on the disk where they will be written.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._waiting: IO[bytes] | None = None
        self._places: list[int] = []
        self._schema: pa.Schema | None = None

    def add(self, rows: list[dict[str, Any]]) -> None:
        import pyarrow as pa

        names = dict.fromkeys(name for row in rows for name in row)
        types = {"step": pa.int64()}
        part = pa.table({name: pa.array([row.get(name) for row in rows], types.get(name)) for name in names})
        # A column that has no value yet gets its type from the first cell that has one.
        known = [self._schema] if self._schema else []
        self._schema = pa.unify_schemas([*known, part.schema], promote_options="permissive")
        if self._waiting is None:
            self._waiting = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (closed by `close`)
        self._places.append(self._waiting.seek(0, 2))
        with pa.ipc.new_stream(self._waiting, part.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as out:
            out.write_table(part)

    def write(self, path: Path) -> None:
        """All records so far, as a Parquet file."""
        import pandas as pd
        import pyarrow as pa
        import pyarrow.parquet as pq

        assert self._schema is not None
        # Says to pandas that steps are integers, though some are missing.
        steps = pd.DataFrame({"step": pd.Series(dtype="Int64")})
        schema = self._schema.with_metadata(pa.Schema.from_pandas(steps, preserve_index=False).metadata)
        with replacing(path) as aside, pq.ParquetWriter(aside, schema) as out:
            for group in self._groups():
                out.write_table(group.cast(schema))

    def _groups(self) -> Iterator[pa.Table]:
        import pyarrow as pa

        assert self._waiting is not None and self._schema is not None
        parts, rows = [], 0
        for place in self._places:
            self._waiting.seek(place)
            with pa.ipc.open_stream(self._waiting) as stream:
                parts.append(_filled(stream.read_all(), self._schema))
            rows += parts[-1].num_rows
            if rows >= _GROUP_ROWS:
                yield pa.concat_tables(parts)
                parts, rows = [], 0
        if parts:
            yield pa.concat_tables(parts)

    def close(self) -> None:
        if self._waiting:
            self._waiting.close()


def _filled(part: pa.Table, schema: pa.Schema) -> pa.Table:
    """The part with all columns of the schema, in its types; those that it lacks are null."""
    import pyarrow as pa

    columns = [
        part[field.name].cast(field.type) if field.name in part.column_names else pa.nulls(len(part), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
