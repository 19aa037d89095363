"""How much faster batched generation is than one prompt at a time: ratios from one run, and the time of each phase.

    OMP_NUM_THREADS=2 python benchmarks/generation.py            # fp32 and bf16, within 8 minutes on two cores
    OMP_NUM_THREADS=2 python benchmarks/generation.py --dtype bfloat16 --prompts 64 --single 8     # quicker

The embedded model continues 200 texts of 10 to 120 tokens by 64 tokens each, greedily, through `Transformers`: in
batches, and one at a time (`batch_size=1`, whose bf16 weights are thawed as well: otherwise one at a time would be
slower still, and the ratio flattering). No answer may end early, so that both sides make exactly 200 x 64 tokens; that
spares the batched side nothing, while in real use rows that have ended are dropped.

One at a time is timed on a random subset and scaled to 200. The subset is dealt out between the batches, so that both
sides see the same machine; the ratio is of the two total times, and its range is over the deals.

Flips are prompts of the subset whose tokens differ between the two sides; beside each, the difference between the two
best logits where they part. In fp32 it is below 1e-4, or the benchmark fails.
"""

from __future__ import annotations

import argparse
import random
import time

import torch

from mithridate.environment import use_huge_pages
from mithridate.generation import hf
from mithridate.generation.base import Decoding, Template
from mithridate.generation.hf import Transformers
from mithridate.generation.templates import prompt_tokens
from mithridate.models import load_model, load_tokenizer, resolve_model

SHORTEST, LONGEST, NEW = 10, 120, 64
BARE = Template("bare", "{instruction}")
TIE = 1e-4
use_huge_pages()  # as the command does
PHASES = ("tokenising", "prefill", "decode", "detokenising", "rest")


class Endless(Transformers):
    """Only a token that never comes ends an answer."""

    def _stops(self) -> list[int]:
        return [len(self.tokenizer) - 1]


class Clock:
    """Seconds of each phase, into the dictionary that is current; the tokens made, by prompt."""

    def __init__(self, model, tokenizer):
        self.seconds, self.tokens = dict.fromkeys(PHASES, 0.0), {}
        model.register_forward_pre_hook(self._enter, with_kwargs=True)
        model.register_forward_hook(self._leave, with_kwargs=True)
        hf.prompt_tokens = self._timed(prompt_tokens, "tokenising")
        tokenizer.decode = self._timed(tokenizer.decode, "detokenising")
        inner = hf._generate_batch

        def generate_batch(model, prompts, config):
            rows = inner(model, prompts, config)
            self.tokens |= {tuple(prompt): row for prompt, row in zip(prompts, rows, strict=True)}
            return rows

        hf._generate_batch = generate_batch
        self.restore = lambda: (setattr(hf, "_generate_batch", inner), setattr(hf, "prompt_tokens", prompt_tokens))

    def switch(self, seconds: dict, tokens: dict) -> None:
        self.seconds, self.tokens = seconds, tokens

    def _enter(self, _, args, kwargs):
        self.started = time.perf_counter()

    def _leave(self, _, args, kwargs, output):
        phase = "prefill" if kwargs["input_ids"].shape[1] > 1 else "decode"
        self.seconds[phase] += time.perf_counter() - self.started

    def _timed(self, function, phase):
        def timed(*args, **kwargs):
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[phase] += time.perf_counter() - started

        return timed


def texts(tokenizer, number: int) -> list[list[dict[str, str]]]:
    """Texts of common English words, of 10 to 120 tokens each."""
    rng, made = random.Random(0), []
    words = [word for word in map(tokenizer.decode, range(1000, 6000)) if word.strip().isalpha() and word[0] == " "]
    for _ in range(number):
        count = rng.randint(SHORTEST, LONGEST)
        made.append([{"role": "user", "content": "".join(rng.choice(words) for _ in range(count))}])
    return made


def gap(model, prompt: tuple[int, ...], one: list[int], other: list[int]) -> float:
    """The difference between the two best logits at the first token where two continuations part."""
    parts = next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    with torch.no_grad():
        best = model(torch.tensor([[*prompt, *one[:parts]]])).logits[0, -1].float().topk(2).values
    return float(best[0] - best[1])


