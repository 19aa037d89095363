"""Writes docs/support_matrix.md from tests that ran: `python -m tests.support_matrix`.

A test that is the evidence for a cell is marked `@pytest.mark.shows(setup, result)`, with `methods=[...]`, or else its
parameter `name` says which method it is about (and its parameter `setup`, where the mark has None). `result` is
"exact" (equal to the naive rule of the paper, or to the one-process twin), "difference" (supported; the note states
the difference) or "refused" (an error with reason and remedy before any compute is spent). The page is written only if
every marked test passed, and a cell without a test is an error; that the page in the repository is the one that the
marks declare is itself tested.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mithridate.results.relations import method_title as title

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "support_matrix.md"
GPU = ROOT / "benchmarks" / "gpu_evidence.json"
# The order of the columns, by table.
TRAINING, REPAIR = ("vaccine", "booster", "lisa"), ("antidote",)
BASELINES = ("lowerlr", "fewersteps", "safetymix", "filter", "kl", "ewc", "ldifs", "ptst")
OTHERS = ("asft", "panacea", "deepenedrefusals", "safegrad", "constrainedsft", "sbr")
ALIGNMENT = ("tvaccine", "ctrap", "repnoise")  # further published defenses of alignment
BASELINE_REPAIRS = ("wiseft", "randommask", "randomnoise", "lox", "safelora", "safedelta", "resta")

SETUPS = {
    "full": "all weights",
    "lora": "LoRA adapter",
    "families": "other families: Qwen 2 and 3, Mistral, Gemma 2 and 3, Phi, Phi 3, OPT, GPT-NeoX, SmolLM 3, "
    "OLMo 2, GPT-2; Mixtral and Qwen 3 (mixture of experts)",
    "no attention": "a family without attention in every layer (Mamba, Qwen 3 Next)",
    "accumulation": "gradient accumulation",
    "expert accumulation": "gradient accumulation, mixture of experts",
    "checkpointing": "activation checkpointing",
    "reentrant": "re-entrant checkpointing",
    "selective": "selective activation checkpointing (TRL's `selective`: attention is kept)",
    "offload": "offloaded checkpointing, activation offloading",
    "dropout": "dropout",
    "padding": "padded batches",
    "packing": "padding-free and packed batches",
    "streaming": "streamed training set",
    "side streaming": "streamed data set of the defense's own",
    "bf16": "bf16 mixed precision over float32 weights",
    "bf16 base": "float32 adapter over bfloat16 weights",
    "bf16 storage": "trained weights stored in 16 bits",
    "fp16": "fp16 mixed precision with loss scaling",
    "ddp": "data parallelism (DDP)",
    "fsdp2": "FSDP2, sharded by `from_pretrained(distributed_config=...)`",
    "fsdp2 tied": "FSDP2, sharded by `from_pretrained`, with tied embeddings that are trained",
    "fsdp accelerate": "FSDP2, sharded by Accelerate's plugin",
    "zero": "DeepSpeed ZeRO",
    "parallel": "tensor, context, sequence, pipeline, expert parallelism; FSDP version 1; FSDP2 in replicas, with CPU "
    "offload, with loss scaling, over a quantised base",
    "devices": "`nn.DataParallel`, a model split over several devices, devices other than CPU and CUDA",
    "quantised": "float32 adapter over a base in 4 bit (QLoRA, bitsandbytes)",
    "quantised 8": "float32 adapter over a base in 8 bit (bitsandbytes)",
    "quantised ddp": "float32 adapter over a base in 4 bit, data parallelism (DDP)",
    "other quantised": "base quantised by other libraries",
    "compile": "`torch.compile`",
    "optimizers": "optimizers that step inside backward (LOMO, `_layerwise`)",
    "other": "DDP with a static graph or bucket views, `auto_find_batch_size`, image data",
    "resume": "resuming from a checkpoint",
    "together": "two defenses in one run",
}
REPAIRS = {
    "adapters": '`targets="adapters"`, both LoRA factors',
    "update": '`targets="update"`, adapter or all weights',
    "merged": '`targets="merged"`',
    "padded": "any batch size, padded rows",
    "undo": "undone, bit for bit, in float32 and bfloat16",
    "families": "other families (as above)",
    "experts": "`update` and `merged` on all weights of a model with fused experts or convolutions",
    "variants": "DoRA and other variants, several active adapters, a merged adapter",
    "quantised factors": "`adapters` over a base in 4 or 8 bit (bitsandbytes)",
    "quantised": "`update` and `merged` on weights in 4 or 8 bit, dequantised (`quantisation.dequantised`)",
    "placement": "sharded weights, devices other than CPU and CUDA",
}
# The baselines, and other published methods, are held to fewer: to what tests run of every method.
_NOT_SHOWN = {
    *("families", "no attention", "expert accumulation", "reentrant", "dropout", "side streaming", "bf16 storage"),
    *("quantised 8", "quantised ddp"),
}
OF_BASELINES = {name: words for name, words in SETUPS.items() if name not in _NOT_SHOWN}
OF_BASELINE_REPAIRS = {
    "weights": "adapter of the fine-tune's own, one adapter through both trainings, all weights",
    "taken back": "saved, and undone bit for bit",
    "without": "without the model that it needs",
}
# What a method has nothing to do with, and why.
NOT_ITS_OWN = {
    **{("ptst", name): "acts at the test alone" for name in OF_BASELINES},
    ("randommask", "without"): "as Antidote",
    ("vaccine", "side streaming"): "has none",
    ("booster", "no attention"): "needs none",
    ("lisa", "no attention"): "needs none",
    ("lisa", "dropout"): "compares no passes",
    ("vaccine", "expert accumulation"): "as without experts",
}
WORDS = {"exact": "**exact**", "difference": "supported", "refused": "refused"}

HEAD = """# Support matrix

