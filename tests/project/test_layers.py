"""The rooms of the package import downwards only, and the linter that holds them sees what does not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(
        ROOT / "src/mithridate", folder / "src/mithridate", ignore=shutil.ignore_patterns("__pycache__", "*.jsonl")
    )
    return folder


def linted(checkout: Path) -> subprocess.CompletedProcess:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    path = os.environ | {"PYTHONPATH": str(checkout / "src")}
    return subprocess.run([sys.executable, "-c", code], cwd=checkout, env=path, capture_output=True, text=True)


def test_imports_point_downwards(checkout):
    done = linted(checkout)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("below", "statement"),
    [
        ("training/trainer.py", "from mithridate.report import words"),  # what every training process once did
        ("judges/rules.py", "from mithridate.experiment.config import Experiment"),
    ],
)
def test_an_upward_import_is_found_wherever_it_hides(checkout, below, statement):
    file = checkout / "src/mithridate" / below
    kept = file.read_text()
    file.write_text(f"{kept}\n\ndef planted():\n    {statement}\n")
    try:
        done = linted(checkout)
    finally:
        file.write_text(kept)
    assert done.returncode == 1 and "Imports point downwards BROKEN" in done.stdout
    assert f"mithridate.{below.removesuffix('.py').replace('/', '.')} -> " in done.stdout


def test_a_new_room_must_say_where_it_lies(checkout):
    room = checkout / "src/mithridate/cellar"
    room.mkdir()
    (room / "__init__.py").write_text("")
    try:
        done = linted(checkout)
    finally:
        shutil.rmtree(room)
    assert done.returncode == 1 and "cellar" in done.stdout
