"""Models whose weights are stored in 4 or 8 bit (bitsandbytes): loaded so, and made plain models again.

A weight in 4 bit is computed with as its dequantised value, so the plain model is the same one. In 8 bit, inputs are
rounded to 8 bits too, which the plain model does not: it computes a little more exactly.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mithridate.errors import InputError

if TYPE_CHECKING:
    import torch

    from mithridate.models import ModelFiles


def require_bitsandbytes(what: str) -> None:
    """Raises InputError, naming `what` needs it, where bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"{what}: needs the package bitsandbytes: pip install 'mithridate[quant]'")


def require_trainable(model: str, stored: Mapping[str, Any]) -> None:
    """Raises InputError where a model's weights are stored quantised, by the fields in its config.json, otherwise than
    by bitsandbytes."""
    method = stored.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in stored else "an unnamed method")
    if stored and method != "bitsandbytes":
        raise InputError(
            f"model {model!r}: its weights are stored quantised by {method}, which no method here was tested with. "
            "Give the model that it was made of, with quantization: {load_in_4bit: true} where memory is short"
        )


def quantisation_of(fields: Mapping[str, Any], what: str = "quantization") -> Any:
    """The BitsAndBytesConfig of its own fields, as YAML and JSON hold them (dtypes by name, as "bfloat16").

    Args:
        what: where the fields come from, for errors.

    Raises:
        InputError: a field that bitsandbytes does not have, or a value that it does not take; neither or both of
            load_in_4bit and load_in_8bit; bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    known = [n for n in inspect.signature(BitsAndBytesConfig.__init__).parameters if n not in ("self", "kwargs")]
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise InputError(f"{what}.{unknown[0]}: no field of bitsandbytes. There are: {', '.join(known)}")
    if bool(fields.get("load_in_4bit")) == bool(fields.get("load_in_8bit")):
        raise InputError(f"{what}: set one of load_in_4bit and load_in_8bit to true")
    if (kind := fields.get("bnb_4bit_quant_type", "nf4")) not in ("fp4", "nf4"):
        raise InputError(f"{what}.bnb_4bit_quant_type: expected nf4 or fp4, got {kind!r}")
    if fields.get("llm_int8_has_fp16_weight"):
        raise InputError(
            f"{what}.llm_int8_has_fp16_weight: is for training the weights, and these are kept. Take it out"
        )
    require_bitsandbytes(what)
    # a file's 6.0 comes as 6, and bitsandbytes takes none but a float
    threshold = {name: float(fields[name]) for name in ("llm_int8_threshold",) if isinstance(fields.get(name), int)}
    try:
        return BitsAndBytesConfig(**{**fields, **threshold})
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{what}: {error}") from error


PRECISIONS: dict[str, dict[str, Any]] = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}
"""What a finished model can be quantised to before it is asked: bitsandbytes' own fields, by the name that
`evaluate.precision` has. Everything else is bitsandbytes' default (nf4 computes in float32)."""


def quantised(files: ModelFiles, fields: Mapping[str, Any]) -> ModelFiles:
    """The files as a model that is quantised as it is loaded: another model, with a digest of its own.

    Raises:
        InputError: as `quantisation_of`.
    """
    if not fields:
        return files
    quantisation_of(fields)
    said = json.dumps([files.digest, dict(fields)], sort_keys=True)
    return replace(files, quantization=dict(fields), digest=hashlib.sha256(said.encode()).hexdigest())


def dequantised(model: Any, dtype: torch.dtype | None = None) -> Any:
    """The plain model that a quantised one computes with, its adapters over it: for what edits or merges weights.

    An adapter that it carries (`carried.py`) is merged into the weights, in float32 with one rounding at the end.

    Args:
        model: quantised, a PEFT model or not; it is taken apart. A model that is not quantised is returned as it is.
        dtype: of the weights; None for the one that they are computed in. Adapters keep theirs.
    """
    import torch
    from peft import PeftModel, get_peft_model
    from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict

    from mithridate.models.carried import put_down
    from mithridate.training.quantised import as_stored, quantiser

    if quantiser(model) is None:
        return model
    as_stored(model)
    if not isinstance(model, PeftModel):
        carried = put_down(model)
        plain = model.dequantize(dtype) if dtype is not None else model.dequantize()
        with torch.no_grad():
            for name, change in carried.items():
                weight = plain.get_submodule(name).weight
                weight.copy_(weight.float() + change.to(weight.device))
        return plain
    adapters = {}
    for name, config in model.peft_config.items():
        tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        adapters[name] = copy.deepcopy(config), {key: tensor.detach().clone() for key, tensor in tensors.items()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    active, training = list(model.active_adapters), model.training
    marks = {"keeps_alignment": model.keeps_alignment} if hasattr(model, "keeps_alignment") else {}
    plain = dequantised(model.unload(), dtype)
    made: Any = None
    with torch.random.fork_rng():  # factors are drawn before they are filled
        for name, (config, tensors) in adapters.items():
            if made is None:
                made = get_peft_model(plain, config, adapter_name=name)
            else:
                made.add_adapter(name, config)
            set_peft_model_state_dict(made, tensors, adapter_name=name)
    made.base_model.set_adapter(active)
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(name in trained)
    for name, value in marks.items():
        setattr(made, name, value)
    return made.train(training)
