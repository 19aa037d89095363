"""The pages say what the code does: names exist, examples parse, links lead somewhere, no method is missing."""

import ast
import importlib
import inspect
import pkgutil
import re
import shlex
from pathlib import Path
from typing import Any

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


def commands_in(text: str) -> list[list[str]]:
    """The words of each `mithridate` command of a shell's text, without its program and its comment."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    found = [line.strip().removeprefix("$ ") for line in lines]
    return [shlex.split(line, comments=True)[1:] for line in found if line.startswith("mithridate ")]


def require_commands(text: str) -> None:
    """Asserts that the commands, and their options, are there."""
    from typer.main import get_command

    from mithridate.cli import app

    for words in commands_in(text):
        command: Any = get_command(app)
        while words and words[0] in getattr(command, "commands", ()):
            command = command.commands[words.pop(0)]
        assert not re.match(r"[a-z]\w*$", (words or [""])[0]) or not hasattr(command, "commands"), words
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        given = {word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)}
        assert given <= options | {"--help", "--install-completion"}, words


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for block in blocks(page, "(?:bash|console|sh)"):
        require_commands(block)
        assert set(re.findall(r"^\$? ?make ([\w-]+)", block, re.MULTILINE)) <= targets


def test_the_release_job_is_one_and_its_commands_exist():
    [job] = yaml.safe_load((ROOT / "examples" / "release.yml").read_text(encoding="utf-8"))["jobs"].values()
    runs = [step["run"] for step in job["steps"] if "run" in step]
    for text in runs:
        require_commands(text)
    said = [words[0] for text in runs for words in commands_in(text)]
    assert said == ["run", "gate", "export", "export"]  # nothing is exported that the gate did not pass
    kept = next(step["with"]["path"] for step in job["steps"] if "upload-artifact" in step.get("uses", "")).split()
    assert all(any(path in text for text in runs) for path in kept)


def test_a_command_or_an_option_that_is_not_there_is_found():
    require_commands("mithridate run a.yaml -o seed=1 \\\n  --out x  # what comes\nls --nowhere")
    for wrong in ("mithridate runn a.yaml", "mithridate run a.yaml --output x", "mithridate store lss"):
        with pytest.raises(AssertionError):
            require_commands(wrong)


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
