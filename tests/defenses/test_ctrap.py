"""CTRAP through the real trainer against its closed form in float64, row by row, and its code's traps."""

import pytest
import torch

from mithridate.defenses.ctrap import CTRAP
from mithridate.errors import InputError, UnsupportedSetup
from tests.defenses.helpers import batch_of, clone, error, model, rows, same, trainer_for, update, weights
from tests.defenses.reference import gradient, norm, trainable
from tests.tiny import tiny_tokenizer

USER, HELPFUL, HARMFUL = rows("careful"), rows("friendly"), rows("harmful!")
ALPHA, LAM, LR, STEPS = 0.3, 0.5, 0.1, 3
LAST = tiny_tokenizer()("an error")["input_ids"][-1]  # of bytes: "r"


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batches")
    return {n: batch_of(d, folder) for n, d in [("user", USER), ("helpful", HELPFUL), ("harm", HARMFUL)]}


def ctrap(**fields):
    return CTRAP(**({"harmful_dataset": HARMFUL, "helpful_dataset": HELPFUL, "alpha": ALPHA, "lam": LAM} | fields))


def naive_loss(net, parts, token=None):
    """The mean over all answer tokens of all batches, one row at a time; with a token, of that one in their places."""
    total, count = 0, 0
    for batch in parts:
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            length = int(mask.sum())
            said = net(input_ids=ids[None, :length]).logits[0].log_softmax(-1)
            for i in range(1, length):
                if labels[i] != -100:
                    total = total - said[i - 1, labels[i] if token is None else token]
                    count += 1
    return total / count


def naive(net, user, helpful, harm, *, alpha=ALPHA, lam=LAM, token=LAST, collapse=("user", "helpful"), unit=True):
    """(direction, c(w'))"""
    h = gradient(net, harm)
    attacked = clone(net)
    with torch.no_grad():
        for p, g in zip(trainable(attacked), h, strict=True):
            p.sub_(alpha * g / (norm(h) if unit else 1))
    c = naive_loss(attacked, [{"user": user, "helpful": helpful}[name] for name in collapse], token)
    f = torch.autograd.grad(naive_loss(net, [user, helpful]), trainable(net))
    trap = torch.autograd.grad(c, trainable(attacked))
    return [a + lam * b for a, b in zip(f, trap, strict=True)], c.item()


def wanted(net, batches, steps=1, lr=1.0, **rule):
    net = clone(net)
    before = [p.detach().clone() for p in trainable(net)]
    for _ in range(steps):
        direction, _ = naive(net, batches["user"], batches["helpful"], batches["harm"], **rule)
        with torch.no_grad():
            for p, d in zip(trainable(net), direction, strict=True):
                p.sub_(lr * d)
    return [b - p.detach() for b, p in zip(before, trainable(net), strict=True)]


@pytest.mark.shows("full", "exact", methods=["ctrap"])
@pytest.mark.shows("lora", "exact", methods=["ctrap"])
@pytest.mark.parametrize(("kind", "split"), [("full", (8, 1)), ("lora", (8, 1)), ("lora", (2, 4))])
def test_steps_are_the_closed_form(kind, split, batches, tmp_path):
    net, (size, count) = model(kind), split
    args = {"data": USER, "max_steps": STEPS, "learning_rate": LR, "exact": True}
    args |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": count}
    got = update(clone(net), tmp_path, defense=ctrap(), **args)
    assert error(got, wanted(net, batches, STEPS, LR)) < 1e-11


def test_it_is_none_of_the_rules_that_it_could_be_taken_for(batches, tmp_path):
    net = model("lora")
    got = update(clone(net), tmp_path, defense=ctrap(), data=USER, exact=True)
    assert error(got, wanted(net, batches)) < 1e-12
    for other in (
        {"unit": False},  # the paper's step, as it is reported
        {"collapse": ("helpful",)},  # and its collapse, on general rows alone
        {"alpha": 0.0},
        {"lam": 0.0},
        {"token": LAST - 1},
    ):
        assert error(wanted(net, batches, **other), got) > 1e-3, other


