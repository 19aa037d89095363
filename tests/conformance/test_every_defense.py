"""What holds for every defense: one suite over all of them by name, each from its own example.

A defense that departs from one of these says so in `differences`, and the suite then holds it to departing.
"""

import copy
import dataclasses
import functools
import gc
import pickle
import re
import sys
import tempfile
from itertools import combinations

import pytest
import torch
from transformers import TrainerCallback

from mithridate.errors import UnsupportedSetup
from mithridate.methods import Cost, by_name
from mithridate.methods.base import control_name
from mithridate.methods.defense import acts
from tests.conformance.methods import FAST, every, example
from tests.defenses import helpers
from tests.defenses.helpers import error, model, rows, same, trainer_for, update, weights
from tests.support_matrix import ALIGNMENT

USER = rows("user")
USUAL = helpers.USUAL | {"data": USER}
THREE = {"max_steps": 3, "learning_rate": 0.1, "data": USER, "exact": True}
defenses = pytest.mark.parametrize("name", every("defenses"))
# All weights too where a method is the house's; of the others closed forms hold both kinds.
ASKED = [
    pytest.param(name, kind, marks=of.marks)
    for of in every("defenses")
    for name in of.values
    for kind in ("lora", "full")
    if kind == "lora" or name in FAST
]
kinds = pytest.mark.parametrize(("name", "kind"), ASKED)
RIVALS = ["asft", "panacea", "deepenedrefusals", "safegrad", "constrainedsft", "sbr"]
BASELINES = ["lowerlr", "fewersteps", "safetymix", "filter", "kl", "ewc", "ldifs", *RIVALS, *ALIGNMENT]
SPLIT = [name for name in BASELINES if "accumulation" in by_name("defenses")[name].differences]


def run(folder, defense, kind="lora", **args):
    """The usual way to train, with dropout in the adapter."""
    net = model(kind, torch.float32, dropout=0.3)
    trainer_for(net, folder, defense=defense, **(USUAL | args)).train()
    return weights(net)


# What many tests compare with is run once. Nobody changes what comes back.


@functools.cache
def alone(name, kind="lora"):
    """The weights after the usual run with one method; without any, where `name` is None."""
    with tempfile.TemporaryDirectory() as folder:
        return run(folder, name and example("defenses", name), kind)


@functools.cache
def one_batch(name, kind):
    """What a method does to the weights in `THREE` steps whose batches are in one piece."""
    with tempfile.TemporaryDirectory() as folder:
        return update(model(kind), folder, defense=example("defenses", name), **THREE)


def taken_out(state):
    return {key: tensor.clone() for key, tensor in state.items()}


# -- what it says of itself ------------------------------------------------------------------------------------------


@defenses
def test_it_says_what_it_is(name):
    cls, made = by_name("defenses")[name], example("defenses", name)
    text = sys.modules[cls.__module__].__doc__ or ""
    assert dataclasses.is_dataclass(cls) and name == cls.__name__.lower()
    assert cls.stage in ("alignment", "fine-tuning") and cls.paper
    assert re.fullmatch(r"exact|own|port of .+", cls.provenance)
    assert cls.provenance == "own" or re.match(r"@\w+\{\w+,\s", cls.citation)
    for part in ("Cost:", "Supported:"):
        assert part in text, part
    assert cls.strength is None or cls.strength in made.settings()
    assert isinstance(made.cost(), Cost) and str(made.cost())
    assert set(cls.roles) <= {f.name for f in dataclasses.fields(cls)}
    if cls.off is None:
        assert "plain training (`off`)" in text, "why there are no settings that are plain training"
    for control, method in made.controls().items():
        assert control_name(method) == control and control_name(made) != control
    assert not set(cls.differences) - {"accumulation", "processes", "lr 0", "training"}


@defenses
def test_an_instance_can_be_copied_pickled_and_described_before_and_after_a_run(name, tmp_path):
    made = example("defenses", name)
    for _ in range(2):
        for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made)), dataclasses.replace(made)):
            assert twin.settings() == made.settings()
        assert made.settings().items() <= dataclasses.asdict(made).items()
        run(tmp_path, made)


