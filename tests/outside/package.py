"""The package in tests/fixtures/outside as an installed one, without pip."""

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mithridate.methods import registry
from mithridate.results import relations
from tests.pipeline.small import experiment, write_inputs

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "tests" / "fixtures" / "outside"
PROJECT = tomllib.loads((SOURCE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GROUPS: dict[str, dict[str, str]] = PROJECT["entry-points"]


def write_distribution(
    folder: Path, name: str = PROJECT["name"], groups: Mapping[str, Mapping[str, str]] = GROUPS
) -> Path:
    """What pip leaves in site-packages of a package's declarations."""
    info = folder / f"{name}-{PROJECT['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {PROJECT['version']}\n")
    sections = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in of.items()) for group, of in groups.items()]
    (info / "entry_points.txt").write_text("\n\n".join(sections) + "\n")
    return folder


@contextmanager
def on_the_path(*folders: Path) -> Iterator[None]:
    """What lies in these folders is installed, here and in the processes that are started."""
    with pytest.MonkeyPatch.context() as patch:
        for folder in folders:
            patch.syspath_prepend(folder)
        inherited = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
        patch.setenv("PYTHONPATH", os.pathsep.join([*map(str, folders), *inherited]))
        _forget()
        try:
            yield
        finally:
            _forget()


def _forget() -> None:
    registry.installed.cache_clear()
    relations.method_facts.cache_clear()


def with_all_of_it(folder: Path) -> dict[str, Any]:
    """An experiment that names all that the package adds but its judge; `folder` is made, for its inputs."""
    inputs = write_inputs(folder)
    for name, count in (("task", 8), ("task_test", 4)):
        rows = [{"number": str(i + 10 * (name == "task")), "label": ("even", "odd")[i % 2]} for i in range(count)]
        (inputs / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return experiment(
        inputs,
        data__task__name="parity",
        finetune__attack={"kind": "repeated", "rows_of_it": 2, "times": 4},
        finetune__defense={"stayclose": {"rho": 0.5}},
        repair={"fade": {"keep": 0.25}},
        evaluate={"protocol": "outside/hs-1"},
    )
