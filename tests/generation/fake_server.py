"""A server on a free loopback port that speaks OpenAI's protocol and misbehaves on request.

    with FakeServer(answer=lambda body: "no", faults={0: "500", 3: "dropped"}) as server:
        OpenAIServer(server.base_url, "fake", timeout=0.2, retries=1)
        server.requests[0].body["messages"]

Every completion request gets a number as it arrives (0, 1, ...); `faults` says which of them go wrong and how.
"""

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Fault = Literal[
    "timeout",  # accepted and never answered
    "500",
    "429",
    "400",
    "blocked",  # 400, as a filter may put it
    "context",  # 400, as vLLM puts a prompt that is too long
    "401",
    "403",
    "404",  # the model is not there
    "invalid json",  # a reply that says it is JSON and breaks off
    "html",  # a web page with status 200, as a wrong address gives
    "empty choices",
    "null content",
    "content filter",
    "no usage",  # a good answer without token counts
    "wrong shape",  # JSON, but no completion
    "null choice",
    "text for a message",
    "half a character",  # a lone surrogate, and counts that are text
    "dropped",  # the connection is closed half-way through the reply
    "die",  # the server closes its port at this request and answers nothing from then on
]

STATUS = {
    "500": "the server had an error",
    "429": "too many requests",
    "400": "a parameter is wrong",
    "401": "incorrect API key provided",
    "403": "no access to this model",
    "404": "The model `x` does not exist.",
}


@dataclass
class Request:
    """A request as it came."""

    number: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any] = field(default_factory=dict)


def echo(body: dict) -> str:
    """The last user turn, or the text prompt, backwards."""
    return (body["messages"][-1]["content"] if "messages" in body else body["prompt"])[::-1]


class FakeServer:
    """The server, as a context manager.

    Args:
        answer: the text of a good reply, or what makes it from the request's body.
        faults: by request number, or a function of (number, body); no fault where it gives None.
        models: ids that `/models` lists.
        api_key: a request without this bearer token gets 401; None asks for none.
    """

    def __init__(
        self,
        answer: str | Callable[[dict], str] = echo,
        faults: Mapping[int, Fault] | Callable[[int, dict], Fault | None] | None = None,
        models: tuple[str, ...] = ("fake",),
        api_key: str | None = None,
    ):
        self.answer = answer if callable(answer) else lambda _: answer
        self.fault = faults if callable(faults) else lambda number, _: (faults or {}).get(number)
        self.models = models
        self.api_key = api_key
        self.requests: list[Request] = []
        """Completion requests, failed ones and retries included, in the order of arrival."""
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> "FakeServer":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def die(self) -> None:
        """From now on connections are refused, and those that wait for a reply are closed."""
        with self._lock:
            first = not self._closing.is_set()
            self._closing.set()
        if first:
            self._server.shutdown()
            self._server.server_close()

    def note(self, path: str, headers: dict[str, str], body: dict) -> Request:
        with self._lock:
            request = Request(len(self.requests), path, headers, body)
            self.requests.append(request)
        return request


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that time out hang up; that is no news."""


def _handler(fake: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

        def do_GET(self) -> None:
            if self._refused():
                return
            models = [{"id": name, "object": "model", "created": 0, "owned_by": "test"} for name in fake.models]
            self._reply(200, json.dumps({"object": "list", "data": models}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request = fake.note(self.path, dict(self.headers.items()), body)
            if self._refused():
                return
            fault = fake.fault(request.number, body)
            if fake._closing.is_set():
                self.close_connection = True
            elif fault == "timeout":
                fake._closing.wait()
                self.close_connection = True
            elif fault == "die":
                fake.die()
                self.close_connection = True
            elif fault == "dropped":
                text = json.dumps(_completion(body, "half"))
                self._head(200, len(text))
                self.wfile.write(text[: len(text) // 2].encode())
                self.close_connection = True
            elif fault == "context":
                message = "This model's maximum context length is 16 tokens. However, you requested 17 tokens."
                self._error(400, message)
            elif fault == "blocked":
                self._error(400, "Your prompt was blocked in this context.")
            elif fault in STATUS:
                self._error(int(fault), STATUS[fault])
            elif fault == "html":
                self._reply(200, "<html>Welcome</html>", "text/html")
            elif fault == "invalid json":
                self._reply(200, '{"id": "x", "choices": [')
            elif fault == "null choice":
                self._reply(200, '{"choices": [null]}')
            elif fault == "text for a message":
                self._reply(200, '{"choices": [{"message": "hi", "finish_reason": "stop"}]}')
            elif fault == "half a character":
                usage = '"usage": {"completion_tokens": "3", "prompt_tokens": 4}'
                answer = r'{"message": {"role": "assistant", "content": "a\ud800"}, "finish_reason": "stop"}'
                self._reply(200, f'{{"choices": [{answer}], {usage}}}')
            elif fault == "wrong shape":
                self._reply(200, '{"hello": ["world"]}')
            else:
                self._reply(200, json.dumps(_completion(body, fake.answer(body), fault)))

        def _refused(self) -> bool:
            if fake.api_key is None or self.headers.get("Authorization") == f"Bearer {fake.api_key}":
                return False
            self._error(401, f"{STATUS['401']}: {self.headers.get('Authorization')}")  # as careless servers do
            return True

        def _error(self, status: int, message: str) -> None:
            self._reply(status, json.dumps({"error": {"message": message, "type": "error", "code": status}}))

        def _reply(self, status: int, text: str, kind: str = "application/json") -> None:
            body = text.encode()
            self._head(status, len(body), kind)
            self.wfile.write(body)

        def _head(self, status: int, length: int, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(length))
            self.send_header("retry-after-ms", "1")
            self.end_headers()

    return Handler


def _completion(body: dict, text: str | None, fault: str | None = None) -> dict:
    reason = "content_filter" if fault == "content filter" else "stop"
    text = None if fault in ("null content", "content filter") else text
    content = {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
    made = {
        "id": "fake",
        "object": "chat.completion" if "messages" in body else "text_completion",
        "created": 0,
        "model": body["model"],
        "choices": []
        if fault == "empty choices"
        else [{"index": 0, "finish_reason": reason, "logprobs": None, **content}],
    }
    if fault != "no usage":
        count = len((text or "").split())
        made["usage"] = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
    return made