@defenses
def test_the_weights_after_the_last_step_are_its_models_unless_it_says_so(name, tmp_path):
    """Models are scored on the way, from the weights of a step: of a method that changes them at the end, none is."""
    made, last = example("defenses", name), []

    class Keeping(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            last[:] = [weights(model)]

    net = model("lora", torch.float32)
    trainer_for(net, tmp_path, defense=made, callbacks=[Keeping()], **USUAL).train()
    assert made.finishes == (not same(last[0], weights(net)))


@defenses
def test_nothing_of_the_run_is_kept_after_it(name, tmp_path):
    """A defense lives as long as its user's variable: it must not hold a copy of the weights for all that time."""
    made = example("defenses", name)
    run(tmp_path, made)
    kept = [v for v in vars(made).values() if isinstance(v, torch.Tensor)]
    kept += [t for v in vars(made).values() if isinstance(v, list | tuple) for t in v if isinstance(t, torch.Tensor)]
    assert kept == []


# -- what it does ----------------------------------------------------------------------------------------------------


@kinds
def test_it_acts(name, kind):
    at_test = "training" in by_name("defenses")[name].differences
    assert same(alone(name, kind), alone(None, kind)) == at_test
    if at_test:
        assert example("defenses", name).at_test()


@pytest.mark.parametrize(
    ("name", "kind"), [asked for asked in ASKED if by_name("defenses")[asked.values[0]].off is not None]
)
def test_off_is_plain_training_bit_for_bit(name, kind, tmp_path):
    off = by_name("defenses")[name].off
    assert same(run(tmp_path, example("defenses", name, **off), kind), alone(None, kind))


@kinds
def test_a_learning_rate_of_zero_moves_nothing_and_leaves_nothing(name, kind, tmp_path):
    net = model(kind, torch.float32, dropout=0.3)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    net(input_ids=torch.ones(1, 2, dtype=torch.long), output_hidden_states=True)  # transformers' own hooks stay
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    t = trainer_for(net, tmp_path, defense=example("defenses", name), **(USUAL | {"learning_rate": 0.0}))
    t.train()
    if "lr 0" in by_name("defenses")[name].differences:
        assert not same(before, net.state_dict())
    else:
        assert same(before, net.state_dict())
    assert all(p.grad is None for p in net.parameters())
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]


@pytest.mark.shows("accumulation", "exact", methods=[name for name in BASELINES if name not in SPLIT])
@pytest.mark.shows("accumulation", "difference", methods=SPLIT, note="its terms are per micro-batch")
@kinds
def test_accumulation_changes_nothing_unless_it_says_so(name, kind, tmp_path):
    one = one_batch(name, kind)
    for size, count in ((4, 2), (2, 4)):
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": count}
        got = update(model(kind), tmp_path, defense=example("defenses", name), **THREE, **split)
        if "accumulation" in by_name("defenses")[name].differences:
            assert error(got, one) > 1e-6
        else:
            assert error(got, one) < 1e-10


@pytest.mark.shows("checkpointing", "exact", methods=BASELINES)
@kinds
def test_checkpointing_changes_nothing(name, kind, tmp_path):
    kept = one_batch(name, kind)
    again = update(model(kind), tmp_path, defense=example("defenses", name), gradient_checkpointing=True, **THREE)
    assert error(again, kept) < 1e-12


@pytest.mark.shows("selective", "exact", note="all weights; refused under an adapter")
@defenses
def test_selective_checkpointing_changes_nothing(name, tmp_path):
    """TRL's: attention is kept, the rest computed again."""
    args = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"selective": True}}
    kept = update(model(), tmp_path, defense=example("defenses", name), **THREE)
    again = update(model(), tmp_path, defense=example("defenses", name), **args, **THREE)
    assert error(again, kept) < 1e-12


