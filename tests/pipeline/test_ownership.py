"""A run never overwrites what it did not write: whose a folder is, what --replace takes away and what it leaves."""

import json
import shutil

import pytest

from mithridate import cli, run
from mithridate.errors import InputError
from mithridate.experiment.config import load_cells, load_experiment, resolved_yaml
from mithridate.pipeline.experiments import located
from mithridate.pipeline.preview import preview
from mithridate.pipeline.runner import run_cells
from mithridate.results.folder import RunFolder
from mithridate.results.ownership import FILE, clear, open_study, require_own, text_of
from tests.pipeline.small import experiment, stages, write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def loaded(inputs, *overrides, **changes):
    return located(load_cells(experiment(inputs, **changes), overrides)[0], inputs)


def written(folder, source, owner=None):
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_text(text_of(source, owner))
    return folder


def test_the_same_experiment_goes_on_and_so_does_one_with_other_swept_values(inputs, tmp_path):
    booster = {"booster": {"lam": 2}}
    first = loaded(inputs, align__defense=booster)
    folder = written(tmp_path / "out", first)
    require_own(folder, first)
    filled = loaded(inputs, align__defense={"booster": {"lam": 2, "alpha": 0.1, "every": 1}})
    require_own(folder, filled)  # with the defaults that `run` fills in
    more = loaded(inputs, align__defense=booster, sweep={"seed": [0, 1], "finetune.attack.harmful_ratio": [0, 0.5]})
    require_own(folder, more)
    require_own(written(folder, more), first)
    variants = {"variants": [{}, {"topology": "single", "align.defense": "vaccine"}]}
    require_own(folder, loaded(inputs, align__defense=booster, sweep=variants))
    with pytest.raises(InputError, match=r"holds another experiment \(it differs in align.defense.booster"):
        require_own(folder, loaded(inputs, align__defense="vaccine"))


@pytest.mark.parametrize(
    "override",
    ["finetune.attack.size=4", "align.training.max_steps=2", "topology=single", "evaluate.part=validation"],
)
def test_another_experiment_is_refused_with_what_differs_and_the_remedy(inputs, tmp_path, override):
    folder = written(tmp_path / "out", loaded(inputs))
    with pytest.raises(InputError) as error:
        require_own(folder, loaded(inputs, override))
    text = str(error.value)
    assert str(folder) in text and override.partition("=")[0] in text and "--out" in text and "--replace" in text


def test_an_experiment_file_of_the_users_own_is_refused(inputs, tmp_path):
    own = tmp_path / FILE
    own.write_text(f"# mine\n{json.dumps(experiment(inputs))}\n")
    with pytest.raises(InputError, match=r"experiment\.yaml is your own"):
        require_own(tmp_path, loaded(inputs))
    text = text_of(loaded(inputs))
    own.write_text(text.replace("seed: 0", "seed: 3"))  # a run's own, changed by hand
    with pytest.raises(InputError, match="was changed since a run wrote it"):
        require_own(tmp_path, loaded(inputs))
    own.write_text(resolved_yaml(loaded(inputs)))
    with pytest.raises(InputError, match="is your own"):
        require_own(tmp_path, loaded(inputs))
    (tmp_path / "cells.json").write_text("{}")  # as runs left it before there was a line
    require_own(tmp_path, loaded(inputs))


