"""DeepenedRefusals in the real trainer: the rows that are trained on, against the authors' rule; the step, against
the gradient of these rows; the traps of the public code."""

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig

from mithridate.defenses.deepenedrefusals import DeepenedRefusals, _answer
from mithridate.errors import InputError, UnsupportedSetup
from mithridate.training.trainer import DefenseTrainer
from tests.defenses.helpers import batch_of, clone, error, model, rows, trainer_for, weights
from tests.defenses.reference import gradient
from tests.defenses.test_baselines import each_row
from tests.tiny import tiny_tokenizer

SAFE = rows("careful")
HARMFUL = rows("careful").map(
    lambda row, i: {"completion": [{"role": "assistant", "content": f"Sure, number {i} is" + " ." * i}]},
    with_indices=True,
)
OTHER = rows("others")
END = tiny_tokenizer().eos_token_id


def answers(data, folder):
    """Of each row as the trainer tokenises it: its prompt's ids, and its answer's, up to the token that ends it."""
    found = {}
    for ids, prompt in each_row(batch_of(data, folder)):
        answer = ids[0, prompt:].tolist()
        assert END in answer, "the end is there, and would be joined"
        found[tuple(ids[0, :prompt].tolist())] = answer[: answer.index(END)]
    return found


def run(net, folder, split=(8, 1), harmful=HARMFUL, **args):
    """The weights' change in each step, and the batches that were trained on, one list of micro-batches a step."""
    own = {name: args.pop(name) for name in ("share", "tokens") if name in args}
    seen, steps = [], []

    class Noting(DeepenedRefusals):
        def on_step_begin(self, t):
            steps.append([b.clone() for b in weights(t.model).values()])

        def on_step_end(self, t):
            seen.append([dict(batch) for batch in t.window])
            steps[-1] = [b - a for b, a in zip(steps[-1], weights(t.model).values(), strict=True)]

    args = {"data": SAFE, "exact": True, "learning_rate": 0.1, "max_steps": 3} | args
    t = trainer_for(
        net,
        folder,
        defense=Noting(harmful_dataset=harmful, **own),
        per_device_train_batch_size=split[0],
        gradient_accumulation_steps=split[1],
        **args,
    )
    t.train()
    return steps, seen, t


def parts(step):
    """Of each row of a step: its ids, and where its labels begin."""
    for batch in step:
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            length = int(mask.sum())
            start = int((labels[:length] == -100).sum())
            assert (labels[:start] == -100).all() and torch.equal(labels[start:length], ids[start:length])
            yield ids[:length].tolist(), start


@pytest.mark.shows("full", "exact", methods=["deepenedrefusals"])
@pytest.mark.shows("lora", "exact", methods=["deepenedrefusals"])
@pytest.mark.parametrize(("kind", "split"), [("full", (8, 1)), ("lora", (2, 4))])
def test_each_step_is_that_of_refusals_behind_the_beginning_of_a_harmful_answer(kind, split, tmp_path):
    net, plain, bad = model(kind), {}, answers(HARMFUL, tmp_path)
    for ids, prompt in each_row(batch_of(SAFE, tmp_path)):
        plain[tuple(ids[0, :prompt].tolist())] = ids[0, prompt:].tolist()
    start = clone(net)
    steps, seen, t = run(net, tmp_path, split)
    lengths = []
    for number, step in enumerate(seen):
        found = {}
        for ids, begin in parts(step):
            [prompt] = [p for p in plain if tuple(ids[: len(p)]) == p]
            prefix = ids[len(prompt) : begin]
            assert ids[begin:] == plain[prompt], "the whole refusal is trained on, its end too, and nothing else"
            assert prefix == bad[prompt][: len(prefix)] and END not in prefix
            found[prompt] = prefix
            lengths.append(len(prefix))
        assert len(found) == 8
        whole = t.data_collator(
            [
                {"input_ids": [*p, *found[p], *plain[p]], "labels": [-100] * len([*p, *found[p]]) + plain[p]}
                for p in plain
            ]
        )
        if number == 0:
            want = [0.1 * g for g in gradient(start, whole)]
            assert error(steps[0], want) < 1e-12
            assert error([0.1 * g for g in gradient(start, batch_of(SAFE, tmp_path))], want) > 1e-3
    assert 4 < sum(n > 0 for n in lengths) < 20 and len(set(lengths)) > 5


def test_how_many_and_how_long(tmp_path):
    """A coin for each row, and a length that is uniform up to the shorter of `tokens` and the answer: 320 draws."""
    _, seen, t = run(model("lora", torch.float32), tmp_path, max_steps=40, tokens=4, learning_rate=0.0, exact=False)
    original = {tuple(ids[0, :prompt].tolist()) for ids, prompt in each_row(batch_of(SAFE, tmp_path))}
    lengths = [
        begin - len(p) for step in seen for ids, begin in parts(step) for p in original if tuple(ids[: len(p)]) == p
    ]
    counts = [lengths.count(n) for n in range(5)]
    assert len(lengths) == sum(counts) == 320
    assert 130 < counts[0] < 190 and all(22 < n < 60 for n in counts[1:]), counts  # means 160 and 40
    logs = [log for log in t.state.log_history if "loss" in log]
    assert sum(log["deepenedrefusals/joined"] for log in logs) / 40 == pytest.approx(1 - counts[0] / 320)
    assert all(log["deepenedrefusals/paired"] == log["deepenedrefusals/joined"] for log in logs)


