"""A tiny random language model with a real tokenizer, written as a transformers folder.

It says nothing sensible, but it has every part that matters: grouped-query attention, tied
embeddings, a byte-level BPE vocabulary, a ChatML template, an end token, several families.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

SENTENCES = (
    "A vegetarian asks for a dinner spot near the river.",
    "The note says that Maria is allergic to peanuts and lives in Porto.",
    "Where should we eat tonight? I would like something warm and quiet.",
    "The cloud sees the question only; the phone knows the rest.",
    "Tokens are chosen one by one, and each of them says a little.",
    "Please write a short mail to my landlord about the broken heating.",
    "Numbers such as 12, 345 and 6789 appear, as do names and places.",
    "Ärger, naïve, 東京 and 🙂 are bytes like any other.",
)

VOCABULARY_SIZE = 512


def write_tokenizer(folder: Path) -> None:
    """Train and write the byte-level BPE tokenizer and its configuration."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY_SIZE,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|im_end|>",
                "pad_token": "<|im_end|>",
                "bos_token": "<|im_start|>",
                "chat_template": CHATML,
                "model_max_length": 512,
            }
        ),
        encoding="utf-8",
    )


def write_model(folder: Path, family: str = "llama", *, seed: int = 7, **overrides: Any) -> Path:
    """Write a random two-layer model of `family` (llama, qwen2, qwen3, gemma3) into `folder`.

    The initial weights are wide enough that the next-token distribution is far from flat.
    """
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.15,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    names = {
        "llama": ("LlamaConfig", "LlamaForCausalLM"),
        "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
        "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
        "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
        "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
    }
    config_name, model_name = names[family]
    if family == "qwen2":
        common.pop("head_dim")
    if family == "gemma3":
        common |= {"sliding_window": 16, "query_pre_attn_scalar": 32}
    config = getattr(transformers, config_name)(**(common | overrides))
    torch.manual_seed(seed)
    model = getattr(transformers, model_name)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder
