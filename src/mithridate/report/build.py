"""The report of a run: one self-contained HTML page, and its tables and figures as files for papers.

The page makes no request: styles, scripts (Vega among them) and data stand in it, and its content-security policy
allows only these scripts and styles, by their digests. Text from models and data reaches the page through Jinja's
escaping or as JSON that the page's script puts in by `textContent`.
"""

import base64
import contextlib
import hashlib
import os
from collections.abc import Iterable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mithridate.environment import hardware, version, versions
from mithridate.errors import InputError
from mithridate.files import replace_file, replacing
from mithridate.models.folder import cache_folder
from mithridate.report.answers import answers
from mithridate.report.formats import FORMATS
from mithridate.report.load import LoadedRun, final, load
from mithridate.report.opening import answer, in_list, rests_on
from mithridate.report.samples import samples_table, samples_words
from mithridate.report.tables import (
    Table,
    runs_cost_table,
    runs_table,
    seeds_table,
    settings_table,
    tuning_table,
)
from mithridate.report.terminal import terminal_table
from mithridate.report.verdicts import findings, ranked
from mithridate.report.words import TOPOLOGY_NOTES, as_they_are, flatten
from mithridate.results.folder import redacted

if TYPE_CHECKING:
    from mithridate.report.sections import FigureWithTable

__all__ = ["build_report", "export_figures", "export_tables", "terminal_table"]


def build_report(folder: str | Path, out: str | Path | None = None, redact: bool = False) -> Path:
    """Write the report of a run as one HTML file that needs nothing else, and return its path.

    Args:
        folder: the folder of a run, with results.json and its records; tuning.jsonl (the log of tries) and
            history.json ({cell id: [{"step", "loss"}, ...]}) are shown where they are there.
        out: the file to write; `folder`/report.html by default. Replaced at once, never half-written.
        redact: leaves out what models said: answers, and the reasons of verdicts, which quote them. Verdicts stay.

    Raises:
        InputError: a file is missing or malformed, or altair or vl-convert-python is not installed.
    """
    folder = Path(folder)
    out = Path(out) if out else folder / "report.html"
    run = load(folder)
    if redact:
        run = replace(run, records=[redacted(row) for row in run.records])
    html = _page(run, folder, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, html)
    return out


def export_tables(folder: str | Path, out: str | Path) -> list[Path]:
    """Write every table of a run's page as Markdown, CSV (rates as fractions) and LaTeX. Returns the files.

    Args:
        folder: as in `build_report`.
        out: the folder for them, made where it is not there; files of these names are replaced.

    Raises:
        InputError: as in `build_report`, or `out` cannot be a folder.
    """
    run = load(Path(folder))
    tables = [*_tables(run).values(), *(item.table for item in _items(_sections(run)))]
    texts = {table.name: table for table in tables if table}
    out = _folder(out)
    files = []
    for name, table in texts.items():
        for ending, written in FORMATS.items():
            replace_file(path := out / f"{name}.{ending}", written(table))
            files.append(path)
    return files


def export_figures(folder: str | Path, out: str | Path) -> list[Path]:
    """Write every figure of a run's page as SVG and as PDF, with its legend. Returns the files.

    Args:
        folder: as in `build_report`.
        out: the folder for them, made where it is not there; files of these names are replaced.

    Raises:
        InputError: as in `build_report`, or `out` cannot be a folder.
    """
    pictures = {item.id: item.figure.svg(item.title) for item in _items(_sections(load(Path(folder))))}
    import vl_convert

    out = _folder(out)
    files = []
    for name, text in pictures.items():
        replace_file(drawing := out / f"{name}.svg", text)
        with replacing(document := out / f"{name}.pdf") as aside:
            aside.write_bytes(vl_convert.svg_to_pdf(text))
        files += [drawing, document]
    return files


def _folder(out: str | Path) -> Path:
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be a folder ({error.strerror}). Give one that can.") from error
    return out


