"""Writes the generated tables of docs/scale.md: the estimates, and the GPU figures where there are any.

    python -m benchmarks.scale            # from the repository's root

The tables stand between `<!-- NAME: generated -->` and `<!-- NAME: end -->`; a test holds the page to them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mithridate.estimate import METHODS, estimate, repair
from mithridate.estimate.trace import SIZES, Setup, config_of
from mithridate.repairs.antidote import Antidote

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
EVIDENCE = Path(__file__).with_name("gpu_evidence.json")
GIB = 2**30
TIMED = ("vaccine", "booster", "lisa")  # the defenses that benchmarks/gpu.py runs
SETUP = Setup(batch=8, length=512, scored=128, checkpointing=True)


def gib(size: float) -> str:
    return f"{size / GIB:.1f}"


def estimates(sizes: Iterable[str] = SIZES) -> str:
    """Per size and method: GiB of one process, alone, among 8 with DDP, among 8 with FSDP2; operations; disk."""
    lines = [
        "| model | trained | method | one GPU | 8, DDP | 8, FSDP2 | x plain | TFLOPs a step | disk |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for size in sizes:
        config = config_of(size)
        for full in (False, True):
            setup = replace(SETUP, full=full)
            for method in METHODS:
                one = estimate(config, setup, method)
                ddp = estimate(config, replace(setup, processes=8), method)
                fsdp = estimate(config, replace(setup, processes=8, sharded=True), method)
                lines.append(
                    f"| {size.upper()} | {'all weights' if full else 'LoRA'} | {method} | {gib(one.total)} "
                    f"| {gib(ddp.total)} | {gib(fsdp.total)} | {one.ratio:.2f} | {one.flops / 1e12:.0f} "
                    f"| {gib(one.kept + one.checkpoints)} |"
                )
            needs = repair(config, setup, Antidote(targets="merged" if full else "adapters"), rows=500)
            lines.append(
                f"| {size.upper()} | {'all weights' if full else 'LoRA'} | antidote | {gib(needs.total)} "
                f"| | | | {needs.flops / 1e12:.0f} in all | {gib(needs.kept)} |"
            )
    return "\n".join(lines)


def gpu() -> str:
    """What benchmarks/gpu.py measured and on what, then one list of what it has not."""
    evidence = json.loads(EVIDENCE.read_text()) if EVIDENCE.exists() else {"sections": {}}
    device, versions = evidence.get("device", {}), evidence.get("versions", {})
    on = ", ".join(device.get("gpus", []))
    with_ = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "trl") if versions.get(name))
    lines = [f"On: {on}{f' ({with_})' if with_ else ''}.", "", "| what | figure |", "|---|---|"] if on else []
    missing = []
    for what, section, path, form in _rows():
        value: Any = evidence["sections"].get(section, {}).get("figures", {})
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            missing.append(what)
        else:
            lines.append(f"| {what} | {form.format(value)} |")
    words = "; ".join([*missing, *NEVER])
    return "\n".join([*lines, *([""] if lines else []), f"**Not measured on a GPU**: {words}."])


# What no section of the script measures.
NEVER = (
    "a training of 7B or more, which the recipe above is an estimate of",
    "bf16 on a CPU that has it in hardware",
    "`mithridate run` on two GPUs, from alignment to table",
    "vLLM inside the process",
)


def _rows() -> Iterable[tuple[str, str, tuple[str, ...], str]]:
    """Of each figure: what it is, its section in the evidence, where in it, and its format."""
    for kind, words in (("lora", "LoRA"), ("full", "all weights")):
        for method in TIMED:
            yield f"{method}'s step over a plain one, 1B, {words}", "steps", (kind, method, "ratio"), "{:.2f}"
        yield f"peak memory of a plain step, 1B, {words} (bytes)", "steps", (kind, "plain", "peak_bytes"), "{:,}"
        yield "... as `estimate` predicted then", "steps", (kind, "plain", "predicted_bytes"), "{:,}"
    yield "Antidote over one batched forward pass", "antidote", ("over_one_batched_forward",), "{:.2f}"
    yield "the reference manner's passes over Antidote", "antidote", ("faster_than_one_at_a_time",), "{:.2f}"
    yield "tokens per second, batched over one at a time", "generation", ("ratio",), "{:.2f}"
    for bits in ("4 bit", "8 bit"):
        for method in TIMED:
            yield f"{method}'s step over a plain one, 1B, QLoRA in {bits}", "qlora", (bits, method, "ratio"), "{:.2f}"
        yield f"peak memory of a plain step, 1B, QLoRA in {bits} (bytes)", "qlora", (bits, "plain", "peak_bytes"), "{:,}"
    for model, words in (("135m, lora", "135M, LoRA"), ("1b, lora", "1B, LoRA"), ("1b, full", "1B, all weights")):
        what = f"a step with activation checkpointing over one without, {words}"
        yield what, "checkpointing", (model, "on_over_off"), "{:.2f}"
    what = "344 prompts, 135M: tokens per second, one batch over batches of 64"
    yield what, "batches", ("faster",), "{:.2f}"
    for what in ("float32", "bfloat16", "bfloat16 without cuDNN's attention"):
        row = f"seconds of the first generation, 64 prompts, {what}"
        yield row, "precision", (what, "first_seconds"), "{:.2f}"
    for setup in ("float32", "torch.compile", "QLoRA (4 bit)", "QLoRA (8 bit)"):
        for method in ("plain", *TIMED):
            row = f"{method}'s update against the reference, {setup}: error"
            yield row, "exactness", (setup, method, "error"), "{:.1e}"
    for kind in ("ddp", "fsdp2"):
        for method in ("plain", "booster", "lisa"):
            row = f"two processes against one, {kind}, {method}: error"
            yield row, "processes", (kind, method, "error"), "{:.1e}"


TABLES = {"estimates": estimates, "gpu": gpu}


def between(name: str, text: str) -> str:
    """A generated table as it stands in the page."""
    found = re.search(rf"<!-- {name}: generated -->\n(.*?)\n<!-- {name}: end -->", text, re.DOTALL)
    assert found, f"docs/scale.md has no place for {name}"
    return found[1]


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        whole = f"<!-- {name}: generated -->\n{{}}\n<!-- {name}: end -->".format
        text = text.replace(whole(between(name, text)), whole(table()))
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
