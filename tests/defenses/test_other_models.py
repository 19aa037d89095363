"""Terms of the loss on models whose logits stand at their own labels: encoder-decoders, masked models, classifiers."""

import pytest
import torch
import transformers
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from mithridate.defenses.constrainedsft import ConstrainedSFT
from mithridate.defenses.kl import KL
from mithridate.defenses.ldifs import LDIFS
from mithridate.defenses.safegrad import SafeGrad
from mithridate.errors import UnsupportedSetup
from mithridate.training.mixin import DefenseMixin
from tests.defenses.helpers import clone, error

TINY = {"vocab_size": 30, "pad_token_id": 0, "initializer_range": 0.3, "initializer_factor": 20.0}
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16} | TINY
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0} | TINY
MODELS = {
    "T5ForConditionalGeneration": ("T5Config", T5 | {"dropout_rate": 0.0}),
    "BertForMaskedLM": ("BertConfig", BERT),
    "BertForTokenClassification": ("BertConfig", BERT | {"num_labels": 30}),
    "BertForSequenceClassification": ("BertConfig", BERT | {"num_labels": 4}),
}
ROWS, RATE = 4, 0.1


class Mine(DefenseMixin, Trainer):
    pass


def build(name):
    config, fields = MODELS[name]
    torch.manual_seed(0)
    made = getattr(transformers, name)(getattr(transformers, config)(**fields))
    for module in made.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # the naive passes draw other masks
    return made.double()


def rows(seed, of_sequences=False):
    drawn = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 30, (ROWS, 7), generator=drawn)
    labels = torch.where(torch.rand(ids.shape, generator=drawn) < 0.5, ids.flip(1), -100)
    data = {"input_ids": ids.tolist(), "labels": ids[:, 0].remainder(4).tolist() if of_sequences else labels.tolist()}
    return Dataset.from_dict(data)


def batch_of(data):
    return {name: torch.tensor(data[name]) for name in ("input_ids", "labels")}


def moved(start, folder, defense, data, steps=1):
    """What steps of plain gradient descent move, of a copy of the model."""
    net = clone(start)
    args = TrainingArguments(
        str(folder),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        optim="sgd",
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        max_steps=steps,
        per_device_train_batch_size=ROWS,
    )
    Mine(model=net, args=args, train_dataset=data, defense=defense).train()
    return [a.detach() - b.detach() for a, b in zip(start.parameters(), net.parameters(), strict=True)]


def gradient(net, loss):
    return [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(
            net.parameters(), torch.autograd.grad(loss, list(net.parameters()), allow_unused=True), strict=True
        )
    ]


def divergence(net, start, batch):
    """KL at the labelled tokens, whose logits are the model's own at the same places."""
    with torch.no_grad():
        then = start(**batch).logits.log_softmax(-1)
    now = net(**batch).logits.log_softmax(-1)
    return (then.exp() * (then - now)).sum(-1)[batch["labels"] != -100].mean()


@pytest.mark.parametrize("name", ["T5ForConditionalGeneration", "BertForMaskedLM", "BertForTokenClassification"])
def test_what_a_term_sees_stands_at_the_labels(name, tmp_path):
    data, net, seen = rows(0), build(name).eval(), {}

    class Looks(KL):
        def loss(self, t, loss, model, inputs, outputs, num_items_in_batch):
            seen.update(outputs=outputs, loss=loss.detach(), batch=inputs)
            return loss

    moved(net, tmp_path, Looks(lam=0.7), data)
    outputs = seen["outputs"]
    batch = {name: seen["batch"][name] for name in ("input_ids", "labels")}
    labelled = batch["labels"] != -100
    assert torch.equal(outputs.labels, batch["labels"][labelled])
    wanted = net(**batch).logits[labelled]
    assert torch.allclose(outputs.logits, wanted, rtol=1e-10) and torch.allclose(outputs.reference.logits, wanted)
    assert float(-outputs.log_probs.sum() / labelled.sum()) == pytest.approx(float(seen["loss"]), rel=1e-9)


@pytest.mark.parametrize("name", ["T5ForConditionalGeneration", "BertForMaskedLM"])
@pytest.mark.parametrize("method", ["kl", "safegrad"])
def test_two_steps_in_closed_form(method, name, tmp_path):
    """In the first step the divergence has no gradient yet."""
    data, side, start = rows(0), rows(3), build(name)
    defense = KL(lam=0.7) if method == "kl" else SafeGrad(alignment_dataset=side, rho=0.7, projection=False)
    net = clone(start)
    for _ in range(2):
        term = divergence(net, start, batch_of(data if method == "kl" else side))
        wanted = gradient(net, net(**batch_of(data)).loss + 0.7 * term)
        with torch.no_grad():
            for p, g in zip(net.parameters(), wanted, strict=True):
                p.sub_(RATE * g)
    by_hand = [a.detach() - b.detach() for a, b in zip(start.parameters(), net.parameters(), strict=True)]
    got = moved(start, tmp_path / "a", defense, data, steps=2)
    assert error(got, by_hand) < 1e-6  # divergences are in float32 or wider
    assert error(moved(start, tmp_path / "b", None, data, steps=2), by_hand) > 1e-3  # the term is seen


@pytest.mark.parametrize("defense", [KL(lam=0.7), LDIFS(rho=0.7), ConstrainedSFT()])
def test_labels_of_whole_sequences_are_refused(defense, tmp_path):
    name = "BertForSequenceClassification"
    with pytest.raises(UnsupportedSetup, match="no labels of tokens"):
        moved(build(name), tmp_path, defense, rows(0, of_sequences=True))


def test_answers_of_a_masked_model_have_no_places(tmp_path):
    with pytest.raises(UnsupportedSetup, match="BertForMaskedLM fills in tokens here and there"):
        moved(build("BertForMaskedLM"), tmp_path, ConstrainedSFT(), rows(0))


def test_hidden_states_of_an_encoder_decoder_are_refused(tmp_path):
    with pytest.raises(UnsupportedSetup, match="returns no hidden states"):
        moved(build("T5ForConditionalGeneration"), tmp_path, LDIFS(rho=0.7), rows(0))


def test_the_answers_first_tokens_of_an_encoder_decoder_count(tmp_path):
    net, data = build("T5ForConditionalGeneration"), rows(0)
    assert (
        error(moved(net, tmp_path, ConstrainedSFT(betas=(0.0, 0.0, 0.0)), data), moved(net, tmp_path, None, data)) == 0
    )
