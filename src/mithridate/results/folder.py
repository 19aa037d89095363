"""The folder of a run: what is there, and the one class that writes and reads it.

    results.json                      the table (`schema`)
    records/, verdicts/               the answers and the verdicts on them, a part for each cell (`parts`)
    cells.json, history.json          how to make each cell again; training curves
    experiment.yaml                   the experiment, resolved (`ownership`)

A cell's parts are written once, when it is finished. The table is there to look at while the rest fills in: it is
written anew after every cell, as long as that costs little beside the cells themselves, and in a large grid of quick
ones each time it has grown by half. Every file is written whole or not at all, and results.json last.

Runs of older versions have one file, records.parquet, with the verdicts as columns. They are read like all others.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mithridate.errors import InputError, MithridateError, first_line
from mithridate.evaluation.agreement import judges_beside
from mithridate.experiment.config import Experiment, canonical, load_experiment, resolve
from mithridate.experiment.methods import repair_of, upto_stage
from mithridate.files import canonical_json, file_digest, json_fault, replace_file
from mithridate.results import ownership, parts
from mithridate.results.outcomes import Outcomes
from mithridate.results.relations import defenses_of
from mithridate.results.schema import checked, parsed

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from mithridate.results.table import Cell, ResultsTable

Row = dict[str, Any]
PAGE_CELLS = 1000  # of a larger table, neither page nor terminal shows anything that can be read
OLD_RECORDS = "records.parquet"
_GROWN = 1.5  # written again when there are so many times the cells that were there before
_CHEAP = 20  # or when making the last cells took so many times what writing took
_COLUMNS = ("cell", "set", "id", "prompt", "answer")


class RunFolder:
    """A run's folder. What is read is read once; `write` makes it be read again.

    Args:
        path: the folder.
        base: what relative paths of the experiments are relative to; of a run that is to be written.
    """

    def __init__(self, path: str | PathLike[str], base: Path = Path()):
        self.path, self._base = Path(path), base
        self._recipes: dict[str, str] = {}  # JSON, by the cell's id
        self._histories: dict[str, str] = {}
        self._written_parts: dict[str, dict[str, dict[str, Any]]] = {}  # `records` and `verdicts` of each cell
        self._written, self._cost, self._last = 0, 0.0, time.monotonic()
        self._tables: dict[str, pa.Table] = {}

    # -- reading ------------------------------------------------------------------------------------------------------

    @cached_property
    def _text(self) -> bytes:
        try:
            return (self.path / "results.json").read_bytes()
        except FileNotFoundError:
            raise self._no_run("results.json: no such file. Give what `run` wrote") from None
        except OSError as error:
            raise self._no_run(f"results.json: cannot be read ({error.strerror})") from None

    def _no_run(self, why: str) -> InputError:
        return InputError(f"{self.path}: not a run folder: {why}")

    @cached_property
    def sha256(self) -> str:
        """The digest of results.json."""
        return sha256(self._text).hexdigest()

    @cached_property
    def results(self) -> dict[str, Any]:
        """The table in the shape of schema 2, whatever it was written in.

        Raises:
            InputError: it is not there, or malformed.
        """
        where = str(self.path / "results.json")
        try:
            found = parsed(self._text.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: cannot be read ({error}).") from None
        except ValueError as error:
            raise InputError(f"{where}: not valid JSON ({json_fault(error)}).") from None
        return checked(found, where)

    @cached_property
    def cells(self) -> dict[str, dict[str, Any]]:
        """The table's cells by id."""
        return {cell["id"]: cell for cell in self.results["cells"]}

    def cell(self, name: str) -> dict[str, Any]:
        """One of them; InputError where there is none of that id."""
        if name not in self.cells:
            raise InputError(f"{self.path} has no cell {name!r}. Its cells: {', '.join(self.cells)}.")
        return self.cells[name]

    @cached_property
    def record_files(self) -> list[str]:
        """The files with answers that are there, by their paths in the folder: those of the table, then any others."""
        named = dict.fromkeys(entry["file"] for cell in self.cells.values() if (entry := stated(cell, "records")))
        for name in named:
            self._own(name)
        beside = sorted(self.path.glob(f"{parts.RECORDS}/*.parquet"))
        named |= dict.fromkeys(file.relative_to(self.path).as_posix() for file in beside)
        return [name for name in named if (self.path / name).is_file()] or [OLD_RECORDS]

    def _own(self, file: str) -> None:
        """InputError where a file with records or verdicts is not in its place in the folder."""
        path = Path(file)
        if file != OLD_RECORDS and path.parent.as_posix() not in (parts.RECORDS, parts.VERDICTS, parts.FURTHER):
            raise self._no_run(f"its records are elsewhere, at {file}")

    def digest(self, file: str) -> str:
        """SHA-256 of one of the run's files."""
        try:
            return file_digest(self.path / file)
        except OSError as error:
            raise self._no_run(f"{file}: {_cannot(error)}") from None

    def table(self, file: str) -> pa.Table:
        """A file of answers, or of verdicts, as it is.

        Raises:
            InputError: it cannot be read, or is something else.
        """
        import pyarrow as pa

        if file not in self._tables:
            self._own(file)
            try:
                found = parts.read(self.path / file)
            except OSError as error:
                raise self._no_run(f"{file}: {_cannot(error)}") from None
            except pa.ArrowException as error:
                raise self._no_run(f"{file}: not a readable Parquet file ({first_line(error)})") from None
            needed = parts.VERDICT_COLUMNS if file.startswith(parts.VERDICTS) else _COLUMNS
            needed += ("verdict",) if file == OLD_RECORDS else ()
            if missing := [name for name in needed if name not in found.column_names]:
                raise InputError(f"{self.path / file}: lacks the columns {', '.join(missing)}.")
            self._tables[file] = found
        return self._tables[file]

    def files_of(self, name: str) -> tuple[str, str | None]:
        """The files with a cell's answers and with the verdicts on them, None where the first has both."""
        entry = stated(self.cell(name), "records")
        file = entry["file"] if entry else OLD_RECORDS if OLD_RECORDS in self.record_files else None
        file = file or parts.part(parts.RECORDS, name)  # of a table that has lost its digests
        return file, None if file == OLD_RECORDS else file.replace(parts.RECORDS, parts.VERDICTS, 1)

    def rows(self, name: str, further: bool = False) -> list[Row]:
        """The records of one cell, on the way (`step`) and at its end, as `evaluation.Row` has them.

        Args:
            further: also with the verdicts of judges that were asked after the run (`add_verdicts`).
        """
        import pyarrow.dataset as ds

        own = ds.field("cell").cast("string") == name

        def mine(file: str) -> list[Row]:
            return parts.rows_of(self.table(file).filter(own))

        file, verdicts = self.files_of(name)
        rows, said = mine(file), mine(verdicts) if verdicts else []
        if further:
            said += [one for other in self._further for one in mine(other)]
        try:
            return parts.with_verdicts(rows, said) if said or verdicts else rows
        except ValueError as error:
            raise InputError(f"{self.path}: {error}. Run the experiment again") from None

    def final(self, name: str, further: bool = False) -> list[Row]:
        """The records from the end of a cell."""
        return [row for row in self.rows(name, further) if row.get("step") is None]

    def everything(self) -> list[Row]:
        """The records of all cells of the table, in its order, with the verdicts of all judges."""
        rows = [row for name in self.cells for row in self.rows(name, further=True)]
        names = judges_beside(rows)
        none = dict.fromkeys(f"judge/{name}{end}" for name in names for end in ("", "/reason", "/score"))
        return [{"step": None, **none, **row} for row in rows]

    def frame(self) -> pd.DataFrame:
        """The same as a data frame. What is missing is None in columns of text and truth, else NaN or NA."""
        import pandas as pd

        rows = self.everything()
        made = {}
        for name in dict.fromkeys(key for row in rows for key in row):
            values = [row.get(name) for row in rows]
            kind = parts.TYPES.get(name.removeprefix("judge/").rpartition("/")[2], "string")
            made[name] = pd.Series(values, dtype={"int64": "Int64", "float64": "float64"}.get(kind, "object"))
        return pd.DataFrame(made)

    @cached_property
    def _further(self) -> list[str]:
        files = sorted(self.path.glob(f"{parts.FURTHER}/*.parquet"))
        return [file.relative_to(self.path).as_posix() for file in files]

    @cached_property
    def own_judges(self) -> dict[str, bool]:
        """The judges that gave the run's own verdicts, and whether scores are by theirs."""
        rows = [row for name in self.cells for row in self.rows(name)]
        beside = [] if OLD_RECORDS in self.record_files else judges_beside(rows)  # there, `judge` put columns too
        return dict.fromkeys(beside, False) | {row["judge"]: True for row in rows if row.get("judge")}

    def counted(self) -> Counter[str]:
        """How many records each cell has, those of cells that the table lacks too."""
        return Counter(str(name) for file in self.record_files for name in self.table(file)["cell"].to_pylist())

    @cached_property
    def outcomes(self) -> Outcomes:
        """What the models are compared by, from the records. Those of protocols that are not known tell nothing."""
        found = Outcomes()
        for name in self.cells:
            models: dict[int | None, list[Row]] = {}
            for row in self.rows(name):
                if {"protocol", "correct"} <= row.keys():
                    models.setdefault(row.get("step"), []).append(row)
            for step, rows in models.items():
                with contextlib.suppress(InputError):
                    found.add(name, rows, step)
        return found

    @cached_property
    def recipes(self) -> dict[str, Any] | None:
        """cells.json: how each cell is made; None where it is not there, or is nothing of the kind."""
        try:
            found = parsed((self.path / "cells.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def recipe(self, cell: str) -> dict[str, Any]:
        """How a cell is made: `experiment`, `base` and the last stage, `upto`.

        Raises:
            InputError: no such cell, or the folder does not say.
        """
        if self.recipes is None:
            raise self._no_run("cells.json, which says how its models are made, is missing or cannot be read")
        if cell not in self.recipes:
            raise InputError(f"{self.path} has no cell {cell!r}. Its cells: {', '.join(self.recipes)}.")
        return self.recipes[cell]

    def experiment(self, cell: str | None) -> tuple[Experiment, Path]:
        """The experiment that a cell comes from, and the folder that its paths are relative to.

        Args:
            cell: its id; None for the one defended model that the run ends in, or the one that it ends in.

        Raises:
            InputError: no such cell, or several that may be meant.
        """
        if cell is None:
            ends = [row for row in self.cells.values() if row["final"] and not row["control"]]
            if len(names := [row["id"] for row in filter(defenses_of, ends)] or [row["id"] for row in ends]) != 1:
                raise InputError(f"{self.path}: which model? Give --cell, one of: {', '.join(names)}")
            cell = str(names[0])
        recipe = self.recipe(cell)
        return load_experiment(recipe["experiment"]), Path(recipe["base"])

    def made_by(self, experiment: Experiment) -> dict[str, Any]:
        """The cell of the model that an experiment ends in.

        Args:
            experiment: as `run_cells` was given it.

        Raises:
            MithridateError: the run has none.
        """
        base = next((Path(self.recipe(name)["base"]) for name in self.recipes or {}), Path())
        experiment = resolve(experiment, base)
        repaired = repair_of(experiment, post_alignment=False)
        last = "repair" if repaired else "finetune" if experiment.finetune else "align"
        made = self._ids.get(_made(canonical(experiment), last))
        if made is None:
            raise MithridateError(f"{self.path}: the run has no cell for one of its experiments; run it again")
        return self.cells[made]

    @cached_property
    def _ids(self) -> dict[str, str]:
        """The cells by what made them. Of a cell that is on the way of several experiments the recipe names one."""
        recipes = {name: self.recipe(name) for name in self.recipes or {}}
        return {_made(recipe["experiment"], recipe["upto"]): name for name, recipe in recipes.items()}

    @cached_property
    def history(self) -> dict[str, list[dict[str, Any]]]:
        """The points of the training curves, by cell, that lie somewhere: a browser's JSON has no NaN."""
        path = self.path / "history.json"
        found = _json(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else {}
        if not isinstance(found, dict) or not all(isinstance(rows, list) for rows in found.values()):
            raise InputError(
                f"{path}: expected an object with a list for each cell; was it written by `mithridate run`?"
            )
        points: dict[str, list[dict[str, Any]]] = {name: [] for name in found}
        for name, rows in found.items():
            for i, row in enumerate(rows):
                step, loss = (row.get("step"), row.get("loss")) if isinstance(row, dict) else (None, row)
                if loss is None:  # a log entry of something else, as the summary at the end is
                    continue
                if not isinstance(step, int | float) or not isinstance(loss, int | float):
                    raise InputError(f"{path}: {name}[{i}]: expected an object with numbers `step` and `loss`.")
                if math.isfinite(step) and math.isfinite(loss):
                    points[name].append(row)
        return points

    @cached_property
    def tuning(self) -> list[dict[str, Any]]:
        """The log of tries, where there is one."""
        path = self.path / "tuning.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        tries = [_json(line, f"{path}, line {i}") for i, line in enumerate(lines, 1) if line.strip()]
        return [row if isinstance(row, dict) else {"try": row} for row in tries]

    # -- writing ------------------------------------------------------------------------------------------------------

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
        """Writes the records of a cell, and takes over what is to be written of it besides its row in the table."""
        rows = [{"cell": name, "step": None, **row} for row in cell.rows]
        rows += [{"cell": name, "step": step, **row} for step, found in cell.steps.items() for row in found]
        found = {
            "records": (parts.part(parts.RECORDS, name), parts.answers_of(rows), ()),
            "verdicts": (parts.part(parts.VERDICTS, name), list(parts.verdicts_of(rows)), parts.VERDICT_COLUMNS),
        }
        entries = self._written_parts[name] = {}
        with self.writing():
            for kind, (file, made, columns) in found.items():
                parts.write(self.path / file, made, columns)
                entries[kind] = {"file": file, "sha256": file_digest(self.path / file), "rows": len(made)}
        recipe = {"experiment": canonical(cell.experiment), "base": str(self._base), "upto": cell.upto}
        self._recipes[name], self._histories[name] = json.dumps(recipe), json.dumps(cell.history)

    def due(self, cells: int) -> bool:
        """Whether to write the table, which has so many cells by now."""
        return cells >= _GROWN * self._written or time.monotonic() - self._last >= _CHEAP * self._cost

    def write(self, table: ResultsTable, complete: bool) -> dict[str, Any]:
        """Writes the table, results.json last: where it is, everything that it speaks of is there. Returns it.

        Raises:
            MithridateError: the folder cannot be written.
        """
        began, results = time.monotonic(), table.results(complete)
        for cell in results["cells"]:
            cell |= self._written_parts[cell["id"]]
        with self.writing():
            replace_file(self.path / "history.json", _joined(self._histories))
            replace_file(self.path / "cells.json", _joined(self._recipes))
            replace_file(self.path / "results.json", json.dumps(results, indent=1))
            if complete:
                self._clear({entry["file"] for entries in self._written_parts.values() for entry in entries.values()})
        for name, kind in vars(type(self)).items():
            if isinstance(kind, cached_property):
                self.__dict__.pop(name, None)
        self._tables.clear()
        self._written, self._last = len(table), time.monotonic()
        self._cost = self._last - began
        return results

    def _clear(self, kept: set[str]) -> None:
        """Removes records and verdicts of an earlier table."""
        old = [self.path / OLD_RECORDS]
        old += [file for folder in (parts.RECORDS, parts.VERDICTS) for file in (self.path / folder).rglob("*.parquet")]
        for file in old:
            if file.relative_to(self.path).as_posix() not in kept:
                file.unlink(missing_ok=True)

    def add_verdicts(self, judge: str, rows: Mapping[str, Sequence[Row]]) -> None:
        """Writes the verdicts of a judge that was asked after the run; records and table stay as they are.

        Args:
            judge: its name. What it said before is replaced.
            rows: by cell, its records (`rows`) with the judge's columns.
        """
        found = [one for mine in rows.values() for one in parts.verdicts_of(mine, [judge])]
        with self.writing():
            parts.write(self.path / parts.part(parts.FURTHER, judge), found, parts.VERDICT_COLUMNS)
        self.__dict__.pop("_further", None)
        self._tables.pop(parts.part(parts.FURTHER, judge), None)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MithridateError(
                f"{self.path}: cannot be written ({error.strerror or error}). Make room there, or give another --out. "
                "What was computed is in the store, and the next run continues from it."
            ) from error


def stated(cell: Mapping[str, Any], kind: str) -> dict[str, Any] | None:
    """What the table says of a cell's `records`, or `verdicts`; None where that is nothing."""
    entry = cell.get(kind)
    return entry if isinstance(entry, dict) and isinstance(entry.get("file"), str) else None


def _made(experiment: Mapping[str, Any], last: str) -> str:
    return canonical_json({"experiment": upto_stage(experiment, last), "last": last})


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({json_fault(error)}).") from None


def _joined(texts: dict[str, str]) -> str:
    """One JSON object of JSON texts, one a line."""
    return "{" + ",\n".join(f"{json.dumps(name)}: {text}" for name, text in texts.items()) + "}"


def _cannot(error: OSError) -> str:
    return "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"


def redacted(row: Row) -> Row:
    """A record without what the model said: its answer, and the reasons of verdicts."""
    said = {name for name, value in row.items() if value and (name == "reason" or name.endswith("/reason"))}
    return {**row, **dict.fromkeys(said, "redacted"), "answer": f"[redacted: {len(row['answer'])} characters]"}
