"""Tiny seeded models of every supported family, as hub repositories have them: weights, tokenizer, processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSpeechSeq2Seq,
)

from demo.model import make_qwen2_vl, make_tokenizer
from tests.models_speech import SPEECH_FAMILIES, generation_settings, speech_parts
from tests.models_text import TEXT_FAMILIES, text_config
from tests.models_vision import VISION_FAMILIES, vision_parts

TEXT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)
FAMILIES = (*VISION_FAMILIES, *TEXT_FAMILIES)
"""Those with a language model; SPEECH_FAMILIES are apart."""


def make_model(
    family: str,
    directory: Path,
    *,
    seed: int = 0,
    blocks: int = 2,
    hidden: int = 128,
    tied: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_size: str = "1GB",
) -> Path:
    """Write the tiny model of ``family`` and return its directory."""
    if family == "qwen2_vl":
        return make_qwen2_vl(
            directory,
            seed=seed,
            hidden=hidden,
            blocks=blocks,
            intermediate=192,
            vision_depth=1,
            tied=tied,
            dtype=dtype,
            max_shard_size=max_shard_size,
        )
    tokenizer = make_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    text: dict[str, Any] = {
        "vocab_size": 1024,
        "hidden_size": hidden,
        "intermediate_size": 192,
        "num_hidden_layers": blocks,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
        "max_position_embeddings": 2048,
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
    }
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    if family in TEXT_FAMILIES:
        model = AutoModelForCausalLM.from_config(text_config(family, {**text, "tie_word_embeddings": tied}))
        tokenizer.chat_template = TEXT_TEMPLATE
    elif family in SPEECH_FAMILIES:
        config, tokenizer = speech_parts(text, tokenizer, directory)
        model = AutoModelForSpeechSeq2Seq.from_config(config)
    else:
        config, tokenizer = vision_parts(family, {**text, "tie_word_embeddings": tied}, tokenizer, directory)
        model = AutoModelForImageTextToText.from_config(config)
    model.to(dtype)
    draw(model, seed)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(directory)
    if family in SPEECH_FAMILIES:
        generation_settings(directory)
    return directory


def draw(model: torch.nn.Module, seed: int) -> None:
    """Log-normal norm weights: a few channels far above the rest, as trained models have them; and no zeros."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("layernorm.weight", "layer_norm.weight")):
                weight.copy_(torch.exp(0.6 * torch.randn(weight.shape, generator=random)))
            if not weight.any():  # biases, Gemma's projector: a zero would hide that it is lost
                weight.copy_(0.05 * torch.randn(weight.shape, generator=random))
