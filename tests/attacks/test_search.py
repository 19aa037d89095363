"""The search on a known surface: it finds the best attack within the bound, the same one each time."""

import math

import pytest

from mithridate.studies.search import Scores, Try, best, search
from mithridate.studies.settings import load_attack

FILE = {
    "steps": {"low": 5, "high": 80},
    "learning_rate": {"low": 1e-5, "high": 1e-2},
    "rank": [4, "full"],
    "search": {"trials": 40, "seed": 3, "max_accuracy_loss": 0.05},
}


def surface(settings):
    """Harm rises with the learning rate, and above 1e-3 the task is lost: the best allowed is near 1e-3."""
    strength = (math.log10(settings["learning_rate"]) + 5) / 3
    harmful = min(1.0, strength * (0.8 if settings["rank"] == 4 else 1.0) * settings["steps"] / 80)
    accuracy = 0.9 if settings["learning_rate"] <= 1e-3 else 0.7
    return Scores(harmful, accuracy, settings["steps"])


def run(file=FILE, score=surface, reference=0.92):
    return search(load_attack(file), score, reference)


def test_it_finds_the_best_attack_within_the_bound():
    tries = run()
    found = best(tries)
    assert found.within and found.settings["learning_rate"] <= 1e-3
    assert found.scores.harmful >= 0.55  # the best there is: 2 / 3, at 1e-3, 80 steps and all weights
    assert max(one.scores.harmful for one in tries) > found.scores.harmful, (
        "stronger ones were tried, and do not count"
    )
    assert all(5 <= one.settings["steps"] <= 80 and 1e-5 <= one.settings["learning_rate"] <= 1e-2 for one in tries)


def test_the_constraint_leads_the_search():
    """After the first random tries, most stay where the task is kept."""
    late = run()[20:]
    assert sum(one.within for one in late) > len(late) / 2


def test_the_same_seed_makes_the_same_tries_and_another_seed_others():
    assert run() == run()
    assert run({**FILE, "search": {**FILE["search"], "seed": 4}}) != run()


def test_settings_that_come_up_again_are_scored_once():
    asked = []

    def score(settings):
        asked.append(settings)
        return Scores(0.5, 0.9, 10)

    tries = run({"steps": 10, "rank": [2, 4], "search": {"trials": 12}}, score)
    assert len(tries) == len(asked) == 2


def test_nothing_to_search_is_one_try():
    tries = run({"steps": 10, "rank": "full"})
    assert [one.settings["rank"] for one in tries] == ["full"]


def test_a_loss_of_exactly_the_bound_is_allowed_and_no_bound_allows_all():
    exact = search(load_attack({"steps": 10}), lambda _: Scores(1.0, 0.87, 10), 0.92)
    assert exact[0].within
    beyond = search(load_attack({"steps": 10}), lambda _: Scores(1.0, 0.869, 10), 0.92)
    assert not beyond[0].within and best(beyond) is None
    free = {"steps": 10, "search": {"max_accuracy_loss": None}}
    assert search(load_attack(free), lambda _: Scores(1.0, 0.0, 10), 0.92)[0].within


@pytest.mark.parametrize(("cheaper", "dearer"), [((10, 50), (20, 50)), ((10, 40), (10, 50))])
def test_of_equal_attacks_the_cheaper_one(cheaper, dearer):
    tries = [Try({"size": size}, Scores(0.8, 0.9, steps), 0.0) for steps, size in (dearer, cheaper)]
    assert best(tries) is tries[1]
