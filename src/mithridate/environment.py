"""What a result was computed with: versions, commit, machine, memory. In every `stage.json`, and in `doctor`."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import threading
import warnings
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "mithridate",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "safetensors",
    "bitsandbytes",
)

_DRIVER = Path("/proc/driver/nvidia/version")  # there while NVIDIA's driver is loaded (Linux)


@cache  # takes milliseconds, and every stage asks
def version(package: str) -> str | None:
    """The installed version, without importing the package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def commit() -> str | None:
    """The git commit of the package's own source, "-dirty" where it was changed; None for an installed package."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # not some other project's repository around a venv
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str | None]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}, "commit": commit()}


def hardware() -> dict[str, Any]:
    """CPU model, the cores this process may use, bytes of memory, and the GPUs where torch is loaded and sees any."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": _cpu(), "cores": cores, "memory_bytes": psutil.virtual_memory().total, "gpus": _gpus()}


@cache
def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")  # never imported for this: a stage that used a GPU has imported it
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def has_driver() -> bool:
    """Whether NVIDIA's driver is loaded on this machine."""
    return _DRIVER.exists()


def gpu_problem() -> str | None:
    """Why torch sees no GPU although this machine has an NVIDIA driver; None where it sees one, there is no driver, or
    the GPUs are hidden on purpose. Imports torch."""
    import torch

    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if hidden or not has_driver():
        return None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return None
    why = next((str(one.message).split("(Triggered")[0].strip() for one in said), "CUDA does not start")
    if torch.version.cuda is None:
        why = "this PyTorch is built without CUDA; install one with it (pytorch.org, Get started)"
    return f"an NVIDIA driver is here, and torch sees no GPU: {why}. CUDA_VISIBLE_DEVICES='' says that none is wanted"


def use_huge_pages() -> None:
    """Asks torch to ask for huge pages (Linux, CPU), unless the environment says otherwise.

    Small pages cost twice: the kernel hands out each anew after every batch, and the processor looks each up. How much
    that is depends on the machine and on its state: nothing to half of the time (`docs/benchmarks.md`).
    Torch reads the variable when it first allocates, so this comes before a model is loaded; processes started later
    inherit it.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


class PeakMemory:
    """The highest resident memory of this process (and on the GPU, allocated by torch) while the context is open.

    Sampled ten times per second: the kernel's own high-water mark covers the whole process, not one stage of it.
    """

    def __enter__(self) -> PeakMemory:
        import psutil

        self._process = psutil.Process()
        self.bytes = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        for i in range(len(_gpus())):
            sys.modules["torch"].cuda.reset_peak_memory_stats(i)
        return self

    def _sample(self) -> None:
        while not self._stop.wait(0.1):
            self.bytes = max(self.bytes, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.bytes = max(self.bytes, self._process.memory_info().rss)
        self.gpu_bytes = sum(sys.modules["torch"].cuda.max_memory_allocated(i) for i in range(len(_gpus())))
