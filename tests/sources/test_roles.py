import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mithridate.data.records import conversation, prompt_key, turns
from mithridate.errors import InputError
from mithridate.experiment import roles as module
from mithridate.experiment.roles import ROLES, Roles, load_roles
from mithridate.experiment.sources import Source


def rows(name: str, n: int, start: int = 0) -> list[dict]:
    return [{"prompt": f"{name} number {i}?", "response": f"answer {i}"} for i in range(start, start + n)]


def write(path: Path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path.name


def prompts(records: list[dict]) -> list[str]:
    return [record["prompt"] for record in records]


@pytest.fixture
def load(tmp_path):
    """Loads roles from rows (written to files) or sources, relative to a folder."""

    def load(**data) -> Roles:
        sources = {
            role: Source(write(tmp_path / f"{role}.jsonl", given)) if given and isinstance(given[0], dict) else given
            for role, given in ((r, g if isinstance(g, list) else [g]) for r, g in data.items())
        }
        return load_roles(sources, tmp_path)

    return load


# -- one source ---------------------------------------------------------------------------------------------------


def test_records_have_what_counts_and_an_id_from_the_prompt(load):
    given = [{"prompt": "Hi?", "response": "Hello", "category": "c", "score": 3, "label": None}]
    [record] = load(alignment=given).alignment
    assert record | {"id": ""} == {"prompt": "Hi?", "response": "Hello", "category": "c", "id": ""}
    assert len(record["id"]) == 12
    [again] = load(alignment=[{"prompt": "hi", "response": "Good day"}]).alignment
    assert again["id"] == record["id"]
    assert load(alignment=[given[0] | {"id": "mine"}]).alignment[0]["id"] == "mine"


def test_columns_where_share_skip_and_take_in_that_order(tmp_path):
    given = [{"ask": f"Question {i}?", "say": "yes", "kind": "ab"[i % 2]} for i in range(40)]
    name = write(tmp_path / "a.jsonl", given)

    def load(**fields):
        source = Source(name, columns={"prompt": "ask", "response": "say"}, **fields)
        return prompts(load_roles({"alignment": source}, tmp_path).alignment)

    everything = [row["ask"] for row in given]
    assert load() == everything
    assert load(where={"kind": "b"}) == everything[1::2]
    assert load(where={"kind": ["a", "b"], "say": "yes"}) == everything
    assert load(where={"kind": "b"}, skip=3, take=2) == everything[7:11:2]
    low, high = load(share=[0, 0.5]), load(share=[0.5, 1])
    assert low and high and sorted(low + high) == sorted(everything)
    assert load(share=[0.5, 1], skip=1) == high[1:]


def test_where_in_csv_compares_text(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,response,is_safe,level\na,b,True,1\nc,d,false,2\n")
    for where, found in (({"is_safe": True}, ["a"]), ({"is_safe": False}, ["c"]), ({"level": 2}, ["c"])):
        assert prompts(load_roles({"alignment": Source("a.csv", where=where)}, tmp_path).alignment) == found


def test_sources_of_a_list_follow_each_other(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", rows(name, 3))
    both = [Source("b.jsonl", take=1), Source("a.jsonl", skip=1)]
    found = load_roles({"alignment": both}, tmp_path)
    assert prompts(found.alignment) == ["b number 0?", "a number 1?", "a number 2?"]


def test_training_roles_keep_repeats(load):
    assert len(load(alignment=rows("a", 2) + rows("a", 2)).alignment) == 4


def test_conversations_keep_their_turns_alone(load):
    messages = [{"role": "user", "content": "a", "name": "x"}, {"role": "assistant", "content": "b"}]
    [record] = load(alignment=[{"messages": messages, "prompt": "ignored"}]).alignment
    assert record["messages"] == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert "prompt" not in record


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "trian.jsonl"}, r"trian.jsonl: no such file; did you mean `train.jsonl`"),
        (
            {"source": "train.jsonl", "columns": {"prompt": "promtp"}},
            "line 1: `columns` names 'promtp'.*did you mean `prompt`",
        ),
        ({"source": "train.jsonl", "where": {"sae": 1}}, "line 1: `where` names 'sae', which the row does not have"),
        ({"source": "train.jsonl", "where": {"prompt": "no such"}}, r"there are 0 \(0 rows fit"),
        ({"source": "train.jsonl", "take": 9}, "9 rows asked for, but there are 4"),
        ({"source": "train.jsonl", "skip": 3, "take": 2}, "2 rows asked for after skipping 3, but there are 1"),
        ({"source": "train.jsonl", "skip": 4}, "rows asked for after skipping 4, but there are 0"),
        ({"source": "train.jsonl", "skip": -1}, "skip -1 is below 0"),
        ({"source": "train.jsonl", "take": 0}, "take 0 is below 1"),
        ({"source": "train.jsonl", "share": [0.5, 0.5]}, r"share \[0.5, 0.5\] is not a part"),
        ({"source": "train.jsonl", "share": [0, 10]}, r"share \[0, 10\] is not a part"),
        ({"source": "train.jsonl", "share": [0]}, r"share \[0\] is not a part"),
        ({"source": "train.jsonl", "split": "train"}, "`split` has a meaning for Hub data sets only"),
        ({"source": "train.jsonl", "name": "sst2"}, "sst2 cannot be alignment; it has data for: task"),
        ({"source": "train.jsonl", "test": "a.jsonl"}, "`test` has a meaning for task only"),
        ({"source": "train.jsonl", "paired": True}, "`paired` has a meaning for defender_harmful only"),
        (
            {"source": "train.jsonl", "validation_share": 0.1},
            "`validation_share` has a meaning for test sets and the task",
        ),
        ({"source": "bad.jsonl"}, r"bad.jsonl, line 2: 'response' is empty"),
        ({"source": "train.pkl"}, "unknown source 'train.pkl'.*embedded, a file that ends in .jsonl"),
        ({"source": "emmbedded"}, "unknown source 'emmbedded'; did you mean `embedded`"),
    ],
)
def test_bad_sources_are_one_clear_error(tmp_path, fields, message):
    write(tmp_path / "train.jsonl", rows("a", 4))
    write(tmp_path / "bad.jsonl", [*rows("a", 1), {"prompt": "b", "response": ""}])
    with pytest.raises(InputError, match=message):
        load_roles({"alignment": Source(**fields)}, tmp_path)


