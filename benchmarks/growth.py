"""How the cost of a step grows with the model, the batch, what is trained, and the number of processes.

    python benchmarks/growth.py axes --out results/growth-axes.json
    python benchmarks/growth.py processes --out results/growth-processes.json
    python benchmarks/growth.py largest --gigabytes 8 --out results/growth-largest.json
    python benchmarks/growth.py table results/growth-*.json

`axes`: small random Llamas, full weights in float32. One thing grows at a time; plain fine-tuning and the three
defenses take turns step by step. For time and for the allocator's exact peak: the exponent of a power law, fitted by
least squares to the logarithms, with its 95 % interval. What is trained grows from the first layers on, so that the
backward pass always runs through the whole model.

`processes`: the same step of 8 rows on one process and on two (gloo, one thread each).

`largest`: the largest of a list of models that a training with each method still held in so much memory (the kernel
ends the worker's allocations there), full weights, AdamW, one row of 64 tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig

from measure import Relay, peak_bytes, write
from mithridate.defenses.booster import Booster
from mithridate.defenses.lisa import Lisa
from mithridate.defenses.vaccine import Vaccine
from mithridate.training.cpu_head import scoring_labels_only
from mithridate.training.trainer import DefenseTrainer
from tests.tiny import tiny_tokenizer

METHODS = ("plain", "lisa", "vaccine", "booster")
BASE = {"width": 256, "depth": 4, "length": 64, "batch": 8, "share": 1.0}
AXES = {
    "width": [128, 256, 512, 768],
    "depth": [2, 4, 8, 16],
    "length": [32, 64, 128, 256],
    "batch": [2, 4, 8, 16],
    "share": [0.25, 0.5, 0.75, 1.0],
}
TINY = {"width": 32, "depth": 4, "length": 16, "batch": 2, "share": 1.0}
TINY_AXES = {"width": [32, 64], "share": [0.5, 1.0]}
SIZES = [(512, 8), (768, 12), (1024, 12), (1024, 16), (1280, 16), (1280, 20), (1536, 20), (1536, 24)]
VOCABULARY = 1024


def llama(width: int, depth: int, share: float = 1.0) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=depth,
        num_attention_heads=max(width // 64, 1),
        num_key_value_heads=max(width // 64, 1),
        tie_word_embeddings=False,
        attn_implementation="eager",
        pad_token_id=2,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    for number, layer in enumerate(model.model.layers):
        layer.requires_grad_(number < round(share * depth))
    model.model.embed_tokens.requires_grad_(False)
    model.lm_head.requires_grad_(False)
    return model


def rows(n: int, length: int, seed: int) -> Dataset:
    ids = torch.randint(3, VOCABULARY, (n, length), generator=torch.Generator().manual_seed(seed)).tolist()
    half = length // 2
    return Dataset.from_dict({"input_ids": ids, "labels": [[-100] * half + row[half:] for row in ids]})


def trainer(method: str, model: Any, case: dict[str, Any], steps: int, folder: str) -> DefenseTrainer:
    side = rows(32, case["length"], seed=2)
    defense = {
        "plain": lambda: None,
        "lisa": lambda: Lisa(alignment_dataset=side, align_steps=1, finetune_steps=1, proximal_start=0.0),
        "vaccine": lambda: Vaccine(rho=1.0),
        "booster": lambda: Booster(harmful_dataset=side),
    }[method]()
    args = SFTConfig(
        folder,
        max_steps=steps,
        per_device_train_batch_size=case["batch"],
        learning_rate=1e-6,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=100,
        dataloader_pin_memory=False,
    )
    data = rows(case["batch"] * steps * int(os.environ.get("WORLD_SIZE", 1)), case["length"], seed=1)
    return DefenseTrainer(
        model=model, args=args, train_dataset=data, processing_class=tiny_tokenizer(), defense=defense
    )


def axes(rounds: int, tiny: bool) -> dict[str, Any]:
    base, grown = (TINY, TINY_AXES) if tiny else (BASE, AXES)
    points: dict[str, Any] = {}
    for axis, values in grown.items():
        for value in values:
            case = base | {axis: value}
            model = llama(case["width"], case["depth"], case["share"])
            with tempfile.TemporaryDirectory() as folder:
                measured = {m: trainer(m, model, case, 2, folder) for m in METHODS}
                racing = {m: trainer(m, model, case, rounds + 2, folder) for m in METHODS}
                with scoring_labels_only(model):
                    peaks = {m: peak_bytes(t.train) for m, t in measured.items()}
                    seconds = {m: statistics.median(v[2:]) for m, v in Relay(racing).run().items()}
            held = sum(p.numel() * 4 for p in model.parameters())  # not made while it ran, and needed
            points.setdefault(axis, []).append(
                {"value": value, "seconds": seconds, "bytes": {m: p + held for m, p in peaks.items()}}
            )
    return {
        "benchmark": "growth",
        "part": "axes",
        "base": base,
        "points": points,
        "exponents": {axis: _exponents(found) for axis, found in points.items()},
    }


def _exponents(points: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        what: {m: exponent([p["value"] for p in points], [p[what][m] for p in points]) for m in METHODS}
        for what in ("seconds", "bytes")
    }


def exponent(xs: list[float], ys: list[float]) -> dict[str, float | None]:
    """The b of y = a * x^b, with its 95 % interval (None where there are too few points for one)."""
    from scipy import stats

    fit = stats.linregress([math.log(x) for x in xs], [math.log(y) for y in ys])
    if len(xs) < 3:
        return {"value": fit.slope, "low": None, "high": None}
    half = float(stats.t.ppf(0.975, len(xs) - 2)) * fit.stderr
    return {"value": fit.slope, "low": fit.slope - half, "high": fit.slope + half}


# -- several processes ------------------------------------------------------------------------------------------------


def processes(rounds: int, tiny: bool) -> dict[str, Any]:
    seconds: dict[str, Any] = {}
    for world in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            base = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
            base |= {"GLOO_SOCKET_IFNAME": "lo"}
            workers = [
                subprocess.Popen(
                    [sys.executable, __file__, "worker", folder, str(rounds), *(["--tiny"] if tiny else [])],
                    env=os.environ | base | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                )
                for rank in range(world)
            ]
            ends = [worker.wait() for worker in workers]
            if any(ends):
                raise RuntimeError("a worker failed")
            seconds[str(world)] = json.loads((Path(folder) / "seconds.json").read_text())
    return {
        "benchmark": "growth",
        "part": "processes",
        "rows_in_a_step": (TINY if tiny else BASE)["batch"],
        "seconds": seconds,
        "speedup": {m: seconds["1"][m] / seconds["2"][m] for m in METHODS},
    }


def worker(folder: str, rounds: int, tiny: bool) -> None:
    """One of the processes; rank 0 writes the median seconds of each method's step."""
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    base = TINY if tiny else BASE
    case = base | {"batch": base["batch"] // world}
    seconds = {}
    for method in METHODS:  # one after the other: turns in several processes would have to be agreed on
        t = trainer(method, llama(case["width"], case["depth"]), case, rounds + 2, folder)
        with scoring_labels_only(t.model):
            seconds[method] = statistics.median(Relay({method: t}).run()[method][2:])
    if rank == 0:
        (Path(folder) / "seconds.json").write_text(json.dumps(seconds))
    if world > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


# -- the largest model ------------------------------------------------------------------------------------------------


def largest(gigabytes: float, tiny: bool) -> dict[str, Any]:
    sizes = [(32, 2), (64, 2)] if tiny else SIZES
    held: dict[str, Any] = {}
    for method in METHODS:
        for width, depth in sizes:
            command = [sys.executable, __file__, "hold", method, str(width), str(depth), str(gigabytes)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                held.setdefault(method, None)
                break
            held[method] = json.loads(done.stdout.splitlines()[-1])
    return {"benchmark": "growth", "part": "largest", "gigabytes": gigabytes, "held": held}


def hold(method: str, width: int, depth: int, gigabytes: float) -> None:
    """Two steps of a training under a limit on this process's data; ends with an error where it does not suffice."""
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    model = llama(width, depth)
    case = {"batch": 1, "length": 64}
    with tempfile.TemporaryDirectory() as folder:
        t = trainer(method, model, case, 2, folder)
        with scoring_labels_only(model):
            t.train()
    parameters = sum(p.numel() for p in model.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"width": width, "depth": depth, "parameters": parameters, "peak_bytes": peak}))


