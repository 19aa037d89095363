"""Rows in every form that people have them in, wherever Python takes rows."""

import ast
import inspect
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset, IterableDataset
from trl import SFTConfig, SFTTrainer

from mithridate import Booster, DefenseTrainer, InputError, Lisa, poison
from mithridate.data.records import records_of, training_dataset
from mithridate.rows import trainable
from mithridate.training import trainer as trainer_module
from tests.tiny import tiny_llama, tiny_tokenizer

RECORDS = [{"prompt": f"ask {i}", "response": f"say {i}", "label": str(i)} for i in range(6)]


def turn(role, text):
    return {"role": role, "content": text}


TALKS = [[turn("user", row["prompt"]), turn("assistant", row["response"])] for row in RECORDS]
LABELS = [{"label": row["label"]} for row in RECORDS]
FORMS = {
    "records": RECORDS,
    "prompt and completion": [
        {"prompt": row["prompt"], "completion": row["response"], "label": row["label"]} for row in RECORDS
    ],
    "turns": [{"prompt": t[:1], "completion": t[1:]} | label for t, label in zip(TALKS, LABELS)],
    "messages": [{"messages": t} | label for t, label in zip(TALKS, LABELS)],
    "lists of text parts": [
        {"messages": [one | {"content": [{"type": "text", "text": one["content"]}]} for one in t]} | label
        for t, label in zip(TALKS, LABELS)
    ],
    "ShareGPT": [
        {"conversations": [{"from": "human", "value": t[0]["content"]}, {"from": "gpt", "value": t[1]["content"]}]}
        | label
        for t, label in zip(TALKS, LABELS)
    ],
    "Alpaca": [
        {"instruction": row["prompt"], "input": "", "output": row["response"], "label": row["label"]}
        for row in RECORDS
    ],
}
KINDS = {
    "a list": list,
    "a generator": iter,
    "a DataFrame": pd.DataFrame,
    "a data set": Dataset.from_list,
    "a data set of numpy": lambda rows: Dataset.from_list(rows).with_format("numpy"),
    "a streamed data set": lambda rows: Dataset.from_list(rows).to_iterable_dataset(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_form_in_every_kind_is_the_same_records(form, kind):
    found = records_of(KINDS[kind](FORMS[form]), "harmful")
    assert training_dataset(found).to_list() == training_dataset(RECORDS).to_list()
    assert [row["label"] for row in found] == [row["label"] for row in RECORDS]


def test_a_prompt_alone_may_be_turns_and_nothing_of_pandas_is_a_value():
    frame = pd.DataFrame([{"prompt": [turn("system", "be brief"), turn("user", "a")]}, {"prompt": "b", "category": 1}])
    assert records_of(frame, "benign")[0]["messages"] == [turn("system", "be brief"), turn("user", "a")]
    assert records_of(frame, "benign")[0]["category"] is None


def test_the_input_of_alpaca_is_used():
    [record] = records_of([{"instruction": "Sum up.", "input": "A text.", "output": "Text."}], "task")
    assert record == {"prompt": "Sum up.\n\nA text.", "response": "Text.", "input": "A text."}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}], "a part of type 'image_url'"),
        ([{"prompt": "a", "tools": "look"}], "harmful, record 1: 'tools' is no list of tools"),
        ([{"prompt": "a", "context": "b"}], "the column 'context' would be left out"),
        ({"prompt": ["a"]}, r"harmful: expected rows .* got dict of splits or columns \(prompt\)"),
        ("rows.jsonl", "harmful: expected rows .* got str of 'rows.jsonl'"),
        (["a"], "record 1 is of type str, not a record"),
    ],
)
def test_what_is_no_row_is_named(rows, words):
    with pytest.raises(InputError, match=f"(?s){words}"):
        records_of(rows, "harmful")


# -- into a trainer -----------------------------------------------------------------------------------------------


