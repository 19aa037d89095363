"""Nothing knows a method by its name outside its own file: what reads methods reads what their classes state."""

import re
from pathlib import Path

import pytest

import mithridate
from mithridate.methods.index import index

PACKAGE = Path(mithridate.__file__).parent
OWN = {f"{entry['module'].partition('.')[2].replace('.', '/')}.py" for entry in index()}
# The papers' four names, as words, in any case and as parts of identifiers (`VACCINE`, `_lisa`, `boosters_code`).
NAMES = re.compile(r"(?<![a-z])(vaccine|booster|lisa|antidote)(?![a-z])", re.IGNORECASE)

# Where they may stand, and why. Nothing is read from such a place but by whoever asks for it.
ALLOWED = {
    "__init__.py": "the public names that users import",
    "repairs/__init__.py": "a public name that users import",
    "protocols/book.py": "the papers' protocols are called after their methods, and their quirks are the papers'",
    "studies/presets/book.py": "the names of the papers' presets",
    "data/tasks/agnews.py": "a docstring on the papers' protocols",
    "data/tasks/sst2.py": "a docstring on the papers' protocols",
    "data/tasks/gsm8k.py": "a docstring on the papers' protocols",
    "generation/templates.py": "a docstring on the papers' protocols",
    "judges/coherence.py": "the rule HS+ is that of a paper's code, and says so",
    "rules/coherence.py": "the rule HS+ is that of a paper's code, and says so",
    "attacks/poisoning.py": "a docstring on the papers' attack",
    "data/embedded/__init__.py": "a docstring on a paper's setting",
    "experiment/roles.py": "a docstring on a paper's setting",
}


def named(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return [f"{i}: {line.strip()}" for i, line in enumerate(text.splitlines(), 1) if NAMES.search(line)]


def files() -> dict[str, Path]:
    found = (path for suffix in ("py", "j2", "js", "css") for path in PACKAGE.rglob(f"*.{suffix}"))
    return {path.relative_to(PACKAGE).as_posix(): path for path in found}


@pytest.mark.parametrize("name", sorted(files().keys() - OWN - ALLOWED.keys()))
def test_no_file_names_a_method(name):
    assert named(files()[name]) == []


def test_the_exceptions_are_needed():
    assert [name for name in ALLOWED if name not in files() or not named(files()[name])] == []


def test_a_name_would_be_seen(tmp_path):
    """The pattern finds what it is there for, in each form in which code would have it."""
    seen = [
        'if method == "booster":',
        "VACCINE = 1",
        "import Lisa",
        "def _antidote(x):",
        "lisa.rho",
        "x = vaccine_step()",
    ]
    assert all(NAMES.search(line) for line in seen)
    assert not NAMES.search("vaccines") and not NAMES.search("list")
