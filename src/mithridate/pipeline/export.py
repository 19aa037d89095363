"""Writes the model of a chain of stages, with its card, so that plain transformers or PEFT loads it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from mithridate.errors import InputError, MithridateError
from mithridate.models import ModelFiles
from mithridate.models.carried import carries
from mithridate.models.embedded import EMBEDDED
from mithridate.models.layers import Layer, assemble, merge_adapter
from mithridate.models.quantisation import dequantised
from mithridate.repairs.delta import Delta
from mithridate.report.card import CardContext, card


def export(
    base: ModelFiles,
    layers: list[Layer],
    dtype: torch.dtype,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    merged: bool = True,
    story: CardContext | None = None,
) -> Path:
    """Writes the model of a chain so that plain transformers (merged) or PEFT (adapter) loads it. Returns the folder.

    An exported adapter is for the model it was trained over. Where that is the Hub's or the user's own model, the
    adapter's config names it. Where it is not (an embedded model; an alignment that was merged), it is written to
    `base/` in the same folder, and the config names that.

    Args:
        base, layers, dtype: as in `assemble`.
        tokenizer: saved beside the model.
        folder: made whole or not at all; must not exist yet, or be empty.
        merged: one model, or the last adapter.
        story: what the model card tells of it, where it comes from a run.

    Raises:
        InputError: the folder is not empty, or the chain has no adapter to export on its own.
        MithridateError: it cannot be written.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is not empty, and nothing is overwritten. Give another folder, or remove it.")
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        if merged:
            merge_adapter(dequantised(assemble(base, layers, dtype))).save_pretrained(aside)
        else:
            _write_adapter(base, layers, dtype, tokenizer, aside, folder)
        tokenizer.save_pretrained(aside)
        text = card(base, merged, (aside / "base").exists(), story)
        (aside / "README.md").write_text(text, encoding="utf-8")
        aside.replace(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MithridateError(f"{folder}: cannot be written ({reason}). Make room, or give another folder.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _write_adapter(
    base: ModelFiles, layers: list[Layer], dtype: torch.dtype, tokenizer: Any, aside: Path, folder: Path
) -> None:
    model: Any = assemble(base, layers, dtype)
    deltas = [Delta.load(layer.path) for layer in layers if layer.kind == "delta"]
    if not isinstance(model, PeftModel):
        what = "this model has no adapter of its own (full or merged weights)"
        if layers and layers[-1].kind == "delta" and deltas[-1].merged:
            what = "this repair changed the merged weights, which no adapter holds"
        raise InputError(f"{what}: export the model merged")
    local = Path(base.name).expanduser()
    altered = any(layer.merge or layer.kind == "weights" for layer in layers)
    altered = altered or not all(delta.only_factors and not delta.dequantised for delta in deltas)
    separate = altered or (base.name in EMBEDDED and not local.is_dir())
    named = str(folder / "base") if separate else str(local.absolute()) if local.is_dir() else base.name
    config: PeftConfig = model.peft_config["default"]
    config.base_model_name_or_path = named
    model.save_pretrained(str(aside), save_embedding_layers=False)
    if separate:
        under = model.unload()
        (dequantised(under) if carries(under) else under).save_pretrained(str(aside / "base"))
        tokenizer.save_pretrained(aside / "base")
