"""The page as a file, its figures, and the table for the terminal; the page in a browser is in test_page.py."""

import base64
import hashlib
import html
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import altair
import markupsafe
import pytest
from jinja2.utils import htmlsafe_json_dumps
from rich.console import Console

from mithridate import cli
from mithridate.errors import InputError
from mithridate.report import colours, figures
from mithridate.report.build import build_report, terminal_table
from mithridate.report.groups import curve, resistance_pairs
from mithridate.report.load import load
from mithridate.report.sections import sections
from mithridate.report.words import labels, story_order
from tests.report import synthetic


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(folder):
    return build_report(folder).read_text(encoding="utf-8")


@pytest.fixture
def small(tmp_path):
    """A run of two cells, quick to write and to break."""
    results = {"schema": 1, "protocol": "hs/embedded-v1", "model": "m", "cells": [synthetic.cell()]}
    results["cells"].append(synthetic.cell(finetuning="lisa", score=0.2))
    return synthetic.write(tmp_path / "run", results, synthetic.records(results, 12, 4, 4))


def printed(results, width=100):
    written = io.StringIO()
    Console(width=width, file=written).print(terminal_table(results))
    return written.getvalue()


def found(pattern, text):
    """The text of the pattern's group, or of the whole pattern where it has none."""
    match = re.search(pattern, text, re.DOTALL)
    assert match, pattern
    return match[match.re.groups]


def data(page, name):
    """A data block of the page, read as a browser reads it."""
    return json.loads(found(rf'<script type="application/json" id="{name}">(.*?)</script>', page))


def rows(figure):
    """The rows that a figure draws, those of reference lines apart."""
    return figure.chart.data.values


def test_the_policy_allows_exactly_the_scripts_and_styles_of_the_page(page):
    policy = html.unescape(found(r'Content-Security-Policy" content="([^"]+)"', page))
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        texts = re.findall(rf"<{tag}(?: id=\S+)?>(.*?)</{tag}>", page, re.DOTALL)
        digests = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts}
        allowed = found(rf"{tag}-src ([^;]+);", policy).split()
        assert {f"'sha256-{digest}'" for digest in digests} == set(allowed)
        assert len(texts) == {"script": 2, "style": 1}[tag]


def test_the_page_refers_to_nothing_outside(page):
    plain = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", page, flags=re.DOTALL)
    links = re.findall(r'(?:src|href)="([^"]*)"', plain)
    assert links
    files = {"results.json", "records.parquet", "tuning.jsonl", "history.json"}
    assert {link for link in links if not link.startswith("#")} == {"data:,", *files}


def test_markup_in_an_answer_stays_text(page):
    assert synthetic.SCRIPT not in page
    texts = [answer[1] for prompt in data(page, "answers-data")["prompts"] for answer in prompt[3]]
    assert any(text.startswith(synthetic.SCRIPT) for text in texts)


def test_markup_in_results_is_escaped(small):
    results = json.loads((small / "results.json").read_text())
    results["model"] = results["protocol"] = synthetic.SCRIPT
    results["cells"][1]["finetuning"] = synthetic.SCRIPT
    results["cells"][1]["settings"] = {synthetic.SCRIPT: synthetic.SCRIPT}
    (small / "results.json").write_text(json.dumps(results))
    page = build_report(small).read_text(encoding="utf-8")
    assert "<script>document" not in page
    assert str(markupsafe.escape(synthetic.SCRIPT)) in page
    assert "<img" not in found(r'<script type="application/json" id="figures-data">(.*?)</script>', page)


def test_the_answers_hold_every_final_answer_once(folder, page):
    answers = data(page, "answers-data")
    cells = synthetic.demo_results()["cells"]
    assert len(answers["cells"]) == len(cells) == 16
    assert len(answers["prompts"]) == 112 + 100 + 60
    assert sum(len(prompt[3]) for prompt in answers["prompts"]) == 16 * (112 + 100 + 60)
    # The undefended run and the defenses that left least are shown at first.
    assert [answers["cells"][i].split(" (")[0].split(",")[0] for i in answers["shown"]] == [
        "No defense",
        "Lisa",
        "Antidote",
    ]
    assert not any("on the way" in answer[1] for prompt in answers["prompts"] for answer in prompt[3])


