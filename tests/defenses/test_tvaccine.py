"""T-Vaccine through the real trainer: its closed form in float64, which layers it draws, and its code's traps."""

from collections import Counter
from itertools import pairwise, permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mithridate.defenses.tvaccine import TVaccine
from mithridate.defenses.vaccine import Vaccine
from mithridate.errors import InputError, UnsupportedSetup
from tests.defenses import reference
from tests.defenses.helpers import USUAL, batch_of, clone, error, model, rows, same, trainer_for, weights
from tests.defenses.reference import attention, trainable

USER, HARMFUL = rows("user"), rows("harmful!")
LR, STEPS, LAYERS = 0.1, 3, 4


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batches")
    return {"user": batch_of(USER, folder), "harm": batch_of(HARMFUL, folder)}


def deep(kind="lora", dtype=torch.float64, **config):
    return model(kind, dtype, num_hidden_layers=LAYERS, **config)


class Watched(TVaccine):
    """Notes, of each step, the probabilities and the layers that it used."""

    def on_step_begin(self, t):
        super().on_step_begin(t)
        names = list(self._sites.sites)
        vars(self).setdefault("seen", []).append(
            (self._probabilities.clone(), [names.index(name) for name in self._sites.selected])
        )


def outputs_and_loss(net, batch, shifts=None):
    """The attention outputs, with shifts added to some, and the loss; on a copy whose weights are `net`'s."""
    seen, undo = [], []
    for number, module in enumerate(attention(net)):
        original = module.forward

        def forward(*args, _original=original, _number=number, **kwargs):
            first, *rest = _original(*args, **kwargs)
            first = first if shifts is None or _number not in shifts else first + shifts[_number]
            seen.append(first)
            return first, *rest

        module.forward = forward
        undo.append((module, original))
    loss = reference.loss(net, batch)
    for module, original in undo:
        module.forward = original
    return seen, loss


def naive_probabilities(net, row):
    seen, loss = outputs_and_loss(net, row)
    norms = [float(g.norm()) for g in torch.autograd.grad(loss, seen)]
    return torch.tensor([n / sum(norms) for n in norms], dtype=torch.float64)


def naive_direction(net, batch, selected, rho, frozen):
    """The gradient at the worst shift of the selected layers; None for what is frozen."""
    seen, loss = outputs_and_loss(net, batch)
    g = torch.autograd.grad(loss, [seen[layer] for layer in selected])
    length = sum((x**2).sum() for x in g) ** 0.5
    _, shifted = outputs_and_loss(net, batch, {layer: rho * x / length for layer, x in zip(selected, g, strict=True)})
    gradient = torch.autograd.grad(shifted, trainable(net))
    still = []
    for name, p in net.named_parameters():
        if p.requires_grad:
            outside = any(f"layers.{layer}." in name for layer in range(LAYERS) if layer not in selected)
            still.append(outside and (frozen == "layers" or (frozen == "attention" and "self_attn" in name)))
    return [torch.zeros_like(x) if s else x for x, s in zip(gradient, still, strict=True)]


def descended(net, direction):
    with torch.no_grad():
        for p, d in zip(trainable(net), direction, strict=True):
            p.sub_(LR * d)


