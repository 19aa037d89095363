"""What a record is, and how records become a data set for the Trainer.

A record is a plain dict: `prompt` and `response` (strings), or `messages` (a conversation: possibly a system turn,
then user and assistant turns in alternation), plus what a task needs (`label`, `category`, `kind`, `id`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mithridate.errors import InputError, UnsupportedSetup, closest, nearest
from mithridate.generation.templates import TEMPLATES, prompt_tokens
from mithridate.rows import as_list, require_nothing_dropped, require_whole
from mithridate.rows import record as as_record

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from mithridate.generation.base import Conversation

Record = dict[str, Any]

_ROLES = ("system", "user", "assistant")
# How other people's files call our columns: used for hints only, never for guessing silently.
_OTHER_NAMES = {
    "prompt": ("instruction", "question", "input", "query", "text"),
    "response": ("output", "answer", "completion", "target", "reply"),
    "messages": ("conversation", "conversations", "chat", "turns"),
}


def records_of(rows: Any, name: str) -> list[Record]:
    """Rows in any form that `mithridate.rows` knows (lists, DataFrames, data sets) as records, not yet checked.

    Args:
        rows: a list or another iterable of mappings, a DataFrame, a `datasets.Dataset`.
        name: what they are, for errors, which count from 1: "harmful, record 3".

    Returns:
        The records; a `label` that is the number of a class has the name that the data set gives that class.

    Raises:
        InputError: what is given is no set of rows, a row holds something else than text or a tool call that is none,
            or a column that is a part of the prompt would be left out.
    """
    found = []
    classes = getattr((getattr(rows, "features", None) or {}).get("label"), "names", None)
    for number, row in enumerate(as_list(rows, name), start=1):
        where = f"{name}, record {number}"
        made = as_record(row, where)
        if classes and isinstance(made.get("label"), int):
            made["label"] = classes[made["label"]] if made["label"] >= 0 else None  # -1: without one
        try:
            require_nothing_dropped(row, made, {})
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        found.append(made)
    return found


def missing_columns(missing: list[str], present: list[str], where: str) -> InputError:
    """The error for columns that a row lacks, with the columns it has and what to write in `columns`."""
    guesses = {}
    for name in missing:
        near = [other for other in _OTHER_NAMES.get(name, ()) if other in present]
        near = near or closest(name, present)
        guesses[name] = near[0] if near else "THEIR_NAME"
    mapping = ", ".join(f"{ours}: {theirs}" for ours, theirs in guesses.items())
    there = ", ".join(present) or "none"
    return InputError(
        f"{where}: no {columns_in_words(missing)}; the columns there are: {there}. "
        f"Name the right ones in the source, as in `columns: {{{mapping}}}`"
    )


def columns_in_words(names: Sequence[str]) -> str:
    """ "column 'a'", "columns 'a' and 'b'"."""
    *first, last = map(repr, names)
    return f"columns {', '.join(first)} and {last}" if first else f"column {last}"


def check_record(record: Record, where: str, needs_answer: bool = True) -> None:
    """Checks that a record has a prompt and, if need be, an answer.

    Args:
        record: the record.
        where: file and line (or row) that it came from, for the message.
        needs_answer: whether it is trained on; a test prompt needs no answer.

    Raises:
        InputError: naming the place and what is wrong there.
    """
    if not isinstance(record, Mapping):
        raise InputError(f"{where} is {_kind(record)}, not a record with a 'prompt'")
    if not isinstance(record.get("system", ""), str | None):
        raise InputError(f"{where}: 'system' is {_kind(record['system'])}, not a string")
    if "messages" in record:
        _check_messages(record["messages"], where, needs_answer)
        return
    columns = ["prompt", "response"] if needs_answer else ["prompt"]
    missing = [name for name in columns if name not in record]
    if missing:
        raise missing_columns(missing, list(record), where)
    for name in columns:
        _check_text(record[name], f"{where}: {name!r}")


def _check_text(text: Any, where: str) -> None:
    if not isinstance(text, str):
        raise InputError(f"{where} is {_kind(text)}, not a string")
    if not text.strip():
        raise InputError(f"{where} is empty")
    require_whole(text, where)


def _kind(value: Any) -> str:
    return "missing (null)" if value is None else f"of type {type(value).__name__}"


def _check_messages(messages: Any, where: str, needs_answer: bool) -> None:
    if not isinstance(messages, (list, tuple)) or not messages:
        what = "empty" if isinstance(messages, (list, tuple)) else _kind(messages)
        text = isinstance(messages, str) and messages.lstrip().startswith("[")
        hint = ". It is JSON in a text, as CSV holds it: write the rows as JSON Lines" if text else ""
        raise InputError(f"{where}: 'messages' is {what}, not a list of turns{hint}")
    for i, turn in enumerate(messages, start=1):
        here = f"{where}: turn {i} of 'messages'"
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise InputError(f"{here} is not a mapping with 'role' and 'content'")
        if turn["role"] not in _ROLES:
            developer = turn["role"] == "developer"  # OpenAI's newer name
            hint = ". Rename it to system" if developer else nearest(turn["role"], _ROLES, listed=False)
            raise InputError(f"{here} has the unknown role {turn['role']!r} (roles: {', '.join(_ROLES)}){hint}")
        if turn["role"] != "system" or turn["content"] != "":  # an empty one stands in place of the template's own
            _check_text(turn["content"], f"{here}: 'content'")
    system = messages[0]["role"] == "system"
    for i, turn in enumerate(messages[system:]):
        expected = ("user", "assistant")[i % 2]
        if turn["role"] != expected:
            place = i + 1 + system
            raise InputError(
                f"{where}: turn {place} of 'messages' is a {turn['role']} turn where a {expected} turn is due: after "
                "an optional system turn, user and assistant turns alternate, the user's first"
            )
    if len(messages) == system:
        raise InputError(f"{where}: 'messages' has no user turn")
    if needs_answer and messages[-1]["role"] != "assistant":
        raise InputError(f"{where}: 'messages' does not end in an assistant turn, so there is no answer to learn")


def paired(record: Record, trained: bool) -> tuple[Record, bool, bool]:
    """A conversation without the turns that have no pair, as logs that were cut into pieces have them: answers before
    the first question and, where it is trained on, questions after the last answer.

    Args:
        record: not yet checked.
        trained: False for a test prompt, which ends with the question that is asked.

    Returns:
        The record, with no turn at all where no pair is left; whether it began with an answer; whether it ended with
        a question.
    """
    messages = record.get("messages")
    if not isinstance(messages, list) or not all(isinstance(turn, Mapping) for turn in messages):
        return record, False, False
    roles = [turn.get("role") for turn in messages]
    system = int(roles[:1] == ["system"])
    first, last = system, len(roles)
    while roles[first : first + 1] == ["assistant"]:
        first += 1
    while trained and last > first and roles[last - 1] == "user":
        last -= 1
    if (first, last) == (system, len(roles)):
        return record, False, False
    kept = [*messages[:system], *messages[first:last]] if first < last else []
    return record | {"messages": kept}, first > system, last < len(roles)


def turns(record: Record) -> list[dict[str, str]]:
    """All turns of a record, the answer included if there is one, each with `role` and `content` only."""
    if "messages" in record:
        found = [{"role": turn["role"], "content": turn["content"]} for turn in record["messages"]]
    else:
        answer = [{"role": "assistant", "content": record["response"]}] if record.get("response") else []
        found = [{"role": "user", "content": record["prompt"]}, *answer]
    if isinstance(system := record.get("system"), str) and found[0]["role"] != "system":
        return [{"role": "system", "content": system}, *found]
    return found


def conversation(record: Record) -> list[dict[str, str]]:
    """The turns before the (last) answer: what the model is given to answer."""
    messages = turns(record)
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def prompt_text(record: Record) -> str:
    """The user's side of the conversation before the last answer, as one text; the system turn is no part of it."""
    return "\n".join(turn["content"] for turn in conversation(record) if turn["role"] == "user")


