"""What the sections of `benchmarks/gpu.py` share: the device, waiting for it, and limits of time."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"

Figures = dict[str, Any]


class NotMeasured(Exception):
    """Why something cannot be measured here."""


class TooSlow(NotMeasured):
    """It did not end within its own limit of time."""


class _OutOfTime(BaseException):
    """A limit of time is over. No Exception, so that nothing that goes on after errors takes it for one."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Ends what runs inside after so many seconds, or when a limit around this one is over.

    Raises:
        TooSlow: by the outermost of the limits that are over.
    """

    def stop(*_: Any) -> None:
        raise _OutOfTime

    started, around = time.monotonic(), signal.getitimer(signal.ITIMER_REAL)[0]
    before = signal.signal(signal.SIGALRM, stop)
    # again every 5 s: raised where a destructor runs, it would be lost
    signal.setitimer(signal.ITIMER_REAL, max(min(seconds, around or seconds), 1e-3), 5.0)
    try:
        yield
    except _OutOfTime:
        if around and time.monotonic() - started >= around:
            raise
        raise TooSlow(f"it did not end within {seconds:.0f} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if around:
            signal.setitimer(signal.ITIMER_REAL, max(around - (time.monotonic() - started), 1e-3), 5.0)


def said(problem: BaseException) -> str:
    """What a file says of a figure that is missing."""
    if isinstance(problem, NotMeasured):
        return f"not measured: {problem}"
    return f"failed: {type(problem).__name__}: {str(problem)[:2000]}"


def now() -> float:
    """Seconds, once the device has done what it was given."""
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def forget_memory() -> None:
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> int | None:
    """Bytes of torch's allocator since `forget_memory`; None on a CPU, which has none to ask."""
    return torch.cuda.max_memory_allocated() if GPU else None


def made(config: PretrainedConfig, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """A model of random weights, on the device."""
    torch.manual_seed(0)
    with torch.device(DEVICE):  # a GPU draws a billion numbers in no time
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)


def small_llama() -> LlamaConfig:
    """The shape of SmolLM2-135M, the embedded model."""
    return LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