@pytest.mark.shows("padding", "exact", methods=BASELINES)
@kinds
def test_padding_changes_nothing(name, kind, tmp_path):
    kept = one_batch(name, kind)
    padded = update(model(kind), tmp_path, defense=example("defenses", name), pad_to_multiple_of=64, **THREE)
    assert error(padded, kept) < 1e-10


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Of a method, a run of five steps with a checkpoint after each: its folder, and the weights at its end."""

    @functools.cache
    def made(name):
        folder = tmp_path_factory.mktemp(name)
        return folder, run(folder, example("defenses", name), save_strategy="steps", save_steps=1, max_steps=5)

    return made


@pytest.mark.shows("resume", "exact", methods=BASELINES, note="bit for bit")
@defenses
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_run_resumed_in_the_middle_ends_bit_for_bit_the_same(name, at, saved, tmp_path):
    folder, whole = saved(name)
    net = model("lora", torch.float32, dropout=0.3)
    t = trainer_for(net, tmp_path, defense=example("defenses", name), **USUAL | {"max_steps": 5})
    t.train(resume_from_checkpoint=str(folder / f"checkpoint-{at}"))
    assert same(whole, weights(net))


@defenses
def test_a_run_resumed_after_its_last_step_takes_no_further_one(name, saved, tmp_path):
    """Five steps end within a pass, where the Trainer itself would take a sixth."""
    folder, whole = saved(name)
    last = len(list(folder.glob("checkpoint-*")))
    net = model("lora", torch.float32, dropout=0.3)
    t = trainer_for(net, tmp_path, defense=example("defenses", name), **USUAL | {"max_steps": 5})
    t.train(resume_from_checkpoint=str(folder / f"checkpoint-{last}"))
    assert t.state.global_step == last and same(whole, weights(net))


@defenses
def test_its_state_goes_round(name, tmp_path):
    """What is saved after some steps is what is there after it was loaded into another instance."""
    states = []

    def noting(made):
        cls = type(made)

        class Noting(cls):
            def on_step_end(self, t):
                super().on_step_end(t)
                states.append(taken_out(self.state_dict(t)))
                if len(states) == 3:
                    fresh = example("defenses", name)
                    fresh.on_train_begin(t)
                    fresh.load_state_dict(t, states[-1])
                    states.append(taken_out(fresh.state_dict(t)))

        made.__class__ = Noting
        return made

    run(tmp_path, noting(example("defenses", name)))
    assert states[2].keys() == states[3].keys() and same(states[2], states[3])


@defenses
def test_nothing_grows_from_step_to_step(name, tmp_path):
    early, late = (8, 12, 16), (28, 32, 36)  # every place of a cycle, each where the log is written
    seen = {}

    class Counting(by_name("defenses")[name]):
        def on_step_end(self, t):
            super().on_step_end(t)
            if t.state.global_step in early + late:
                gc.collect()
                alive = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
                # without the numbers of a batch, which is as long as its rows
                seen[t.state.global_step] = len(alive), sum(o.numel() for o in alive if o.is_floating_point())

    made = example("defenses", name)
    made.__class__ = Counting
    run(tmp_path, made, max_steps=50, logging_steps=4)  # of which a defense may make fewer
    for counted in (0, 1):
        assert max(seen[step][counted] for step in late) == max(seen[step][counted] for step in early)


SETUPS = {"is_deepspeed_enabled": True, "args.ddp_static_graph": True, "args.auto_find_batch_size": True}


@pytest.mark.shows("zero", "refused", methods=[*BASELINES, "ptst"])
@pytest.mark.shows("other", "refused", methods=[*BASELINES, "ptst"])
@pytest.mark.parametrize("path", SETUPS)
def test_an_untested_set_up_is_refused_before_a_step(path, tmp_path):
    t = trainer_for(model("lora", torch.float32), tmp_path, data=USER)
    *owners, attribute = path.split(".")
    owner = t
    for part in owners:
        owner = getattr(owner, part)
    object.__setattr__(owner, attribute, SETUPS[path])
    for name in by_name("defenses"):
        with pytest.raises(UnsupportedSetup, match=f"^{by_name('defenses')[name].__name__}: ") as refused:
            example("defenses", name).check(t)
        assert refused.value.remedy


# -- together --------------------------------------------------------------------------------------------------------

PLACES = ("arguments", "rows", "batches", "on_step_begin", "training_step", "loss", "on_gradients", "on_step_end")


def places_of(name):
    return {place for place in PLACES if acts(by_name("defenses")[name].example(), place)}


# Of two that people compose, one is the house's: two baselines are rivals of each other.
PAIRS = [
    pytest.param(a, b, id=f"{a}+{b}", marks=[*pa.marks, *pb.marks])
    for pa, pb in combinations(every("defenses"), 2)
    for a, b in [(pa.values[0], pb.values[0])]
    if "lisa" in (a, b) or (FAST & {a, b} and places_of(a) & places_of(b))
]


@pytest.mark.shows("together", "exact", methods=[*BASELINES, "ptst"])
@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_two_act_together(a, b, tmp_path):
    """With one of two off, it is as if the other were alone; with both on, both act."""
    made = {name: example("defenses", name) for name in (a, b)}
    if "batches" in places_of(a) & places_of(b):
        with pytest.raises(UnsupportedSetup, match="both choose the batches"):
            run(tmp_path, list(made.values()))
        return
    for order in ((a, b), (b, a)):
        both = run(tmp_path, [example("defenses", name) for name in order])
        assert all(bool(torch.isfinite(w).all()) for w in both.values())
        for one, other in ((a, b), (b, a)):  # what is left where the other does nothing in training
            assert same(both, alone(one)) == ("training" in by_name("defenses")[other].differences)
        silent, acting = order  # each of the two is off once, and once the other
        off = by_name("defenses")[silent].off
        if off is not None:
            pair = [example("defenses", n, **(off if n == silent else {})) for n in order]
            assert same(run(tmp_path, pair), alone(acting))