def normalized(text: str) -> str:
    """A text as it is compared: without characters that are not seen (format characters, as the space of no width),
    Unicode NFKC, case folded, white space collapsed, end punctuation taken off."""
    if not text.isascii():  # else there are none
        text = "".join(one for one in text if unicodedata.category(one) != "Cf").strip() or text
    plain = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()
    return plain.strip(" .,;:!?'\"`‘’“”") or plain


def prompt_key(record: Record) -> str:
    """What two records with the same prompt have in common, however it is spaced, capitalised or punctuated."""
    return normalized(prompt_text(record))


def answered_keys(record: Record) -> set[str]:
    """The prompt keys of all answers in a record: one for a single exchange, one for each turn of a conversation.

    A conversation that opens with a test prompt and its answer has seen that test prompt, whatever follows.
    """
    user = _user_turns(record)
    return {normalized("\n".join(user[: i + 1])) for i in range(len(user))}


def later_turns(record: Record) -> set[str]:
    """The keys of what a user says later in a conversation, each by itself: a test prompt may be among them. Two
    trainings may well share such a turn ("Thanks", "Tell me more")."""
    return {normalized(text) for text in _user_turns(record)[1:]}


def _user_turns(record: Record) -> list[str]:
    return [turn["content"] for turn in conversation(record) if turn["role"] == "user"]


