"""Models as chains: a base model and the layers that the stages left over it; assembled for use, exported for good."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from mithridate.errors import InputError, UnsupportedSetup
from mithridate.models import ModelFiles, load_model
from mithridate.models.carried import carry
from mithridate.models.folder import check_safetensors, read_json
from mithridate.models.quantisation import dequantised
from mithridate.repairs.delta import Delta
from mithridate.repairs.linears import adapted, check_adapters, merge
from mithridate.training.quantised import quantiser


@dataclass(frozen=True)
class Layer:
    """What one stage adds to the model before it.

    Attributes:
        kind: "adapter" (a PEFT folder), "weights" (a whole model's folder, which takes the place of all before it), or
            "delta" (what a repair changed).
        path: the folder.
        merge: whether an adapter is merged into the weights (quantised weights carry it). Where it is not, a later
            adapter takes its place: it is the same one, trained on (topology `single`).
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
    trained over, in fp32 arithmetic with one rounding at the end. Quantised weights carry it instead (`carried.py`);
    where a repair changed weights they are dequantised, and from there on the model is a plain one. What a repair made
    in a wider dtype is rounded to `dtype`.

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
            delta = Delta.load(layer.path).rounded(dtype)
            model = dequantised(model) if delta.dequantised else model
            model = merge_adapter(model) if delta.apply(model).merged else model
        elif not layer.merge and after is not None and after.kind == "adapter":
            trained_on = True  # the next one takes its place
        else:
            trained_on = trained_on or isinstance(model, PeftModel)
            model = _with_adapter(model.unload() if isinstance(model, PeftModel) else model, layer.path, trainable)
            model.keeps_alignment = trained_on
            if layer.merge:
                model = merge_adapter(model) if quantiser(model) is None else carry(model)
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
