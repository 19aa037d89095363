"""A finished run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mithridate.results.folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and its table as in results.json. `compare`, `gate` and `open` take it as a path."""

    folder: Path

    def __fspath__(self) -> str:
        return str(self.folder)

    @cached_property
    def results(self) -> dict[str, Any]:
        return RunFolder(self.folder).results

    def records(self) -> pd.DataFrame:
        """One row per answer: cell, prompt, answer, verdict, judge, protocol, ... and what further judges said."""
        return RunFolder(self.folder).frame()

    @property
    def cells(self) -> list[str]:
        """The ids of the scored models."""
        return [cell["id"] for cell in self.results["cells"]]

    @property
    def report(self) -> Path:
        return self.folder / "report.html"
