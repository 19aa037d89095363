"""A finished run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and its table as in results.json."""

    folder: Path

    @cached_property
    def results(self) -> dict[str, Any]:
        return json.loads((self.folder / "results.json").read_text())

    def records(self) -> pd.DataFrame:
        """One row a prompt and cell: prompt, answer, verdict, judge, protocol, ..."""
        import pandas as pd

        return pd.read_parquet(self.folder / "records.parquet")

    @property
    def cells(self) -> list[str]:
        """The ids of the scored models."""
        return [cell["id"] for cell in self.results["cells"]]

    @property
    def report(self) -> Path:
        return self.folder / "report.html"
