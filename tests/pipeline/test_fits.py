"""What fits a GPU by the estimate, on a planted one: what `doctor` says of it, and what is refused before loading."""

import json
import types

import pytest
import torch

from mithridate import environment
from mithridate.cli import about, main
from mithridate.errors import InputError, MithridateError, UnsupportedSetup
from mithridate.estimate import estimate
from mithridate.estimate.trace import SIZES, config_of
from mithridate.models.memory import to_gpu
from mithridate.pipeline import fits
from mithridate.pipeline.runner import run
from mithridate.training.trainer import DefenseTrainer
from tests.pipeline.small import experiment, stages, write_inputs

GIB = 2**30


def test_the_card_that_a_training_gets_decides(monkeypatch):
    plant(monkeypatch, ("first", 80 * GIB), ("second", 24 * GIB))
    assert fits.smallest_card(1) == 80 * GIB and fits.smallest_card(2) == fits.smallest_card() == 24 * GIB
    assert fits.smallest_card(4) == 24 * GIB


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def plant(monkeypatch, *cards):
    """GPUs by name and bytes of memory, as torch tells of them."""
    found = [types.SimpleNamespace(name=name, total_memory=memory) for name, memory in cards]
    for name, value in {
        "is_available": lambda: bool(found),
        "device_count": lambda: len(found),
        "get_device_name": lambda i: found[i].name,
        "get_device_properties": lambda i: found[i],
        "is_bf16_supported": lambda: True,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)


@pytest.fixture
def rows(monkeypatch):
    """The cells of each row of the table that `doctor` prints, by the row's first."""
    found = []

    def kept(table):
        found.extend(zip(*(column.cells for column in table.columns)))

    monkeypatch.setattr(about, "print_table", kept)
    return found


def test_the_largest_that_fits_is_by_the_estimate(monkeypatch):
    asked, real = [], fits.estimate

    def counted(config, setup):
        asked.append(config.hidden_size)
        return real(config, setup)

    monkeypatch.setattr(fits, "estimate", counted)
    memory, found = 24 * GIB, fits.largest(24 * GIB)
    assert found == {"LoRA": "8b", "QLoRA (4 bit)": "8b", "all weights": "1b"}
    assert asked == [4096, 4096, 2048]  # one estimate a kind: larger ones have no room for their weights alone
    for kind, size in found.items():
        assert real(config_of(size), fits.KINDS[kind]).total <= fits.SHARE * memory
    assert fits.largest(GIB // 2) == dict.fromkeys(found)
    assert fits.in_words(GIB // 2) == "LoRA: none; QLoRA (4 bit): none; all weights: none"


def test_the_weights_of_the_sizes():
    """As published (tests/estimate holds what is counted to the same); no estimate is below what is skipped by."""
    found = {size: fits.weights_of(size) for size in SIZES}
    assert found == {"1b": 1235814400, "3b": 3212749824, "8b": 8030261248, "70b": 70553706496}
    for kind, setup in fits.KINDS.items():
        assert estimate(config_of("1b"), setup).total > found["1b"] * fits._LEAST_BYTES[kind]


def test_doctor_names_the_cards_and_what_fits(monkeypatch, rows, tmp_path):
    """Without being asked to load anything, where a driver is."""
    driver = tmp_path / "version"
    driver.write_text("NVRM")
    monkeypatch.setattr(environment, "_DRIVER", driver)
    plant(monkeypatch, ("NVIDIA L4", 22 * GIB), ("NVIDIA A100", 80 * GIB))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    main(["doctor"])
    assert [row for row in rows if row[0] == "gpu"] == [
        ("gpu", "NVIDIA L4", "22 GiB of memory, CUDA 13.0"),
        ("gpu", "NVIDIA A100", "80 GiB of memory, CUDA 13.0"),
    ]
    assert ("bfloat16", "in hardware", "") in rows
    assert ("trains", fits.in_words(22 * GIB), fits.ASSUMED) in rows and "1 x 512 tokens" in fits.ASSUMED


@pytest.mark.parametrize(
    ("cuda", "warned", "why"),
    [
        (None, "", "this PyTorch is built without CUDA; install one with it"),
        (
            "13.0",
            "CUDA initialization: The NVIDIA driver on your system is too old",
            "driver on your system is too old",
        ),
    ],
)
def test_a_driver_without_cuda(cuda, warned, why, monkeypatch, tmp_path, rows, inputs, caplog):
    import warnings

    driver = tmp_path / "version"
    driver.write_text("NVRM")
    monkeypatch.setattr(environment, "_DRIVER", driver)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(warned and warnings.warn(warned, stacklevel=2)))
    with pytest.raises(UnsupportedSetup, match=why) if cuda is None else pytest.raises(InputError, match=why):
        changes = {"accelerate": "fsdp2", "processes": 2} if cuda is None else {"accelerate": "ddp"}
        run(experiment(inputs, **changes), out=tmp_path / "out", progress=False)
    assert why in caplog.text or cuda is not None  # a run says it as well, and computes on the CPU
    assert main(["doctor"]) == 1
    [gpu] = [row for row in rows if row[0] == "gpu"]
    assert gpu[1] == "none" and why in gpu[2]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert environment.gpu_problem() is None


def test_without_a_driver_there_is_no_problem(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "_DRIVER", tmp_path / "none")
    assert environment.gpu_problem() is None


def test_a_card_too_small_is_refused_before_loading(inputs, store, tmp_path, monkeypatch):
    from mithridate import models

    loaded = []
    monkeypatch.setattr(models, "load_model", lambda *a, **k: loaded.append(a))
    monkeypatch.setattr(fits, "smallest_card", lambda processes=None: 700_000)
    raw = experiment(inputs, finetune="none")
    raw["align"]["training"]["per_device_train_batch_size"] = 8
    raw["align"]["training"]["gradient_checkpointing"] = False
    with pytest.raises(InputError) as error:
        run(raw, out=tmp_path / "out", until="align", progress=False)
    said = str(error.value)
    assert "align: needs about" in said and "the one here has 0.0 GiB" in said and "Such a GPU trains" in said
    assert loaded == [] and stages(store) == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["training", "loading"])
