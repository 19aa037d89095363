"""Writes the generated tables of docs/scale.md: the estimates, and the GPU figures where there are any.

    python -m benchmarks.scale            # from the repository's root

The tables stand between `<!-- NAME: generated -->` and `<!-- NAME: end -->`; a test holds the page to them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mithridate.estimate import estimate, repair
from mithridate.estimate.trace import SIZES, Setup, config_of
from mithridate.repairs.antidote import Antidote

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
EVIDENCE = Path(__file__).with_name("gpu_evidence.json")
GIB = 2**30
TIMED = ("vaccine", "booster", "lisa")  # the defenses that benchmarks/gpu.py runs
SETUP = Setup(batch=8, length=512, scored=128, checkpointing=True)


def gib(size: float) -> str:
    return f"{size / GIB:.1f}"


def estimates(sizes: Iterable[str] = SIZES) -> str:
    """Per size and method: GiB of one process, alone, among 8 with DDP, among 8 with FSDP2; operations; disk."""
    lines = [
        "| model | trained | method | one GPU | 8, DDP | 8, FSDP2 | x plain | TFLOPs a step | disk |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for size in sizes:
        config = config_of(size)
        for full in (False, True):
            setup = replace(SETUP, full=full)
            for method in ("plain", *TIMED):
                one = estimate(config, setup, method)
                ddp = estimate(config, replace(setup, processes=8), method)
                fsdp = estimate(config, replace(setup, processes=8, sharded=True), method)
                lines.append(
                    f"| {size.upper()} | {'all weights' if full else 'LoRA'} | {method} | {gib(one.total)} "
                    f"| {gib(ddp.total)} | {gib(fsdp.total)} | {one.ratio:.2f} | {one.flops / 1e12:.0f} "
                    f"| {gib(one.kept + one.checkpoints)} |"
                )
            needs = repair(config, setup, Antidote(targets="merged" if full else "adapters"), rows=500)
            lines.append(
                f"| {size.upper()} | {'all weights' if full else 'LoRA'} | antidote | {gib(needs.total)} "
                f"| | | | {needs.flops / 1e12:.0f} in all | {gib(needs.kept)} |"
            )
    return "\n".join(lines)


def gpu() -> str:
    """What benchmarks/gpu.py measured and on what, then one list of what it has not."""
    evidence = json.loads(EVIDENCE.read_text()) if EVIDENCE.exists() else {"sections": {}}
    device, versions = evidence.get("device", {}), evidence.get("versions", {})
    on = ", ".join(device.get("gpus", []))
    with_ = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "trl") if versions.get(name))
    lines = [f"On: {on}{f' ({with_})' if with_ else ''}.", "", "| what | figure |", "|---|---|"] if on else []
    missing = []
    for what, section, path, form in _rows():
        value: Any = evidence["sections"].get(section, {}).get("figures", {})
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            missing.append(what)
        else:
            lines.append(f"| {what} | {form.format(value)} |")
    listed = [f"- {what}" for what in (*missing, *NEVER)]
    return "\n".join([*lines, *([""] if lines else []), "Not measured on a GPU:", "", *listed])


# What no section of the script measures.
NEVER = (
    "a whole run of 7B or more",
    "what `run` chooses of activation checkpointing",
    "bf16 on a CPU that has it in hardware",
    "`mithridate run` on two GPUs, from alignment to table",
    "vLLM inside the process",
    "the test suite on a GPU machine, since its tests were mended for one",
    "a static KV cache or continuous batching against the generation that is there",
)


def _rows() -> Iterable[tuple[str, str, tuple[str, ...], str]]:
    """Of each figure: what it is, its section in the evidence, where in it, and its format."""
    for kind, words in (("lora", "LoRA"), ("full", "all weights")):
        for method in TIMED:
            yield f"{method}'s step over a plain one, 1B, {words}", "steps", (kind, method, "ratio"), "{:.2f}"
        yield f"peak memory of a plain step, 1B, {words} (bytes)", "steps", (kind, "plain", "peak_bytes"), "{:,}"
        yield "... as `estimate` predicted then", "steps", (kind, "plain", "predicted_bytes"), "{:,}"
    yield "Antidote over one batched forward pass", "antidote", ("over_one_batched_forward",), "{:.2f}"
    yield "the reference manner's passes over Antidote", "antidote", ("faster_than_one_at_a_time",), "{:.2f}"
    yield "tokens per second, batched over one at a time", "generation", ("ratio",), "{:.2f}"
    for bits in ("4 bit", "8 bit"):
        for method in TIMED:
            yield f"{method}'s step over a plain one, 1B, QLoRA in {bits}", "qlora", (bits, method, "ratio"), "{:.2f}"
        yield (
            f"peak memory of a plain step, 1B, QLoRA in {bits} (bytes)",
            "qlora",
            (bits, "plain", "peak_bytes"),
            "{:,}",
        )
    for method in ("plain", *TIMED):
        yield f"{method}'s step of the recipe for 7B, 4 x 512 tokens (ms)", "recipe", (method, "median_ms"), "{:.0f}"
        yield f"{method}'s peak memory there (bytes)", "recipe", (method, "peak_bytes"), "{:,}"
    for model, words in (("135m, lora", "135M, LoRA"), ("1b, lora", "1B, LoRA"), ("1b, full", "1B, all weights")):
        what = f"a step with activation checkpointing over one without, {words}"
        yield what, "checkpointing", (model, "on_over_off"), "{:.2f}"
    what = "344 prompts, 135M: tokens per second, one batch over batches of 64"
    yield what, "batches", ("faster",), "{:.2f}"
    for what in ("float32", "bfloat16", "bfloat16 without cuDNN's attention"):
        row = f"seconds of the first generation, 64 prompts, {what}"
        yield row, "precision", (what, "first_seconds"), "{:.2f}"
    for setup in ("float32", "torch.compile", "QLoRA (4 bit)", "QLoRA (8 bit)", "QLoRA (4 bit), two adapters"):
        for method in ("plain", *TIMED):
            row = f"{method}'s update against the reference, {setup}: error"
            yield row, "exactness", (setup, method, "error"), "{:.1e}"
    for kind in ("ddp", "fsdp2"):
        for method in ("plain", "booster", "lisa"):
            row = f"two processes against one, {kind}, {method}: error"
            yield row, "processes", (kind, method, "error"), "{:.1e}"


# -- the recipe for 7B ------------------------------------------------------------------------------------------------

RECIPE = Path(__file__).parents[1] / "examples" / "qlora_7b.yaml"
ANSWER, ROW = 128, 512  # tokens of an answer, and of a row with it
SPEED, PRICE = 500, 1.0  # assumed: tokens a second of plain training on one card; dollars of a card's hour
SEVERAL = 8


def shape_of_7b() -> Any:
    """Qwen2.5-7B's."""
    from transformers import Qwen2Config

    shape = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    return Qwen2Config(**shape, num_key_value_heads=4, vocab_size=152064)


