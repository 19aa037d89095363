"""The baselines through the real trainer against their closed forms, written naively in float64, and their traps.

The naive forms share no code with the package: one row at a time, token by token, without batches, hooks or a Trainer.
"""

import itertools

import pytest
import torch

from mithridate.defenses.ewc import EWC
from mithridate.defenses.fewersteps import FewerSteps
from mithridate.defenses.kl import KL
from mithridate.defenses.ldifs import LDIFS
from mithridate.defenses.lowerlr import LowerLR
from mithridate.defenses.safetymix import SafetyMix
from mithridate.errors import InputError, MithridateError, UnsupportedSetup
from mithridate.training.outputs import Capture
from mithridate.training.trainer import DefenseTrainer
from tests.defenses.helpers import batch_of, clone, error, model, rows, same, trainer_for, update, weights
from tests.defenses.reference import gradient, trainable
from tests.tiny import tiny_tokenizer

USER, SAFE = rows("user"), rows("careful")
SPLITS = [(8, 1), (4, 2), (2, 4)]  # rows of a micro-batch, micro-batches of a step
LR, STEPS = 0.1, 3
kinds = pytest.mark.parametrize("kind", ["full", "lora"])
splits = pytest.mark.parametrize("split", SPLITS)


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batches")
    return {"user": batch_of(USER, folder), "safe": batch_of(SAFE, folder)}


def each_row(batch):
    """(ids [1, T], prompt length) of each row without its padding."""
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        length = int(mask.sum())
        yield ids[None, :length], int((labels[:length] == -100).sum())


def descended(net, directions, lrs):
    """`net` after gradient descent: `directions(net)` is one tensor per trained parameter."""
    for lr in lrs:
        steps = directions(net)
        with torch.no_grad():
            for p, d in zip(trainable(net), steps, strict=True):
                p.sub_(lr * d)
    return net


def moved(net, folder, defense, split=(8, 1), **args):
    """What the real trainer does to the weights in some steps of SGD."""
    args = {"learning_rate": LR, "max_steps": STEPS, "data": USER, "exact": True} | args
    return update(
        net,
        folder,
        defense=defense,
        **({"per_device_train_batch_size": split[0], "gradient_accumulation_steps": split[1]} | args),
    )


def wanted(net, directions, lrs=(LR,) * STEPS):
    before = [p.detach().clone() for p in trainable(net)]
    after = trainable(descended(clone(net), directions, lrs))
    return [b - a.detach() for b, a in zip(before, after, strict=True)]


def plus(net, batch, term):
    """The gradient of the mean cross-entropy over answer tokens, and of `term` (0-dim)."""
    own = torch.autograd.grad(term, trainable(net), allow_unused=True)
    return [g if t is None else g + t for g, t in zip(gradient(net, batch), own, strict=True)]


# -- LowerLR, FewerSteps ----------------------------------------------------------------------------------------------


@pytest.mark.shows("full", "exact", methods=["lowerlr"])
@pytest.mark.shows("lora", "exact", methods=["lowerlr"])
@kinds
@splits
def test_lower_lr_is_a_smaller_step(kind, split, batches, tmp_path):
    net = model(kind)
    want = wanted(net, lambda n: gradient(n, batches["user"]), [0.3 * LR] * STEPS)
    assert error(moved(net, tmp_path, LowerLR(factor=0.3), split), want) < 1e-12


@pytest.mark.shows("full", "exact", methods=["fewersteps"])
@pytest.mark.shows("lora", "exact", methods=["fewersteps"])
@kinds
@splits
def test_fewer_steps_are_a_shorter_schedule(kind, split, batches, tmp_path):
    """ceil(0.3 * 10) is 3 (in floating point 0.3 * 10 may be more), and a linear schedule falls to 0 over those 3."""
    net = model(kind)
    want = wanted(net, lambda n: gradient(n, batches["user"]), [LR, LR * 2 / 3, LR / 3])
    got = moved(net, tmp_path, FewerSteps(share=0.3), split, max_steps=10, lr_scheduler_type="linear")
    assert error(got, want) < 1e-12


