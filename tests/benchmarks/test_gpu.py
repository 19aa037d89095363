"""The GPU script itself, on a CPU with tiny models: it runs, and claims only what it measured."""

import json

import pytest
import torch

from benchmarks import gpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU, run the script itself")


def run(tmp_path, *sections):
    out = tmp_path / "evidence.json"
    code = gpu.main(["--tiny", "--out", str(out), *(f"--only={name}" for name in sections)])
    return code, json.loads(out.read_text())


@pytest.mark.slow
def test_exactness_steps_antidote_and_generation(tmp_path):
    code, evidence = run(tmp_path, "exactness", "steps", "antidote", "generation")
    assert code == 0 and evidence["tiny"] and evidence["device"]["gpus"] == [] and evidence["versions"]["torch"]
    sections = evidence["sections"]
    assert {name: record["status"] for name, record in sections.items()} == dict.fromkeys(sections, "done")
    exactness = sections["exactness"]["figures"]
    for method in gpu.METHODS:
        assert exactness["float32"][method]["exact"] and exactness["float32"][method]["error"] < 1e-5
        assert exactness["activation checkpointing"][method]["exact"]
        assert exactness["bf16 mixed precision"][method]["error"] > 1e-4  # the measure sees rounding
    for name in ("fp16 mixed precision", "QLoRA (4 bit)"):
        assert exactness[name] == {"reason": f"not measured: {exactness[name]['reason'].partition(': ')[2]}"}
    for kind in ("lora", "full"):
        figures = sections["steps"]["figures"][kind]
        assert figures["plain"]["ratio"] == 1 and figures["booster"]["median_ms"] > 0
        assert figures["lisa"]["peak_bytes"] is None  # no allocator to ask on a CPU
        assert figures["booster"]["predicted_bytes"] > figures["plain"]["predicted_bytes"]
    assert sections["antidote"]["figures"]["over_one_batched_forward"] > 0
    assert sections["generation"]["figures"]["batched_tokens_per_second"] > 0


@pytest.mark.slow
def test_two_processes(tmp_path):
    code, evidence = run(tmp_path, "processes")
    figures = evidence["sections"]["processes"]["figures"]
    assert code == 0 and all(record["exact"] for record in figures["ddp"].values()) and len(figures["ddp"]) == 3
    assert figures["fsdp2"] == {"reason": "not measured: Accelerate shards over two GPUs or more; here are 0"}


def test_a_section_that_fails_leaves_its_error_and_the_rest_goes_on(tmp_path, monkeypatch):
    def broken(tiny, folder):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(gpu, "SECTIONS", {"steps": broken, "antidote": lambda tiny, folder: {"a": 1}})
    code, evidence = run(tmp_path, "steps", "antidote")
    assert code == 1
    assert evidence["sections"]["steps"]["status"] == "failed"
    assert evidence["sections"]["steps"]["reason"] == "failed: ZeroDivisionError: by zero"
    assert evidence["sections"]["antidote"]["figures"] == {"a": 1}
    code, evidence = run(tmp_path, "antidote")  # what was there is kept
    assert set(evidence["sections"]) == {"steps", "antidote"}


def test_it_refuses_to_claim_anything(tmp_path, capsys):
    for arguments, said in ((["--tiny"], "measures nothing"), ([], "no GPU")):
        with pytest.raises(SystemExit):
            gpu.main(arguments)
        assert said in capsys.readouterr().err
    assert not (tmp_path / "gpu_evidence.json").exists()
