"""Seeds put together, costs as ratios, sweeps over two fields, and the Pareto front."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from mithridate.report.groups import costs, front, over_seeds, sweeps
from mithridate.report.tables import _difference_entry, runs_cost_table
from mithridate.report.words import labels, trained_otherwise
from mithridate.results.decided import complete
from mithridate.results.outcomes import Outcomes
from mithridate.results.schema import lifted
from tests.report.synthetic import cell, grid_results, rate, read, records, sweep_results


@pytest.fixture(scope="module")
def grid():
    return complete(lifted(grid_results()), Outcomes())


def test_seeds_are_one_point_with_the_interval_of_the_statistics(grid):
    points = over_seeds(grid)
    assert len(grid["cells"]) == 69 and len(points) == 23
    assert sorted(name for point in points for name in point["cells"]) == sorted(c["id"] for c in grid["cells"])
    for group, point in itertools.product(grid["across_seeds"], points):
        if group["cells"] == point["cells"]:
            share = group["rates"]["harmful_score"]
            given = point["rates"]["harmful_score"]
            assert (given["value"], given["low"], given["high"]) == (share["value"], share["low"], share["high"])
            assert (given["seeds"], given["n"]) == (3, 112)
            assert point["paired"] is None or point["paired"]["p_value"] == group["paired"]["p_value"]
    assert not any(label.seed for label in labels(points).values())
    compared = [point["paired"] for point in points if point["paired"]]
    assert len(compared) == 16  # four methods at four ratios
    tested = [found for found in compared if found["p_value"] is not None]
    lowest = min(tested, key=lambda found: found["p_value"])
    assert lowest["p_holm"] == pytest.approx(min(1, len(tested) * lowest["p_value"]))
    assert {found["family"] for found in compared} == {"defenses"}


def test_refusals_and_broken_answers_come_from_the_records(grid):
    rows = [row for row in records(grid_results(), 112, 20, 4) if row["step"] is None]
    outcomes = Outcomes()
    for name in dict.fromkeys(row["cell"] for row in rows):
        outcomes.add(name, [row for row in rows if row["cell"] == name])
    points = over_seeds(complete(grid, outcomes))
    point = next(p for p in points if p["harmful_ratio"] == 0.1 and p["finetuning"] == "lisa")
    for rate_, kind, verdict in (("benign_refusal", "benign", "refused"), ("incoherent", "harmful", "incoherent")):
        of_set = [row["verdict"] == verdict for row in rows if row["cell"] in point["cells"] and row["set"] == kind]
        assert point["rates"][rate_]["value"] == pytest.approx(sum(of_set) / len(of_set))
        assert (point["rates"][rate_]["seeds"], point["rates"][rate_]["n"]) == (3, len(of_set) // 3)


def test_without_several_seeds_every_cell_is_its_own_point():
    cells = [cell(), cell(finetuning="lisa", score=0.2)]
    points = over_seeds(complete(lifted({"cells": cells}), Outcomes()))
    assert [point["rates"]["harmful_score"] for point in points] == [one["harmful_score"] for one in cells]
    none = lifted(grid_results(seeds=2, prompts=1))  # one prompt gives no interval
    assert len(over_seeds(none)) == len(none["cells"])


def test_costs_are_medians_and_ratios_to_the_undefended_run(grid):
    parts = ("alignment", "finetuning", "repair")
    found = {"".join(cost.cell[part] for part in parts): cost for cost in costs(grid["cells"])}
    assert len(found) == 5
    plain, booster, antidote = found["sftsftnone"], found["boostersftnone"], found["sftsftantidote"]
    assert plain.runs == 12 and plain.time_ratio is None
    assert plain.total == 66 + 32  # evaluation is not the method's
    assert booster.time_ratio == pytest.approx((3 * 66 + 32) / 98)
    assert antidote.time_ratio == pytest.approx((98 + 4) / 98)
    assert booster.memory_ratio == 1.0
    slow = cell(finetuning="lisa", seed=1)
    slow["stages"][1]["seconds"] = 64.0
    [lisa] = [cost for cost in costs([cell(), cell(finetuning="lisa"), slow]) if cost.plain]
    assert lisa.seconds["finetune"] == (32 + 64) / 2
    assert lisa.time_ratio == pytest.approx((66 + 48) / 98)


def test_nothing_is_compared_across_topologies_or_without_an_undefended_run():
    assert [c.plain for c in costs([cell(topology="single"), cell(finetuning="lisa", topology="double")])] == [
        None
    ] * 2
    assert costs([cell(finetuning="none", ratio=None)]) == []


def test_sweeps_are_found_and_sliced_by_the_other_fields():
    found = sweeps(over_seeds(complete(lifted(sweep_results()), Outcomes())))
    # Booster's two settings are the axes, for each of the attack's two learning rates
    assert [(s.x, s.y, s.fixed) for s in found] == [
        ("booster.lam", "booster.alpha", {"attack.learning_rate": 2e-4}),
        ("booster.lam", "booster.alpha", {"attack.learning_rate": 4e-4}),
    ]
    assert found[0].values(0) == [1, 5, 20] and found[0].values(1) == [0.01, 0.1, 1.0]
    assert len(found[0].cells) == 9
    assert found[0].cells[20, 0.1]["settings"] == {"booster": {"alpha": 0.1, "lam": 20}}


def test_the_harmful_ratio_is_a_field_and_one_field_makes_no_map():
    cells = [cell(ratio=ratio, finetuning="lisa", settings={"rho": rho}) for ratio in (0, 0.1) for rho in (0.1, 1)]
    for number, one in enumerate(cells):
        one["id"] += str(number)
    [sweep] = sweeps(cells)
    assert (sweep.y, sweep.x) == ("harmful_ratio", "rho")
    assert sweeps(cells[:2]) == [] and sweeps([]) == []
    # steps follow from the size: together they are one field
    sized = [{**cell(settings={}), "id": str(n), "attack": {"size": n, "max_steps": n // 4}} for n in (100, 200, 400)]
    assert sweeps(sized) == []


def test_a_field_may_be_a_list_and_variants_of_one_thing_each_make_no_map():
    def variant(number, size, **swept):
        return {**cell(settings={}), "id": str(number), "attack": {"size": size, "max_steps": 9}, "swept": swept}

    cells = [variant(f"{n}{steps}", n, steps=steps) for n in (100, 200) for steps in ([], [30, 60])]
    [sweep] = sweeps(cells)
    assert len(sweep.cells) == 4 and sweep.values(0) == ["[30, 60]", "[]"]
    assert len(sweeps(cells[:3])) == 1  # one is to come
    assert sweeps([*cells[:2], variant(3, 300, steps=[90]), variant(4, 400, steps=[])]) == []


def test_the_front_is_what_no_other_beats():
    def at(name, score, accuracy, **more):
        flat = {**cell(**more), "id": name, "harmful_score": rate(score, 100), "accuracy": rate(accuracy, 100)}
        return read(flat)[0]

    points = [at("a", 0.9, 0.9), at("b", 0.2, 0.8), at("c", 0.3, 0.8), at("d", 0.1, 0.5), at("e", 0.95, 0.85)]
    points.append(at("control", 0.0, 1.0, control="random-mask", repair="antidote"))
    points.append(at("unscored", 0, 0))
    points[-1]["rates"]["accuracy"] = {}
    assert [point["id"] for point in front(points)] == ["d", "b", "a"]
    twins = [at("a", 0.5, 0.5), at("b", 0.5, 0.5)]
    assert len(front(twins)) == 2 and front([]) == []


def test_a_note_stands_where_seeds_do_not_differ():
    entry = _difference_entry({"difference": -0.06, "low": -0.06, "high": -0.06, "p_value": None, "note": "all alike"})
    assert entry.text == "−6" and entry.note == "all alike"


def test_costs_of_runs_compare_with_the_same_seed(grid):
    cells = [
        one | {"stages": [stage | {"seconds": 100.0 * (1 + one["seed"])} for stage in one["stages"]]}
        for one in grid["cells"]
    ]
    run: Any = SimpleNamespace(cells=cells, names=labels(cells))
    table = runs_cost_table(run)
    before = [row for one, row in zip(cells, table.rows) if one["finetuning"] == "none" and one["alignment"] == "sft"]
    assert len(before) == 3 and all(row[1].note.split(",")[0] == "× 1" for row in before)


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ({"r": 2, "target_modules": ["q_proj", "v_proj"]}, ["rank 2 on q v"]),
        ({"r": 2, "target_modules": "all-linear"}, ["rank 2 on all-linear"]),
        ({"r": 2}, ["rank 2"]),
        ({"lora_alpha": 4}, ["another adapter"]),
        ("full", ["all weights"]),
        (None, []),
    ],
)
def test_an_attacks_own_adapter_in_words(adapter, said):
    assert trained_otherwise({"attack": {"kind": "scheduled", "adapter": adapter}}) == said
