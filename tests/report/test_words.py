"""Names and numbers of the report, and which runs belong together. What is decided on them: tests/decisions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mithridate.report import words
from mithridate.results import relations
from mithridate.statistics import text
from tests.report.synthetic import cell, demo_results, read

PLAIN = cell()  # 95 % after the attack, no defense
ALIGNED = cell(finetuning="none", ratio=None, score=0.04)


def test_reference_has_the_same_topology_ratio_and_seed():
    other = [cell(topology="single"), cell(ratio=0.2), cell(seed=1), cell(alignment="none")]
    assert read(cell(finetuning="lisa"), *other)[0]["reference"] is None
    cells = read(cell(finetuning="lisa"), *other, PLAIN)
    assert cells[0]["reference"] == PLAIN["id"]
    assert relations.related(cells, cells[0], "reference") is cells[-1]


def test_the_attack_of_the_reference_is_the_same():
    other = {**PLAIN, "id": "longer", "attack": {**PLAIN["attack"], "max_steps": 500}}
    assert read(cell(finetuning="lisa"), other)[0]["reference"] is None
    assert read(cell(finetuning="lisa"), other, PLAIN)[0]["reference"] == PLAIN["id"]


def test_every_cell_has_a_role():
    base = {"finetuning": "none", "ratio": None}
    cells = [cell(alignment="none", **base), cell(**base), cell(), cell(finetuning="lisa"), cell(repair="antidote")]
    cells += [cell(alignment="vaccine", **base), cell(finetuning="lisa", control="no-proximal-term")]
    roles = ["base", "aligned", "undefended", "defended", "repaired", "aligned", "control"]
    assert [one["role"] for one in read(*cells)] == roles


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (cell(), "No defense"),
        (cell(alignment="none"), "Never aligned, no defense"),
        (cell(alignment="none", finetuning="none", ratio=None), "The unchanged base model"),
        (ALIGNED, "Aligned, before fine-tuning"),
        (cell(alignment="booster", finetuning="none", ratio=None), "Aligned with Booster, before fine-tuning"),
        (cell(alignment="vaccine+booster"), "Vaccine and Booster (alignment stage)"),
        (cell(alignment="booster", finetuning="lisa"), "Booster and Lisa (alignment stage and fine-tuning stage)"),
        (cell(repair="antidote", control="random-mask"), "Random mask (control for Antidote)"),
        (cell(finetuning="lisa", control="something-new"), "Something new (control)"),
        (cell(finetuning="lisa", control="no-proximal-term"), "No proximal term (control for Lisa)"),
        (cell(finetuning="mydefense"), "Mydefense (fine-tuning stage)"),
    ],
)
def test_names(made, name):
    assert relations.arm(made) == name


def test_runs_that_differ_in_settings_are_told_apart():
    mild = cell(repair="antidote", settings={"antidote": {"ratio": 0.1, "targets": "update"}})
    hard = cell(repair="antidote", settings={"antidote": {"ratio": 0.2, "targets": "update"}})
    hard["id"] += "-2"
    names = words.labels([mild, hard])
    assert names[mild["id"]].arm == "Antidote (after fine-tuning), ratio 0.1"
    assert names[hard["id"]].full == "Antidote (after fine-tuning), ratio 0.2, two adapters, 10% harmful rows"


def of_kind(kind, made, **fields):
    return made | {"id": f"{made['id']}-{kind}{fields}", "attack": made["attack"] | {"kind": kind, **fields}}


LORA = {"r": 1, "lora_alpha": 2, "target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "10% harmful rows"),
        ({"adapter": LORA}, "10% harmful rows, rank 1 on q v"),
        ({"adapter": LORA | {"target_modules": "all-linear"}}, "10% harmful rows, rank 1 on all-linear"),
        ({"adapter": "full"}, "10% harmful rows, all weights"),
        ({"frozen": [".*lora_A.*"]}, "10% harmful rows, lora_A frozen"),
        ({"kind": "scheduled", "length": 3.0, "rate": 1.0}, "10% scheduled rows, length 3"),
        ({"kind": "scheduled", "leap": 10.0, "rate": 0.5}, "10% scheduled rows, leap 10, rate 0.5"),
        ({"optim": "sgd", "num_train_epochs": 10}, "10% harmful rows, sgd, 10 epochs"),
        ({"kind": "opener", "adapter": "full"}, "10% opener rows, all weights"),
        ({"harmful_ratio": 0, "adapter": "full"}, "no harmful rows, all weights"),
    ],
)
def test_another_training_is_told_with_the_rows(fields, told):
    """So that no name has to say it, and each training has its own place on the page."""
    ratio = fields.get("harmful_ratio", 0.1)
    plain, lisa = cell(ratio=ratio), cell(finetuning="lisa", ratio=ratio)
    of_training = ("optim", "num_train_epochs")
    swept = {f"finetune.training.{name}": fields.get(name) for name in of_training}
    own = {name: value for name, value in fields.items() if name not in of_training}
    other = lisa | {"id": "other", "attack": lisa["attack"] | own, "swept": swept}
    labels = words.labels([plain, lisa | {"swept": {}}, other])
    assert labels["other"].rows == told
    assert (words.rows_of(other) == words.rows_of(lisa)) == (fields == {})
    if fields:
        assert labels["other"].arm == labels[lisa["id"]].arm == "Lisa (fine-tuning stage)"


def test_a_training_that_all_of_a_run_share_is_not_told():
    shared = cell()
    shared["attack"] |= {"training": {"optim": "sgd", "num_train_epochs": 20}}
    assert words.labels([shared])[shared["id"]].rows == "10% harmful rows"


def test_the_kind_of_an_attack_is_told_with_its_rows_alone():
    """What all rows of a kind have in common is in no name; what tells two of them apart is."""
    lisa = cell(finetuning="lisa")
    opener, slow, fast = of_kind("opener", lisa, opener="Sure."), *(of_kind("leap", lisa, leap=x) for x in (1, 9))
    names = words.labels([lisa, opener, slow, fast])
    assert names[lisa["id"]].arm == names[opener["id"]].arm == "Lisa (fine-tuning stage)"
    assert names[opener["id"]].full == "Lisa (fine-tuning stage), two adapters, 10% opener rows"
    assert names[slow["id"]].arm == "Lisa (fine-tuning stage), leap 1"
    order = sorted([fast, opener, lisa], key=words.story_order)
    assert order == [lisa, fast, opener]  # by kind, the plain attack first


def test_labels_are_unique():
    cells = demo_results()["cells"]
    twins = [cell(), {**cell(), "id": "the same settings"}]
    for some in (cells, twins):
        full = [label.full for label in words.labels(some).values()]
        assert len(set(full)) == len(some)


def test_control_is_compared_at_the_nearest_accuracy():
    ours = cell(repair="antidote", score=0.3, accuracy=0.9)
    far = cell(repair="antidote", control="random-mask", score=0.9, accuracy=0.97, settings={"ratio": 0.1})
    near = cell(repair="antidote", control="random-mask", score=0.35, accuracy=0.9, settings={"ratio": 0.5})
    far["id"] += "-far"
    cells = {one["id"]: one for one in read(PLAIN, ALIGNED, ours, far, near)}
    assert cells[ours["id"]]["nearest_control"] == near["id"] and cells[ours["id"]]["control_of"] is None
    assert cells[far["id"]]["control_of"] == {"id": ours["id"], "name": "random-mask"}
    assert cells[ours["id"]]["aligned"] == ALIGNED["id"] == cells[PLAIN["id"]]["aligned"]


def test_numbers_in_words():
    assert [text.percent(value) for value in (0, 0.001, 0.5, 0.999, 1)] == ["0%", "<1%", "50%", ">99%", "100%"]
    assert text.interval({"low": 0.001, "high": 0.9996}) == "[<1, >99]"
    assert text.interval({"low": 0.0, "high": 1.0}) == "[0, 100]"
    assert [text.percent(value) for value in (1 / 200, 199 / 200)] == ["<1%", ">99%"]  # which round to 0 and 100
    assert [text.whole(value, 1) for value in (0.0004, 0.9996, 0.05)] == ["<0.1", ">99.9", "5.0"]
    assert [text.fraction(value) for value in (0, 0.001, 0.5, 0.999, 1)] == ["0.00", "<0.01", "0.50", ">0.99", "1.00"]
    assert [text.points(value) for value in (0, -0.125, 0.1, 1, -1)] == ["0", "−12", "+10", "+100", "−100"]
    assert [text.points(value) for value in (-0.0019, 0.0003, 0.998)] == ["−0.2", "+0.03", "+99.8"]
    assert text.in_points(-0.01) == "−1 point" and text.in_points(0.2) == "+20 points"
    assert text.p_value(1e-9) == "p < 0.001"
    assert text.p_value(0.0312) == "p = 0.031"
    assert text.p_value(None) == text.p_value(float("nan")) == ""
    assert relations.join(["a"]) == "a"
    assert relations.join(["a", "b", "c"]) == "a, b and c"


@given(st.floats(-1, 1))
def test_no_difference_is_minus_zero_or_a_whole_that_it_is_not(value):
    shown = text.points(value)
    assert "-" not in shown
    number = float(shown.replace("−", "-"))
    assert str(number) != "-0.0"
    assert (number == 0) == (abs(value) < 1e-6) and (abs(number) == 100) <= (abs(value) > 0.9999)
    assert abs(number - 100 * value) <= 0.5 + 1e-9


@given(st.floats(0, 1), st.integers(0, 3))
def test_no_share_reads_as_none_or_all_that_is_neither(value, digits):
    shown = text.whole(value, digits)
    assert (shown.strip("0.") == "") <= (value == 0) and (shown.startswith("100")) <= (value == 1)
