"""Tiny models and a tokenizer, built from a config in milliseconds: no download, no file in the repository."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# SFTConfig's fields for one step of plain SGD, whose change of the weights is the gradient.
ONE_STEP = {
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "optim": "sgd",
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "max_steps": 1,
    "per_device_train_batch_size": 8,
    "gradient_checkpointing": False,
    "save_strategy": "no",
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer (any text round-trips) with a ChatML template; pad = eos = <|im_end|>."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(specials + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        bos_token="<|im_start|>",
        chat_template=CHATML,
        model_max_length=2048,
    )


def tiny_llama(dtype: torch.dtype = torch.float32, seed: int = 0, **overrides) -> LlamaForCausalLM:
    """A two-layer Llama of width 16 over the tiny tokenizer's vocabulary, with weights large enough to matter."""
    config = dict(  # noqa: C408 (reads as LlamaConfig's arguments)
        vocab_size=259,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        attn_implementation="eager",
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(config | overrides))).to(dtype)


def save_tiny(folder: Path, **overrides) -> Path:
    """Writes a tiny model with its tokenizer, as a folder that `from_pretrained` loads."""
    tiny_llama(**overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
