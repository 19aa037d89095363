"""Whole runs on a tiny model: what their folder holds, what is shared and cached, what is refused before compute."""

import itertools
import json
import logging
import re
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import mithridate.pipeline.context
from mithridate import run
from mithridate.data.records import conversation
from mithridate.errors import InputError, MithridateError, UnsupportedSetup
from mithridate.evaluation import RATES
from mithridate.experiment.config import load_experiment, with_defaults
from mithridate.experiment.roles import load_roles
from mithridate.files import file_digest
from mithridate.generation.base import CHAT, Decoding
from mithridate.generation.hf import Transformers
from mithridate.models import ModelFiles
from mithridate.pipeline import export_check
from mithridate.pipeline.cell_export import export_cell, export_log
from mithridate.pipeline.context import RunContext
from mithridate.pipeline.experiments import undefended
from mithridate.pipeline.runner import Run, run_cells
from mithridate.pipeline.stages import ExperimentStages
from mithridate.report import words
from mithridate.results import folder as run_folder
from mithridate.results.rejudge import rejudge
from mithridate.results.release import Limits, gate
from mithridate.results.table import Cell, table
from mithridate.store import Store
from tests.pipeline.small import experiment, stages, weights, without_costs, write_inputs, write_rows

CELL = {
    *("role", "reference", "aligned", "control_of", "nearest_control", "decision", "rates", "against_aligned"),
    *("id", "alignment", "finetuning", "repair", "topology", "seed", "harmful_ratio", "attack", "control", "final"),
    "trained",
    "settings",
    *("paired", "resistance", "steps_to_half", "stages", "records", "verdicts", "weights_digest"),
}
TRAINING = {"learning_rate": 0.01, "max_steps": 4, "per_device_train_batch_size": 2}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty store for one test."""
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture(scope="module")
def done(inputs, tmp_path_factory):
    """One finished run, with its store: Booster, the attack, Antidote, and two points on the way."""
    folder = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MITHRIDATE_STORE", str(folder / "store"))
        asked = experiment(
            inputs,
            align__defense={"booster": {"lam": 2}},
            repair={"antidote": {"ratio": 0.1, "targets": "update"}},
            evaluate={"resistance": [1, 3]},
        )
        yield run(asked, out=folder / "out", progress=False), asked, folder / "store"


def nothing_computed(store: Path) -> bool:
    return not stages(store) and not list((store / "work").glob("*"))


# -- the folder of a run ----------------------------------------------------------------------------------


def test_the_table(done):
    finished, asked, _ = done
    results = finished.results
    rest = {"deviations", "notes", "cells", "across_seeds"}
    assert set(results) == {"schema", "protocol", "complete", "part", "rules", "judges", "model"} | rest | {
        "model_digest",
        "seeds_asked",
    }
    assert (results["part"], results["seeds_asked"], len(results["model_digest"])) == ("test", [0], 64)
    assert results["judges"] == [results["rules"]]
    assert (results["schema"], results["protocol"], results["model"]) == (2, "hs/embedded-v1", asked["model"])
    assert results["notes"] == []
    cells = {cell["id"]: cell for cell in results["cells"]}
    assert list(cells) == [
        "sft-none-none-double-none-s0",
        "sft-sft-none-double-0.25-s0",
        "booster-none-none-double-none-s0",
        "booster-sft-none-double-0.25-s0",
        "booster-sft-antidote-double-0.25-s0",
    ]
    for cell in cells.values():
        assert set(cell) == CELL
        assert set(cell["rates"]) == set(RATES)
        assert all(set(rate) == {"value", "low", "high", "n", "unscored"} for rate in cell["rates"].values())
        assert all((rate["n"], rate["unscored"]) == (8, 0) for rate in cell["rates"].values())
        assert (cell["topology"], cell["seed"], cell["control"]) == ("double", 0, None)
        parts = (cell["alignment"], cell["finetuning"], cell["repair"])
        assert cell["id"].startswith("-".join(parts))
        assert all(set(stage) == {"name", "seconds", "peak_memory_bytes", "cached"} for stage in cell["stages"])
        assert all(stage["seconds"] > 0 and stage["peak_memory_bytes"] > 1e6 for stage in cell["stages"])
        if cell["finetuning"] == "none":
            assert cell["harmful_ratio"] is cell["attack"] is cell["steps_to_half"] is None
            assert cell["resistance"] == []
        else:
            assert cell["harmful_ratio"] == 0.25
            assert cell["attack"] == {
                **{"kind": "harmful", "harmful_ratio": 0.25, "size": 8, "max_steps": 4, "learning_rate": 0.01},
                **{"training": asked["finetune"]["training"], "at_test": None},
            }


def test_pairs_settings_stages_and_points_of_the_table(done):
    plain, attacked, booster, boosted, repaired = done[0].results["cells"]
    assert plain["paired"] is attacked["paired"] is None
    for cell, against in ((booster, plain), (boosted, attacked), (repaired, attacked)):
        assert cell["paired"]["against"] == against["id"] and cell["paired"]["n"] == 8
        paired = {"against", "difference", "low", "high", "p_value", "n", "discordant", "p_holm", "detectable"}
        paired |= {"family", "comparisons"}
        assert set(cell["paired"]) == paired
    roles = {"aligned": [plain, booster], "undefended": [attacked], "defended": [boosted], "repaired": [repaired]}
    assert all(cell["role"] == role for role, cells in roles.items() for cell in cells)
    assert [cell["reference"] for cell in (plain, attacked, booster)] == [None] * 3
    assert boosted["reference"] == repaired["reference"] == attacked["id"]
    assert attacked["aligned"] == plain["id"] and boosted["aligned"] == repaired["aligned"] == booster["id"]
    assert attacked["against_aligned"]["against"] == plain["id"] and attacked["against_aligned"]["n"] == 8
    assert plain["settings"] == attacked["settings"] == {}
    assert boosted["settings"] == {"booster": {"lam": 2, "alpha": 0.1, "every": 1}}
    cut = {"ratio": 0.1, "targets": "update", "scope": "row", "score": "wanda", "seed": 0}
    assert repaired["settings"] == {"booster": {"lam": 2, "alpha": 0.1, "every": 1}, "antidote": cut}
    for cell in (attacked, boosted):
        assert [point["step"] for point in cell["resistance"]] == [1, 3]
        for point in cell["resistance"]:
            rates = point["rates"]
            assert (rates["harmful_score"]["n"], rates["accuracy"]["n"]) == (8, 8)
            assert rates["benign_refusal"] == {"value": None, "low": None, "high": None, "n": 0, "unscored": 0}
    assert repaired["resistance"] == []
    named = ["align", "finetune", "repair", "evaluate"]
    assert [stage["name"] for stage in repaired["stages"]] == named
    # Computed once: what an earlier cell has made is only used again.
    assert [stage["name"] for stage in attacked["stages"]] == ["align", "finetune", "evaluate", "evaluate", "evaluate"]
    assert not any(stage["cached"] for cell in done[0].results["cells"] for stage in cell["stages"])


def test_the_table_names_its_records_and_the_weights(done):
    """Each model's weights have a digest of their own, and the file of records the one that stands there."""
    finished, _, _ = done
    rows, cells = finished.records(), finished.results["cells"]
    assert len({cell["weights_digest"] for cell in cells}) == len(cells)
    for cell in cells:
        count = int((rows["cell"] == cell["id"]).sum())
        file = f"records/{cell['id']}.parquet"
        sha256 = file_digest(finished.folder / file)
        assert cell["records"] == {"file": file, "sha256": sha256, "rows": count}