@pytest.mark.shows("full", "exact", methods=["tvaccine"])
@pytest.mark.shows("lora", "exact", methods=["tvaccine"])
@pytest.mark.parametrize(("kind", "frozen"), [("lora", "attention"), ("full", "layers")])
def test_every_step_is_the_closed_form(kind, frozen, batches, tmp_path):
    """Two of four layers in each of three steps, their probabilities measured at the first and the third."""
    net = deep(kind)
    want, others = clone(net), [clone(net) for _ in range(3)]
    rule = {"rho": 1.5, "layers": 2, "score_every": 2, "draw_every": 1, "frozen": frozen}
    defense = Watched(harmful_dataset=HARMFUL, **rule)
    before = weights(net)
    args = {"data": USER, "max_steps": STEPS, "learning_rate": LR, "exact": True}
    trainer_for(net, tmp_path, defense=defense, **args).train()
    used = []
    for step, (probabilities, selected) in enumerate(defense.seen):
        if step % 2 == 0:  # of the eight rows, exactly one gives these
            one_row = [{k: v[i : i + 1] for k, v in batches["harm"].items()} for i in range(8)]
            off = [float((naive_probabilities(want, row) - probabilities).abs().max()) for row in one_row]
            used.append(off.index(min(off)))
            assert min(off) < 1e-12 and sorted(off)[1] > 1e-6
        assert len(selected) == 2
        descended(want, naive_direction(want, batches["user"], selected, 1.5, frozen))
        descended(others[0], naive_direction(others[0], batches["user"], selected, 1.5, None))  # nothing frozen
        descended(others[1], reference.vaccine(others[1], [batches["user"]], 1.5))  # all layers
        descended(others[2], naive_direction(others[2], batches["user"], selected, 1e-9, frozen))  # no shift
    assert len(set(used)) == 2, "a row is drawn again before all were"
    start = list(before.values())
    moved = [a - b for a, b in zip(weights(net).values(), start, strict=True)]
    assert error(moved, [p.detach() - b for p, b in zip(trainable(want), start, strict=True)]) < 1e-11
    for other in others:
        assert error(moved, [p.detach() - b for p, b in zip(trainable(other), start, strict=True)]) > 1e-3


def test_all_layers_are_vaccine_bit_for_bit(tmp_path):
    made = []
    for defense in (Vaccine(rho=1.5), TVaccine(harmful_dataset=HARMFUL, rho=1.5, layers=LAYERS)):
        net = deep(dtype=torch.float32, dropout=0.3)
        trainer_for(net, tmp_path, defense=defense, data=USER, **USUAL).train()
        made.append(weights(net))
    assert same(*made)


def test_what_is_frozen_has_no_decay_and_no_momentum(tmp_path):
    """Selected in the first two steps, or in the last two: elsewhere not a bit moves, under AdamW with decay."""
    seen = []

    class Noting(Watched):
        def on_step_end(self, t):
            seen.append(weights(t.model))

    net = deep(dtype=torch.float32)
    defense = Noting(harmful_dataset=HARMFUL, layers=2, draw_every=2)
    seen.append(weights(net))
    trainer_for(net, tmp_path, defense=defense, data=USER, **(USUAL | {"weight_decay": 0.1})).train()
    for step, (before, after) in enumerate(pairwise(seen)):
        for name in before:
            if "self_attn" in name:
                selected = any(f"layers.{layer}." in name for layer in defense.seen[step][1])
                assert torch.equal(before[name], after[name]) != selected, (step, name)
            else:
                assert not torch.equal(before[name], after[name])
    first, _, third, _ = (frozenset(selected) for _, selected in defense.seen)
    assert first != third, "the same layers twice would show nothing about momentum"


def test_layers_are_drawn_without_replacement_by_their_probabilities(tmp_path):
    """How often each pair is drawn, against the exact probabilities of drawing one layer after the other."""
    t = trainer_for(deep(), tmp_path, data=USER)
    defense = Watched(harmful_dataset=None, score="uniform", layers=2, draw_every=1)
    defense.on_train_begin(t)
    p = [0.5, 0.3, 0.15, 0.05]
    defense._probabilities = torch.tensor(p, dtype=torch.float64)
    drawn, n = Counter(), 4000
    for step in range(n):
        t.state.global_step = step
        defense.on_step_begin(t)
        drawn[frozenset(defense.seen[-1][1])] += 1
    expected = Counter()
    for a, b in permutations(range(LAYERS), 2):
        expected[frozenset((a, b))] += p[a] * p[b] / (1 - p[a])
    assert sum(expected.values()) == pytest.approx(1)
    for pair, share in expected.items():
        assert abs(drawn[pair] / n - share) < 4 * (share * (1 - share) / n) ** 0.5