ADAM = {"optim": "adamw_torch", "lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.1, "data": USER}


@pytest.mark.parametrize(
    ("defense", "asked", "plain"),
    [
        (LowerLR(factor=0.5), {"learning_rate": 0.02, "max_steps": 6}, {"learning_rate": 0.01, "max_steps": 6}),
        (FewerSteps(share=0.5), {"learning_rate": 0.02, "max_steps": 6}, {"learning_rate": 0.02, "max_steps": 3}),
        # 8 rows, batches of 2, 2 micro-batches: 2 steps an epoch, 5 in 2.5 epochs; ceil(0.5 * 5) = 3
        (FewerSteps(share=0.5), {"max_steps": -1, "num_train_epochs": 2.5}, {"max_steps": 3}),
    ],
)
def test_they_are_the_run_that_an_experiment_would_ask_for(defense, asked, plain, tmp_path):
    ours, other = model("lora", torch.float32, dropout=0.3), model("lora", torch.float32, dropout=0.3)
    common = ADAM | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer_for(ours, tmp_path, defense=defense, **common, **asked).train()
    trainer_for(other, tmp_path, **common, **plain).train()
    assert same(weights(ours), weights(other))


def test_the_arguments_that_were_given_are_left_as_they_are(tmp_path):
    args = trainer_for(model(), tmp_path, data=USER, learning_rate=0.2, max_steps=6).args
    for _ in range(2):  # the same arguments for two trainers
        t = DefenseTrainer(
            model=model(),
            args=args,
            train_dataset=USER,
            processing_class=tiny_tokenizer(),
            defense=[LowerLR(factor=0.5), FewerSteps(share=0.5)],
        )
        assert (t.args.learning_rate, t.args.max_steps) == (0.1, 3)
    assert (args.learning_rate, args.max_steps) == (0.2, 6)


@pytest.mark.parametrize(
    ("made", "wrong"),
    [
        (lambda v: LowerLR(factor=v), [0, -1, 1.5, float("nan"), "0.5", True]),
        (lambda v: FewerSteps(share=v), [0, -1, 1.5, None]),
        (lambda v: SafetyMix(alignment_dataset=SAFE, share=v), [-0.1, 1, 2]),
        (lambda v: KL(lam=v), [-1, float("inf"), "x"]),
        (lambda v: LDIFS(rho=v), [-1, float("inf")]),
        (lambda v: EWC(alignment_dataset=SAFE, lam=v), [-1, None]),
        (lambda v: EWC(alignment_dataset=SAFE, lam=1.0, fisher_rows=v), [0, 2.5, True]),
    ],
)
def test_settings_out_of_their_range_are_refused(made, wrong):
    for value in wrong:
        with pytest.raises(InputError, match="must be a"):
            made(value)


def test_what_they_cannot_do_is_refused_before_a_step(tmp_path):
    with pytest.raises(UnsupportedSetup, match="LowerLR: the schedule ends at min_lr"):
        trainer_for(
            model(),
            tmp_path,
            defense=LowerLR(factor=0.5),
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr": 1e-4},
        )
    t = trainer_for(model(), tmp_path, learning_rate=0.2)
    t.optimizer = torch.optim.SGD(t.params, lr=0.3)
    with pytest.raises(UnsupportedSetup, match="LowerLR: the optimizer was made beforehand"):
        LowerLR(factor=0.5).check(t)
    for defense in (FewerSteps(share=0.5), SafetyMix(alignment_dataset=SAFE, share=0.1)):
        with pytest.raises(UnsupportedSetup, match=f"{type(defense).__name__}: the training set is packed"):
            trainer_for(model(), tmp_path, defense=defense, max_steps=-1, packing=True)
    with pytest.raises(UnsupportedSetup, match="SafetyMix: the training set has the column prompt"):
        other = SAFE.rename_column("prompt", "question")
        trainer_for(model(), tmp_path, defense=SafetyMix(alignment_dataset=other, share=0.1))
    with pytest.raises(UnsupportedSetup, match="EWC: fisher_rows=9, and alignment_dataset has 8 rows"):
        trainer_for(model(), tmp_path, defense=EWC(alignment_dataset=SAFE, lam=1.0, fisher_rows=9))


# -- SafetyMix --------------------------------------------------------------------------------------------------------


def of_each_row(net, batch):
    """For each row, the gradient of the sum over its answer's tokens, and their number."""
    found = []
    for ids, prompt in each_row(batch):
        picked = torch.log_softmax(net(input_ids=ids).logits[0], -1)
        total = -sum(picked[i - 1, ids[0, i]] for i in range(prompt, ids.shape[1]))
        found.append((torch.autograd.grad(total, trainable(net)), ids.shape[1] - prompt))
    return found


@pytest.mark.shows("full", "exact", methods=["safetymix"])
@pytest.mark.shows("lora", "exact", methods=["safetymix"])
@kinds
@pytest.mark.parametrize("split", [(10, 1), (5, 2), (2, 5)])
def test_safety_mix_is_training_on_all_rows_of_the_mixture(kind, split, batches, tmp_path):
    """A fifth of the mixture: 2 safe rows beside 8; which 2 is drawn, so exactly one pair of them must fit."""
    net = model(kind)
    user, safe = (of_each_row(net, batches[name]) for name in ("user", "safe"))
    got = moved(net, tmp_path, SafetyMix(alignment_dataset=SAFE, share=0.2), split, max_steps=1, learning_rate=1.0)
    errors = []
    for pair in itertools.combinations(range(8), 2):
        parts = [*user, *(safe[i] for i in pair)]
        count = sum(n for _, n in parts)
        errors.append(error(got, [sum(gs) / count for gs in zip(*(g for g, _ in parts), strict=True)]))
    best, second, *_ = sorted(errors)
    assert best < 1e-12 and second > 1e-3


def test_safety_mix_adds_rows_and_leaves_the_steps(tmp_path):
    """By epochs: 8 rows in batches of 2 are 4 steps, in 2 epochs 8, with added rows too. None is lost."""
    seen = []
    for share, count in ((0.0, 8), (1 / 3, 12), (0.8, 40)):
        t = trainer_for(
            model(),
            tmp_path,
            data=USER,
            defense=SafetyMix(alignment_dataset=SAFE, share=share),
            max_steps=-1,
            num_train_epochs=2,
            per_device_train_batch_size=2,
        )
        assert len(t.train_dataset) == count
        t.train()
        assert t.state.global_step == 8
        texts = [t.processing_class.decode(ids) for ids in t.train_dataset["input_ids"]]
        assert sum("resu" in text for text in texts) == 8 and sum("careful" in text for text in texts) == count - 8
        seen.append(texts)
    thirds = [i for i, text in enumerate(seen[1]) if "careful" in text]
    assert max(b - a for a, b in itertools.pairwise(thirds)) <= 4, "spread evenly, should the order be kept"
    safe = [text for text in seen[2] if "careful" in text]  # 32 of 8 rows: each four times
    assert {safe.count(text) for text in safe} == {4}


ONE_PASS = {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 2} | {
    "train_sampling_strategy": "sequential",
    "shuffle_dataset": False,
}


def in_order(seen):
    """A trainer that notes the rows of its steps, as text."""

    class Noting(DefenseTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            seen.extend(self.processing_class.decode(ids) for ids in inputs["input_ids"])
            return super().training_step(model, inputs, num_items_in_batch)

    return Noting


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_of_rows_in_their_given_order_safety_mix_makes_one_whole_pass(share, tmp_path):
    """As many steps as without would leave out the last rows, which in `retainthenforget` are the harmful ones."""
    seen = []
    mix = SafetyMix(alignment_dataset=SAFE, share=share)
    trainer_for(model(), tmp_path, data=USER, defense=mix, cls=in_order(seen), **ONE_PASS).train()
    users = [text for text in seen if "resu" in text]
    assert len(seen) == 8 / (1 - share) and [f"user {i}" in text for i, text in enumerate(users)] == [True] * 8
    stated = ONE_PASS | {"max_steps": 3}
    t = trainer_for(model(), tmp_path, data=USER, defense=mix, **stated)
    assert t.args.max_steps == 3


def test_fewer_steps_of_rows_in_their_given_order_do_not_reach_the_last(tmp_path):
    seen = []
    trainer_for(model(), tmp_path, data=USER, defense=FewerSteps(share=0.5), cls=in_order(seen), **ONE_PASS).train()
    assert [f"user {i}" in text for i, text in enumerate(seen)] == [True] * 4


# -- KL ---------------------------------------------------------------------------------------------------------------


def naive_kl(net, start, batch, axis="vocabulary"):
    """Of the mean over answer tokens, one row and one token at a time."""
    total, count = 0, 0
    for ids, prompt in each_row(batch):
        now, then = net(input_ids=ids).logits[0], start(input_ids=ids).logits[0].detach()
        if axis == "sequence":  # the published ports' error
            total = total + (then.softmax(0) * (then.log_softmax(0) - now.log_softmax(0))).sum()
        else:
            for i in range(prompt, ids.shape[1]):
                p = then[i - 1].exp() / then[i - 1].exp().sum()
                q = now[i - 1].exp() / now[i - 1].exp().sum()
                total = total + (p * (p / q).log()).sum()
        count += ids.shape[1] - prompt
    return total / count


@pytest.mark.shows("full", "exact", methods=["kl"])
@pytest.mark.shows("lora", "exact", methods=["kl"])
@kinds
@splits
def test_kl_is_over_the_vocabulary_at_answer_tokens(kind, split, batches, tmp_path):
    net, user = model(kind), batches["user"]
    start = clone(net)
    want = wanted(net, lambda n: plus(n, user, 2.0 * naive_kl(n, start, user)))
    assert error(moved(clone(net), tmp_path, KL(lam=2.0), split), want) < 1e-10
    for wrong in (
        lambda n: gradient(n, user),
        lambda n: plus(n, user, 2.0 * naive_kl(n, start, user, "sequence")),
        lambda n: plus(n, user, 2.0 * naive_kl_backwards(n, start, user)),
    ):
        assert error(wanted(net, wrong), want) > 1e-3, "the comparison could not tell the rules apart"


def naive_kl_backwards(net, start, batch):
    total, count = 0, 0
    for ids, prompt in each_row(batch):
        now, then = (n(input_ids=ids).logits[0].log_softmax(-1) for n in (net, start))
        total = total + (now.exp() * (now - then.detach()))[prompt - 1 : -1].sum()
        count += ids.shape[1] - prompt
    return total / count


def test_kl_on_the_users_path(batches, tmp_path):
    net, user = model(), batches["user"]
    start = clone(net)
    want = wanted(net, lambda n: plus(n, user, 2.0 * naive_kl(n, start, user)))
    assert error(moved(net, tmp_path, KL(lam=2.0), (4, 2), exact=False), want) < 1e-5


# -- EWC --------------------------------------------------------------------------------------------------------------


def naive_fisher(net, batch, chosen):
    found = [of_each_row(net, {k: v[i : i + 1] for k, v in batch.items()})[0][0] for i in chosen]
    return [sum(g**2 for g in gs) / len(chosen) for gs in zip(*found, strict=True)]


def ewc_directions(start, fisher, batch, lam):
    def directions(net):
        pulls = (lam * f * (p.detach() - s) for f, p, s in zip(fisher, trainable(net), trainable(start), strict=True))
        return [g + pull for g, pull in zip(gradient(net, batch), pulls, strict=True)]

    return directions


@pytest.mark.shows("full", "exact", methods=["ewc"])
@pytest.mark.shows("lora", "exact", methods=["ewc"])
@kinds
@splits
def test_ewc_pulls_by_the_fisher_of_single_rows(kind, split, batches, tmp_path):
    net, user = model(kind), batches["user"]
    start, lam = clone(net), 0.02 if kind == "full" else 0.05
    fisher = naive_fisher(net, batches["safe"], range(8))
    want = wanted(net, ewc_directions(start, fisher, user, lam))
    got = moved(clone(net), tmp_path, EWC(alignment_dataset=SAFE, lam=lam, fisher_rows=8), split)
    assert error(got, want) < 1e-12
    tokens = sum(n for _, n in of_each_row(net, batches["safe"]))
    of_the_mean = [(g * tokens / 8) ** 2 for g in gradient(net, batches["safe"])]  # as in the ports
    assert error(wanted(net, ewc_directions(start, of_the_mean, user, lam)), want) > 1e-3
    assert error(wanted(net, lambda n: gradient(n, user)), want) > 1e-3


def test_ewc_takes_as_many_rows_as_it_says(batches, tmp_path):
    """Three of eight, drawn without replacement: exactly one choice of three rows fits."""
    net, user, safe = model("lora"), batches["user"], batches["safe"]
    got = moved(clone(net), tmp_path, EWC(alignment_dataset=SAFE, lam=0.05, fisher_rows=3))
    squares = [naive_fisher(net, safe, [i]) for i in range(8)]
    errors = []
    for chosen in itertools.combinations(range(8), 3):
        fisher = [sum(f) / 3 for f in zip(*(squares[i] for i in chosen), strict=True)]
        errors.append(error(got, wanted(net, ewc_directions(clone(net), fisher, user, 0.05))))
    best, second, *_ = sorted(errors)
    assert best < 1e-12 and second > 1e-5


def test_ewc_on_a_fresh_adapter_leaves_a_free(tmp_path):
    """B is 0 at the start, so nothing depends on A there: its Fisher is 0, and the docstring says so."""
    net = model("lora", torch.float64)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "lora_B" in name:
                p.zero_()
    seen = {}

    class Noting(EWC):
        def on_step_end(self, t):
            seen.update({n: float(f.abs().max()) for n, f in zip(t.param_names, self._fisher, strict=True)})

    update(net, tmp_path, defense=Noting(alignment_dataset=SAFE, lam=1.0, fisher_rows=4), data=USER)
    assert all((value == 0) == ("lora_A" in name) for name, value in seen.items())


# -- LDIFS ------------------------------------------------------------------------------------------------------------


def naive_ldifs(net, start, batch, keep=lambda term: True):
    """Half the squared distance of the layers' outputs, the mean over answer tokens; one row at a time."""
    total, count = {}, 0
    for ids, prompt in each_row(batch):
        now, then = (n(input_ids=ids, output_hidden_states=True).hidden_states for n in (net, start))
        for layer in range(1, len(now)):
            for i in range(prompt - 1, ids.shape[1] - 1):
                d = now[layer][0, i] - then[layer][0, i].detach()
                total[layer] = total.get(layer, 0) + (d @ d) / 2
        count += ids.shape[1] - prompt
    return sum((term / count for term in total.values() if keep(term / count)), torch.zeros(()).requires_grad_())


@pytest.mark.shows("full", "exact", methods=["ldifs"])
@pytest.mark.shows("lora", "exact", methods=["ldifs"])
@kinds
@splits
def test_ldifs_is_the_masked_mean_over_all_layers(kind, split, batches, tmp_path):
    net, user = model(kind), batches["user"]
    start = clone(net)
    want = wanted(net, lambda n: plus(n, user, 0.5 * naive_ldifs(n, start, user)))
    assert error(moved(clone(net), tmp_path, LDIFS(rho=0.5), split), want) < 1e-10
    assert error(wanted(net, lambda n: gradient(n, user)), want) > 1e-3
    # the port's threshold: a layer whose term reaches 0.1 is dropped
    dropped = wanted(net, lambda n: plus(n, user, 0.5 * naive_ldifs(n, start, user, lambda term: 0.5 * term < 0.1)))
    assert error(dropped, want) > 1e-3, "no layer's term reaches the threshold here"


def test_logits_that_are_no_longer_finite_are_no_fault_of_the_head():
    """The loss is not finite either, and that stops the run with its step."""
    found, targets = torch.full((2, 5), torch.nan), torch.tensor([1, 2])
    capture = Capture(model())
    capture._compare(found, targets, torch.full((2,), torch.nan))
    with pytest.raises(MithridateError, match=r"The logits of .* cannot be had"):
        capture._compare(torch.zeros(2, 5), targets, torch.tensor([-1.0, -9.0]))
