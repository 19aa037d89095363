"""Writes docs/results.md from finished benchmarks, and keeps what it was written from.

    python -m benchmarks.results runs/embedded --keep benchmarks/results/embedded --note "two other jobs beside it"
    python -m benchmarks.results benchmarks/results/embedded benchmarks/results/paired     # the page anew

The first call copies the benchmark's table, cells, records and verdicts, and reads in the store (`MITHRIDATE_STORE`)
what they were computed with. The page is a function of what was kept alone, and a test holds it to that.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.results_page import evidence
from benchmarks.results_page.page import page
from mithridate.errors import MithridateError
from mithridate.files import replace_file
from mithridate.store import Store

PAGE = Path(__file__).parents[1] / "docs" / "results.md"


def write(folders: list[Path], out: Path) -> None:
    """Writes the page from folders that `evidence.keep` wrote."""
    replace_file(out, page([evidence.read(folder) for folder in folders]))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="of finished benchmarks, or of what was kept of them")
    parser.add_argument("--keep", type=Path, help="copy there what the page is written from; of one benchmark")
    parser.add_argument("--note", default="", help="what else has to be known of the machine and the run")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page; docs/results.md if not given")
    given = parser.parse_args(arguments)
    if given.keep and len(given.folders) > 1:
        parser.error("--keep: one benchmark at a time; then the page from all of the folders that were kept")
    try:
        if given.keep:
            evidence.keep(given.folders[0], given.keep, Store(), given.note)
        write([given.keep] if given.keep else given.folders, given.out)
    except MithridateError as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