def table(paths: list[Path]) -> str:
    lines = []
    for result in (json.loads(path.read_text()) for path in paths):
        if result["part"] == "axes":
            lines += ["| grows | from, to | " + " | ".join(f"time, {m} | memory, {m}" for m in METHODS) + " |"]
            lines += ["|---" * (2 + 2 * len(METHODS)) + "|"]
            for axis, fits in result["exponents"].items():
                values = [p["value"] for p in result["points"][axis]]
                cells = [_shown(fits[what][m]) for m in METHODS for what in ("seconds", "bytes")]
                lines.append(f"| {axis} | {values[0]} to {values[-1]} | " + " | ".join(cells) + " |")
        elif result["part"] == "processes":
            lines += ["| | one process, s | two, s | speed-up |", "|---|---|---|---|"]
            one, two = result["seconds"]["1"], result["seconds"]["2"]
            lines += [f"| {m} | {one[m]:.3f} | {two[m]:.3f} | {result['speedup'][m]:.2f} |" for m in METHODS]
        else:
            lines += [f"Within {result['gigabytes']:g} GiB:", "", "| | parameters, millions | resident, GB |"]
            lines += ["|---|---|---|"]
            for method, found in result["held"].items():
                cells = f"{found['parameters'] / 1e6:.0f} | {found['peak_bytes'] / 1e9:.1f}" if found else "none | "
                lines.append(f"| {method} | {cells} |")
        lines.append("")
    return "\n".join(lines)


