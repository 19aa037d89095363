"""Answers of any server that speaks OpenAI's protocol: vLLM, SGLang, TGI, `transformers serve`, or a company's API.

A chat template is the server's business (chat completions); a plain-text template is rendered here (completions, where
the server's tokenizer adds its special tokens once). Requests run side by side, with the client's own retries.

What a server runs is known by name only: `content_known` is false, and its answers must not be taken for those of the
same name at another time. Greedy is asked for with temperature 0; a server that adds penalties of its own accord from
the model's generation config (vLLM does: start it with `--generation-config vllm`) still adds them.
"""

import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from importlib import import_module
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from mithridate.errors import InputError, MithridateError
from mithridate.generation.base import CHAT, Answer, Conversation, Decoding, Failure, PromptTooLong, Template
from mithridate.generation.templates import beginning, chat_messages, plain_text

# As OpenAI, vLLM and SGLang say it ("context length"), and TGI ("must be <=").
_TOO_LONG = re.compile(
    r"context[ _-]?(length|window|size|limit)|too (long|many tokens)|allowed length|must be <=", re.I
)


class OpenAIServer:
    """A model behind an OpenAI-compatible server.

    Args:
        base_url: up to and with the version, as in "http://127.0.0.1:8000/v1". Never with a key in it.
        model: the name that the server knows it by.
        revision: what the user states about the weights behind the name; part of the identity, checked by nobody.
        api_key_env: environment variable that holds the key; None for a server that asks for none. The key is in no
            log, error or identity.
        concurrency: requests under way at once.
        timeout: seconds that one request may take before it is sent again.
        retries: how often a request is sent again after a timeout, a broken connection, or a status that may pass
            (408, 409, 429, 5xx).

    Raises:
        InputError: the package openai is missing, the address is no address, or the variable is not set.
    """

    content_known = False

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        revision: str | None = None,
        api_key_env: str | None = None,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 4,
    ):
        try:
            openai: Any = import_module("openai")  # the package, not this file, which shares its name
        except ImportError as error:
            raise InputError("The openai package is missing. Install it: pip install 'mithridate[openai]'") from error
        address = urlsplit(base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise InputError(f"base_url {base_url!r} is no web address. Write it as in 'http://127.0.0.1:8000/v1'.")
        if address.username or address.password or address.query:
            raise InputError(
                f"base_url of {address.hostname}: has a user, password or query in it, which would be written into "
                "results. Put a key into an environment variable and name that as api_key_env."
            )
        self._key = os.environ.get(api_key_env, "").strip() if api_key_env else ""
        if api_key_env and not self._key:
            raise InputError(
                f"The environment variable {api_key_env} is not set; it should hold the key of {base_url}."
            )
        self.base_url, self.model, self.revision = base_url.rstrip("/"), model, revision
        self.api_key_env, self.concurrency = api_key_env, concurrency
        self._limit = "max_completion_tokens" if address.hostname.endswith("openai.com") else "max_tokens"
        self._openai = openai
        # The client insists on a key; without one of its own it would send OPENAI_API_KEY to whatever server this is.
        self._client = openai.OpenAI(
            base_url=self.base_url, api_key=self._key or "none", timeout=timeout, max_retries=retries
        )

    def identity(self) -> dict[str, Any]:
        """Address, name and the stated revision: all that is known of a server."""
        return {"backend": "openai", "base_url": self.base_url, "model": self.model, "revision": self.revision}

    def generate(
        self, conversations: Sequence[Conversation], template: Template, decoding: Decoding
    ) -> Iterator[tuple[int, Answer | Failure]]:
        """See `Generator`. The longest prompts go first, so that one that does not fit shows early.

        A request that keeps failing is a `Failure` as long as the server answers others: failures are held back until
        some request succeeds, and where none does (or many in a row fail), that is one error.

        Raises:
            InputError: no access, no such model, a prompt beyond the context, or parameters that it never accepts.
            MithridateError: it is gone, or times out, fails or answers garbage throughout.
        """
        order = sorted(range(len(conversations)), key=lambda i: -sum(len(t["content"]) for t in conversations[i]))
        requests = {i: self._request(conversations[i], template, decoding) for i in order}  # a bad one raises here
        todo, done, stop = deque(order), SimpleQueue(), threading.Event()

        def work() -> None:
            while not stop.is_set():
                try:
                    i = todo.popleft()
                except IndexError:
                    return
                started = time.perf_counter()
                try:
                    reply = self._send(requests[i])
                    done.put((i, self._read(reply, time.perf_counter() - started)))
                except Exception as error:
                    done.put((i, error))

        # Daemons: a command that is interrupted does not wait for requests that are under way.
        for _ in range(min(self.concurrency, len(order))):
            threading.Thread(target=work, daemon=True).start()
        patience = max(8, 2 * self.concurrency)
        held: list[tuple[int, Failure]] = []
        answering = False
        try:
            for left in range(len(order) - 1, -1, -1):
                i, result = done.get()
                if not isinstance(result, Exception):
                    answering = True
                    yield from held
                    held = []
                    yield i, result
                    continue
                reason = self._reason(result)
                self._raise_if_final(result, i, conversations[i], answering)
                held.append((i, Failure(reason)))
                if len(held) >= patience or not (answering or left):
                    raise self._never(result, reason, len(held))
            yield from held
        finally:
            stop.set()

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _request(self, conversation: Conversation, template: Template, decoding: Decoding) -> dict[str, Any]:
        request: dict[str, Any] = {"model": self.model, "temperature": decoding.temperature}
        if decoding.temperature > 0:
            request |= {"top_p": decoding.top_p, "seed": decoding.seed}
        if template.name == CHAT.name:
            return request | {self._limit: decoding.max_new_tokens, "messages": chat_messages(conversation)}
        return request | {"max_tokens": decoding.max_new_tokens, "prompt": plain_text(conversation, template)}

    def _send(self, request: dict[str, Any]) -> Any:
        return (self._client.chat.completions if "messages" in request else self._client.completions).create(**request)

    def _read(self, reply: Any, seconds: float) -> Answer | Failure:
        """ValueError: the reply is no completion."""
        choices = getattr(reply, "choices", None)
        if not isinstance(choices, list) or not choices:
            raise ValueError("the reply holds no answer")
        choice, usage = choices[0], getattr(reply, "usage", None)
        message, reason = getattr(choice, "message", None), getattr(choice, "finish_reason", None)
        if not hasattr(choice, "finish_reason") or not (message is None or hasattr(message, "content")):
            raise ValueError("the reply holds no answer")
        text = message.content if message is not None else getattr(choice, "text", None)
        if not isinstance(text, str):
            return Failure(f"The server gave no text (finish reason: {reason}).")
        if reason == "content_filter":
            return Failure("The server's content filter cut the answer.")
        text = text.encode("utf-8", "replace").decode()  # half a character, which no file can hold
        counts = [getattr(usage, name, None) for name in ("completion_tokens", "prompt_tokens")]
        counts = [count if isinstance(count, int) else None for count in counts]
        return Answer(text, counts[0], reason != "length", counts[1], seconds)

    def _reason(self, error: Exception) -> str:
        """What went wrong with a request, on one line, without the key."""
        body = getattr(error, "body", None)
        said = (body.get("message") or body.get("detail")) if isinstance(body, dict) else None  # OpenAI's, FastAPI's
        text = str(said or error)
        text = (text.strip() or type(error).__name__).splitlines()[0][:200]
        status = getattr(error, "status_code", None)
        text = f"status {status}: {text}" if status else text
        return text.replace(self._key, "(key)") if self._key else text

    def _raise_if_final(self, error: Exception, i: int, conversation: Conversation, answering: bool) -> None:
        """Raises where going on is useless, whatever the other requests do."""
        api, reason = self._openai, self._reason(error)
        code = getattr(error, "code", None)
        if not isinstance(error, (api.OpenAIError, ValueError)):
            raise error
        denied = (api.AuthenticationError,) if answering else (api.AuthenticationError, api.PermissionDeniedError)
        if isinstance(error, denied):
            remedy = (
                f"Check the key in {self.api_key_env}" if self.api_key_env else "Name the key's variable: api_key_env"
            )
            raise InputError(f"{self.base_url} refuses access to {self.model!r} ({reason}). {remedy}.") from None
        if isinstance(error, api.NotFoundError) and not answering:
            raise InputError(f"{self.base_url} does not have {self.model!r} ({reason}). {self._models()}") from None
        if isinstance(error, api.BadRequestError) and _TOO_LONG.search(f"{code} {reason}"):
            raise PromptTooLong(
                f"Prompt {i + 1}, which begins {beginning(conversation)}, does not fit the context of {self.model!r} "
                f"({reason}). Shorten or remove it, or allow fewer new tokens.",
                [i],
            ) from None
        if isinstance(error, api.APIConnectionError) and not isinstance(error, api.APITimeoutError):
            try:
                self._client.with_options(max_retries=0, timeout=10.0).models.list()
            except api.APIConnectionError:
                raise MithridateError(
                    f"{self.base_url} {'is gone' if answering else 'cannot be reached'} ({reason}). Start the server "
                    "and run the same command again: finished answers are kept."
                ) from None
            except (api.OpenAIError, ValueError):
                pass  # it answers, if only with an error: the fault is this request's

    def _models(self) -> str:
        try:
            names = sorted(model.id for model in self._client.models.list())
        except (self._openai.OpenAIError, ValueError, AttributeError):
            return "It lists no models either: does the address end in /v1?"
        return f"It has: {', '.join(names[:20])}." if names else "It lists no models."

    def _never(self, error: Exception, reason: str, count: int) -> MithridateError:
        what = "times out" if isinstance(error, self._openai.APITimeoutError) else "fails"
        status = getattr(error, "status_code", None) or 500
        kind = InputError if status < 500 and status != 429 else MithridateError
        what = "answers garbage" if isinstance(error, ValueError) else what
        return kind(
            f"{self.base_url} {what} throughout: {count} requests in a row, the last with: {reason}. See the server's "
            "log, its load and the address, then run the same command again: finished answers are kept."
        )
