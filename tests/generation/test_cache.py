"""Results by content: never an old answer, never a damaged one, and after a kill nothing finished is done again."""

import errno
import json
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mithridate.errors import MithridateError
from mithridate.generation.base import CHAT, Answer, Decoding, Failure
from mithridate.generation.cache import ResultCache, cached_generate
from mithridate.generation.digests import tokenizer_digest, weights_digest
from mithridate.generation.hf import Transformers
from mithridate.generation.openai import OpenAIServer
from mithridate.generation.templates import ALPACA
from tests.generation.fake_server import FakeServer
from tests.tiny import save_tiny, tiny_llama, tiny_tokenizer

GREEDY = Decoding(6)


class Fake:
    """A generator whose answers are the prompts backwards, one new batch of two at a time."""

    content_known = True

    def __init__(self, weights="w", fails=()):
        self.weights, self.fails, self.asked = weights, fails, []

    def identity(self):
        return {"weights": self.weights}

    def generate(self, conversations, template, decoding):
        for i, conversation in enumerate(conversations):
            text = conversation[-1]["content"]
            self.asked.append(text)
            if text in self.fails:
                yield i, Failure("no")
            else:
                yield i, Answer(f"{self.weights} {text[::-1]} {decoding.seed}", 3, True, 7, 0.5)

    def close(self):
        """Nothing to free."""


def conversations(texts="abcdef"):
    return [[{"role": "user", "content": text}] for text in texts]


def texts(found):
    return {i: answer.text for i, answer in found}


def cached(generator, folder, asked="abcdef", template=CHAT, decoding=GREEDY, **more):
    return dict(cached_generate(generator, conversations(asked), template, decoding, folder, **more))


def test_what_is_kept_is_not_asked_again(tmp_path):
    first, second, third = Fake(), Fake(), Fake()
    answers = cached(first, tmp_path)
    assert cached(second, tmp_path) == answers and second.asked == []
    assert answers[0] == Answer("w a 0", 3, True, 7, 0.5)
    more = cached(third, tmp_path, "fxabz")
    assert sorted(third.asked) == ["x", "z"]
    assert {i: a.text for i, a in more.items()} == {0: "w f 0", 1: "w x 0", 2: "w a 0", 3: "w b 0", 4: "w z 0"}


def test_a_repeated_prompt_is_answered_once_and_given_each_time(tmp_path):
    generator = Fake()
    answers = cached(generator, tmp_path, "abaab")
    assert generator.asked == ["a", "b"] and len(answers) == 5
    assert answers[0] == answers[2] == answers[3] != answers[1] == answers[4]


@pytest.mark.parametrize(
    "change",
    [
        {"generator": Fake("other")},
        {"template": ALPACA},
        {"decoding": Decoding(7)},
        {"decoding": Decoding(6, temperature=0.5)},
        {"folder": "elsewhere"},
    ],
    ids=["weights", "template", "limit", "temperature", "folder"],
)
def test_whatever_decides_an_answer_is_in_its_key(tmp_path, change):
    cached(Fake(), tmp_path)
    settings = {"generator": Fake(), "folder": tmp_path} | change
    settings["folder"] = tmp_path / settings["folder"]
    settings["generator"].asked.clear()
    cached(settings["generator"], **{k: v for k, v in settings.items() if k != "generator"})
    assert sorted(settings["generator"].asked) == list("abcdef")


def test_an_input_and_an_earlier_turn_are_part_of_the_prompt(tmp_path):
    generator, turn = Fake(), {"role": "user", "content": "a"}
    asked = [[turn], [turn | {"input": "x"}], [{"role": "system", "content": "s"}, turn]]
    assert len(dict(cached_generate(generator, asked, CHAT, GREEDY, tmp_path))) == len(generator.asked) == 3


def test_what_greedy_decoding_does_not_use_is_not_in_the_key(tmp_path):
    cached(Fake(), tmp_path)
    again = Fake()
    cached(again, tmp_path, decoding=Decoding(6, top_p=0.5, seed=9))
    assert again.asked == []


