"""What holds for every repair: one suite over all of them by name, each from its own example."""

import copy
import dataclasses
import pickle
import re
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mithridate.errors import InputError, UnsupportedSetup
from mithridate.methods import Cost, by_name
from mithridate.methods.base import control_name
from mithridate.methods.examples import records_of
from mithridate.repairs.delta import Delta
from tests.conformance.methods import every, example
from tests.support_matrix import BASELINE_REPAIRS
from tests.tiny import tiny_llama, tiny_tokenizer

repairs = pytest.mark.parametrize("name", every("repairs"))


def adapted(model, seed):
    torch.manual_seed(seed)
    net = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    return net.eval()


def the_model(repair):
    """What a repair is applied to: the fine-tuned model with its adapter; before the user's run, the aligned one."""
    return adapted(tiny_llama(), 1)


def inputs_of(repair):
    """Its declared inputs: content-free rows, and each model, as objects of their own."""
    models = {"base": lambda: adapted(tiny_llama(), 3).merge_and_unload(), "aligned": lambda: tiny_llama()}
    models["start"] = models["aligned"]
    models["unaligned"] = lambda: adapted(tiny_llama(), 2).merge_and_unload()
    rows = {name: records_of(role) for name, role in repair.data_roles().items()}
    return rows | {n: models[kind]() for n, kind in repair.model_inputs().items()} | {"tokenizer": tiny_tokenizer()}


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@repairs
def test_it_says_what_it_is(name):
    cls, made = by_name("repairs")[name], example("repairs", name)
    text = sys.modules[cls.__module__].__doc__ or ""
    assert dataclasses.is_dataclass(cls) and name == cls.__name__.lower()
    assert cls.stage in ("post-alignment", "post-fine-tuning") and cls.paper
    assert re.fullmatch(r"exact|own|port of .+", cls.provenance)
    assert cls.provenance == "own" or re.match(r"@\w+\{\w+,\s", cls.citation)
    assert "Cost:" in text
    assert cls.strength is None or cls.strength in made.settings()
    assert isinstance(made.cost(), Cost) and made.cost().passes == 0
    for control, method in made.controls().items():
        assert control_name(method) == control and control_name(made) != control
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made)), dataclasses.replace(made)):
        assert twin == made


@pytest.mark.shows("taken back", "exact", methods=list(BASELINE_REPAIRS))
@repairs
def test_it_changes_the_model_says_what_and_takes_it_back_bit_for_bit(name, tmp_path):
    repair = example("repairs", name)
    model = the_model(repair)
    before, hooks = state(model), [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    modes = [m.training for m in model.modules()]
    delta = repair.apply(model, **inputs_of(repair))
    assert isinstance(delta, Delta) and delta.total[0] > 0 and delta.repair and delta.table()
    assert not same(before, state(model))
    assert hooks == [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    assert modes == [m.training for m in model.modules()]
    after = state(model)
    delta.save(tmp_path, undo=True)
    delta.undo(model)
    assert same(before, state(model))
    with pytest.raises(InputError):
        delta.undo(model)
    assert same(before, state(model))
    read = Delta.load(tmp_path)
    read.apply(model)
    assert same(after, state(model)) and read.digest == delta.digest


@repairs
def test_it_repeats(name):
    repair = example("repairs", name)
    digests = {repair.apply(the_model(repair), **inputs_of(repair)).digest for _ in range(2)}
    assert len(digests) == 1


@repairs
def test_off_leaves_the_model_as_it_is(name):
    off = by_name("repairs")[name].off
    assert off is not None or "(`off`)" in (sys.modules[by_name("repairs")[name].__module__].__doc__ or "")
    if off is None:
        return
    repair = example("repairs", name, **off)
    model = the_model(repair)
    ids = torch.arange(3, 40)[None]
    before = model(input_ids=ids).logits
    repair.apply(model, **inputs_of(repair))
    assert torch.equal(model(input_ids=ids).logits, before)


@repairs
def test_controls_change_as_many_entries(name):
    repair = example("repairs", name)
    removed = repair.apply(the_model(repair), **inputs_of(repair)).total
    for control in repair.controls().values():
        assert control.apply(the_model(control), **inputs_of(control)).total == removed


@pytest.mark.shows("without", "refused", methods=[m for m in BASELINE_REPAIRS if m != "randommask"])
@repairs
def test_what_it_cannot_do_is_refused_before_anything_is_changed(name):
    """A repair that needs rows or a model says so when there are none, with a remedy, and leaves the model alone."""
    repair = example("repairs", name)
    given = inputs_of(repair)
    for missing in [*repair.data_roles(), *repair.model_inputs()]:
        model = the_model(repair)
        before = state(model)
        rest = {key: value for key, value in given.items() if key != missing}
        with pytest.raises((UnsupportedSetup, InputError)):
            repair.check(model, **rest)
        with pytest.raises((UnsupportedSetup, InputError)):
            repair.apply(model, **rest)
        assert same(before, state(model))
