"""How fast answers are generated: batched and one at a time, in batches of several sizes, in two precisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.on_gpu import GPU, Figures, TooSlow, at_most, forget_memory, made, now, peak_memory, said
from benchmarks.on_gpu import small_llama as small
from mithridate.estimate.trace import config_of
from mithridate.generation.base import CHAT, Decoding
from mithridate.generation.hf import Transformers, _better_in_fp32
from tests.tiny import tiny_llama, tiny_tokenizer

LIMIT = 15.0  # seconds for one speed: a speed needs no more answers than come in that time


def prompts(count: int) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": f"Say {i}" + "?" * (i % 7)}] for i in range(count)]


def speed(model: Any, count: int, new: int, size: int, limit: float = LIMIT) -> Figures:
    """Tokens per second of `count` prompts, `size` in a batch, and the peak of memory.

    Stops after `limit` seconds, with the batches that are there.

    Raises:
        TooSlow: there is none.
    """
    forget_memory()
    started, tokens, done = now(), 0, 0
    ended = started
    try:
        with at_most(limit):
            for _, answer in Transformers(model, tiny_tokenizer(), batch_size=size).generate(
                prompts(count), CHAT, Decoding(new)
            ):
                tokens, done = tokens + answer.new_tokens, done + 1
                if done % size == 0 or done == count:
                    ended = now()
    except TooSlow:
        if ended == started:
            raise
    return {
        "batch": size,
        "prompts": count,
        "answers": done,
        "cut_off": done < count,
        "new_tokens": tokens,
        "seconds": ended - started,
        "tokens_per_second": tokens / (ended - started),
        "peak_bytes": peak_memory(),
    }


def each(figures: Figures, name: str, work: Callable[[], Figures]) -> None:
    """Notes a figure, or why it is missing."""
    try:
        figures[name] = work()
    except Exception as problem:
        figures[name] = {"reason": said(problem)}


def generation(tiny: bool, folder: Path, figures: Figures) -> None:
    """A model of 1B: 64 prompts together and one at a time. Each ends in time, with the answers it has by then."""
    config, count, new = (tiny_llama().config, 8, 8) if tiny else (config_of("1b"), 64, 128)
    model = made(config, torch.bfloat16)
    for name, size in (("warm", count), ("batched", count), ("one_at_a_time", 1)):
        each(figures, name, lambda size=size: speed(model, count, new, size))
    del figures["warm"]
    if all("seconds" in figures[name] for name in ("batched", "one_at_a_time")):
        figures["ratio"] = figures["batched"]["tokens_per_second"] / figures["one_at_a_time"]["tokens_per_second"]


def batches(tiny: bool, folder: Path, figures: Figures) -> None:
    """The embedded model's shape in float32: batches of 64 as today against larger ones."""
    config, new, sizes = (tiny_llama().config, 8, (4, 8)) if tiny else (small(), 64, (64, 344, 1376))
    model = made(config, torch.float32)
    each(figures, "warm", lambda: speed(model, sizes[0], 8, sizes[0]))
    del figures["warm"]
    heads = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    cache = 2 * config.num_hidden_layers * heads * 4
    figures["cache_bytes_a_token"] = cache
    for size in sizes:
        each(figures, str(size), lambda size=size: speed(model, max(size, sizes[1]), new, size, limit=40))
    first, second = figures[str(sizes[0])], figures[str(sizes[1])]
    if "seconds" in first and "seconds" in second:
        figures["faster"] = second["tokens_per_second"] / first["tokens_per_second"]


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Inside, torch's attention does not take cuDNN's kernels, which make a plan for every new length."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def profiled(model: Any, count: int) -> Figures:
    """One stretch of tokens under torch's profiler: launches, casts, and the operations that take the time."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if GPU else [])]
    with profile(activities=activities) as profiler:
        speed(model, count, 16, count)
    averages: Any = profiler.key_averages()

    def top(key: str) -> dict[str, list[float]]:
        ordered = sorted(averages, key=lambda e: getattr(e, key), reverse=True)[:12]
        return {e.key[:90]: [e.count, round(getattr(e, key) / 1000, 2)] for e in ordered}

    return {
        "tokens": 16,
        "launches": sum(e.count for e in averages if "Launch" in e.key),
        "casts": sum(e.count for e in averages if e.key == "aten::_to_copy"),
        "device_ms": round(sum(e.self_device_time_total for e in averages) / 1000, 2),
        "by_cpu_ms": top("self_cpu_time_total"),  # operation: [calls, ms of its own]
        "by_device_ms": top("self_device_time_total"),
    }


def precision(tiny: bool, folder: Path, figures: Figures) -> None:
    """The embedded model's shape in float32 and in bfloat16; and in bfloat16 with other kernels of attention."""
    config, count, new = (tiny_llama().config, 8, 8) if tiny else (small(), 64, 64)
    variants = {
        "float32": (torch.float32, "sdpa", False),
        "bfloat16": (torch.bfloat16, "sdpa", False),
        "bfloat16 without cuDNN's attention": (torch.bfloat16, "sdpa", True),
        "bfloat16, eager attention": (torch.bfloat16, "eager", False),
        "float32 without cuDNN's attention": (torch.float32, "sdpa", True),
    }
    for name, (dtype, attention, other) in variants.items():
        model = made(config, dtype, attention)
        found = figures[name] = {"copied_to_float32": len(_better_in_fp32(model))}

        def measured(model: Any = model, other: bool = other) -> Figures:
            with without_cudnn() if other else at_most(120):
                first = speed(model, count, new, count, limit=60)  # what is chosen or planned once is in the first
                again = speed(model, count, new, count, limit=60)
            return {"first_seconds": first["seconds"]} | again

        each(figures, name, measured)
        figures[name] |= found
    for name in list(variants)[:3]:
        dtype, attention, other = variants[name]
        model = made(config, dtype, attention)

        def profile_of(model: Any = model, other: bool = other) -> Figures:
            with without_cudnn() if other else at_most(60):
                return profiled(model, count)

        each(figures, f"profile: {name}", profile_of)
    if all("seconds" in figures[name] for name in ("float32", "bfloat16")):
        figures["bfloat16_over_float32"] = figures["bfloat16"]["seconds"] / figures["float32"]["seconds"]