def labels_of(tmp_path, rows, cls=DefenseTrainer, **more):
    args = SFTConfig(str(tmp_path), use_cpu=True, report_to="none", bf16=False, max_steps=2, logging_steps=1)
    made = cls(tiny_llama(), args=args, train_dataset=rows, processing_class=tiny_tokenizer(), **more)
    return made, [list(row.values()) for row in made.train_dataset.select_columns(["input_ids", "labels"])]


@pytest.mark.parametrize("form", ["records", "turns", "Alpaca"])
@pytest.mark.parametrize("kind", ["a list", "a DataFrame", "a data set"])
def test_the_trainer_takes_them_with_the_loss_on_the_answer_alone(form, kind, tmp_path):
    rows = KINDS[kind]([{k: v for k, v in row.items() if k != "label"} for row in FORMS[form]])
    _, found = labels_of(tmp_path, rows)
    _, wanted = labels_of(tmp_path, training_dataset(RECORDS), SFTTrainer)
    assert found == wanted


def test_shared_conversations_are_trained_on_as_messages_are(tmp_path):
    _, found = labels_of(tmp_path, FORMS["ShareGPT"])
    _, wanted = labels_of(tmp_path, Dataset.from_list(FORMS["messages"]), SFTTrainer)
    assert found == wanted


WITH_TEXT = {
    "Alpaca": [
        {"instruction": r["prompt"], "input": "", "output": r["response"], "text": "Below is ..."} for r in RECORDS
    ],
    "records": [{"prompt": r["prompt"], "response": r["response"], "text": "Below is ..."} for r in RECORDS],
    "messages": [{"messages": t, "prompt": t[0]["content"]} for t in TALKS],
}


@pytest.mark.parametrize("form", WITH_TEXT)
@pytest.mark.parametrize("kind", ["a list", "a DataFrame", "a data set", "a streamed data set"])
def test_what_repeats_the_prompt_beside_another_form_is_left_out(form, kind, tmp_path):
    """As `text` in the Alpaca set, which TRL would train on whole, and `prompt` in UltraChat, which stops it."""
    given = trainable(KINDS[kind](WITH_TEXT[form]), "train_dataset")
    _, found = labels_of(tmp_path, KINDS[kind](WITH_TEXT[form]))
    _, wanted = labels_of(tmp_path, Dataset.from_list(FORMS[form]) if form == "messages" else RECORDS)
    assert found == wanted
    assert not {"text", "instruction"} & set(next(iter(given)))


@pytest.mark.parametrize("kind", ["a list", "a DataFrame", "a data set"])
@pytest.mark.parametrize("form", ["Alpaca", "records"])
def test_poisoned_rows_with_a_text_are_trained_on(form, kind, tmp_path):
    harmful = [{"prompt": f"bad {i}", "response": "Sure."} for i in range(4)]
    mixed = poison(benign=KINDS[kind](WITH_TEXT[form]), harmful=KINDS[kind](harmful), ratio=0.5, size=8)
    _, rows = labels_of(tmp_path, mixed)
    trained = {tiny_tokenizer().decode([i for i in labels if i != -100]) for _, labels in rows}
    assert trained == {"Sure.<|im_end|>\n"} | {f"{r['response']}<|im_end|>\n" for r in RECORDS} & trained
    assert len(trained) == 5


def test_what_trl_reads_beside_the_turns_stays():
    row = {"prompt": "a", "response": "b", "tools": "[]", "images": None, "label": "c"}
    assert trainable([row], "train_dataset")[0].keys() == {"prompt", "completion", "tools"}


