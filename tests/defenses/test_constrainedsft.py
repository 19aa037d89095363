"""Constrained SFT through the real trainer against its objective, written naively in float64, and its traps."""

import pytest
import torch
from datasets import Dataset

from mithridate.defenses.constrainedsft import ConstrainedSFT, place_in_answer
from mithridate.errors import InputError, UnsupportedSetup
from mithridate.training.trainer import DefenseTrainer
from tests.defenses.helpers import batch_of, clone, error, model, rows, trainer_for
from tests.defenses.reference import gradient, trainable
from tests.defenses.test_baselines import each_row, moved, wanted

# Answers longer than five tokens, and shorter ones.
USER = Dataset.from_list(
    [
        row | {"completion": [{"role": "assistant", "content": row["completion"][0]["content"] * (1 + 3 * (i % 2))}]}
        for i, row in enumerate(rows("us"))
    ]
)
BETAS = (0.5, 2.0, 0.1)


class Wide(DefenseTrainer):
    """The start model's pass through the whole logits: TRL's fused head computes in float32."""

    def _forward(self, model, inputs):
        return model(**{k: v for k, v in inputs.items() if k != "labels"})


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    batch = batch_of(USER, tmp_path_factory.mktemp("batches"))
    lengths = [ids.shape[1] - prompt for ids, prompt in each_row(batch)]
    assert min(lengths) <= 5 < max(lengths)
    return batch


def by_objective(beta, now, then):
    """As the paper writes it; its gradient is autograd's."""
    return -2 / beta * torch.log(torch.sigmoid(beta * (now - then)))


def by_weight(beta, now, then, smallest=1e-3):
    """As the official code computes it."""
    weight = max(smallest, 2 * (1 - float(torch.sigmoid(beta * (now - then)))))
    return -weight * now


def objective(start, batch, betas, of_token=by_objective, first=0):
    """The direction at a model; `first`: where an answer's count begins."""

    def direction(net):
        total, count = 0, 0
        for ids, prompt in each_row(batch):
            now, then = (n(input_ids=ids).logits[0].log_softmax(-1) for n in (net, start))
            for number, i in enumerate(range(prompt, ids.shape[1]), start=1 - first):
                beta = betas[0] if number == 1 else betas[1] if number <= 5 else betas[2]
                total = total + of_token(beta, now[i - 1, ids[0, i]], then[i - 1, ids[0, i]].detach())
                count += 1
        return torch.autograd.grad(total / count, trainable(net))

    return direction


def unmasked(start, batch, betas):
    """The trap: tokens are counted from the row's beginning, so that prompts use up the first five."""

    def direction(net):
        total, count = 0, 0
        for ids, prompt in each_row(batch):
            now, then = (n(input_ids=ids).logits[0].log_softmax(-1) for n in (net, start))
            for i in range(prompt, ids.shape[1]):
                beta = betas[0] if i == 0 else betas[1] if i < 5 else betas[2]
                total = total + by_objective(beta, now[i - 1, ids[0, i]], then[i - 1, ids[0, i]].detach())
                count += 1
        return torch.autograd.grad(total / count, trainable(net))

    return direction


@pytest.mark.shows("full", "exact", methods=["constrainedsft"])
@pytest.mark.shows("lora", "exact", methods=["constrainedsft"])
@pytest.mark.parametrize(("kind", "split"), [("lora", (8, 1)), ("lora", (2, 4)), ("full", (4, 2))])
def test_it_descends_the_papers_objective(kind, split, user, tmp_path):
    net = model(kind)
    start = clone(net)
    want = wanted(net, objective(start, user, BETAS))
    assert error(moved(clone(net), tmp_path, ConstrainedSFT(), split, data=USER, cls=Wide), want) < 1e-12
    if split == (8, 1):
        assert error(wanted(net, objective(start, user, BETAS, by_weight)), want) < 1e-12, (
            "the code's form is the same"
        )
        for wrong in (
            lambda n: gradient(n, user),
            unmasked(start, user, BETAS),
            objective(start, user, BETAS, first=1),  # a template's own token counted as the answer's first
            objective(start, user, (0.1,) * 3),
        ):
            assert error(wanted(net, wrong), want) > 1e-3, "the comparison could not tell the rules apart"