def test_memory_that_ends_all_the_same_is_one_error(place, inputs, tmp_path, monkeypatch):
    """Where the estimate was too low, or something else is on the card."""

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd more")

    if place == "training":
        monkeypatch.setattr(DefenseTrainer, "train", full)
        with pytest.raises(MithridateError, match=r"^.*out of memory in training .*2\.00 GiB.*4 bit") as error:
            run(experiment(inputs, finetune="none"), out=tmp_path / "out", until="align", progress=False)
        assert "And more" not in str(error.value)
    else:
        model = torch.nn.Linear(2**10, 2**8, bias=False)
        assert to_gpu(model, "mine") is model
        monkeypatch.setattr(torch.nn.Linear, "to", full)
        with pytest.raises(MithridateError, match=r"^mine: its weights are 0\.0 GiB.*CUDA_VISIBLE_DEVICES=''"):
            to_gpu(model, "mine")


def test_what_would_fit_is_named_with_its_figure(inputs, tmp_path, monkeypatch):
    raw = experiment(inputs, finetune="none")
    raw["align"]["training"] |= {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    sizes = {"whole": 40 * GIB, "one row": 20 * GIB, "4 bit": 30 * GIB, "both": 10 * GIB}

    def needs(chain, part, checkpointed, **training):
        quantised, single = bool(part.job.base.quantization), bool(training)
        return sizes[("both" if single else "4 bit") if quantised else "one row" if single else "whole"]

    monkeypatch.setattr(fits, "_needs", needs)
    monkeypatch.setattr(fits, "smallest_card", lambda processes=None: 24 * GIB)
    monkeypatch.setattr(fits, "in_words", lambda memory: "LoRA: up to 8B")
    with pytest.raises(InputError) as error:
        run(raw, out=tmp_path / "out", until="align", progress=False)
    said = str(error.value)
    assert "needs about 40.0 GiB on a GPU by the estimate, and the one here has 24.0 GiB" in said
    assert "per_device_train_batch_size: 1 and gradient_accumulation_steps: 16 (20.0 GiB)" in said
    assert "both together (10.0 GiB)" in said and "30.0 GiB" not in said


def test_what_is_over_by_the_estimates_error_is_not_refused(inputs, store, tmp_path, monkeypatch):
    monkeypatch.setattr(fits, "_needs", lambda *a, **k: round(1.1 * GIB))
    monkeypatch.setattr(fits, "smallest_card", lambda processes=None: GIB)
    run(experiment(inputs, finetune="none"), out=tmp_path / "out", until="align", progress=False)
    assert len(stages(store, "align")) == 1


@pytest.mark.parametrize("problem", [UnsupportedSetup("depends on values", "measure"), TypeError("no such field")])
def test_what_cannot_be_counted_is_not_refused(problem, inputs, store, tmp_path, monkeypatch):
    def needs(*args, **kwargs):
        raise problem

    monkeypatch.setattr(fits, "_needs", needs)
    monkeypatch.setattr(fits, "smallest_card", lambda processes=None: 1)
    run(experiment(inputs, finetune="none"), out=tmp_path / "out", until="align", progress=False)
    assert len(stages(store, "align")) == 1


def test_measured_figures_bear_out_when_a_training_is_refused():
    """On an H200 no estimate was further above what was taken than what a training is refused beyond."""
    evidence = json.loads((fits_root() / "benchmarks" / "gpu_evidence.json").read_text())["sections"]
    for found in evidence["checkpointing"]["figures"].values():
        for one in (found["on"], found["off"]):
            assert one["predicted_bytes"] < fits.OVER * one["peak_bytes"]


def fits_root():
    from pathlib import Path

    return Path(__file__).parents[2]