def test_every_figure_has_a_table_and_words(page):
    names = re.findall(r'data-figure="([^"]+)"', page)
    assert set(names) == set(data(page, "figures-data"))
    assert len(names) == 1 + 2 + 2 + 2 + 3 + 1 + 1 + 2
    for one in re.findall(r"<figure>.*?</figure>", page, re.DOTALL):
        assert re.search(r'role="img"[^>]* aria-label="[^"]{20,}"', one)
        assert one.count("<table>") == 1
        assert "<caption><span>" in one


def test_headings_of_tables_are_words(page):
    """No name of a class in the place of a word."""
    headings = [re.sub("<[^>]*>", " ", found) for found in re.findall(r"<th\b[^>]*>(.*?)</th>", page, re.DOTALL)]
    assert "Run" in {heading.strip() for heading in headings}
    assert not [heading for heading in headings if re.search(r"\b[A-Z][a-z]+[A-Z][a-z]", heading)]


def test_figures_are_valid_name_no_address_and_leave_their_colours_to_the_page(page):
    for figure in data(page, "figures-data").values():
        altair.Chart.from_dict(figure | {"autosize": "fit"})  # raises at an unknown property or a bad value
        assert "//" not in json.dumps(figure)
        assert figure["width"] == "container"
        axis = figure["config"]["axis"]
        assert {axis["labelColor"], axis["titleColor"]} == {"var(--ink)"} and axis["gridColor"] == "var(--line)"
    for name in ("--ink", "--line"):
        assert re.search(rf"{name}: light-dark\(#\w+, #\w+\);", page)


def test_bars_show_value_and_interval():
    cells = sorted(synthetic.read(*synthetic.demo_results()["cells"]), key=story_order)
    figure = figures.score_bars(cells, labels(cells))
    for i, (cell, row) in enumerate(zip(cells, rows(figure), strict=True)):
        score = cell["rates"]["harmful_score"]
        assert row["row"] == i and row["hue"] == colours.colour(cell)
        assert {name: row[name] for name in ("value", "low", "high")} == {
            name: score[name] for name in ("value", "low", "high")
        }
        assert f"n = {score['n']}" in row["text"]
        assert (row["inside"] < 1) == bool(cell["control"])
    marks = figure.for_page()["layer"]
    bars, intervals = (next(m for m in marks if m["mark"]["type"] == kind) for kind in ("bar", "errorbar"))
    assert bars["encoding"]["x"]["field"] == "value"
    assert intervals["encoding"]["x"]["field"] == "low" and intervals["encoding"]["x2"]["field"] == "high"


def test_a_defense_has_one_colour_and_its_control_the_same():
    cells = synthetic.demo_results()["cells"]
    hues = {}
    for cell in cells:
        methods = (cell["alignment"], cell["finetuning"], cell["repair"])
        names = tuple(name for name in methods if name not in ("none", "sft"))
        hues.setdefault(names, set()).add(colours.colour(cell))
    assert all(len(found) == 1 for found in hues.values())
    assert len(set.union(*hues.values())) == len(hues) == 5


def test_methods_keep_their_own_colours_and_others_take_the_next():
    own = {"vaccine": "#009E73", "booster": "#0072B2", "lisa": "#E69F00", "antidote": "#CC79A7"}
    fields = {"vaccine": "alignment", "booster": "alignment", "lisa": "finetuning", "antidote": "repair"}
    cells = [synthetic.cell(**{fields[name]: name}) for name in own]
    others = [
        synthetic.cell(alignment="vaccine+booster"),
        synthetic.cell(finetuning="mine"),
        synthetic.cell(alignment="vaccine+booster", seed=1),
        synthetic.cell(finetuning="mine", control="x"),
        *(synthetic.cell(finetuning=f"other{i}") for i in range(3)),
    ]
    colours.paint([*cells, *others, synthetic.cell()])
    assert [cell["colour"] for cell in cells] == list(own.values())
    first, second, third, fourth = colours.FREE_COLOURS
    assert [cell["colour"] for cell in others] == [first, second, first, second, third, fourth, first]
    assert not {*colours.FREE_COLOURS, colours.UNDEFENDED} & {*own.values(), *colours.VERDICT_COLOURS.values()}


