"""What was kept of another package's code is not taken for what its edited code would make."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.outside.package import SOURCE, with_all_of_it, write_distribution

KEYS = """
import json, sys
from pathlib import Path
from mithridate.experiment.config import load_experiment
from mithridate.pipeline.experiments import stages_of
chain = stages_of([load_experiment(json.loads(sys.argv[1]))], Path.cwd(), "e", False)[0]
stages = [*chain.stages(), chain.evaluation("repair")]
print(json.dumps({stage.name: [stage.key, stage.config.get("code")] for stage in stages}))
"""


@pytest.fixture
def keys(tmp_path):
    """The key of each stage, and what it holds of outside code, with the package as it is now."""
    made = with_all_of_it(tmp_path / "inputs")
    site, source = write_distribution(tmp_path / "site"), tmp_path / "source"
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__"))
    path = os.pathsep.join([str(site), str(source), *sys.path])

    def found():
        environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", KEYS, json.dumps(made)], capture_output=True, text=True, env=environment, check=True
        )
        return json.loads(done.stdout)

    return found, source / "outside"


def test_edited_code_makes_other_stages(keys):
    found, package = keys
    before = found()
    assert before == found()
    assert before["align"][1] is None  # this package's own code alone
    assert list(before["finetune"][1]) == ["attacks.repeated", "defenses.stayclose"]
    assert list(before["repair"][1]) == ["repairs.fade"]
    assert list(before["evaluate"][1]) == ["protocols.outside/hs-1", "tasks.parity"]
    (package / "defense.py").write_text((package / "defense.py").read_text() + "\n# as good as new\n")
    after = found()
    assert after["align"] == before["align"]
    assert all(after[name][0] != before[name][0] for name in ("finetune", "repair", "evaluate"))
    assert all(code.startswith("outside 1.0 ") for code in after["finetune"][1].values())


def test_a_version_of_its_own_does_not_hide_a_tasks_code(keys):
    found, package = keys
    file = package / "task.py"
    file.write_text(file.read_text().replace('version="1"', 'version="2"'))
    raised = found()
    assert 'version="2"' in file.read_text() and raised["evaluate"][1]["tasks.parity"].startswith("outside 1.0 ")
    file.write_text(file.read_text() + "\n# another rule\n")
    assert found()["evaluate"][0] != raised["evaluate"][0]


def test_only_the_packages_own_files_count(keys):
    found, package = keys
    before = found()
    (package.parent / "beside.py").write_text("")
    assert found() == before
