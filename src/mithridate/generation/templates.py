"""How a conversation becomes what a model reads: its own chat template, or a plain-text template, never both.

A user turn may carry `input` beside `content`: what an instruction is about, as in the Alpaca data (SST-2: `content`
is the instruction, `input` the sentence). A plain-text template puts it where the papers' code does; a chat template
has no such place, so that there it follows the content after an empty line. An empty `input` counts as none.

The Alpaca texts are Stanford Alpaca's (https://github.com/tatsu-lab/stanford_alpaca, Apache-2.0), which the code of
all four papers uses. Vaccine and Lisa end in `### Response:`, Booster and Antidote add a newline: two templates.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from mithridate.errors import InputError
from mithridate.generation.base import CHAT, Conversation, Template

_TASK = "Below is an instruction that describes a task"
_PAIRED = ", paired with an input that provides further context"
_WRITE = ". Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
_PLAIN = f"{_TASK}{_WRITE}### Response:"
_WITH_INPUT = f"{_TASK}{_PAIRED}{_WRITE}### Input:\n{{input}}\n\n### Response:"

ALPACA = Template("alpaca", _PLAIN, _WITH_INPUT)
"""Vaccine and Lisa."""
ALPACA_NEWLINE = Template("alpaca-newline", _PLAIN + "\n", _WITH_INPUT + "\n")
"""Booster and Antidote."""
TEMPLATES = {template.name: template for template in (CHAT, ALPACA, ALPACA_NEWLINE)}


def chat_messages(conversation: Conversation) -> list[dict[str, str]]:
    """The turns with `role` and `content` only, for a chat template or a server that has one."""
    return [
        {"role": turn["role"], "content": "\n\n".join(filter(None, (turn["content"], turn.get("input"))))}
        for turn in conversation
    ]


def plain_text(conversation: Conversation, template: Template) -> str:
    """The text before the answer under a plain-text template.

    Raises:
        InputError: the conversation is more than one user turn, for which such a template has no place.
    """
    if len(conversation) != 1 or conversation[0]["role"] != "user":
        roles = ", ".join(turn["role"] for turn in conversation) or "none"
        raise InputError(
            f"The template {template.name!r} takes a single user turn; this conversation has the turns: {roles}. Use "
            "the chat template, or single-turn prompts."
        )
    turn = conversation[0]
    text = template.text_with_input if turn.get("input") else template.text
    if text is None:
        raise InputError(f"The template {template.name!r} has no text for a prompt {_with_input(turn)}.")
    values = {"{instruction}": turn["content"], "{input}": turn.get("input", "")}
    return re.sub(r"\{instruction\}|\{input\}", lambda found: values[found.group()], text)  # in one pass


def prompt_tokens(tokenizer: Any, conversation: Conversation, template: Template) -> list[int]:
    """The token ids that a model reads before its answer, special tokens written once.

    A chat template writes them itself, so that its text is tokenised without; a plain-text template's text gets those
    that the tokenizer adds at the beginning of any text.

    Args:
        tokenizer: of transformers.
        conversation: turns, ending before the answer.
        template: `CHAT` for the tokenizer's own chat template.

    Raises:
        InputError: no chat template, or one that refuses the conversation; a plain-text template and more turns than
            one.
    """
    if template.name != CHAT.name:
        ids = tokenizer(plain_text(conversation, template))["input_ids"]
        # Some tokenizers are set to close every text, which would end the answer before it begins.
        return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "The tokenizer has no chat template. Use an instruct model, set tokenizer.chat_template, or choose a "
            "protocol with a plain-text template, such as hs/embedded-alpaca-v1 (and `template: alpaca` in training)."
        )
    from jinja2 import TemplateError

    messages: list[Any] = chat_messages(conversation)
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if messages and messages[-1]["content"].strip() not in text:
            # Templates of models that read images too, such as Llama Guard 4's, want lists of parts, and silently
            # leave out a plain string.
            parts = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in messages]
            with suppress(TemplateError, TypeError):
                listed = tokenizer.apply_chat_template(parts, tokenize=False, add_generation_prompt=True)
                text = listed if messages[-1]["content"].strip() in listed else text
    except TemplateError as error:
        roles = ", ".join(turn["role"] for turn in conversation)
        raise InputError(
            f"The model's chat template refuses a conversation of the turns {roles} ({error}). Leave out what it does "
            "not take (often the system turn)."
        ) from error
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def beginning(conversation: Sequence[dict[str, str]]) -> str:
    """How messages name a prompt: the first 60 characters of its last turn."""
    return repr(conversation[-1]["content"][:60]) if conversation else "(no turns)"


def _with_input(turn: dict[str, str]) -> str:
    return "with an input" if turn.get("input") else "without an input"