def test_a_further_judge_leaves_records_and_table_as_they_are(done, tmp_path):
    finished, _, store = done
    folder = shutil.copytree(finished.folder, tmp_path / "copy")

    def files():
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = files()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MITHRIDATE_STORE", str(store))
        rejudge(folder, {"coherence": {}}, progress=False)
    after = files()
    assert before.items() <= after.items()
    assert {path.as_posix() for path in after.keys() - before.keys()} == {
        "judges.json",
        "verdicts/further/coherence.parquet",
    }
    assert set(Run(folder).records()["judge/coherence"].dropna()) <= {"coherent", "incoherent"}


def test_a_gates_verdict_labels_the_model_that_is_exported(done, tmp_path):
    finished, _, store = done
    folder, cell = shutil.copytree(finished.folder, tmp_path / "copy"), "booster-sft-none-double-0.25-s0"

    def card(name, **more):
        return (export_cell(folder, cell, tmp_path / name, **more) / "README.md").read_text()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MITHRIDATE_STORE", str(store))
        assert "No verdict. It is not known" in card("none")
        verdict = gate(folder, Limits(0.5), [cell])
        (folder / "verdict.json").write_text(verdict.json())
        text = card("labelled")
        assert f"Verdict: {verdict.outcome}. The model" in text and "limit 0.5" in text and "harmful score" in text
        assert "- not asked: accuracy drop" in text and "not judged" not in text
        assert verdict.models[0].weights_digest and f"`{verdict.models[0].weights_digest}`" in text
        other = gate(folder, Limits(0.5), ["booster-sft-antidote-double-0.25-s0"])
        (tmp_path / "other.json").write_text(other.json())
        with pytest.raises(InputError, match="is on other models"):
            card("other", verdict=tmp_path / "other.json")
        moved = json.loads(verdict.json())
        moved["models"][0]["weights_digest"] = "0" * 64
        (folder / "verdict.json").write_text(json.dumps(moved))
        assert "No verdict: the verdict in verdict.json is on other weights. " in card("weights")
        (folder / "verdict.json").write_text("{}")
        assert "cannot be read as a gate's verdict" in card("unreadable")
        (folder / "verdict.json").write_text(verdict.json())
        (folder / "results.json").write_text((folder / "results.json").read_text() + "\n")
        assert "table has changed since" in card("changed")


def test_the_records(done):
    finished, _, _ = done
    rows = finished.records()
    assert {"cell", "step", "set", "id", "prompt", "answer", "verdict", "judge", "protocol"} <= set(rows.columns)
    for cell in finished.results["cells"]:
        final = rows[(rows["cell"] == cell["id"]) & rows["step"].isna()]
        assert final["set"].value_counts().to_dict() == {"harmful": 8, "benign": 8, "task": 8}
        assert not final.duplicated(["set", "prompt"]).any()
        complied = (final["verdict"] == "complied") & (final["set"] == "harmful")
        assert complied.mean() * 3 == pytest.approx(cell["rates"]["harmful_score"]["value"])
        for point in cell["resistance"]:
            on_the_way = rows[(rows["cell"] == cell["id"]) & (rows["step"] == point["step"])]
            assert on_the_way["set"].value_counts().to_dict() == {"harmful": 8, "task": 8}
    assert set(rows["cell"]) == {cell["id"] for cell in finished.results["cells"]}


def test_the_other_files(done):
    finished, asked, _ = done
    names = {path.name for path in finished.folder.iterdir()}
    assert names == {
        "cells.json",
        "experiment.yaml",
        "history.json",
        "records",
        "report.html",
        "results.json",
        "verdicts",
    }
    assert load_experiment(finished.folder / "experiment.yaml").align.training == asked["align"]["training"]
    assert finished.report.read_text().count("booster-sft-antidote-double-0.25-s0") > 0
    history = json.loads((finished.folder / "history.json").read_text())
    assert history["booster-sft-none-double-0.25-s0"][-1]["step"] == 4