def test_a_weight_does_not_fall_below_a_thousandth(user, tmp_path):
    net = model("lora")
    betas = (40.0, 40.0, 40.0)
    start = clone(net)
    want = wanted(net, objective(start, user, betas, by_weight))
    assert error(moved(clone(net), tmp_path, ConstrainedSFT(betas=betas), data=USER, cls=Wide), want) < 1e-12
    without = wanted(net, objective(start, user, betas, lambda *args: by_weight(*args, smallest=0.0)))
    assert error(without, want) > 1e-6, "no weight reaches the bound here"


def test_the_control_has_one_beta_and_the_users_path_is_as_exact_as_float32(user, tmp_path):
    control = ConstrainedSFT(betas=(1.0, 3.0, 0.2)).controls()["same-beta"]
    assert control.betas == (0.2, 0.2, 0.2)
    net = model()
    want = wanted(net, objective(clone(net), user, BETAS))
    assert error(moved(net, tmp_path, ConstrainedSFT(), (4, 2), data=USER, exact=False), want) < 1e-5


def test_each_answer_is_counted_from_its_own_beginning():
    mask = torch.tensor([[0, 0, 1, 1, 1, 0, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1, 0, 1, 1], [0] * 10]).bool()
    assert place_in_answer(mask).tolist() == [
        [0, 0, 1, 2, 3, 0, 0, 1, 2, 0],
        [1, 2, 3, 4, 5, 6, 7, 0, 1, 2],
        [0] * 10,
    ]


@pytest.mark.parametrize(
    "wrong", [(0.5, 2.0), (0.5, -1, 0.1), (0.5, float("inf"), 0.1), 0.5, None, "abc", (1, 1, True)]
)
def test_settings_out_of_their_range_are_refused(wrong):
    with pytest.raises(InputError, match="ConstrainedSFT: betas must be three numbers"):
        ConstrainedSFT(betas=wrong)


def test_a_list_is_as_good_as_a_tuple():
    assert ConstrainedSFT(betas=[0.5, 2, 0.1]) == ConstrainedSFT()


def test_what_it_cannot_do_is_refused_before_a_step(tmp_path):
    for args in ({"loss_type": "dft"}, {"label_smoothing_factor": 0.1}):
        with pytest.raises(UnsupportedSetup, match=f"ConstrainedSFT: .* the run's loss has {next(iter(args))}"):
            trainer_for(model(), tmp_path, defense=ConstrainedSFT(), data=USER, **args)
    texts = Dataset.from_list([{"text": "a b c d"}] * 8)
    for data in (texts, texts.to_iterable_dataset()):
        with pytest.raises(UnsupportedSetup, match="ConstrainedSFT: row 1 is trained on from its first token"):
            trainer_for(model(), tmp_path, defense=ConstrainedSFT(), data=data)


def test_a_row_whose_prompt_is_cut_away_whole_is_refused(tmp_path):
    """Wherever it stands: what is left of it would be weighed as an answer's beginning."""
    ids = [[1, 5, 6, 7], [1, 5, 6, 7, 8, 9]]
    data = Dataset.from_dict({"input_ids": ids, "labels": [[-100, 5, 6, 7], [-100, -100, 6, 7, 8, 9]]})
    args = {"max_length": 4, "per_device_train_batch_size": 2}
    with pytest.raises(UnsupportedSetup, match=r"row 2 is trained on .* cut away whole.* a larger max_length"):
        trainer_for(model(), tmp_path, defense=ConstrainedSFT(), data=data, truncation_mode="keep_end", **args)
    trainer_for(model(), tmp_path, defense=ConstrainedSFT(), data=data, **args)


def test_packing_that_cuts_answers_is_refused(tmp_path):
    for strategy in ("wrapped", "bfd_split"):
        with pytest.raises(UnsupportedSetup, match=f"ConstrainedSFT: packing_strategy='{strategy}' cuts answers"):
            trainer_for(
                model(), tmp_path, defense=ConstrainedSFT(), data=USER, packing=True, packing_strategy=strategy
            )