Written by `python -m tests.support_matrix` from tests that passed; not by hand. **exact**: equal to a naive
double-precision version of the paper's rule, or to the same run in one process or in the plain set-up, which is so
(the last column names the tests). Models are tiny; several processes are two, on CPU (gloo). Set-ups that cannot be
had on a CPU (DeepSpeed, FSDP through Accelerate, weights quantised by other libraries and the like) are refused
by a trainer attribute, which the test sets.
**supported**: works, with the difference that the note states. **refused**: `UnsupportedSetup`, with the reason and a
remedy, when the trainer is built or the repair begins, before any compute is spent. Nothing is silently approximate.
"""
TAIL = """## Topologies

| topology | Vaccine | Booster | Lisa | Antidote |
|---|---|---|---|---|
| `single` | yes | yes | yes | yes; `adapters` cuts into the alignment too, and says so |
| `double` | yes | yes | yes | yes |
| `full` | yes | yes, float32 weights | yes | `update` and `merged` |

Whether a method *helps* in a topology is another question: [results](results.md) shows it for one small model in
`single`.
"""


def collected(*arguments: str) -> list[dict[str, str]]:
    """What the marked tests show, from a run of pytest with these arguments."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "evidence.json"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "shows", f"--evidence={file}", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, check=False)
        if done.returncode != 0 or not file.exists():
            raise SystemExit(f"pytest ended with {done.returncode}: the page is left as it was.")
        return json.loads(file.read_text(encoding="utf-8"))


def table(evidence: list[dict[str, str]], setups: dict[str, str], methods: tuple[str, ...]) -> str:
    """One row a set-up. Raises ValueError for a cell without a test, or with tests that contradict each other."""
    known = [e for e in evidence if e["method"] in methods and e["setup"] in setups]
    lines = [
        "| set-up | " + " | ".join(map(title, methods)) + " | tests |",
        "|---" * (len(methods) + 2) + "|",
    ]
    for setup, words in setups.items():
        cells, tests = [], set()
        for method in methods:
            shown = [e for e in known if (e["method"], e["setup"]) == (method, setup)]
            tests |= {e["test"] for e in shown}
            results = {e["result"] for e in shown}
            notes = sorted({e["note"] for e in shown if e["note"]})
            if (method, setup) in NOT_ITS_OWN and not shown:
                cells.append(NOT_ITS_OWN[method, setup])
            elif len(results) != 1:
                raise ValueError(f"{method}, {setup}: shown as {sorted(results) or 'nothing'}")
            else:
                cells.append("; ".join([WORDS[results.pop()], *notes]))
        lines.append(f"| {words} | " + " | ".join(cells) + " | " + ", ".join(f"`{t}`" for t in sorted(tests)) + " |")
    return "\n".join(lines) + "\n"


def gpu_table(measured: dict[str, Any] | None) -> str:
    """What `benchmarks/gpu.py` found, if it ran on a GPU."""
    head = "## On a GPU\n\nThe tests above run on CPU. These rows come from `python -m benchmarks.gpu`.\n\n"
    sections = (measured or {}).get("sections", {})
    rows = {}
    for section in ("exactness", "processes"):
        rows |= sections.get(section, {}).get("figures", {})
    if not rows or (measured or {}).get("tiny"):
        return head + "Not yet measured.\n"
    lines = ["| set-up | method | error | |", "|---|---|---|---|"]
    for setup, methods in rows.items():
        if "reason" in methods:
            lines.append(f"| {setup} | | | not measured: {methods['reason']} |")
            continue
        for method, found in methods.items():
            if "reason" in found:
                lines.append(f"| {setup} | {method} | | {found['reason']} |")
                continue
            word = "exact" if found.get("exact") else "not exact"
            lines.append(f"| {setup} | {method} | {found['error']:.1e} | {word} |")
    device = (measured or {}).get("device", {})
    return head + f"{json.dumps(device)}\n\n" + "\n".join(lines) + "\n"


TABLES = {
    "Training: Vaccine, Booster, Lisa": (SETUPS, TRAINING),
    "Training: the baselines": (OF_BASELINES, BASELINES),
    "Training: other published defenses": (OF_BASELINES, OTHERS),
    "Training: other defenses of alignment": (OF_BASELINES, ALIGNMENT),
    "Repair: Antidote": (REPAIRS, REPAIR),
    "Repair: the baselines": (OF_BASELINE_REPAIRS, BASELINE_REPAIRS),
}


def page(evidence: list[dict[str, str]]) -> str:
    """The whole page. Raises ValueError when the marks name a set-up or a method that no table has."""
    places = {(m, s) for setups, methods in TABLES.values() for m in methods for s in setups}
    for e in evidence:
        if (e["method"], e["setup"]) not in places:
            raise ValueError(f"{e['test']} shows {e['method']}, {e['setup']}, which is in no table")
    gpu = json.loads(GPU.read_text(encoding="utf-8")) if GPU.exists() else None
    versions = PAGE.read_text(encoding="utf-8").partition("## Versions")[2]
    return "\n".join(
        [
            HEAD,
            *(part for head, found in TABLES.items() for part in (f"## {head}\n", table(evidence, *found))),
            gpu_table(gpu),
            TAIL,
            "## Versions" + versions,  # written by hand: which floors were tried
        ]
    )


def main() -> None:
    evidence = collected()
    failed = sorted({e["test"] for e in evidence if e["outcome"] != "passed"})
    if failed:
        raise SystemExit(f"Not shown by a passing test: {', '.join(failed)}. The page is left as it was.")
    PAGE.write_text(page(evidence), encoding="utf-8")


if __name__ == "__main__":
    main()
