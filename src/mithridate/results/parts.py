"""A run's records as Parquet: a part for each cell with its answers, and one with the verdicts on them.

    records/CELL.parquet    an answer a row: `cell`, `step` (of the attack; null at its end), and the columns of
                            `evaluation.Row` that are not a judge's
    verdicts/CELL.parquet   a verdict a row: `cell`, `row` (the number of the answer in the cell's part, from 0),
                            `step`, `set`, `id`, `sample`, `judge`, `verdict`, `reason`, `score`, and `counts`: whether
                            the answer's score is by it
    verdicts/further/JUDGE.parquet    the same of a judge that `judge` asked later, on all cells

Each file is written once, whole or not at all. In memory an answer and its verdicts are one row, as `evaluation.Row`
has it. Missing values are null in the files and None in the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mithridate.evaluation.agreement import judges_beside
from mithridate.files import replacing

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]
RECORDS, VERDICTS, FURTHER = "records", "verdicts", "verdicts/further"
# The types of columns that a cell may have no value of. Others have the type of their values.
TYPES = {
    **dict.fromkeys(("cell", "set", "task", "id", "category", "prompt", "answer", "label", "reference"), "string"),
    **dict.fromkeys(("judge", "verdict", "reason", "protocol", "at_test"), "string"),
    **dict.fromkeys(("step", "row", "sample", "new_tokens", "prompt_tokens"), "int64"),
    **dict.fromkeys(("score", "seconds"), "float64"),
    **dict.fromkeys(("correct", "finished", "counts"), "bool"),
}
_JUDGED = ("verdict", "reason", "score", "judge")


def part(folder: str, name: str) -> str:
    """The path of a part in a run's folder, for a cell's or a judge's name."""
    return f"{folder}/{quote(name, safe='+')}.parquet"


def write(path: Path, rows: Sequence[Mapping[str, Any]], columns: Iterable[str] = ()) -> None:
    """Writes rows as Parquet, whole or not at all. `columns` are there even without a row that has them."""
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as aside:
        pq.write_table(_table(rows, columns), aside)


def _table(rows: Sequence[Mapping[str, Any]], columns: Iterable[str] = ()) -> pa.Table:
    import pyarrow as pa

    names = dict.fromkeys([*columns, *(name for row in rows for name in row)])
    made = {}
    for name in names:
        values, kind = [row.get(name) for row in rows], TYPES.get(name)
        if kind == "string":  # a data set's ids and categories may be numbers
            values = [value if value is None else str(value) for value in values]
        made[name] = pa.array(values, kind)
    return pa.table(made)


def read(path: Path) -> pa.Table:
    """A Parquet file. Raises OSError or pyarrow.ArrowException if it cannot be read."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:  # no more than this file: a folder named a=b would be taken for a column
        return file.read()


def rows_of(table: pa.Table) -> list[Row]:
    rows = table.to_pylist()
    if rows and isinstance(rows[0].get("step", 0), float | None):  # in files of older versions pandas made it a number
        for row in rows:  # with a fraction where some are missing
            row["step"] = None if row.get("step") is None else int(row["step"])
    return rows


def answers_of(rows: Sequence[Row]) -> list[Row]:
    """What the rows are without their verdicts."""
    return [{key: value for key, value in row.items() if not _of_a_judge(key)} for row in rows]


def _of_a_judge(column: str) -> bool:
    return column in _JUDGED or column.startswith("judge/")


def verdicts_of(rows: Sequence[Row], judges: Sequence[str] | None = None, first: int = 0) -> Iterator[Row]:
    """The verdicts in the rows, one a row and judge; the number of a row counts from `first`.

    Args:
        judges: only those of these, of what stands beside the score.
    """
    names = judges_beside(rows) if judges is None else judges
    for number, row in enumerate(rows, first):
        about = {"cell": row.get("cell"), "row": number, "step": row.get("step"), "set": row.get("set")}
        about |= {"id": row.get("id"), "sample": row.get("sample")}
        if judges is None and any(row.get(column) is not None for column in _JUDGED):
            yield about | {column: row.get(column) for column in _JUDGED} | {"counts": True}
        for name in names:
            found = [row.get(f"judge/{name}{end}") for end in ("", "/reason", "/score")]
            if found[0] is not None or found[1] is not None:
                yield about | dict(zip(("verdict", "reason", "score"), found)) | {"judge": name, "counts": False}


VERDICT_COLUMNS = ("cell", "row", "step", "set", "id", "sample", "judge", "verdict", "reason", "score", "counts")


def with_verdicts(answers: Sequence[Row], verdicts: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The answers of a cell with the verdicts on them, as `evaluation.Row` has it; what no judge said is None.
    Verdicts that the rows have already stay, but for those of the same judges.

    Raises:
        ValueError: a verdict on an answer that is not there.
    """
    verdicts = list(verdicts)
    names = dict.fromkeys(one["judge"] for one in verdicts if not one["counts"])
    none = dict.fromkeys(f"judge/{name}{end}" for name in names for end in ("", "/reason", "/score"))
    if answers and "verdict" not in answers[0]:
        none = dict.fromkeys(_JUDGED) | none
    rows = [none | answer for answer in answers]
    for one in verdicts:
        if not 0 <= one["row"] < len(rows) or rows[one["row"]]["id"] != one["id"]:
            raise ValueError(f"a verdict of {one['judge']} on row {one['row']}, which is no answer to {one['id']!r}")
        if one["counts"]:
            rows[one["row"]] |= {column: one[column] for column in _JUDGED}
        else:
            name = f"judge/{one['judge']}"
            rows[one["row"]] |= {name: one["verdict"], f"{name}/reason": one["reason"], f"{name}/score": one["score"]}
    return rows