def test_other_files_are_refused_where_no_run_was_and_left_where_one_was(inputs, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "results.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds files that no run wrote \(results.json\)"):
        require_own(folder, loaded(inputs))
    written(folder, loaded(inputs))
    (folder / "notes.txt").write_text("mine")
    require_own(folder, loaded(inputs))
    clear(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        require_own(folder / "file", loaded(inputs))


def test_a_study_has_its_folder_to_itself(inputs, tmp_path):
    source, owner = loaded(inputs), {"command": "attack", "file": {"size": 4}}
    open_study(tmp_path / "out", source, owner)
    other = loaded(inputs, "finetune.attack.size=4")
    require_own(tmp_path / "out", other, owner)  # its runs are of several experiments
    for mine, theirs in ((source, None), (source, {"command": "attack", "file": {"size": 5}})):
        with pytest.raises(InputError, match="--replace"):
            require_own(tmp_path / "out", mine, theirs)
    with pytest.raises(InputError, match="--replace"):
        open_study(written(tmp_path / "run", source), source, owner)
    open_study(tmp_path / "run", source, owner, replacing=True)
    require_own(tmp_path / "run", other, owner)


STALE = ("tuning.jsonl", "judges.json", "report.html", "records.parquet", "results.json", "history.json")


def test_a_run_in_anothers_folder_and_replace(inputs, store, tmp_path, monkeypatch, capfd):
    """The command: refused before anything is computed; with --replace what the other run left goes, and no more."""
    file = inputs / "mine.yaml"
    file.write_text(json.dumps(experiment(inputs, align__training__max_steps=1)))
    folder = written(tmp_path / "out", loaded(inputs, "seed=4"))
    for name in STALE:
        (folder / name).write_text("stale")
    (folder / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for more in ((), ("--dry-run",)):
        assert cli.main(["run", str(file), "--out", str(folder), *more]) == 3
        said = capfd.readouterr().err
        assert "holds another experiment" in said and "--replace" in said and str(folder) in said
    assert {path: path.read_bytes() for path in folder.iterdir()} == before and not stages(store)
    assert cli.main(["align", str(file), "--out", str(folder), "--replace"]) == 0
    assert {path.name for path in folder.iterdir()} == {FILE, "notes.txt"}
    assert cli.main(["align", str(file), "--out", str(folder)]) == 0  # now it is its own


def test_the_users_own_file_survives(inputs, store, tmp_path, monkeypatch, capfd):
    """`run experiment.yaml --out .`: README names the file so."""
    own = tmp_path / "d"
    own.mkdir()
    text = f"# my comments\n{json.dumps(experiment(inputs, align__training__max_steps=1))}\n"
    (own / FILE).write_text(text)
    monkeypatch.chdir(own)
    for out in (".", str(own)):
        assert cli.main(["align", FILE, "--out", out]) == 3
        assert "experiment.yaml is your own" in capfd.readouterr().err
    assert (own / FILE).read_text() == text and not stages(store)
    assert cli.main(["align", FILE, "--out", ".", "--replace"]) == 0
    assert (own / f"{FILE}.bak").read_text() == text


def test_the_folders_files_go_with_replace_and_not_without(inputs, tmp_path):
    source = loaded(inputs)
    folder = written(tmp_path / "out", source)
    (folder / "judges.json").write_text("kept")
    RunFolder(folder, inputs).start(source, tabled=True, files={"tuning.jsonl": "{}"})
    assert (folder / "judges.json").exists() and (folder / "tuning.jsonl").read_text() == "{}"
    RunFolder(folder, inputs).start(source, tabled=True, replace=True)
    assert {path.name for path in folder.iterdir()} == {FILE}


def test_demo_attack_and_reproduce_ask_too(inputs, store, tmp_path, capfd):
    folder = written(tmp_path / "out", loaded(inputs))
    (folder / "tuning.jsonl").write_text("theirs")
    (tmp_path / "file.yaml").write_text("harmful_ratio: 0.5\nsize: 4\nsteps: 2\nsearch: {max_accuracy_loss: null}\n")
    (tmp_path / "mine.yaml").write_text(json.dumps(experiment(inputs)))
    asked = ["attack", str(tmp_path / "mine.yaml"), "--file", str(tmp_path / "file.yaml"), "--out", str(folder)]
    assert cli.main(asked) == 3
    said = capfd.readouterr().err
    assert "--replace" in said and (folder / "tuning.jsonl").read_text() == "theirs" and not stages(store)
    assert {path.name for path in folder.iterdir()} == {FILE, "tuning.jsonl"}


def test_preview_and_python_say_it_with_all_else(inputs, store, tmp_path):
    folder = written(tmp_path / "out", loaded(inputs, "seed=4"))
    for call in (run, preview):
        with pytest.raises(InputError) as error:
            call(experiment(inputs, finetune__attack__size=99), out=folder)
        assert "2 problems" in str(error.value)
        assert "finetune.attack: " in str(error.value) and "another experiment" in str(error.value)
    with pytest.raises(InputError, match="another experiment"):
        run_cells([load_experiment(experiment(inputs))], folder, inputs, until="align")
    shutil.rmtree(folder)