def _shown(fit: dict[str, Any]) -> str:
    interval = "" if fit["low"] is None else f" ({fit['low']:.2f} to {fit['high']:.2f})"
    return f"{fit['value']:.2f}{interval}"


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("axes", "processes", "largest"):
        command = commands.add_parser(name)
        command.add_argument("--tiny", action="store_true")
        command.add_argument("--out", type=Path)
        if name == "largest":
            command.add_argument("--gigabytes", type=float, default=8.0)
        else:
            command.add_argument("--rounds", type=int, default=4)
    commands.add_parser("table").add_argument("files", nargs="+", type=Path)
    inner = commands.add_parser("worker", help="started by `processes`")
    inner.add_argument("folder")
    inner.add_argument("rounds", type=int)
    inner.add_argument("--tiny", action="store_true")
    inner = commands.add_parser("hold", help="started by `largest`")
    inner.add_argument("method", choices=METHODS)
    inner.add_argument("width", type=int)
    inner.add_argument("depth", type=int)
    inner.add_argument("gigabytes", type=float)
    args = parser.parse_args(argv)
    disable_progress_bars()
    if args.command == "table":
        print(table(args.files))
    elif args.command == "worker":
        worker(args.folder, args.rounds, args.tiny)
    elif args.command == "hold":
        hold(args.method, args.width, args.depth, args.gigabytes)
    else:
        if args.command == "axes":
            result = axes(args.rounds, args.tiny)
        elif args.command == "processes":
            result = processes(args.rounds, args.tiny)
        else:
            result = largest(args.gigabytes, args.tiny)
        write(args.out, result)
        print(json.dumps(result, indent=1))
        return result
    return None


if __name__ == "__main__":
    main()
