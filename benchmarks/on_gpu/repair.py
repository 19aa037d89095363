"""What Antidote costs beside one forward pass over its calibration set, and where its time goes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peft import LoraConfig, get_peft_model

from benchmarks.on_gpu import DEVICE, Figures, made, now
from benchmarks.on_gpu.runs import rows
from benchmarks.on_gpu.steps import LORA
from mithridate.estimate.trace import config_of
from mithridate.repairs import antidote as module
from mithridate.repairs.antidote import Antidote
from mithridate.repairs.delta import Delta
from tests.tiny import tiny_llama, tiny_tokenizer

ROUNDS = 4  # the first one warms up
PARTS: dict[str, tuple[Any, str]] = {
    "check": (Antidote, "check"),
    "tokens": (module, "token_ids"),
    "pass": (module, "input_norms"),
    "scores": (Antidote, "_mark"),
    "change": (Delta, "apply"),
    "undo": (Delta, "undo"),
}


@contextmanager
def taken_apart(seconds: dict[str, float]) -> Iterator[None]:
    """Inside, the seconds of each part of a repair are added up (those of "tokens" lie in "check" too)."""

    def timing(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(work)
        def run(*args: Any, **kwargs: Any) -> Any:
            started = now()
            try:
                return work(*args, **kwargs)
            finally:
                seconds[name] = seconds.get(name, 0.0) + now() - started

        return run

    with ExitStack() as patches:
        for name, (owner, attribute) in PARTS.items():
            patches.enter_context(mock.patch.object(owner, attribute, timing(name, getattr(owner, attribute))))
        yield


def antidote(tiny: bool, folder: Path, figures: Figures) -> None:
    config, count, length = (tiny_llama().config, 16, 64) if tiny else (config_of("1b"), 200, 256)
    lora = LoraConfig(task_type="CAUSAL_LM", **LORA)
    model, tokenizer = get_peft_model(made(config, torch.bfloat16), lora).eval(), tiny_tokenizer()
    calibration = [dict(row) for row in rows("harmful!", count, length)]
    texts = [tokenizer.apply_chat_template([*r["prompt"], *r["completion"]], tokenize=True) for r in calibration]
    ids = [text["input_ids"] if not isinstance(text, list) else text for text in texts]
    decoder = model.get_base_model().model

    def forward(size: int) -> None:
        with torch.inference_mode():
            for start in range(0, len(ids), size):
                batch = ids[start : start + size]
                width = max(map(len, batch))
                padded = torch.tensor([row + [0] * (width - len(row)) for row in batch], device=DEVICE)
                keep = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch], device=DEVICE)
                decoder(input_ids=padded, attention_mask=keep, use_cache=False)

    def repair(of: int = count) -> None:
        report = Antidote(ratio=0.2, targets="adapters").apply(
            model, calibration=calibration[:of], tokenizer=tokenizer, batch_size=8
        )
        report.undo(model)

    def one_at_a_time_twice() -> None:
        forward(1)
        forward(1)

    timed: dict[str, Callable[[], None]] = {
        "batched_forward": lambda: forward(8),
        "repair": repair,
        "repair_of_one_batch": lambda: repair(8),  # what does not grow with the rows, and one batch's pass
        "one_at_a_time_twice": one_at_a_time_twice,
    }
    taken: dict[str, list[float]] = {name: [] for name in timed}
    parts: list[dict[str, float]] = []
    for turn in range(ROUNDS):
        for name, work in timed.items():
            started = now()
            work()
            if turn:
                taken[name].append(now() - started)
        with taken_apart(inside := {}):
            repair()
        if turn:
            parts.append(inside)
    seconds = {name: statistics.median(values) for name, values in taken.items()}
    figures |= {
        "seconds": seconds,
        "rows": count,
        "over_one_batched_forward": seconds["repair"] / seconds["batched_forward"],
        "faster_than_one_at_a_time": seconds["one_at_a_time_twice"] / seconds["repair"],
        "seconds_inside_a_repair": {name: statistics.median(one[name] for one in parts) for name in PARTS},
    }