def test_samples_of_one_prompt_are_several_and_kept_apart(tmp_path):
    sampled = Decoding(6, temperature=1.0)
    first, second = Fake(), Fake()
    assert len(cached(first, tmp_path, "aaa", decoding=sampled)) == len(first.asked) == 3
    cached(second, tmp_path, "aaaab", decoding=sampled)
    assert second.asked == ["b", "a"]
    kept = cached(Fake(), tmp_path, "aaaab", decoding=sampled)
    assert len({kept[i].text for i in range(4)}) == 4  # each has a seed of its own
    assert kept[0].text.endswith(" 0") and kept[4].text.endswith(" 0")


def test_samples_are_the_same_whatever_was_kept_before_and_without_a_cache(tmp_path):
    """So an evaluation that was killed half-way ends in the same answers as one that was not."""
    sampled = Decoding(6, temperature=1.0, seed=7)
    whole = cached(Fake(), tmp_path / "whole", "aabba", decoding=sampled)
    cached(Fake(), tmp_path / "parts", "ab", decoding=sampled)
    assert cached(Fake(), tmp_path / "parts", "aabba", decoding=sampled) == whole
    assert cached(Fake(), None, "aabba", decoding=sampled) == whole
    assert cached(Fake(), None, "aabba", decoding=Decoding(6, temperature=1.0, seed=8)) != whole


def test_failures_are_not_kept(tmp_path):
    answers = cached(Fake(fails="bd"), tmp_path)
    assert [i for i, a in answers.items() if isinstance(a, Failure)] == [1, 3]
    again = Fake()
    assert all(isinstance(a, Answer) for a in cached(again, tmp_path).values()) and again.asked == ["b", "d"]


def test_a_server_that_dies_half_way_is_asked_for_the_rest_only(tmp_path):
    with FakeServer(faults={3: "die"}) as server:
        generator = OpenAIServer(server.base_url, "fake", concurrency=1, retries=0)
        with pytest.raises(MithridateError, match="is gone"):
            cached(generator, tmp_path, evaluation="run-1")
    address = generator.base_url
    with FakeServer() as server:
        generator = OpenAIServer(server.base_url, "fake", retries=0)
        generator.base_url = address  # the same server, started again
        assert len(cached(generator, tmp_path, evaluation="run-1")) == 6
        assert len(server.requests) == 3
        cached(generator, tmp_path, evaluation="run-2")  # what the server runs may have changed since
        assert len(server.requests) == 9
        with pytest.raises(ValueError, match="name it"):
            cached(generator, tmp_path)


# -- weights --------------------------------------------------------------------------------------


