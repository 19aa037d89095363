"""What another package adds is known by name at once, and imported when it is named; what is wrong is one error."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from mithridate import cli, judges
from mithridate.data.tasks import TASKS, prompt_set, task
from mithridate.errors import InputError
from mithridate.experiment.config import load_experiment, with_defaults
from mithridate.experiment.schema import experiment_schema
from mithridate.judges.base import Item
from mithridate.methods import CONTRACT, Defense, by_name
from mithridate.methods.index import facts
from mithridate.protocols import PROTOCOLS, protocol
from tests.outside.package import GROUPS, ROOT, SOURCE, on_the_path, write_distribution
from tests.pipeline.small import experiment

PAGES = {"defense": "defenses", "repair": "repairs", "attack": "attacks"}
PAGES |= {name: f"{name}s" for name in ("judge", "task", "protocol")}


def test_each_kind_is_found(outside):
    assert issubclass(by_name("defenses")["stayclose"], Defense)
    assert by_name("repairs")["fade"].without_data().keep == 0.5
    assert by_name("attacks")["repeated"].without_data(times=3).times == 3
    [(_, told)] = judges.judge("first-word").judge([Item("How?", "No, never.")])
    assert told.verdict == "refused"
    assert task("parity") is prompt_set("parity") is TASKS["parity"]
    assert protocol("outside/hs-1").judge.name == "first-word" and "outside/hs-1" in PROTOCOLS


def test_each_page_has_one_block_which_runs_and_is_a_file_of_the_package():
    """So a whole run of the package (test_run.py) is one of the pages."""
    for name, group in PAGES.items():
        page = (ROOT / "docs" / f"add_{'an' if name == 'attack' else 'a'}_{name}.md").read_text(encoding="utf-8")
        file = (SOURCE / "outside" / f"{name}.py").read_text(encoding="utf-8")
        [block] = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
        assert block == file
        [(entry, where)] = GROUPS[f"mithridate.{group}"].items()
        assert f'[project.entry-points."mithridate.{group}"]\n' in page and f'"{where}"' in page and entry in page
        made: dict[str, Any] = {"__name__": f"page_{name}"}
        exec(compile(block, str(name), "exec"), made)
        assert where.partition(":")[2] in made


def test_a_method_is_one_file_and_one_line_of_its_package():
    files = sorted(path.name for path in (SOURCE / "outside").glob("*.py"))
    assert files == ["__init__.py", *sorted(f"{name}.py" for name in PAGES)]
    assert all(len(of) == 1 for of in GROUPS.values()) and len(GROUPS) == len(PAGES)


def test_the_commands_list_them_and_import_nothing(outside):
    code = (
        "import sys; from mithridate import cli; cli.main(['methods']); cli.main(['schema']); "
        "print([name for name in ('outside', 'torch', 'mithridate.defenses.lisa') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(
        re.search(rf"{entry}.*outside 1\.0.*{where}", done.stdout)
        for of in GROUPS.values()
        for entry, where in of.items()
    )


def test_the_schema_has_their_names(outside):
    schema = json.dumps(experiment_schema())
    assert all(f'"{name}"' in schema for name in ("stayclose", "fade", "first-word", "parity", "outside/hs-1"))


def test_the_commands_tell_all_of_one_that_is_named(outside, capsys):
    assert cli.main(["methods", "stayclose", "repeated"]) == 0
    said = capsys.readouterr().out
    assert "1 pass per step, 1 copy of the trained weights" in said and "fine-tuning" in said and "field times" in said
    assert cli.main(["cite", "fade", "stayclose"]) == 0
    said = capsys.readouterr().out
    assert said.index("@inproceedings{wiseft,") < said.index("@inproceedings{l2sp,")
    assert cli.main(["cite", "stayclos"]) == 3
    assert "did you mean `stayclose`" in capsys.readouterr().err


WRITTEN = {
    "future.py": "from outside.defense import StayClose\nclass Later(StayClose):\n    contract = {later}\n",
    "future_task.py": "from outside.task import TASK\ncontract = {later}\n",
    "broken.py": "raise RuntimeError('no such GPU')\n",
    "leaking.py": "from outside.attack import Repeated\n"
    "class Leaking(Repeated):\n    roles = {{'harmful': 'test_harmful'}}\n",
    "silent.py": "from outside.defense import StayClose\nclass Silent(StayClose):\n    def cost(self): return 1 / 0\n",
}


@pytest.fixture
def declared(outside, tmp_path):
    """Installs a package `other` with one entry point beside `outside`."""

    def declare(group, name, where):
        return on_the_path(
            write_distribution(tmp_path / "site", "other", {f"mithridate.{group}": {name: where}}), tmp_path
        )

    for name, text in WRITTEN.items():
        (tmp_path / name).write_text(text.format(later=CONTRACT + 1))
    return declare


@pytest.mark.parametrize(
    ("group", "name", "where", "message"),
    [
        ("defenses", "later", "future:Later", rf"of the package other was written against version {CONTRACT + 1} of"),
        ("tasks", "parity2", "future_task:TASK", rf"was written against version {CONTRACT + 1} of the contract"),
        ("defenses", "broken", "broken:Broken", "cannot be loaded: RuntimeError: no such GPU"),
        ("defenses", "fading", "outside.repair:Fade", "is not a Defense of mithridate"),
        ("defenses", "lisa", "outside.defense:StayClose", "mithridate has a `lisa` of its own"),
        ("defenses", "stayclose", "outside.repair:Fade", "of the package o.* has the same name"),
        ("repairs", "other", "outside.defense:StayClose", "is not a Repair of mithridate"),
        ("attacks", "leaking", "leaking:Leaking", "asks for the rows of test_harmful, which models are tested on"),
        ("judges", "other", "outside.task:TASK", "is not a judge: a dataclass is expected"),
        (
            "judges",
            "other",
            "outside.defense:StayClose",
            "is not a judge: it lacks kind, about, content_known, identity",
        ),
        ("tasks", "other", "outside.task:TASK", "has another name itself: parity"),
        ("tasks", "other", "outside.judge:FirstWord", "is not a Task"),
        (
            "protocols",
            "hs/mine",
            "outside.protocol:PROTOCOL",
            "a name from outside begins with its package's, as in other/mine",
        ),
        ("protocols", "other/hs-1", "outside.protocol:PROTOCOL", "has another name itself: outside/hs-1"),
        ("protocols", "other/hs-2", "outside.task:TASK", "is not a Protocol"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name_when_it_is_named(declared, group, name, where, message):
    with declared(group, name, where):
        known = {"judges": judges.REGISTRY, "tasks": TASKS, "protocols": PROTOCOLS}.get(group) or by_name(group)
        assert name in known
        with pytest.raises(InputError, match=message) as error:
            known[name]
        assert "\n" not in str(error.value) and f"mithridate.{group}" in str(error.value)


def test_one_that_cannot_say_what_it_costs_is_one_error(declared, capsys):
    with declared("defenses", "silent", "silent:Silent"):
        with pytest.raises(InputError, match=r"silent\.Silent cannot say what it costs or needs: ZeroDivisionError"):
            facts("defenses", "silent")
        assert cli.main(["methods"]) == 0  # which does not ask
        assert cli.main(["methods", "silent"]) == 3


def test_a_bad_plug_in_leaves_the_others_usable(declared):
    with declared("defenses", "broken", "broken:Broken"):
        assert by_name("defenses")["stayclose"].without_data().rho == 0.1
        assert by_name("defenses")["lisa"].__name__ == "Lisa"


def test_an_experiment_that_names_a_broken_one_gets_one_error(declared, tmp_path):
    made = experiment(tmp_path, finetune__defense="broken")
    with declared("defenses", "broken", "broken:Broken"):
        with pytest.raises(InputError, match=r"of the package other cannot be loaded: RuntimeError: no such GPU\.$"):
            with_defaults(load_experiment(made))
        with_defaults(load_experiment(experiment(tmp_path, finetune__defense="stayclose")))


def test_the_doctor_tells_which_are_broken(declared, capsys):
    with declared("defenses", "broken", "broken:Broken"):
        assert cli.main(["doctor", "--load"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "stayclose" in said and "no such GPU" in said
