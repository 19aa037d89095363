"""Fills the GPU rows in one go: trains, repairs and generates on the GPUs at hand, and writes what it measured.

    python -m benchmarks.gpu                              # from the repository's root
    python -m benchmarks.gpu --sections steps,antidote    # some sections; the others' figures in the file are kept
    python -m benchmarks.gpu --minutes 9                  # ends by then; a section that is cut off keeps its figures
    python -m benchmarks.gpu --minutes 9 --missing        # those that are not done yet: again and again until all are
    python -m benchmarks.gpu --tiny --out FILE            # the same code on a CPU with tiny models; proves nothing

It writes `benchmarks/gpu_evidence.json`. Nothing is downloaded: models have random weights. Each section, and each
set-up in it, stands alone: one that fails leaves its error in the file, which is written anew after each section and
every 10 seconds within it (so a killed run leaves what it had), and the rest goes on, unless the GPU itself no longer
answers; what was not measured is absent or says why. A section that is cut off, or not reached, never takes the place
of one that was done. The script fails (exit code 1) where something broke, a rule is not exact, or a time is below its
floor: less than the passes of the method can take. The file:

    {"schema": 2, "tiny": false, "device": {...}, "versions": {...}, "finished": "...",
     "sections": {NAME: {"status": "done" | "failed" | "skipped" | "cut off", "reason": "...", "seconds": 1.0,
                         "versions": {...}, "figures": {...}}}}

Sections and their figures:

    steps       {"lora" | "full": {method: {"median_ms", "spread_ms", "ratio", "floor_ms", "peak_bytes",
                "predicted_bytes"}}}: the time from the end of a step to the end of the next, methods interleaved;
                spread: the quartiles' distance; ratio to plain training; the least that the method's passes take,
                given the fastest forward and backward pass of plain training; the peak of torch's allocator, and what
                `mithridate estimate` says.
    checkpointing {MODEL: {"on" | "off": as above, "on_over_off"}}: what activation checkpointing costs and saves.
    precision   generation in float32 and bfloat16, without cuDNN's attention, and a profile of each.
    batches     tokens per second of generation with batches of 64, and of more.
    antidote    seconds of the repair, of one batched forward pass, and of the reference manner's passes (each row by
                itself, twice); their ratios; and the seconds of a repair's parts.
    generation  tokens per second, batched and one prompt at a time, and their ratio.
    exactness   {set-up: {method: {"error": e, "plain": p, "exact": true}}}, or {set-up: {"reason": "..."}}.
                e: |update - reference| / |reference| of one SGD step (Lisa: of four); the reference is the papers'
                rules in float64 on a CPU (`tests/defenses/reference.py`). p: the same for plain training over as many
                steps in the same set-up, which is what its arithmetic costs by itself. exact: e <= 4 p + 1e-6
                (8 bit: + 1e-3, an input that is rounded to the other of two neighbours).
    qlora       {"4 bit" | "8 bit": as in steps}, of an adapter over quantised weights.
    recipe      as of one set-up of qlora: the recipe for 7B in docs/scale.md, whose estimate is beside it.
    processes   {"ddp" | "fsdp2": {method: {"error": e, "exact": true}}}: two processes with 4 rows each against one
                with 8, in float32; exact: e < 1e-4. Vaccine's norm is each process's own and is left out.

Needs the versions that pyproject.toml asks for; QLoRA needs bitsandbytes, FSDP2 two GPUs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.on_gpu import DEVICE, GPU, Figures, NotMeasured, TooSlow, at_most, forget_memory, said
from benchmarks.on_gpu.exactness import exactness, processes, worker
from benchmarks.on_gpu.generation import batches, generation, precision
from benchmarks.on_gpu.repair import antidote
from benchmarks.on_gpu.steps import checkpointing, qlora, recipe, steps
from mithridate.environment import hardware, versions

EVERY = 10.0  # seconds between two writings of what a section has so far
OUT = Path(__file__).with_name("gpu_evidence.json")

Section = Callable[[bool, Path, Figures], None]
SECTIONS: dict[str, Section] = {  # what is worth most comes first
    "steps": steps,
    "checkpointing": checkpointing,
    "precision": precision,
    "batches": batches,
    "antidote": antidote,
    "generation": generation,
    "exactness": exactness,
    "qlora": qlora,
    "recipe": recipe,
    "processes": processes,
}


def problems(figures: Any, where: str = "") -> Iterator[str]:
    """What is wrong with a section's figures: what broke, is not exact, or lies below its floor."""
    if not isinstance(figures, dict):
        return
    if str(figures.get("reason", "")).startswith("failed"):
        yield f"{where}: {figures['reason']}"
    if figures.get("exact") is False:
        yield f"{where}: error {figures['error']:.1e}, not exact"
    if "floor_ms" in figures and figures["median_ms"] < figures["floor_ms"]:
        yield (
            f"{where}: {figures['median_ms']:.1f} ms, below the {figures['floor_ms']:.1f} ms that its passes take at "
            "least: part of its work was not timed"
        )
    for name, inside in figures.items():
        yield from problems(inside, f"{where}, {name}" if where else name)