def _sections(run: LoadedRun) -> "dict[str, list[FigureWithTable]]":
    try:
        import altair  # noqa: F401 (takes a while, and the terminal table does not need it)
        import vl_convert  # noqa: F401
    except ImportError:
        message = "The report needs altair and vl-convert-python. Install them: pip install 'mithridate[report]'."
        raise InputError(message) from None
    from mithridate.report.sections import sections

    return sections(run)


def _items(found: "dict[str, list[FigureWithTable]]") -> "Iterable[FigureWithTable]":
    return (item for items in found.values() for item in items)


def _tables(run: LoadedRun) -> dict[str, Table | None]:
    """The tables that stand beside no figure."""
    return {
        "runs": runs_table(run),
        "seeds": seeds_table(run),
        "samples": samples_table(run),
        "runs_costs": runs_cost_table(run),
        "settings": settings_table(run),
        "tries": tuning_table(run.tuning) if run.tuning else None,
    }


# --- the page ---------------------------------------------------------------------------------------------------


def _vega() -> str:
    """Vega as one script. vl-convert takes seconds to put it together, so it is kept, behind its digest."""
    import vl_convert

    kept = cache_folder() / f"vega-{version('vl-convert-python')}.js"
    with contextlib.suppress(OSError):
        digest, _, script = kept.read_bytes().partition(b"\n")
        if hashlib.sha256(script).hexdigest().encode() == digest:
            return script.decode()
    made: str = vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue] (its stub lacks the default)
    with contextlib.suppress(OSError):  # no room, or not writable: the page does not need it
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as aside:
            aside.write_bytes(hashlib.sha256(made.encode()).hexdigest().encode() + b"\n" + made.encode())
    return made


def _page(run: LoadedRun, folder: Path, out: Path) -> str:
    import jinja2  # takes a while, and the terminal table does not need it

    found, tables = _sections(run), _tables(run)
    vega = _vega()
    files = resources.files("mithridate.report")
    script, style = (files.joinpath(name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(files.joinpath("page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        policy=_policy([vega, script], [style]),
        scripts=[vega, script],
        style=style,
        model=run.results["model"],
        protocol=run.results["protocol"],
        deviations=run.results.get("deviations", []),
        unfinished=_unfinished(run),
        as_it_is=as_they_are(run.cells),
        answer=answer(run.cells, run.points),
        rests_on=rests_on(run.cells, run.points),
        ranked={
            rows: [(one, in_list(run.point_names[one.cell["id"]], rows)) for one in some]
            for rows, some in ranked(run.points).items()
        },
        each=[(one, run.names[one.cell["id"]].full) for one in findings(run.cells)] if tables["seeds"] else [],
        sections=found,
        samples=samples_words(run),
        drawn=_drawn(run),
        figures={item.id: item.figure.for_page() for item in _items(found)},
        topologies=[TOPOLOGY_NOTES[name] for name in TOPOLOGY_NOTES if any(c["topology"] == name for c in run.cells)],
        tables=tables,
        notes=run.results.get("notes", []),
        answers=answers(run),
        counts={"cells": len(run.cells), "answers": sum(map(final, run.records))},
        links=[(name, quote(os.path.relpath(folder / name, out.parent))) for name in run.files],
        facts=_facts(),
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _policy(scripts: Iterable[str], styles: Iterable[str]) -> str:
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(map(_digest, scripts))}",
            f"style-src {' '.join(map(_digest, styles))}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _unfinished(run: LoadedRun) -> str | None:
    if run.results.get("complete", True):
        return None
    return f"The run has not finished: these are the {len(run.cells)} models that it has scored so far."


def _drawn(run: LoadedRun) -> str | None:
    """How often each prompt was answered, where answers were drawn."""
    if not run.samples:
        return None
    several = run.samples != [1]
    return f"has {' or '.join(map(str, run.samples))} answer{'s' * several}, drawn at a temperature"


def _facts() -> list[tuple[str, Any]]:
    """What the page was written with; right after a run, that is what the run was computed with."""
    facts = flatten({**versions(), **hardware()})
    return [(name.replace("_", " "), str(value)) for name, value in facts.items() if value]
