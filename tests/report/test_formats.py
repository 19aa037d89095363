"""Markdown, CSV and LaTeX from one table: the same numbers, and markup in texts stays text."""

import csv
import io
import json
import re
import shutil
import subprocess

import pytest
from markdown_it import MarkdownIt

from mithridate.report.build import export_tables
from mithridate.report.formats import FORMATS, comma_separated, escape_latex, latex, markdown
from mithridate.report.load import load
from mithridate.report.tables import Column, Entry, Table, rate_column, rate_entry, runs_table, seeds_table
from mithridate.statistics.text import p_value
from tests.gate.runs import as_schema_1, good, run_of
from tests.report import synthetic

NASTY = "a|b *c* _d_ `e` [f](http://g) <b>h</b> $i$ {j} \\k % & # ~ ^ 100% × −1 –\nnext"


def table(*texts):
    rows = [[Entry(text, "a note | too"), rate_entry(synthetic.rate(0.954, 112)), rate_entry(None)] for text in texts]
    columns = [Column("Run | x"), rate_column("Harmful score", "harmful_score"), rate_column("Accuracy", "accuracy")]
    return Table("t_1", "A caption of 95% & more", columns, rows)


def cells_of_html(text):
    return [re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<td.*?>(.*?)</td>", text, re.DOTALL)]


def test_markdown_reads_back_as_the_texts():
    html = MarkdownIt("commonmark").enable("table").render(markdown(table(NASTY, "- plain", "1. one")))
    found = cells_of_html(html)
    assert len(found) == 9 and html.count("<th") - html.count("<thead") == 3
    plain = [text.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">") for text in found]
    assert plain[0] == f"{' '.join(NASTY.split())} (a note | too)"
    assert plain[3].startswith("- plain") and plain[6].startswith("1. one")
    assert plain[1].startswith("96% ([")  # percent in what people read
    assert not re.search(r"<(b|em|code|a|li|strong)\b", html)


def test_csv_has_fractions_and_nothing_for_what_was_not_measured():
    written = comma_separated(table('a,b\n"c"'))
    [row] = csv.DictReader(io.StringIO(written))
    assert float(row["harmful_score"]) == 107 / 112 and row["harmful_score_n"] == "112"
    assert 0.89 < float(row["harmful_score_low"]) < 0.95
    assert row["accuracy"] == "" and row["Run | x"].startswith('a,b\n"c"')
    assert "%" not in written


def test_latex_escapes_and_keeps_its_shape():
    text = latex(table(NASTY, "plain"))
    body = text[text.index("\\midrule") : text.index("\\bottomrule")].strip().splitlines()[1:]
    assert len(body) == 2
    for row in body:
        assert row.endswith(" \\\\")
        assert len(re.findall(r"(?<!\\)&", row)) == 2  # three columns
        assert not re.search(r"(?<!\\)[%#_]|[<>|~^×−–]", row)
        unescaped = re.sub(r"\\[{}]", "", row)
        assert unescaped.count("{") == unescaped.count("}")
    for name in ("table", "tabular"):
        assert text.count(f"\\begin{{{name}}}") == text.count(f"\\end{{{name}}}") == 1
    assert "\\toprule" in text and "\\begin{tabular}{lrr}" in text and "\\label{tab:t-1}" in text
    assert escape_latex("50% & a_b {c} \\ ~") == r"50\% \& a\_b \{c\} \textbackslash{} \textasciitilde{}"


def test_latex_reads_no_cell_as_an_argument_of_what_ends_the_row_before():
    made = table("[mine] adapter", "* starred", "plain")
    made.columns[0] = Column("[Run]")
    rows = [line for line in latex(made).splitlines() if line.endswith(" \\\\")]
    assert [row.split(" ")[0] for row in rows] == ["{}[Run]", "{}[mine]", "{}*", "plain"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex")
def test_latex_compiles(tmp_path):
    text = latex(table(NASTY, "[mine] adapter", "* starred"))
    page = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{text}\end{{document}}"
    (tmp_path / "t.tex").write_text(page, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60).returncode == 0


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    results = synthetic.grid_results()
    return synthetic.write(tmp_path_factory.mktemp("grid"), results, synthetic.records(results, 12, 4, 4))


def test_every_table_of_a_run_is_written_in_each_format(grid, tmp_path):
    files = export_tables(grid, tmp_path / "deep" / "out")
    names = {file.stem for file in files}
    assert {
        "runs",
        "seeds",
        "settings",
        "tries",
        "costs-of-each-method",
        "costs-of-runs",
        "ratios-two-adapters",
    } <= names
    assert sorted(tmp_path.rglob("*.*")) == sorted(files)  # and nothing half-written beside them
    assert len(files) == len(names) * len(FORMATS)
    for file in files:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".csv":
            rows = list(csv.reader(io.StringIO(text)))
            assert len({len(row) for row in rows}) == 1 and len(set(rows[0])) == len(rows[0])
        assert "None" not in text.replace("-None-", "")  # as some cells are called here


def test_all_formats_tell_the_same_numbers(grid):
    run = load(grid)
    made = runs_table(run)
    rows = list(csv.DictReader(io.StringIO(comma_separated(made))))
    for row, cell, line in zip(rows, run.cells, markdown(made).splitlines()[4:], strict=True):
        assert float(row["harmful_score"]) == cell["rates"]["harmful_score"]["value"]
        assert f"| {round(cell['rates']['harmful_score']['value'] * 100)}%" in line.replace(">99%", "100%").replace(
            "&lt;1%", "0%"
        )
        if cell["paired"]:
            assert float(row["difference"]) == cell["paired"]["difference"]
            for name in ("p_holm", "detectable"):
                assert float(row[f"difference_{name}"]) == cell["paired"][name]
            assert f"Holm {p_value(cell['paired']['p_holm'])}".replace("<", "&lt;") in line
    together = seeds_table(run)
    assert together and len(together.rows) == 23
    [row] = [r for r in csv.DictReader(io.StringIO(comma_separated(together))) if r["run"] == "No defense"][2:3]
    [point] = [
        p
        for p in run.points
        if p["harmful_ratio"] == 0.1 and p["finetuning"] == "sft" and p["repair"] == "none" and p["alignment"] == "sft"
    ]
    assert row["harmful_score_seeds"] == "3" and row["seed"] == ""
    assert float(row["seed_sd"]) == point["across"]["rates"]["harmful_score"]["seed_sd"]


def test_a_run_of_schema_1_gives_the_same_tables(tmp_path):
    folder = run_of(tmp_path / "run", good())
    new = {path.name: path.read_text() for path in export_tables(folder, tmp_path / "new")}
    as_schema_1(folder)
    assert json.loads((folder / "results.json").read_text())["schema"] == 1
    assert {path.name: path.read_text() for path in export_tables(folder, tmp_path / "old")} == new
