"""`mithridate store`: what is there, what is whole, what nothing refers to any more."""

import json

import pytest

from mithridate import cli
from mithridate.errors import InputError
from mithridate.pipeline.inventory import collect, find, inventory, refer, verify
from mithridate.pipeline.store import Store


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
    refer(store, run, [store.folder("finetune", child)])
    return [store.folder(s, k).name for s, k in (("align", parent), ("finetune", child), ("align", stray))]


def test_what_a_run_stands_on_is_in_use_and_so_are_its_parents(store, filled):
    used = {artefact.name: artefact.used for artefact in inventory(store)}
    assert used == dict(zip(filled, (True, True, False)))
    assert all(artefact.bytes == 100 and "lisa" in artefact.what for artefact in inventory(store))


def test_only_what_nothing_refers_to_is_removed_and_only_when_asked(store, filled, tmp_path):
    assert [a.name for a in collect(store, delete=False)] == [filled[2]] and len(inventory(store)) == 3
    collect(store, delete=True)
    assert sorted(a.name for a in inventory(store)) == sorted(filled[:2])
    (tmp_path / "run" / "experiment.yaml").unlink()  # the run is gone
    assert len(collect(store, delete=True)) == 2 and inventory(store) == []


def test_a_damaged_artefact_is_named_and_moved_aside(store, filled):
    assert verify(store) == [(name, True) for name in sorted(filled)]
    file = store.root / filled[0] / "file"
    file.write_text("y" + file.read_text()[1:])
    (store.root / filled[1] / "stage.json").write_text("{")
    assert dict(verify(store)) == {filled[0]: False, filled[1]: False, filled[2]: True}
    assert [a.name for a in inventory(store)] == [filled[2]]


def test_an_artefact_is_found_by_the_beginning_of_its_name_or_key(store, filled):
    one = find(store, filled[1])
    assert one.name == filled[1] and find(store, one.manifest["key"][:8]).name == filled[1]
    with pytest.raises(InputError, match="no artefact"):
        find(store, "repair")
    with pytest.raises(InputError, match="several"):
        find(store, "align")


def test_the_commands(store, filled, capsys):
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
    assert code == 0 and "0 artefacts" in out.out
