"""Models as chains: a base model and the layers that the stages left over it; assembled for use, exported for good."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mithridate.errors import InputError, MithridateError, UnsupportedSetup
from mithridate.models import EMBEDDED, ModelFiles, check_safetensors, load_model, read_json
from mithridate.models.quantisation import dequantised
from mithridate.repairs.delta import Delta
from mithridate.repairs.linears import adapted, check_adapters, merge
from mithridate.report.card import Story, card
from mithridate.training.quantised import quantiser


@dataclass(frozen=True)
class Layer:
    """What one stage adds to the model before it.

    Attributes:
        kind: "adapter" (a PEFT folder), "weights" (a whole model's folder, which takes the place of all before it), or
            "delta" (what a repair changed).
        path: the folder.
        merge: whether an adapter is merged into the weights. Where it is not, a later adapter takes its place: it is
            the same one, trained on (topology `single`).
    """

    kind: Literal["adapter", "weights", "delta"]
    path: Path
    merge: bool = False


def assemble(
    base: ModelFiles, layers: list[Layer], dtype: torch.dtype, trainable: bool = False
) -> PreTrainedModel | PeftModel:
    """Builds the model of a chain, on the CPU: a PEFT model where an adapter is left unmerged, else a plain one. A
    quantised one is where `load_model` puts it.

    Layers act in their order, so that a repair may lie between two trainings. One that changed merged weights
    (`Delta.merged`) merges the adapter beneath it for good.

    Weights are in `dtype`; unmerged adapters are in fp32. An adapter is merged into the weights in `dtype` that it was
    trained over, in fp32 arithmetic with one rounding at the end. Quantised weights are dequantised for that, and
    where a repair changed weights; from there on the model is a plain one.

    Args:
        base: from `resolve_model`.
        layers: in the order of the stages.
        dtype: of the weights.
        trainable: whether an unmerged adapter is to be trained on. A plain model's weights always require gradients.

    Raises:
        InputError: a layer's folder lacks a file, or a file is damaged or does not fit the model.
        UnsupportedSetup: an adapter that is to be merged is not plain LoRA.
    """
    start = max((i for i, layer in enumerate(layers) if layer.kind == "weights"), default=None)
    source = base if start is None else replace(base, path=layers[start].path, digest="", quantization={})
    if start is not None:
        check_safetensors_in(source.path)
    model: Any = load_model(source, dtype)
    rest = layers[0 if start is None else start + 1 :]
    trained_on = False
    for layer, after in zip(rest, [*rest[1:], None]):
        if layer.kind == "delta":
            delta = Delta.load(layer.path)
            model = model if delta.only_factors else dequantised(model)
            model = merge_adapter(model) if delta.apply(model).merged else model
        elif not layer.merge and after is not None and after.kind == "adapter":
            trained_on = True  # the next one takes its place
        else:
            trained_on = trained_on or isinstance(model, PeftModel)
            model = _with_adapter(model.unload() if isinstance(model, PeftModel) else model, layer.path, trainable)
            model.keeps_alignment = trained_on
            model = merge_adapter(model) if layer.merge else model
            trained_on = False
    if not isinstance(model, PeftModel) and quantiser(model) is None:
        model.requires_grad_(True)
    return model


def merge_adapter(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The plain model that computes the same: adapters merged into the weights, in place. A plain model as it is.

    Quantised weights are dequantised for it, into the dtype that they are computed in.

    Raises:
        UnsupportedSetup: the adapter is not plain LoRA.
    """
    if not isinstance(model, PeftModel):
        return model
    whole: Any = dequantised(model)  # 4 and 8 bits cannot hold the sum
    found = adapted(whole)
    if not found:
        kind = whole.active_peft_config.peft_type
        raise UnsupportedSetup(f"A {kind} adapter cannot be merged.", "use LoRA, or leave the adapter unmerged.")
    check_adapters(whole)
    for layer in found.values():
        merge(layer)
    plain = whole.unload()
    plain.requires_grad_(True)
    return plain


def check_safetensors_in(folder: Path) -> None:
    """Checks every safetensors file of a folder, and that there is one.

    Raises:
        InputError: naming the file.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: no safetensors weights. Run the stage that made it again.")
    for file in files:
        check_safetensors(file)


def _with_adapter(model: Any, folder: Path, trainable: bool) -> PeftModel:
    check_safetensors(folder / "adapter_model.safetensors")
    read_json(folder / "adapter_config.json")
    try:
        return PeftModel.from_pretrained(model, folder, is_trainable=trainable, torch_device="cpu")
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{folder}: this adapter does not fit the model ({reason}).") from error


def export(
    base: ModelFiles,
    layers: list[Layer],
    dtype: torch.dtype,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    merged: bool = True,
    story: Story | None = None,
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
    altered = altered or not all(delta.only_factors for delta in deltas)
    separate = altered or (base.name in EMBEDDED and not local.is_dir())
    named = str(folder / "base") if separate else str(local.absolute()) if local.is_dir() else base.name
    config: PeftConfig = model.peft_config["default"]
    config.base_model_name_or_path = named
    model.save_pretrained(str(aside), save_embedding_layers=False)
    if separate:
        model.unload().save_pretrained(str(aside / "base"))
        tokenizer.save_pretrained(aside / "base")
