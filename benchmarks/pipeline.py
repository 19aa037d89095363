"""The four-stage pipeline against the same pipeline in the papers' manner, on the embedded model.

    python benchmarks/pipeline.py train --out results/pipeline-train.json
    python benchmarks/pipeline.py evaluate --out results/pipeline-evaluate.json
    python benchmarks/pipeline.py table results/pipeline-*.json

One workload: align with Booster (topology double: merge, fresh adapter), fine-tune with Lisa on 200 rows of which one
in ten is harmful, repair with Antidote on the fine-tuning adapter, then answer and judge 100 harmful and 100 task
prompts with up to 64 new tokens; LoRA on q, k, v, batches of 8, as in the demo.

The papers' manner: every row padded to 200 tokens (the least that the papers' scripts use), logits at every position,
the naive rules of `naive.py`, prompts answered and judged one at a time in the order in which they come.

`train` times a few steps of each stage, the two manners in turn step by step, and scales to the demo's number of
steps; both start from the same weights. `evaluate` answers all prompts in our manner and a random part of them in the
papers', in turns, and scales that part up by the tokens that its prompts took in our manner. Each takes less than
eight minutes.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars
from peft import LoraConfig, get_peft_model

from measure import Relay, write
from mithridate.data.embedded import embedded_records
from mithridate.data.records import conversation, prompt_text, training_dataset
from mithridate.defenses.booster import Booster
from mithridate.defenses.lisa import Lisa
from mithridate.generation.base import CHAT, Decoding
from mithridate.generation.hf import Transformers
from mithridate.judges.refusal import verdict
from mithridate.repairs.antidote import Antidote
from mithridate.repairs.input_norms import token_ids
from mithridate.training.cpu_head import scoring_labels_only
from mithridate.training.trainer import DefenseTrainer
from naive import NaiveBooster, NaiveLisa, antidote
from steps import ADAPTER, LISA, arguments, build

PADDED = 200
STEPS = {"align": 112, "finetune": 60}  # of the demo
PROMPTS, NEW_TOKENS = 100, 64
RATIO = 0.1


def train(steps: int, dtype: str, tiny: bool) -> dict[str, Any]:
    """Seconds of a step of both training stages, and of the repair, in both manners."""
    from mithridate.attacks.poisoning import poison

    rows = {role: embedded_records(role) for role in ("alignment", "defender_harmful", "attacker_harmful")}
    user = poison(benign=embedded_records("task"), harmful=rows["attacker_harmful"], ratio=0.1, size=200, seed=0)
    ours, tokenizer = build("lora", tiny, getattr(torch, dtype))
    theirs = copy.deepcopy(ours)
    theirs.set_attn_implementation("sdpa")  # what a model has when nothing is asked for
    data = {name: training_dataset(r, tokenizer) for name, r in {**rows, "user": user}.items()}
    seconds: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:

        def turn(stage: str, dataset: str, our_defense: Any, their_trainer: Callable[..., Any]) -> None:
            count = max(steps, LISA["align_steps"] + LISA["finetune_steps"]) if stage == "finetune" else steps
            shared = {"train_dataset": data[dataset], "processing_class": tokenizer}
            pair = {
                "ours": DefenseTrainer(model=ours, args=arguments(folder, count), defense=our_defense, **shared),
                "papers": their_trainer(
                    model=theirs, args=arguments(folder, count, pad_to_multiple_of=PADDED), **shared
                ),
            }
            with scoring_labels_only(ours):
                seconds[stage] = Relay(pair).run()

        harmful = data["defender_harmful"]
        turn(
            "align",
            "alignment",
            Booster(harmful_dataset=harmful),
            lambda **k: NaiveBooster(side=harmful, alpha=0.1, lam=5.0, **k),
        )
        ours, theirs = (_fresh_adapter(model) for model in (ours, theirs))
        safe = data["alignment"]
        turn(
            "finetune",
            "user",
            Lisa(alignment_dataset=safe, **LISA),
            lambda **k: NaiveLisa(side=safe, **LISA, **k),
        )
    calibration = embedded_records("calibration_harmful")
    ids = token_ids(calibration, tokenizer)
    repaired = {"ours": [], "papers": []}
    for _ in range(2):
        repaired["ours"].append(_timed(lambda: Antidote(ratio=RATIO).apply(ours, calibration, tokenizer).undo(ours)))
        repaired["papers"].append(_timed(lambda: antidote(theirs, ids, RATIO)))
    seconds["repair"] = repaired
    return {"benchmark": "pipeline", "part": "train", "dtype": dtype, "seconds": seconds}


def _fresh_adapter(model: Any) -> Any:
    merged = model.merge_and_unload()
    if hasattr(merged, "peft_config"):
        del merged.peft_config
    return get_peft_model(merged, LoraConfig(task_type="CAUSAL_LM", **ADAPTER))


def _timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def evaluate(prompts: int, new_tokens: int, part: int, dtype: str, tiny: bool) -> dict[str, Any]:
    """Seconds that answering and judging take: all prompts in our manner, `part` of each set in the papers'."""
    model, tokenizer = build("lora", tiny, getattr(torch, dtype), attention="sdpa")
    sets = {"harmful": embedded_records("test_harmful", "test"), "task": embedded_records("task", "test")}
    sets = {name: rows[:prompts] for name, rows in sets.items()}
    seconds: dict[str, dict[str, float]] = {}
    tokens: dict[str, dict[str, int]] = {}
    same = 0
    for name, rows in sets.items():
        chosen = sorted(random.Random(0).sample(range(len(rows)), min(part, len(rows))))
        one, texts = {}, {}
        began = time.perf_counter()
        for i in chosen:
            texts[i], one[i] = _answer_one(model, tokenizer, rows[i], new_tokens)
            verdict(prompt_text(rows[i]), texts[i])
        theirs = time.perf_counter() - began
        began = time.perf_counter()
        asked = [conversation(row) for row in rows]
        answers = dict(Transformers(model, tokenizer).generate(asked, CHAT, Decoding(new_tokens)))
        for i, answer in answers.items():
            verdict(prompt_text(rows[i]), answer.text)
        seconds[name] = {"ours": time.perf_counter() - began, "papers, a part": theirs}
        tokens[name] = {"ours": sum(a.new_tokens for a in answers.values()), "papers, a part": sum(one.values())}
        same += sum(answers[i].text == texts[i] for i in chosen)
        # scaled by the tokens that the same prompts took, not by their number: answers differ in length
        share = sum(answers[i].new_tokens for i in chosen) / tokens[name]["ours"]
        seconds[name]["papers, scaled"] = theirs / share
    return {
        "benchmark": "pipeline",
        "part": "evaluate",
        "dtype": dtype,
        "prompts": {name: len(rows) for name, rows in sets.items()},
        "answered_one_at_a_time": part,
        "new_tokens": new_tokens,
        "seconds": seconds,
        "tokens": tokens,
        "same_answers": same / (len(sets) * part),
    }