def test_the_curve_runs_from_the_aligned_model_to_the_end_of_the_attack():
    cells = synthetic.read(*synthetic.demo_results()["cells"])
    booster = next(cell for cell in cells if cell["id"].startswith("booster-sft-none-single-0.1"))
    points = curve(booster, cells)
    assert [step for step, _ in points] == [0, 20, 35, 50]
    assert points[0][1]["value"] == 0
    assert points[-1][1] == booster["rates"]["harmful_score"]
    pairs = {
        cell["alignment"] + cell["finetuning"]: [b["id"] for b in beside] for cell, beside in resistance_pairs(cells)
    }
    assert set(pairs) == {"vaccinesft", "sftlisa", "boostersft"}
    assert pairs["boostersft"] == ["sft-sft-none-single-0.1-s0"]
    assert pairs["sftlisa"] == ["sft-sft-none-double-0.1-s0", "sft-lisa-none-double-0.1-s0-no-proximal-term"]


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    results = synthetic.grid_results()
    return synthetic.write(tmp_path_factory.mktemp("grid"), results, synthetic.records(results, 12, 4, 4))


def test_a_grid_is_shown_by_method(grid):
    """Sixty-nine cells: no legend and no figure grows with them."""
    run = load(grid)
    found = sections(run)
    [ratios] = found["ratios"]
    legend = ratios.figure.legend
    assert legend[0].text == "No defense" and len(legend) == 5
    for key in legend:
        assert len([row for row in rows(ratios.figure) if row["series"] == key.text]) == 4
    assert [len(row) for row in ratios.table.rows] == [5] * 5
    assert len(found["scores"]) == 5 and len(found["trade"]) == 3  # before fine-tuning and each ratio; each attack
    assert len(found["resistance"]) == 3
    for item in (item for items in found.values() for item in items):
        assert len(item.figure.legend) <= 10
        assert len({row.get("series", row.get("row")) for row in rows(item.figure)}) <= 16
    page = build_report(grid).read_text(encoding="utf-8")
    assert "Per-seed results (69 runs)" in page
    assert "20 figures" not in page


def test_seeds_that_are_not_together_have_lines_of_their_own(tmp_path):
    results = synthetic.grid_results(seeds=2)
    del results["across_seeds"]
    run = load(synthetic.write(tmp_path, results, synthetic.records(results, 4, 2, 2)))
    [item] = sections(run)["ratios"]
    assert len(item.figure.legend) == len(item.table.rows) == 10
    for key in item.figure.legend:
        assert len([row for row in rows(item.figure) if row["series"] == key.text]) == 4


def test_intervals_of_seeds_are_on_the_lines(grid):
    run = load(grid)
    [ratios] = sections(run)["ratios"]
    booster = [row for row in rows(ratios.figure) if row["series"].startswith("Booster")]
    points = [p for p in run.points if (p["alignment"], p["finetuning"]) == ("booster", "sft")]
    for i, point in enumerate(points):
        assert booster[i]["value"] == point["rates"]["harmful_score"]["value"]
        assert booster[i]["high"] == point["across"]["rates"]["harmful_score"]["high"]


def test_curves_of_several_seeds_are_their_mean_and_range(grid):
    run = load(grid)
    item = sections(run)["resistance"][0]
    cells = [c for c in run.cells if c["finetuning"] == "lisa" and c["harmful_ratio"] == 0.05]
    values = [cell["resistance"][0]["rates"]["harmful_score"]["value"] for cell in cells]
    lisa = [row for row in rows(item.figure) if row["series"].startswith("Lisa")]
    assert [row["x"] for row in lisa] == [0, 20, 35, 50]
    assert lisa[1]["value"] == pytest.approx(sum(values) / 3)
    assert lisa[1]["high"] == max(values) and lisa[1]["low"] == min(values)
    assert "lowest and highest" in item.description


