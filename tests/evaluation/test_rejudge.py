"""Further judges on a run's stored answers: columns, agreement, correction, and what is left alone."""

import json

import pandas as pd
import pyarrow.parquet
import pytest

from mithridate import cli
from mithridate.errors import InputError
from mithridate.judges.base import Judgement
from mithridate.judges.coherence import Coherence
from mithridate.results import parts
from mithridate.results.folder import RunFolder
from mithridate.results.rejudge import rejudge
from mithridate.results.release import Limits, gate
from tests.gate.runs import DEFENDED, good, run_of
from tests.judges.test_classifier import save_llama
from tests.report.synthetic import cell, records, write


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))


@pytest.fixture
def folder(tmp_path):
    """A run of two models, judged by the rules."""
    results = {"schema": 1, "protocol": "hs/embedded-v1", "model": "m"}
    results["cells"] = [cell(score=0.8), cell(finetuning="lisa", score=0.2)]
    rows = [row | {"judge": "rules-v3" if row["verdict"] else None} for row in records(results)]
    return write(tmp_path / "run", results, rows)


@pytest.fixture(params=["schema 1", "schema 2"])
def any_folder(request, folder, tmp_path):
    """The same as an older version wrote it, and a run of this version."""
    return folder if request.param == "schema 1" else run_of(tmp_path / "new", good())


def test_a_second_judge_adds_its_verdicts_and_changes_nothing_else(any_folder):
    folder = any_folder
    before, files = RunFolder(folder).frame(), contents(folder)
    found = rejudge(folder, {"coherence": {}}, progress=False)
    after, more = RunFolder(folder).frame(), contents(folder)
    assert files.items() <= more.items()
    assert {*more} - {*files} == {"judges.json", "verdicts/further/coherence.parquet"}
    assert after[list(before.columns)].equals(before)
    said = pyarrow.parquet.read_table(folder / "verdicts/further/coherence.parquet").to_pylist()
    assert {(one["judge"], one["counts"]) for one in said} == {("coherence", False)}
    assert len(said) == after["judge/coherence"].notna().sum()
    assert set(after.columns) - set(before.columns) == {f"judge/coherence{end}" for end in ("", "/reason", "/score")}
    asked = after[after["judge/coherence"].notna()]
    assert set(asked["set"]) == {"harmful", "benign"}
    broken = (asked["judge/coherence"] == "incoherent") & (asked["set"] == "harmful") & asked["step"].isna()
    of_first = next(s for s in found.scores if s.judge == "coherence" and s.cell == before["cell"][0])
    assert of_first.share["value"] == (broken & (asked["cell"] == before["cell"][0])).sum() / of_first.share["n"]


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_a_judge_said_before_is_replaced_and_others_stay(any_folder):
    rejudge(any_folder, {"coherence": {}, "hs-plus": {}}, progress=False)
    first = contents(any_folder)
    rejudge(any_folder, {"coherence": {}}, progress=False)
    assert contents(any_folder) == first
    names = RunFolder(any_folder).frame().columns
    assert {"judge/coherence", "judge/hs-plus"} <= set(names)


def test_verdicts_of_further_judges_do_not_count_for_the_gate(tmp_path):
    folder = run_of(tmp_path / "run", good())
    before = gate(folder, Limits(0.1))
    rejudge(folder, {"coherence": {}}, progress=False)
    assert gate(folder, Limits(0.1)) == before and before.outcome == "pass"


def test_a_verdict_on_an_answer_that_is_not_there_is_refused(tmp_path):
    folder = run_of(tmp_path / "run", good())
    path = folder / f"verdicts/{DEFENDED}.parquet"
    said = pyarrow.parquet.read_table(path).to_pylist()
    parts.write(path, [one | {"row": one["row"] + 1} for one in said])
    with pytest.raises(InputError, match="which is no answer to"):
        RunFolder(folder).rows(DEFENDED)


def test_judges_that_share_a_question_are_compared_and_the_differences_listed(folder):
    found = rejudge(folder, {"coherence": {}, "hs-plus": {}}, progress=False)
    pairs = {agreement.judges: agreement for agreement in found.agreements}
    assert len(pairs) == 3 and {pair.question for pair in pairs.values()} == {"incoherent"}
    for pair in pairs.values():
        assert pair.n == 224 and len(pair.differ) == pair.table[0][1] + pair.table[1][0]
    written = json.loads((folder / "judges.json").read_text())
    assert len(written["agreement"]) == 3 and written["agreement"][0]["n"] == 224


def test_a_judge_with_a_model_is_asked_once_for_each_answer(folder, tmp_path, monkeypatch):
    from mithridate.judges.classifier import BeaverDam

    save_llama(tmp_path / "dam")
    spec = {"beaver-dam-7b": {"model": str(tmp_path / "dam")}}
    first = rejudge(folder, spec, progress=False)
    harm = [s for s in first.scores if s.judge == "beaver-dam-7b"]
    assert len(harm) == 2 and all(s.question == "harmful" and s.share["n"] + s.unscored == 112 for s in harm)

    def never(self, items):
        raise AssertionError("its verdicts are kept")

    monkeypatch.setattr(BeaverDam, "judge", never)
    assert rejudge(folder, spec, progress=False) == first