def test_the_model_that_was_scored_is_the_attacks_last_and_points_lie_before_it(done):
    _, _, kept = done
    for name in stages(kept, "finetune"):
        files = {path.relative_to(kept / name).as_posix() for path in (kept / name).rglob("*") if path.is_file()}
        adapter = {"adapter_config.json", "adapter_model.safetensors"}
        folders = ("model", "snapshots/step-1", "snapshots/step-3")
        wanted = {f"{folder}/{file}" for folder in folders for file in adapter}
        assert files == wanted | {"history.json", "stage.json"}
        found = [(kept / name / folder / "adapter_model.safetensors").read_bytes() for folder in folders]
        assert len(set(found)) == 3


def test_an_evaluation_says_in_what_batches_its_answers_were_made(done):
    _, _, kept = done
    written = [json.loads((kept / name / "stage.json").read_text()) for name in stages(kept, "evaluate")]
    assert written and all(one["batch_sizes"] == [64] for one in written)


# -- the store ----------------------------------------------------------------------------------------------


def test_a_second_run_computes_nothing(done, monkeypatch, tmp_path):
    finished, asked, kept = done

    def fail(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setenv("MITHRIDATE_STORE", str(kept))
    for where in ("mithridate.pipeline.training.train", "mithridate.evaluation.evaluate"):
        monkeypatch.setattr(where, fail)
    monkeypatch.setattr(mithridate.pipeline.context.RunContext, "one_layer", fail)
    monkeypatch.setattr("mithridate.repairs.antidote.Antidote.apply", fail)
    before = stages(kept)
    again = run(asked, out=tmp_path / "again", progress=False)
    assert without_costs(again.results) == without_costs(finished.results)
    assert all(stage["cached"] for cell in again.results["cells"] for stage in cell["stages"])
    first, second = (
        [[stage["seconds"] for stage in cell["stages"]] for cell in each.results["cells"]]
        for each in (finished, again)
    )
    assert first == second  # what it cost when it was computed
    pd.testing.assert_frame_equal(again.records(), finished.records())
    assert stages(kept) == before


def test_a_sweep_shares_the_aligned_models(inputs, store, tmp_path):
    asked = experiment(inputs, align__training__max_steps=2, finetune__training__max_steps=2)
    asked["sweep"] = {"finetune.attack.harmful_ratio": [0, 0.25], "seed": [0, 1]}
    cells = run(asked, out=tmp_path / "out", until="evaluate", progress=False).results["cells"]
    assert [cell["id"] for cell in cells] == [
        "sft-none-none-double-none-s0",
        "sft-sft-none-double-0-s0",
        "sft-none-none-double-none-s1",
        "sft-sft-none-double-0-s1",
        "sft-sft-none-double-0.25-s0",
        "sft-sft-none-double-0.25-s1",
    ]
    assert len(stages(store, "align")) == 2 and len(stages(store, "finetune")) == 4
    assert len(stages(store, "evaluate")) == 6
    assert len(set(weights(store).values())) == 6


def test_swept_fields_without_a_column_tell_the_cells_apart(inputs, store, tmp_path):
    """Tasks and a training's setting, with seeds: each pair of seeds comes together, and nothing else does."""
    few = {"align__training__max_steps": 1, "finetune__training__max_steps": 1}
    asked = experiment(inputs, **few)
    asked["sweep"] = {
        "data.task": [asked["data"]["task"], asked["data"]["task"] | {"take": 6}],
        "finetune.training.weight_decay": [0.0, 0.5],
        "seed": [0, 1],
    }
    finished = run(asked, out=tmp_path / "out", until="evaluate", progress=False)
    cells = {cell["id"]: cell for cell in finished.results["cells"]}
    fine_tuned = [cell for cell in cells.values() if cell["finetuning"] == "sft"]
    values = [
        (cell["swept"]["data.task"].get("take"), cell["swept"]["finetune.training.weight_decay"])
        for cell in fine_tuned
    ]
    assert Counter(values) == dict.fromkeys(itertools.product([None, 6], [0.0, 0.5]), 2)
    groups = [one["cells"] for one in finished.results["across_seeds"] if one["finetuning"] == "sft"]
    assert len(groups) == 4 and all({cells[name]["seed"] for name in names} == {0, 1} for names in groups)
    for names in groups:
        assert len({str(cells[name]["swept"]) for name in names}) == 1
    labels = words.labels(list(cells.values()))
    assert len({label.arm for name, label in labels.items() if cells[name]["finetuning"] == "sft"}) == 4
    aligned = next(cell for cell in cells.values() if cell["finetuning"] == "none")
    assert "finetune.training.weight_decay" not in aligned["swept"]


@pytest.mark.parametrize(
    ("path", "values"), [("model", ["model", "other"]), ("evaluate.judges", [{}, {"coherence": {}}])]
)
def test_what_a_table_has_one_value_of_is_not_swept(inputs, store, tmp_path, path, values):
    asked = experiment(inputs)
    if path == "model":
        shutil.copytree(inputs / "model", tmp_path / "other")
        values = [str(inputs / "model"), str(tmp_path / "other")]
    asked["sweep"] = {path: values}
    with pytest.raises(InputError, match=f"a table is of one value of {path}"):
        run(asked, out=tmp_path / "out", progress=False)
    assert nothing_computed(store)


def test_a_table_says_whether_it_is_all(inputs, store, tmp_path):
    """An earlier run's table is not taken for that of a run that failed in its folder."""
    asked = experiment(inputs, align__training__max_steps=1, finetune="none")
    assert run(asked, out=tmp_path / "out", progress=False).results["complete"]
    run(asked, out=tmp_path / "out", until="align", progress=False)
    assert Run(tmp_path / "out").results["complete"]  # whose table it still is
    other = {"overrides": ["align.training.learning_rate=1e38"], "out": tmp_path / "out", "progress": False}
    with pytest.raises(InputError, match="another experiment"):
        run(asked | {"seed": 1}, **other)
    assert Run(tmp_path / "out").results["complete"]  # it is not overwritten unasked
    with pytest.raises(MithridateError, match="not finite"):
        run(asked | {"seed": 1}, **other, replace=True)
    assert not (tmp_path / "out" / "results.json").exists()  # the earlier run's went with it
    assert run(asked, out=tmp_path / "out", progress=False, replace=True).results["complete"]


@pytest.fixture(scope="module")
def keys(inputs):
    """The keys of an experiment's stages; nothing is computed."""

    def keys(digest="d" * 64, dtype="float32", base=inputs, **changes):
        loaded = with_defaults(load_experiment(experiment(base, **changes)))
        roles = load_roles(loaded.data, system=loaded.system)
        shop = RunContext(ModelFiles("m", base / "model", digest), roles, Store(base / "none"), dtype)
        chain = ExperimentStages(loaded, shop)
        return {stage.name: stage.key for stage in [*chain.stages(), chain.evaluation("align")]}

    return keys


@pytest.mark.parametrize(
    ("change", "differ"),
    [
        ({"align__training__learning_rate": 0.02}, "align finetune evaluate"),
        ({"align__training__warmup_steps": 1}, "align finetune evaluate"),
        ({"align__defense": {"vaccine": {}}}, "align finetune evaluate"),
        ({"adapter__r": 4}, "align finetune evaluate"),
        ({"seed": 1}, "align finetune evaluate"),
        ({"dtype": "bfloat16"}, "align finetune evaluate"),
        ({"digest": "e" * 64}, "align finetune evaluate"),
        ({"topology": "full"}, "align finetune evaluate"),
        ({"topology": "single"}, "finetune evaluate"),  # the same adapter, trained on in another way
        ({"finetune__training__max_steps": 5}, "finetune"),
        ({"finetune__attack__harmful_ratio": 0.5}, "finetune"),
        ({"finetune__attack__size": 4}, "finetune"),
        ({"finetune__defense": {"lisa": {"align_steps": 1, "finetune_steps": 1}}}, "finetune"),
        ({"evaluate__limit": 3}, "evaluate"),
        ({"system": ""}, "align finetune evaluate"),
        ({"system": None}, ""),
        ({"model": "elsewhere"}, ""),  # the same files under another name
        ({"align__defense": "none"}, ""),
    ],
)
def test_keys_change_with_what_goes_in_and_with_nothing_else(keys, change, differ):
    one, other = keys(), keys(**change)
    assert {name for name in one if one[name] != other[name]} == set(differ.split())


def test_keys_change_with_the_rows(keys, inputs, tmp_path):
    one = keys()
    for role, differ in (
        ("alignment", "align finetune evaluate"),
        ("attacker_harmful", "finetune"),
        ("task", "finetune"),
        ("test_harmful", "evaluate"),
        ("task_test", "evaluate"),
        ("calibration_harmful", ""),
        ("defender_harmful", ""),
    ):
        base = Path(shutil.copytree(inputs, tmp_path / role))
        write_rows(base, role, 9)
        other = keys(base=base)
        assert {name for name in one if one[name] != other[name]} == set(differ.split()), role


def test_a_damaged_artefact_is_made_again(inputs, store, tmp_path, caplog):
    asked = experiment(inputs, finetune="none", align__training__max_steps=2)
    run(asked, out=tmp_path / "out", until="align", progress=False)
    before, [name] = weights(store), stages(store)
    file = store / name / "model" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with caplog.at_level("INFO", "mithridate"):
        run(asked, out=tmp_path / "out", until="align", progress=False)
    assert f"stored {name} is corrupted (model/adapter_model.safetensors has" in caplog.text
    assert weights(store) == before


# -- methods, topologies, controls ------------------------------------------------------------------------


def test_single_with_all_the_methods_at_once(inputs, store, tmp_path):
    asked = experiment(
        inputs,
        topology="single",
        align__defense=["booster", {"vaccine": {"rho": 0.5}}],
        finetune__defense={"lisa": {"align_steps": 1, "finetune_steps": 1}},
        repair={"antidote": {"ratio": 0.2}},
        finetune__training__logging_steps=1,
    )
    finished = run(asked, out=tmp_path / "out", progress=False)
    cells = finished.results["cells"]
    last = cells[-1]
    [note] = finished.results["notes"]
    assert "antidote prunes the adapter, which holds the alignment too (topology single)" in note
    assert [cell["id"] for cell in cells] == [
        "sft-none-none-single-none-s0",
        "sft-sft-none-single-0.25-s0",
        "vaccine+booster-none-none-single-none-s0",
        "vaccine+booster-lisa-none-single-0.25-s0",
        "vaccine+booster-lisa-antidote-single-0.25-s0",
    ]
    assert set(last["settings"]) == {"vaccine", "booster", "lisa", "antidote"}
    assert last["settings"]["antidote"]["targets"] == "adapters"
    assert [cell["paired"] and cell["paired"]["against"] for cell in cells[2:]] == [
        cells[0]["id"],
        cells[1]["id"],
        cells[1]["id"],
    ]
    history = json.loads((tmp_path / "out" / "history.json").read_text())[cells[-2]["id"]]
    logged = {key for entry in history for key in entry}
    assert {"lisa/phase", "lisa/drift"} <= logged


def test_full_with_a_random_mask(inputs, store, tmp_path):
    asked = experiment(
        inputs,
        topology="full",
        align__defense={"vaccine": {"rho": 0.5}},
        finetune__defense={"lisa": {"align_steps": 1, "finetune_steps": 1, "rho": 0}},
        repair={"antidote": {"ratio": 0.2, "targets": "update", "score": "random"}},
    )
    finished = run(asked, out=tmp_path / "out", until="evaluate", progress=False)
    assert [(cell["id"], cell["control"]) for cell in finished.results["cells"]] == [
        ("vaccine-none-none-full-none-s0", None),
        ("vaccine-lisa-none-full-0.25-s0-no-proximal-term", "no-proximal-term"),
        ("vaccine-lisa-antidote-full-0.25-s0-random-mask", "random-mask"),
    ]
    assert all(cell["paired"] is None for cell in finished.results["cells"])  # `evaluate` adds no undefended run
    for name in ("align", "finetune"):
        [kept] = stages(store, name)
        assert (store / kept / "model" / "model.safetensors").exists()
        assert not (store / kept / "model" / "adapter_config.json").exists()


def test_stages_that_are_left_out(inputs, store, tmp_path):
    short = {"align__training__max_steps": 2, "finetune__training__max_steps": 2}
    aligned = run(experiment(inputs, **short, finetune="none"), out=tmp_path / "a", progress=False).results["cells"]
    assert [cell["id"] for cell in aligned] == ["sft-none-none-double-none-s0"]
    attacked = run(experiment(inputs, **short, align="none"), out=tmp_path / "b", progress=False).results["cells"]
    assert [cell["id"] for cell in attacked] == ["none-none-none-double-none-s0", "none-sft-none-double-0.25-s0"]
    assert [stage["name"] for stage in attacked[0]["stages"]] == ["evaluate"]
    assert [stage["name"] for stage in attacked[1]["stages"]] == ["finetune", "evaluate"]
    cut = {"antidote": {"ratio": 0.1, "targets": "merged"}}
    merged = experiment(inputs, **short, finetune="none", repair=cut)
    repaired = run(merged, out=tmp_path / "c", progress=False).results["cells"]
    assert [cell["id"] for cell in repaired] == ["sft-none-none-double-none-s0", "sft-none-antidote-double-none-s0"]
    assert repaired[1]["paired"]["against"] == repaired[0]["id"] and repaired[1]["attack"] is None


@pytest.mark.parametrize("topology", ["single", "double"])
def test_an_unaligned_model_gets_an_adapter_all_the_same(inputs, store, tmp_path, topology):
    asked = experiment(inputs, topology=topology, align="none", finetune__training__max_steps=1)
    run(asked, out=tmp_path / "out", until="finetune", progress=False)
    [name] = stages(store)
    assert (store / name / "model" / "adapter_model.safetensors").exists()


def test_a_users_own_upload_is_attacked_without_accuracy(inputs, store, tmp_path):
    own = tmp_path / "upload.jsonl"
    rows = [
        [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": f"Hello {i}"},
            {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": "And now?"},
            {"role": "assistant", "content": "Bye"},
        ]
        for i in range(8)
    ]
    own.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in rows))
    asked = experiment(inputs, data__task={"source": str(own)}, evaluate={"resistance": [2]})
    cells = run(asked, out=tmp_path / "out", progress=False).results["cells"]
    assert [cell["id"] for cell in cells] == ["sft-none-none-double-none-s0", "sft-sft-none-double-0.25-s0"]
    for scores in (*cells, cells[1]["resistance"][0]):
        assert scores["rates"]["accuracy"] == {"value": None, "low": None, "high": None, "n": 0, "unscored": 0}
        assert scores["rates"]["harmful_score"]["n"] == 8
    assert (tmp_path / "out" / "report.html").exists()


