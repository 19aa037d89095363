"""What every backend agrees on: prompts go in, an `Answer` or a `Failure` of each comes out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mithridate.errors import InputError

Conversation = list[dict[str, str]]
"""Turns of `role` and `content`, ending before the answer; a user turn may have an `input` too (`templates`)."""


@dataclass(frozen=True)
class Decoding:
    """How an answer is drawn. Greedy (temperature 0) unless a protocol says otherwise.

    Args:
        max_new_tokens: token limit of an answer.
        temperature: 0 is greedy.
        top_p: share of probability mass that is sampled from; not used when greedy.
        seed: of the sampling; not used when greedy.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Args:
        text: the answer without special tokens.
        new_tokens: tokens generated, the closing one included; None where a server does not say.
        finished: whether the model ended the answer itself, rather than the token limit.
        prompt_tokens: tokens of the prompt with its template; None where the backend does not say.
        seconds: this answer's share of its batch's wall time (of a server: the request's time); None where unknown.
            Answers that differ in nothing else are equal.
    """

    text: str
    new_tokens: int | None
    finished: bool
    prompt_tokens: int | None = None
    seconds: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Failure:
    """Why one prompt has no answer although the others go on: a server's fault on this request, after its retries."""

    reason: str


@dataclass(frozen=True)
class Template:
    """How turns become the text that the model reads. `chat` is None for the model's own chat template.

    Args:
        name: "chat", or the name of a plain-text template such as "alpaca".
        text: of a plain-text template, the text before the answer, with `{instruction}` (the last user turn).
        text_with_input: the same for a record with an `input`; holds `{instruction}` and `{input}`.
    """

    name: str
    text: str | None = None
    text_with_input: str | None = None


CHAT = Template("chat")


class PromptTooLong(InputError):
    """Prompts do not fit the context; `indices` says which of the conversations, as far as the backend knows."""

    def __init__(self, message: str, indices: list[int]):
        super().__init__(message)
        self.indices = indices


class Generator(Protocol):
    """A model that answers."""

    content_known: bool
    """Whether `identity` holds digests of content. If not (a server), the same identity may answer differently at
    another time, so that its answers may be reused only to go on with the same evaluation."""

    def identity(self) -> dict[str, Any]:
        """JSON of all that decides an answer besides template, decoding and prompt: backend, digests, dtype.

        Digests are of content (weights, adapter), never names of folders.
        """
        ...

    def generate(
        self, conversations: Sequence[Conversation], template: Template, decoding: Decoding
    ) -> Iterator[tuple[int, Answer | Failure]]:
        """Yields (index into `conversations`, answer) as batches or requests end, in any order, each index once.

        Raises:
            InputError: a prompt does not fit the context (`PromptTooLong`); no chat template; no access (raised before
                any compute).
            MithridateError: the backend is gone (memory, a server that died). What was yielded before stands.
        """
        ...

    def close(self) -> None:
        """Frees what it holds: a model, an engine, a connection."""
        ...
