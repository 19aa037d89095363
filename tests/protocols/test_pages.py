"""docs/protocols.md and docs/tasks.md say what the code does, and no more was exercised than they say."""

import pytest

from mithridate.data.hub import HUB
from mithridate.data.tasks import PROMPT_SETS
from tests.protocols import pages


@pytest.mark.parametrize("name", ["protocols", "tasks"])
def test_the_page_is_what_the_code_gives(name):
    written = (pages.DOCS / f"{name}.md").read_text(encoding="utf-8")
    made = {"protocols": pages.protocols_page, "tasks": pages.tasks_page}[name]()
    assert written == made, "run `python -m tests.protocols.pages`"


def test_every_prompt_set_says_how_it_was_exercised():
    assert set(pages.EXERCISED) == set(PROMPT_SETS)


def test_a_prompt_set_and_its_loader_name_the_same_place():
    loaded = {known.task: known.id for known in HUB.values() if known.task}
    assert {name: known.hub for name, known in PROMPT_SETS.items() if known.hub} == loaded
