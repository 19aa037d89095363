"""One step of each rule through the real SFTTrainer path equals the closed form of the paper.

Two tolerances, both on the update itself, |got - expected| / |expected|: 1e-6 on the path that users take, where TRL's
fused head computes the loss in float32 (4e-7 measured at most), and 1e-12 where model and loss compute in float64
throughout (1e-15 measured).
"""

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from transformers import TrainerCallback

from mithridate.defenses.booster import Booster
from mithridate.defenses.lisa import Lisa
from mithridate.defenses.vaccine import Vaccine
from tests.defenses import reference
from tests.defenses.helpers import batch_of, clone, error, model, rows, trainer_for, update, weights

USER, HARMFUL, SAFE = rows("user"), rows("harmful!"), rows("careful")
quick = settings(
    max_examples=5,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a training run an example: shrinking would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batches")
    return {name: batch_of(data, folder) for name, data in [("user", USER), ("harm", HARMFUL), ("safe", SAFE)]}


def defended(name):
    return {
        "sft": None,
        "booster": Booster(harmful_dataset=HARMFUL, alpha=0.3, lam=2.0),
        "vaccine": Vaccine(rho=1.5),
        "both": [Booster(harmful_dataset=HARMFUL, alpha=0.3, lam=2.0), Vaccine(rho=1.5)],
        "both, other order": [Vaccine(rho=1.5), Booster(harmful_dataset=HARMFUL, alpha=0.3, lam=2.0)],
    }[name]


def expected(name, net, batches):
    user, harm = batches["user"], batches["harm"]
    if name == "sft":
        return reference.gradient(net, user)
    if name == "booster":
        return reference.booster(net, user, harm, 0.3, 2.0)
    shifted = reference.vaccine(net, [user], 1.5)
    if name == "vaccine":
        return shifted
    return [a + b for a, b in zip(shifted, reference.booster_regulariser(net, harm, 0.3, 2.0), strict=True)]


@pytest.mark.shows("full", "exact", methods=["vaccine", "booster"])
@pytest.mark.shows("lora", "exact", methods=["vaccine", "booster"])
@pytest.mark.parametrize("path", ["fused loss", "fused loss, checkpointing", "float64 loss"])
@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("name", ["sft", "booster", "vaccine", "both"])
def test_one_step_is_the_closed_form(name, kind, path, batches, tmp_path):
    net, exact = model(kind), path == "float64 loss"
    want = expected(name, clone(net), batches)
    got = update(
        net, tmp_path, defense=defended(name), data=USER, exact=exact, gradient_checkpointing="checkpointing" in path
    )
    assert error(got, want) < (1e-12 if exact else 1e-6)


@pytest.mark.shows("checkpointing", "exact", methods=["vaccine", "booster"])
@pytest.mark.parametrize("name", ["booster", "vaccine", "both", "both, other order"])
def test_checkpointing_changes_nothing(name, tmp_path):
    """Where a recomputed layer is not shifted, torch raises no error, and the gradient is another one."""
    kept = update(model(), tmp_path, defense=defended(name), data=USER, exact=True)
    recomputed = update(model(), tmp_path, defense=defended(name), data=USER, exact=True, gradient_checkpointing=True)
    assert error(recomputed, kept) < 1e-12


@pytest.mark.shows("together", "exact", methods=["vaccine", "booster"])
def test_the_order_of_a_composition_does_not_matter(tmp_path):
    one, other = (update(model(), tmp_path, defense=defended(n), data=USER) for n in ("both", "both, other order"))
    assert error(other, one) < 1e-12


@pytest.mark.parametrize("name", ["booster", "vaccine"])
def test_the_closed_form_is_not_plain_training(name, batches):
    """The comparison above could not tell the rules apart if their terms were small."""
    net = model()
    assert error(expected(name, net, batches), expected("sft", net, batches)) > 0.05


def test_the_combined_gradient_is_clipped_as_one(batches, tmp_path):
    net = model()
    want = reference.booster(clone(net), batches["user"], batches["harm"], 0.3, 2.0)
    size = float(reference.norm(want))
    got = update(net, tmp_path, defense=defended("booster"), data=USER, max_grad_norm=size / 3, exact=True)
    assert error(got, [w / 3 for w in want]) < 1e-6  # torch's clipping adds 1e-6 to the norm


@pytest.mark.shows("accumulation", "exact", methods=["booster"])
@quick
@given(
    split=st.sampled_from([(8, 1), (4, 2), (2, 4), (1, 8)]),
    alpha=st.floats(1e-3, 1.0),
    lam=st.floats(0.1, 20.0),
)
def test_booster_does_not_depend_on_the_accumulation(split, alpha, lam, batches, tmp_path):
    net = model("lora")
    want = reference.booster(clone(net), batches["user"], batches["harm"], alpha, lam)
    got = update(
        net,
        tmp_path,
        defense=Booster(harmful_dataset=HARMFUL, alpha=alpha, lam=lam),
        data=USER,
        per_device_train_batch_size=split[0],
        gradient_accumulation_steps=split[1],
        exact=True,
    )
    assert error(got, want) < 1e-10


@pytest.mark.parametrize("split", [(8, 1), (4, 2), (2, 4)])
def test_booster_accumulation_on_the_users_path(split, batches, tmp_path):
    net = model()
    want = reference.booster(clone(net), batches["user"], batches["harm"], 0.3, 2.0)
    b, m = split
    got = update(
        net,
        tmp_path,
        defense=defended("booster"),
        data=USER,
        per_device_train_batch_size=b,
        gradient_accumulation_steps=m,
    )
    assert error(got, want) < 1e-6


@pytest.mark.shows("accumulation", "difference", methods=["vaccine"], note="`rho` is per micro-batch")
def test_vaccine_under_accumulation_has_rho_per_micro_batch(tmp_path):
    net, seen = model(), []
    t = trainer_for(
        net,
        tmp_path,
        defense=Vaccine(rho=1.5),
        data=USER,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    collate = t.data_collator
    t.data_collator = lambda examples: seen.append(collate(examples)) or seen[-1]
    before, want_from = weights(net), model()
    t.train()
    got = [b - a for b, a in zip(before.values(), weights(net).values(), strict=True)]
    assert len(seen) == 2
    assert error(got, reference.vaccine(want_from, seen, 1.5)) < 1e-6


@pytest.mark.shows("full", "exact", methods=["lisa"])
@pytest.mark.shows("lora", "exact", methods=["lisa"])
@pytest.mark.shows("accumulation", "exact", methods=["lisa"])
@quick
@given(
    split=st.sampled_from([(8, 1), (4, 2), (2, 4)]),
    cycle=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    rho=st.floats(0.0, 2.0),
    start=st.sampled_from([0.0, 0.1, 0.3, 1.0]),
    kind=st.sampled_from(["full", "lora"]),
)
def test_lisa_follows_the_two_state_rule(split, cycle, rho, start, kind, batches, tmp_path):
    """Phases, anchors, the start without the proximal term, and accumulation, over eight steps."""
    net = model(kind)
    want = clone(net)
    rule = {"align_steps": cycle[0], "finetune_steps": cycle[1], "rho": rho, "proximal_start": start}
    reference.lisa(want, batches["safe"], batches["user"], steps=8, lr=0.1, **rule)
    before = weights(net)
    trainer_for(
        net,
        tmp_path,
        defense=Lisa(alignment_dataset=SAFE, **rule),
        data=USER,
        learning_rate=0.1,
        max_steps=8,
        per_device_train_batch_size=split[0],
        gradient_accumulation_steps=split[1],
        exact=True,
    ).train()
    moved = [a - b for a, b in zip(weights(net).values(), before.values(), strict=True)]
    wanted = [p.detach() - b for p, b in zip(reference.trainable(want), before.values(), strict=True)]
    assert error(moved, wanted) < 1e-10


def test_every_step_of_lisa_on_the_users_path(batches, tmp_path):
    """Each of eight steps, from where the last one ended: its own closed form."""
    net, visited = model(), []

    class Record(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            visited.append([p.detach().clone() for p in reference.trainable(net)])

    rule = {"align_steps": 2, "finetune_steps": 3, "rho": 1.0, "proximal_start": 0.2}
    defense = Lisa(alignment_dataset=SAFE, **rule)
    trainer_for(
        net, tmp_path, defense=defense, data=USER, learning_rate=0.1, max_steps=8, callbacks=[Record()]
    ).train()
    visited.append([p.detach().clone() for p in reference.trainable(net)])
    states = ["safe", "safe", "user", "user", "user", "safe", "safe", "user"]
    anchors = [0, 0, 2, 2, 2, 5, 5, 7]  # where the other state ended, as a number of finished steps
    for step in range(8):
        with torch.no_grad():
            for p, w in zip(reference.trainable(net), visited[step], strict=True):
                p.copy_(w)
        want = reference.gradient(net, batches[states[step]])
        if step >= 2:  # 0.2 * 8 = 1.6
            want = [g + w - a for g, w, a in zip(want, visited[step], visited[anchors[step]], strict=True)]
        got = [(w - v) / 0.1 for w, v in zip(visited[step], visited[step + 1], strict=True)]
        assert error(got, want) < 1e-6, f"step {step}"


def test_the_seed_is_exactly_what_is_added(tmp_path):
    """Seed c: the weights move by c more, whatever the accumulation."""
    from mithridate.defenses.base import Defense

    class Constant(Defense):
        def on_step_begin(self, t):
            t.seed([torch.full_like(p, 0.25) for p in t.params])

    for m in (1, 4):
        plain = update(model(), tmp_path, data=USER, per_device_train_batch_size=8 // m, gradient_accumulation_steps=m)
        seeded = update(
            model(),
            tmp_path,
            defense=Constant(),
            data=USER,
            per_device_train_batch_size=8 // m,
            gradient_accumulation_steps=m,
        )
        assert all(
            torch.allclose(s - p, torch.full_like(p, 0.25), atol=1e-12) for s, p in zip(seeded, plain, strict=True)
        )