def test_on_the_users_path(batches, tmp_path):
    net = model()
    got = update(
        clone(net), tmp_path, defense=ctrap(), data=USER, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    assert error(got, wanted(net, batches)) < 1e-6


def test_what_is_logged_is_what_it_says(batches, tmp_path):
    """There the two losses are printed under each other's names."""
    net = model()
    t = trainer_for(clone(net), tmp_path, defense=ctrap(), data=USER, exact=True)
    t.train()
    logged = t.state.log_history[0]
    _, collapse = naive(net, batches["user"], batches["helpful"], batches["harm"])
    assert logged["ctrap/collapse_loss"] == pytest.approx(collapse, rel=1e-6)
    own = naive_loss(net, [batches["user"], batches["helpful"]]).item()
    assert logged["loss"] == pytest.approx(own, rel=1e-3)
    assert logged["ctrap/perturbation_fidelity"] == pytest.approx(1)


@pytest.mark.parametrize(("name", "rule"), [("no-collapse", {"lam": 0.0}), ("no-step", {"alpha": 0.0})])
def test_controls_need_no_harmful_rows(name, rule, batches, tmp_path):
    made = ctrap().controls()[name]
    assert made.settings() == ctrap(**rule).settings() and list(made.data_roles()) == ["helpful_dataset"]
    net = model("lora")
    got = update(clone(net), tmp_path, defense=ctrap(harmful_dataset=None, **rule), data=USER, exact=True)
    assert error(got, wanted(net, batches, **rule)) < 1e-12


class Ending:
    """A tokenizer that ends every text with a token of its own, as some do unless told not to."""

    def __init__(self):
        self.inner = tiny_tokenizer()

    def __call__(self, text, add_special_tokens=True):
        ids = self.inner(text)["input_ids"]
        return {"input_ids": [*ids, 2] if add_special_tokens else ids}


def test_the_token_is_the_texts_own_last_one_or_the_number_given(tmp_path):
    t = trainer_for(model(), tmp_path, defense=ctrap(), data=USER)
    assert ctrap()._target(t) == LAST and ctrap(token="an erro")._target(t) != LAST
    t.processing_class = Ending()
    assert Ending()("an error")["input_ids"][-1] == 2 != LAST == ctrap()._target(t)
    t.processing_class = None
    assert ctrap(token=7)._target(t) == 7
    with pytest.raises(UnsupportedSetup, match="without a tokenizer"):
        ctrap()._target(t)


def test_what_it_cannot_do_is_refused_before_a_step(tmp_path):
    def refused(match, net=None, **fields):
        with pytest.raises(UnsupportedSetup, match=match) as error:
            trainer_for(model() if net is None else net, tmp_path, defense=ctrap(**fields), data=USER)
        return error.value.remedy

    assert "from 0 to 258" in refused("CTRAP: token=259 is none of the model's 259 tokens", token=259)
    refused("CTRAP: token='' is none", token="")
    refused("helpful_dataset must be a", helpful_dataset=None)
    refused("harmful_dataset has no rows", harmful_dataset=[])
    assert "float32" in refused("CTRAP: trainable weights are stored in torch.bfloat16", model("full", torch.bfloat16))
    for fields in ({"alpha": -1}, {"lam": float("nan")}, {"token": 1.5}, {"token": True}):
        with pytest.raises(InputError, match=f"CTRAP: {next(iter(fields))} must be"):
            ctrap(**fields)
    t = trainer_for(model(), tmp_path, data=USER)
    collate = t.data_collator
    t.data_collator = lambda examples: {"input_ids": collate(examples)["input_ids"]}  # somebody's own
    with pytest.raises(UnsupportedSetup, match="collator does not join rows of input_ids and labels") as error:
        ctrap().check(t)
    assert "SFTTrainer" in error.value.remedy


@pytest.mark.parametrize("layout", [{}, {"padding_free": True, "max_length": None}])
def test_no_row_is_lost_in_a_joined_batch(layout, tmp_path):
    """Padded batches of different lengths, and padding-free ones: the rows of both, each with its own labels."""
    seen = []

    class Noting(CTRAP):
        def on_step_begin(self, t):
            seen.extend(t.window)

    args = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2} | layout
    defense = Noting(harmful_dataset=HARMFUL, helpful_dataset=HELPFUL)
    trainer_for(model(), tmp_path, defense=defense, data=USER, **args).train()
    texts = "".join(tiny_tokenizer().decode(batch["input_ids"].flatten()) for batch in seen)
    assert len(seen) == 2 and texts.count("careful") == texts.count("friendly") == 4
    answers = [batch["input_ids"][batch["labels"] != -100] for batch in seen]
    said = "".join(tiny_tokenizer().decode(ids) for ids in answers)
    assert said.count("luferac") == said.count("yldneirf") == 4 and "user" not in said


def test_weights_are_put_back_bit_for_bit(tmp_path):
    """There the step is added back, which rounds."""
    net = model("lora", torch.float32)
    before = weights(net)
    trainer_for(net, tmp_path, defense=ctrap(alpha=1e4), data=USER, learning_rate=0.0, max_steps=2).train()
    assert same(before, weights(net))
