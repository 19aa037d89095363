"""`mithridate store`: what is there, what is whole, what nothing refers to any more."""

import json
import shutil

import pytest

from mithridate import cli, run
from mithridate.errors import InputError
from mithridate.pipeline import inventory as module
from mithridate.pipeline.cell_export import export_cell
from mithridate.pipeline.inventory import collect, find, inventory, of_gone_runs, register_run, verify
from mithridate.store import Store
from mithridate.studies import attack as study
from tests.pipeline.small import experiment, stages, write_inputs


def put(store, stage, number, parents=None):
    """A made-up artefact; returns its key."""
    config = {"number": number, "defense": {"lisa": {}}}
    key = Store.key(stage, config, parents or {}, {}, 1)
    with store.building(stage, key, {"config": config, "parents": parents or {}}) as work:
        (work / "file").write_text("x" * 100)
    return key


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    return Store()


@pytest.fixture
def filled(store, tmp_path):
    """A chain of two that a run stands on, and one that nothing refers to: their folders' names."""
    parent = put(store, "align", 1)
    child = put(store, "finetune", 2, {"align": parent})
    stray = put(store, "align", 3)
    run = tmp_path / "run"
    run.mkdir()
    (run / "experiment.yaml").write_text("model: x")
    register_run(store, run, [store.folder("finetune", child)])
    return [store.folder(s, k).name for s, k in (("align", parent), ("finetune", child), ("align", stray))]


def test_what_a_run_stands_on_is_in_use_and_so_are_its_parents(store, filled):
    used = {artefact.name: artefact.used for artefact in inventory(store)}
    assert used == dict(zip(filled, (True, True, False)))
    assert all(artefact.bytes == 100 and "lisa" in artefact.what for artefact in inventory(store))


def test_only_what_nothing_refers_to_is_removed_and_only_when_asked(store, filled, tmp_path):
    assert [a.name for a in collect(store, delete=False)] == [filled[2]] and len(inventory(store)) == 3
    collect(store, delete=True)
    assert sorted(a.name for a in inventory(store)) == sorted(filled[:2])
    (tmp_path / "run" / "experiment.yaml").unlink()  # the run is gone, or was moved
    assert collect(store, delete=True) == [] and len(inventory(store)) == 2
    assert [len(mine) for mine in of_gone_runs(store).values()] == [2]
    assert len(collect(store, delete=True, gone=True)) == 2 and inventory(store) == []
    assert of_gone_runs(store) == {}


def test_without_a_store_nothing_is_removed_and_nothing_made(store):
    assert collect(store, delete=True) == [] and not store.root.exists()
    with pytest.raises(InputError, match="is not there: set MITHRIDATE_STORE"):  # and nothing is said to be whole
        verify(store)


def test_a_damaged_artefact_is_named_and_moved_aside(store, filled):
    assert verify(store) == [(name, True) for name in sorted(filled)]
    file = store.root / filled[0] / "file"
    file.write_text("y" + file.read_text()[1:])
    (store.root / filled[1] / "stage.json").write_text("{")
    assert dict(verify(store)) == {filled[0]: False, filled[1]: False, filled[2]: True}
    assert [a.name for a in inventory(store)] == [filled[2]]


@pytest.mark.parametrize("text", ["{}", "[]", "null", "7", '{"key": 1}'])
def test_a_manifest_that_is_damaged_but_json_is_listed_nowhere(store, filled, text, capsys):
    (store.root / filled[2] / "stage.json").write_text(text)
    assert [a.name for a in inventory(store)] == filled[:2] and collect(store, delete=True) == []
    assert cli.main(["store", "ls"]) == cli.main(["store", "gc"]) == 0
    assert cli.main(["store", "show", filled[2]]) == 3
    assert dict(verify(store))[filled[2]] is False and not (store.root / filled[2]).exists()