def compare(dtype: str, batch_size: int, prompts: int, single: int) -> bool:
    """Prints the tables of one dtype; whether its flips are within the tie."""
    files = resolve_model("smollm2-135m")
    model, tokenizer = load_model(files, getattr(torch, dtype)), load_tokenizer(files)
    asked = texts(tokenizer, prompts)
    clock = Clock(model, tokenizer)
    decoding = Decoding(NEW)
    batched, alone = Endless(model, tokenizer, batch_size=batch_size), Endless(model, tokenizer, batch_size=1)
    list(alone.generate(asked[:1], BARE, Decoding(8)))  # warm
    spent = {"batched": dict.fromkeys(PHASES, 0.0), "alone": dict.fromkeys(PHASES, 0.0)}
    made: dict[str, dict] = {"batched": {}, "alone": {}}
    chosen = random.Random(1).sample(range(prompts), single)
    deals = -(-prompts // batch_size)
    total, means = {"batched": 0.0, "alone": 0.0}, []
    stream = batched.generate(asked, BARE, decoding)
    for deal in range(deals):
        clock.switch(spent["batched"], made["batched"])
        started = time.perf_counter()
        for _ in range(min(batch_size, prompts - deal * batch_size)):
            next(stream)
        total["batched"] += time.perf_counter() - started
        clock.switch(spent["alone"], made["alone"])
        part = chosen[deal::deals]
        started = time.perf_counter()
        list(alone.generate([asked[i] for i in part], BARE, decoding))
        means.append((time.perf_counter() - started) / len(part))
        total["alone"] += means[-1] * len(part)
    clock.restore()
    scale = {"batched": 1.0, "alone": prompts / single}
    seconds = {side: total[side] * scale[side] for side in total}
    ratios = [mean * prompts / seconds["batched"] for mean in means]
    print(
        f"\n{dtype}, {torch.get_num_threads()} threads, batches of {batch_size}; one at a time: {single} of {prompts}"
    )
    print(f"{f'seconds for {prompts} prompts':24}{'batched':>10}{'one at a time':>15}{'ratio':>8}")
    for phase in PHASES[:-1]:
        pair = [spent[side][phase] * scale[side] for side in ("batched", "alone")]
        print(f"{phase:24}{pair[0]:10.2f}{pair[1]:15.2f}{pair[1] / max(pair[0], 1e-9):8.1f}")
    rest = [seconds[side] - sum(spent[side].values()) * scale[side] for side in ("batched", "alone")]
    print(f"{'rest':24}{rest[0]:10.2f}{rest[1]:15.2f}")
    print(f"{'all':24}{seconds['batched']:10.2f}{seconds['alone']:15.2f}{seconds['alone'] / seconds['batched']:8.1f}")
    speeds = [prompts * NEW / seconds[side] for side in ("batched", "alone")]
    print(f"{'new tokens per second':24}{speeds[0]:10.1f}{speeds[1]:15.1f}")
    print(f"ratio {seconds['alone'] / seconds['batched']:.1f} (over the deals {min(ratios):.1f} to {max(ratios):.1f})")
    flips = [prompt for prompt, row in made["alone"].items() if made["batched"][prompt] != row]
    gaps = sorted(gap(model, prompt, made["alone"][prompt], made["batched"][prompt]) for prompt in flips)
    print(f"flips: {len(flips)} of {single}; best logits apart where they part: {[f'{g:.1e}' for g in gaps]}")
    return dtype != "float32" or all(g < TIE for g in gaps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--single", type=int, default=20, help="prompts that are answered one at a time")
    chosen = parser.parse_args()
    within = [compare(dtype, chosen.batch_size, chosen.prompts, chosen.single) for dtype in chosen.dtype]
    if not all(within):
        raise SystemExit("an fp32 flip where the two best logits were not within 1e-4")


if __name__ == "__main__":
    main()
