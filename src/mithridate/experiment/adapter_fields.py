"""Which of LoraConfig's fields an experiment file may set, and why not the others. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_OURS = "the pipeline sets it"
_BESIDE = (
    "it is trained beside the adapter's factors, and topology and repairs are about an adapter alone. Train all "
    "weights with topology: full"
)
_BASE = "it changes the base weights that the adapter lies over, so that merging it would give another model"
_STRUCTURE = "it changes the model's layers, so that the adapter could not be merged into them"
_VARIANT = "only plain LoRA, whose product of two factors is added to a weight, can be merged between the stages"

NOT_IN_ADAPTER: dict[str, str] = {
    **dict.fromkeys(("task_type", "peft_type", "auto_mapping", "peft_version", "inference_mode"), _OURS),
    **dict.fromkeys(("base_model_name_or_path", "revision"), "the model is given by `model` at the top of the file"),
    **dict.fromkeys(("modules_to_save", "trainable_token_indices", "lora_bias", "ensure_weight_tying"), _BESIDE),
    **dict.fromkeys(("loftq_config", "eva_config", "corda_config", "lora_ga_config"), _BASE),
    **dict.fromkeys(("layer_replication", "megatron_config", "megatron_core", "runtime_config"), _STRUCTURE),
    **dict.fromkeys(
        ("use_dora", "use_qalora", "qalora_group_size", "alora_invocation_tokens", "arrow_config", "use_bdlora"),
        _VARIANT,
    ),
    **dict.fromkeys(("velora_config", "monteclora_config", "kasa_config", "target_parameters"), _VARIANT),
}
"""Fields that would break the topology, or that are no business of a file, with the reason."""

ALLOWED_IN_ADAPTER: dict[str, list[Any]] = {
    "bias": ["none"],
    "init_lora_weights": [True, "gaussian", "orthogonal", False],
}
"""Fields of which only some values leave an adapter over unchanged weights."""
_WHY = {"bias": _BESIDE, "init_lora_weights": _BASE}


def problems(path: str, adapter: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the fields of an adapter, at the dotted path `path`; names and types aside."""
    for name, value in adapter.items():
        if name in NOT_IN_ADAPTER:
            yield f"{path}.{name}: not here: {NOT_IN_ADAPTER[name]}"
        elif name in ALLOWED_IN_ADAPTER and value not in ALLOWED_IN_ADAPTER[name]:
            allowed = " or ".join(map(json.dumps, ALLOWED_IN_ADAPTER[name]))
            yield f"{path}.{name}: expected {allowed}, got {json.dumps(value)}: {_WHY[name]}"
