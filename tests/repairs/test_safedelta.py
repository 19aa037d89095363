"""Safe Delta against a naive float64 form, entry by entry, and held away from the traps of its public code."""

import copy
import math

import numpy as np
import pytest
import torch

from mithridate.errors import InputError, MithridateError, UnsupportedSetup
from mithridate.repairs.input_norms import token_ids
from mithridate.repairs.safedelta import SafeDelta, chosen
from tests.repairs.test_baselines import effective, error, models, settings
from tests.tiny import tiny_llama, tiny_tokenizer

ROWS = [{"prompt": f"How is lock {i} opened?", "response": f"No, {'not ' * i}this one."} for i in range(6)]
WIDTH = 16


def inputs(model, names, rows):
    """What each linear layer sees of each row, one row at a time: {name: [array [tokens, in]]}."""
    seen = {name: [] for name in names}

    def keep(name):
        return lambda module, args: seen[name].append(args[0][0].detach().numpy().astype(np.float64))

    layers = dict(model.named_modules())
    wrapped = {n: layers.get(f"base_model.model.{n}", layers.get(n)) for n in names}
    handles = [module.register_forward_pre_hook(keep(name)) for name, module in wrapped.items()]
    with torch.no_grad():
        for row in token_ids(rows, tiny_tokenizer()):
            model(torch.tensor([row]))
    for handle in handles:
        handle.remove()
    return seen


def naive_h(xs):
    return 2 / len(xs) * sum(x.T @ x for x in xs)


