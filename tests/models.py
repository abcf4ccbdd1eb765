"""Tiny seeded models of every supported family, as hub repositories have them: weights, tokenizer, processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
)

from demo.model import make_qwen2_vl, make_tokenizer
from tests.models_text import TEXT_FAMILIES, text_config

TEXT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)
VISION_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
FAMILIES = (*VISION_FAMILIES, *TEXT_FAMILIES)


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
    torch.manual_seed(seed)
    if family in TEXT_FAMILIES:
        model = AutoModelForCausalLM.from_config(text_config(family, {**text, "tie_word_embeddings": tied}))
        tokenizer.chat_template = TEXT_TEMPLATE
    else:
        model = AutoModelForImageTextToText.from_config(_vision_config(family, text, token, hidden, tied))
        patch = 16 if family == "qwen3_vl" else 14
        images = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=112 * 112, patch_size=patch)
        images.save_pretrained(directory)
    model.to(dtype)
    _draw_norms(model, seed)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(directory)
    return directory


def _vision_config(family: str, text: dict[str, Any], token: Any, hidden: int, tied: bool) -> PreTrainedConfig:
    section = hidden // 4 // 8
    rope = {
        "rope_type": "default",
        "rope_theta": 1_000_000.0,
        "mrope_section": [section, section * 3 // 2, section * 3 // 2],
    }
    tokens = {
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
    }
    if family == "qwen2_5_vl":
        vision = {
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 4,
            "out_hidden_size": hidden,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        }
        text.pop("head_dim")
        return Qwen2_5_VLConfig(
            text_config={**text, "rope_parameters": rope}, vision_config=vision, tie_word_embeddings=tied, **tokens
        )
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 4,
        "out_hidden_size": hidden,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    return Qwen3VLConfig(
        text_config={**text, "rope_parameters": {**rope, "mrope_interleaved": True}},
        vision_config=vision,
        tie_word_embeddings=tied,
        **tokens,
    )


def _draw_norms(model: torch.nn.Module, seed: int) -> None:
    """Log-normal norm weights: a few channels far above the rest, as trained models have them. Biases that do something."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("layernorm.weight", "layer_norm.weight")):
                weight.copy_(torch.exp(0.6 * torch.randn(weight.shape, generator=random)))
            if name.endswith(".bias"):
                weight.copy_(0.05 * torch.randn(weight.shape, generator=random))
