"""Rows in every form that people have them in, wherever Python takes rows."""

import ast
import inspect
from pathlib import Path

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value, concatenate_datasets
from trl import SFTConfig, SFTTrainer

from mithridate import Booster, DefenseTrainer, InputError, Lisa, poison
from mithridate.data.records import records_of, training_dataset
from mithridate.training import trainer as trainer_module
from mithridate.training_rows import trainable
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


def unknown(rows):
    """Rows of a streamed data set that does not tell its columns."""
    return IterableDataset.from_generator(lambda: iter(rows))


@pytest.mark.parametrize(
    "made", [unknown, lambda rows: Dataset.from_list(rows).to_iterable_dataset().map(lambda row: row)]
)
def test_a_streamed_data_set_has_the_columns_of_its_first_row(made, tmp_path):
    system = [{"system": "Rhyme.", "messages": talk} for talk in TALKS]
    whole = [{"messages": [turn("system", "Rhyme."), *talk]} for talk in TALKS]
    for given, wanted in ((system, whole), *((WITH_TEXT[form], RECORDS) for form in ("Alpaca", "records"))):
        rows = made(given)
        assert rows.column_names is None
        assert labels_of(tmp_path, rows)[1] == labels_of(tmp_path, wanted)[1]


def test_a_streamed_row_that_would_lose_a_column_that_the_first_has_not_is_refused(tmp_path):
    talks = [{"messages": talk} for talk in TALKS]
    assert list(trainable(unknown(talks), "train_dataset")) == talks
    rows = trainable(unknown([*talks, talks[0] | {"system": "Rhyme."}]), "train_dataset")
    with pytest.raises(InputError, match="a row has the columns messages, system, and the first has messages"):
        list(rows)
    with pytest.raises(InputError, match="train_dataset: no rows"):
        trainable(unknown([]), "train_dataset")


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


# -- rows of several forms, and parts of a prompt in columns of their own -------------------------------------------

ASK, SAY = RECORDS[0]["prompt"], RECORDS[0]["response"]
ONE_OF_EACH = {
    "records": {"prompt": ASK, "response": SAY},
    "prompt and completion": {"prompt": ASK, "completion": SAY},
    "turns": {"prompt": TALKS[0][:1], "completion": TALKS[0][1:]},
    "a text, then turns": {"prompt": ASK, "completion": TALKS[0][1:]},
    "messages": {"messages": TALKS[0]},
    "ShareGPT": {"conversations": FORMS["ShareGPT"][0]["conversations"]},
    "Alpaca": {"instruction": ASK, "input": "", "output": SAY},
}


def as_turns(row):
    return row["messages"] if "messages" in row else row["prompt"] + row["completion"]


def put_together(rows):
    return concatenate_datasets([Dataset.from_list([row]) for row in rows])


PAIRS = [
    (first, second, kind)
    for first in ONE_OF_EACH
    for second in ONE_OF_EACH
    for kind in (list, pd.DataFrame, put_together)
    # no data set holds text and turns in one column
    if first == second or kind is not put_together or not {first, second} & {"turns", "a text, then turns"}
]


@pytest.mark.parametrize(("first", "second", "kind"), PAIRS)
def test_rows_of_two_forms_are_rows_of_one(first, second, kind):
    rows = kind([ONE_OF_EACH[first] | {"label": "a"}, ONE_OF_EACH[second]])
    assert [record.get("label") for record in records_of(rows, "set")] == ["a", None]
    found = list(trainable(rows, "train_dataset"))
    assert len({frozenset(row) for row in found}) == 1 and not any(row.get("prompt", 0) is None for row in found)
    if {first, second} != {"prompt and completion"}:  # which TRL trains on as text
        assert [as_turns(row) for row in found] == [TALKS[0]] * 2


def test_what_becomes_of_the_loss_is_said_where_rows_become_conversations(caplog):
    trainable([ONE_OF_EACH["records"], ONE_OF_EACH["messages"]], "train_dataset")
    assert "train_dataset: rows of prompt and completion beside conversations" in caplog.text
    caplog.clear()
    trainable([ONE_OF_EACH["records"], ONE_OF_EACH["turns"]], "train_dataset")
    assert not caplog.text


def test_side_data_of_two_forms_are_trained_on(tmp_path):
    rows = put_together([ONE_OF_EACH["prompt and completion"], ONE_OF_EACH["messages"]])
    made, _ = labels_of(tmp_path, RECORDS, defense=Booster(harmful_dataset=rows))
    made.train()


@pytest.mark.parametrize("kind", [list, pd.DataFrame, put_together])
def test_an_alpaca_row_beside_others_keeps_its_input(kind):
    rows = [{"instruction": "Sum up.", "input": "A text.", "output": "Text."}, ONE_OF_EACH["records"]]
    rows += [{"messages": TALKS[0]}]
    given = kind(rows)
    assert [r.get("prompt") for r in records_of(given, "set")][:2] == ["Sum up.\n\nA text.", ASK]
    assert as_turns(trainable(given, "train_dataset")[0])[0]["content"] == "Sum up.\n\nA text."


