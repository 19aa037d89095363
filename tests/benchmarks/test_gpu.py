"""The GPU script itself, on a CPU with tiny models: it runs, and claims only what it measured."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaMLP

import tests.once  # noqa: F401 (tokenises the same rows once)
from benchmarks import gpu
from benchmarks.on_gpu import TooSlow, at_most, exactness, generation, runs, steps
from mithridate.methods.base import Cost
from mithridate.methods.defense import Defense
from tests.tiny import tiny_llama

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU, run the script itself")


def run(tmp_path, *sections, more=()):
    out = tmp_path / "evidence.json"
    code = gpu.main(["--tiny", "--out", str(out), "--sections", ",".join(sections), *more])
    return code, json.loads(out.read_text())["sections"]


def test_generation_in_all_its_sections(tmp_path):
    code, sections = run(tmp_path, "precision", "batches", "antidote", "generation")
    assert code == 0 and {record["status"] for record in sections.values()} == {"done"}
    precision = sections["precision"]["figures"]
    assert precision["bfloat16_over_float32"] > 0 and precision["float32"]["copied_to_float32"] == 0
    assert precision["profile: bfloat16"]["by_cpu_ms"] and precision["profile: bfloat16"]["casts"] > 0
    batches = sections["batches"]["figures"]
    assert batches["4"]["batch"] == 4 and batches["8"]["new_tokens"] == 64 and batches["faster"] > 0
    antidote = sections["antidote"]["figures"]
    inside = antidote["seconds_inside_a_repair"]
    assert antidote["over_one_batched_forward"] > 0
    assert 0 < inside["pass"] < antidote["seconds"]["repair"] * 10 and inside["change"] > 0
    figures = sections["generation"]["figures"]
    assert figures["batched"]["new_tokens"] == 64 and not figures["one_at_a_time"]["cut_off"]


def test_generation_ends_in_time_and_says_so():
    model = generation.made(tiny_llama().config, torch.float32)
    found = generation.speed(model, 400, 64, 1, limit=2.0)
    assert found["cut_off"] and 0 < found["answers"] < 400 and found["seconds"] < 2.1
    # A random model may end an answer by itself, so a full count is an upper bound.
    assert found["answers"] <= found["new_tokens"] <= 64 * found["answers"]
    assert found["tokens_per_second"] * found["seconds"] == pytest.approx(found["new_tokens"])
    with pytest.raises(TooSlow, match="did not end within"):  # no batch was ready
        generation.speed(model, 512, 256, 512, limit=0.05)


def test_a_limit_of_time_ends_what_is_inside_and_the_outer_one_wins():
    with pytest.raises(TooSlow, match="within 0 s"), at_most(0.1):
        time.sleep(5)
    started = time.monotonic()
    with pytest.raises(TooSlow, match="within 0 s"), at_most(0.2):
        for _ in range(3):
            try:
                with at_most(30):
                    time.sleep(5)
            except Exception:  # what goes on after an error does not swallow the outer limit
                continue
    assert time.monotonic() - started < 3
    time.sleep(0.3)  # and no alarm is left over


class Planted(Defense):
    """Says that it runs many passes, and sleeps at one place of a step instead."""

    stage = "alignment"

    def __init__(self, place, passes=1.0):
        self.place, self.passes = place, passes

    def cost(self):
        return Cost(passes=self.passes)

    def check(self, t):
        pass

    def settings(self):
        return {}

    def _work(self, place):
        if place == self.place:
            time.sleep(0.2)

    def batches(self, t, batches):
        self._work("batches")
        return batches

    def on_step_begin(self, t):
        self._work("on_step_begin")

    def training_step(self, t, step, model, inputs, n):
        self._work("training_step")
        return step(model, inputs, n)

    def on_gradients(self, t):
        self._work("on_gradients")

    def on_step_end(self, t):
        self._work("on_step_end")


@pytest.mark.parametrize("place", ["batches", "on_step_begin", "training_step", "on_gradients", "on_step_end"])
def test_the_clock_covers_the_whole_step(tmp_path, place):
    bench = steps.Bench(tiny_llama().config, True, tmp_path, length=24, batch=1, steps=5)
    seconds, _ = bench.run(Planted(place), checkpointing=False)
    assert len(seconds) == 3 and all(0.2 <= each < 2 for each in seconds)


@pytest.mark.slow
def test_a_time_below_what_the_passes_take_fails_the_run(tmp_path, monkeypatch):
    """A planted defense whose passes the clock does not see: it says that it runs 30 and runs none."""
    monkeypatch.setattr(runs, "METHODS", ("plain", "booster"))
    monkeypatch.setattr(steps, "METHODS", ("plain", "booster"))
    monkeypatch.setattr(steps, "defense", lambda method, *_: Planted("", 30.0) if method == "booster" else None)
    code, sections = run(tmp_path, "steps")
    assert code == 1 and sections["steps"]["status"] == "failed"
    assert "lora, booster: " in sections["steps"]["reason"] and "was not timed" in sections["steps"]["reason"]
    assert "full, booster: " in sections["steps"]["reason"] and "plain:" not in sections["steps"]["reason"]
    assert sections["steps"]["figures"]["lora"]["booster"]["median_ms"] > 0  # and what was measured is there


def test_with_checkpointing_the_layers_are_run_again_and_without_they_are_not(tmp_path, monkeypatch):
    passed, real = [], LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: passed.append(1) or real(self, x))
    bench, counted = steps.Bench(tiny_llama().config, False, tmp_path, length=24, batch=1, steps=3), []
    for checkpointing in (True, False, True):
        passed.clear()
        bench.run(None, checkpointing)
        counted.append(len(passed))
    assert counted == [3 * 2 * 2, 3 * 2, 3 * 2 * 2]  # steps, layers, passes


@pytest.mark.slow
def test_steps_and_checkpointing(tmp_path):
    """What is measured, and what is predicted. On a busy CPU a time may fall below its floor, which ends the script
    with 1 and a reason: times are not held here."""
    code, sections = run(tmp_path, "steps", "checkpointing", "qlora", "recipe")
    reasons = [section["reason"] for section in sections.values() if section["status"] == "failed"]
    assert code == bool(reasons) and all("was not timed" in reason for reason in reasons), reasons
    for kind in ("lora", "full"):
        figures = sections["steps"]["figures"][kind]
        assert figures["plain"]["ratio"] == 1 and figures["booster"]["ratio"] > 0
        assert figures["booster"]["floor_ms"] > 2 * figures["plain"]["floor_ms"]
        assert figures["lisa"]["peak_bytes"] is None  # no allocator to ask on a CPU
        assert figures["booster"]["predicted_bytes"] > figures["plain"]["predicted_bytes"]
    for bits in ("4 bit", "8 bit"):
        found = sections["qlora"]["figures"][bits]
        assert found["booster"]["ratio"] > 0 and found["plain"]["predicted_bytes"] > 0
    found = sections["recipe"]["figures"]
    assert found["booster"]["ratio"] > 0 and found["plain"]["predicted_bytes"] > 0
    both = sections["checkpointing"]["figures"]["tiny, lora"]
    assert both["on_over_off"] > 0 and both["on"]["predicted_bytes"] < both["off"]["predicted_bytes"]


@pytest.mark.slow
def test_exactness(tmp_path):
    code, sections = run(tmp_path, "exactness")
    assert code == 0, sections["exactness"].get("reason")
    found = sections["exactness"]["figures"]
    for name in ("float32", "activation checkpointing", *FOUR_BIT, "torch.compile"):
        for method in gpu_methods():
            assert found[name][method]["exact"] and found[name][method]["error"] < 1e-5, (name, method)
    for method in gpu_methods():
        assert found["bf16 mixed precision"][method]["error"] > 1e-4  # the measure sees rounding
        like = "plain, four steps" if method in ("lisa", "plain, four steps") else "plain"
        assert found["float32"][method]["plain"] == found["float32"][like]["error"]
    assert found["fp16 mixed precision"]["reason"].startswith("not measured: ")


FOUR_BIT = ("QLoRA (4 bit)", "QLoRA (4 bit), two adapters")


def gpu_methods():
    return (*exactness.BASELINES, *runs.METHODS[1:])


def test_one_method_that_fails_does_not_end_the_others_and_fails_the_run(tmp_path, monkeypatch):
    def trained(model, method, folder, **args):
        if method == "vaccine" and args.get("torch_compile"):
            raise ZeroDivisionError("by zero")
        off = 1e-3 if method == "booster" else 0.0
        return {name: tensor * (1 + off) for name, tensor in exactness.weights(model).items()}

    monkeypatch.setattr(exactness, "trained", trained)
    monkeypatch.setattr(exactness, "expected", lambda model, method, folder: exactness.weights(model))
    monkeypatch.setattr(exactness, "quantised", lambda folder, bits: exactness.adapted(tiny_llama()))
    monkeypatch.setattr(exactness, "dequantised", lambda model, folder, under=None: exactness.double(model))
    monkeypatch.setattr(exactness, "carry", lambda model: model.unload())
    code, sections = run(tmp_path, "exactness")
    compiled = sections["exactness"]["figures"]["torch.compile"]
    assert compiled["vaccine"] == {"reason": "failed: ZeroDivisionError: by zero"} and compiled["lisa"]["exact"]
    assert not compiled["booster"]["exact"]
    assert code == 1 and "torch.compile, vaccine: failed" in sections["exactness"]["reason"]
    assert "float32, booster: error 1.0e-03, not exact" in sections["exactness"]["reason"]


def test_plain_training_that_is_wrong_is_not_exact_and_nothing_is_held_to_it():
    found = {method: {"error": 0.5} for method in gpu_methods()}
    exactness._judge("float32", found)
    assert not any(each["exact"] for each in found.values())
    found = {method: {"error": 2e-6} for method in gpu_methods()}
    exactness._judge("float32", found)
    assert all(each["exact"] for each in found.values())
    found = {"plain": {"reason": "failed: TooSlow"}, "booster": {"error": 1e-9}}
    exactness._judge("float32", found)
    assert found["booster"] == {"error": 1e-9, "plain": None, "exact": False}
    assert list(gpu.problems(found)) == ["plain: failed: TooSlow", "booster: error 1.0e-09, not exact"]


def test_what_the_evidence_has_of_plain_training_is_exact():
    evidence = json.loads((Path(gpu.__file__).parent / "gpu_evidence.json").read_text())
    for name, found in evidence["sections"]["exactness"]["figures"].items():
        again = {method: {"error": each["error"]} for method, each in found.items() if "error" in each}
        exactness._judge(name, again)
        assert {m: each["exact"] for m, each in again.items()} == {m: found[m]["exact"] for m in again}, name


def test_trained_weights_are_paired_by_name():
    one, two = torch.ones(3), torch.zeros(3)
    assert exactness.error({"a": one, "b": two}, {"b": two, "a": one}) == 0
    with pytest.raises(ValueError, match="other names"):
        exactness.error({"a": one}, {"b": one})


@pytest.mark.slow
def test_two_processes(tmp_path):
    code, sections = run(tmp_path, "processes")
    figures = sections["processes"]["figures"]
    assert code == 0 and all(record["exact"] for record in figures["ddp"].values()) and len(figures["ddp"]) == 3
    assert figures["fsdp2"] == {"reason": "not measured: Accelerate shards over two GPUs or more; here are 0"}


def test_a_section_that_fails_leaves_its_error_and_the_rest_goes_on(tmp_path, monkeypatch):
    def broken(tiny, folder, figures):
        figures["b"] = 2
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(gpu, "SECTIONS", {"steps": broken, "antidote": lambda tiny, folder, f: f.update(a=1)})
    code, sections = run(tmp_path, "steps", "antidote")
    assert code == 1
    assert sections["steps"]["status"] == "failed" and sections["steps"]["figures"] == {"b": 2}
    assert sections["steps"]["reason"] == "failed: ZeroDivisionError: by zero"
    assert sections["antidote"]["figures"] == {"a": 1}
    code, sections = run(tmp_path, "antidote")  # what was there is kept
    assert code == 0 and set(sections) == {"steps", "antidote"}


def test_what_is_cut_off_keeps_its_figures(tmp_path, monkeypatch):
    def endless(tiny, folder, figures):
        figures["a"] = 1
        while True:
            time.sleep(0.01)

    monkeypatch.setattr(gpu, "SECTIONS", {"steps": endless, "antidote": lambda tiny, folder, f: f.update(a=1)})
    code, sections = run(tmp_path, "steps", "antidote", more=["--minutes", "0.01"])
    assert code == 0 and sections["steps"]["status"] == "cut off" and sections["steps"]["figures"] == {"a": 1}
    assert "torch" in sections["antidote"].pop("versions")
    assert sections["antidote"] == {"status": "skipped", "reason": "no time was left for it", "seconds": 0.0}
    monkeypatch.setattr(gpu, "SECTIONS", {"steps": lambda tiny, folder, f: f.update(a=2)})
    assert run(tmp_path, "steps")[1]["steps"]["figures"] == {"a": 2}
    monkeypatch.setattr(gpu, "SECTIONS", {"steps": endless})  # which is less than what is there
    code, sections = run(tmp_path, "steps", more=["--minutes", "0.01"])
    assert code == 0 and sections["steps"]["status"] == "done" and sections["steps"]["figures"] == {"a": 2}


def test_a_run_that_is_killed_leaves_what_it_had(tmp_path, monkeypatch):
    """The file is written within a section too."""
    seen, file = [], tmp_path / "evidence.json"

    def slow(tiny, folder, figures):
        figures["a"] = 1
        ends = time.monotonic() + 30
        while not file.exists() and time.monotonic() < ends:
            time.sleep(0.01)
        seen.append(json.loads(file.read_text())["sections"]["steps"])

    monkeypatch.setattr(gpu, "EVERY", 0.02)
    monkeypatch.setattr(gpu, "SECTIONS", {"steps": slow})
    code, sections = run(tmp_path, "steps")
    assert seen[0]["figures"] == {"a": 1}
    assert (seen[0]["status"], seen[0]["reason"]) == ("cut off", "the script was ended")
    assert code == 0 and sections["steps"]["status"] == "done"


def test_what_is_missing_is_what_is_not_done(tmp_path, monkeypatch):
    ran = []

    def noting(name, fails=False):
        def section(tiny, folder, figures):
            ran.append(name)
            assert not fails, "broken"

        return section

    monkeypatch.setattr(gpu, "SECTIONS", {"a": noting("a"), "b": noting("b", fails=True), "c": noting("c")})
    assert run(tmp_path, "a", "b")[0] == 1
    assert run(tmp_path, "a", "b", "c", more=["--missing"])[0] == 1 and ran == ["a", "b", "b", "c"]


def test_a_gpu_that_no_longer_answers_ends_the_run_and_keeps_what_was_there(tmp_path, monkeypatch):
    def broken(tiny, folder, figures):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(gpu, "SECTIONS", {"b": lambda tiny, folder, f: f.update(b=1)})
    run(tmp_path, "b")
    assert gpu.answers()
    monkeypatch.setattr(gpu, "answers", lambda: False)
    monkeypatch.setattr(gpu, "SECTIONS", {"a": broken, "b": broken})
    code, sections = run(tmp_path, "a", "b")
    assert code == 1 and sections["a"]["status"] == "failed"
    assert sections["b"]["status"] == "done" and sections["b"]["figures"] == {"b": 1}


def test_a_launcher_that_is_stopped_ends_its_processes(tmp_path, monkeypatch):
    """As where the time for it is over."""
    launcher = (
        "import pathlib, signal, subprocess, sys, time\n"
        "def end(*_):\n    child.kill(); child.wait(); pathlib.Path(sys.argv[2]).touch(); sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "time.sleep(600)\n"
    )
    started, ended = tmp_path / "started", tmp_path / "ended"

    def over(process):
        while not started.exists():
            time.sleep(0.01)
        raise TooSlow

    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "communicate", over)
        with pytest.raises(TooSlow):
            exactness._ended([sys.executable, "-c", launcher, str(started), str(ended)])
    assert ended.exists()
    with pytest.raises(RuntimeError, match="what went wrong"):
        exactness._ended([sys.executable, "-c", "print('what went wrong'); raise SystemExit(3)"])


def test_it_refuses_to_claim_anything(tmp_path, capsys):
    for arguments, said in (
        (["--tiny"], "measures nothing"),
        ([], "no GPU"),
        (["--sections", "speed"], "no section 'speed'"),
    ):
        with pytest.raises(SystemExit):
            gpu.main(arguments)
        assert said in capsys.readouterr().err
    assert not (tmp_path / "gpu_evidence.json").exists()
