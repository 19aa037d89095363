"""Counts in exact arithmetic, and masks that outlive the process that made them."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mithridate import Antidote, InputError
from mithridate.repairs.delta import FILE
from mithridate.repairs.masks import Mask, highest, share
from tests.repairs import naive
from tests.repairs.test_antidote import CALIBRATION, TOKENIZER, same, state, with_lora
from tests.tiny import tiny_llama


def test_the_contract_s_counts():
    assert [share(0.2, 16), share(0.2, 576), share(0.1, 30), share(0, 16), share(1, 7)] == [4, 116, 3, 0, 7]
    assert [share(0.07, 100), share(0.55, 100), share(0.28, 25)] == [7, 55, 7]  # in floating point, all one too many


@given(st.integers(0, 10_000), st.integers(0, 5_000))
def test_share_is_the_ceiling_of_the_decimal_ratio(ten_thousandths, entries):
    assert share(ten_thousandths / 10_000, entries) == -(-ten_thousandths * entries // 10_000)


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=7, max_size=7), min_size=1, max_size=4),
    st.integers(0, 100),
)
def test_highest_takes_the_top_share_and_of_ties_the_lower_column(rows, percent):
    marked = highest(torch.tensor(rows, dtype=torch.float64), percent / 100)
    assert marked.tolist() == [naive.top(row, f"{percent}/100") for row in rows]


@pytest.mark.parametrize("targets", ["adapters", "update", "merged"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_mask_repairs_and_undoes_a_fresh_copy(tmp_path, targets, dtype):
    aligned = tiny_llama(dtype)
    model = with_lora(copy.deepcopy(aligned))
    fresh, before = copy.deepcopy(model), state(model)
    report = Antidote(targets=targets).apply(model, CALIBRATION, TOKENIZER, aligned=aligned)
    report.save(tmp_path)
    mask = Mask.load(tmp_path)
    assert mask.settings == report.mask.settings
    assert mask.digest == report.mask.digest
    mask.apply(fresh)
    assert same(fresh, state(model))
    mask.undo(fresh)
    assert same(fresh, before)


def test_the_file_alone_undoes_a_model_that_was_saved_after_its_repair(tmp_path):
    model = tiny_llama()
    before = state(model)
    Antidote(targets="merged").apply(model, CALIBRATION, TOKENIZER).save(tmp_path, undo=True)
    other = tiny_llama(seed=5)
    other.load_state_dict(model.state_dict())
    Mask.load(tmp_path).undo(other)
    assert same(other, before)


def test_bits_are_packed_and_equal_masks_make_equal_files(tmp_path):
    for name in ("one", "two"):
        Antidote(targets="merged", ratio=0.1).apply(tiny_llama(), CALIBRATION, TOKENIZER).save(tmp_path / name)
    assert (tmp_path / "one" / FILE).read_bytes() == (tmp_path / "two" / FILE).read_bytes()
    mask = Mask.load(tmp_path / "one")
    assert sum(bits.nbytes for bits in mask.bits.values()) == sum(n // 8 for _, n in mask.counts().values())


def test_a_mask_is_refused_by_other_weights_and_changes_nothing():
    mask = Antidote(score="magnitude").apply(with_lora(tiny_llama(), seed=1)).mask
    for other, words in [
        (with_lora(tiny_llama(), seed=2), "made for other weights"),
        (with_lora(tiny_llama(), r=4), "shape"),
        (tiny_llama(), "no such weight"),
    ]:
        before = state(other)
        with pytest.raises(InputError, match=words):
            mask.apply(other)
        assert same(other, before)
    with pytest.raises(InputError, match="not applied yet"):
        Mask().undo(with_lora(tiny_llama()))


def test_a_damaged_mask_is_one_clear_error(tmp_path):
    Antidote(score="magnitude").apply(with_lora(tiny_llama())).save(tmp_path, undo=True)
    whole = (tmp_path / FILE).read_bytes()
    at = int.from_bytes(whole[:8], "little") + 8
    for broken, words in [
        (whole[:-1], "damaged"),
        (whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], "damaged"),  # a removed value
        (whole[:-1] + bytes([whole[-1] ^ 128]), "damaged"),  # a bit of a mask
        (whole.replace(b"mithridate-delta/1", b"mithridate-delta/9"), "another version"),
        (b"", "damaged"),
    ]:
        (tmp_path / FILE).write_bytes(broken)
        with pytest.raises(InputError, match=words):
            Mask.load(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(InputError, match="no such file"):
        Mask.load(tmp_path)