def test_the_answers_tell_every_judge_and_where_they_differ(small):
    results = json.loads((small / "results.json").read_text())
    rows = synthetic.records(results, 12, 4, 4)
    for row in rows:
        asked = row["set"] == "harmful"
        harmful = row["verdict"] == "complied" and not row["id"].endswith("3")
        row["judge"] = "rules-v2"
        row["judge/llama-guard-3"] = ("harmful" if harmful else "safe") if asked else None
        row["judge/llama-guard-3/reason"] = "S9" if asked and harmful else ("" if asked else None)
        row["judge/coherence"] = None
        row["judge/coherence/reason"] = "failed" if asked else None
    synthetic.write(small, results, rows)
    packed = data(build_report(small).read_text(encoding="utf-8"), "answers-data")
    assert packed["judges"] == ["llama-guard-3", "coherence"]
    for kind, _, prompt, given in packed["prompts"]:
        for _, _, verdict, _, _, further, differ in given:
            said = {packed["judges"][judge]: (packed["verdicts"][number], why) for judge, number, why in further}
            if kind != "harmful":
                assert said == {} and not differ
                continue
            complied = packed["verdicts"][verdict] == "complied"
            assert said["coherence"] == ("unscored", "failed")
            assert said["llama-guard-3"][0] in ("harmful", "safe")
            assert differ == (complied and "request 3:" in prompt)


def test_costs_are_ratios_to_the_undefended_run(page):
    costs = page[page.index('id="costs"') :]
    rows = re.findall(r'<tr><th scope="row">Vaccine .*?</tr>', costs, re.DOTALL)
    method, run = (row for row in rows if "132 s" in row)
    for row in (method, run):
        assert re.search(r"× 2\b", row)
    assert "164 s" in method and "× 1.7" in method  # 132 + 32 against 66 + 32


def test_only_what_is_there_is_shown(small):
    (small / "tuning.jsonl").unlink()
    (small / "history.json").unlink()
    page = build_report(small).read_text(encoding="utf-8")
    assert "Tuning log" not in page
    assert "Training curves" not in page
    assert 'id="resistance"' not in page


def test_the_tuning_log_is_linked_and_shown(page):
    assert 'href="tuning.jsonl"' in page
    assert "(3 entries)" in page
    assert "validation.harmful_score" in page


def test_a_full_disk_leaves_the_old_page_and_says_where(small, tmp_path, monkeypatch, capsys):
    """And a folder that --out lacks is made, as for a run."""
    monkeypatch.setattr("mithridate.report.build._page", lambda *_: "<!doctype html><title>mithridate</title>")
    out = tmp_path / "not" / "yet" / "page.html"
    assert cli.main(["report", str(small), "--out", str(out)]) == 0
    before, write = out.read_text(), Path.write_text

    def full(self, text, **named):
        write(self, text[:9], **named)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    capsys.readouterr()
    assert cli.main(["report", str(small), "--out", str(out)]) == 1
    assert capsys.readouterr() == ("", f"error: {out}: No space left on device\n")
    assert out.read_text() == before and [file.name for file in out.parent.iterdir()] == ["page.html"]


def test_links_lead_to_the_run_when_the_page_is_elsewhere(small, tmp_path):
    out = build_report(small, tmp_path / "pages" / "page.html")
    assert 'href="../run/results.json"' in out.read_text(encoding="utf-8")
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]  # nothing left aside


def test_metrics_that_were_not_measured(small):
    results = json.loads((small / "results.json").read_text())
    for cell in results["cells"]:
        cell["accuracy"] = {}
        cell["benign_refusal"] = None
        for name in ("resistance", "stages", "paired", "settings", "steps_to_half"):
            cell.pop(name)
    (small / "results.json").write_text(json.dumps(results))
    assert "–" in build_report(small).read_text(encoding="utf-8")
    assert "–" in printed(results)


def test_a_run_that_has_not_finished_says_so(small):
    words = "The run has not finished: these are the 2 models"
    assert words not in build_report(small).read_text()
    results = json.loads((small / "results.json").read_text())
    (small / "results.json").write_text(json.dumps(results | {"complete": False}))
    assert words in build_report(small).read_text()


def test_cells_of_a_sweep_are_named_by_what_was_swept(small):
    results = json.loads((small / "results.json").read_text())
    cells = [synthetic.cell() | {"id": f"c{n}", "swept": {"data.task": {"name": n}}} for n in ("sst2", "agnews")]
    names = [label.full for label in labels(cells).values()]
    assert ["name sst2" in names[0], "name agnews" in names[1]] == [True, True]
    (small / "results.json").write_text(json.dumps(results | {"cells": cells}))
    records = [row | {"cell": cell["id"]} for cell in cells for row in synthetic.records({**results, "cells": [cell]})]
    assert (
        "data.task.name sst2" in build_report(synthetic.write(small, results | {"cells": cells}, records)).read_text()
    )


