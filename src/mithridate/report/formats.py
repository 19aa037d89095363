"""A table as Markdown, CSV and LaTeX (booktabs).

Texts may come from a model or a file, so each format escapes what it would read as markup.
"""

import csv
import io
import re
from collections.abc import Callable

from mithridate.report.tables import Column, Entry, Table

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    **{sign: f"\\{sign}" for sign in "#$%&_"},
}


def markdown(table: Table) -> str:
    """A GitHub table under its caption."""

    def row(texts: list[str]) -> str:
        return f"| {' | '.join(texts)} |"

    header = [escape_markdown(column.title) for column in table.columns]
    rows = [[escape_markdown(_joined(entry, " (", ")")) for entry in entries] for entries in table.rows]
    aligned = ["---", *["---:" if _numeric(column) else "---" for column in table.columns[1:]]]
    return "\n".join([f"{escape_markdown(table.caption)}.", "", row(header), row(aligned), *map(row, rows), ""])


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = re.sub(r"([\\`*_{}\[\]#|~$!])", r"\\\1", " ".join(text.split()))
    text = re.sub(r"^(\d*)([-+.)])(?= )", r"\1\\\2", text)  # what would begin a list
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def latex(table: Table) -> str:
    """A table for `\\usepackage{booktabs}`, with caption and label; pdfLaTeX compiles it where texts are Latin."""

    def row(texts: list[str]) -> str:
        # After `\\` or `\midrule`, what begins with one of these would be read as their argument.
        guard = "{}" if texts[0].startswith(("*", "[")) else ""
        return f"{guard}{' & '.join(texts)} \\\\"

    kinds = "l" + "".join("r" if _numeric(column) else "l" for column in table.columns[1:])
    rows = []
    for entries in table.rows:
        notes = [f" {{\\scriptsize {escape_latex(entry.note)}}}" if entry.note else "" for entry in entries]
        rows.append(row([escape_latex(entry.text) + note for entry, note in zip(entries, notes)]))
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(table.caption)}.}}",
        rf"\label{{tab:{re.sub(r'[^a-z0-9.-]', '-', table.name)}}}",
        rf"\begin{{tabular}}{{{kinds}}}",
        r"\toprule",
        row([escape_latex(column.title) for column in table.columns]),
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def escape_latex(text: str) -> str:
    """Text that LaTeX sets as it is, on one line."""
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))


def comma_separated(table: Table) -> str:
    """CSV with the plain numbers: rates are fractions, what was not measured is empty."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([name for column in table.columns for name in column.fields or (column.title,)])
    for entries in table.rows:
        writer.writerow([value for column, entry in zip(table.columns, entries) for value in _values(column, entry)])
    return written.getvalue()


def _values(column: Column, entry: Entry) -> tuple:
    if not column.fields:
        return (_joined(entry, " (", ")"),)
    return entry.values or (None,) * len(column.fields)


def _numeric(column: Column) -> bool:
    return bool(column.fields)


def _joined(entry: Entry, before: str, after: str) -> str:
    return f"{entry.text}{before}{entry.note}{after}" if entry.note else entry.text


FORMATS: dict[str, Callable[[Table], str]] = {"md": markdown, "csv": comma_separated, "tex": latex}
"""How a table is written, by the ending of its file."""