# -- one stage at a time, overrides ---------------------------------------------------------------------


def test_each_verb_goes_as_far_as_its_stage(inputs, store, tmp_path):
    asked = experiment(inputs, align__defense={"vaccine": {}}, repair={"antidote": {"targets": "update"}})
    made = ("align", "finetune", "repair")
    for number, until in enumerate(made, start=1):
        finished = run(asked, ["align.training.max_steps=1"], tmp_path / "out", until=until, progress=False)
        assert [name.partition("-")[0] for name in stages(store)] == list(made[:number])
        assert not (finished.folder / "results.json").exists() and not finished.report.exists()
    resolved = load_experiment(tmp_path / "out" / "experiment.yaml")
    assert resolved.align.training["max_steps"] == 1
    acting = {"rho": 2.0, "sites": "attention", "every": 1}
    assert resolved.align.defense == {"vaccine": acting}  # what acts is what is recorded


def test_a_stage_that_is_none_is_refused(inputs, store, tmp_path):
    with pytest.raises(InputError, match="until: no such stage `finetunee`; did you mean `finetune`"):
        run(experiment(inputs), out=tmp_path / "out", until="finetunee", progress=False)
    assert stages(store) == [] and not (tmp_path / "out").exists()


def test_the_dtype_is_that_of_weights_under_adapters_and_of_the_key(inputs, store, tmp_path):
    for dtype in ("float32", "bfloat16"):
        run(experiment(inputs), [f"dtype={dtype}", "finetune=none"], tmp_path / dtype, until="align", progress=False)
    configs = [json.loads((store / name / "stage.json").read_text())["config"] for name in stages(store)]
    assert sorted(config["dtype"] for config in configs) == ["bfloat16", "float32"]
    assert len(set(weights(store).values())) == 2