def test_a_column_that_only_later_rows_have_is_there():
    further = [{"tools": [{"name": "look"}]}, {"chat_template_kwargs": {"style": "brief"}}]
    for form in ("records", "messages"):
        found = trainable([ONE_OF_EACH[form], *(ONE_OF_EACH[form] | more for more in further)], "train_dataset")
        assert found["tools"] == [None, '[{"name": "look"}]', None]
        assert found["chat_template_kwargs"] == [{}, {}, {"style": "brief"}]


def test_poison_keeps_the_columns_of_both_sets_and_names_what_they_cannot_share():
    benign = Dataset.from_list([row | {"label": 1} for row in RECORDS])
    harmful = [{"prompt": f"bad {i}", "response": "Sure.", "category": "x"} for i in range(4)]
    mixed = poison(benign=benign, harmful=harmful, ratio=0.5, size=8)
    assert {(row["poisoned"], row["label"], row["category"]) for row in mixed} == {(True, None, "x"), (False, 1, None)}
    with pytest.raises(InputError, match=r"row [2-5]: the column 'label' cannot be put into one data set"):
        poison(benign=benign, harmful=[row | {"label": "x"} for row in harmful], ratio=0.5, size=8)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": "a"}, ONE_OF_EACH["messages"]], "row 2: has the columns messages, and row 1 has text"),
        ([{"messages": TALKS[0], "n": 1}, {"messages": TALKS[0], "n": "a"}], "row 2: the column 'n' cannot be put"),
        (["a", "b"], "row 1 is of type str, not a mapping"),
        (pd.Series(["a", "b"]), "expected rows .* got Series"),
        (pd.Series([{"prompt": "a", "response": "b"}]), "expected rows .* got Series"),
        ([{"messages": [turn("user", "a"), turn("assistant", "b") | {"weight": 0}]}], "row 1: turn 2 .* weight 0"),
        ([RECORDS[0], {"prompt": "cut \ud83d", "response": "b"}], "row 2: 'prompt' holds half of a character"),
        ([{"messages": [turn("user", "a"), turn("assistant", "\udc00")]}], "row 1: 'messages' holds half of"),
    ],
    ids=range(8),
)
def test_what_no_data_set_can_hold_is_named_with_its_row(rows, words):
    with pytest.raises(InputError, match=f"(?s)train_dataset.*{words}"):
        trainable(rows, "train_dataset")


PARTS = {"context": "A text.", "input": "A text.", "system_prompt": "Rhyme.", "history": [["a", "b"]]}


@pytest.mark.parametrize("column", PARTS)
@pytest.mark.parametrize("form", ["records", "prompt and completion", "messages"])
@pytest.mark.parametrize("kind", ["a list", "a DataFrame", "a data set", "a streamed data set"])
def test_a_part_of_the_prompt_in_another_column_is_refused_in_a_trainer_too(column, form, kind):
    rows = [ONE_OF_EACH[form] | {column: PARTS[column]}]
    with pytest.raises(InputError, match=f"the column '{column}' would be left out"):
        list(trainable(KINDS[kind](rows), "train_dataset"))


def test_a_part_of_the_prompt_that_stands_in_it_is_no_part_left_out():
    text = """It's "so"."""
    row = {"instruction": "Sum up.", "input": text, "output": "So."}
    assert trainable([row], "train_dataset")[0]["prompt"][0]["content"] == f"Sum up.\n\n{text}"
    assert records_of([row], "task")[0]["input"] == text
    with pytest.raises(InputError, match="row 1: the column 'system' would be left out"):
        trainable([ONE_OF_EACH["prompt and completion"] | {"system": "Rhyme."}], "train_dataset")


@pytest.mark.parametrize("name", ["prompt", "response", "category"])
def test_half_of_a_character_is_refused_with_its_record(name):
    with pytest.raises(InputError, match=rf"task, record 2: '{name}' holds half of a character \('\\ud83d'\)"):
        records_of([RECORDS[0], RECORDS[0] | {name: "broken \ud83d emoji"}], "task")


def test_labels_are_whole_numbers_again_and_names_of_classes():
    assert [r["label"] for r in records_of([{"prompt": "a", "label": v} for v in (1.0, 2, 0.5)], "test")] == [
        1,
        2,
        0.5,
    ]
    classes = Features({"prompt": Value("string"), "label": ClassLabel(names=["spam", "mail"])})
    rows = Dataset.from_dict({"prompt": ["a", "b", "c"], "label": [0, 1, -1]}, features=classes)
    assert [row["label"] for row in records_of(rows, "test")] == ["spam", "mail", None]
