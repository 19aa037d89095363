"""Digests of a loaded model and its tokenizer: what they hold decides the key of a cached answer, never a name."""

import hashlib
import json
from typing import Any

import torch

# Of a config: where it came from and how it is run, neither of which changes what the model computes.
_NO_MATTER = {"_name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype", "architectures"}
_NO_MATTER |= {"base_model_name_or_path", "inference_mode", "revision", "peft_version", "auto_mapping", "task_type"}


def weights_digest(model: Any) -> str:
    """SHA-256 (64 hex digits) over all that a loaded model computes with.

    That is every parameter and buffer (name, dtype, shape, bytes; tensor by tensor, so that no copy of the whole is
    made), the config, and of an adapter its config, its scaling and whether it is active. About a second a gigabyte.

    Args:
        model: a `torch.nn.Module`; of PEFT too, its adapters merged or not.
    """
    made = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        made.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        made.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    if (config := getattr(model, "config", None)) is not None:
        made.update(_text(config.to_diff_dict()).encode())
    for name, config in sorted((getattr(model, "peft_config", None) or {}).items()):
        made.update(f"\n{name} {_text(config.to_dict())}".encode())
    for name, module in model.named_modules():
        if isinstance(scaling := getattr(module, "scaling", None), dict):
            state = [
                getattr(module, part, None) for part in ("active_adapters", "merged_adapters", "disable_adapters")
            ]
            made.update(f"\n{name} {_text([scaling, *state])}".encode())
    return made.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 (64 hex digits) over a tokenizer's rules, special tokens and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else tokenizer.get_vocab()
    parts = [rules, tokenizer.special_tokens_map, tokenizer.chat_template, tokenizer.eos_token_id]
    return hashlib.sha256(_text(parts).encode()).hexdigest()


def _text(value: Any) -> str:
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if key not in _NO_MATTER}
    return json.dumps(value, sort_keys=True, default=lambda v: sorted(map(str, v)) if isinstance(v, set) else str(v))
