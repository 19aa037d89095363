"""Step time and peak memory of each defense as a ratio to plain fine-tuning, and the same of naive versions.

    python benchmarks/steps.py defenses --weights lora --accumulation 1 --out results/steps-lora-1.json
    python benchmarks/steps.py antidote --out results/antidote.json
    python benchmarks/steps.py plain --dtype float32 --out results/plain-float32.json
    python benchmarks/steps.py table results/*.json            # the tables of docs/benchmarks.md

`defenses`: whole trainings with the real `DefenseTrainer` (and, for the naive rules, TRL's SFTTrainer) take turns, one
optimizer step each (`measure.Relay`), over one model, on batches of 8 x 64 tokens of which 15 of 64 have a label (as
in the embedded alignment set); with accumulation 4, a step has 4 micro-batches of 2 x 64. All score labels only, as
the pipeline does. A sparse variant's cost at another `every` follows from its two kinds of step, timed apart.
Memory is the allocator's exact peak over two steps, optimizer state and anchors included, beyond plain training's.

`antidote`: a repair against one batched forward pass over the same calibration set (without the LM head), and against
the reference's manner.

`plain`: tokens per second of plain fine-tuning on the embedded alignment set, before and after what the library does;
`profile`: what its steps take by operator.

Every command has `--tiny`: a model of two layers, to see that it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, get_peft_model
from trl import SFTConfig
from trl.trainer import utils
from trl.trainer.sft_trainer import SFTTrainer

from measure import Relay, median_and_spread, peak_bytes, ratios, shown, write
from mithridate.defenses.booster import Booster
from mithridate.defenses.lisa import Lisa
from mithridate.defenses.vaccine import Vaccine
from mithridate.models import load_model, load_tokenizer, resolve_model
from mithridate.repairs.antidote import Antidote
from mithridate.training.cpu_head import scoring_labels_only
from mithridate.training.trainer import DefenseTrainer
from naive import NaiveBooster, NaiveLisa, NaiveSide, NaiveVaccine, antidote

LENGTH, LABELLED, ROWS = 64, 15, 8
LISA = {"align_steps": 1, "finetune_steps": 9, "rho": 1.0}
ADAPTER = {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "k_proj", "v_proj"]}
EVERY = 4  # of the sparse variants that are timed: both kinds of their steps occur


def build(weights: str, tiny: bool, dtype: torch.dtype = torch.float32, attention: str = "eager") -> tuple[Any, Any]:
    """The model in training shape ("lora", "full"), and its tokenizer."""
    if tiny:
        from tests.tiny import tiny_llama, tiny_tokenizer

        model: Any = tiny_llama(dtype, tie_word_embeddings=True)
        tokenizer = tiny_tokenizer()
    else:
        files = resolve_model("smollm2-135m")
        model, tokenizer = load_model(files, dtype), load_tokenizer(files)
    model.set_attn_implementation(attention)
    if weights == "lora":
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **ADAPTER))
        for p in model.parameters():
            if p.requires_grad:
                p.data = p.data.float()
    return model, tokenizer


def rows(n: int, seed: int, vocabulary: int) -> Dataset:
    """Tokenised rows of one length: random tokens, the last ones with a label."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocabulary, (n, LENGTH), generator=generator).tolist()
    labels = [[-100] * (LENGTH - LABELLED) + row[-LABELLED:] for row in ids]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def arguments(folder: str, steps: int, accumulation: int = 1, **more: Any) -> SFTConfig:
    return SFTConfig(
        folder,
        max_steps=steps,
        per_device_train_batch_size=ROWS // accumulation,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=5,
        dataloader_pin_memory=False,
        **more,
    )


# -- the defenses ----------------------------------------------------------------------------------------------------


def contestants(vocabulary: int) -> dict[str, Callable[..., Any]]:
    """What is timed: a constructor of its trainer, by name."""
    side = rows(64, 2, vocabulary)

    def defended(make: Callable[[], Any]) -> Callable[..., Any]:
        return lambda **kwargs: DefenseTrainer(defense=make(), **kwargs)

    return {
        "plain": defended(lambda: None),
        "lisa": defended(lambda: Lisa(alignment_dataset=side, proximal_start=0.0, **LISA)),
        "vaccine": defended(lambda: Vaccine(rho=1.0)),
        "booster": defended(lambda: Booster(harmful_dataset=side)),
        f"vaccine, every={EVERY}": defended(lambda: Vaccine(rho=1.0, every=EVERY)),
        f"booster, every={EVERY}": defended(lambda: Booster(harmful_dataset=side, every=EVERY)),
        "naive lisa": partial(NaiveLisa, side=side, **LISA),
        "naive vaccine": partial(NaiveVaccine, rho=1.0),
        "naive booster": partial(NaiveBooster, side=side, alpha=0.1, lam=5.0),
    }