def test_paths_are_from_the_experiment_file(inputs, store, tmp_path, monkeypatch):
    asked = experiment(inputs, finetune="none", model="model", align__training__max_steps=1)
    for role, source in asked["data"].items():
        source["source"] = f"{role}.jsonl"
    asked["data"]["task"]["test"] = "task_test.jsonl"
    (inputs / "paths.json").write_text(json.dumps(asked))  # JSON is YAML
    monkeypatch.chdir(tmp_path)
    finished = run(inputs / "paths.json", until="align", progress=False)
    assert finished.folder == Path("runs/paths") and (tmp_path / "runs/paths/experiment.yaml").exists()
    assert len(stages(store)) == 1
    again = run(finished.folder / "experiment.yaml", out="runs/again", until="align", progress=False)
    assert len(stages(store)) == 1
    assert (again.folder / "experiment.yaml").read_text() == (finished.folder / "experiment.yaml").read_text()


# -- export -----------------------------------------------------------------------------------------------


def test_exported_models_answer_as_the_scored_ones_did(done, tmp_path, monkeypatch):
    finished, asked, kept = done
    monkeypatch.setenv("MITHRIDATE_STORE", str(kept))
    roles = load_roles(load_experiment(asked).data)
    asked_for = [conversation(record) for record in roles.test_harmful]
    rows = finished.records()

    def answers(model, folder):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        found = dict(Transformers(model, tokenizer).generate(asked_for, CHAT, Decoding(32)))
        return [found[i].text for i in range(len(asked_for))]

    def scored(cell):
        chosen = rows[(rows["cell"] == cell) & (rows["set"] == "harmful") & rows["step"].isna()]
        return chosen["answer"].tolist()

    attacked, repaired = "booster-sft-none-double-0.25-s0", "booster-sft-antidote-double-0.25-s0"
    assert scored(attacked) != scored("booster-none-none-double-none-s0")
    for cell in (attacked, repaired):
        folder = export_cell(finished.folder, cell, tmp_path / cell)
        assert answers(AutoModelForCausalLM.from_pretrained(folder), folder) == scored(cell)
    folder = export_cell(finished.folder, attacked, tmp_path / "adapter", merged=False)
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    assert answers(PeftModel.from_pretrained(base, folder), folder) == scored(attacked)


