"""Configurations, processors and tokenizers of the tiny vision-language models. Images are at most 4 by 4 patches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ImageProcessorPil,
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    LlavaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessorPil,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    SiglipVisionConfig,
)

from tests.models_text import gemma3_text

VISION_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "llava_onevision", "gemma3", "internvl")

SIDE, PATCH = 56, 14
WIDTHS = {"hidden_size": 64, "intermediate_size": 96}
TOWER = {**WIDTHS, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": SIDE, "patch_size": PATCH}
SQUARE = {"height": SIDE, "width": SIDE}

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}PLACEHOLDER\n{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vision_parts(
    family: str, text: dict[str, Any], tokenizer: PreTrainedTokenizerFast, directory: Path
) -> tuple[PreTrainedConfig, PreTrainedTokenizerFast]:
    """The model's configuration and tokenizer; writes the processor's files into ``directory``."""
    if family in ("qwen2_5_vl", "qwen3_vl"):
        images = Qwen2VLImageProcessorPil(
            min_pixels=56 * 56, max_pixels=112 * 112, patch_size=16 if family == "qwen3_vl" else 14
        )
        images.save_pretrained(directory)
        return _qwen(family, text, tokenizer.convert_tokens_to_ids), tokenizer
    return {
        "llava": _llava,
        "llava_onevision": _llava_onevision,
        "gemma3": _gemma3,
        "internvl": _internvl,
    }[family](text, tokenizer, directory)


def _llava(
    text: dict[str, Any], tokenizer: PreTrainedTokenizerFast, directory: Path
) -> tuple[PreTrainedConfig, PreTrainedTokenizerFast]:
    tokenizer = with_tokens(tokenizer, {"image_token": "<image>"}, placeholder="<image>")
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE).save_pretrained(directory)
    _processor(directory, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1)
    config = LlavaConfig(
        text_config={"model_type": "llama", **text},
        vision_config=CLIPVisionConfig(**TOWER),
        image_token_index=tokenizer.image_token_id,
        image_seq_length=(SIDE // PATCH) ** 2,
        tie_word_embeddings=text["tie_word_embeddings"],
    )
    return config, tokenizer


def _llava_onevision(
    text: dict[str, Any], tokenizer: PreTrainedTokenizerFast, directory: Path
) -> tuple[PreTrainedConfig, PreTrainedTokenizerFast]:
    tokenizer = with_tokens(tokenizer, {"image_token": "<image>", "video_token": "<video>"}, placeholder="<image>")
    pinpoints = [[SIDE * rows, SIDE * columns] for rows in (1, 2) for columns in (1, 2)]
    LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=pinpoints).save_pretrained(directory)
    _processor(directory, num_image_tokens=(SIDE // PATCH) ** 2, vision_feature_select_strategy="full")
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **text},
        vision_config=SiglipVisionConfig(**TOWER, vision_use_head=False),
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=pinpoints,
        tie_word_embeddings=text["tie_word_embeddings"],
    )
    return config, tokenizer


def _gemma3(
    text: dict[str, Any], tokenizer: PreTrainedTokenizerFast, directory: Path
) -> tuple[PreTrainedConfig, PreTrainedTokenizerFast]:
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = with_tokens(tokenizer, names, placeholder="<start_of_image>")
    Gemma3ImageProcessorPil(size=SQUARE).save_pretrained(directory)
    _processor(directory, image_seq_length=4)
    config = Gemma3Config(
        text_config=gemma3_text(text),
        vision_config=SiglipVisionConfig(**TOWER, vision_use_head=False),
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        tie_word_embeddings=text["tie_word_embeddings"],
    )
    return config, tokenizer


def _internvl(
    text: dict[str, Any], tokenizer: PreTrainedTokenizerFast, directory: Path
) -> tuple[PreTrainedConfig, PreTrainedTokenizerFast]:
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = with_tokens(tokenizer, names, placeholder="<IMG_CONTEXT>")
    GotOcr2ImageProcessorPil(size=SQUARE, crop_to_patches=True, max_patches=3).save_pretrained(directory)
    _processor(directory, image_seq_length=4)
    config = InternVLConfig(
        text_config={"model_type": "qwen2", **text},
        vision_config={**TOWER, "attention_bias": True},
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
        tie_word_embeddings=text["tie_word_embeddings"],
    )
    return config, tokenizer


def with_tokens(
    tokenizer: PreTrainedTokenizerFast, names: Mapping[str, str], *, placeholder: str
) -> PreTrainedTokenizerFast:
    """The same tokenizer with special tokens that have names, and a template that writes ``placeholder`` for images."""
    named = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        padding_side="left",
        extra_special_tokens=dict(names),
    )
    named.chat_template = CHAT.replace("PLACEHOLDER", placeholder)
    return named


def _processor(directory: Path, **options: Any) -> None:
    (directory / "processor_config.json").write_text(json.dumps(options))


def _qwen(family: str, text: dict[str, Any], token: Any) -> PreTrainedConfig:
    text, tied = {**text}, text["tie_word_embeddings"]
    section = text["hidden_size"] // 4 // 8
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
    vision = {"depth": 2, **WIDTHS, "num_heads": 4, "out_hidden_size": text["hidden_size"]}
    del text["tie_word_embeddings"]
    if family == "qwen2_5_vl":
        del text["head_dim"]
        return Qwen2_5_VLConfig(
            text_config={**text, "rope_parameters": rope},
            vision_config={**vision, "window_size": 56, "fullatt_block_indexes": [1]},
            tie_word_embeddings=tied,
            **tokens,
        )
    return Qwen3VLConfig(
        text_config={**text, "rope_parameters": {**rope, "mrope_interleaved": True}},
        vision_config={**vision, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        tie_word_embeddings=tied,
        **tokens,
    )