def trained(model, steps=2):
    """A few real steps of SGD on random tokens."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    ids = torch.randint(3, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def direct(folder, asked):
    return {i: a.text for i, a in Transformers.open(str(folder)).generate(conversations(asked), CHAT, GREEDY)}


def test_retraining_into_the_same_folder_never_returns_an_old_answer(tmp_path):
    folder, cache, asked = save_tiny(tmp_path / "model"), tmp_path / "cache", ["a", "How?", "Say moon"]
    old = cached(Transformers.open(str(folder)), cache, asked)
    assert {i: a.text for i, a in old.items()} == direct(folder, asked)
    model = trained(Transformers.open(str(folder), device="cpu").model)
    model.save_pretrained(folder)
    new = cached(Transformers.open(str(folder)), cache, asked)
    assert {i: a.text for i, a in new.items()} == direct(folder, asked)
    assert all(new[i].text != old[i].text for i in old)


def test_training_in_memory_never_returns_an_old_answer_either(tmp_path):
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    generator = Transformers(model, tiny_tokenizer())
    old = cached(generator, tmp_path, ["a", "How?"])
    trained(model, 8)
    new = cached(generator, tmp_path, ["a", "How?"])
    assert texts(new.items()) == texts(generator.generate(conversations(["a", "How?"]), CHAT, GREEDY))
    assert texts(new.items()) != texts(old.items())


def test_the_digest_sees_every_change_and_nothing_else():
    def adapted(seed=0, **settings):
        model = tiny_llama()
        torch.manual_seed(seed)
        return get_peft_model(model, LoraConfig(**({"r": 2, "target_modules": ["q_proj"]} | settings)))

    plain, adapter = tiny_llama(), adapted()
    assert weights_digest(plain) == weights_digest(tiny_llama())
    assert weights_digest(adapter) == weights_digest(adapted())
    digests = [weights_digest(model) for model in (plain, tiny_llama(seed=1), tiny_llama(torch.bfloat16), adapter)]
    digests += [weights_digest(adapted(1)), weights_digest(adapted(lora_alpha=16))]  # the second: scaling alone
    digests.append(weights_digest(tiny_llama(rms_norm_eps=1e-3)))  # no tensor changed
    one = tiny_llama()
    one.model.norm.weight.data[3] += 1e-6
    digests.append(weights_digest(one))
    with adapter.disable_adapter():
        digests.append(weights_digest(adapter))
    assert len(set(digests)) == len(digests)
    frozen = tiny_llama().train().requires_grad_(False)
    assert weights_digest(frozen) == weights_digest(plain)


def test_the_tokenizers_digest_sees_its_template_and_special_tokens():
    changed = [tiny_tokenizer() for _ in range(3)]
    changed[0].chat_template += " "
    changed[1].eos_token = "<|endoftext|>"
    changed[2].add_tokens(["moon"])
    assert len({tokenizer_digest(tokenizer) for tokenizer in [tiny_tokenizer(), *changed]}) == 4
    assert tokenizer_digest(tiny_tokenizer()) == tokenizer_digest(tiny_tokenizer())


def test_identity_takes_a_digest_that_the_caller_knows():
    assert Transformers(tiny_llama(), tiny_tokenizer(), "known").identity()["weights"] == "known"


# -- the file -------------------------------------------------------------------------------------


def filled(folder, count=20):
    cache = ResultCache(folder, {"judge": "j"})
    for i in range(count):
        cache.add([({"i": i}, {"text": f"result {i} ünd \ud800 more"})])
    return cache


def test_the_file_says_what_it_is_of_and_reads_as_json_lines(tmp_path):
    cache = filled(tmp_path, 2)
    lines = [json.loads(line) for line in cache.path.read_text().splitlines()]
    assert (lines[0]["key"], lines[0]["value"]) == ("about", {"judge": "j"})
    assert len(cache) == 2 and lines[1]["value"] == {"text": "result 0 ünd \ud800 more"}


def test_a_flipped_byte_is_found_wherever_it_is(tmp_path, caplog):
    path = filled(tmp_path, 3).path
    whole = path.read_bytes()
    values = {i: ResultCache(tmp_path, {"judge": "j"}).get({"i": i}) for i in range(3)}
    lost = 0
    for place in range(len(whole)):
        for bit in (0, 5):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :])
            read = ResultCache(tmp_path, {"judge": "j"})
            for i, value in values.items():
                assert read.get({"i": i}) in (value, None)
                lost += read.get({"i": i}) is None
    assert lost > len(whole)
    assert "damaged lines are ignored" in caplog.text


def test_a_file_cut_at_any_place_goes_on_where_it_was(tmp_path):
    path = filled(tmp_path, 3).path
    whole = path.read_bytes()
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    for place in range(len(whole)):
        path.write_bytes(whole[:place])
        cache = ResultCache(tmp_path, {"judge": "j"})
        assert len(cache) == max(0, sum(end <= place for end in ends) - 1)  # a whole line needs no newline
        cache.add([({"i": 9}, "new")])
        read = ResultCache(tmp_path, {"judge": "j"})
        assert read.get({"i": 9}) == "new" and len(read) == len(cache)


def write_many(folder, who, count):
    cache = ResultCache(Path(folder), {"judge": "j"})
    for i in range(count):
        cache.add([({"who": who, "i": i}, [who, i] * 50)])


def test_several_processes_write_at_once(tmp_path):
    workers = [
        multiprocessing.get_context("fork").Process(target=write_many, args=(tmp_path, who, 100)) for who in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    cache = ResultCache(tmp_path, {"judge": "j"})
    assert len(cache) == 400
    assert all(cache.get({"who": w, "i": i}) == [w, i] * 50 for w in range(4) for i in range(100))


def test_a_full_disk_is_one_error_and_what_was_written_stays(tmp_path):
    """A limit on the size of files, in a child: a write beyond it fails half-way, as on a full disk."""
    code = f"""
