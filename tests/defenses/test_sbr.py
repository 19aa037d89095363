"""SBR through the real trainer against its objective, written naively in float64, and the traps of its code."""

import pytest
import torch
from datasets import Dataset
from peft import PromptTuningConfig, get_peft_model

from mithridate.defenses.sbr import SBR
from mithridate.errors import InputError, UnsupportedSetup
from tests.defenses.helpers import batch_of, clone, error, model, rows, trainer_for, weights
from tests.defenses.reference import gradient
from tests.defenses.test_baselines import each_row, moved, plus, wanted
from tests.tiny import tiny_llama

USER, SAFE = rows("user"), rows("careful")


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batches")
    return {"user": batch_of(USER, folder), "safe": batch_of(SAFE, folder)}


def last_state(net, ids):
    """Of a prompt alone, the state that the head reads; its logits are those of the head on it."""
    outputs = net(input_ids=ids, output_hidden_states=True)
    state = outputs.hidden_states[-1][0, -1]
    head = net.get_output_embeddings()
    torch.testing.assert_close(head(state), outputs.logits[0, -1], rtol=1e-12, atol=1e-12)
    return state


def distances(net, start, batch, state=last_state):
    """Of each prompt, one at a time and without its answer: [d]."""
    prompts = [ids[:, :length] for ids, length in each_row(batch)]
    return torch.stack([state(net, ids) - state(start, ids).detach() for ids in prompts])


def before_the_norm(net, ids):
    base = net.get_base_model() if hasattr(net, "get_base_model") else net
    seen = []
    hook = base.model.layers[-1].register_forward_hook(lambda m, a, out: seen.append(out))
    net(input_ids=ids)
    hook.remove()
    return (seen[0] if torch.is_tensor(seen[0]) else seen[0][0])[0, -1]


def objective(start, batches, lam, reduced=torch.mean, state=last_state):
    """The direction at a model, for 8 user rows and 8 anchors, which are all there are."""
    return lambda net: plus(
        net, batches["user"], lam * reduced(distances(net, start, batches["safe"], state).square())
    )


@pytest.mark.shows("full", "exact", methods=["sbr"])
@pytest.mark.shows("lora", "exact", methods=["sbr"])
@pytest.mark.parametrize(("kind", "split"), [("lora", (8, 1)), ("lora", (2, 4)), ("full", (4, 2))])
def test_it_is_the_mean_over_anchors_and_entries_once_a_step(kind, split, batches, tmp_path):
    net, lam = model(kind), 2.0
    start = clone(net)
    want = wanted(net, objective(start, batches, lam))
    assert error(moved(clone(net), tmp_path, SBR(anchor_dataset=SAFE, lam=lam), split), want) < 1e-12
    if split == (8, 1):
        for wrong in (
            lambda n: gradient(n, batches["user"]),
            objective(start, batches, 4 * lam),  # the official code under accumulation
            objective(start, batches, lam, lambda x: x.sum(-1).mean()),  # the paper's sum, with the code's strength
            objective(start, batches, lam, state=before_the_norm),
        ):
            assert error(wanted(net, wrong), want) > 1e-3, "the comparison could not tell the rules apart"


def test_the_papers_sum_is_the_strength_over_the_width(batches, tmp_path):
    net, lam = model("lora"), 2.0
    want = wanted(net, objective(clone(net), batches, lam / 16, lambda x: x.sum(-1).mean()))
    assert net.config.hidden_size == 16
    assert error(moved(net, tmp_path, SBR(anchor_dataset=SAFE, lam=lam)), want) < 1e-12


def test_the_anchors_are_drawn_once_and_stay(tmp_path):
    seen = []

    class Noting(SBR):
        def on_step_end(self, t):
            seen.append((self._batch["input_ids"].tolist(), self._start[0].clone()))

    moved(model("lora"), tmp_path, Noting(anchor_dataset=SAFE, anchors=3), data=USER)
    first, at_start = seen[0]
    assert len({tuple(ids) for ids in first}) == len(at_start) == 3
    assert all(ids == first and torch.equal(states, at_start) for ids, states in seen)


def test_of_rows_with_several_answers_the_first_is_held(tmp_path):
    """One state an anchor, whatever the rows: as with the first answers alone."""
    ids = [[1, 5, 6, 7, 8, 9, 10, 11], [1, 6, 7, 8, 9], [1, 7, 8, 9, 10, 11, 12]]
    labels = [[-100, -100, 6, 7, -100, 9, -100, 11], [-100, 6, 7, -100, 9], [-100, -100, -100, 9, 10, -100, 12]]
    several = Dataset.from_dict({"input_ids": ids, "labels": labels})
    ends = [4, 3, 5]
    once = {"input_ids": [row[:end] for row, end in zip(ids, ends, strict=True)]}
    once |= {"labels": [row[:end] for row, end in zip(labels, ends, strict=True)]}
    seen = []

    class Noting(SBR):
        def on_step_end(self, t):
            seen.append(self._start[0].clone())

    made = []
    for data in (several, Dataset.from_dict(once)):
        net = model("lora")
        moved(net, tmp_path, Noting(anchor_dataset=data, anchors=3), data=USER)
        made.append(weights(net))
    assert {tuple(states.shape) for states in seen} == {(3, 16)}
    assert all(torch.allclose(made[0][name], made[1][name], rtol=0, atol=1e-12) for name in made[0])


@pytest.mark.parametrize("wrong", [-1, float("inf"), "x", None])
def test_settings_out_of_their_range_are_refused(wrong):
    with pytest.raises(InputError, match="SBR: lam must be a number"):
        SBR(anchor_dataset=SAFE, lam=wrong)
    with pytest.raises(InputError, match="SBR: anchors must be a whole"):
        SBR(anchor_dataset=SAFE, anchors=wrong)


def test_what_it_cannot_do_is_refused_before_a_step(tmp_path):
    with pytest.raises(UnsupportedSetup, match="SBR: anchors=9, and anchor_dataset has 8 rows") as refused:
        trainer_for(model(), tmp_path, defense=SBR(anchor_dataset=SAFE, anchors=9))
    assert "anchors=8 or fewer" in refused.value.remedy
    texts = Dataset.from_list([{"text": "a b c d"}] * 8)
    with pytest.raises(UnsupportedSetup, match="SBR: rows of anchor_dataset are trained on from their first token"):
        trainer_for(model(), tmp_path, defense=SBR(anchor_dataset=texts))
    with pytest.raises(UnsupportedSetup, match=r"SBR: .* prompt learning"):
        prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        trainer_for(get_peft_model(tiny_llama(), prompts), tmp_path, defense=SBR(anchor_dataset=SAFE))