def training_dataset(
    records: list[Record], tokenizer: PreTrainedTokenizerBase | None = None, template: str = "chat"
) -> Dataset:
    """Records as a data set for `SFTTrainer`, with the loss on all assistant turns and nowhere else.

    The rows are TRL's conversational prompt-completion format: `prompt` (the turns before the last answer) and
    `completion` (the last answer), one row a record, in order, and no other column of the records. That format has
    the loss on the completion alone. So where some record has answers before the last, all rows also get `input_ids`
    and `labels` (lists of token ids, -100 where there is no loss), which `SFTTrainer` takes as they are.

    The Trainer reads from the columns of its training set whether prompts count in the loss of *every* set that it
    prepares; hence `prompt` and `completion` stay beside the tokens.

    Args:
        records: checked records, all with an answer.
        tokenizer: with a chat template; needed only for conversations with several assistant turns, and for another
            template than `chat`.
        template: name of the template that the model reads prompts in (`mithridate.generation.templates`). Under
            another than `chat`, rows have `input_ids` and `labels` too: the very tokens that a prompt is asked in at
            the test, then the answer and the end-of-sequence token.

    Raises:
        InputError: there are no records, or a tokenizer is needed and missing or without a chat template; under a
            plain-text template, a record is more than one question and its answer.
        UnsupportedSetup: the chat template renders earlier turns differently once others follow.
    """
    from datasets import Dataset

    if not records:
        raise InputError("no records to train on")
    conversations = [turns(record) for record in records]
    for i, messages in enumerate(conversations):
        if messages[-1]["role"] != "assistant":
            raise InputError(f"record {i}: there is no answer to learn")
    columns: dict[str, list] = {
        "prompt": [messages[:-1] for messages in conversations],
        "completion": [messages[-1:] for messages in conversations],
    }
    if template != "chat":
        tokenized = [_plain(record, tokenizer, TEMPLATES[template]) for record in records]
        columns["input_ids"] = [ids for ids, _ in tokenized]
        columns["labels"] = [labels for _, labels in tokenized]
    elif any(turn["role"] == "assistant" for messages in columns["prompt"] for turn in messages):
        if tokenizer is None or not tokenizer.chat_template:
            raise InputError("conversations with several assistant turns need a tokenizer with a chat template")
        tokenized = [_tokenized(messages, tokenizer) for messages in conversations]
        columns["input_ids"] = [ids for ids, _ in tokenized]
        columns["labels"] = [labels for _, labels in tokenized]
    return Dataset.from_dict(columns)