import resource, signal
from pathlib import Path
from mithridate.errors import MithridateError
from mithridate.generation.cache import ResultCache
cache = ResultCache(Path({str(tmp_path)!r}), {{"judge": "j"}})
cache.add([(0, "x" * 500)])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    cache.add([(1, "y" * 5000)])
except MithridateError as error:
    print(error, cache.path.stat().st_size)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
cache.add([(2, "z")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the 1 results that were kept before are used then" in done.stdout
    assert "run the same command again" in done.stdout and int(done.stdout.split()[-1]) < 1000
    cache = ResultCache(tmp_path, {"judge": "j"})
    assert (cache.get(0), cache.get(1), cache.get(2)) == ("x" * 500, None, "z")


def test_a_full_disk_says_so(tmp_path, monkeypatch):
    cache = filled(tmp_path, 2)

    def no_room(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", no_room)
    with pytest.raises(MithridateError, match=r"the disk is full. Make room and run the same command again: the 2"):
        cache.add([(1, 1)])


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MithridateError, match="Mend that"):
        ResultCache(tmp_path / "file" / "cache", {})


# -- kills ----------------------------------------------------------------------------------------

CHILD = """
import sys, time
from pathlib import Path
from mithridate.generation.base import CHAT, Answer, Decoding
from mithridate.generation.cache import cached_generate

class Slow:
    content_known = True
    def identity(self):
        return {"weights": "w"}
    def generate(self, conversations, template, decoding):
        for i, conversation in enumerate(conversations):
            time.sleep(0.002)
            text = conversation[-1]["content"]
            with open(sys.argv[2], "a") as asked:
                asked.write(text + "\\n")
            yield i, Answer(text[::-1] * 400, 1, True)

prompts = [[{"role": "user", "content": f"prompt {i}"}] for i in range(150)]
for i, answer in cached_generate(Slow(), prompts, CHAT, Decoding(4), Path(sys.argv[1])):
    assert answer.text == f"prompt {i}"[::-1] * 400
    print(i, flush=True)
"""


def test_killed_at_random_moments_it_goes_on_where_it_was(tmp_path):
    rng, log, kills, done = random.Random(0), tmp_path / "asked", 0, set()
    for _ in range(40):
        command = [sys.executable, "-c", CHILD, str(tmp_path / "cache"), str(log)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert child.stdout and child.stderr
        seen = [line for line in [child.stdout.readline()] if line]
        time.sleep(rng.uniform(0, 0.15))
        child.send_signal(signal.SIGKILL)
        seen += child.stdout.readlines()
        error = child.stderr.read()
        assert child.wait() in (0, -signal.SIGKILL), error
        kills += child.returncode != 0
        before = done.copy()
        done |= {int(line) for line in seen if line.endswith("\n")}
        assert before <= done
        if child.returncode == 0:
            break
    assert child.returncode == 0 and len(done) == 150
    asked = log.read_text().splitlines()
    # An answer is kept before it is given out: each kill costs at most the one being made.
    assert kills >= 3 and len(set(asked)) == 150 and len(asked) <= 150 + kills


def test_a_warning_names_the_file_once(tmp_path, caplog):
    path = filled(tmp_path, 2).path
    path.write_bytes(path.read_bytes()[:-5])
    with caplog.at_level(logging.WARNING):
        ResultCache(tmp_path, {"judge": "j"})
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: 1 damaged lines are ignored; their results are made again."
    ]
