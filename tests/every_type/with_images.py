"""Tiny models of types beyond the table of docs/models.md with the processors that transformers has for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText

from demo.model import CHAT_TEMPLATE, make_tokenizer
from tests.every_type.tiny import tiny_config
from tests.models import draw
from tests.models_vision import with_tokens

SIDE, PATCH = 56, 14
SQUARE = {"height": SIDE, "width": SIDE}
QWEN = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
GLM = {
    "image_token_id": "<|image|>",
    "video_token_id": "<|video|>",
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
}


ROWS_OF_TILES = {
    "image_token": "<image>",
    "fake_token": "<fake_token_around_image>",
    "global_token": "<global-img>",
    "end_of_utterance": "<end_of_utterance>",
    **{f"row_{i}_col_{j}": f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)},
}


class Family:
    """``images``: (image processor class, its arguments); ``ids``: entry of config.json → token; ``placeholder``: what
    the chat template writes for an image; ``processor``: of processor_config.json; ``change``: of the configuration;
    ``needs``: a package without which transformers does not build the processor."""

    def __init__(
        self,
        images: tuple[str, Mapping[str, Any]],
        ids: Mapping[str, str],
        placeholder: str,
        processor: Mapping[str, Any] | None = None,
        names: Mapping[str, str] | None = None,
        change: Callable[[Any], None] = lambda config: None,
        needs: str | None = None,
    ) -> None:
        self.needs = needs
        self.images, self.ids, self.placeholder = images, ids, placeholder
        self.processor, self.names, self.change = dict(processor or {}), dict(names or {}), change


def _qwen(config: Any) -> None:
    config.vision_config.num_position_embeddings = 64
    if hasattr(config.vision_config, "deepstack_visual_indexes"):
        config.vision_config.deepstack_visual_indexes = [0, 1][: len(config.vision_config.deepstack_visual_indexes)]


def _llama4(config: Any) -> None:
    vision = config.vision_config
    vision.intermediate_size = 4 * vision.hidden_size  # what four patches that become one have together
    vision.projector_input_dim = vision.projector_output_dim = vision.vision_output_dim = 64


def _gemma4(config: Any) -> None:
    """Its default has no tower."""
    widths = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config.vision_config = AutoConfig.for_model("gemma4_vision", **widths, **heads, position_embedding_size=64)


def _paligemma(config: Any) -> None:
    config.projection_dim = config.vision_config.projection_dim = config.text_config.hidden_size


FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(
        ("qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
        Family(
            ("Qwen2VLImageProcessorPil", {"min_pixels": SIDE**2, "max_pixels": 112**2, "patch_size": PATCH}),
            QWEN,
            "<|vision_start|><|image_pad|><|vision_end|>",
            change=_qwen,
        ),
    ),
    **dict.fromkeys(
        ("glm4v", "glm4v_moe"),
        Family(
            ("Glm4vImageProcessorPil", {"size": {"shortest_edge": SIDE**2 * 2, "longest_edge": 112**2 * 2}}),
            GLM,
            "<|begin_of_image|><|image|><|end_of_image|>",
            names={"image_token": "<|image|>", "video_token": "<|video|>"},
        ),
    ),
    "glm46v": Family(
        ("Glm46VImageProcessorPil", {"size": {"shortest_edge": SIDE**2 * 2, "longest_edge": 112**2 * 2}}),
        GLM,
        "<|begin_of_image|><|image|><|end_of_image|>",
        names={"image_token": "<|image|>", "video_token": "<|video|>"},
    ),
    "llava_next": Family(
        (
            "LlavaNextImageProcessorPil",
            {
                "size": {"shortest_edge": SIDE},
                "crop_size": SQUARE,
                "image_grid_pinpoints": [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]],
            },
        ),
        {"image_token_index": "<image>"},
        "<image>",
        {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        {"image_token": "<image>"},
        change=lambda config: setattr(config, "image_grid_pinpoints", [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]),
    ),
    "idefics3": Family(
        (
            "Idefics3ImageProcessorPil",
            {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}},
        ),
        {"image_token_id": "<image>"},
        "<image>",
        {"image_seq_len": 4},
        ROWS_OF_TILES,
        change=lambda config: setattr(config, "scale_factor", 2),
    ),
    "ovis2": Family(
        ("Ovis2ImageProcessorPil", {"size": SQUARE, "crop_to_patches": False}),
        {"image_token_id": "<IMG_ATOM>"},
        "<image>",
        {"image_seq_length": 16},
        {"image_token": "<image>", **{part: f"<IMG_{part}>" for part in ("START", "GRID", "COL", "ROW", "END")}},
    ),
    "paligemma": Family(
        ("SiglipImageProcessorPil", {"size": SQUARE, "image_seq_length": 16}),
        {"image_token_index": "<image>"},
        "<image>",
        names={"image_token": "<image>"},
        change=_paligemma,
    ),
    "paddleocr_vl": Family(
        ("PaddleOCRVLImageProcessorPil", {"min_pixels": SIDE**2, "max_pixels": 112**2}),
        {"image_token_id": "<|IMAGE_PLACEHOLDER|>", "vision_start_token_id": "<|vision_start|>"},
        "<|vision_start|><|IMAGE_PLACEHOLDER|><|vision_end|>",
        names={"image_token": "<|IMAGE_PLACEHOLDER|>"},
    ),
    "mistral3": Family(
        ("PixtralImageProcessorPil", {"size": {"longest_edge": 2 * SIDE}, "patch_size": PATCH}),
        {"image_token_index": "[IMG]"},
        "[IMG]",
        {"patch_size": PATCH, "spatial_merge_size": 2},
        {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"},
    ),
    "smolvlm": Family(
        (
            "SmolVLMImageProcessorPil",
            {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}},
        ),
        {"image_token_id": "<image>"},
        "<image>",
        {"image_seq_len": 4},
        ROWS_OF_TILES,
        change=lambda config: setattr(config, "scale_factor", 2),
        needs="num2words",
    ),
    "lfm2_vl": Family(
        (
            "Lfm2VlImageProcessor",
            {
                "tile_size": SIDE,
                "encoder_patch_size": PATCH,
                "downsample_factor": 2,
                "do_image_splitting": False,
                "min_image_tokens": 4,
                "max_image_tokens": 16,
                "max_num_patches": 64,
            },
        ),
        {"image_token_id": "<image>"},
        "<image>",
        names={
            "image_token": "<image>",
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
            "image_thumbnail_token": "<|img_thumbnail|>",
        },
        needs="torchvision",
    ),
    "llama4": Family(
        ("Llama4ImageProcessor", {"size": SQUARE, "max_patches": 1}),
        {"image_token_index": "<|patch|>"},
        "<|image|>",
        {"patch_size": PATCH, "pixel_shuffle_ratio": 0.5},
        {
            "image_token": "<|image|>",
            **{part: f"<|{part}|>" for part in ("image_start", "image_end", "patch", "tile_x_separator")},
            "tile_y_separator": "<|tile_y_separator|>",
        },
        change=_llama4,
        needs="torchvision",
    ),
    "minicpmv4_6": Family(
        ("MiniCPMV4_6ImageProcessorPil", {"scale_resolution": SIDE, "max_slice_nums": 1, "patch_size": PATCH}),
        {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"},
        "<|image_pad|>",
        names={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            **{
                f"{part}_{end}_token": f"<{'' if end == 'start' else '/'}{part}>"
                for part in ("image", "slice", "image_id")
                for end in ("start", "end")
            },
        },
        needs="torchvision",
    ),
    "gemma4": Family(
        ("Gemma4ImageProcessorPil", {"max_soft_tokens": 70, "patch_size": 16}),
        {"image_token_id": "<|image|>", "boi_token_id": "<|image>", "eoi_token_id": "<image|>"},
        "<|image|>",
        {
            "image_seq_length": 70,
            "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor"},
            "video_processor": {"video_processor_type": "Gemma4VideoProcessor"},
        },
        {
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
        },
        change=_gemma4,
        needs="torchvision",
    ),
    "kimi_k25": Family(
        ("Kimi_K25ImageProcessor", {"patch_size": PATCH}),
        {"image_token_id": "<|media_pad|>", "video_token_id": "<|kimi_k25_video_placeholder|>"},
        "<|media_pad|>",
        names={"image_token": "<|media_pad|>", "video_token": "<|kimi_k25_video_placeholder|>"},
        change=lambda config: setattr(config, "projection_hidden_size", config.vision_config.hidden_size),
        needs="torchvision",
    ),
    "aya_vision": Family(
        ("GotOcr2ImageProcessorPil", {"size": SQUARE, "crop_to_patches": True, "max_patches": 3}),
        {"image_token_index": "<|IMG_PATCH|>"},
        "<image>",
        {"patch_size": 28, "img_size": SIDE},
        {"image_token": "<image>", "start": "<|START_OF_IMG|>", "end": "<|END_OF_IMG|>"},
    ),
}


def make_with_images(kind: str, directory: Path) -> Path:
    """Write a tiny seeded model of the type, bfloat16, with tokenizer, chat template and processor."""
    family, tokenizer = FAMILIES[kind], make_tokenizer()
    directory.mkdir(parents=True, exist_ok=True)
    if family.names:
        tokenizer = with_tokens(tokenizer, family.names, placeholder=family.placeholder)
    tokenizer.add_special_tokens({"additional_special_tokens": [*family.ids.values()]})
    start = CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", family.placeholder)
    tokenizer.chat_template = start
    tokenizer.bos_token = "<|im_start|>"  # PaliGemma's processor wants one
    config = tiny_config(kind)
    for name, token in family.ids.items():
        setattr(config, name, tokenizer.convert_tokens_to_ids(token))
    family.change(config)
    assert len(tokenizer) <= config.get_text_config().vocab_size, len(tokenizer)
    name, options = family.images
    getattr(transformers, name)(**options).save_pretrained(directory)
    if family.processor:
        (directory / "processor_config.json").write_text(json.dumps(family.processor))
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).to(torch.bfloat16)
    draw(model, 0)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