def defenses(
    weights: str, accumulation: int, rounds: int, warmup: int, only: list[str] | None, memory: bool, tiny: bool
) -> dict[str, Any]:
    model, tokenizer = build(weights, tiny)
    steps = warmup + rounds
    makers = {
        name: make
        for name, make in contestants(len(tokenizer)).items()
        if only is None or name in only or name == "plain"
    }
    with tempfile.TemporaryDirectory() as folder:

        def trainer(make: Callable[..., Any], count: int) -> Any:
            return make(
                model=model,
                args=arguments(folder, count, accumulation),
                train_dataset=rows(ROWS * count, 1, len(tokenizer)),
                processing_class=tokenizer,
            )

        lisa_needs = max(steps, sum(LISA[k] for k in ("align_steps", "finetune_steps")))
        peaks: dict[str, int] = {}
        if memory:
            for name, make in makers.items():
                # Lisa is given no run shorter than its cycle; two steps of it are enough here
                t = trainer(make, lisa_needs)
                t.add_callback(_StopAfter(2))
                model.zero_grad()
                with scoring_labels_only(model):
                    peaks[name] = peak_bytes(t.train)
                del t
        seconds = {}
        if rounds:
            trainers = {}
            for name, make in makers.items():
                trainers[name] = trainer(make, lisa_needs)
                trainers[name].add_callback(_StopAfter(steps))
            with scoring_labels_only(model):
                seconds = Relay(trainers).run()
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    found = model.config.num_hidden_layers * (ROWS // accumulation) * LENGTH * model.config.hidden_size * 4
    result: dict[str, Any] = {
        "benchmark": "defenses",
        "weights": weights,
        "accumulation": accumulation,
        "tokens_in_a_step": ROWS * LENGTH,
        "trainable_bytes": trained,
        "perturbation_bytes": found,
        "seconds": seconds,
        "warmup": warmup,
        "peak_bytes": peaks,
    }
    if seconds:
        result["ratios"] = ratios(seconds, "plain", warmup)
        for name in seconds:
            if ", every=" in name:
                result["ratios"] |= _kinds(name, seconds, warmup)
    return result


def _kinds(name: str, seconds: dict[str, list[float]], warmup: int) -> dict[str, Any]:
    """The ratios of a sparse variant's two kinds of step, and what follows for a probe in every 100th step."""
    pairs = list(enumerate(zip(seconds[name], seconds["plain"])))[warmup:]
    taken, left = ([pair for step, pair in pairs if bool(step % EVERY) == plain] for plain in (False, True))
    if not taken or not left:
        return {}
    a, b = (
        median_and_spread(x / y for x, y in part)
        | {"fastest": min(x for x, _ in part) / min(seconds["plain"][warmup:])}
        for part in (left, taken)
    )
    at = {f"{name.split(',')[0]}, every={k}, computed": (k - 1) / k for k in (2, 8, 100)}
    kinds = ("median", "low", "high", "fastest")
    mixed = {n: {k: share * a[k] + (1 - share) * b[k] for k in kinds} for n, share in at.items()}
    return {f"{name}: its plain steps": a} | mixed


class _StopAfter:
    """A callback that ends training after so many steps, whatever max_steps plans."""

    def __new__(cls, steps: int) -> Any:
        from transformers import TrainerCallback

        class Stop(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop = state.global_step >= steps

        return Stop()


# -- Antidote ---------------------------------------------------------------------------------------------------------


def repair(rounds: int, tiny: bool) -> dict[str, Any]:
    from mithridate.data.embedded import embedded_records
    from mithridate.repairs.input_norms import token_ids

    model, tokenizer = build("lora", tiny, attention="sdpa")
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.02)
    calibration = embedded_records("calibration_harmful")
    ids = sorted(token_ids(calibration, tokenizer), key=len, reverse=True)
    decoder = model.get_base_model().base_model
    settings = {"ratio": 0.1}

    def batched() -> None:
        model.eval()
        with torch.inference_mode():
            for start in range(0, len(ids), ROWS):
                batch = ids[start : start + ROWS]
                width = len(batch[0])
                mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in batch])
                padded = torch.tensor([r + [0] * (width - len(r)) for r in batch])
                decoder(input_ids=padded, attention_mask=mask, use_cache=False)

    def ours(targets: str) -> Any:
        report = Antidote(targets=targets, **settings).apply(  # type: ignore[arg-type]
            model, calibration, tokenizer, batch_size=ROWS
        )
        return report

    seconds: dict[str, list[float]] = {"one batched forward pass": [], "antidote": [], "reference manner": []}
    masks: dict[str, Any] = {}
    for _ in range(rounds):
        for name, work in (
            ("one batched forward pass", batched),
            ("antidote", lambda: ours("adapters")),
            ("reference manner", lambda: antidote(model, ids, settings["ratio"])),
        ):
            began = time.perf_counter()
            masks[name] = work()
            seconds[name].append(time.perf_counter() - began)
            if name == "antidote":
                masks[name].undo(model)
    same = sum(
        int((masks["reference manner"][n] == masks["antidote"].mask[n]).sum()) for n in masks["reference manner"]
    )
    everything = sum(m.numel() for m in masks["reference manner"].values())
    warm = 1 if rounds > 1 else 0
    return {
        "benchmark": "antidote",
        "rows": len(ids),
        "tokens": sum(map(len, ids)),
        "seconds": seconds,
        "warmup": warm,
        "ratios": ratios(seconds, "one batched forward pass", warm),
        "same_entries": same / everything,
    }


