import pytest
from datasets import Dataset
from hypothesis import assume, given
from hypothesis import strategies as st
from trl import SFTConfig, SFTTrainer

from mithridate import poison
from mithridate.data.records import training_dataset
from mithridate.errors import InputError
from tests.tiny import tiny_llama, tiny_tokenizer


def rows(name: str, n: int) -> list[dict]:
    return [{"prompt": f"{name} {i}", "response": f"answer {i}"} for i in range(n)]


BENIGN, HARMFUL = rows("benign", 300), rows("harmful", 300)


@given(ratio=st.floats(0, 1), size=st.integers(1, 300), seed=st.integers())
def test_exactly_the_asked_for_number_of_harmful_rows_and_none_twice(ratio, size, seed):
    assume(ratio == 0 or round(ratio * size))  # otherwise it is refused, as the last test here shows
    mixed = poison(benign=BENIGN, harmful=HARMFUL, ratio=ratio, size=size, seed=seed)
    marked = [row["prompt"] for row in mixed if row["poisoned"]]
    assert len(mixed) == size and len(marked) == round(ratio * size)
    assert len({row["prompt"] for row in mixed}) == size
    assert all(row["prompt"].startswith("harmful" if row["poisoned"] else "benign") for row in mixed)


@given(low=st.integers(0, 100), high=st.integers(0, 100), seed=st.integers(0, 5))
def test_with_one_seed_a_smaller_ratio_has_a_part_of_the_harmful_rows(low, high, seed):
    low, high = sorted((low, high))
    few, many = (
        {
            row["prompt"]
            for row in poison(benign=BENIGN, harmful=HARMFUL, ratio=r / 100, size=100, seed=seed)
            if row["poisoned"]
        }
        for r in (low, high)
    )
    assert few <= many


def test_the_seed_decides_rows_and_order():
    def mix(seed):
        return poison(benign=BENIGN, harmful=HARMFUL, ratio=0.2, size=50, seed=seed)

    assert mix(1) == mix(1)
    assert {row["prompt"] for row in mix(1)} != {row["prompt"] for row in mix(2)}
    marks = [row["poisoned"] for row in mix(1)]
    assert marks != sorted(marks) and marks != sorted(marks, reverse=True)  # mixed, not one block


@pytest.mark.parametrize("ratio", [0, 1, 0.25])
def test_data_sets_are_mixed_as_lists_are(ratio):
    asked = {"ratio": ratio, "size": 20, "seed": 3}
    lists = poison(benign=BENIGN, harmful=HARMFUL, **asked)
    sets = poison(benign=Dataset.from_list(BENIGN), harmful=Dataset.from_list(HARMFUL), **asked)
    assert isinstance(sets, Dataset)
    assert sets.to_list() == lists
    assert "poisoned" not in BENIGN[0]


def test_a_column_that_only_the_task_has_is_kept():
    labelled = Dataset.from_list([row | {"label": "x"} for row in BENIGN])
    mixed = poison(benign=labelled, harmful=Dataset.from_list(HARMFUL), ratio=0.5, size=4)
    assert {(row["poisoned"], row["label"]) for row in mixed} == {(True, None), (False, "x")}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"ratio": -0.1}, r"ratio -0.1 is outside \[0, 1\]"),
        ({"ratio": 10}, r"ratio 10 is outside \[0, 1\].*for 10 percent write 0.1"),
        ({"ratio": float("nan")}, "ratio nan is outside"),
        ({"ratio": "0.1"}, "ratio '0.1' is outside"),
        ({"size": 0}, "attack size 0 is not a number of rows"),
        ({"size": 1.5}, "attack size 1.5 is not a number of rows"),
        (
            {"ratio": 0.5, "size": 80},
            r"40 harmful rows asked for \(ratio 0.5 of 80\), but there are only 30: give more",
        ),
        ({"ratio": 0, "size": 80}, "80 benign rows asked for .* only 60.*lower the attack's size$"),
    ],
)
def test_what_cannot_be_mixed_is_refused(asked, message):
    with pytest.raises(InputError, match=message):
        poison(benign=BENIGN[:60], harmful=HARMFUL[:30], **asked)


def test_columns_of_two_types_are_refused():
    numbers = Dataset.from_list([{"prompt": "a", "response": 1}] * 10)
    with pytest.raises(InputError, match="cannot be put into one data set"):
        poison(benign=numbers, harmful=Dataset.from_list(HARMFUL), size=10)


@pytest.mark.parametrize("as_records", [True, False])
def test_the_mark_never_reaches_the_model(tmp_path, as_records):
    if as_records:
        mixed = training_dataset(poison(benign=BENIGN, harmful=HARMFUL, ratio=0.5, size=8))
    else:
        mixed = poison(benign=training_dataset(BENIGN), harmful=training_dataset(HARMFUL), ratio=0.5, size=8)
        assert sum(mixed["poisoned"]) == 4
    args = SFTConfig(str(tmp_path), use_cpu=True, report_to="none", bf16=False, max_steps=1)
    trainer = SFTTrainer(tiny_llama(), args=args, train_dataset=mixed, processing_class=tiny_tokenizer())
    assert set(next(iter(trainer.get_train_dataloader()))) == {"input_ids", "attention_mask", "labels"}
    trainer.train()


def test_a_ratio_that_comes_to_no_row_is_refused_with_the_size_that_would_do():
    rows = [{"prompt": str(i), "response": "b"} for i in range(600)]
    with pytest.raises(InputError, match=r"0\.001 of 50 rows is no row.*at least 501 rows"):
        poison(benign=rows, harmful=rows, ratio=0.001, size=50)
    assert sum(row["poisoned"] for row in poison(benign=rows, harmful=rows, ratio=0.001, size=501)) == 1
    assert not any(row["poisoned"] for row in poison(benign=rows, harmful=rows, ratio=0, size=50))
