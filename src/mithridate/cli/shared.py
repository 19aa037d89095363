"""Arguments and tables that several commands share."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mithridate.errors import InputError
from mithridate.files import replace_file

Experiment = Annotated[Path, typer.Argument(help="The experiment file (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--override", "-o", metavar="PATH=VALUE", help="Set a field, as in -o finetune.attack.size=500."),
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run.", show_default="runs/NAME")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="auto, float32 or bfloat16: short for -o dtype=...")]
Accelerate = Annotated[
    str | None,
    typer.Option(
        "--accelerate",
        metavar="ddp|fsdp2|FILE",
        help="Train in several processes; set their number with -o processes=N.",
    ),
]
Replace = Annotated[bool, typer.Option("--replace", help="Replace another experiment's results in --out.")]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Allow Python files that come with the model to run.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]


def check_run(folder: Path) -> None:
    """Raises InputError where the folder is not that of a run."""
    if not (folder / "results.json").is_file():
        raise InputError(f"{folder}: not a run folder (no results.json in it); give a folder that `run` wrote")


def write_out(out: Path, text: str, named: str | None = None) -> None:
    """Writes the file of --out whole or not at all; a folder that it lacks is made, as a run's is.

    Args:
        named: of the files that commands write into a run's folder, the one that this is.

    Raises:
        InputError: it cannot be written, or is another of a run's own files.
    """
    from mithridate.results.ownership import FILE, OWN

    if out.name in OWN and out.name != named and (out.parent / FILE).is_file():
        raise InputError(f"--out {out}: is a file of the run itself, and would be overwritten. Give another file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, text)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror}). Give a file that can.") from error


def overrides_of(given: list[str] | None, dtype: str | None, accelerate: str | None) -> list[str]:
    overrides = [*(given or []), *([f"dtype={dtype}"] if dtype else [])]
    if accelerate:  # a file is named from here; one in the experiment, from there
        here = Path(accelerate).expanduser()
        overrides.append(f"accelerate={json.dumps(str(here.absolute()) if here.is_file() else accelerate)}")
    return overrides


_LONGEST = 40  # characters of a word that a column makes room for; a longer one, as a path, is broken
_SHORT = 20  # characters of a cell that is kept in one line, as a rate with its interval


def _screen() -> bool:
    """Whether stdout has an edge to fold at; into a file or a pipe, lines and tables are as wide as they are."""
    return sys.stdout.isatty() or "COLUMNS" in os.environ


def say(text: str) -> None:
    """Prints lines of text, folded where the screen ends."""
    typer.echo(folded(text) if _screen() else text)


def folded(text: str) -> str:
    """Lines of text, each folded between words where the screen ends, and further in than it begins. A longer word,
    as a path, is left whole."""
    width, lines = shutil.get_terminal_size().columns, []
    for line in text.splitlines():
        further = " " * (len(line) - len(line.lstrip()) + 2)
        lines += textwrap.wrap(
            line, width, subsequent_indent=further, break_long_words=False, break_on_hyphens=False
        ) or [""]
    return "\n".join(lines)


def new_table(*titles: str) -> Any:
    from rich.table import Column, Table

    return Table(*(Column(title, overflow="fold") for title in titles))


def print_table(table: Any, keys: int = 1) -> None:
    """Prints a table of `new_table`, or one that looks after its width itself. Where the terminal is too narrow for
    all columns without breaking words, it is printed in pieces, each with the first `keys` columns."""
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich calls this in its handler, and would end the process with an exit code of 1

    console = Terminal(width=None if _screen() else 160)
    if all(column.overflow == "fold" for column in table.columns):
        for piece in _pieces(table, console.width, keys):
            console.print(piece)
    else:
        console.print(table)


def _pieces(table: Any, width: int, keys: int) -> Iterator[Any]:
    """A table as it is where it fits as a whole, with room for its longest words and its short cells in every column;
    else without its lines, and its columns in as many pieces as are needed."""
    from rich.table import Table
    from rich.text import Text

    columns = [[Text.from_markup(str(part)).plain for part in (c.header, *c.cells)] for c in table.columns]
    least = [max(_unbroken(part, i > 0) for i, part in enumerate(one)) for one in columns]
    cells = [max([least[i], *map(len, one[1:])]) for i, one in enumerate(columns)]
    full = [max(map(len, one)) for one in columns]
    if sum(full) + 3 * len(full) + 1 <= width:
        yield table
        return
    if sum(least) + 3 * len(least) + 1 <= width or len(least) <= keys:
        _share(table.columns, (least, cells, full), width - 3 * len(least) - 1)
        yield table
        return
    rest = list(range(keys, len(least)))
    while rest:
        shown, room = list(range(keys)), width - sum(least[:keys]) - 2 * keys
        while rest and (room >= least[rest[0]] or len(shown) == keys):
            room -= least[rest[0]] + 2
            shown.append(rest.pop(0))
        copies = (table.columns[i].copy() for i in shown)
        piece = Table(*copies, box=None, padding=(0, 2, 0, 0), pad_edge=False)
        wishes = [[wish[i] for i in shown] for wish in (least, cells, full)]
        _share(piece.columns, wishes, width - 2 * (len(shown) - 1))
        for row in zip(*(table.columns[i].cells for i in shown), strict=True):
            piece.add_row(*row)
        yield piece
        if rest:
            yield ""


def _unbroken(text: str, cell: bool) -> int:
    """The characters of the longest part of a text that no line end may come into."""
    if cell and len(text) <= _SHORT:
        return len(text)
    return min(max(map(len, text.split()), default=0), _LONGEST)


def _share(columns: list[Any], wishes: Sequence[list[int]], room: int) -> None:
    """Sets the widths of columns: the first wish of each, and of what is left as much as its next ones can use, small
    ones first."""
    widths = list(wishes[0])
    spare = max(room - sum(widths), 0)
    for wish in wishes[1:]:
        by_wish = sorted(range(len(columns)), key=lambda i: wish[i] - widths[i])
        for left, i in zip(range(len(columns), 0, -1), by_wish, strict=True):
            more = max(min(wish[i] - widths[i], spare // left), 0)
            widths[i] += more
            spare -= more
    for column, found in zip(columns, widths, strict=True):
        column.width = found


@contextlib.contextmanager
def heard_or_not() -> Iterator[None]:
    """What is said inside changes no exit code: a reader that has gone, or a full disk, is no verdict."""
    if sys.stdout is None:  # closed by the caller
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
        return
    try:
        yield
        sys.stdout.flush()
    except (OSError, UnicodeError) as error:
        # What is still in the buffer would fail once more when Python ends, with an exit code of its own.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            reason = getattr(error, "strerror", None) or error
            with contextlib.suppress(OSError):
                print(f"stdout: cannot be written ({reason}); the exit code has the verdict", file=sys.stderr)