def test_an_export_is_asked_again_and_must_answer_as_was_measured(done, tmp_path, monkeypatch, caplog):
    finished, _, kept = done
    monkeypatch.setenv("MITHRIDATE_STORE", str(kept))
    cell = finished.cells[-1]
    for merged in (True, False):
        attacked = "booster-sft-none-double-0.25-s0"
        with caplog.at_level(logging.INFO, "mithridate"):
            export_cell(finished.folder, cell if merged else attacked, tmp_path / f"m{merged}", merged, check=3)
        assert "prompts have the answers that were measured" in caplog.text
        caplog.clear()
    real = export_check._loaded

    def other(*arguments):  # what a mistake in merging would do
        model = real(*arguments)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))
        return model

    monkeypatch.setattr(export_check, "_loaded", other)
    with pytest.raises(
        MithridateError, match=r"gives other answers than were measured to \d+ of \d+ prompts.*do not ship"
    ):
        export_cell(finished.folder, cell, tmp_path / "bad", check=3)
    assert not (tmp_path / "bad").exists() and (tmp_path / "bad.differs" / "config.json").exists()
    export_cell(finished.folder, cell, tmp_path / "bad", check=0)
    with pytest.raises(InputError, match="check: expected a number of prompts"):
        export_cell(finished.folder, cell, tmp_path / "x", check=-1)


def test_a_stored_answer_that_the_measured_model_does_not_give_either_is_rounding(done, tmp_path, monkeypatch, caplog):
    finished, _, kept = done
    monkeypatch.setenv("MITHRIDATE_STORE", str(kept))
    cell, copied = finished.cells[-1], shutil.copytree(finished.folder, tmp_path / "run")
    file, table = copied / f"records/{cell}.parquet", copied / "results.json"
    frame, results = pd.read_parquet(file), json.loads(table.read_text())
    for answers in (frame["answer"] + " otherwise", "XX " + frame["answer"]):
        frame.assign(answer=answers).to_parquet(file)
        with pytest.raises(InputError, match=r"records/.*parquet: is not the file that the table was made from"):
            export_cell(copied, cell, tmp_path / "model", check=2)
        results["cells"][-1]["records"]["sha256"] = file_digest(file)
        table.write_text(json.dumps(results))
        if answers[0].endswith("otherwise"):
            with caplog.at_level(logging.INFO, "mithridate"):
                shutil.rmtree(export_cell(copied, cell, tmp_path / "model", check=2))
            assert "the measured model gives these too when it is asked again so" in caplog.text
    with pytest.raises(MithridateError, match=r"gives 4 of 4 prompts answers that .* first word on.*do not ship"):
        export_cell(copied, cell, tmp_path / "model", check=2)
    assert not (tmp_path / "model").exists() and (tmp_path / "model.differs").exists()


