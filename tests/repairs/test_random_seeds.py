"""A repair that draws draws anew at each seed of an experiment."""

import pytest

from mithridate.experiment.config import load_experiment
from mithridate.experiment.methods import repair_of
from mithridate.pipeline.experiments import stages_of
from tests.pipeline.small import experiment, write_inputs


@pytest.mark.parametrize("repair", [{"randommask": {"ratio": 0.1}}, {"antidote": {"ratio": 0.1, "score": "random"}}])
def test_the_experiments_seed_is_in_the_draws_and_in_the_key(tmp_path, repair):
    inputs = write_inputs(tmp_path)
    own = {**repair, **{name: {**fields, "seed": 5} for name, fields in repair.items()}}
    made = {
        (seed, settings is own): load_experiment(experiment(inputs, seed=seed, repair=settings))
        for seed in (0, 1, 2)
        for settings in (repair, own)
    }
    seeds = {at: repair_of(one, post_alignment=False)[1].seed for at, one in made.items()}
    assert (seeds[0, False], seeds[0, True]) == (0, 5)  # as they were at first
    assert len(set(seeds.values())) == 6
    stages = {at: chain.repair for at, chain in zip(made, stages_of(list(made.values()), tmp_path, "e", False))}
    assert [stages[seed, False].config.get("seed") for seed in (0, 1, 2)] == [None, 1, 2]
    assert len({stage.key for stage in stages.values()}) == 6


def test_a_repair_that_draws_nothing_is_the_same_at_each_seed(tmp_path):
    inputs = write_inputs(tmp_path)
    repairs = [
        repair_of(load_experiment(experiment(inputs, seed=seed, repair={"wiseft": {"a": 0.5}})), False)
        for seed in (0, 3)
    ]
    assert repairs[0] == repairs[1]