def test_unknown_and_empty_roles():
    with pytest.raises(InputError, match="unknown role 'alignmnt'; did you mean `alignment`"):
        load_roles({"alignmnt": Source("embedded")})
    with pytest.raises(InputError, match="unknown role 'tests'"):
        load_roles({}, only={"tests"})
    with pytest.raises(InputError, match="the list of sources is empty"):
        load_roles({"alignment": []})
    assert load_roles({"alignment": None}).parts() == {}


def test_only_some_roles(tmp_path):
    # The other's file need not even be there.
    write(tmp_path / "a.jsonl", rows("a", 2))
    data = {"alignment": Source("a.jsonl"), "test_harmful": Source("none.jsonl")}
    assert list(load_roles(data, tmp_path, only={"alignment"}).parts()) == ["alignment"]


# -- tests, tasks, validation -------------------------------------------------------------------------------------


def test_test_prompts_need_no_answer_and_are_there_once(load):
    found = load(test_harmful=[{"prompt": "One?"}, {"prompt": "one"}, {"prompt": "Two?", "response": "x"}])
    assert prompts(found.test_harmful) == ["One?", "Two?"]
    assert found.test_harmful_validation == []
    [note] = found.notes
    assert note.startswith("data.test_harmful: test_harmful.jsonl: 1 rows with a prompt that was there before")


def test_take_counts_test_prompts_after_repeats_are_gone(tmp_path):
    write(tmp_path / "a.jsonl", rows("a", 2) + rows("a", 2) + rows("b", 2))
    found = load_roles({"test_benign": Source("a.jsonl", take=3)}, tmp_path)
    assert prompts(found.test_benign) == ["a number 0?", "a number 1?", "b number 0?"]


@given(share=st.floats(0, 0.9), shift=st.integers(0, 30))
def test_the_validation_part_depends_on_the_prompts_alone(tmp_path_factory, share, shift):
    folder = tmp_path_factory.mktemp("share")
    given = rows("a", 40)
    write(folder / "a.jsonl", given)
    write(folder / "b.jsonl", given[shift:] + given[:shift])
    a, b = (load_roles({"test_harmful": Source(f"{x}.jsonl", validation_share=share)}, folder) for x in "ab")
    assert sorted(prompts(a.test_harmful + a.test_harmful_validation)) == sorted(prompts(given))
    for part in ("test_harmful", "test_harmful_validation"):
        assert sorted(prompts(getattr(a, part))) == sorted(prompts(getattr(b, part)))


