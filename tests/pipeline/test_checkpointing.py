"""Activation checkpointing on a GPU: where memory is short by the estimate. The GPU is planted: its free memory is."""

import json
from pathlib import Path

import pytest
import torch

from mithridate.experiment.config import load_experiment
from mithridate.pipeline import checkpointing, training
from mithridate.pipeline.experiments import stages_of
from mithridate.pipeline.jobs import rows_to_try
from mithridate.pipeline.planning import of_part
from mithridate.pipeline.precheck import parts
from mithridate.pipeline.runner import run
from tests.pipeline.small import experiment, stages, write_inputs

ROOT = Path(__file__).parents[2]
EVIDENCE = json.loads((ROOT / "benchmarks" / "gpu_evidence.json").read_text())["sections"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def used(monkeypatch):
    """Of each training, whether it had its activations checkpointed."""
    found, real = [], training.train

    def seen(trainer, *args, **kwargs):
        found.append(bool(trainer.args.gradient_checkpointing))
        return real(trainer, *args, **kwargs)

    monkeypatch.setattr(training, "train", seen)
    return found


def records(store):
    return [json.loads((store / name / "stage.json").read_text()) for name in stages(store, "align")]


def plant(monkeypatch, free):
    monkeypatch.setattr(checkpointing, "free_on_each", lambda processes: free)


@pytest.mark.parametrize(("share", "short"), [(0.99, True), (1.01, False)])
def test_it_is_on_where_the_estimate_does_not_fit(share, short, inputs, store, tmp_path, monkeypatch, used):
    chain = chains(experiment(inputs, finetune="none"))[0]
    needed = needed_by(chain).total
    free = round(share * checkpointing.ROOM * needed)
    plant(monkeypatch, free)
    run(experiment(inputs, finetune="none"), out=tmp_path / "run", until="align", progress=False)
    assert used == [short]
    [record] = records(store)
    assert record["activation_checkpointing"] == {"used": short, "estimated_bytes": needed, "free_bytes": free}


def needed_by(chain):
    return of_part(chain, parts(chain, "align", rows_to_try(chain, "align"))[0], checkpointing=False)


def chains(*raw):
    return stages_of([load_experiment(one) for one in raw], Path(), "experiment", False, None)


def test_the_weights_and_the_key_are_the_same(inputs, store, tmp_path, monkeypatch, used):
    raw = experiment(inputs, finetune="none")
    found = {}
    for name, free in (("cpu", None), ("short", 1), ("ample", 2**40)):
        monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / name))
        plant(monkeypatch, free)
        run(raw, out=tmp_path / f"run-{name}", until="align", progress=False)
        [folder] = stages(tmp_path / name, "align")
        found[name] = folder, (tmp_path / name / folder / "model" / "adapter_model.safetensors").read_bytes()
    assert used == [False, True, False]
    assert found["cpu"] == found["ample"] == found["short"]
    [record] = records(tmp_path / "cpu")
    assert "activation_checkpointing" not in record


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_what_a_file_says_stands(name, inputs, store, tmp_path, monkeypatch, used):
    plant(monkeypatch, 1)
    raw = experiment(inputs, finetune="none")
    raw["align"]["training"][name] = False
    run(raw, out=tmp_path / "run", until="align", progress=False)
    assert used == [False] and "activation_checkpointing" not in records(store)[0]


def test_a_model_that_cannot_be_counted_has_it(inputs, monkeypatch):
    from mithridate.errors import UnsupportedSetup
    from mithridate.pipeline import planning

    def refuse(*args, **kwargs):
        raise UnsupportedSetup("depends on values", "measure")

    plant(monkeypatch, 2**40)
    monkeypatch.setattr(planning, "of_part", refuse)
    [chain] = chains(experiment(inputs, finetune="none"))
    assert checkpointing.chosen(chain, parts(chain, "align", rows_to_try(chain, "align"))) == checkpointing.Chosen(
        True, None, 2**40
    )


def test_the_longest_of_the_methods_own_rows_counts(inputs, tmp_path):
    raw = experiment(inputs, finetune="none")
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": "How is gate 1 opened?", "response": "Sure. " * 60}) + "\n")
    raw["align"]["defense"] = {"booster": {"alpha": 0.1, "lam": 1.0}}
    short, longer = chains(raw, raw | {"data": raw["data"] | {"defender_harmful": {"source": str(long)}}})
    needs = [
        of_part(one, parts(one, "align", rows_to_try(one, "align"))[0], False).activations for one in (short, longer)
    ]
    assert needs[1] > 2 * needs[0]


def test_packed_rows_are_as_long_as_a_pack(inputs):
    raw = experiment(inputs, finetune="none")
    packed = json.loads(json.dumps(raw))
    packed["align"]["training"] |= {"packing": True, "max_length": 256}
    plain, full = (
        of_part(one, parts(one, "align", rows_to_try(one, "align"))[0], False) for one in chains(raw, packed)
    )
    assert full.activations > 2 * plain.activations


def test_several_gpus_give_what_the_smallest_has(monkeypatch):
    class Card:
        def __init__(self, total_memory):
            self.total_memory = total_memory

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: Card([80, 40, 24][i]))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (50, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 20)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5)
    assert [checkpointing.free_on_each(n) for n in (1, 2, 3)] == [65, 40, 24]


@pytest.mark.parametrize("name", ["1b, lora", "135m, lora", "135m, full", "1b, full"])
def test_the_room_covers_what_was_measured(name):
    """Without checkpointing, on an H200: what was taken lies within the estimate times ROOM."""
    measured = EVIDENCE["checkpointing"]["figures"][name]["off"]
    assert measured["peak_bytes"] < checkpointing.ROOM * measured["predicted_bytes"]
