"""Writes docs/results.md from a finished benchmark, and keeps what it was written from.

    python -m benchmarks.results runs/embedded --keep benchmarks/results/embedded --note "two other jobs beside it"
    python -m benchmarks.results benchmarks/results/embedded          # the page anew, from what was kept

The first call copies the benchmark's table, cells, records and verdicts, and reads in the store (`MITHRIDATE_STORE`)
what they were computed with; the page is then a function of that folder alone, and a test holds it to it.
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


def write(folder: Path, out: Path) -> None:
    """Writes the page from a folder that `evidence.keep` wrote."""
    replace_file(out, page(evidence.read(folder)))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a finished benchmark, or of what was kept of one")
    parser.add_argument("--keep", type=Path, help="copy there what the page is written from")
    parser.add_argument("--note", default="", help="what else has to be known of the machine and the run")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page; docs/results.md if not given")
    given = parser.parse_args(arguments)
    try:
        if given.keep:
            evidence.keep(given.folder, given.keep, Store(), given.note)
        write(given.keep or given.folder, given.out)
    except MithridateError as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