def test_the_list_fits_a_screen_and_marks_what_no_run_refers_to(store, filled, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["store", "ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and sum("artefact " in line for line in lines) == 1
    assert (
        sum(f"{filled[2]} *" in line for line in lines) == 1
        and lines.count("* no run refers to it: `mithridate store gc`") == 1
    )
    assert not any(f"{name} *" in line for name in filled[:2] for line in lines)


def test_a_manifest_with_one_changed_field_is_not_listed(store, filled):
    file = store.root / filled[2] / "stage.json"
    file.write_text(file.read_text().replace('"bytes"', '"bites"'))
    assert [a.name for a in inventory(store)] == filled[:2]


def test_an_artefact_whose_key_is_damaged_is_moved_aside(store, filled):
    file = store.root / filled[2] / "stage.json"
    manifest = json.loads(file.read_text())
    key = manifest["key"]
    manifest["key"] = ("1" if key[0] == "0" else "0") + key[1:]
    file.write_text(json.dumps(manifest))
    assert dict(verify(store)) == {filled[0]: True, filled[1]: True, filled[2]: False}
    assert not file.exists() and [p.name.startswith(filled[2]) for p in (store.root / "corrupt").iterdir()] == [True]
    assert dict(verify(store)) == {filled[0]: True, filled[1]: True}


def test_a_folder_that_is_no_artefact_is_left_alone(store, filled):
    copy = store.root / f"{filled[0]}-copy"
    shutil.copytree(store.root / filled[0], copy)
    shutil.copytree(copy, store.root / "mine")
    assert len(inventory(store)) == 3 and all(whole for _, whole in verify(store))
    assert [a.name for a in collect(store, delete=True)] == [filled[2]] and copy.exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"run": "x"}', '{"run": 1, "artefacts": []}', "\udcff"])
def test_a_note_that_cannot_be_read_is_never_taken_for_none(store, filled, text, tmp_path, capsys):
    [note] = (store.root / "runs").glob("*.json")
    note.write_text(text, encoding="utf-8", errors="surrogateescape")
    for words in (["ls"], ["gc"], ["gc", "--delete"], ["show", filled[0]]):
        assert cli.main(["store", *words]) == 3
        said = capsys.readouterr().err
        assert note.name in said and "Delete this file" in said
    with pytest.raises(InputError, match="cannot be read"):
        register_run(store, tmp_path / "run", [])
    assert sorted(stages(store.root)) == sorted(filled)


def test_what_a_run_notes_is_added_or_put_in_the_place_of_the_earlier(store, filled, tmp_path):
    register_run(store, tmp_path / "run", [store.root / filled[2]])
    assert all(a.used for a in inventory(store))
    register_run(store, tmp_path / "run", [store.root / filled[2]], only=True)
    assert [a.name for a in inventory(store) if a.used] == [filled[2]]


def test_what_a_run_notes_while_it_is_collected_is_kept(store, filled, tmp_path, monkeypatch):
    other = store.folder("align", put(store, "align", 4)).name

    def then_noted(store):
        found = inventory(store)
        register_run(store, tmp_path / "run", [store.root / filled[2]])
        return found

    monkeypatch.setattr(module, "inventory", then_noted)
    assert [a.name for a in collect(store, delete=True)] == [other]
    assert stages(store.root) == sorted(filled)


def test_a_collection_that_was_killed_goes_on(store, filled, monkeypatch):
    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            collect(store, delete=True)
    [left] = (store.root / "work").glob(".*.removed")
    assert (left / "file").exists() and not (store.root / filled[2]).exists()
    put(store, "align", 3)  # the same again
    other = left.with_name(".align-0123456789ab.removed")
    shutil.copytree(left, other)
    assert [a.name for a in collect(store, delete=True)] == [filled[2]]
    assert not list((store.root / "work").iterdir()) and stages(store.root) == sorted(filled[:2])
    shutil.copytree(store.root / filled[0], left)
    assert collect(store, delete=True) == [] and not left.exists()  # with nothing else to remove, too


def test_a_finished_run_keeps_its_stages_when_a_stage_is_made_into_its_folder(store, tmp_path):
    asked = experiment(write_inputs(tmp_path / "inputs"), sweep={"seed": [0]})
    extended = asked | {"sweep": {"seed": [0, 3]}}
    done = run(asked, out=tmp_path / "run", progress=False)
    kept = stages(store.root)
    run(extended, out=tmp_path / "run", until="align", progress=False)
    assert collect(store, delete=True) == [] and len(stages(store.root)) == len(kept) + 1
    export_cell(tmp_path / "run", done.cells[-1], tmp_path / "model")
    run(asked, out=tmp_path / "run", progress=False)  # the table anew: the other stage belongs to nothing any more
    assert len(collect(store, delete=True)) == 1 and stages(store.root) == kept


def test_a_finished_run_keeps_its_stages_until_its_table_is_replaced(store, tmp_path, monkeypatch):
    asked = experiment(write_inputs(tmp_path / "inputs"), sweep={"seed": [0]})
    extended = asked | {"sweep": {"seed": [0, 3]}}
    done = run(asked, out=tmp_path / "run", progress=False)

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mithridate.pipeline.making.make", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(extended, out=tmp_path / "run", progress=False)
    assert collect(store, delete=True) == []
    export_cell(tmp_path / "run", done.cells[-1], tmp_path / "model")


def test_all_finished_tries_of_a_search_that_was_stopped_are_kept(store, tmp_path, monkeypatch):
    inputs = write_inputs(tmp_path / "inputs")
    asked = experiment(inputs)
    for role in ("test_harmful", "task"):
        asked["data"][role]["validation_share"] = 0.5
    file = {"size": 8, "harmful_ratio": 0.5, "learning_rate": {"low": 0.001, "high": 0.05}, "steps": 2}
    file |= {"batch_size": 2, "search": {"trials": 3, "max_accuracy_loss": None}}
    real, calls = study.run_cells, []

    def stopped(*given, **named):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given, **named)

    monkeypatch.setattr(study, "run_cells", stopped)
    with pytest.raises(KeyboardInterrupt):
        study.attack(asked, file, out=tmp_path / "attack")
    assert len(stages(store.root, "finetune")) == 2 and collect(store, delete=True) == []


def test_an_artefact_is_found_by_the_beginning_of_its_name_or_key(store, filled):
    one = find(store, filled[1])
    assert one.name == filled[1] and find(store, one.manifest["key"][:8]).name == filled[1]
    with pytest.raises(InputError, match="no artefact"):
        find(store, "repair")
    with pytest.raises(InputError, match="several"):
        find(store, "align")


def test_the_commands(store, filled, capsys, tmp_path):
    def said(*words):
        return cli.main(["store", *words]), capsys.readouterr()

    code, out = said("ls")
    assert code == 0 and all(name in out.out for name in filled) and "3 artefacts" in out.out
    code, out = said("show", filled[0])
    assert code == 0 and json.loads(out.out)["config"]["number"] == 1
    assert said("show", "nothing")[0] == 3
    assert said("verify")[0] == 0
    (store.root / filled[2] / "file").write_text("short")
    code, out = said("verify")
    assert code == 1 and filled[2] in out.err
    code, out = said("gc")
    assert code == 0 and "0 artefacts" in out.out and "is not there" not in out.out
    shutil.move(tmp_path / "run", tmp_path / "moved")
    code, out = said("gc", "--delete")
    assert code == 0 and "is not there, and 2 artefacts" in out.out
    assert len(inventory(store)) == 2
    shutil.move(tmp_path / "moved", tmp_path / "run")
    code, out = said("gc", "--gone")
    assert code == 0 and "0 artefacts" in out.out
