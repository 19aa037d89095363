"""The run's folder while it fills: records that wait on disk, when the table is written, two that write at once."""

import json

import pyarrow
import pyarrow.dataset
import pyarrow.parquet
import pytest

from mithridate.errors import MithridateError
from mithridate.evaluation import summarise
from mithridate.experiment.config import load_experiment, resolve
from mithridate.files import file_digest, replace_file, replacing
from mithridate.pipeline.experiments import undefended, with_undefended
from mithridate.results import folder as run_folder
from mithridate.results import parts
from mithridate.results.folder import RunFolder
from mithridate.results.table import Cell, ResultsTable, table
from tests.pipeline.small import experiment

SHARED = {
    "task": None,
    "correct": None,
    "protocol": "hs/embedded-v1",
    "judge": "rules-v3",
    "reason": "r",
    "score": 1.0,
}


def row(i, verdict, **more):
    return {"set": "harmful", "id": str(i), "prompt": f"p{i}", "answer": "a", "verdict": verdict} | SHARED | more


def cells(tmp_path, count):
    """Undefended and defended cells of several seeds in turn, as a run makes them."""
    found = []
    for number in range(count):
        asked = experiment(tmp_path, seed=number // 2, align__defense={"vaccine": {}}, finetune="none")
        loaded = load_experiment(asked)
        one = loaded if number % 2 else undefended(loaded)
        rows = [row(i, "complied" if (i + number) % 3 else "refused") for i in range(6)]
        key, twin = f"k{number}", f"k{number - 1}" if number % 2 else f"k{number}"
        history = [{"step": number}]
        found.append(Cell(one, "align", rows, key, key, twin, {2: rows[:3]}, history=history))
    return found


def test_a_table_built_cell_by_cell_is_the_table_of_its_cells_at_every_moment(tmp_path):
    made, growing = cells(tmp_path, 6), ResultsTable("m", "hs/embedded-v1", ["note"])
    for number, cell in enumerate(made, 1):
        growing.add(cell)
        assert growing.results() == table(made[:number], "m", "hs/embedded-v1", ["note"])
    results = growing.results()
    assert [one["paired"] and one["paired"]["against"] for one in results["cells"]] == [
        value for i in range(3) for value in (None, results["cells"][2 * i]["id"])
    ]
    assert [len(one["cells"]) for one in results["across_seeds"]] == [3, 3]
    assert len({one["paired"]["p_holm"] for one in results["cells"] if one["paired"]}) >= 1


def test_equal_names_are_told_apart_in_order(tmp_path):
    made = [cell for _ in range(4) for cell in cells(tmp_path, 2)]
    names = [one["id"] for one in table(made, "m", "hs/embedded-v1", [])["cells"]]
    first, second = names[:2]
    assert names[2:] == [f"{name}-{number}" for number in (2, 3, 4) for name in (first, second)]


def test_a_sweeps_cells_and_their_twins_are_there_once_in_order(tmp_path):
    loaded = [load_experiment(experiment(tmp_path, seed=seed)) for seed in (0, 1)]
    defended = [load_experiment(experiment(tmp_path, seed=seed, align__defense={"vaccine": {}})) for seed in (0, 1)]
    found = with_undefended([defended[0], loaded[0], defended[1], defended[0]])
    assert found == [loaded[0], defended[0], loaded[1], defended[1]]


def test_the_files_of_a_run(tmp_path):
    made, growing = cells(tmp_path, 4), ResultsTable("m", "hs/embedded-v1", [])
    filling = RunFolder(tmp_path / "out", tmp_path)
    filling.start(made[0].experiment, tabled=True)
    for cell in made:
        filling.add(growing.add(cell), cell)
        results = filling.write(growing, complete=True)
        assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(results))
        records = filling.frame()
        assert list(dict.fromkeys(records["cell"])) == [one["id"] for one in results["cells"]]
    assert len(records) == 4 * 9 and (records["step"] == 2).sum() == 4 * 3 and str(records["step"].dtype) == "Int64"
    assert records[records["step"].isna()]["verdict"].tolist() == [each["verdict"] for c in made for each in c.rows]
    histories = json.loads((tmp_path / "out" / "history.json").read_text())
    assert list(histories.values()) == [[{"step": number}] for number in range(4)]
    recipes = json.loads((tmp_path / "out" / "cells.json").read_text())
    assert [load_experiment(one["experiment"]) for one in recipes.values()] == [cell.experiment for cell in made]
    names = {"cells.json", "experiment.yaml", "history.json", "records", "verdicts", "results.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    for kind in ("records", "verdicts"):
        files = {path.name for path in (tmp_path / "out" / kind).iterdir()}
        assert files == {f"{one['id']}.parquet" for one in results["cells"]}
    for one in results["cells"]:
        for kind in ("records", "verdicts"):
            path = tmp_path / "out" / one[kind]["file"]
            assert one[kind] == {"file": f"{kind}/{one['id']}.parquet", "sha256": file_digest(path), "rows": 9}


def test_a_model_is_found_whichever_experiment_made_it_first(tmp_path):
    """The attacked model that a repair starts from is the undefended run's too, and is one cell for both."""
    repaired = load_experiment(experiment(tmp_path, repair={"resta": {"alpha": 0.5}}))
    whole = resolve(repaired, tmp_path)
    rows = [row(i, "complied") for i in range(6)]
    growing, filling = ResultsTable("m", "hs/embedded-v1", []), RunFolder(tmp_path / "out", tmp_path)
    filling.start(whole, tabled=True)
    for upto in ("finetune", "repair"):
        cell = Cell(whole, upto, rows, upto, upto, "finetune", {}, history=[])
        filling.add(growing.add(cell), cell)
    filling.write(growing, complete=True)
    names = list(filling.cells)
    assert [filling.made_by(one)["id"] for one in (undefended(repaired), repaired)] == names
    with pytest.raises(MithridateError, match="no cell for one of its experiments"):
        filling.made_by(load_experiment(experiment(tmp_path, repair={"resta": {"alpha": 0.25}})))


def test_answers_are_written_once_and_verdicts_are_a_table_of_their_own(tmp_path):
    [cell] = cells(tmp_path, 1)
    cell.rows[0] |= {"judge/coherence": "incoherent", "judge/coherence/reason": "torn", "judge/coherence/score": 0.1}
    growing, filling = ResultsTable("m", "hs/embedded-v1", []), RunFolder(tmp_path / "out", tmp_path)
    filling.start(cell.experiment, tabled=True)
    filling.add(growing.add(cell), cell)
    filling.write(growing, complete=True)
    [name] = filling.cells
    answers = pyarrow.parquet.read_table(tmp_path / "out" / "records" / f"{name}.parquet")
    assert {"prompt", "answer", "cell", "step"} <= set(answers.column_names)
    assert not [each for each in answers.column_names if each in ("verdict", "judge") or "/" in each]
    said = pyarrow.parquet.read_table(tmp_path / "out" / "verdicts" / f"{name}.parquet").to_pylist()
    assert [one["judge"] for one in said].count("coherence") == 2  # the row is one of the end, and one on the way
    assert {(one["judge"], one["counts"]) for one in said} == {("rules-v3", True), ("coherence", False)}
    kept = [{key: row[key] for key in cell.rows[0]} for row in filling.rows(name)[:1]]
    assert kept == cell.rows[:1]
    whole = pyarrow.dataset.dataset(tmp_path / "out" / "records").to_table()  # as others may read it
    assert len(whole) == 9


def test_what_an_earlier_table_left_goes_when_the_table_is_whole(tmp_path):
    growing, filling = ResultsTable("m", "hs/embedded-v1", []), RunFolder(tmp_path / "out", tmp_path)
    made = cells(tmp_path, 2)
    filling.start(made[0].experiment, tabled=True)
    (tmp_path / "out" / "records.parquet").write_bytes(b"of an older version")
    parts.write(tmp_path / "out" / "records" / "earlier.parquet", [{"cell": "earlier"}])
    filling.add(growing.add(made[0]), made[0])
    filling.write(growing, complete=False)
    assert (tmp_path / "out" / "records.parquet").exists()
    filling.add(growing.add(made[1]), made[1])
    filling.write(growing, complete=True)
    assert not (tmp_path / "out" / "records.parquet").exists()
    assert {path.stem for path in (tmp_path / "out" / "records").iterdir()} == set(filling.cells)


def test_a_data_frame_has_none_where_there_is_no_verdict_and_gives_the_same_numbers(tmp_path):
    [cell] = cells(tmp_path, 1)
    cell.rows[0] |= {"verdict": None, "score": None}
    growing, filling = ResultsTable("m", "hs/embedded-v1", []), RunFolder(tmp_path / "out", tmp_path)
    filling.start(cell.experiment, tabled=True)
    filling.add(growing.add(cell), cell)
    [row] = filling.write(growing, complete=True)["cells"]
    frame = filling.frame()
    found = summarise(frame[frame["step"].isna()].to_dict("records"))
    assert found == row["rates"] and found["harmful_score"]["unscored"] == 1


def test_columns_and_types_that_only_later_cells_have(tmp_path):
    (tmp_path / "out").mkdir()
    parts.write(tmp_path / "out" / "a.parquet", [{"cell": "a", "step": None, "seconds": None, "correct": None}])
    parts.write(tmp_path / "out" / "b.parquet", [{"cell": "b", "step": 3, "seconds": 0.5, "correct": True, "more": 1}])
    files = [tmp_path / "out" / f"{name}.parquet" for name in "ab"]
    whole = pyarrow.concat_tables(map(parts.read, files), promote_options="default").to_pylist()
    assert whole == [
        {"cell": "a", "step": None, "seconds": None, "correct": None, "more": None},
        {"cell": "b", "step": 3, "seconds": 0.5, "correct": True, "more": 1},
    ]


def test_slow_cells_are_written_one_by_one_and_quick_ones_as_the_table_grows(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(run_folder.time, "monotonic", lambda: clock[0])

    def written(seconds):
        """The numbers of cells at which the table is written, if a cell takes so long, and n cells in it n / 100 s."""
        filling, found = RunFolder(tmp_path / "out", tmp_path), []
        for cells in range(1, 1001):
            clock[0] += seconds
            if filling.due(cells):
                found.append(cells)
                clock[0] += cells / 100
                filling._written, filling._last, filling._cost = cells, clock[0], cells / 100
        return found

    assert written(1000) == list(range(1, 1001))
    quick = written(0.001)
    assert quick[:4] == [1, 2, 3, 5] and len(quick) < 20  # 1.5^17 is about 1000
    assert sum(quick) < 3 * 1000  # rows written in all, for 1000


def test_two_that_write_the_same_file_do_not_meet(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    with replacing(path) as first:
        first.write_text("half")
        monkeypatch.setattr("mithridate.store.os.getpid", lambda: 1)
        replace_file(path, "whole")
        assert path.read_text() == "whole"
        first.write_text("first")
        monkeypatch.undo()
    assert path.read_text() == "first" and [each.name for each in tmp_path.iterdir()] == ["results.json"]
    with pytest.raises(OSError, match="full"), replacing(path) as aside:
        aside.write_text("half")
        raise OSError("full")
    assert path.read_text() == "first" and [each.name for each in tmp_path.iterdir()] == ["results.json"]