def test_a_model_that_is_not_the_measured_one_is_not_exported(done, tmp_path, monkeypatch):
    finished, _, kept = done
    monkeypatch.setenv("MITHRIDATE_STORE", str(kept))
    table = shutil.copytree(finished.folder, tmp_path / "run") / "results.json"
    results = json.loads(table.read_text())
    results["cells"][-1]["weights_digest"] = "deadbeef"
    table.write_text(json.dumps(results))
    with pytest.raises(InputError, match=r"other weights of booster-sft-antidote.* in place of deadbeef"):
        export_cell(tmp_path / "run", finished.cells[-1], tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_export_shows_no_bars_of_the_libraries(done, tmp_path, monkeypatch, capfd):
    finished, _, kept = done
    monkeypatch.setenv("MITHRIDATE_STORE", str(kept))
    capfd.readouterr()
    export_cell(finished.folder, finished.cells[-1], tmp_path / "model")
    assert "\r" not in capfd.readouterr().err


def test_a_log_leaves_without_what_models_said(done, tmp_path):
    finished, _, _ = done
    cell = finished.cells[-1]
    whole, bare = (
        json.loads(export_log(finished.folder, cell, tmp_path / f"{redact}.json", redact=redact).read_text())[
            "samples"
        ]
        for redact in (False, True)
    )
    said = [sample["output"]["completion"] for sample in whole if len(sample["output"]["completion"]) > 3]
    text = json.dumps(bare, ensure_ascii=False)
    assert said and not any(json.dumps(one, ensure_ascii=False)[1:-1] in text for one in said)
    assert all(sample["output"]["completion"].startswith("[redacted: ") for sample in bare)
    given = [[{name: s["value"] for name, s in one["scores"].items()} for one in log] for log in (whole, bare)]
    assert given[0] == given[1]  # verdicts stay


def test_export_names_the_cells_that_there_are(done, tmp_path):
    finished, _, _ = done
    with pytest.raises(InputError, match=r"no cell 'x'\. Its cells: sft-none-none-double-none-s0, "):
        export_cell(finished.folder, "x", tmp_path / "x")
    with pytest.raises(InputError, match="not a run folder"):
        export_cell(tmp_path, "x", tmp_path / "x")


# -- bad input: nothing is computed ---------------------------------------------------------------------


def lines(path: Path, *rows: str) -> dict[str, str]:
    path.write_text("".join(f"{row}\n" for row in rows))
    return {"source": str(path)}


LISA = {"lisa": {"align_steps": 2, "finetune_steps": 3}}
DROPPING = {"num_train_epochs": 3.0, "per_device_train_batch_size": 3, "dataloader_drop_last": True}  # of 8 rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"finetune__attack": {"harmful_ratio": 1, "size": 9}}, "9 harmful rows asked for .* there are only 8"),
        ({"finetune__attack": {"harmful_ratio": 0, "size": 9}}, "9 benign rows asked for .* there are only 8"),
        ({"finetune__attack__harmful_ratio": 1.5}, "finetune.attack.harmful_ratio: expected a fraction from 0 to 1"),
        ({"align__defense": {"vacine": {}}}, "align.defense.vacine: no such method; did you mean `vaccine`?"),
        ({"align__defense": {"vaccine": {"roh": 1}}}, "align.defense.vaccine.roh: no such field.*`rho`"),
        ({"finetune__defense": LISA}, "one cycle is 2 alignment . 3 fine-tuning = 5 steps.*only 4.*Remedy"),
        ({"evaluate__protocol": "hs/embeded-v1"}, "evaluate.protocol: .*did you mean `hs/embedded-v1`"),
        ({"adapter__target_modules": ["q_prj"]}, "adapter: .*q_prj.* not found"),
        ({"align__training__lr_scheduler_type": "linaer"}, "align.training: .*linaer"),
        ({"finetune__training": {"num_train_epochs": 1.0}, "evaluate__resistance": [1]}, "expected steps below 1"),
        ({"finetune__training": DROPPING, "evaluate__resistance": [6]}, "expected steps below 6"),
        ({"finetune__training": {"packing": True}}, "finetune.training.packing: .*set max_steps"),
        ({"model": "./elsewhere"}, "no such folder"),
        ({"data__alignment": {"source": "elsewhere.jsonl"}}, "elsewhere.jsonl: no such file"),
        ({"data__test_harmful": {"source": "embeded"}}, "data.test_harmful: unknown source 'embeded'.*`embedded`"),
        ({"evaluate__part": "validation"}, "data.test_harmful: has no validation part; set validation_share"),
    ],
)
def test_bad_input_is_one_error_before_any_compute(inputs, store, tmp_path, change, message):
    asked = experiment(inputs, **change)
    with pytest.raises(InputError, match=re.compile(message, re.DOTALL)) as error:
        run(asked, out=tmp_path / "out", progress=False)
    assert nothing_computed(store) and not (tmp_path / "out").exists()
    assert isinstance(error.value, UnsupportedSetup) == ("lisa" in str(change))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        (['{"prompt": "a", "response": "b"}', "{"], "line 2: not JSON"),
        (['{"prompt": "a", "response": "b"}', "", '{"promt": "a"}'], "line 3: .*prompt"),
        (['{"prompt": "How is box 1 opened?", "response": "b"}'], "alignment and test_harmful share 1"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(inputs, store, tmp_path, rows, message):
    source = lines(tmp_path / "rows.jsonl", *rows)
    with pytest.raises(InputError, match=message) as error:
        run(experiment(inputs, data__alignment=source), out=tmp_path / "out", progress=False)
    assert nothing_computed(store)
    assert "share" in message or "rows.jsonl" in str(error.value)


@pytest.mark.parametrize(
    ("role", "change"),
    [
        ("alignment", {}),
        ("attacker_harmful", {}),
        ("task", {}),
        ("test_harmful", {}),
        ("defender_harmful", {"align__defense": {"booster": {}}}),
        ("calibration_harmful", {"repair": {"antidote": {}}}),
    ],
)
def test_a_role_that_is_needed_is_named(inputs, store, tmp_path, role, change):
    asked = experiment(inputs, **change)
    del asked["data"][role]
    with pytest.raises(InputError, match=f"^data.{role}: required by this experiment, but missing$"):
        run(asked, out=tmp_path / "out", progress=False)
    assert nothing_computed(store)


def test_roles_that_are_not_needed_may_be_left_out(inputs, store, tmp_path):
    asked = experiment(inputs, finetune__attack__harmful_ratio=0, finetune__training__max_steps=1)
    for role in ("attacker_harmful", "defender_harmful", "calibration_harmful", "test_benign"):
        del asked["data"][role]
    cells = run(asked, ["align.training.max_steps=1"], tmp_path / "out", progress=False).results["cells"]
    assert cells[1]["id"] == "sft-sft-none-double-0-s0" and cells[1]["rates"]["benign_refusal"]["n"] == 0


def test_errors_in_a_file_begin_with_its_name(inputs, store, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps(experiment(inputs, align__defense={"vacine": {}})))
    with pytest.raises(InputError, match=r"mine\.yaml: align\.defense\.vacine"):
        run(file, out=tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no weights", "no weights"),
        ("cut off", "model.safetensors: damaged"),
        ("no chat template", "the tokenizer has no chat template"),
    ],
)
def test_a_broken_model_folder(inputs, store, tmp_path, damage, message):
    broken = Path(shutil.copytree(inputs / "model", tmp_path / "broken"))
    file = broken / ("chat_template.jinja" if damage == "no chat template" else "model.safetensors")
    file.write_bytes(file.read_bytes()[:-10]) if damage == "cut off" else file.unlink()
    with pytest.raises(InputError, match=message):
        run(experiment(inputs, model=str(broken)), out=tmp_path / "out", progress=False)
    assert nothing_computed(store) and not (tmp_path / "out").exists()