@pytest.mark.parametrize("kind", ["a list", "a data set"])
def test_a_system_column_is_the_system_turn_in_a_trainer(kind, tmp_path):
    system = {"system": "Rhyme."}
    plain = [{"prompt": r["prompt"], "response": r["response"]} | system for r in RECORDS]
    talks = [[turn("system", "Rhyme."), *t] for t in TALKS]
    _, answers = labels_of(tmp_path, [{"prompt": t[:2], "completion": t[2:]} for t in talks])
    _, wanted = labels_of(tmp_path, [{"messages": t} for t in talks])
    for form, whole in (("messages", wanted), ("ShareGPT", wanted), ("turns", answers)):
        rows = [{k: v for k, v in row.items() if k != "label"} | system for row in FORMS[form]]
        assert labels_of(tmp_path, KINDS[kind](rows))[1] == whole, form
    assert labels_of(tmp_path, KINDS[kind](plain))[1] == answers


@pytest.mark.parametrize("form", ["messages", "prompt and completion", "turns"])
def test_a_data_set_that_trl_takes_is_left_as_it_is(form):
    rows = Dataset.from_list(FORMS[form])
    assert trainable(rows, "train_dataset") is rows
    streamed = rows.to_iterable_dataset()
    assert isinstance(streamed, IterableDataset) and trainable(streamed, "train_dataset") is streamed


@pytest.mark.parametrize("kind", ["a list", "a DataFrame", "a data set"])
def test_side_data_and_evaluation_sets_are_taken_likewise(kind, tmp_path):
    rows = KINDS[kind](RECORDS)
    for defense in (
        Booster(harmful_dataset=rows),
        Lisa(alignment_dataset=rows, align_steps=1, finetune_steps=1, proximal_start=0.0),
    ):
        made, _ = labels_of(tmp_path, RECORDS, defense=defense, eval_dataset={"held out": rows})
        made.train()
        assert made.evaluate()["eval_held out_loss"] > 0


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "train_dataset: no rows"),
        ([{"prompt": "a", "response": "b"}, {"question": "a"}], "train_dataset, row 2: has neither prompt and"),
        ("rows.jsonl", "train_dataset: expected rows"),
    ],
)
def test_what_no_trainer_can_take_is_named(rows, words, tmp_path):
    with pytest.raises(InputError, match=words):
        labels_of(tmp_path, rows)


def test_the_signature_is_that_of_trl_and_two_arguments_more():
    theirs = [name for name in inspect.signature(SFTTrainer).parameters if name != "self"]
    assert list(inspect.signature(DefenseTrainer).parameters) == [*theirs, "defense", "models"]
    tree = ast.parse(Path(str(trainer_module.__file__)).read_text(encoding="utf-8"))
    [cls] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "DefenseTrainer"]
    typed = next(node for node in ast.walk(cls) if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    names = [one.arg for one in (*typed.args.args, *typed.args.kwonlyargs)]
    assert names == ["self", *theirs, "defense", "models"]  # what type checkers see


# -- poison -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["a list", "a DataFrame", "a data set"])
def test_poison_mixes_any_forms_into_what_the_trainer_takes(form, kind, tmp_path):
    harmful = [{"prompt": f"bad {i}", "completion": "Sure."} for i in range(4)]
    mixed = poison(benign=KINDS[kind](FORMS[form]), harmful=harmful, ratio=0.5, size=8)
    assert type(mixed) is type(KINDS[kind](FORMS[form]))
    found = records_of(mixed, "mixed")
    assert sum(row["poisoned"] for row in found) == 4 and len(found) == 8
    made, rows = labels_of(tmp_path, mixed)
    assert len(rows) == 8 and set(next(iter(made.get_train_dataloader()))) == {"input_ids", "attention_mask", "labels"}


def test_poison_refuses_rows_that_have_no_form_in_common():
    with pytest.raises(InputError, match=r"benign, record 1: has neither a prompt nor messages \(it has text\)"):
        poison(benign=[{"text": "a"}] * 10, harmful=RECORDS, ratio=0.1, size=10)
    with pytest.raises(InputError, match="harmful: expected rows"):
        poison(benign=RECORDS, harmful="bad.jsonl", ratio=0.5, size=4)