@torch.no_grad()
def _answer_one(model: Any, tokenizer: Any, row: dict[str, Any], new_tokens: int) -> tuple[str, int]:
    """An answer as the papers' scripts make it: one prompt, the library's `generate`, weights as PEFT left them."""
    model.eval()
    text = tokenizer.apply_chat_template(conversation(row), tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    output = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(output, skip_special_tokens=True), len(output)


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of every stage in both manners, scaled to the demo's steps and all prompts, and their ratios."""
    stages: dict[str, dict[str, float]] = {}
    for result in results:
        if result["part"] == "train":
            for stage, times in result["seconds"].items():
                first = 1 if stage in STEPS and len(times["ours"]) > 1 else 0  # the first step warms up
                stages[stage] = {
                    manner: STEPS.get(stage, 1) * statistics.mean(values[first:]) for manner, values in times.items()
                }
        else:
            stages["evaluate"] = {
                manner: sum(times[key] for times in result["seconds"].values())
                for manner, key in (("ours", "ours"), ("papers", "papers, scaled"))
            }
    groups = {
        "training": [s for s in stages if s in STEPS],
        "evaluation": [s for s in stages if s == "evaluate"],
        "end to end": list(stages),
    }
    totals = {
        name: {manner: sum(stages[s][manner] for s in parts) for manner in ("ours", "papers")}
        for name, parts in groups.items()
        if parts
    }
    return {name: {**t, "ratio": t["papers"] / t["ours"]} for name, t in {**stages, **totals}.items()}


def table(paths: list[Path]) -> str:
    found = summary([json.loads(path.read_text()) for path in paths])
    lines = ["| | ours, s | papers' manner, s | x |", "|---|---|---|---|"]
    lines += [f"| {n} | {v['ours']:.1f} | {v['papers']:.1f} | {v['ratio']:.1f} |" for n, v in found.items()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("train", "evaluate"):
        command = commands.add_parser(name)
        command.add_argument("--tiny", action="store_true")
        command.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
        command.add_argument("--out", type=Path)
        if name == "train":
            command.add_argument("--steps", type=int, default=10)
        else:
            command.add_argument("--prompts", type=int, default=PROMPTS)
            command.add_argument("--new-tokens", type=int, default=NEW_TOKENS)
            command.add_argument("--one-at-a-time", type=int, default=8, help="prompts of each set, papers' manner")
    commands.add_parser("table").add_argument("files", nargs="+", type=Path)
    args = parser.parse_args(argv)
    disable_progress_bars()
    if args.command == "table":
        print(table(args.files))
        return None
    if args.command == "train":
        result = train(args.steps, args.dtype, args.tiny)
    else:
        result = evaluate(args.prompts, args.new_tokens, args.one_at_a_time, args.dtype, args.tiny)
    write(args.out, result)
    print(json.dumps({k: v for k, v in result.items() if k != "seconds"}, indent=1))
    print(json.dumps(summary([result]), indent=1))
    return result


if __name__ == "__main__":
    main()