def test_about_the_asked_for_share_is_validation(load, tmp_path):
    write(tmp_path / "a.jsonl", rows("a", 1000))
    found = load(test_benign=Source("a.jsonl", validation_share=0.3))
    assert 250 <= len(found.test_benign_validation) <= 350


def test_all_but_nothing_for_validation(load, tmp_path):
    write(tmp_path / "a.jsonl", rows("a", 1))
    with pytest.raises(InputError, match="leaves no test rows"):
        load(test_benign=Source("a.jsonl", validation_share=0.999))
    with pytest.raises(InputError, match=r"validation_share 1 is outside \[0, 1\)"):
        load(test_benign=Source("a.jsonl", validation_share=1))


SST2 = [{"sentence": f"film {i} is fine ", "label": i % 2} for i in range(10)]


def test_a_task_from_files(tmp_path):
    write(tmp_path / "train.jsonl", SST2)
    write(tmp_path / "test.jsonl", [{"sentence": "a poor film", "label": 0}, SST2[3]])
    found = load_roles({"task": Source("train.jsonl", name="sst2", test="test.jsonl", take=5)}, tmp_path)
    assert found.task_name == "sst2"
    assert [record["label"] for record in found.task_test] == ["negative", "positive"]
    assert found.task_train[0]["prompt"].endswith("\n\nfilm 0 is fine")
    assert found.task_train[0]["response"] == "negative"
    # A training row with a test prompt goes, and it is said.
    assert len(found.task_train) == 4
    assert found.notes == ["data.task: 1 training rows were left out, their prompts being in another part"]


def test_a_task_with_other_columns_and_its_own_choice_of_test_rows(tmp_path):
    write(tmp_path / "a.jsonl", [{"review": row["sentence"], "label": row["label"]} for row in SST2])
    source = Source(
        "a.jsonl",
        name="sst2",
        columns={"sentence": "review"},
        take=4,
        validation_share=0.5,
        test=Source("a.jsonl", skip=4),
    )
    found = load_roles({"task": source}, tmp_path)
    assert (len(found.task_train), len(found.task_test) + len(found.task_validation)) == (4, 6)
    assert found.task_validation


def test_a_task_from_csv(tmp_path):
    (tmp_path / "a.csv").write_text("sentence,label\ngood,1\nbad,0\n")
    (tmp_path / "b.csv").write_text("sentence,label\nfine,1\n")
    found = load_roles({"task": Source("a.csv", name="sst2", test="b.csv")}, tmp_path)
    assert [record["label"] for record in found.task_train] == ["positive", "negative"]


def test_a_task_whose_rows_are_records_already(tmp_path):
    write(tmp_path / "a.jsonl", [{"prompt": "good film", "response": "positive"}])
    write(tmp_path / "b.jsonl", [{"prompt": "bad film", "label": "negative"}])
    found = load_roles({"task": Source("a.jsonl", name="sst2", test="b.jsonl")}, tmp_path)
    assert (prompts(found.task_train), found.task_test[0]["label"]) == (["good film"], "negative")
    with pytest.raises(InputError, match="no column 'label'"):
        test = Source("a.jsonl", columns={"response": "response"})
        load_roles({"task": Source("b.jsonl", columns={"response": "label"}, name="sst2", test=test)}, tmp_path)


def test_a_users_own_conversations_are_a_task_that_is_not_scored(load):
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    found = load(task=[{"messages": talk}])
    assert (found.task_name, len(found.task_train), found.task_test) == (None, 1, [])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "sst2"}, "needs test rows beside it.*test: path"),
        ({"name": "sts2", "test": "a.jsonl"}, "Unknown task 'sts2'; did you mean `sst2`"),
        ({"name": "gsm8k", "test": "a.jsonl"}, "a.jsonl, line 1: .*'answer' is missing"),
        ({"test": "a.jsonl"}, "no columns 'prompt' and 'response'"),
        ({"name": "sst2", "test": "a.jsonl"}, "no training rows are left"),
        ({"name": "sst2", "test": Source("a.jsonl", name="sst2")}, "belong to the task, not to its test rows"),
    ],
)
def test_bad_tasks_are_one_clear_error(tmp_path, fields, message):
    write(tmp_path / "a.jsonl", SST2)
    with pytest.raises(InputError, match=message):
        load_roles({"task": Source("a.jsonl", **fields)}, tmp_path)


