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
    """What benchmarks/gpu.py measured; "not yet measured" for what it has not."""
    evidence = json.loads(EVIDENCE.read_text()) if EVIDENCE.exists() else {"sections": {}}
    sections = evidence["sections"]
    device = ", ".join(evidence.get("device", {}).get("gpus", [])) or "no GPU so far"
    lines = [f"On: {device}.", "", "| what | figure |", "|---|---|"]

    def row(what: str, section: str, *path: str, form: str = "{:.2f}") -> None:
        value: Any = sections.get(section, {}).get("figures", {})
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        lines.append(f"| {what} | {'not yet measured' if value is None else form.format(value)} |")

    for kind, words in (("lora", "LoRA"), ("full", "all weights")):
        for method in METHODS[1:]:
            row(f"{method}'s step over a plain one, 1B, {words}", "steps", kind, method, "ratio")
        row(f"peak memory of a plain step, 1B, {words} (bytes)", "steps", kind, "plain", "peak_bytes", form="{:,}")
        row("... as `estimate` predicts", "steps", kind, "plain", "predicted_bytes", form="{:,}")
    row("Antidote over one batched forward pass", "antidote", "over_one_batched_forward")
    row("the reference manner's passes over Antidote", "antidote", "faster_than_one_at_a_time")
    row("tokens per second, batched over one at a time", "generation", "ratio")
    for bits in ("4 bit", "8 bit"):
        for method in METHODS[1:]:
            row(f"{method}'s step over a plain one, 1B, QLoRA in {bits}", "qlora", bits, method, "ratio")
    for model, words in (("135m, lora", "135M, LoRA"), ("1b, lora", "1B, LoRA"), ("1b, full", "1B, all weights")):
        row(
            f"a step with activation checkpointing over one without, {words}",
            "checkpointing",
            model,
            "on_over_off",
        )
    row("344 prompts, 135M: tokens per second, one batch over batches of 64", "batches", "faster")
    for what in ("float32", "bfloat16", "bfloat16 without cuDNN's attention"):
        row(f"seconds of the first generation, 64 prompts, {what}", "precision", what, "first_seconds")
    for setup in ("float32", "torch.compile", "QLoRA (4 bit)", "QLoRA (8 bit)"):
        for method in METHODS:
            row(
                f"{method}'s update against the reference, {setup}: error",
                *("exactness", setup, method, "error"),
                form="{:.1e}",
            )
    for kind in ("ddp", "fsdp2"):
        for method in ("plain", "booster", "lisa"):
            row(
                f"two processes against one, {kind}, {method}: error",
                "processes",
                kind,
                method,
                "error",
                form="{:.1e}",
            )
    return "\n".join(lines)


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
