"""Judges that answer in text, through any `Generator`: what guard models, rubrics and win rates have in common.

An item becomes one or more conversations, with its untrusted texts neutralised (`neutral.py`); the generator answers
all of them, in whatever batches and order it likes; each reply is read on its own. A reply that cannot be read, a
refusal to judge and a failed request make the item unscored, with the reply in the reason. They never make it safe.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from mithridate.errors import InputError
from mithridate.generation.base import (
    CHAT,
    Answer,
    Conversation,
    Decoding,
    Failure,
    Generator,
    PromptTooLong,
    Template,
)
from mithridate.generation.openai import OpenAIServer
from mithridate.generation.templates import prompt_tokens
from mithridate.judges import neutral
from mithridate.judges.base import About, Item, Judgement, Kind

Owner = tuple[int, int]
"""The number of an item, and which of its conversations."""

RAW = Template("raw", "{instruction}")
"""The one user turn as it is: for models whose whole prompt is written here, control tokens included."""


@dataclass(kw_only=True)
class GenerativeJudge(ABC):
    """Base of the judges that answer in text, greedily.

    Args:
        model: folder or Hub id; behind a server, the name that the server knows it by.
        server: fields of `generation.openai.OpenAIServer` (at least `base_url`) where the model runs behind an
            OpenAI-compatible server; its `model` is this judge's unless it is given. None runs it in this process,
            with transformers.
        tokenizer: folder or Hub id of the judge's tokenizer, for the exact set of its control tokens and for
            `answer_tokens`. None takes the model's, in this process, and none for a server.
        answer_tokens: answers are cut off there before they are judged; None judges them whole.
        generator: in Python, what runs the model, instead of `server`; the caller closes it.

    Raises:
        InputError: a field has an impossible value.
    """

    name = ""
    kind: Kind = field(init=False, default="harm")
    about = About("", "", "", "")
    template: ClassVar[Template] = CHAT
    max_new_tokens: ClassVar[int]
    whole: ClassVar[bool] = False
    """Whether a reply counts only where it came to its end: one that reasons may hold a draft of its grade before."""
    markers: ClassVar[tuple[str, ...]] = ()
    """Regular expressions of the judge's own format, neutralised in untrusted texts."""

    model: str = ""
    server: dict[str, Any] | None = None
    tokenizer: str | None = None
    answer_tokens: int | None = None
    generator: Generator | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (self.model or self.server or self.generator):
            raise InputError(f"{self.name}: no model. Set model (a folder or Hub id), or server (base_url and model).")
        if self.answer_tokens is not None and self.answer_tokens < 1:
            raise InputError(f"{self.name}: answer_tokens must be at least 1, not {self.answer_tokens}.")
        self._own: Generator | None = None
        self._read_with: Any = None

    @abstractmethod
    def ask(self, item: Item) -> list[Conversation]:
        """The conversations that put one item, whose texts are neutralised, to the judge."""

    @abstractmethod
    def read(self, reply: str) -> Judgement:
        """One reply, blanks around it removed; `unparsable(reply)` where it is not of the form that was asked for."""

    def combine(self, item: Item, read: list[Judgement]) -> Judgement:
        """The judgement on an item from those of its conversations, in order."""
        return read[0]

    def settings(self) -> dict[str, Any]:
        """What of the judge's own fields and wording decides a verdict, as JSON."""
        return {}

    @property
    def content_known(self) -> bool:
        """See `Judge`: not so behind a server."""
        return self.generator.content_known if self.generator else self.server is None

    def identity(self) -> dict[str, Any]:
        """See `Judge`. Loads no model: one in this process is known by its files."""
        if self.generator or self.server:
            model = self._runner().identity()
        else:
            from mithridate.models import resolve_model

            model = {"backend": "transformers", "files": resolve_model(self.model).digest}
        tokenizer = self._tokenizer()
        vocabulary = None if tokenizer is None else json.dumps(sorted(tokenizer.get_vocab().items())).encode()
        return {
            "judge": self.name,
            "kind": self.kind,
            "model": model,
            "template": self.template.name,
            "max_new_tokens": self.max_new_tokens,
            "answer_tokens": self.answer_tokens,
            "neutral": neutral.VERSION,
            "tokenizer": vocabulary and hashlib.sha256(vocabulary).hexdigest(),
        } | self.settings()

    def judge(self, items: Sequence[Item]) -> Iterator[tuple[int, Judgement]]:
        """See `Judge`. An item is yielded when all its conversations are answered.

        Raises:
            InputError: no access to the model, or an item that lacks what the judge compares with; before anything.
            MithridateError: the model or its server is gone.
        """
        tokenizer = self._tokenizer()
        plain = self._neutralised(items, tokenizer)
        asked = [self.ask(item) for item in plain]
        if tokenizer is not None and self.template.name == CHAT.name and items:
            self._check_template(tokenizer)
        read: list[dict[int, Judgement]] = [{} for _ in items]
        flat = {(i, part): one for i, conversations in enumerate(asked) for part, one in enumerate(conversations)}
        for (i, part), found in self._read_all(flat):
            read[i][part] = found
            if len(read[i]) == len(asked[i]):
                yield i, self.combine(plain[i], [read[i][part] for part in range(len(asked[i]))])

    def close(self) -> None:
        """Frees the model or connection, unless the caller gave it."""
        if self._own is not None:
            self._own.close()
        self._own = None

    def _read_all(self, asked: dict[Owner, Conversation]) -> Iterator[tuple[Owner, Judgement]]:
        """What each conversation's reply says; those beyond the context are unscored and do not stop the others."""
        left = dict(asked)
        while left:
            owners = list(left)
            replies = self._runner().generate(list(left.values()), self.template, Decoding(self.max_new_tokens))
            try:
                for n, reply in replies:
                    del left[owners[n]]
                    yield owners[n], self._read(reply)
            except PromptTooLong as error:
                for n in error.indices:
                    del left[owners[n]]
                    yield owners[n], Judgement(None, f"too long for the judge: {error}")

    def _read(self, reply: Answer | Failure) -> Judgement:
        if isinstance(reply, Failure):
            return Judgement(None, f"no reply: {reply.reason}")
        # Reasoning models think aloud first; what they weigh there is no verdict. Some templates open the thought
        # themselves, so that the reply begins in it.
        text = reply.text.rpartition("</think>")[2]
        text = re.sub(r"^\s*<think>.*", "", text, flags=re.DOTALL)
        found = self.read(text.strip()) if reply.finished or not self.whole else unparsable(text.strip())
        if found.verdict is None and not reply.finished:
            return replace(found, reason=f"{found.reason} (cut off at {self.max_new_tokens} tokens)")
        return found

    def _neutralised(self, items: Sequence[Item], tokenizer: Any) -> list[Item]:
        neutralise = neutral.Neutraliser(tokenizer, self.markers)

        def answer(text: str) -> str:
            text = neutralise(text)
            return text if self.answer_tokens is None else neutralise.clip(text, self.answer_tokens)

        if self.answer_tokens is not None and tokenizer is None:
            raise InputError(
                f"{self.name}: answers are cut off at {self.answer_tokens} tokens, which needs the judge's tokenizer. "
                "Set tokenizer to the model's Hub id or to a folder with it (or answer_tokens to null)."
            )
        return [
            Item(neutralise(item.prompt), answer(item.answer), item.reference and answer(item.reference))
            for item in items
        ]

    def _check_template(self, tokenizer: Any) -> None:
        """Some chat templates silently leave out what they do not expect, and the judge would judge nothing."""
        probe = Item("probe of a question", "probe of an answer", "probe of a reference")
        for conversation in self.ask(probe):
            text = tokenizer.decode(prompt_tokens(tokenizer, conversation, self.template)).casefold()
            parts = [probe.prompt, probe.answer]
            parts += [" ".join(turn["content"].split())[:40] for turn in conversation if turn["role"] == "system"]
            if not all(part.casefold() in " ".join(text.split()) for part in parts):
                raise InputError(
                    f"{self.name}: the chat template of {self.model!r} leaves out the question, the answer or the "
                    "system turn. It is another judge's template, or wants its turns in another form: run the model "
                    "behind a server."
                )

    def _runner(self) -> Generator:
        if self.generator is not None:
            return self.generator
        if self._own is None:
            self._own = self._behind_server(self.server) if self.server else self._in_process()
        return self._own

    def _in_process(self) -> Generator:
        from mithridate.generation.hf import Transformers

        return Transformers.open(self.model)

    def _behind_server(self, fields: dict[str, Any]) -> Generator:
        given: Any = ({"model": self.model} if self.model else {}) | fields
        try:
            return OpenAIServer(**given)
        except TypeError as error:
            raise InputError(f"{self.name}: server: {error}. It takes the arguments of OpenAIServer.") from error

    def _tokenizer(self) -> Any:
        """The judge's tokenizer, as far as it is known."""
        from mithridate.judges.loading import load_tokenizer
        from mithridate.models import resolve_model

        if self._read_with is None:
            if self.tokenizer:
                self._read_with = load_tokenizer(self.tokenizer)
            elif self.generator:
                self._read_with = getattr(self.generator, "tokenizer", None)
            elif not self.server:
                self._read_with = load_tokenizer(str(resolve_model(self.model).path))
        return self._read_with


def unparsable(reply: str) -> Judgement:
    """Unscored, with the reply as it was."""
    return Judgement(None, f"unparsable reply: {reply[:300]!r}" if reply else "empty reply")


def labelled(reply: str, label: str) -> str | None:
    """The value of a line `label: value`, small letters, marks of Markdown, JSON and `#` aside.

    None where there is no such line, or several with different values.
    """
    lines = re.findall(rf"^[\s#*_>\"'{{-]*{label}[\s*_\"']*[:=][\s*_\"']*(.*?)[\s*_\"',.}}]*$", reply, re.I | re.M)
    values = {value.casefold() for value in lines}
    return values.pop() if len(values) == 1 else None


def graded(reply: str, label: str, low: int, high: int) -> int | None:
    """The whole number of a line `label: number`, also `number/high`; None where it is none in the range."""
    found = re.fullmatch(rf"\(?(\d+)\)?(?:\s*/\s*{high})?", labelled(reply, label) or "")
    return int(found[1]) if found and low <= int(found[1]) <= high else None
