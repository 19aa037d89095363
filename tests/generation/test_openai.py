"""Any OpenAI-compatible server: what is asked of it, its faults one by one, and a real one beside the model itself."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from mithridate.errors import InputError, MithridateError
from mithridate.generation.base import CHAT, Answer, Decoding, Failure
from mithridate.generation.openai import OpenAIServer
from mithridate.generation.templates import ALPACA, plain_text
from tests.generation.fake_server import FakeServer

KEY = "sk-very-secret"
GREEDY = Decoding(16)


def conversations(n=6):
    return [[{"role": "user", "content": f"prompt {i:02d}"}] for i in range(n)]


def ask(server, n=6, template=CHAT, decoding=GREEDY, **options):
    options = {"timeout": 5.0, "retries": 1, "concurrency": 2} | options
    generator = OpenAIServer(server.base_url, options.pop("model", "fake"), **options)
    try:
        return dict(generator.generate(conversations(n), template, decoding))
    finally:
        generator.close()


def backwards(i):
    return f"prompt {i:02d}"[::-1]


def test_answers_each_prompt_once_with_counts():
    with FakeServer() as server:
        answers = ask(server, 40, concurrency=8)
    assert sorted(answers) == list(range(40))
    for i, answer in answers.items():
        assert isinstance(answer, Answer) and answer.text == backwards(i)
        assert (answer.new_tokens, answer.prompt_tokens, answer.finished) == (2, 7, True)
        assert answer.seconds is not None and answer.seconds > 0


def test_chat_is_the_servers_template_and_greedy():
    with FakeServer() as server:
        ask(server, 1)
        [request] = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.body == {"model": "fake", "messages": conversations(1)[0], "temperature": 0.0, "max_tokens": 16}


def test_a_plain_text_template_is_rendered_here():
    with FakeServer() as server:
        answers = ask(server, 1, ALPACA)
        [request] = server.requests
    text = plain_text(conversations(1)[0], ALPACA)
    assert request.path == "/v1/completions"
    assert request.body == {"model": "fake", "prompt": text, "temperature": 0.0, "max_tokens": 16}
    assert answers[0].text == text[::-1]


def test_sampling_sends_its_seed_and_an_input_joins_the_content():
    with FakeServer() as server:
        generator = OpenAIServer(server.base_url, "fake")
        turn = {"role": "user", "content": "Sort.", "input": "b a"}
        list(generator.generate([[turn]], CHAT, Decoding(4, temperature=0.7, top_p=0.9, seed=3)))
        body = server.requests[0].body
    assert body["messages"] == [{"role": "user", "content": "Sort.\n\nb a"}]
    assert (body["temperature"], body["top_p"], body["seed"], body["max_tokens"]) == (0.7, 0.9, 3, 4)


def test_the_longest_prompt_goes_first():
    with FakeServer() as server:
        generator = OpenAIServer(server.base_url, "fake", concurrency=1)
        texts = ["a", "a" * 30, "a" * 7]
        list(generator.generate([[{"role": "user", "content": text}] for text in texts], CHAT, GREEDY))
        assert [len(r.body["messages"][0]["content"]) for r in server.requests] == [30, 7, 1]


@pytest.mark.parametrize("fault", ["500", "429", "timeout", "dropped"])
def test_what_passes_is_tried_again(fault):
    with FakeServer(faults={0: fault, 1: fault}) as server:
        answers = ask(server, 4, timeout=0.5, retries=2)
        assert {i: a.text for i, a in answers.items()} == {i: backwards(i) for i in range(4)}
        assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("500", "status 500: the server had an error"),
        ("429", "status 429: too many requests"),
        ("400", "status 400: a parameter is wrong"),
        ("403", "status 403: no access"),
        ("404", "status 404: The model"),
        ("timeout", "timed out"),
        ("dropped", "Connection error"),
        ("invalid json", "line 1 column"),
        ("html", "no answer"),
        ("wrong shape", "no answer"),
        ("null choice", "no answer"),
        ("text for a message", "no answer"),
        ("empty choices", "no answer"),
        ("null content", "no text"),
        ("content filter", "no text"),
    ],
)
def test_one_prompt_that_keeps_failing_is_a_failure_of_its_own(fault, reason):
    def faults(number, body):
        return fault if body["messages"][0]["content"] == "prompt 03" else None

    with FakeServer(faults=faults) as server:
        answers = ask(server, timeout=0.3)
    assert isinstance(answers[3], Failure) and reason in answers[3].reason
    assert {i: a.text for i, a in answers.items() if i != 3} == {i: backwards(i) for i in range(6) if i != 3}


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("timeout", MithridateError, "times out throughout: 6 requests"),
        ("500", MithridateError, "fails throughout: 6 requests.*the server had an error"),
        ("429", MithridateError, "fails throughout.*too many requests"),
        ("400", InputError, "fails throughout.*a parameter is wrong"),
        ("dropped", MithridateError, "fails throughout.*Connection error"),
        ("invalid json", MithridateError, "answers garbage throughout"),
        ("html", MithridateError, "answers garbage throughout"),
        ("wrong shape", MithridateError, "answers garbage throughout"),
        ("empty choices", MithridateError, "answers garbage throughout"),
        ("403", InputError, "refuses access to 'fake' .status 403.*api_key_env"),
        ("404", InputError, "does not have 'fake'.*It has: fake, other"),
        ("context", InputError, r"Prompt \d, which begins 'prompt 0\d', does not fit.*Shorten"),
    ],
)
def test_a_fault_throughout_is_one_error(fault, error, words):
    with (
        FakeServer(faults=lambda *_: fault, models=("fake", "other")) as server,
        pytest.raises(error, match=words) as e,
    ):
        ask(server, timeout=0.2, retries=0)
    assert isinstance(e.value, error) and (error is not InputError or e.value.exit_code == 3)


def test_half_a_character_and_counts_of_text_do_no_harm():
    with FakeServer(faults=lambda *_: "half a character") as server:
        answers = ask(server)
    assert all(a.text == "a?" and (a.new_tokens, a.prompt_tokens) == (None, 4) for a in answers.values())


def test_a_refused_prompt_is_not_taken_for_a_long_one():
    with FakeServer(faults=lambda number, _: "blocked" if number == 2 else None) as server:
        answers = ask(server)
    assert sum(isinstance(a, Failure) and "in this context" in a.reason for a in answers.values()) == 1


def test_many_failures_in_a_row_end_it_early():
    with FakeServer(faults=lambda number, _: "500" if number >= 5 else None) as server:
        generator, found = OpenAIServer(server.base_url, "fake", concurrency=1, retries=0), {}
        with pytest.raises(MithridateError, match="fails throughout: 8 requests in a row"):
            for i, answer in generator.generate(conversations(100), CHAT, GREEDY):
                found[i] = answer
        assert len(found) == 5 and all(isinstance(a, Answer) for a in found.values())
        assert len(server.requests) <= 15


def test_a_server_that_dies_after_some_requests():
    with FakeServer(faults={5: "die"}) as server:
        generator, found = OpenAIServer(server.base_url, "fake", concurrency=1, retries=1), {}
        with pytest.raises(MithridateError, match=r"is gone .*run the same command again") as caught:
            for i, answer in generator.generate(conversations(20), CHAT, GREEDY):
                found[i] = answer
    assert type(caught.value) is MithridateError
    assert {i: a.text for i, a in found.items()} == {i: backwards(i) for i in range(5)}


def test_nobody_listens():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    with pytest.raises(MithridateError, match="cannot be reached"):
        list(OpenAIServer(address, "fake", retries=0).generate(conversations(), CHAT, GREEDY))


def test_the_key_comes_from_its_variable_and_is_written_nowhere(monkeypatch, caplog):
    monkeypatch.setenv("THEIR_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-you")
    with FakeServer(api_key=KEY) as server, caplog.at_level(logging.DEBUG):
        assert len(ask(server, api_key_env="THEIR_KEY")) == 6
        assert KEY not in str(OpenAIServer(server.base_url, "fake", api_key_env="THEIR_KEY").identity())
        with pytest.raises(InputError, match=r"refuses access.*401.*api_key_env"):
            ask(server)
        assert not [r for r in server.requests if "sk-not-for-you" in str(r.headers)]
        server.api_key = "another"
        with pytest.raises(InputError, match=r"401.*\(key\).*Check the key in THEIR_KEY") as caught:
            ask(server, api_key_env="THEIR_KEY")
    assert KEY not in str(caught.value) and KEY not in caplog.text


def test_a_variable_that_is_not_set(monkeypatch):
    monkeypatch.delenv("THEIR_KEY", raising=False)
    with pytest.raises(InputError, match="THEIR_KEY is not set"):
        OpenAIServer("http://127.0.0.1:1/v1", "fake", api_key_env="THEIR_KEY")


@pytest.mark.parametrize("url", ["127.0.0.1:8000/v1", "ftp://host/v1", "http:///v1", ""])
def test_an_address_that_is_none(url):
    with pytest.raises(InputError, match="no web address"):
        OpenAIServer(url, "fake")


@pytest.mark.parametrize("url", [f"http://me:{KEY}@host/v1", f"http://host/v1?key={KEY}"])
def test_a_key_in_the_address_is_refused_and_not_repeated(url):
    with pytest.raises(InputError, match="environment variable") as caught:
        OpenAIServer(url, "fake")
    assert KEY not in str(caught.value)


def test_a_server_without_counts():
    with FakeServer(faults=lambda *_: "no usage") as server:
        answers = ask(server)
    assert {(a.new_tokens, a.prompt_tokens) for a in answers.values()} == {(None, None)}


def test_identity_is_what_is_known_by_name():
    generator = OpenAIServer("http://host:1/v1/", "m", revision="2024-11-20")
    assert generator.identity() == {
        "backend": "openai",
        "base_url": "http://host:1/v1",
        "model": "m",
        "revision": "2024-11-20",
    }
    assert generator.content_known is False


def test_leaving_early_stops_the_requests():
    with FakeServer() as server:
        generator = OpenAIServer(server.base_url, "fake", concurrency=2)
        stream = generator.generate(conversations(200), CHAT, GREEDY)
        next(stream)
        stream.close()
        time.sleep(0.2)
        sent = len(server.requests)
        time.sleep(0.2)
        assert sent == len(server.requests) < 200


def test_no_conversations():
    assert list(OpenAIServer("http://127.0.0.1:1/v1", "fake").generate([], CHAT, GREEDY)) == []


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InputError, match=r"mithridate\[openai\]"):
        OpenAIServer("http://127.0.0.1:1/v1", "fake")


# -- a real server --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(users_cache, tmp_path_factory):
    """`transformers serve` with the embedded model in fp32, on a free port; its address and the model's folder."""
    import torch

    from mithridate.models import load_model, load_tokenizer, resolve_model

    files = resolve_model("smollm2-135m")
    folder = tmp_path_factory.mktemp("served") / "model"
    load_model(files, torch.float32).save_pretrained(folder)
    load_tokenizer(files).save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with (folder.parent / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (folder.parent / "log").read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", folder
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


REAL = [
    "Name three colours.",
    "What is 3 + 4?",
    "Say the word moon.",
    "Write a line about rain, please, and keep it brief.",
]


@pytest.mark.slow
@pytest.mark.parametrize("template", [CHAT, ALPACA], ids=lambda t: t.name)
def test_a_real_server_answers_as_the_model_in_this_process(served, template):
    from mithridate.generation.hf import Transformers

    address, folder = served
    asked = [[{"role": "user", "content": text}] for text in REAL]
    server = OpenAIServer(address, str(folder), concurrency=2)
    theirs = dict(server.generate(asked, template, Decoding(24)))
    ours = dict(Transformers.open(str(folder)).generate(asked, template, Decoding(24)))
    for i in ours:
        assert theirs[i].text == ours[i].text
        assert (theirs[i].new_tokens, theirs[i].prompt_tokens) == (ours[i].new_tokens, ours[i].prompt_tokens)
    assert any(answer.text for answer in ours.values())


@pytest.mark.slow
def test_a_real_server_without_the_model(served):
    with pytest.raises(InputError, match=r"throughout.*pinned"):
        list(OpenAIServer(served[0], "another", retries=0).generate(conversations(2), CHAT, GREEDY))
