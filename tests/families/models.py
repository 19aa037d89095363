"""Tiny models of many families, each built from its own configuration class: no download."""

from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model

SMALL: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
# No dropout: the naive rules draw other masks. Two experts of four are chosen for each token.
EXPERTS = {
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "num_experts": 4,
    "moe_intermediate_size": 24,
    "output_router_logits": True,  # as TRL sets it in training
    "router_aux_loss_coef": 0.02,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", {}),
    "Qwen2": ("Qwen2Config", {}),
    "Qwen3": ("Qwen3Config", {}),
    "Mistral": ("MistralConfig", {"sliding_window": 8}),
    "Gemma2": ("Gemma2Config", {"query_pre_attn_scalar": 8}),
    "Gemma3": (
        "Gemma3TextConfig",
        {"query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "Phi": ("PhiConfig", {}),
    "Phi3": ("Phi3Config", {}),
    "OPT": ("OPTConfig", {"ffn_dim": 24, "word_embed_proj_dim": 16, "dropout": 0.0, "init_std": 0.3}),
    "GPTNeoX": ("GPTNeoXConfig", {}),
    "SmolLM3": ("SmolLM3Config", {}),
    "OLMo2": ("Olmo2Config", {}),
    "Mixtral": ("MixtralConfig", EXPERTS),
    "Qwen3Moe": ("Qwen3MoeConfig", EXPERTS),
    "GPT2": ("GPT2Config", {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "n_inner": 24}),
}


def config(name: str) -> Any:
    kind, extra = FAMILIES[name]
    return getattr(transformers, kind)(**(SMALL | extra))


def build(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """A model of two layers with weights large enough to matter."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config(name), attn_implementation="eager")
    if FAMILIES[name][1] is EXPERTS:
        model.set_experts_implementation("eager")  # the default does not compute in float64
    return model.to(dtype)


def attention(model: Any) -> list[tuple[str, torch.nn.Module]]:
    """By what the modules are called, which the library does not go by."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return [(n, m) for n, m in base.named_modules() if n.rpartition(".")[2] in ("self_attn", "attention", "attn")]


def with_lora(model: Any, dtype: torch.dtype = torch.float64) -> Any:
    """Under a LoRA adapter on every linear layer of the attention modules, both factors non-zero."""
    targets = [
        f"{name}.{inner}"
        for name, module in attention(model)
        for inner, m in module.named_modules()
        if isinstance(m, torch.nn.Linear)
    ]
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    for n, p in adapted.named_parameters():
        if "lora_" in n:
            torch.nn.init.normal_(p, std=0.2)
            p.data = p.data.to(dtype)
    return adapted