def asked(record: Record) -> Conversation:
    """The turns that a record asks. The input of an instruction is its own part of the turn, for templates that have a
    place for it; a chat template puts it after the content and an empty line, as it stands in the prompt."""
    turns = conversation(record)
    text = record.get("input")
    if text and "messages" not in record and record["prompt"].endswith(f"\n\n{text}"):
        asked = {"role": "user", "content": record["prompt"].removesuffix(f"\n\n{text}"), "input": text}
        return [*turns[:-1], asked]
    return turns


def _plain(record: Record, tokenizer: Any, template: Any) -> tuple[list[int], list[int]]:
    """Token ids of a question and its answer under a plain-text template, and labels that are -100 in the question."""
    question = prompt_tokens(tokenizer, asked(record), template)
    answer = [*_ids(turns(record)[-1]["content"], tokenizer), tokenizer.eos_token_id]
    return question + answer, [-100] * len(question) + answer


def _tokenized(messages: list[dict[str, str]], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and labels that are -100 outside the assistant turns.

    An assistant turn is what the template adds to "the turns before it, and the opening of an answer": the words and
    the end-of-turn token, but not the header, just as at inference and as TRL does for a completion.
    """
    template = _training_template(messages, tokenizer)
    ids = _ids(_rendered(messages, tokenizer, template), tokenizer)
    labels = [-100] * len(ids)
    for i, turn in enumerate(messages):
        if turn["role"] == "assistant":
            # Common prefixes: a token may merge across a boundary, and some templates close the last turn otherwise.
            start = _common(_ids(_rendered(messages[:i], tokenizer, template, opening=True), tokenizer), ids)
            end = _common(_ids(_rendered(messages[: i + 1], tokenizer, template), tokenizer), ids)
            labels[start:end] = ids[start:end]
    return ids, labels


def _training_template(messages: list[dict[str, str]], tokenizer: Any) -> str | None:
    """A chat template under which every answer is rendered alike with and without the turns that follow.

    None stands for the tokenizer's own. Some families' templates (Qwen3) drop what earlier turns held; TRL ships
    training versions of these, which are tried next.
    """
    from trl.chat_template_utils import get_training_chat_template

    if _keeps_prefixes(messages, tokenizer, None):
        return None
    try:
        template = get_training_chat_template(tokenizer)
    except ValueError:
        template = None
    if template is None or not _keeps_prefixes(messages, tokenizer, template):
        raise UnsupportedSetup(
            "The tokenizer's chat template renders earlier turns differently once others follow, so the loss of a "
            "conversation with several assistant turns has no exact place.",
            "Make each answer a record of its own (the turns before it, then the answer), or give the tokenizer a "
            "chat template that keeps earlier turns as they are.",
        )
    return template


def _keeps_prefixes(messages: list[dict[str, str]], tokenizer: Any, template: str | None) -> bool:
    """Whether each answer, with all before it, stands in the whole conversation as it would stand alone."""
    whole = _rendered(messages, tokenizer, template)
    for i, turn in enumerate(messages):
        if turn["role"] == "assistant":
            opening = _rendered(messages[:i], tokenizer, template, opening=True)
            shared = whole[: _common(_rendered(messages[: i + 1], tokenizer, template), whole)]
            if not shared.startswith(opening) or turn["content"].strip() not in shared[len(opening) :]:
                return False
    return True


def _rendered(messages: list[dict[str, str]], tokenizer: Any, template: str | None, opening: bool = False) -> str:
    return tokenizer.apply_chat_template(
        messages, tokenize=False, chat_template=template, add_generation_prompt=opening
    )


def _ids(text: str, tokenizer: Any) -> list[int]:
    # The template has written the special tokens already: adding them here would double the BOS.
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _common(one: Sequence, other: Sequence) -> int:
    """How many leading items two sequences have in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
