"""The command `mithridate`. What a verb needs is imported when it runs: `--help` needs no torch.

Exit codes: 0 done (gate: pass), 1 failed (gate: fail), 2 the gate cannot decide, 3 bad input (command-line usage
included), 130 interrupted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from mithridate import __version__
from mithridate.cli import about, results, runs, store, studies
from mithridate.cli.shared import folded
from mithridate.environment import use_huge_pages
from mithridate.errors import MithridateError

FAILED, BAD_INPUT, INTERRUPTED = 1, 3, 130
# The usage error of click, or of typer's own copy of click, as typer's version has it.
_USAGE_ERROR: Any = typer.BadParameter.__bases__[0]
_COMPLETE = "_MITHRIDATE_COMPLETE"
_LIBRARIES = r"(torch|transformers|trl|peft|accelerate|datasets|huggingface_hub|multiprocess)\b"

app = typer.Typer(
    name="mithridate",
    help="Defenses against harmful fine-tuning of language models: align, attack, repair, measure.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # whose columns cut long names of options on a screen of 80
    context_settings={"help_option_names": ["-h", "--help"]},
)
for part in (runs, studies, results, about):
    app.add_typer(part.app)
app.add_typer(store.app, name="store")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"mithridate {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' own messages.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Defenses against harmful fine-tuning of language models: align, attack, repair, measure."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code. Errors go to stderr, in one message, without a traceback.

    A reader of the output that closes it early (`| head`) has seen enough: the exit code is that of what was done.
    """
    for name in ("stdout", "stderr"):  # None where the caller closed it
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 (for the rest of the process)
    code = _invoke(arguments)
    try:
        sys.stdout.flush()
    except OSError as error:  # otherwise Python finds it at its end, and makes an exit code of its own of it
        _drop_output()
        if code == 0 and not isinstance(error, BrokenPipeError):
            return _fail(f"standard output: {error.strerror or error}", FAILED, debug=False)
    return code


def _invoke(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given  # taken before or after the verb
    given = [argument for argument in given if argument != "--debug"]
    failed = BAD_INPUT if given[:1] == ["gate"] else FAILED  # there, an exit code of 1 is a verdict
    _quieten(debug)
    use_huge_pages()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's goodbye is an interrupt
    if _COMPLETE in os.environ:  # a shell asks, in typer's own words, what may follow
        app(prog_name="mithridate")
    try:
        # Not the command's own main(): it turns interrupts and errors into exit codes of its own.
        command = _command()
        with command.make_context("mithridate", given) as context:
            command.invoke(context)
        return 0
    except typer.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted; finished stages are kept, and the next run continues from them", INTERRUPTED, debug)
    except _USAGE_ERROR as error:
        help_for = context.command_path if (context := getattr(error, "ctx", None)) else "mithridate"
        return _fail(f"{error.format_message()} (see `{help_for} --help`)", BAD_INPUT, debug)
    except MithridateError as error:
        return _fail(str(error), failed if error.exit_code == FAILED else error.exit_code, debug)
    except BrokenPipeError:
        _drop_output()
        return 0 if failed == FAILED else failed  # of the gate, 0 is a verdict too
    except OSError as error:
        where = f"{error.filename}: " if error.filename else "standard output: " if _cannot_say() else ""
        return _fail(f"{where}{error.strerror or error}", failed, debug)
    except Exception as error:
        text = f"internal error: {type(error).__name__}: {error}"
        return _fail(text if debug else f"{text} (run it with --debug for the traceback)", failed, debug)


def _command() -> Any:
    """The whole command. What a verb does stands in the list of verbs whole, not shortened to one line."""
    whole: Any = typer.main.get_command(app)
    waiting = [whole]
    while waiting:
        one = waiting.pop()
        waiting += getattr(one, "commands", {}).values()
        one.short_help = (one.help or "").partition("\n\n")[0]
    return whole


def _fail(message: str, code: int, debug: bool) -> int:
    with contextlib.suppress(OSError):  # of a stderr that cannot be written: the exit code is heard all the same
        if debug:
            traceback.print_exc()
        print(f"error: {message}", file=sys.stderr)
    return code


def _cannot_say() -> bool:
    """Whether stdout cannot be written: an error there does not say of what. A line's end more shows it."""
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def _drop_output() -> None:
    """From now on nothing is written to stdout, which cannot be written."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Message(logging.Formatter):
    """Folded on a terminal, whole in a log file."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return folded(text) if sys.stderr.isatty() else text


def _quieten(debug: bool) -> None:
    """Our own messages to stderr; the libraries' only when something is being looked for."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Message("%(message)s"))
    logger = logging.getLogger("mithridate")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False
    if not debug:
        # which tells, on some CPUs, of a package that it would run faster with
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        warnings.filterwarnings("ignore", module=_LIBRARIES)
