"""Kills at random moments, two runs at once, damage in every kind of artefact: the same numbers as undisturbed."""

import contextlib
import json
import logging
import os
import random
import shutil
import signal
import time
from collections import Counter

import pytest

from mithridate import run
from mithridate.results.folder import RunFolder
from mithridate.store import Store
from tests.pipeline.small import experiment, in_child, stages, start_child, weights, without_costs, write_inputs

pytestmark = pytest.mark.slow

KILLS, SEED = 20, 4
KINDS = ("align", "evaluate", "finetune", "repair")  # in the order in which they are first made


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Every stage, with the defenses that keep a state of their own."""
    return experiment(
        write_inputs(tmp_path_factory.mktemp("inputs")),
        align__defense={"booster": {}},
        finetune__defense={"lisa": {"align_steps": 1, "finetune_steps": 2}},
        repair={"antidote": {"ratio": 0.2, "targets": "update"}},
        evaluate={"resistance": [1, 3]},
    )


@pytest.fixture(scope="module")
def undisturbed(asked, tmp_path_factory):
    """Its store, its table, and the digests of its weights."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert in_child(work_on(asked, folder), folder / "stderr") == 0, (folder / "stderr").read_text()
    results = without_costs(json.loads((folder / "out" / "results.json").read_text()))
    return folder / "store", results, weights(folder / "store")


def work_on(asked, folder, out="out"):
    def work():
        os.environ["MITHRIDATE_STORE"] = str(folder / "store")
        run(asked, out=folder / out, until="evaluate", progress=False)
        return 0

    return work


def killed_in(child, store, kind, seconds):
    """Kills a child some seconds after it begins a stage of a kind, unless it ends before; returns its exit code."""
    while not list((store / "work").glob(f"{kind}-*")):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)  # of a process that has ended meanwhile, the exit code is still to be fetched
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def check_what_is_finished(folder, digests):
    """Whatever stands under a final name is whole, and is what an undisturbed run makes."""
    store = Store(folder / "store")
    for path in store.root.glob("*-" + "?" * 12):
        manifest = json.loads((path / "stage.json").read_text())
        assert store.whole(manifest["stage"], manifest["key"]), path
    assert weights(store.root).items() <= digests.items()
    if (folder / "out" / "results.json").exists():
        cells = json.loads((folder / "out" / "results.json").read_text())["cells"]
        assert {cell["id"] for cell in cells} <= set(RunFolder(folder / "out").frame()["cell"])


def test_twenty_kills_at_random_moments_in_every_stage(asked, undisturbed, tmp_path):
    kept, results, digests = undisturbed
    records = [json.loads((kept / name / "stage.json").read_text()) for name in stages(kept)]
    took = {kind: max(one["seconds"] for one in records if one["stage"] == kind) for kind in KINDS}
    moments, hit = random.Random(SEED), Counter()
    store, out = tmp_path / "store", tmp_path / "out"
    while hit.total() < KILLS:
        for kind in KINDS:
            child = start_child(work_on(asked, tmp_path), tmp_path / "stderr")
            code = killed_in(child, store, kind, moments.uniform(0, took[kind]))
            assert code in (0, -signal.SIGKILL), (tmp_path / "stderr").read_text()
            if code:  # it was running
                hit[kind if list((store / "work").glob(f"{kind}-*")) else f"after {kind}"] += 1
                check_what_is_finished(tmp_path, digests)
        assert in_child(work_on(asked, tmp_path), tmp_path / "stderr") == 0, (tmp_path / "stderr").read_text()
        assert without_costs(json.loads((out / "results.json").read_text())) == results
        assert weights(store) == digests and not list((store / "work").iterdir())
        shutil.rmtree(store)
        shutil.rmtree(out)
    print(f"seed {SEED}: {hit.total()} kills: {dict(hit)}")
    assert set(KINDS) <= set(hit)


@pytest.mark.parametrize("outs", [("one", "other"), ("same", "same")])
def test_two_runs_at_once_make_each_stage_once(asked, undisturbed, tmp_path, outs):
    _, results, digests = undisturbed

    def noting(out, log):
        def work():
            logging.getLogger("mithridate").addHandler(logging.FileHandler(log))
            building = Store.building

            @contextlib.contextmanager
            def noted(self, stage, key, meta):
                with building(self, stage, key, meta) as folder:
                    if folder is not None:
                        with (tmp_path / "made").open("a") as file:
                            file.write(f"{stage}-{key[:12]}\n")
                    yield folder

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Store, "building", noted)
                return work_on(asked, tmp_path, out)()

        return work

    logs = [tmp_path / "log-0", tmp_path / "log-1"]
    children = [start_child(noting(out, log), tmp_path / "stderr") for out, log in zip(outs, logs)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0, 0], (tmp_path / "stderr").read_text()
    made = Counter((tmp_path / "made").read_text().splitlines())
    assert set(made) == set(stages(tmp_path / "store")) and set(made.values()) == {1}
    assert any("waiting for it" in log.read_text() for log in logs)
    for out in outs:
        assert without_costs(json.loads((tmp_path / out / "results.json").read_text())) == results
        files = {path.name for path in (tmp_path / out).iterdir()}
        assert files == {
            "cells.json",
            "experiment.yaml",
            "history.json",
            "records",
            "report.html",
            "results.json",
            "verdicts",
        }
    assert weights(tmp_path / "store") == digests
    assert not list((tmp_path / "store" / "work").iterdir())


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("damage", [flip, truncate])
def test_damage_in_every_kind_of_artefact(asked, undisturbed, tmp_path, monkeypatch, caplog, damage):
    kept, results, digests = undisturbed
    store = shutil.copytree(kept, tmp_path / "store")
    monkeypatch.setenv("MITHRIDATE_STORE", str(store))
    damaged = {}
    for kind, pattern in (
        ("align", "model/adapter_model.safetensors"),
        ("finetune", "snapshots/step-3/adapter_model.safetensors"),
        ("repair", "model/*.safetensors"),
        ("evaluate", "records.parquet"),
    ):
        name = stages(store, kind)[0]
        [path] = (store / name).glob(pattern)
        damage(path)
        damaged[name] = path.relative_to(store / name).as_posix()
    with caplog.at_level("INFO", "mithridate"):
        again = run(asked, out=tmp_path / "out", until="evaluate", progress=False)
    for name, file in damaged.items():
        lines = [text for text in caplog.messages if text.startswith(f"stored {name} is corrupted ({file} ")]
        assert len(lines) == 1 and "to be computed again" in lines[0]
    assert sum(text.startswith("[") for text in caplog.messages) == len(damaged)  # and nothing else is made again
    assert sorted(path.name[: len("align-") + 12] for path in (store / "corrupt").glob("align-*")) == stages(
        store, "align"
    )
    assert len(list((store / "corrupt").iterdir())) == len(damaged)
    assert without_costs(again.results) == results and weights(store) == digests
