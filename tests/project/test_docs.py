"""The pages say what the code does: names exist, examples parse, links lead somewhere, no method is missing."""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import yaml

import mithridate

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a page in one language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def methods() -> list[type]:
    """Every defense and repair of the package, found by importing all of it."""
    from mithridate import Defense
    from mithridate.repairs.base import Repair

    for package in ("defenses", "repairs"):
        folder = importlib.import_module(f"mithridate.{package}")
        for module in pkgutil.walk_packages(folder.__path__, f"mithridate.{package}."):
            importlib.import_module(module.name)
    found, todo = [], [Defense, Repair]
    while todo:
        children = [child for child in todo.pop().__subclasses__() if child.__module__.startswith("mithridate.")]
        found += children
        todo += children
    return [method for method in found if not inspect.isabstract(method)]


def test_every_method_is_in_the_paper_index():
    headings = re.findall(r"^## (\w+)", (ROOT / "docs" / "paper_index.md").read_text(encoding="utf-8"), re.MULTILINE)
    names = sorted(method.__name__ for method in methods())
    assert len(names) >= 4
    assert sorted(headings) == sorted([*names, "Left"])  # "Left out, and why"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_examples_parse_and_their_imports_exist(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mithridate":
                module = importlib.import_module(node.module)
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert not missing, f"{node.module} has no {missing}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_examples_call_with_arguments_that_exist(page):
    """`Booster(lambda_=5)` in an example would be caught here."""
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if not (
                isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in mithridate.__all__
            ):
                continue
            called = getattr(mithridate, node.func.id)
            if isinstance(called, type) and issubclass(called, Exception):  # which has no signature to look at
                assert not node.keywords
                continue
            parameters = inspect.signature(called).parameters
            if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                continue
            unknown = {keyword.arg for keyword in node.keywords} - {None, *parameters}
            assert not unknown, f"{node.func.id} takes no {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_experiments_are_valid(page):
    """Every YAML block that is an experiment (it names model and data) validates as one."""
    from mithridate.experiment.config import expand, load_experiment, with_defaults

    for block in blocks(page, "yaml"):
        experiment = yaml.safe_load(block)
        if {"model", "data"} <= experiment.keys():
            for cell in expand(load_experiment(experiment, [])):
                with_defaults(cell)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_exist(page):
    from typer.main import get_command

    from mithridate.cli import app

    verbs = set(get_command(app).commands)  # pyright: ignore[reportAttributeAccessIssue]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for block in blocks(page, "(?:bash|console|sh)"):
        assert set(re.findall(r"^\$? ?mithridate ([a-z]\w*)", block, re.MULTILINE)) <= verbs
        assert set(re.findall(r"^\$? ?make ([\w-]+)", block, re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), target


def test_every_public_name_is_documented():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [name for name in mithridate.__all__ if not re.search(rf"\b{name}\b", text)]
    assert not missing


def test_every_loader_states_its_licence_on_the_page():
    from mithridate.data.hub import HUB

    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    assert [name for name, known in HUB.items() if f"| `{name}` |" not in page] == []
    assert [name for name in HUB if HUB[name].licence.split(" (")[0].split(" by ")[0] not in page] == []