def test_the_score_is_corrected_by_labelled_answers(folder, tmp_path):
    """The rules call 10 of 40 harmful labelled answers safe: 80 % of compliance is 100 % or so in truth."""
    frame = pd.read_parquet(folder / "records.parquet")
    frame = frame[(frame["set"] == "harmful") & frame["step"].isna()].drop_duplicates(["prompt", "answer"])
    complied, refused = frame[frame["verdict"] == "complied"], frame[frame["verdict"] == "refused"]
    labelled = [*((row, True) for _, row in complied.head(30).iterrows())]
    labelled += [(row, True) for _, row in refused.head(10).iterrows()]
    labelled += [(row, False) for _, row in refused[10:50].iterrows()]
    file = tmp_path / "labels.jsonl"
    lines = [json.dumps({"prompt": r["prompt"], "answer": r["answer"], "harmful": h}) for r, h in labelled]
    file.write_text("\n".join(lines))
    score = rejudge(folder, {}, file, progress=False).scores[0]
    fixed = score.corrected
    assert (fixed["sensitivity"]["value"], fixed["specificity"]["value"]) == (0.75, 1.0)
    assert fixed["value"] == pytest.approx(min(1.0, score.share["value"] / 0.75))
    assert fixed["low"] <= fixed["value"] <= fixed["high"]


def test_a_judge_that_cannot_be_corrected_leaves_the_others(folder, tmp_path):
    """All labelled answers are harmless: no sensitivity is known."""
    frame = pd.read_parquet(folder / "records.parquet")
    frame = frame[(frame["set"] == "harmful") & frame["step"].isna()].drop_duplicates(["prompt", "answer"]).head(20)
    file = tmp_path / "labels.jsonl"
    lines = [json.dumps({"prompt": r["prompt"], "answer": r["answer"], "harmful": False}) for _, r in frame.iterrows()]
    file.write_text("\n".join(lines))
    found = rejudge(folder, {"coherence": {}}, file, progress=False)
    first = next(score for score in found.scores if score.judge == "rules-v3")
    assert first.corrected is None and "no labelled harmful answer" in first.note
    assert "judge/coherence" in RunFolder(folder).frame().columns
    assert json.loads((folder / "judges.json").read_text())["scores"][0]["note"] == first.note


def test_other_settings_of_the_runs_own_judge_are_refused(folder, tmp_path):
    """Its verdicts stay, so that what was asked for would not be what is reported."""
    frame = pd.read_parquet(folder / "records.parquet")
    frame.loc[frame["judge"] == "rules-v3", "judge"] = "beaver-dam-7b"
    frame.loc[frame["judge"].notna(), "verdict"] = "harmful"
    frame.to_parquet(folder / "records.parquet")
    with pytest.raises(InputError, match=r"beaver-dam-7b gave this run's own verdicts.*evaluate\.judges"):
        rejudge(folder, {"beaver-dam-7b": {"threshold": 0.4}}, progress=False)
    file = tmp_path / "labels.jsonl"
    file.write_text(json.dumps({"prompt": "of another run", "answer": "a", "harmful": True}))
    with pytest.raises(InputError, match="1 of the labelled answers are not in this run, and what settings"):
        rejudge(folder, {}, file, progress=False)


def test_bad_input_leaves_the_run_as_it_was(folder, tmp_path):
    before = (folder / "records.parquet").read_bytes()
    with pytest.raises(InputError, match="no such judge `coherense`; did you mean `coherence`"):
        rejudge(folder, {"coherense": {}}, progress=False)
    (tmp_path / "labels.jsonl").write_text('{"prompt": "p", "answer": "a", "harmful": "maybe"}')
    with pytest.raises(InputError, match=r"labels.jsonl.*`harmful` is 'maybe'"):
        rejudge(folder, {"coherence": {}}, tmp_path / "labels.jsonl", progress=False)
    with pytest.raises(InputError, match="not a run folder"):
        rejudge(tmp_path, {"coherence": {}}, progress=False)
    assert (folder / "records.parquet").read_bytes() == before


def test_a_judge_that_tells_nothing_is_a_failure_with_its_reason(folder, capsys, monkeypatch):
    def mute(self, items):
        yield from ((i, Judgement(None, "its answer has no verdict in it")) for i in range(len(items)))

    monkeypatch.setattr(Coherence, "judge", mute)
    assert cli.main(["judge", str(folder), "-j", "coherence"]) == 1
    told = capsys.readouterr()
    assert "coherence: gave no verdict on any answer" in told.err and "no verdict in it" in told.err
    assert "judges.json" in told.out and (folder / "judges.json").is_file()  # what the others said is kept


def test_the_command(folder, capsys):
    assert cli.main(["judge", str(folder), "-j", "coherence", "--judge", "{hs-plus: {}}"]) == 0
    said = capsys.readouterr().out
    assert "coherence" in said and "Cohen's kappa" in said and "judges.json" in said
    shares = said[: said.index("How far")].splitlines()  # a row a model, a column a judge
    assert sum(DEFENDED in line for line in shares) == 1 and all(
        any(f"{name}: " in line for line in shares) for name in ("rules-v3", "coherence", "hs-plus")
    )
    assert f"mithridate report {folder}" in said
    assert cli.main(["judge", str(folder), "-j", "coherence: 3"]) == 3
    assert cli.main(["export", str(folder), "--cell", "nothing", "--inspect", "--out", "x.json"]) == 3
    log = folder / "log.json"
    name = json.loads((folder / "results.json").read_text())["cells"][0]["id"]
    assert cli.main(["export", str(folder), "--cell", name, "--inspect", "--out", str(log)]) == 0
    assert json.loads(log.read_text())["eval"]["task"] == "hs/embedded-v1"
