"""`mithridate run --dry-run`: the graph, what the store has of it, what the rest takes; and nothing is done."""

import json
import re
import shutil

import pytest

from mithridate import cli, run
from mithridate.environment import hardware
from mithridate.errors import InputError
from mithridate.pipeline import forecast
from mithridate.pipeline.preview import preview
from tests.pipeline.small import experiment, stages, write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def asked(inputs):
    """The undefended run of the first ratio is in the store of `done`; the rest is not."""
    few = {"learning_rate": 0.01, "max_steps": 2, "per_device_train_batch_size": 2}
    return experiment(inputs, align__training=few, finetune__training=few)


SWEEP = {"align.defense": ["none", "vaccine"], "finetune.attack.harmful_ratio": [0.25, 0.5], "seed": [0, 1]}


@pytest.fixture(scope="module")
def done(asked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MITHRIDATE_STORE", str(folder / "store"))
        run(asked, out=folder / "out", progress=False)
    return folder / "store"


@pytest.fixture
def store(done, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(done))
    return done


def everything(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_each_stage_once_with_its_cells_and_nothing_is_done(asked, store, tmp_path, monkeypatch, capfd):
    file = tmp_path / "grid.yaml"
    file.write_text(json.dumps(asked | {"sweep": SWEEP}))
    monkeypatch.chdir(tmp_path)
    before = everything(store)
    assert cli.main(["run", str(file), "--dry-run"]) == 0
    out = capfd.readouterr().out.splitlines()
    assert everything(store) == before and [path.name for path in tmp_path.iterdir()] == ["grid.yaml"]

    graph = [line for line in out if re.search(r"-[0-9a-f]{12}  ", line)]
    names = re.findall(r"(\w+-[0-9a-f]{12})", "\n".join(graph))
    # 2 defenses and 2 seeds, each aligned model with 2 attacks, and an evaluation of each of the 12 models
    assert len(names) == len(set(names)) == 4 + 8 + 12
    assert sorted(name for line in graph for name in names if name in line and "in the store" in line) == stages(store)
    plain = next(i for i, line in enumerate(graph) if line.startswith("align seed 0"))
    assert [line.split("  ")[0] for line in graph[:plain]] == []
    assert [re.match(r" *", line).end() for line in graph[:6]] == [
        0,
        2,
        2,
        4,
        2,
        4,
    ]  # a stage below what it starts from
    assert graph[0].endswith("in the store  (3 cells)")
    assert sum("ratio 0.5" in line and "to run" in line for line in graph) == 4
    assert out[len(graph)].startswith("12 cells stand on 24 stages: 4 in the store, 20 to run")


def test_overrides_and_begun_and_damaged_stages(asked, store, tmp_path, monkeypatch):
    copied = tmp_path / "store"
    shutil.copytree(store, copied)
    monkeypatch.setenv("MITHRIDATE_STORE", str(copied))
    [align] = stages(copied, "align")
    (copied / align / "history.json").write_bytes(b"[]")
    [finetune] = stages(copied, "finetune")
    (copied / finetune).rename(copied / "work" / finetune)
    states = {node.folder: node.state for _, node in preview(asked).nodes()}
    assert (states[align], states[finetune]) == ("damaged", "begun")
    assert (copied / align).is_dir() and not (copied / "corrupt").exists()  # only `run` moves it aside
    states = [node.state for _, node in preview(asked, ["seed=7"]).nodes()]
    assert states == ["to run"] * 4


def test_the_estimate_says_where_it_comes_from(asked, store):
    swept = asked | {"sweep": SWEEP}
    found = preview(swept)
    by_label = {node.label: node for _, node in found.nodes()}
    like = by_label["finetune ratio 0.5 double seed 1"].guess  # another ratio and seed take the same time
    [name] = stages(store, "finetune")
    record = json.loads((store / name / "stage.json").read_text())
    assert (like.source, like.count, like.seconds) == ("like stages", 1, record["seconds"])
    assert like.bytes == sum(file["bytes"] for file in record["files"].values())
    counted = by_label["align vaccine seed 0"].guess
    assert counted.source == "operations" and counted.seconds > 0 and counted.bytes > 0
    more = by_label["align seed 1"].guess
    assert more.source == "like stages"
    assert found.summary[1].startswith("One after the other they take about ")
    assert found.summary[2] == "  18 as stages like them took on this hardware (their stage.json in the store)"
    assert found.summary[3].startswith("  2 by their operations, at ") and "a rough guess" in found.summary[3]


@pytest.mark.slow
def test_operations_are_those_of_estimate_at_the_assumed_speed(asked, inputs, tmp_path, monkeypatch):
    from mithridate.experiment.config import load_experiment
    from mithridate.pipeline.planning import of_experiment

    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "none"))
    changed = experiment(
        inputs, align__defense={"vaccine": {}}, repair={"antidote": {"ratio": 0.1, "targets": "update"}}
    )
    lines = {line.stage: line for line in of_experiment(load_experiment(changed), inputs, gpu=False)}
    nodes = {node.label.split()[0]: node for _, node in preview(changed).nodes() if "vaccine" in node.label}
    speed = hardware()["cores"] * forecast.CORE
    near = 0.1  # counted from the weights, where `estimate` runs the passes
    assert nodes["align"].guess.seconds == pytest.approx(lines["align"].flops / speed, rel=near)
    assert nodes["align"].guess.bytes == lines["align"].needs.kept
    repair = next(node for _, node in preview(changed).nodes() if node.label.startswith("repair"))
    assert repair.guess.seconds == pytest.approx(lines["repair"].flops / speed, rel=near)
    alone = [
        of_experiment(load_experiment(experiment(inputs, align__defense={name: {}})), inputs, gpu=False)[0]
        for name in ("vaccine", "booster")
    ]
    both = experiment(inputs, align__defense={"vaccine": {}, "booster": {}})
    together = next(node for _, node in preview(both).nodes() if node.label.startswith("align vaccine"))
    plain, steps = alone[0].needs.plain_flops, alone[0].setup.steps
    wanted = steps * (plain + sum(line.needs.flops - plain for line in alone))
    assert together.guess.seconds == pytest.approx(wanted / speed, rel=near)
    assert not (tmp_path / "none").exists()


def test_records_of_other_hardware_and_other_models_are_no_measure(asked, store, monkeypatch):
    here = hardware()
    monkeypatch.setattr(forecast, "hardware", lambda: here | {"cpu": "another"})
    assert {node.guess.source for _, node in preview(asked, ["seed=5"]).nodes()} == {"operations"}


def test_a_model_that_is_not_here_is_neither_fetched_nor_counted(asked, store, tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_CACHE", str(tmp_path / "cache"))
    found = preview(asked, ["model=smollm2-135m"])
    assert {node.guess.source for _, node in found.nodes()} == {"unknown"}
    assert "smollm2-135m is not on this machine yet" in found.summary[-1]
    assert not (tmp_path / "cache").exists()


def test_bad_input_is_told_as_by_run(asked, store, tmp_path):
    with pytest.raises(InputError, match="did you mean `vaccine`"):
        preview(asked, ["align.defense=vacine"])
