"""Figures for papers: the marks and texts that the numbers ask for, the same bytes each time."""

import xml.etree.ElementTree as xml

import pytest

from mithridate.report.build import export_figures
from mithridate.report.load import load
from mithridate.report.sections import sections
from tests.report import synthetic

NASTY = "<b>$x_1$</b> & 100%"
GROUP, TEXT = ("{http://www.w3.org/2000/svg}" + name for name in ("g", "text"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    made = {"grid": synthetic.grid_results(), "sweep": synthetic.sweep_results(), "demo": synthetic.demo_results()}
    made["sweep"]["cells"][0]["control"] = NASTY
    folders = {name: synthetic.write(root / name, r, synthetic.records(r, 12, 4, 4)) for name, r in made.items()}
    return {name: load(folder) for name, folder in folders.items()} | {"folders": folders}


def picture(run, section, number=0):
    """A figure of the run, and its drawing."""
    item = sections(run)[section][number]
    return item, xml.fromstring(item.figure.svg(item.title))


def texts(drawing):
    return [" ".join("".join(node.itertext()).split()) for node in drawing.iter(TEXT)]


def marks(drawing, kind, layer=""):
    """How many marks of a kind (of the layers whose name begins so) are drawn."""
    groups = [node for node in drawing.iter(GROUP) if f"mark-{kind} role-mark {layer}" in node.get("class", "")]
    return sum(len(group) for group in groups)


def test_lines_with_their_intervals_and_legend(runs):
    item, drawing = picture(runs["grid"], "ratios")
    shown = " ".join(texts(drawing))
    for wanted in ("Share of harmful rows", "Harmful score", "5%", "20%", "No defense"):
        assert wanted in shown
    for key in item.figure.legend:
        assert key.text in shown
    symbols = [node for node in drawing.iter(GROUP) if "role-legend-symbol" in node.get("class", "")]
    assert len(symbols) == len(item.figure.legend)
    assert [symbol[0].get("stroke") for symbol in symbols] == [key.colour for key in item.figure.legend]
    assert marks(drawing, "line") == 5  # methods
    assert marks(drawing, "rule") == 20  # their intervals, at four ratios
    assert "voronoi" not in item.figure.svg(item.title)  # what answers the pointer
    assert item.figure.svg(item.title) == item.figure.svg(item.title)


def test_names_with_markup_are_text(runs):
    _, drawing = picture(runs["sweep"], "scores")
    shown = " ".join(texts(drawing))
    assert NASTY.split()[0] in shown and "<br>" not in shown and "&lt;" not in shown


def test_a_heat_map_shows_each_percentage(runs):
    item, drawing = picture(runs["sweep"], "maps")
    cells = [
        cell for cell in runs["sweep"].cells if cell["id"].startswith("booster") and cell["id"].endswith("0.0002")
    ]
    squares = [text for text in texts(drawing) if text.endswith("%")]
    assert sorted(squares) == sorted(f"{cell['rates']['harmful_score']['value'] * 100:.0f}%" for cell in cells)
    assert len(item.table.rows) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grid", "sweep", "demo"])
def test_every_figure_is_a_picture_with_its_words(runs, tmp_path, name):
    files = export_figures(runs["folders"][name], tmp_path)
    figures = [item for items in sections(runs[name]).values() for item in items]
    assert {file.stem for file in files} == {item.id for item in figures}
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert {item.id.partition("-")[0] for item in figures} >= {"scores", "shares", "costs", "curves", "trade"}
    for item in figures:
        assert (tmp_path / f"{item.id}.pdf").read_bytes().startswith(b"%PDF")
        shown = " ".join(texts(xml.parse(tmp_path / f"{item.id}.svg")))
        for key in item.figure.legend:
            assert " ".join(key.text.split()) in shown