# -- plain fine-tuning ------------------------------------------------------------------------------------------------


class Within:
    """Makes a trainer class whose training steps run inside a context of their own."""

    def __new__(cls, base: type, context: Callable[[Any], Any]) -> type:
        class Trainer(base):  # type: ignore[misc,valid-type]
            def training_step(self, *args: Any, **kwargs: Any) -> Any:
                with context(self.model):
                    return super().training_step(*args, **kwargs)

        return Trainer


@contextlib.contextmanager
def trls_head_on_labels(model: Any) -> Iterator[None]:
    """What the pipeline had before `cpu_head`: TRL's own head, told to leave out positions without a label."""
    with mock.patch.object(utils, "_use_triton", lambda device: True):
        yield


BEFORE = "TRL as it is, every row padded to 200 tokens"
AFTER = "the same, rows of like length together"
VARIANTS: dict[str, tuple[type, dict[str, Any]]] = {
    BEFORE: (NaiveSide, {"pad_to_multiple_of": 200}),
    "TRL as it is": (SFTTrainer, {}),
    "labels only": (Within(DefenseTrainer, trls_head_on_labels), {}),
    "labels only, probabilities kept": (Within(DefenseTrainer, scoring_labels_only), {}),
    AFTER: (Within(DefenseTrainer, scoring_labels_only), {"train_sampling_strategy": "group_by_length"}),
}


def on_the_embedded_set(
    names: Iterable[str], weights: str, dtype: str, steps: int, tiny: bool, folder: str
) -> Iterator[tuple[str, Any]]:
    """A trainer of plain fine-tuning for each of these `VARIANTS`, over one model."""
    from mithridate.data.embedded import embedded_records
    from mithridate.data.records import training_dataset

    model, tokenizer = build(weights, tiny, getattr(torch, dtype))
    data = training_dataset(embedded_records("alignment"), tokenizer)
    for name in names:
        cls, more = VARIANTS[name]
        args = arguments(folder, steps, **more)
        yield name, cls(model=model, args=args, train_dataset=data, processing_class=tokenizer)


def plain(weights: str, dtype: str, rounds: int, warmup: int, only: list[str] | None, tiny: bool) -> dict[str, Any]:
    steps = warmup + rounds
    trainers, tokens = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, t in on_the_embedded_set(only or VARIANTS, weights, dtype, steps, tiny, folder):
            trainers[name], tokens[name] = t, []
            t.data_collator = _counting(t.data_collator, tokens[name])
        seconds = Relay(trainers).run()
    speed = {
        name: sum(tokens[name][warmup:steps]) / sum(times[warmup:]) for name, times in seconds.items()
    }  # real tokens: pads are no work done
    return {
        "benchmark": "plain",
        "weights": weights,
        "dtype": dtype,
        "seconds": seconds,
        "warmup": warmup,
        "tokens_per_second": speed,
        "seconds_of_a_step": {n: statistics.median(v[warmup:]) for n, v in seconds.items()},
    }


def operators(weights: str, dtype: str, rounds: int, warmup: int, tiny: bool) -> dict[str, Any]:
    """Seconds a step that each operator takes by itself, before and after what the library does."""
    from torch.profiler import ProfilerActivity, profile

    own: dict[str, dict[str, float]] = {}
    steps = warmup + rounds
    with tempfile.TemporaryDirectory() as folder:
        for name, t in on_the_embedded_set((BEFORE, AFTER), weights, dtype, steps, tiny, folder):
            with profile(activities=[ProfilerActivity.CPU]) as found:
                t.train()
            own[name] = {e.key: e.self_cpu_time_total / 1e6 / steps for e in found.key_averages()}
    return {"benchmark": "operators", "weights": weights, "dtype": dtype, "seconds": own}


