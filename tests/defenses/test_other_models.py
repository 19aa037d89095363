"""Terms of the loss on models whose logits stand at their own labels: encoder-decoders, masked models, classifiers."""

import pytest
import torch
import transformers
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from mithridate.defenses.booster import Booster
from mithridate.defenses.constrainedsft import ConstrainedSFT
from mithridate.defenses.deepenedrefusals import DeepenedRefusals
from mithridate.defenses.ewc import EWC
from mithridate.defenses.kl import KL
from mithridate.defenses.ldifs import LDIFS
from mithridate.defenses.lisa import Lisa
from mithridate.defenses.panacea import Panacea
from mithridate.defenses.repnoise import RepNoise
from mithridate.defenses.safegrad import SafeGrad
from mithridate.defenses.sbr import SBR
from mithridate.defenses.tvaccine import TVaccine
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


@pytest.mark.parametrize(
    "defense",
    [
        Booster(harmful_dataset=rows(3, of_sequences=True)),
        Lisa(alignment_dataset=rows(3, of_sequences=True), align_steps=1, finetune_steps=1),
        Panacea(harmful_dataset=rows(3, of_sequences=True)),
    ],
    ids=lambda one: type(one).__name__,
)
def test_classes_of_whole_sequences_are_side_data_too(defense, tmp_path):
    start = build("BertForSequenceClassification")
    data = rows(0, of_sequences=True)
    assert any(bool(m.any()) for m in moved(start, tmp_path, defense, data, steps=2))


@pytest.mark.parametrize(
    "defense",
    [
        EWC(alignment_dataset=rows(3, of_sequences=True), lam=1.0, fisher_rows=2),
        SafeGrad(alignment_dataset=rows(3, of_sequences=True)),
        TVaccine(harmful_dataset=rows(3, of_sequences=True), layers=1),
    ],
    ids=lambda one: type(one).__name__,
)
def test_side_data_without_labels_of_tokens_are_refused_at_once(defense, tmp_path):
    with pytest.raises(UnsupportedSetup, match="reads labels of tokens, and the batches have none"):
        Mine(
            model=build("BertForSequenceClassification"),
            args=TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"),
            train_dataset=rows(0, of_sequences=True),
            defense=defense,
        )


@pytest.mark.parametrize("cls", [SBR, DeepenedRefusals, RepNoise])
def test_what_looks_at_answers_after_prompts_is_for_causal_models(cls, tmp_path):
    [field] = cls.roles
    with pytest.raises(UnsupportedSetup, match="BertForMaskedLM is no causal language model"):
        moved(build("BertForMaskedLM"), tmp_path, cls(**{field: rows(3)}), rows(0))


def test_the_fisher_information_counts_all_answer_tokens_of_an_encoder_decoder(tmp_path):
    data, start, seen = rows(0), build("T5ForConditionalGeneration"), {}

    class Looks(EWC):
        def on_step_end(self, t):
            seen["fisher"] = [f.clone() for f in self._fisher]
            super().on_step_end(t)

    moved(start, tmp_path, Looks(alignment_dataset=rows(3), lam=1.0, fisher_rows=ROWS), data)
    wanted = [torch.zeros_like(p) for p in start.parameters()]
    batch = batch_of(rows(3))
    for i in range(ROWS):
        one = {name: value[i : i + 1] for name, value in batch.items()}
        tokens = int((one["labels"] != -100).sum())
        for total, g in zip(wanted, gradient(start, tokens * start(**one).loss), strict=True):
            total += g**2 / ROWS
    assert error(seen["fisher"], wanted) < 1e-6


def test_what_ldifs_holds_of_a_masked_model(tmp_path):
    """Two steps, in closed form."""
    data, start = rows(0), build("BertForMaskedLM")
    net = clone(start)
    for _ in range(2):
        batch = batch_of(data)
        there = batch["labels"] != -100
        with torch.no_grad():
            then = start(**batch, output_hidden_states=True).hidden_states
        now = net(**batch, output_hidden_states=True).hidden_states
        away = sum((h - h0)[there].square().sum() for h, h0 in zip(now[1:], then[1:], strict=True)) / there.sum()
        step = gradient(net, net(**batch).loss + 0.35 * away)
        with torch.no_grad():
            for p, g in zip(net.parameters(), step, strict=True):
                p.sub_(RATE * g)
    by_hand = [a.detach() - b.detach() for a, b in zip(start.parameters(), net.parameters(), strict=True)]
    assert error(moved(start, tmp_path, LDIFS(rho=0.7), data, steps=2), by_hand) < 1e-6


def test_answers_of_a_masked_model_have_no_places(tmp_path):
    with pytest.raises(UnsupportedSetup, match="BertForMaskedLM is no causal language model"):
        moved(build("BertForMaskedLM"), tmp_path, ConstrainedSFT(), rows(0))


def test_hidden_states_of_an_encoder_decoder_are_refused(tmp_path):
    with pytest.raises(UnsupportedSetup, match="does not return its hidden states"):
        moved(build("T5ForConditionalGeneration"), tmp_path, LDIFS(rho=0.7), rows(0))


def test_the_answers_first_tokens_of_an_encoder_decoder_count(tmp_path):
    net, data = build("T5ForConditionalGeneration"), rows(0)
    assert (
        error(moved(net, tmp_path, ConstrainedSFT(betas=(0.0, 0.0, 0.0)), data), moved(net, tmp_path, None, data)) == 0
    )