def measured(name: str, tiny: bool, seconds: float, figures: Figures) -> dict[str, Any]:
    """Runs one section, which puts what it measures into `figures`; it has at most so many seconds."""
    record: dict[str, Any] = {"status": "done"}
    with tempfile.TemporaryDirectory() as folder:
        try:
            with at_most(seconds):
                SECTIONS[name](tiny, Path(folder), figures)
        except TooSlow as reason:
            record = {"status": "cut off", "reason": str(reason)}
        except NotMeasured as reason:
            record = {"status": "skipped", "reason": str(reason)}
        except Exception as problem:
            traceback.print_exc()
            record = {"status": "failed", "reason": said(problem)}
    if record["status"] in ("done", "cut off") and (wrong := list(problems(figures))):
        record = {"status": "failed", "reason": "; ".join(wrong)}
    return record | ({"figures": figures} if figures else {})


def measure(names: list[str], tiny: bool, out: Path, minutes: float | None = None) -> dict[str, Any]:
    """Runs the sections and writes the file anew after each one, and now and then within it."""
    evidence: dict[str, Any] = {
        "schema": 2,
        "tiny": tiny,
        "device": device(),
        "versions": versions(),
        "sections": _before(tiny, out),
    }
    ends = time.monotonic() + 60 * (minutes or 24 * 60)
    for name in names:
        print(f"{name} ...", flush=True)
        started, figures = time.monotonic(), {}
        with _kept(evidence, name, figures, out):
            if started < ends:
                record = measured(name, tiny, ends - started, figures)
            else:
                record = {"status": "skipped", "reason": "no time was left for it"}
        print(f"{name}: {record['status']} {record.get('reason', '')}", flush=True)
        record["seconds"] = round(time.monotonic() - started, 1)
        _write(evidence, name, record, out)
        if record["status"] == "failed" and not answers():
            print("The GPU no longer answers. Run the sections that are left anew: --missing", flush=True)
            break
        forget_memory()
    return evidence


def _before(tiny: bool, out: Path) -> dict[str, Any]:
    """The sections of an earlier run on the same device."""
    before = json.loads(out.read_text()) if out.exists() else {}
    return before.get("sections", {}) if before.get("tiny") == tiny and before.get("device") == device() else {}


def _write(evidence: dict[str, Any], name: str, record: dict[str, Any], out: Path) -> None:
    """Puts a section's record into the file, unless it has less than the one that is there."""
    there = evidence["sections"].get(name, {})
    less = record["status"] == "cut off" and there.get("status") == "done"
    if less or (record["status"] == "skipped" and "figures" in there):
        return
    evidence["sections"][name] = record | {"versions": evidence["versions"]}
    evidence["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    aside = out.with_name(f".{out.name}.part")
    aside.write_text(json.dumps(evidence, indent=1) + "\n")
    aside.replace(out)


@contextmanager
def _kept(evidence: dict[str, Any], name: str, figures: Figures, out: Path) -> Iterator[None]:
    """Inside, the figures that a section has by now are written every few seconds."""
    over = threading.Event()

    def write() -> None:
        started = time.monotonic()
        while not over.wait(EVERY):
            record: dict[str, Any] = {"status": "cut off", "reason": "the script was ended"}
            with contextlib.suppress(RuntimeError):  # a figure was added meanwhile: the next time
                if figures:
                    record |= {"figures": json.loads(json.dumps(figures))}
                    _write(evidence, name, record | {"seconds": round(time.monotonic() - started, 1)}, out)

    writing = threading.Thread(target=write, daemon=True)
    writing.start()
    try:
        yield
    finally:
        over.set()
        writing.join()


def answers() -> bool:
    """Whether the device still computes: after some errors a process cannot use it any more."""
    try:
        return float(torch.ones(2, device=DEVICE).sum()) == 2
    except Exception:
        return False


def device() -> dict[str, Any]:
    found = {**hardware(), "cuda": torch.version.cuda}
    found.pop("memory_bytes")  # differs a little from start to start
    if GPU:
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu_memory_bytes": properties.total_memory, "capability": f"{properties.major}.{properties.minor}"}
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", help="some sections, separated by commas; all, in this order, if not given")
    parser.add_argument("--only", action="append", default=[], choices=list(SECTIONS), help="one section (repeatable)")
    parser.add_argument("--missing", action="store_true", help="leave out what is done already, by the file")
    parser.add_argument("--minutes", type=float, help="the time for all of it")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to test this script itself")
    parser.add_argument("--out", type=Path, help="the file; with --tiny it has to be given")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.worker:
        worker(given.worker)
        return 0
    names = [*filter(None, (given.sections or "").split(",")), *given.only]
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    if given.tiny and given.out is None:
        parser.error("--tiny measures nothing: give --out a file that is not the evidence")
    if not given.tiny and not GPU:
        parser.error("torch sees no GPU here; --tiny tests the script on a CPU")
    names, out = names or list(SECTIONS), given.out or OUT
    if given.missing:
        done = {name for name, record in _before(given.tiny, out).items() if record["status"] == "done"}
        names = [name for name in names if name not in done]
    evidence = measure(names, given.tiny, out, given.minutes)
    ran = [evidence["sections"][name] for name in names if name in evidence["sections"]]
    return 1 if any(record["status"] == "failed" for record in ran) else 0


if __name__ == "__main__":
    sys.exit(main())
