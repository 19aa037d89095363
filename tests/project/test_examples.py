"""The examples: the defense of a dozen lines, as CONTRIBUTING and docs/add_a_defense.md print it, runs and does what
it says; what the files ask for is nothing that a run would refuse."""

import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig

from mithridate import DefenseTrainer
from mithridate.cli import main
from tests.project.test_docs import blocks
from tests.tiny import tiny_llama, tiny_tokenizer

ROOT = Path(__file__).parents[2]


def example(page: str) -> str:
    [block] = [block for block in blocks(ROOT / page, "python") if "class StayClose" in block]
    return block


@pytest.fixture
def setting(tmp_path):
    """What the examples take as given: a model, training arguments, rows and a tokenizer."""
    rows = [
        {"prompt": [{"role": "user", "content": n}], "completion": [{"role": "assistant", "content": 2 * n}]}
        for n in "1234"
    ]
    return {
        "model": tiny_llama(torch.float64),
        "args": arguments(tmp_path, max_steps=2),
        "rows": Dataset.from_list(rows),
        "tokenizer": tiny_tokenizer(),
    }


def arguments(folder: Path, max_steps: int, accumulation: int = 1) -> SFTConfig:
    """SGD without clipping; each optimizer step sees all four rows."""
    return SFTConfig(
        str(folder),
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        max_steps=max_steps,
        per_device_train_batch_size=4 // accumulation,
        gradient_accumulation_steps=accumulation,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


def moved(setting, args: SFTConfig, defense=None) -> dict[str, torch.Tensor]:
    """Trains a fresh model; each weight's way from where it began."""
    start = tiny_llama(torch.float64).state_dict()
    model, rows, tokenizer = tiny_llama(torch.float64), setting["rows"], setting["tokenizer"]
    DefenseTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer, defense=defense).train()
    return {name: weight - start[name] for name, weight in model.state_dict().items()}


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/add_a_defense.md"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_stay_close_adds_the_gradient_of_its_penalty(setting, tmp_path, page, accumulation):
    """Two steps of SGD: the second differs from plain training by lr * rho * (w1 - w0), and by nothing else."""
    names = dict(setting)
    exec(compile(example(page), page, "exec"), names)
    one = moved(setting, arguments(tmp_path, 1, accumulation))
    two = moved(setting, arguments(tmp_path, 2, accumulation))
    close = moved(setting, arguments(tmp_path, 2, accumulation), names["StayClose"](rho=2.0))
    for name in two:
        torch.testing.assert_close(close[name], two[name] - 0.1 * 2.0 * one[name], rtol=1e-5, atol=1e-7)
    assert max(float((close[name] - two[name]).abs().max()) for name in two) > 1e-3


def test_the_contributing_example_trains(setting):
    names = dict(setting)
    exec(compile(example("CONTRIBUTING.md"), "CONTRIBUTING.md", "exec"), names)
    assert names["trainer"].state.global_step == 2


def files() -> list[Path]:
    """The experiments and benchmarks in examples/ that need no data from elsewhere."""
    found = [*(ROOT / "examples").glob("*.yaml"), *(ROOT / "examples/benchmarks").glob("*.yaml")]
    return sorted(path for path in found if not re.search(r"source: (data/|hf:)", path.read_text(encoding="utf-8")))


@pytest.mark.slow
@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_the_files_pass_their_dry_run(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    command = "benchmark" if path.parent.name == "benchmarks" else "run"
    assert main([command, str(path), "--dry-run"]) == 0, capsys.readouterr().err