def test_draws_are_the_runs_own(tmp_path):
    """There they are numpy's, which the run's seed does not reach; and more micro-batches would measure more often."""
    made = []
    for state, seed, split in ((1, 0, (8, 1)), (2, 0, (4, 2)), (2, 7, (8, 1))):
        np.random.seed(state)
        defense = Watched(harmful_dataset=HARMFUL, rho=0.0, layers=2, score_every=2, draw_every=1)
        args = {"max_steps": 4, "seed": seed, "data_seed": 0, "learning_rate": 0.0, "exact": True}
        args |= {"per_device_train_batch_size": split[0], "gradient_accumulation_steps": split[1]}
        trainer_for(deep(), tmp_path, defense=defense, data=USER, **args).train()
        made.append([selected for _, selected in defense.seen])
        measured = [p.tolist() for p, _ in defense.seen]
        assert [measured.count(p) for p in measured] == [2] * 4
    assert made[0] == made[1] != made[2] and len({tuple(s) for s in made[0]}) > 1


def test_the_control_needs_no_harmful_rows(tmp_path):
    control = TVaccine(harmful_dataset=HARMFUL, layers=2).controls()["uniform-layers"]
    assert control.settings() == TVaccine(harmful_dataset=HARMFUL, layers=2, score="uniform").settings()
    assert control.data_roles() == {}
    defense = Watched(harmful_dataset=None, layers=2, score="uniform")
    trainer_for(deep(), tmp_path, defense=defense, data=USER).train()
    assert defense.seen[0][0].tolist() == [0.25] * 4


@pytest.mark.parametrize("bad", [0.0, float("nan")])
def test_a_harmful_gradient_that_says_nothing_changes_no_probability(bad, tmp_path):
    t = trainer_for(deep(), tmp_path, data=USER)
    defense = TVaccine(harmful_dataset=HARMFUL, layers=2)
    defense.on_train_begin(t)
    real = t.probe
    t.probe = lambda *args: real(*args) * bad
    defense.on_step_begin(t)
    assert defense._probabilities.tolist() == [0.25] * 4
    t.probe = real
    defense.on_step_begin(t)
    assert defense._probabilities.tolist() != [0.25] * 4


def test_what_it_cannot_do_is_refused_before_a_step(tmp_path):
    def refused(match, **fields):
        with pytest.raises(UnsupportedSetup, match=match) as error:
            trainer_for(deep(), tmp_path, defense=TVaccine(**({"harmful_dataset": HARMFUL} | fields)), data=USER)
        return error.value.remedy

    assert "layers=1 (a quarter" in refused("TVaccine: layers=8, and the model has 4")  # the authors' 8 of 32
    refused("harmful_dataset must be a", harmful_dataset=None, layers=2)
    refused("harmful_dataset has no rows", harmful_dataset=[], layers=2)
    refused("exactly one site in each of the 4 layers", sites=["q_proj", "v_proj"], layers=2)
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(UnsupportedSetup, match="TVaccine: re-entrant checkpointing"):
        trainer_for(deep(), tmp_path, defense=TVaccine(harmful_dataset=HARMFUL, layers=2), data=USER, **reentrant)
    for fields in (
        {"rho": -1},
        {"layers": 0},
        {"score_every": 0},
        {"draw_every": 1.5},
        {"frozen": "all"},
        {"score": "x"},
        {"sites": []},
    ):
        with pytest.raises(InputError, match=f"TVaccine: {next(iter(fields))} must be"):
            TVaccine(harmful_dataset=HARMFUL, **fields)


def test_other_sites_are_frozen_where_they_are(tmp_path):
    """The authors' code finds attention by its class's name; `sites` names another module, whose weights then rest."""
    net = SimpleNamespace(seen=None)

    class Noting(TVaccine):
        def on_gradients(self, t):
            super().on_gradients(t)
            net.seen = {n: p.grad is None for n, p in t.model.named_parameters()}, list(self._sites.selected)

    trainer_for(
        deep("full"), tmp_path, defense=Noting(harmful_dataset=HARMFUL, layers=1, sites=["mlp"]), data=USER
    ).train()
    resting, [selected] = net.seen
    assert {n for n, rests in resting.items() if rests} == {
        n for n in resting if ".mlp." in n and not n.startswith(selected)
    }
