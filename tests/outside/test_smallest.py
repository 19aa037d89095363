"""The smallest package of docs/add_a_task.md; apart from `test_names.py`, whose package has a task of that name."""

import re
import tomllib

from mithridate.data.tasks import TASKS, task
from tests.outside.package import ROOT, on_the_path, write_distribution


def test_the_smallest_package_of_a_task_is_two_files(tmp_path):
    page = (ROOT / "docs/add_a_task.md").read_text(encoding="utf-8")
    [file] = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    found = [tomllib.loads(text) for text in re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)]
    [project] = [one["project"] for one in found if "name" in one["project"]]
    (tmp_path / "parity.py").write_text(file)
    with on_the_path(write_distribution(tmp_path, project["name"], project["entry-points"])):
        assert task("parity").correct(" Even", {"label": "even"}) and "parity" in TASKS.plugins()
