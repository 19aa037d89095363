"""SVG figures: the marks and texts that the numbers ask for, the same bytes each time."""

import sys
import xml.etree.ElementTree as xml

import pytest

from mithridate.errors import InputError
from mithridate.report.build import export_figures
from mithridate.report.load import load
from mithridate.report.pictures import svg
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
    pytest.importorskip("matplotlib")
    item = sections(run)[section][number]
    return item, xml.fromstring(svg(item.figure, item.legend, item.title))


def texts(drawing):
    return [" ".join("".join(node.itertext()).split()) for node in drawing.iter(TEXT)]


def lines(drawing):
    return [node for node in drawing.iter(GROUP) if node.get("id", "").startswith("LineCollection")]


def test_lines_with_their_intervals_and_legend(runs):
    item, drawing = picture(runs["grid"], "ratios")
    shown = " ".join(texts(drawing))
    for wanted in ("Harmful rows among those fine-tuned on", "Harmful score", "5%", "20%", "No defense"):
        assert wanted in shown
    for key in item.legend:
        assert key.text in shown
    assert len(lines(drawing)) == 5  # the intervals of five methods
    assert svg(item.figure, item.legend, item.title) == svg(item.figure, item.legend, item.title)


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
    assert sorted(squares) == sorted(f"{cell['harmful_score']['value'] * 100:.0f}%" for cell in cells)
    assert len(item.table.rows) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grid", "sweep", "demo"])
def test_every_figure_is_a_picture_with_its_words(runs, tmp_path, name):
    pytest.importorskip("matplotlib")
    files = export_figures(runs["folders"][name], tmp_path)
    figures = [item for items in sections(runs[name]).values() for item in items]
    assert {file.stem for file in files} == {item.id for item in figures}
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert {item.id.partition("-")[0] for item in figures} >= {"scores", "shares", "costs", "curves", "trade"}
    for item in figures:
        shown = " ".join(texts(xml.parse(tmp_path / f"{item.id}.svg")))
        assert item.figure["layout"]["xaxis"]["title"]["text"] in shown
        for key in item.legend:
            assert " ".join(key.text.split()) in shown


def test_without_matplotlib_the_error_says_what_to_install(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'mithridate\[report\]'"):
        export_figures(runs["folders"]["demo"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
