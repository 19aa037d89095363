"""How far along something is that takes long: a bar on a terminal or in a notebook, plain lines in a log file."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

logger = logging.getLogger(__name__)

_TENTHS = 10
_SHORT = 5.0  # seconds: what takes no longer has no lines


def time_left(seconds: float) -> str:
    """As in "about 3 min left"."""
    return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"


def live() -> bool:
    """Whether a line that was written can be written over: on a terminal, or in a notebook."""
    return "ipykernel" in sys.modules or bool(sys.stderr and sys.stderr.isatty())


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside, no bars of the libraries' own beside ours, unless something is being looked for."""
    import datasets
    from transformers.utils import logging as bars

    if logger.isEnabledFor(logging.DEBUG):
        yield
        return
    shown, data_shown = bars.is_progress_bar_enabled(), datasets.is_progress_bar_enabled()
    bars.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
        if data_shown:
            datasets.enable_progress_bars()


class Progress:
    """Counts towards a total, on stderr. A context manager; or `close` it.

    Args:
        total: where it ends.
        what: in a word or two, as in "answers".
        unit: what is counted, in the plural.
        shown: False shows nothing at all.
        done: what was counted before, in a run that goes on.
    """

    def __init__(self, total: int, what: str, unit: str, shown: bool = True, done: int = 0):
        self.done, self._total, self._what, self._unit = done, total, what, unit
        self._first, self._began, self._bar = done, time.monotonic(), None
        self._lines = shown and not live()
        self._said = self._tenth()
        if shown and not self._lines:
            from tqdm.auto import tqdm

            self._bar: Any = tqdm(total=total, initial=done, desc=what, unit=unit, leave=False, dynamic_ncols=True)

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._lines and self._tenth() > self._said:
            seconds = time.monotonic() - self._began
            if seconds >= _SHORT:
                self._said = self._tenth()
                left = seconds / (self.done - self._first) * (self._total - self.done)
                ending = f", {time_left(left)}" if self.done < self._total else ""
                line = f"  {self._what}: {self.done} of {self._total} {self._unit}{ending}"
                print(line, file=sys.stderr, flush=True)

    def _tenth(self) -> int:
        return _TENTHS * self.done // max(self._total, 1)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