def naive(aligned, tuned, h, s, width=WIDTH):
    """One layer, entry by entry: the order as a sorted list, the budget as a running sum, the making up as loops."""
    rows, columns = aligned.shape
    h = h.copy()
    for j in range(columns):
        h[j, j] = h[j, j] or 1.0
    h += 0.01 * np.mean([h[j, j] for j in range(columns)]) * np.eye(columns)
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    w, count = aligned.copy(), 0
    for first in range(0, columns, width // 2):
        last = min(first + width // 2, columns)
        cost = {j: u[j, j] ** -2 for j in range(first, last)}
        entries = sorted(((j, i) for j in cost for i in range(rows)), key=lambda e: (cost[e[0]], e))
        entries = entries[: len(entries) - math.floor(0.15 * len(entries))]
        budget = s / 2 * rows / width * np.mean(list(cost.values()))
        taken, spent = set(), 0.0
        for j, i in entries:
            spent += (tuned[i, j] - w[i, j]) ** 2 * cost[j]
            if spent > budget:
                break
            taken.add((i, j))
        count += len(taken)
        for group in range(first, last, 4):
            errors = {}
            for j in range(group, min(group + 4, last)):
                for i in range(rows):
                    if (i, j) in taken:
                        errors[i, j] = (w[i, j] - tuned[i, j]) / u[j, j]
                        w[i, j] = tuned[i, j]
            for (i, j), e in errors.items():
                for k in range(min(group + 4, last), columns):
                    w[i, k] -= e * u[j, k]
    return w, count


@pytest.mark.shows("weights", "exact", methods=["safedelta"])
@settings
@pytest.mark.parametrize("s", [0.3, 3.0])
def test_it_is_the_rule_in_every_layer(setting, s):
    model, aligned = models(setting)
    tuned, start = effective(model), effective(aligned)
    linear = [n for n in tuned if n.endswith("proj.weight") and (tuned[n] != start[n]).any()]
    xs = inputs(aligned, [n.removesuffix(".weight") for n in linear], ROWS)
    want, kept, entries = dict(start), 0, 0
    for name in linear:
        want[name], count = naive(start[name], tuned[name], naive_h(xs[name.removesuffix(".weight")]), s)
        kept, entries = kept + count, entries + want[name].size
    delta = SafeDelta(s=s).apply(model, safety=ROWS, tokenizer=tiny_tokenizer(), aligned=aligned)
    assert 20 < kept < 0.86 * entries
    assert error(tuned, want) > 1e-3 and error(start, want) > 1e-3
    assert error(effective(model), want) < 1e-10
    assert f"{kept / entries:.2%} of the linear layers' entries" in "\n".join(delta.notes)


def test_nothing_kept_is_the_aligned_model_and_no_budget_keeps_the_guarded_share():
    for s in (0.0, 1e9):
        model, aligned = models("full")
        tuned, start = effective(model), effective(aligned)
        SafeDelta(s=s).apply(model, safety=ROWS, tokenizer=tiny_tokenizer(), aligned=aligned)
        got = effective(model)
        if s == 0:
            assert error(got, start) == 0
        else:
            name = "model.layers.0.self_attn.q_proj.weight"
            assert (got[name] != tuned[name]).sum() == 2 * math.floor(0.15 * 16 * 8)
        others = [n for n in tuned if not n.endswith("proj.weight")]
        assert len(others) > 5 and all((got[n] == start[n]).all() for n in others)


def layer(seed=0, rows=12, columns=32, n=5):
    rng = np.random.default_rng(seed)
    aligned = rng.standard_normal((rows, columns))
    tuned = aligned + 0.1 * rng.standard_normal((rows, columns))
    xs = [rng.standard_normal((20, columns)) @ rng.standard_normal((columns, columns)) for _ in range(n)]
    return aligned, tuned, naive_h(xs)


def apply(aligned, tuned, h, s, width, draws=None):
    tensors = (torch.tensor(x, dtype=torch.float64) for x in (aligned, tuned, h))
    value, taken = chosen(*tensors, s, width, "layer", draws)
    return value.numpy(), taken


def test_making_up_is_worth_it():
    """On the safety inputs, the outputs move less than with the same entries and nothing made up for."""
    aligned, tuned, h = layer()
    got, taken = apply(aligned, tuned, h, 0.5, 32)
    kept = got == tuned
    assert 0 < taken == kept.sum()
    bare = np.where(kept, tuned, aligned)

    def moved(w):
        return np.trace((w - aligned) @ h @ (w - aligned).T)

    assert moved(got) < 0.8 * moved(bare)


def test_the_budget_is_a_fraction_of_the_models_width():
    """The trap: blocks of 2048 and out / 4096 in a model of another width. With them, at the same s, this layer would
    keep next to nothing; and a block would be the whole layer."""
    aligned, tuned, h = layer(rows=16, columns=16)
    _, own = apply(aligned, tuned, h, 0.5, 16)
    _, theirs = apply(aligned, tuned, h, 0.5, 4096)
    assert own > 20 and theirs < own / 10
    for s, width in ((0.5, 16), (0.1, 16), (2.0, 4096)):
        want, count = naive(aligned, tuned, h, s, width)
        got, taken = apply(aligned, tuned, h, s, width)
        assert taken == count and np.abs(got - want).max() < 1e-10


def test_a_block_of_few_entries_can_be_kept():
    """The trap of a slice up to -int(0.15 * n): with n below 7 that is [0:-0], which is empty."""
    aligned, tuned, h = layer(rows=2, columns=2)
    got, taken = apply(aligned, tuned, h, 1e9, 4)
    assert taken == 4 and (got == tuned).all()


def test_features_that_are_never_seen_cost_nothing_to_speak_of():
    aligned, tuned, h = layer(rows=16, columns=16)
    h[3], h[:, 3] = 0, 0
    want, _ = naive(aligned, tuned, h, 0.5, 16)
    got, _ = apply(aligned, tuned, h, 0.5, 16)
    assert np.abs(got - want).max() < 1e-10 and (got[:, 3] == tuned[:, 3]).all()


def test_the_inputs_are_those_of_the_aligned_model_without_pads_in_any_batch():
    made = []
    for batch_size in (1, 4):
        model, aligned = models("double")
        delta = SafeDelta(s=1.0).apply(
            model, safety=ROWS, tokenizer=tiny_tokenizer(), aligned=aligned, batch_size=batch_size
        )
        made.append((effective(model), delta))
    assert error(made[0][0], made[1][0]) < 1e-12


def test_fewer_rows_are_drawn_by_the_seed():
    digests = []
    for seed in (0, 0, 1):
        model, aligned = models("double")
        repair = SafeDelta(s=1.0, samples=2, seed=seed)
        digests.append(repair.apply(model, safety=ROWS, tokenizer=tiny_tokenizer(), aligned=aligned).digest)
    assert digests[0] == digests[1] != digests[2]


def test_the_control_takes_as_many_entries_at_random():
    aligned, tuned, h = layer()
    got, taken = apply(aligned, tuned, h, 0.5, 32)
    other, drawn = apply(aligned, tuned, h, 0.5, 32, torch.Generator().manual_seed(1))
    first = slice(0, 16)  # in later blocks what was made up for differs, so that the budget buys another number
    assert (got == tuned)[:, first].sum() == (other == tuned)[:, first].sum() > 0
    assert taken > 0 and drawn > 0 and ((got == tuned) != (other == tuned)).any()


def test_what_it_cannot_do_is_refused_by_name():
    model, aligned = models("double")
    given = {"safety": ROWS, "tokenizer": tiny_tokenizer(), "aligned": aligned}
    with pytest.raises(UnsupportedSetup, match="SafeDelta: needs the aligned model"):
        SafeDelta().apply(model, **given | {"aligned": None})
    for none in (None, []):
        with pytest.raises(UnsupportedSetup, match="there are none") as refused:
            SafeDelta().apply(model, **given | {"safety": none})
        assert "safety=" in refused.value.remedy
    with pytest.raises(InputError, match="row 1"):
        SafeDelta().check(model, **given | {"safety": [{"prompt": "How?"}]})
    with pytest.raises(InputError, match="changed no linear layer"):
        SafeDelta().apply(tiny_llama(torch.float64), **given)
    with pytest.raises(InputError, match="`finetune` is none"):
        SafeDelta().check_run(topology="double", finetuned=False, adapter=True)
    for wrong in ({"s": -1}, {"s": None}, {"samples": 0}, {"seed": -1}, {"choice": "x"}):
        with pytest.raises(InputError, match="must be"):
            SafeDelta(**wrong)
    broken = copy.deepcopy(aligned)
    with torch.no_grad():
        broken.model.layers[0].self_attn.q_proj.weight.fill_(float("nan"))
    with pytest.raises(MithridateError, match="not finite"):
        SafeDelta().apply(model, **given | {"aligned": broken})