def recipe_inputs(folder: Path) -> None:
    """What the recipe takes as given, beside a copy of its file: the shape of Qwen2.5-7B under its name (with the
    embedded model's tokenizer), and rows of ROW tokens with answers of ANSWER; the task's are a
    word."""
    from mithridate.models import load_tokenizer, resolve_model

    shutil.copy(RECIPE, folder)
    raw = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    model = folder / raw["model"]
    tokenizer = load_tokenizer(resolve_model("smollm2-135m"), True)
    tokenizer.save_pretrained(model)
    shape_of_7b().save_pretrained(model)
    (folder / "data").mkdir()
    for role, source in raw["data"].items():
        _write_rows(folder / source["source"], role, source["take"], tokenizer)
        if "test" in source:
            _write_rows(folder / source["test"]["source"], f"{role} test", source["test"]["take"], tokenizer)


def _write_rows(file: Path, name: str, count: int, tokenizer: Any) -> None:
    # The task's answer is its label; another takes ANSWER tokens, the two that end its turn among them.
    label = {"label": "positive"} if name.startswith("task") else {}
    text = label.get("label", "a" + " a" * (ANSWER - 3))
    prompts = [f"{name} {i:05d}" for i in range(count)]
    turns = [{"role": "user", "content": prompts[0]}, {"role": "assistant", "content": text}]
    more = " a" * (ROW - len(tokenizer(tokenizer.apply_chat_template(turns, tokenize=False))["input_ids"]))
    rows = ({"prompt": prompt + more, "response": text, **label} for prompt in prompts)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def recipe() -> str:
    """What `mithridate estimate` prints of the recipe, on one card and on several, with the commands."""
    several = ["--accelerate", "ddp", "-o", f"processes={SEVERAL}"]
    accumulation = [f"{stage}.training.gradient_accumulation_steps=1" for stage in ("align", "finetune")]
    several += [word for each in accumulation for word in ("-o", each)]
    shown = []
    for more, cards in (([], 1), (several, SEVERAL)):
        words = ["estimate", RECIPE.name, *more, "--tokens-per-second", str(SPEED * cards), "--price", f"{PRICE:g}"]
        shown.append(f"```\n$ mithridate {' '.join(words)}\n{_printed(words)}\n```")
    return "\n\n".join(shown)


def _printed(words: list[str]) -> str:
    from mithridate.cli import main as command

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.ExitStack() as ending:
        recipe_inputs(Path(folder))
        before = os.environ.get("COLUMNS")
        os.environ["COLUMNS"] = "200"
        ending.callback(lambda: os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before))
        out = ending.enter_context(contextlib.redirect_stdout(io.StringIO()))
        code = command(words)
    assert code == 0, out.getvalue()
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


TABLES = {"estimates": estimates, "recipe": recipe, "gpu": gpu}


def between(name: str, text: str) -> str:
    """A generated table as it stands in the page."""
    found = re.search(rf"<!-- {name}: generated -->\n(.*?)\n<!-- {name}: end -->", text, re.DOTALL)
    assert found, f"docs/scale.md has no place for {name}"
    return found[1]


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        whole = f"<!-- {name}: generated -->\n{{}}\n<!-- {name}: end -->".format
        text = text.replace(whole(between(name, text)), whole(table()))
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
