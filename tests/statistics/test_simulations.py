"""The simulations of benchmarks/seeds.py at the sizes that the docs give, with fewer draws; and the docs' numbers."""

import json
from pathlib import Path

import pytest

from benchmarks.seeds import EQUAL, FALLS, LARGE, SEEN, SOME_SEEDS, UNEQUAL, coverage, null, power
from tests.statistics.simulate import error

ROOT = Path(__file__).parents[2]
DRAWS = 600


@pytest.mark.slow
@pytest.mark.parametrize("setup", SEEN + SOME_SEEDS)
def test_the_interval_of_four_seeds_covers(setup):
    found = coverage(*setup, seeds=4, draws=DRAWS)
    assert found["covers now"] >= 0.93
    assert found["width now"] <= found["width before"] + 0.12


@pytest.mark.slow
@pytest.mark.parametrize("setup", EQUAL + UNEQUAL)
def test_equal_means_are_seldom_told_apart_unless_the_spread_is_named(setup):
    found = null(*setup, seeds=4, draws=DRAWS)
    assert found["not named"] <= 0.06
    if setup in UNEQUAL:
        assert found["before"] > 0.06 and found["named"] > 0.08
    else:
        assert found["named"] <= 0.05 + error(0.05, DRAWS)


@pytest.mark.slow
@pytest.mark.parametrize(("setup", "least"), [*zip(FALLS, (0.62, 0.53, 0.76)), (LARGE[0], 0.97)])
def test_a_real_fall_is_found_as_often_as_the_docs_say(setup, least):
    assert power(*setup, seeds=4, draws=DRAWS)["shown"] >= least


def test_the_docs_give_the_numbers_of_the_results():
    found = json.loads((ROOT / "benchmarks" / "results" / "seeds.json").read_text())
    page = (ROOT / "docs" / "statistics.md").read_text()
    told = 0
    for row in (row for rows in found.values() if isinstance(rows, list) for row in rows if row["seeds"] == 4):
        mean, sd, *other = row["setup"]
        name = f"| {mean:g}, {sd:g}" + (f" and {other[0]:g}, {other[1]:g} |" if other else " |")
        lines = [line for line in page.splitlines() if line.startswith(name)]
        digits = 3 if "not named" in row else 2
        values = [row[key] for key in ("covers before", "covers now", "before", "not named", "shown") if key in row]
        assert any(all(f"{value:.{digits}f}" in line for value in values) for line in lines), (name, values)
        told += 1
    assert told == len(SEEN + SOME_SEEDS + EQUAL + UNEQUAL + FALLS + LARGE)