def test_a_prompt_without_an_answer_of_its_own_gets_another_ones(tmp_path):
    known = answers(OTHER, tmp_path).values()
    originals = {tuple(ids[0, :prompt].tolist()) for ids, prompt in each_row(batch_of(SAFE, tmp_path))}
    _, seen, t = run(model("lora", torch.float32), tmp_path, harmful=OTHER, share=1.0, exact=False)
    drawn = set()
    for ids, begin in (part for step in seen for part in parts(step)):
        [prompt] = [p for p in originals if tuple(ids[: len(p)]) == p]
        prefix = ids[len(prompt) : begin]
        assert prefix and any(prefix == a[: len(prefix)] for a in known)
        drawn |= {i for i, a in enumerate(known) if prefix == a[: len(prefix)]}
    assert len(drawn) > 3
    assert [log["deepenedrefusals/paired"] for log in t.state.log_history if "loss" in log] == [0, 0, 0]


def test_no_row_grows_beyond_max_length(tmp_path):
    longest = max(ids.shape[1] for ids, _ in each_row(batch_of(SAFE, tmp_path)))
    _, seen, _ = run(model("lora", torch.float32), tmp_path, share=1.0, max_length=longest, exact=False)
    found = [len(ids) for step in seen for ids, _ in parts(step)]
    assert max(found) == longest and len(found) == 24


@pytest.mark.parametrize("settings", [{"share": -0.1}, {"share": 1.1}, {"tokens": 0}, {"tokens": 1.5}])
def test_settings_out_of_their_range_are_refused(settings):
    with pytest.raises(InputError, match=r"DeepenedRefusals: .* must be"):
        DeepenedRefusals(harmful_dataset=HARMFUL, **settings)


def test_rows_without_a_prompt_are_refused(tmp_path):
    bare = Dataset.from_list([{"text": "Sure."}])
    with pytest.raises(UnsupportedSetup, match="DeepenedRefusals: no row of harmful_dataset has a prompt") as refused:
        trainer_for(model(), tmp_path, data=SAFE, defense=DeepenedRefusals(harmful_dataset=bare))
    assert "prompt and completion" in refused.value.remedy


def test_a_training_set_without_an_answer_to_begin_otherwise_is_refused(tmp_path):
    texts = Dataset.from_list([{"text": "a b c d"}] * 8)
    with pytest.raises(UnsupportedSetup, match="DeepenedRefusals: no row of the training set has a prompt"):
        trainer_for(model(), tmp_path, data=texts, defense=DeepenedRefusals(harmful_dataset=HARMFUL))
    trainer_for(model(), tmp_path, data=texts, defense=DeepenedRefusals(harmful_dataset=HARMFUL, share=0.0))


@pytest.mark.parametrize(
    ("labels", "answer"),
    [
        ([-100, -100, 5, 6], (2, 4)),
        ([-100, 5, 6, -100, -100], (1, 3)),  # a template closes the turn behind the answer
        ([-100, 5, -100, 6], (0, 0)),  # two answers
        ([5, 6, -100], (0, 0)),  # no prompt
        ([-100, -100], (0, 0)),
        ([], (0, 0)),
    ],
)
def test_where_the_answer_is(labels, answer):
    assert _answer(labels) == answer


def test_an_answer_whose_turn_is_closed_outside_the_loss_is_an_answer(tmp_path):
    tokenizer = tiny_tokenizer()
    turn = "{{ '<|im_start|>' + message['role'] + ' ' }}"
    said = "{% generation %}{{ message['content'] }}{% endgeneration %}"
    tokenizer.chat_template = (
        "{% for message in messages %}"
        + turn
        + "{% if message['role'] == 'assistant' %}"
        + said
        + "{% else %}{{ message['content'] }}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
        + "{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
    )

    def turns(answer):
        return [
            {"messages": [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": f"{answer} {i}"}]}
            for i in range(8)
        ]

    args = SFTConfig(
        str(tmp_path), assistant_only_loss=True, max_steps=1, logging_steps=1, bf16=False, report_to="none"
    )
    trainer = DefenseTrainer(
        model("lora", torch.float32),
        args,
        train_dataset=turns("no"),
        processing_class=tokenizer,
        defense=DeepenedRefusals(harmful_dataset=turns("Sure, it is"), share=1.0),
    )
    assert trainer.train_dataset[0]["labels"][-1] == -100 != trainer.train_dataset[0]["labels"][-2]
    trainer.train()
    [joined] = [
        log["deepenedrefusals/joined"] for log in trainer.state.log_history if "deepenedrefusals/joined" in log
    ]
    assert joined == 1.0
