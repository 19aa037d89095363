"""Vaccine and Booster on every k-th optimizer step only: a function of the step, exact, and kept by a resumed run."""

import pytest
import torch

from mithridate.defenses.booster import Booster
from mithridate.defenses.vaccine import Vaccine
from mithridate.errors import InputError
from tests.defenses import reference
from tests.defenses.helpers import batch_of, error, model, rows, same, trainer_for, weights

USER, HARMFUL = rows("user"), rows("harmful!")
SPARSE = {
    "vaccine": lambda every: Vaccine(rho=1.5, every=every),
    "booster": lambda every: Booster(harmful_dataset=HARMFUL, alpha=0.3, lam=2.0, every=every),
}


def expected(name, net, user, harm, step, every):
    if step % every:
        return reference.gradient(net, user)
    if name == "vaccine":
        return reference.vaccine(net, [user], 1.5)
    return reference.booster(net, user, harm, 0.3, 2.0 * every)


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("name", SPARSE)
def test_every_step_is_its_own_closed_form(name, kind, every, tmp_path):
    """Five steps: the defended ones by the papers' rule (Booster's k-fold), the others plain."""
    net, want = model(kind), model(kind)
    user, harm = batch_of(USER, tmp_path), batch_of(HARMFUL, tmp_path)
    args = {"data": USER, "max_steps": 5, "learning_rate": 0.1, "exact": True}
    trainer_for(net, tmp_path, defense=SPARSE[name](every), **args).train()
    for step in range(5):
        direction = expected(name, want, user, harm, step, every)
        with torch.no_grad():
            for p, d in zip(reference.trainable(want), direction, strict=True):
                p.sub_(0.1 * d)
    start = weights(model(kind)).values()
    moved = [a - b for a, b in zip(weights(net).values(), start, strict=True)]
    wanted = [p.detach() - b for p, b in zip(reference.trainable(want), start, strict=True)]
    assert error(moved, wanted) < 1e-9


@pytest.mark.parametrize("name", SPARSE)
def test_accumulation_does_not_change_the_rhythm(name, tmp_path):
    """The rule counts optimizer steps: all micro-batches of one step are treated alike."""
    probes = []

    def counted(t):
        verb = "probe" if name == "vaccine" else "gradient"
        real = getattr(t, verb)
        setattr(t, verb, lambda *args: probes.append(t.state.global_step) or real(*args))
        return t

    args = {"data": USER, "max_steps": 5, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    counted(trainer_for(model(), tmp_path, defense=SPARSE[name](2), learning_rate=0.01, **args)).train()
    assert probes == [0, 0, 2, 2, 4, 4]  # two micro-batches of Vaccine, the two passes of Booster


@pytest.mark.parametrize("saved", [2, 3])
@pytest.mark.parametrize("name", SPARSE)
def test_a_resumed_run_keeps_the_rhythm(name, saved, tmp_path):
    """Interrupted before a defended step and before a plain one: it ends with the same weights bit for bit."""
    args = {"data": USER, "max_steps": 6, "optim": "adamw_torch", "learning_rate": 0.01, "save_strategy": "steps"}
    args |= {"save_steps": saved, "per_device_train_batch_size": 2}
    whole = model("full", torch.float32)
    trainer_for(whole, tmp_path, defense=SPARSE[name](2), **args).train()
    resumed = model("full", torch.float32)
    t = trainer_for(resumed, tmp_path, defense=SPARSE[name](2), **args)
    t.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{saved}"))
    assert same(weights(whole), weights(resumed))


def test_a_checkpoint_of_another_rhythm_is_refused(tmp_path):
    args = {"data": USER, "max_steps": 2, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.01}
    trainer_for(model(), tmp_path, defense=SPARSE["vaccine"](2), **args).train()
    t = trainer_for(model(), tmp_path, defense=SPARSE["vaccine"](1), **args)
    with pytest.raises(InputError, match="was written with defense"):
        t.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_boosters_harmful_rows_are_all_drawn_before_any_is_drawn_again(tmp_path):
    """Turns are counted, not steps: otherwise every k-th batch alone would be used."""
    defense, drawn = SPARSE["booster"](2), []
    t = trainer_for(
        model(), tmp_path, defense=defense, data=USER, max_steps=8, per_device_train_batch_size=2, learning_rate=0.01
    )
    real = t.side_data

    def watched(dataset, name):
        side = real(dataset, name)
        rows_of = side.rows
        side.rows = lambda step, micro: drawn.extend(rows_of(step, micro)) or rows_of(step, micro)
        return side

    t.side_data = watched
    t.train()
    assert sorted(drawn) == list(range(8))


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "2"])
@pytest.mark.parametrize("name", SPARSE)
def test_every_out_of_range_is_refused(name, every):
    with pytest.raises(InputError, match="every must be a whole number of steps, at least 1"):
        SPARSE[name](every)