def _counting(collate: Callable[[Any], Any], into: list[int]) -> Callable[[Any], Any]:
    def counted(examples: Any) -> Any:
        batch = collate(examples)
        into.append(int(batch["attention_mask"].sum()))
        return batch

    return counted


# -- tables -----------------------------------------------------------------------------------------------------------


def table(paths: list[Path]) -> str:
    """Markdown tables of result files."""
    lines = []
    for result in (json.loads(path.read_text()) for path in paths):
        if result["benchmark"] == "plain":
            lines += [f"Plain fine-tuning, {result['weights']}, {result['dtype']}:", "", "| | tokens/s | s a step |"]
            lines += ["|---|---|---|"]
            lines += [
                f"| {name} | {speed:.0f} | {result['seconds_of_a_step'][name]:.2f} |"
                for name, speed in result["tokens_per_second"].items()
            ]
        elif result["benchmark"] == "operators":
            before, after = result["seconds"][BEFORE], result["seconds"][AFTER]
            most = sorted(before | after, key=lambda k: -max(before.get(k, 0), after.get(k, 0)))[:10]
            shares = [(k, before.get(k, 0.0), after.get(k, 0.0)) for k in most]
            total = [sum(before.values()), sum(after.values())]
            shares.append(("all others", *(t - sum(s[i] for s in shares) for i, t in enumerate(total, 1))))
            lines += ["| operator | before, s a step | after |", "|---|---|---|"]
            lines += [f"| {k} | {b:.2f} | {a:.2f} |" for k, b, a in [*shares, ("all", *total)]]
        else:
            title = (
                f"{result['weights']}, accumulation {result['accumulation']}"
                if result["benchmark"] == "defenses"
                else f"Antidote, {result['rows']} rows, {result['tokens']} tokens"
            )
            lines += [f"{title}:", "", "| | time, x | fastest steps, x | seconds | extra memory, MB |"]
            lines += ["|---|---|---|---|---|"]
            peaks = result.get("peak_bytes", {})
            for name in dict.fromkeys([*result.get("ratios", {}), *peaks]):
                ratio = result.get("ratios", {}).get(name)
                took = result["seconds"].get(name)
                seconds = f"{statistics.median(took[result['warmup'] :]):.2f}" if took else ""
                extra = f"{(peaks[name] - peaks['plain']) / 1e6:.1f}" if name in peaks else ""
                fastest = f"{ratio['fastest']:.2f}" if ratio and "fastest" in ratio else ""
                lines.append(f"| {name} | {shown(ratio) if ratio else ''} | {fastest} | {seconds} | {extra} |")
            if "trainable_bytes" in result:
                lines += ["", f"Trainable weights: {result['trainable_bytes'] / 1e6:.1f} MB; one micro-batch's "]
                lines[-1] += f"attention outputs: {result['perturbation_bytes'] / 1e6:.1f} MB."
        lines.append("")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("defenses", "antidote", "plain", "profile"):
        command = commands.add_parser(name)
        command.add_argument("--tiny", action="store_true")
        command.add_argument("--rounds", type=int, default={"antidote": 4, "profile": 1}.get(name, 8))
        command.add_argument("--out", type=Path)
        if name != "antidote":
            command.add_argument("--weights", choices=("lora", "full"), default="lora")
            command.add_argument("--warmup", type=int, default=1)
        if name in ("defenses", "plain"):
            command.add_argument("--only", nargs="*", help="rows of the table")
        if name == "defenses":
            command.add_argument("--accumulation", type=int, choices=(1, 2, 4), default=1)
            command.add_argument("--no-memory", action="store_true")
        if name in ("plain", "profile"):
            command.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    commands.add_parser("table").add_argument("files", nargs="+", type=Path)
    args = parser.parse_args(argv)
    disable_progress_bars()
    if args.command == "table":
        print(table(args.files))
        return None
    if args.command == "defenses":
        result = defenses(
            args.weights, args.accumulation, args.rounds, args.warmup, args.only, not args.no_memory, args.tiny
        )
    elif args.command == "antidote":
        result = repair(args.rounds, args.tiny)
    elif args.command == "profile":
        result = operators(args.weights, args.dtype, args.rounds, args.warmup, args.tiny)
    else:
        result = plain(args.weights, args.dtype, args.rounds, args.warmup, args.only, args.tiny)
    write(args.out, result)
    print(json.dumps({k: v for k, v in result.items() if k != "seconds"}, indent=1))
    return result


if __name__ == "__main__":
    main()
