"""Ranks of a benchmark: what tests of every pair leave open, and the order and words of its standings."""

import numpy as np
import pytest

from mithridate.results.outcomes import Outcomes
from mithridate.statistics.ranks import rank_intervals
from mithridate.studies.benchmarks.standings import Entrant, standings


def test_ranks_are_what_the_shown_differences_leave_open():
    names = ["a", "b", "c"]
    assert rank_intervals(names, {}) == dict.fromkeys(names, (1, 3))
    assert rank_intervals(names, {("a", "b"): True, ("a", "c"): True}) == {"a": (1, 1), "b": (2, 3), "c": (2, 3)}
    assert rank_intervals(names, {("a", "c"): True}) == {"a": (1, 2), "b": (1, 3), "c": (2, 3)}


class Fixed(Outcomes):
    """Outcomes as given: {cell: {rate: {prompt: (bool | None, ...)}}}."""

    def __init__(self, given):
        super().__init__()
        self.given = given

    def answers(self, cell, rate, step=None):
        return self.given[cell].get(rate)


def cells(shares, seeds, prompts, rng, rates=("harmful_score", "accuracy", "benign_refusal", "incoherent")):
    """Models whose answers count with the given chance, independently."""
    return {
        f"{name}-{seed}": {
            rate: {f"{rate} {i}": (bool(rng.random() < share),) for i in range(prompts)} for rate in rates
        }
        for name, share in shares.items()
        for seed in range(seeds)
    }


def entrants(names, seeds, of=None):
    of = of or {}
    return [Entrant(name, "double", {}, [[f"{name}-{s}"] for s in range(seeds)], of.get(name)) for name in names]


def test_the_undefended_run_is_first_then_the_lowest_and_controls_have_no_rank():
    shares = {"undefended": 0.9, "weak": 0.8, "strong": 0.05, "strong, control": 0.6}
    given = cells(shares, 3, 120, np.random.default_rng(0))
    found = standings(entrants(shares, 3, {"strong, control": "strong"}), Fixed(given))
    assert [one.entrant.name for one in found] == ["undefended", "strong", "strong, control", "weak"]
    plain, strong, control, _ = found
    assert strong.rank_here == (1, 1) and control.rank_here is None and control.rank is None
    assert plain.against == dict.fromkeys(plain.against) and strong.against["harmful_score"]["difference"] < -0.75
    assert control.control["difference"] == pytest.approx(
        strong.rates["harmful_score"]["value"] - control.rates["harmful_score"]["value"]
    )
    assert plain.breaks_at == 0 and strong.breaks_at is None


def test_a_point_at_which_all_models_hold_is_not_where_one_breaks():
    shares = {"undefended gentle": 0.1, "undefended hard": 0.9}
    given = cells(shares, 2, 80, np.random.default_rng(1))
    one = Entrant("undefended", "double", {}, [[f"undefended gentle-{s}", f"undefended hard-{s}"] for s in range(2)])
    [found] = standings([one], Fixed(given))
    assert found.breaks_at == 1 and found.rates["harmful_score"]["value"] == pytest.approx(0.5, abs=0.1)
    assert found.rank is None  # two seeds


def test_unscored_answers_and_rates_that_are_not_there_count_for_nothing():
    given = cells({"undefended": 0.9, "other": 0.1}, 3, 60, np.random.default_rng(2), rates=("harmful_score",))
    for answers in given["other-1"]["harmful_score"]:
        given["other-1"]["harmful_score"][answers] = (None,)
    found = {one.entrant.name: one for one in standings(entrants(("undefended", "other"), 3), Fixed(given))}
    assert found["other"].rates["accuracy"] is None and found["other"].against["accuracy"] is None
    score = found["other"].rates["harmful_score"]
    assert score["prompts"] == 0 and score["value"] is None  # no prompt was scored with every seed
    assert found["other"].rank == (1, 2)


@pytest.mark.slow
def test_ranks_of_equal_methods_are_almost_never_narrowed():
    """Five equal methods, three seeds, 60 prompts: all ranks stay open in 95 % of draws."""
    rng, names = np.random.default_rng(3), ["undefended", *"abcd"]
    narrowed = {"rank": 0, "rank_here": 0}
    for _ in range(40):
        shares = dict.fromkeys(names, 0.5)
        given = cells(shares, 3, 60, rng, rates=("harmful_score",))
        found = standings(entrants(names, 3), Fixed(given))
        for kind in narrowed:
            narrowed[kind] += any(getattr(one, kind) != (1, len(names)) for one in found)
    assert narrowed["rank"] <= 6 and narrowed["rank_here"] <= 6, narrowed


def test_four_seeds_that_differ_widely_are_ranked_over_seeds():
    rng = np.random.default_rng(4)
    given = cells({"undefended": 0.9, "other": 0.1}, 4, 200, rng)
    found = standings(entrants(("undefended", "other"), 4), Fixed(given))
    assert [one.rank for one in found] == [(2, 2), (1, 1)]
