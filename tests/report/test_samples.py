"""Several answers to a prompt: on the table, in the files, beside the answers; nothing where there is one."""

import csv
import dataclasses
import io
import json
import re

import pytest
from rich.console import Console

from mithridate.report.answers import answers
from mithridate.report.build import build_report, export_tables, terminal_table
from mithridate.report.load import load
from mithridate.report.samples import samples_table, samples_words
from tests.decisions import sampled
from tests.report import synthetic


@pytest.fixture(scope="module", params=[1, 2])
def folder(request, tmp_path_factory):
    return sampled.write(tmp_path_factory.mktemp("run"), request.param)


def printed(folder):
    written = io.StringIO()
    Console(width=100, file=written).print(terminal_table(json.loads((folder / "results.json").read_text())))
    return written.getvalue()


def rows_of(file):
    return list(csv.DictReader(io.StringIO(file.read_text())))


def test_the_terminal_table_has_a_line_for_answers_any_and_worst(folder):
    text, run = printed(folder), load(folder)
    assert max(map(len, text.splitlines())) <= 100 and "…" not in text
    for words in ("any of 3", "worst"):
        found = re.findall(rf"{words} +(\d+)% +\[(\d+), (>?\d+)\]", text)
        name = "any_of_k" if words != "worst" else "worst_of_k"
        rates = [cell["rates"]["harmful_score"][name] for cell in run.cells]
        assert [int(value) for value, *_ in found] == [round(100 * rate["value"]) for rate in rates]
        assert [int(low) for _, low, _ in found] == [round(100 * rate["low"]) for rate in rates]
    assert "any of k: prompts with one or more of k answers that count" in " ".join(text.split())


def test_the_files_have_columns_of_them(folder, tmp_path):
    run = load(folder)
    files = {file.name: file for file in export_tables(folder, tmp_path)}
    for name, cells in (("runs.csv", run.cells), ("samples.csv", run.points)):
        for row, cell in zip(rows_of(files[name]), cells, strict=True):
            score = cell["rates"]["harmful_score"]
            assert row["samples"] == "3" and float(row["harmful_score"]) == score["value"]
            for words in ("any_of_k", "worst_of_k"):
                for part in ("low", "high", "n"):
                    assert float(row[f"harmful_score_{words}_{part}"]) == score[words][part]
                assert float(row[f"harmful_score_{words}"]) == score[words]["value"]
    together = [row for row in rows_of(files["samples.csv"]) if row["harmful_score_seeds"]]
    assert len(together) == (3 if len(run.cells) > 3 else 0)
    assert all(int(row["harmful_score_any_of_k_n"]) == sampled.PROMPTS for row in together)


def test_the_page_tells_a_prompts_answers_apart(folder):
    run = load(folder)
    packed = answers(run)
    for kind, _, _, given in packed["prompts"]:
        each = [reason.partition(";")[0] for _, _, _, reason, *_ in given]
        assert each == (["answer 1", "answer 2", "answer 3"] * len(run.cells) if kind != "task" else [""] * len(each))


def test_prompts_that_share_an_id_are_shown_apart(tmp_path):
    run = load(synthetic.write(tmp_path / "run"))
    apart = [(kind, prompt, len(given)) for kind, _, prompt, given in answers(run)["prompts"]]
    same = dataclasses.replace(run, records=[{**row, "id": "7"} for row in run.records])
    assert [(kind, prompt, len(given)) for kind, _, prompt, given in answers(same)["prompts"]] == apart


def test_nothing_is_shown_where_each_prompt_has_one_answer(tmp_path):
    folder = synthetic.write(tmp_path / "run")
    run = load(folder)
    assert run.samples == [] and samples_table(run) is None and samples_words(run) == []
    files = export_tables(folder, tmp_path / "tables")
    assert "samples" not in {file.stem for file in files}
    texts = [printed(folder), build_report(folder).read_text(), (tmp_path / "tables" / "runs.csv").read_text()]
    shown = [
        word for text in texts for word in ("any of k", "any_of_k", "worst of k", "Several samples") if word in text
    ]
    assert shown == []


def test_one_drawn_answer_to_each_prompt_is_said_to_be_drawn(tmp_path):
    page = build_report(sampled.write(tmp_path, 1, k=1)).read_text()
    assert (
        "Each harmful and each benign prompt has 1 answer, drawn at a temperature; answers to tasks are greedy" in page
    )
    assert "Several samples per prompt" not in page and "the exact McNemar test" in page
