"""Arguments and tables that several commands share."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from mithridate.errors import InputError

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


def overrides_of(given: list[str] | None, dtype: str | None, accelerate: str | None) -> list[str]:
    overrides = [*(given or []), *([f"dtype={dtype}"] if dtype else [])]
    if accelerate:  # a file is named from here; one in the experiment, from there
        here = Path(accelerate).expanduser()
        overrides.append(f"accelerate={json.dumps(str(here.absolute()) if here.is_file() else accelerate)}")
    return overrides


def new_table(*titles: str) -> Any:
    from rich.table import Column, Table

    return Table(*(Column(title, overflow="fold") for title in titles))


def print_table(table: Any) -> None:
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich calls this in its handler, and would end the process with an exit code of 1

    # Into a file or a pipe a table is wide: there is no edge of a screen to fold it at.
    Terminal(width=None if sys.stdout.isatty() else 160).print(table)


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
