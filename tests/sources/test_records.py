import re
from pathlib import Path

import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from mithridate.data import records as module
from mithridate.data.records import (
    answered_keys,
    check_record,
    conversation,
    later_turns,
    normalized,
    prompt_key,
    prompt_text,
    training_dataset,
)
from mithridate.errors import InputError, UnsupportedSetup
from tests.tiny import tiny_llama, tiny_tokenizer

SINGLE = {"prompt": "Hello there", "response": "Hi!"}
TALK = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "Another one?"},
        {"role": "assistant", "content": "Green, say."},
    ]
}
ONE_ANSWER = {"messages": TALK["messages"][:3]}


def turn(role: str, content: object = "text") -> dict:
    return {"role": role, "content": content}


def family_template(name: str) -> str:
    """The chat template of a model family, as TRL ships it."""
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


def sft(dataset, tokenizer: PreTrainedTokenizerBase, folder: Path, **arguments) -> SFTTrainer:
    args = SFTConfig(str(folder), use_cpu=True, report_to="none", bf16=False, max_length=None, **arguments)
    return SFTTrainer(tiny_llama(), args=args, train_dataset=dataset, processing_class=tokenizer)


def spans(row: dict, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts that the loss is on, one for each unbroken run of labels."""
    runs, open_run = [], False
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        assert label in (-100, token)
        if label != -100:
            runs = [*runs[:-1], [*runs[-1], token]] if open_run else [*runs, [token]]
        open_run = label != -100
    return [tokenizer.decode(run) for run in runs]


# -- checks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", [SINGLE, TALK, ONE_ANSWER, SINGLE | {"label": 1}])
def test_good_records_pass(record):
    check_record(record, "here")


@pytest.mark.parametrize("record", [{"prompt": "Hi"}, {"messages": [turn("user")]}])
def test_only_training_needs_an_answer(record):
    check_record(record, "here", needs_answer=False)
    with pytest.raises(InputError, match="here"):
        check_record(record, "here")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"instruction": "a", "output": "b"}, r"columns: \{prompt: instruction, response: output\}"),
        ({"promt": "a", "response": "b"}, r"columns: \{prompt: promt\}"),
        ({"prompt": "", "response": "b"}, "'prompt' is empty"),
        ({"prompt": " \n", "response": "b"}, "'prompt' is empty"),
        ({"prompt": "a", "response": " "}, "'response' is empty"),
        ({"prompt": 3, "response": "b"}, "'prompt' is of type int"),
        ({"prompt": None, "response": "b"}, r"'prompt' is missing \(null\)"),
        ({"messages": "hello"}, "'messages' is of type str"),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": ["hello"]}, "turn 1 .* not a mapping with 'role' and 'content'"),
        ({"messages": [{"from": "human", "value": "a"}]}, "turn 1 .* not a mapping with 'role' and 'content'"),
        ({"messages": [turn("users")]}, "unknown role 'users' .*did you mean `user`"),
        ({"messages": [turn("user", None)]}, r"turn 1 .*'content' is missing \(null\)"),
        ({"messages": [turn("user"), turn("assistant", "")]}, "turn 2 .*'content' is empty"),
        ({"messages": [turn("system")]}, "no user turn"),
        ({"messages": [turn("assistant")]}, "turn 1 .* where a user turn is due"),
        ({"messages": [turn("user"), turn("user")]}, "turn 2 .* where a assistant turn is due"),
        ({"messages": [turn("user"), turn("assistant"), turn("assistant")]}, "turn 3 .* where a user turn is due"),
        ({"messages": [turn("user"), turn("system"), turn("assistant")]}, "turn 2 .* system turn where"),
        ({"messages": [turn("user"), turn("assistant"), turn("user")]}, "does not end in an assistant turn"),
    ],
)
def test_bad_records_are_named_with_their_place(record, message):
    with pytest.raises(InputError, match=f"(?s)^a.jsonl, line 3.*{message}"):
        check_record(record, "a.jsonl, line 3")


# -- prompts ------------------------------------------------------------------------------------------------------


def test_conversation_is_what_comes_before_the_last_answer():
    assert conversation(SINGLE) == [turn("user", "Hello there")]
    assert conversation({"prompt": "Hello there"}) == [turn("user", "Hello there")]
    assert conversation(TALK) == TALK["messages"][:4]
    assert conversation({"messages": TALK["messages"][:4]}) == TALK["messages"][:4]


def test_prompts_compare_by_the_users_side():
    assert prompt_text(TALK) == "Name a colour.\nAnother one?"
    assert prompt_key(ONE_ANSWER) == prompt_key({"prompt": "name a  COLOUR"})
    assert answered_keys(TALK) == {"name a colour", "name a colour. another one"}
    assert answered_keys(SINGLE) == {"hello there"}


def test_later_turns_are_told_apart_from_what_a_conversation_opens_with():
    talk = {"messages": [turn("user", "Hi"), turn("assistant", "Hello"), turn("user", "盒子怎么打开?")]}
    key = prompt_key({"prompt": "盒子怎么打开?"})
    assert answered_keys(talk) == {"hi", f"hi {key}"} and later_turns(talk) == {key}
    assert later_turns(SINGLE) == set() and later_turns(TALK) == {"another one"}


@pytest.mark.parametrize(
    "other",
    [
        "what is it",
        "What  is\nit?",
        " WHAT IS IT ?! ",
        '"What is it?"',
        "Ｗhat is it…",
        "Wh\u200bat \ufeffis i\u00adt",
    ],
)
def test_spacing_capitals_and_end_punctuation_do_not_make_a_new_prompt(other):
    assert normalized(other) == normalized("What is it?")


@pytest.mark.parametrize("other", ["What was it?", "What is C++", "What, is it?"])
def test_other_words_make_a_new_prompt(other):
    assert normalized(other) not in (normalized("What is it?"), normalized("What is C"))


@given(st.text())
def test_normalizing_twice_changes_nothing_and_never_empties(text):
    assert normalized(normalized(text)) == normalized(text)
    assert bool(normalized(text)) == bool(text.strip())


# -- towards the Trainer ------------------------------------------------------------------------------------------


def test_single_answers_become_prompt_and_completion():
    rows = training_dataset([SINGLE | {"poisoned": True, "label": "x"}, ONE_ANSWER])
    assert rows.column_names == ["prompt", "completion"]
    assert rows[0] == {"prompt": [turn("user", "Hello there")], "completion": [turn("assistant", "Hi!")]}
    assert rows[1] == {"prompt": TALK["messages"][:2], "completion": TALK["messages"][2:3]}


def test_loss_is_on_the_single_answer_alone(tmp_path):
    tokenizer = tiny_tokenizer()
    trainer = sft(training_dataset([SINGLE, ONE_ANSWER]), tokenizer, tmp_path)
    assert [spans(row, tokenizer) for row in trainer.train_dataset] == [["Hi!<|im_end|>\n"], ["Blue.<|im_end|>\n"]]


def test_loss_is_on_every_assistant_turn_and_only_there(tmp_path):
    tokenizer = tiny_tokenizer()
    trainer = sft(training_dataset([TALK, SINGLE], tokenizer), tokenizer, tmp_path)
    found = [spans(row, tokenizer) for row in trainer.train_dataset]
    assert found == [["Blue.<|im_end|>\n", "Green, say.<|im_end|>\n"], ["Hi!<|im_end|>\n"]]
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_tokens_are_those_of_trl_where_trl_can_say_it(tmp_path):
    tokenizer = tiny_tokenizer()
    theirs = sft(training_dataset([SINGLE, ONE_ANSWER]), tokenizer, tmp_path).train_dataset
    ours = training_dataset([SINGLE, ONE_ANSWER, TALK], tokenizer)
    for i in range(2):
        assert (ours[i]["input_ids"], ours[i]["labels"]) == (theirs[i]["input_ids"], theirs[i]["labels"])


def test_side_data_keep_their_loss_off_prompts_beside_a_tokenized_training_set(tmp_path):
    # The Trainer decides from its training set whether prompts count, for every set that it prepares.
    tokenizer = tiny_tokenizer()
    trainer = sft(training_dataset([TALK], tokenizer), tokenizer, tmp_path)
    side = trainer._prepare_dataset(training_dataset([SINGLE]), tokenizer, trainer.args, False, None, "side")
    assert spans(side[0], tokenizer) == ["Hi!<|im_end|>\n"]


@settings(max_examples=40, deadline=None)
@given(
    contents=st.lists(st.text(min_size=1).filter(str.strip), min_size=4, max_size=8).filter(lambda c: len(c) % 2 == 0),
    system=st.booleans(),
)
def test_labels_cover_exactly_the_answers_whatever_they_say(contents, system):
    tokenizer = tiny_tokenizer()
    messages = [turn(("user", "assistant")[i % 2], text) for i, text in enumerate(contents)]
    [row] = training_dataset([{"messages": [turn("system", "Be kind.")] * system + messages}], tokenizer)
    assert spans(row, tokenizer) == [text + "<|im_end|>\n" for text in contents[1::2]]


# BOS in the template, and a tokenizer that would add one of its own.
BOS_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
)


def test_bos_is_never_doubled():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = BOS_TEMPLATE
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    assert tokenizer("x")["input_ids"][0] == bos[1]
    [row] = training_dataset([TALK], tokenizer)
    assert row["input_ids"].count(bos[1]) == 1
    assert spans(row, tokenizer) == [" Blue.<|im_end|>", " Green, say.<|im_end|>"]


@pytest.mark.parametrize("family", ["llama3", "qwen2_5", "qwen3", "phi3", "gemma"])
def test_other_families_templates(family):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = family_template(family)
    tokenizer.add_tokens(sorted(set(re.findall(r"<\|?\w+\|?>", tokenizer.chat_template))), special_tokens=True)
    tokenizer.add_tokens([f"<|{role}|>" for role in ("user", "assistant", "end")], special_tokens=True)  # Phi's
    talk = {"messages": TALK["messages"][1:]}  # some have no system turn
    [row] = training_dataset([talk], tokenizer)
    found = spans(row, tokenizer)
    assert len(found) == 2
    for text, answer in zip(found, ("Blue.", "Green, say.")):
        assert answer in text
        # Beside the answer: at most an empty thought and the end of the turn, and never the user's words.
        rest = re.sub(r"</?think>|<\|?\w+\|?>|\s", "", text.replace(answer, ""))
        assert rest == ""
        assert re.search(r"<\|?\w+\|?>\s*$", text), "the end-of-turn token is learnt"


def test_a_template_that_rewrites_earlier_turns_gets_trls_training_version():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = family_template("qwen3")
    assert not module._keeps_prefixes(TALK["messages"], tokenizer, None)
    [row] = training_dataset([TALK], tokenizer)
    assert spans(row, tokenizer) == [
        "<think>\n\n</think>\n\nBlue.<|im_end|>\n",
        "<think>\n\n</think>\n\nGreen, say.<|im_end|>\n",
    ]


def test_a_template_that_rewrites_earlier_turns_is_refused_where_there_is_no_such_version():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content if loop.last else m.content | upper }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    with pytest.raises(UnsupportedSetup, match="renders earlier turns differently"):
        training_dataset([TALK], tokenizer)
    assert len(training_dataset([SINGLE, ONE_ANSWER], tokenizer)) == 2


def test_training_sets_that_cannot_be():
    with pytest.raises(InputError, match="no records"):
        training_dataset([])
    with pytest.raises(InputError, match="record 1: there is no answer"):
        training_dataset([SINGLE, {"prompt": "Hello"}])
    with pytest.raises(InputError, match="need a tokenizer"):
        training_dataset([TALK])


def test_half_of_a_character_is_refused():
    with pytest.raises(InputError, match=r"a.jsonl, line 3: 'prompt' holds half of a character \('\\ud83d'\)"):
        check_record({"prompt": "cut \ud83d", "response": "b"}, "a.jsonl, line 3")


@pytest.mark.parametrize(
    ("messages", "hint"),
    [
        ('[{"role": "user", "content": "Hi"}]', "write the rows as JSON Lines"),
        ([turn("developer", "Be brief."), turn("user", "Hi")], "Rename it to system"),
    ],
)
def test_messages_in_another_form_get_a_hint(messages, hint):
    with pytest.raises(InputError, match=hint):
        check_record({"messages": messages}, "row 1", needs_answer=False)
