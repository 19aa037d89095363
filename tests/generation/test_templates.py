"""Templates: the papers' texts, an `input` in its place, special tokens once, and no turn dropped in silence."""

import pytest
from tokenizers import processors

from mithridate.errors import InputError
from mithridate.generation.base import CHAT, Template
from mithridate.generation.templates import (
    ALPACA,
    ALPACA_NEWLINE,
    TEMPLATES,
    chat_messages,
    plain_text,
    prompt_tokens,
)
from tests.tiny import tiny_tokenizer

PLAIN = [{"role": "user", "content": "Name a colour."}]
WITH_INPUT = [{"role": "user", "content": "Sort the {input}.", "input": "b {instruction} a"}]
BOS = 1


def with_bos(eos: bool = False):
    """A tokenizer that opens every text with <|im_start|>, as Llama's does with <s>; and closes it, if asked."""
    tokenizer = tiny_tokenizer()
    single = "<|im_start|> $A <|im_end|>" if eos else "<|im_start|> $A"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    return tokenizer


def test_the_alpaca_texts():
    assert plain_text(PLAIN, ALPACA) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nName a colour.\n\n### Response:"
    )
    assert plain_text(WITH_INPUT, ALPACA) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nSort the {input}.\n\n### Input:\n"
        "b {instruction} a\n\n### Response:"
    )
    for conversation in (PLAIN, WITH_INPUT):
        assert plain_text(conversation, ALPACA_NEWLINE) == plain_text(conversation, ALPACA) + "\n"
    assert set(TEMPLATES) == {"chat", "alpaca", "alpaca-newline"}


def test_an_empty_input_is_none():
    assert plain_text([PLAIN[0] | {"input": ""}], ALPACA) == plain_text(PLAIN, ALPACA)
    assert chat_messages([PLAIN[0] | {"input": ""}]) == PLAIN


def test_an_input_follows_the_content_under_a_chat_template():
    tokenizer = tiny_tokenizer()
    ids = prompt_tokens(tokenizer, WITH_INPUT, CHAT)
    expected = "<|im_start|>user\nSort the {input}.\n\nb {instruction} a<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids) == expected


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("conversation", [PLAIN, WITH_INPUT], ids=["plain", "input"])
def test_special_tokens_are_written_once(template, conversation):
    plain, opening = tiny_tokenizer(), with_bos()
    if template is CHAT:  # the template's own text opens with the token, and nothing is added
        assert prompt_tokens(opening, conversation, template) == prompt_tokens(plain, conversation, template)
        assert prompt_tokens(opening, conversation, template)[:2].count(BOS) == 1
    else:
        text = plain_text(conversation, template)
        assert prompt_tokens(opening, conversation, template) == [BOS, *plain(text)["input_ids"]]
        assert prompt_tokens(plain, conversation, template) == plain(text)["input_ids"]
        closing = with_bos(eos=True)
        assert prompt_tokens(closing, conversation, template) == [BOS, *plain(text)["input_ids"]]


@pytest.mark.parametrize(
    "conversation",
    [
        [{"role": "system", "content": "Be brief."}, *PLAIN],
        [*PLAIN, {"role": "assistant", "content": "Red."}, *PLAIN],
        [{"role": "assistant", "content": "Red."}],
        [],
    ],
)
def test_a_plain_text_template_refuses_turns_that_it_would_drop(conversation):
    with pytest.raises(InputError, match="'alpaca' takes a single user turn"):
        plain_text(conversation, ALPACA)


def test_a_template_without_text_for_an_input():
    with pytest.raises(InputError, match="'bare' has no text for a prompt with an input"):
        plain_text(WITH_INPUT, Template("bare", "Q: {instruction}\nA:"))


def test_a_chat_template_that_refuses_a_conversation():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    )
    with pytest.raises(InputError, match=r"refuses a conversation of the turns system, user .no system turn"):
        prompt_tokens(tokenizer, [{"role": "system", "content": "Be brief."}, *PLAIN], CHAT)
