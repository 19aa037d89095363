"""The preset files: every value has a source, every arm is a valid experiment, and the papers' numbers add up."""

import pytest

from mithridate.errors import InputError
from mithridate.experiment.config import load_experiment, with_defaults
from mithridate.protocols import PROTOCOLS
from mithridate.studies.presets import NAMES, preset
from mithridate.studies.presets.book import MARKS

PAPERS = [name for name in NAMES if name not in ("unified-v1", "baselines-v1")]


@pytest.mark.parametrize("name", NAMES)
def test_every_value_has_a_mark_and_a_source(name):
    known = preset(name)
    sources = known.sources()
    assert len(sources) > 30
    for path, given in sources.items():
        assert given.mark in MARKS and len(given.source) >= 7, path
    assert all(note.mark in MARKS for note in known.differences) and known.differences
    # Nothing in an arm's experiment but what stands in the file with its source.
    for arm in known.variants:
        leaves = set(flat(known.experiment(arm)))
        assert leaves == {*known.fields, *known.variants[arm]}


def flat(node, path=""):
    """The dotted paths of all values that are no mappings."""
    for key, value in node.items():
        here = f"{path}.{key}" if path else key
        yield from flat(value, here) if isinstance(value, dict) else [here]


@pytest.mark.parametrize("name", NAMES)
def test_every_arm_is_a_valid_experiment_at_every_place(name):
    known = preset(name)
    for arm in known.variants:
        raw = known.experiment(arm) | {"sweep": {path: given.value for path, given in known.sweep.items()}}
        experiment = load_experiment(raw)
        with_defaults(experiment)
        assert experiment.evaluate.protocol in PROTOCOLS


@pytest.mark.parametrize("name", PAPERS)
def test_the_protocol_is_the_papers_own(name):
    assert preset(name).fields["evaluate.protocol"].value == f"hs/{name.removesuffix('-gsm8k')}"


@pytest.mark.parametrize(
    "name", [name for name in PAPERS if name != "booster-2025-gsm8k"]
)  # of which no cells are known
def test_the_means_that_the_papers_print_are_those_of_their_cells(name):
    """A second place for every number that has one: a mistyped cell moves the mean by more than rounding does."""
    numbers = preset(name).numbers
    checked = 0
    for measure, means in numbers.means.items():
        for arm, printed in means.items():
            cells = getattr(numbers, measure).get(arm)
            if cells:
                assert len(cells) == len(numbers.at)
                assert sum(cells) / len(cells) == pytest.approx(printed, abs=6e-5), (measure, arm)
                checked += 1
    assert checked >= 3
    assert numbers.at == preset(name).sweep[numbers.over].value
    for measure in ("harmful_score", "accuracy"):
        for arm, cells in getattr(numbers, measure).items():
            assert arm in preset(name).variants and all(0 <= value <= 1 for value in cells)
            assert arm in numbers.means[measure], "every row of cells is checked by its mean"


def test_tables_that_give_the_same_run_twice_agree():
    """Booster's table of models repeats the column p = 0.1 of its table of ratios."""
    numbers = preset("booster-2025").numbers
    for arm, harmful, accuracy in (
        ("sft", 0.337, 0.9312),
        ("lisa", 0.237, 0.9232),
        ("vaccine", 0.283, 0.9369),
        ("booster", 0.083, 0.9323),
    ):
        assert numbers.cell("harmful_score", arm, 0.1) == pytest.approx(harmful)
        assert numbers.cell("accuracy", arm, 0.1) == pytest.approx(accuracy)
    # Vaccine's tables of models and of tasks give n = 1000, p = 0.05 as 0.428 with Vaccine.
    assert preset("vaccine-2024").numbers.cell("harmful_score", "vaccine", 0.05) == 0.428
    # Antidote's table of epochs has the run of 20 epochs at 1e-4 again.
    epochs = {"sft": 0.778, "lisa": 0.732, "antidote": 0.653}
    numbers = preset("antidote-2025").numbers
    assert {arm: numbers.cell("harmful_score", arm, 1e-4) for arm in epochs} == epochs


def test_topologies_are_those_of_the_released_scripts():
    arms = {(name, arm): preset(name).experiment(arm)["topology"] for name in PAPERS for arm in preset(name).variants}
    single = {key for key, topology in arms.items() if topology != "double"}
    assert single == {key for key in arms if key[1].startswith("booster")} and len(single) == 4


def test_booster_on_gsm8k_has_both_settings_and_both_sizes():
    """As the authors told them apart (git-disl/Booster, issue 3), and Panacea's number of harmful rows."""
    known = preset("booster-2025-gsm8k")
    made = {arm: load_experiment(known.experiment(arm)) for arm in known.variants}
    told = {
        arm: (
            one.align.defense.get("booster", {}).get("lam"),
            one.finetune.training["per_device_train_batch_size"],
            one.data["defender_harmful"][0].take,
        )
        for arm, one in made.items()
    }
    assert told == {
        "sft": (None, 10, 5000),
        "booster": (25, 10, 5000),
        "sft-table-3": (None, 5, 5000),
        "booster-table-3": (5, 5, 5000),
        "booster-1000-rows": (25, 10, 1000),
    }
    assert {one.data["task"][0].source for one in made.values()} == {"openai/gsm8k"}


def test_unified_gives_every_defense_the_same_chance():
    known = preset("unified-v1")
    assert known.fields["evaluate.protocol"].value == "hs/unified-v1"
    assert set(known.sweep["topology"].value) == {"double", "single"}
    assert len(known.sweep["seed"].value) >= PROTOCOLS["hs/unified-v1"].seeds
    assert set(known.tuning.tries) == {*known.variants} - {"sft"} == {"vaccine", "booster", "lisa", "antidote"}
    assert len({len(tries) for tries in known.tuning.tries.values()}) == 1
    for arm, tries in known.tuning.tries.items():
        assert all(set(values) <= set(known.variants[arm]) for values in tries)
        defaults = {path: given.value for path, given in known.variants[arm].items()}
        assert any(all(defaults[path] == value for path, value in values.items()) for values in tries)


def test_the_baselines_stand_at_their_own_settings_in_the_set_up_of_unified():
    known, unified = preset("baselines-v1"), preset("unified-v1")
    strengths = {
        arm: values.value
        for arm, own in known.variants.items()
        for path, values in own.items()
        if path.rpartition(".")[2] in ("lam", "rho", "share", "a", "coef", "ratio")
    }
    assert strengths == {
        "ewc": 1e9,
        "kl": 1e-3,
        "kl-script": 0.1,
        "ldifs": 1e-4,
        "safetymix": 0.03,
        "safetymix-vaccine": pytest.approx(1 / 3),
        "safetymix-lisa": 0.2,
        "wiseft": 0.5,
        "lox": 1.0,
        "randommask": 0.3,
    }
    assert set(known.variants) - set(strengths) == {"sft", "ptst"}
    assert {arm for arm in known.variants if known.experiment(arm)["topology"] == "single"} == {"ewc"}
    assert {path: given.value for path, given in known.fields.items()}.items() <= {
        path: given.value for path, given in unified.fields.items()
    }.items()


def test_a_wrong_name_names_the_nearest():
    with pytest.raises(InputError, match="did you mean `booster-2025`"):
        preset("booster-2024")