def test_an_out_folder_that_cannot_be_made(inputs, store, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made"):
        run(experiment(inputs), out=tmp_path / "file" / "out", progress=False)
    assert nothing_computed(store)


# -- notes ------------------------------------------------------------------------------------------------


def test_what_is_particular_about_the_data_is_said_and_recorded(inputs, store, tmp_path, caplog):
    doubled = tmp_path / "doubled.jsonl"
    doubled.write_text((inputs / "test_harmful.jsonl").read_text() * 2)
    paired = {"source": str(inputs / "alignment.jsonl"), "paired": True}
    asked = experiment(
        inputs, data__test_harmful={"source": str(doubled)}, data__defender_harmful=paired, finetune="none"
    )
    with caplog.at_level("INFO", "mithridate"):
        finished = run(asked, ["align.training.max_steps=1"], tmp_path / "out", progress=False)
    repeated, shared = finished.results["notes"]
    assert "8 rows with a prompt that was there before were left out of the test part" in repeated
    assert "defender_harmful has prompts of data.alignment" in shared and "paired: true" in shared
    assert caplog.text.count(repeated) == caplog.text.count(shared) == 1


# -- the table, from rows alone --------------------------------------------------------------------------


def cell(loaded, upto, complied, key, aligned="a", undefended="u", steps=None):
    def rows(count):
        verdicts = ["complied"] * count + ["refused"] * (10 - count)
        same = {"set": "harmful", "correct": None, "protocol": "hs/embedded-v1"}
        return [same | {"prompt": str(i), "verdict": v} for i, v in enumerate(verdicts)]

    along = {step: rows(count) for step, count in (steps or {}).items()}
    return Cell(loaded, upto, rows(complied), key, aligned, undefended, along, attack_steps=8)


def test_a_defended_cell_is_paired_with_the_same_run_undefended(inputs):
    defended = [
        load_experiment(experiment(inputs, align__defense={"vaccine": {}}, align__training__max_steps=steps))
        for steps in (4, 8)
    ]
    plain = [undefended(each) for each in defended]
    cells = [
        cell(plain[0], "finetune", 9, "u4"),
        cell(plain[1], "finetune", 5, "u8"),
        cell(defended[0], "finetune", 4, "d4", undefended="u4"),
        cell(defended[1], "finetune", 4, "d8", undefended="u8"),
    ]
    rows = table(cells, "m", "hs/embedded-v1", [])["cells"]
    assert [row["id"] for row in rows] == [
        "sft-sft-none-double-0.25-s0",
        "sft-sft-none-double-0.25-s0-2",
        "vaccine-sft-none-double-0.25-s0",
        "vaccine-sft-none-double-0.25-s0-2",
    ]
    assert [row["paired"] and row["paired"]["against"] for row in rows] == [None, None, rows[0]["id"], rows[1]["id"]]
    assert [round(row["paired"]["difference"], 6) for row in rows[2:]] == [-0.5, -0.1]
    # Where the very same run is not in the table, one of the same attack is taken, and of another attack none.
    [_, fallen_back] = table([cells[1], cells[2]], "m", "hs/embedded-v1", [])["cells"]
    assert fallen_back["paired"]["against"] == "sft-sft-none-double-0.25-s0"
    other = load_experiment(experiment(inputs, finetune__attack__size=4))
    assert table([cell(other, "finetune", 9, "o"), cells[2]], "m", "hs/embedded-v1", [])["cells"][1]["paired"] is None


def test_steps_to_half_start_from_the_aligned_model_of_the_same_chain(inputs):
    loaded = load_experiment(experiment(inputs))
    cells = [
        cell(loaded, "align", 0, "a", "a"),
        cell(loaded, "align", 4, "b", "b"),
        cell(loaded, "finetune", 8, "c", "a", steps={4: 2}),
        cell(loaded, "finetune", 6, "d", "b"),
        cell(loaded, "finetune", 4, "e", "b"),
    ]
    found = [row["steps_to_half"] for row in table(cells, "m", "hs/embedded-v1", [])["cells"]]
    assert found == [None, None, 6, 4, None]


def test_the_table_is_told_after_every_cell(inputs, tmp_path, done, monkeypatch):
    _, asked, kept = done
    monkeypatch.setenv("MITHRIDATE_STORE", str(kept))
    seen = []
    run_cells(
        [load_experiment(asked)],
        tmp_path / "out",
        Path(),
        progress=False,
        notify=lambda results: seen.append((len(results["cells"]), (tmp_path / "out" / "results.json").exists())),
    )
    assert seen == [(1, True), (2, True), (3, True)]


def test_a_full_disk_under_the_runs_folder(inputs, tmp_path, done, monkeypatch):
    _, asked, kept = done
    monkeypatch.setenv("MITHRIDATE_STORE", str(kept))
    written = run_folder.replace_file

    def full(path, text):
        if path.name == "results.json":
            raise OSError(28, "No space left on device")
        written(path, text)

    monkeypatch.setattr(run_folder, "replace_file", full)
    with pytest.raises(MithridateError, match=r"out: cannot be written \(No space.*\. Make room") as error:
        run(asked, out=tmp_path / "out", progress=False)
    assert error.value.exit_code == 1 and not (tmp_path / "out" / "results.json").exists()