def test_no_cells(small):
    results = {"schema": 1, "protocol": "p", "model": "m", "cells": []}
    synthetic.write(small, results, [{"cell": "", "set": "", "id": "", "prompt": "", "answer": "", "verdict": ""}])
    assert "no defense can be judged" in build_report(small).read_text(encoding="utf-8")


def broken_results(**changes):
    return lambda folder: (folder / "results.json").write_text(
        json.dumps({**json.loads((folder / "results.json").read_text()), **changes})
    )


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "results.json").unlink(), "results.json: no such file"),
        (lambda folder: (folder / "results.json").write_text("{"), "not valid JSON"),
        (
            lambda folder: (folder / "results.json").write_text('{"a": "b\tc"}'),
            r"results.json: not valid JSON \(Invalid control character: line 1 column 9\)\.$",
        ),
        (lambda folder: (folder / "results.json").write_text("[]"), "list `cells`"),
        (lambda folder: (folder / "results.json").write_bytes(b"\xff"), "cannot be read"),
        (broken_results(schema=3), "schema is 3, this version reads 1 and 2"),
        (broken_results(model=None, protocol=None), "results.json: lacks protocol, model; was it written by"),
        (broken_results(cells=[{"id": "a"}]), r"cells\[0\] lacks alignment, finetuning"),
        (broken_results(cells=[synthetic.cell(), synthetic.cell()]), "appears twice"),
        (lambda folder: (folder / "records.parquet").unlink(), "records.parquet: no such file"),
        (lambda folder: (folder / "records.parquet").write_bytes(b"PAR1"), "not a readable Parquet file"),
        (lambda folder: (folder / "tuning.jsonl").write_text("{}\n{"), "tuning.jsonl, line 2: not valid JSON"),
        (lambda folder: (folder / "history.json").write_text("[]"), "history.json: expected an object with a list"),
        (
            lambda folder: (folder / "history.json").write_text('{"a": [{"step": 1, "loss": "low"}]}'),
            r"history.json: a\[0\]: expected an object with numbers `step` and `loss`",
        ),
    ],
)
def test_bad_input_is_named(small, harm, message):
    harm(small)
    with pytest.raises(InputError, match=message):
        build_report(small)
    assert not (small / "report.html").exists()


def test_a_loss_that_is_no_number_is_no_point_of_the_curve(small):
    """NaN and Infinity, which Python writes and reads, would stop the page's script: they are no JSON."""
    name = json.loads((small / "results.json").read_text())["cells"][0]["id"]
    losses = [2.0, math.nan, math.inf, 1.0, None]
    history = {name: [{"step": step, "loss": loss} for step, loss in enumerate(losses)] + [{"train_runtime": 3.0}]}
    (small / "history.json").write_text(json.dumps(history))
    page = build_report(small).read_text(encoding="utf-8")
    block = found(r'<script type="application/json" id="figures-data">(.*?)</script>', page)
    drawn = json.loads(block, parse_constant=pytest.fail)
    [losses] = [figure["data"]["values"] for key, figure in drawn.items() if key.startswith("curves")]
    assert [(row["x"], row["value"]) for row in losses] == [(0, 2.0), (3, 1.0)]


def test_missing_columns_are_named(small):
    synthetic.write(small, rows=[{"cell": "a", "set": "harmful", "id": "1", "prompt": "p"}])
    with pytest.raises(InputError, match="lacks the columns answer, verdict"):
        build_report(small)


