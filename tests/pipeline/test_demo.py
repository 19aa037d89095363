"""The demo's recipe: that it tells the whole story, and that what it shows of its tuning is there."""

import json
from collections import Counter
from dataclasses import replace
from importlib import resources

import pytest

from mithridate.experiment.config import with_defaults
from mithridate.pipeline.experiments import undefended
from mithridate.studies.demo import _FIRST, demo_experiments


def _ratio(cell):
    return cell.finetune.attack.harmful_ratio


STORY = demo_experiments()
CELLS = [cell for cell in demo_experiments(full=True) if cell.seed == 0 and _ratio(cell) in (0.0, 0.1)]


def test_every_cell_is_a_valid_experiment():
    for cell in CELLS:
        with_defaults(cell)
        assert cell.evaluate.part == "test"


@pytest.mark.parametrize("cell", CELLS, ids=range(len(CELLS)))
def test_every_cell_has_its_undefended_twin_in_the_same_topology_and_attack(cell):
    twin = undefended(cell)
    assert any(
        (c.topology, c.align, c.finetune, c.repair, c.evaluate)
        == (twin.topology, twin.align, twin.finetune, {}, twin.evaluate)
        for c in (STORY if cell in STORY else CELLS)
    )


def test_the_story_is_that_of_all_four_methods_and_its_first_table_that_of_two():
    def methods(cells):
        return {name for c in cells for name in [*c.align.defense, *c.finetune.defense, *c.repair]}

    assert methods(STORY) == {"vaccine", "booster", "lisa", "antidote"} and methods(STORY[:_FIRST]) == {
        "lisa",
        "antidote",
    }
    assert {_ratio(cell) for cell in STORY} == {0.1}


def test_every_row_has_the_empty_system_turn():
    assert {cell.system for cell in CELLS} == {""}


def test_every_method_is_shown_attacked_and_with_no_harmful_rows():
    for ratio in (0.0, 0.1):
        shown = [c for c in CELLS if _ratio(c) == ratio]
        methods = {name for c in shown for name in [*c.align.defense, *c.finetune.defense, *c.repair]}
        assert methods == {"vaccine", "booster", "lisa", "antidote"}


def test_full_adds_scores_on_the_way_ratios_and_seeds_to_the_same_cells():
    full = demo_experiments(full=True)
    begin = [replace(cell, evaluate=replace(cell.evaluate, resistance=[])) for cell in full[: len(STORY)]]
    assert begin == STORY and {tuple(cell.evaluate.resistance) for cell in full} == {(10, 25)}
    assert {c.seed for c in full} == {0, 1, 2}
    assert len({c.finetune.attack.harmful_ratio for c in full}) >= 4


def test_the_tuning_log_has_the_chosen_settings_of_the_recipe():
    log = [
        json.loads(line) for line in resources.files("mithridate.resources.recipes").joinpath("tuning.jsonl").open()
    ]
    assert Counter(row["method"] for row in log) == dict.fromkeys(("vaccine", "booster", "lisa", "antidote"), 3)
    chosen = {row["method"]: row["settings"] for row in log if row["chosen"]}
    used = {}
    for cell in STORY:
        used |= cell.align.defense | cell.finetune.defense | cell.repair
    assert chosen == used