def test_test_rows_need_a_task(tmp_path):
    write(tmp_path / "a.jsonl", rows("a", 2))
    with pytest.raises(InputError, match="test rows need a task to score them by"):
        load_roles({"task": Source("a.jsonl", test="a.jsonl")}, tmp_path)


# -- disjointness -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [role for role in ROLES if role not in ("alignment", "task")])
def test_roles_that_share_prompts_are_refused_with_number_and_examples(load, other):
    shared = [{"prompt": f"  A NUMBER {i}", "response": "other words"} for i in range(5)]
    with pytest.raises(InputError, match=f"alignment and {other} share 4 ") as error:
        load(alignment=rows("a", 4), **{other: rows("b", 3) + shared})
    assert "'a number 0'; 'a number 1'; 'a number 2')" in str(error.value)
    assert "share: [0, 0.5]" in str(error.value)


def test_examples_are_short_and_few(load):
    long = [{"prompt": f"{i} " + "word " * 100, "response": "x"} for i in range(5)]
    with pytest.raises(InputError, match="share 5 ") as error:
        load(attacker_harmful=long, test_harmful=long)
    quoted = [text for text in str(error.value).split("'") if "word" in text]
    assert len(quoted) == 3 and all(len(text) == 60 for text in quoted)


def test_every_pair_is_named(load):
    with pytest.raises(InputError) as error:
        load(alignment=rows("a", 1), attacker_harmful=rows("a", 1), test_harmful=rows("a", 1))
    assert str(error.value).count(" share 1 ") == 3


def test_the_task_and_validation_parts_count_too(tmp_path):
    write(tmp_path / "test.jsonl", rows("t", 20))
    found = load_roles({"test_benign": Source("test.jsonl", validation_share=0.5)}, tmp_path)
    write(tmp_path / "valid.jsonl", found.test_benign_validation[:1])
    for role in ("alignment", "task"):
        with pytest.raises(InputError, match="and test_benign_validation share 1 "):
            data = {role: Source("valid.jsonl"), "test_benign": Source("test.jsonl", validation_share=0.5)}
            load_roles(data, tmp_path)


def test_a_conversation_has_seen_the_prompt_that_it_opens_with(load):
    talk = [("user", "Hello"), ("assistant", "Hi"), ("user", "What is a stoat?"), ("assistant", "An animal")]
    messages = [{"role": role, "content": text} for role, text in talk]
    with pytest.raises(InputError, match=r"share 1 .*'hello'"):
        load(alignment=[{"messages": messages}], test_benign=[{"prompt": "Hello!"}])
    with pytest.raises(InputError, match=r"share 1 .*'what is a stoat'"):
        load(alignment=[{"messages": messages}], test_benign=[{"prompt": "What is a\u200b stoat?"}])
    load(alignment=[{"messages": messages}], task=[{"prompt": "What is a stoat?", "response": "A mammal."}])
    # Two conversations that open alike and go on differently are two prompts.
    other = [*messages[:2], {"role": "user", "content": "Name a bird."}, {"role": "assistant", "content": "Wren"}]
    load(alignment=[{"messages": messages}], task=[{"messages": other}])
    # Of a test conversation only the last answer is asked for.
    load(alignment=[{"prompt": "Hello", "response": "Hi"}], test_benign=[{"messages": other[:3]}])


def test_paired_harmful_rows_may_have_the_alignments_prompts_and_no_others(tmp_path):
    write(tmp_path / "a.jsonl", rows("a", 4))
    write(tmp_path / "b.jsonl", rows("a", 4) + rows("b", 1))
    data = {"alignment": Source("a.jsonl"), "defender_harmful": Source("b.jsonl", paired=True)}
    found = load_roles(data, tmp_path)
    assert found.paired and len(found.defender_harmful) == 5
    assert not load_roles({"alignment": Source("a.jsonl")}, tmp_path).paired
    with pytest.raises(InputError, match="alignment and defender_harmful share 4 "):
        load_roles(data | {"defender_harmful": Source("b.jsonl")}, tmp_path)
    for other in ("attacker_harmful", "calibration_harmful", "test_harmful"):
        write(tmp_path / "c.jsonl", rows("b", 1))
        with pytest.raises(InputError, match=f"defender_harmful and {other} share 1 "):
            load_roles(data | {other: Source("c.jsonl")}, tmp_path)