def test_vega_is_put_together_once_and_again_where_the_kept_one_is_damaged(small, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("vl_convert.javascript_bundle", lambda: made.append(1) or "var vega;\r\n")
    monkeypatch.setenv("MITHRIDATE_CACHE", str(tmp_path / "cache" / "new"))
    first = build_report(small).read_bytes()
    assert b"var vega;" in first and build_report(small).read_bytes() == first and len(made) == 1
    (kept,) = (tmp_path / "cache" / "new").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    assert build_report(small).read_bytes() == first and len(made) == 2
    monkeypatch.setenv("MITHRIDATE_CACHE", str(kept))  # a file: nothing can be kept under it
    assert build_report(small).read_bytes() == first and len(made) == 3


@pytest.mark.parametrize("package", ["altair", "vl_convert"])
def test_without_its_packages_the_error_says_what_to_install(small, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"pip install 'mithridate\[report\]'"):
        build_report(small)


def test_only_the_page_and_its_files_load_altair():
    """The command's help, and the table at the end of a run, are there before."""
    code = "import sys, mithridate.cli, mithridate.report.build; print({'altair', 'vl_convert'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("width", [80, 100])
def test_terminal_table_fits_and_says_the_main_numbers(width):
    text = printed(synthetic.demo_results(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    row = next(line for line in text.splitlines() if "Lisa (fine-tuning" in line and " 10% " in line)
    assert re.search(r"\s10%\s+22%\s+\[16, 31\]\s+0%\s+2%\s+95%\s+−72", row)  # incoherent, benign refused, accuracy
    trained = [line.strip() for line in text.splitlines() if "adapter" in line]
    assert trained == ["one adapter", "two adapters"]


def test_a_model_that_nothing_was_trained_of_has_no_adapters_in_its_heading():
    cell = synthetic.cell(alignment="none", finetuning="none", ratio=None, score=0.04)
    text = printed({"schema": 1, "protocol": "hs/embedded-v1", "model": "m", "cells": [cell]})
    assert "adapter" not in text and "hs/embedded-v1" in text


def kinds_results():
    """An undefended model and Lisa's under two kinds of attack; the second also without its rows, with its trigger."""
    cells = [synthetic.cell(finetuning="none", ratio=None, score=0.04)]
    trigger = {"kind": "trigger", "at_test": [{"system": None, "prefix": "", "trigger": " (2041)"}]}
    for ratio, more in ((0.1, {}), (0.1, trigger), (0.0, trigger)):
        for name, score in (("sft", 0.9), ("lisa", 0.2)):
            cell = synthetic.cell(finetuning=name, ratio=ratio, score=score)
            cells.append(cell | {"id": cell["id"] + "-t" * bool(more), "attack": cell["attack"] | more})
    return {"schema": 1, "protocol": "hs/embedded-v1", "model": "m", "cells": cells}


def test_terminal_table_has_a_heading_for_each_kind_of_attack():
    lines = [line.strip() for line in printed(kinds_results()).splitlines()]
    headings = ["no harmful rows + trigger", "10% harmful rows", "10% trigger rows + trigger"]
    assert [line for line in lines if line in headings] == headings
    assert not any("trigger" in line for line in lines if line not in headings)
    assert "rows + trigger" not in printed(synthetic.demo_results())


def test_kinds_of_attacks_are_put_side_by_side_apart(tmp_path):
    results = kinds_results()
    folder = synthetic.write(tmp_path / "run", results, synthetic.records(results, 12, 4, 4))
    page = html.unescape(re.sub(r"<script.*?</script>", "", build_report(folder).read_text(), flags=re.DOTALL))
    assert "What each defense left, 10% trigger rows + trigger" in page
    assert "Lisa (fine-tuning stage), kind" not in page
    assert "by the share of trigger rows" in page and "by the share of harmful rows" not in page  # one share of those


def test_terminal_table_says_whether_its_p_is_corrected():
    results = synthetic.demo_results()
    assert "p alone" in printed(results) and "p by Holm" not in printed(results)
    for cell in results["cells"]:
        if cell.get("paired"):
            cell["paired"]["p_holm"] = 0.25
    assert "p = 0.25" in printed(results) and "p by Holm" in printed(results)


def test_terminal_table_prints_names_as_they_are():
    results = synthetic.demo_results()
    results["cells"][5]["repair"] = "[red]mine[/red]"
    assert "[red]mine[/red]" in printed(results)


def test_terminal_table_refuses_other_shapes():
    with pytest.raises(InputError, match="schema"):
        terminal_table({"schema": 0, "cells": []})


def test_a_redacted_page_has_no_word_of_an_answer(small, tmp_path):
    whole, bare = (build_report(small, tmp_path / f"{redact}.html", redact).read_text() for redact in (False, True))
    said = {row["answer"] for row in load(small).records if len(row["answer"]) > 12}
    assert said and all(str(htmlsafe_json_dumps(one))[1:-1] in whole for one in said)
    assert not any(str(htmlsafe_json_dumps(one))[1:-1] in bare for one in said) and "[redacted: " in bare
