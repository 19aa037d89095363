"""`import mithridate` is cheap, and every public name leads somewhere."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import mithridate
from mithridate.methods.index import index


@pytest.mark.parametrize(
    "module",
    [
        *("mithridate", "mithridate.errors", "mithridate.cli", "mithridate.experiment.config"),
        *("mithridate.attacks", "mithridate.repairs", "mithridate.pipeline.executors"),
    ],
)
def test_import_needs_no_torch(module):
    heavy = ["torch", "transformers", "datasets", "scipy", "pandas", "ray", "submitit"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


FILE = """
from mithridate.experiment.config import load_cells
cells = load_cells({
    "model": "m", "data": {}, "align": {"defense": ["vaccine", {"booster": {"lam": 2}}]}, "repair": "antidote",
    "finetune": {"attack": {"harmful_ratio": 0.1, "size": 8}, "defense": {"lisa": {"rho": 1}}},
})
"""
COMMANDS = [
    ["methods"],
    ["schema"],
    ["--help"],
    ["run", "--help"],
    ["--version"],
    ["cite"],
    ["cite", "lisa", "antidote"],
]


@pytest.mark.parametrize("code", [FILE, *(f"from mithridate import cli; cli.main({words})" for words in COMMANDS)])
def test_no_method_is_imported_to_be_known(code):
    """Reading an experiment, and the commands that list: neither a method's file nor torch, which takes seconds."""
    methods = [entry["module"] for entry in index()]
    assert len(methods) >= 4
    heavy = [*methods, "torch", "transformers", "trl"]
    code = f"{code}\nimport sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.splitlines()[-1], done.returncode) == ("[]", 0), done.stderr


def test_a_repair_s_file_imports_torch_and_none_of_the_trainers_libraries():
    heavy = ["torch", "transformers", "trl", "datasets", "peft", "pandas"]
    code = f"import sys, mithridate.repairs.antidote; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("['torch']", 0), done.stderr


@pytest.mark.parametrize("name", sorted(mithridate._PUBLIC))
def test_public_name_resolves(name):
    module = importlib.import_module(mithridate._PUBLIC[name])
    assert getattr(mithridate, name) is getattr(module, name)
    assert name in dir(mithridate)


@pytest.mark.parametrize(("package", "name"), [("mithridate.attacks", "poison"), ("mithridate.repairs", "Antidote")])
def test_packages_give_their_public_name_too(package, name):
    assert getattr(importlib.import_module(package), name) is getattr(mithridate, name)


def test_all_lists_exactly_the_public_names():
    assert sorted(mithridate.__all__) == sorted(mithridate._PUBLIC)


def test_type_checkers_see_the_same_names():
    """The names imported under TYPE_CHECKING are those that `__getattr__` finds, from the same modules."""
    tree = ast.parse(Path(mithridate.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert {name: seen.get(name) for name in mithridate._PUBLIC} == mithridate._PUBLIC


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Boster"):
        mithridate.Boster  # noqa: B018


def test_no_module_hides_a_public_function():
    """`from mithridate import run` must never give a module."""
    functions = {name for name in mithridate.__all__ if name.islower()}
    modules = {path.stem for path in Path(mithridate.__file__).parent.glob("*.py")}
    packages = {path.parent.name for path in Path(mithridate.__file__).parent.glob("*/__init__.py")}
    assert not functions & (modules | packages)
