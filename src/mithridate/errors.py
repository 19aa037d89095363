"""What the user sees when something is wrong: what, where, and how to fix it.

Every error that a user can cause or cure derives from `MithridateError`; the command prints its text on one line,
without a traceback, and exits with its `exit_code`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator


class MithridateError(Exception):
    """Something failed while running (exit code 1)."""

    exit_code = 1


class InputError(MithridateError):
    """The input is bad: a file, a row, a field, a value (exit code 3)."""

    exit_code = 3


class UnsupportedSetup(InputError):
    """A method does not support this set-up. Raised before any compute is spent.

    Args:
        reason: which setting is not supported, and why.
        remedy: what to set instead.
    """

    def __init__(self, reason: str, remedy: str):
        super().__init__(f"{reason} Remedy: {remedy}")
        self.reason = reason
        self.remedy = remedy


def error_of(where: str, problems: list[str]) -> InputError:
    """One error for all of them; `where` is the name of the file that they are in."""
    before = f"{where}: " if where else ""
    if len(problems) == 1:
        return InputError(f"{before}{problems[0]}")
    shown = problems[:20] + ([f"... and {len(problems) - 20} more"] if len(problems) > 20 else [])
    return InputError(f"{before}{len(problems)} problems:\n" + "\n".join(f"  {problem}" for problem in shown))


class Findings:
    """Collects what is wrong, so that all of it is told at once, each problem once."""

    def __init__(self) -> None:
        self._found: dict[str, InputError] = {}

    @contextlib.contextmanager
    def noting(self, path: str = "") -> Iterator[None]:
        """Notes an InputError that the block ends with, and goes on; `path` is put before its text."""
        try:
            yield
        except InputError as error:
            self._found.setdefault(f"{path}{error}", error if not path else InputError(f"{path}{error}"))

    def __bool__(self) -> bool:
        return bool(self._found)

    def texts(self, where: str = "") -> list[str]:
        """The problems, one text each; `where` is taken off their beginnings."""
        return list(dict.fromkeys(line for text in self._found for line in _items(text, where)))

    def settle(self, where: str = "") -> None:
        """Raises InputError with every problem found; where there is one alone, as it was raised."""
        if len(self._found) == 1:
            [error] = self._found.values()
            raise error
        if self._found:
            raise error_of(where, self.texts(where))


def _items(text: str, where: str) -> list[str]:
    """The problems in an error's text, which may have several itself."""
    text = text.removeprefix(f"{where}: ")
    head, *rest = text.split("\n")
    return [line.strip() for line in rest] if rest and re.search(r"^(\w+: )?\d+ problems:$", head) else [text]