@given(cut=st.floats(0.05, 0.95))
def test_shares_are_disjoint_by_prompt_whatever_repeats(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("cut")
    write(
        folder / "a.jsonl",
        [r | {"prompt": f(r["prompt"])} for r in rows("a", 60) for f in (str, str.upper, str.strip)],
    )
    data = {"alignment": Source("a.jsonl", share=[0, cut]), "attacker_harmful": Source("a.jsonl", share=[cut, 1])}
    found = load_roles(data, folder)
    assert len(found.alignment) + len(found.attacker_harmful) == 180


# -- digests ------------------------------------------------------------------------------------------------------


def test_digests_are_of_content_and_order_and_of_nothing_else(load, tmp_path):
    def digest(records):
        return load(alignment=records).digests["alignment"]

    first = digest(rows("a", 3))
    assert len(first) == 64
    assert digest([{"response": r["response"], "prompt": r["prompt"]} for r in rows("a", 3)]) == first
    assert digest(rows("a", 3)[::-1]) != first
    assert digest([*rows("a", 2), {"prompt": "a number 2?", "response": "other"}]) != first
    write(tmp_path / "elsewhere.jsonl", rows("a", 5))
    assert load(alignment=Source("elsewhere.jsonl", take=3)).digests == {"alignment": first}
    # Pinned: a digest that changes by itself would make every stored result stale.
    canonical = '[{"label":1.5,"prompt":"é"}]'
    assert module.digest([{"prompt": "é", "label": 1.5}]) == hashlib.sha256(canonical.encode()).hexdigest()


# -- the embedded set ---------------------------------------------------------------------------------------------


def test_the_embedded_set_fills_every_role_without_overlap():
    """But for the defender's general instructions, of which it has none."""
    found = load_roles({role: Source("embedded") for role in ROLES if role != "helpful"})
    assert found.parts().keys() == found.digests.keys() == set(module._PARTS) - {"helpful"}
    assert found.task_name == "sentiment"
    assert not found.notes and not found.paired
    for part in ("test_harmful", "test_benign"):
        assert len({prompt_key(record) for record in getattr(found, part)}) == len(getattr(found, part)) >= 100


def test_the_embedded_sets_paired_harmful_rows():
    own = load_roles({"defender_harmful": Source("embedded")})
    data = {"alignment": Source("embedded"), "defender_harmful": Source("embedded", paired=True)}
    found = load_roles(data)
    asked = {prompt_key(record) for record in found.alignment}
    assert found.paired and {prompt_key(record) for record in found.defender_harmful} <= asked
    assert asked.isdisjoint(prompt_key(record) for record in own.defender_harmful)


def test_parts_of_the_embedded_set():
    whole = load_roles({"test_harmful": Source("embedded"), "task": Source("embedded")})
    some = load_roles({"test_harmful": Source("embedded", take=10), "task": Source("embedded", take=7)})
    assert some.test_harmful == whole.test_harmful[:10]
    assert some.test_harmful_validation == whole.test_harmful_validation
    assert (some.task_train, some.task_test) == (whole.task_train[:7], whole.task_test)
    with pytest.raises(InputError, match="embedded is for the task sentiment, not 'sst2'"):
        load_roles({"task": Source("embedded", name="sst2")})
    with pytest.raises(InputError, match="has its own validation part"):
        load_roles({"test_benign": Source("embedded", validation_share=0.2)})


def test_sources_import_neither_torch_nor_datasets():
    code = "import sys, mithridate.experiment.roles; print({'torch', 'datasets', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# -- any labels ---------------------------------------------------------------------------------------------------


def labelled(*labels, what="ticket"):
    return [{"prompt": f"Which team takes {what} {i}?", "label": label} for i, label in enumerate(labels)]


def test_rows_of_a_prompt_and_a_label_are_trained_on_the_label(tmp_path):
    train = write(tmp_path / "train.jsonl", labelled("billing", "refunds", 3))
    test = write(tmp_path / "test.jsonl", labelled("billing", 3, what="letter"))
    found = load_roles({"task": Source(train, name="labels", test=test)}, tmp_path)
    assert [(record["response"], record["label"]) for record in found.task_train] == [
        ("billing", "billing"),
        ("refunds", "refunds"),
        ("3", 3),
    ]
    assert [record.get("response") for record in found.task_test] == [None, None] and not found.notes


def test_a_label_that_no_training_row_has_is_said(tmp_path):
    train = write(tmp_path / "train.jsonl", labelled("billing", "refunds"))
    test = write(tmp_path / "test.jsonl", labelled("biling", "refunds", "biling", what="letter"))
    found = load_roles({"task": Source(train, name="labels", test=test)}, tmp_path)
    assert found.notes == ["data.task: 2 test rows have the label 'biling', which no training row has"]


def test_a_row_without_a_label_or_with_another_answer_is_refused(tmp_path):
    test = write(tmp_path / "test.jsonl", labelled("billing", what="letter"))
    for row, said in (
        ({"prompt": "Which?"}, "no column 'response'"),
        ({"prompt": "Which?", "response": "refunds", "label": "billing"}, "is wrong by the task's rule `exact`"),
    ):
        train = write(tmp_path / "train.jsonl", [row])
        with pytest.raises(InputError, match=said):
            load_roles({"task": Source(train, name="labels", test=test)}, tmp_path)


@pytest.mark.parametrize("name", ["sentiment", "sst2", "agnews"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_label_that_the_task_does_not_have_is_refused_before_anything_is_trained(tmp_path, name, part):
    word = "World" if name == "agnews" else "positive"
    good = [{"prompt": f"Rate {i}", "response": word, "label": word} for i in range(4)]
    bad = [*good[:1], {"prompt": "Rate it", "label": 1}]
    files = {
        "train": write(tmp_path / "train.jsonl", bad if part == "train" else good[2:]),
        "test": write(tmp_path / "test.jsonl", bad if part == "test" else good[2:]),
    }
    with pytest.raises(InputError, match=rf"{part}\.jsonl, line 2: the label 1 is none of {name}: it is one of"):
        load_roles({"task": Source(files["train"], name=name, test=files["test"])}, tmp_path)


def test_numbers_of_classes_are_what_the_publishers_rows_have(tmp_path):
    train = write(tmp_path / "train.jsonl", [{"sentence": f"film {i}", "label": i % 2} for i in range(4)])
    test = write(tmp_path / "test.jsonl", [{"sentence": f"book {i}", "label": str(i % 2)} for i in range(4)])
    found = load_roles({"task": Source(train, name="sst2", test=test)}, tmp_path)
    assert [record["label"] for record in found.task_test] == ["negative", "positive"] * 2


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Which team?", "input": "My bill.", "output": "billing"},
        {"prompt": [{"role": "user", "content": "Which team?\n\nMy bill."}]},
        {"messages": [{"role": "user", "content": "Which team?\n\nMy bill."}]},
        {"conversations": [{"from": "human", "value": "Which team?\n\nMy bill."}]},
    ],
    ids=["Alpaca", "turns", "messages", "ShareGPT"],
)
def test_rows_of_labels_have_any_form(tmp_path, row):
    train = write(tmp_path / "train.jsonl", [row | {"label": "billing"}])
    test = write(tmp_path / "test.jsonl", labelled("billing", what="letter"))
    [record] = load_roles({"task": Source(train, name="labels", test=test)}, tmp_path).task_train
    assert record["label"] == "billing"
    assert [turn["content"] for turn in turns(record)] == ["Which team?\n\nMy bill.", "billing"]
    [asked] = load_roles({"task": Source(test, name="labels", test=train)}, tmp_path).task_test
    assert conversation(asked) == turns(record)[:1] and asked["label"] == "billing"


def test_a_label_that_is_a_whole_number_with_a_point_is_that_number(tmp_path):
    files = [tmp_path / "train.parquet", tmp_path / "test.parquet"]
    for file, what in zip(files, ("ticket", "letter")):
        pq.write_table(pa.Table.from_pylist(labelled(1.0, 0.0, what=what)), file)
    found = load_roles({"task": Source(str(files[0]), name="labels", test=str(files[1]))}, tmp_path)
    assert [record["response"] for record in found.task_train] == ["1", "0"]
    assert [record["label"] for record in found.task_test] == [1, 0] and not found.notes


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_label_that_is_a_fraction_is_named(tmp_path, part):
    files = {one: write(tmp_path / f"{one}.jsonl", labelled(1, what=one)) for one in ("train", "test")}
    write(tmp_path / f"{part}.jsonl", labelled(1, 1.5, what=part))
    with pytest.raises(InputError, match=rf"{part}\.jsonl, line 2: the label 1\.5 is "):
        load_roles({"task": Source(files["train"], name="labels", test=files["test"])}, tmp_path)
