"""Workflows, hooks and the documentation site: they parse, and name only what exists."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import mithridate

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def made(text: str) -> set[str]:
    """The targets of `make` that a script calls."""
    calls = re.findall(r"^\s*(?:exec )?make ([^\n|&;#]+)", text, re.MULTILINE)
    return {word for call in calls for word in call.split() if "=" not in word}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_whole(path):
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(job["timeout-minutes"] for job in workflow["jobs"].values())
    run = {target for step in steps for target in made(step.get("run", ""))}
    assert run and run <= TARGETS
    for action in (step["uses"] for step in steps if "uses" in step):
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), "an action is pinned by the commit of a release"


def test_a_target_that_does_not_exist_would_be_seen():
    assert made("  exec make lint docs PYTHON=python\n") == {"lint", "docs"}
    assert not made("make nonsense") <= TARGETS


def test_the_workflows_test_every_python_that_is_promised():
    jobs = {name: job for path in WORKFLOWS for name, job in yaml.safe_load(path.read_text())["jobs"].items()}
    assert jobs["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert "lowest-direct" in " ".join(step.get("run", "") for step in jobs["minimum"]["steps"])


def test_continuous_integration_makes_what_exists():
    assert {"lint", "docs", "test-all"} == made((ROOT / ".ci" / "run").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", [path for path in FORMS if path.name != "config.yml"], ids=lambda path: path.name)
def test_an_issue_form_has_what_github_asks_for(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form["name"] and form["description"]
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert fields and all(part["attributes"]["label"] for part in fields)
    assert len({part["id"] for part in fields}) == len(fields)


def test_hooks_are_tools_that_are_installed():
    [repo] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert {hook["id"] for hook in repo["hooks"]} == {"ruff", "ruff-format", "lint-imports", "codespell", "check-yaml"}
    for hook in repo["hooks"]:
        tool = hook["entry"].split()[0]
        assert tool.startswith(".venv/bin/") and Path(sys.executable).with_name(Path(tool).name).exists()


def test_the_site_has_every_page():
    """Of files that are missing from the navigation, or the other way round, MkDocs warns, and `--strict` fails."""
    text = re.sub(r"!!python/\S+", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    nav = {
        page
        for section in yaml.safe_load(text)["nav"]
        for entries in section.values()
        for e in entries
        for page in e.values()
    }
    hook = runpy_path(ROOT / "tools" / "docs_site.py")
    assert nav == {path.name for path in (ROOT / "docs").glob("*.md")} | set(hook["PAGES"].values())


def runpy_path(path: Path) -> dict:
    import runpy

    return runpy.run_path(str(path))


def test_every_public_name_is_in_the_reference():
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)
    assert {f"mithridate.{name}" for name in mithridate.__all__} <= set(listed)
    for name in listed:
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__, f"{name} has a docstring"


def test_links_of_a_page_lead_to_the_same_place_on_the_site():
    moved = runpy_path(ROOT / "tools" / "docs_site.py")["for_site"]
    text, copied = moved(
        "[a](../README.md#x) [b](gate.md) [c](../constraints.txt) [d](../tests) [e](https://x.y)", "docs/z.md"
    )
    assert text == "[a](index.md#x) [b](gate.md) [c](files/constraints.txt) d [e](https://x.y)"
    assert copied == {"constraints.txt"}
    assert moved("![p](docs/threat.svg) [q](docs/gate.md)", "README.md")[0] == "![p](threat.svg) [q](gate.md)"


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = sorted((tmp_path / "site").glob("*.html"))
    assert len(pages) > 20
    loaded = re.compile(
        r"<(?:script|img|iframe)[^>]*\ssrc=\"?https?:|<link[^>]*\shref=\"?https?:[^>]*rel=\"?stylesheet"
    )
    assert [page.name for page in pages if loaded.search(page.read_text(encoding="utf-8"))] == []
    reference = (tmp_path / "site" / "reference.html").read_text(encoding="utf-8")
    assert 'id="mithridate.DefenseTrainer"' in reference


def test_the_extras_of_the_makefile_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    [installed] = re.findall(r"-e '\.\[([\w,-]+)\]'", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert set(installed.split(",")) <= set(extras)
