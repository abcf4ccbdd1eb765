"""From a row to model inputs: chat template, processor, and never a cut through an image.

A row is called alone, as a batch of one: no padding, so no padding token can reach a statistic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch
from PIL import Image
from torch import Tensor

from quant_experts.calibration.images import decode
from quant_experts.calibration.processor import load_processor, load_tokenizer
from quant_experts.calibration.rows import Row, texts_of
from quant_experts.errors import InvalidCalibration, InvalidModel

MOST_TOKENS = 2048
"""Tokens of one sample. A photograph at Qwen2-VL's default bound is 16384; beyond two thousand, calibration costs time
and learns nothing new."""

SMALLEST_SIDE = 56
"""Pixels: images are not shrunk below this to make a row fit."""


@dataclass(frozen=True)
class Sample:
    """What the model is called with for one row.

    ``inputs``: of the processor, batch of one; ``vision``: (tokens,) bool, the image placeholders; ``resized``: whether
    images were made smaller to fit.
    """

    row: int
    inputs: dict[str, Tensor]
    vision: Tensor
    resized: bool

    @property
    def tokens(self) -> int:
        return int(self.vision.shape[0])


class TooLong(Exception):
    """The row does not fit and cannot be made to; it is skipped and counted."""


Collate = Callable[[Row], Sample]


def open_collator(directory: Path, config: Any) -> Collate:
    """The function that turns rows into samples for the model in ``directory``. Raises InvalidModel."""
    most = min(MOST_TOKENS, getattr(config.get_text_config(), "max_position_embeddings", MOST_TOKENS))
    if hasattr(config, "vision_config"):
        processor = load_processor(directory, config)
        if not processor.chat_template:
            raise InvalidModel(f"{directory.name} has no chat template; give the instruction-tuned model")
        return lambda row: _with_images(row, processor, config.image_token_id, most)
    tokenizer = load_tokenizer(directory)
    return lambda row: _text_only(row, tokenizer, config.model_type, most)


def _with_images(row: Row, processor: Any, image_token: int, most: int) -> Sample:
    """Raises TooLong, or InvalidCalibration naming the row."""
    text = _render(row, processor, list(row.messages))
    images = [decode(data, f"calibration row {row.number}, image {i}") for i, data in enumerate(row.images, start=1)]
    resized = False
    while True:
        inputs = _process(row, processor, text, images)
        vision = inputs["input_ids"][0] == image_token
        _check_placeholders(row, inputs, int(vision.sum()), processor)
        tokens = vision.shape[0]
        if tokens <= most:
            return Sample(row.number, inputs, vision, resized)
        seen = int(vision.sum())
        if not images or tokens - seen >= most:
            raise TooLong(f"{tokens} tokens, at most {most}")
        # Tokens go with the area; a little less than what fits, because sides are rounded to whole patches.
        images = _shrunk(images, 0.95 * math.sqrt((most - tokens + seen) / seen))
        resized = True


def _shrunk(images: list[Image.Image], share: float) -> list[Image.Image]:
    smaller = []
    for image in images:
        width, height = int(image.width * share), int(image.height * share)
        if min(width, height) < SMALLEST_SIDE:
            raise TooLong(f"its images would have to be smaller than {SMALLEST_SIDE} pixels")
        smaller.append(image.resize((width, height), Image.Resampling.BICUBIC))
    return smaller


def _process(row: Row, processor: Any, text: str, images: list[Image.Image]) -> dict[str, Tensor]:
    try:
        return dict(processor(text=[text], images=images or None, return_tensors="pt"))
    except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidCalibration(f"calibration row {row.number}: the model's processor refuses it: {reason}") from error


def _check_placeholders(row: Row, inputs: dict[str, Tensor], placeholders: int, processor: Any) -> None:
    grid = inputs.get("image_grid_thw")
    expected = 0 if grid is None else int(grid.prod(-1).sum()) // processor.image_processor.merge_size**2
    if placeholders != expected:
        raise InvalidCalibration(
            f"calibration row {row.number}: {placeholders} image tokens for {expected} of its images; "
            f"its text must not contain {processor.image_token!r}"
        )


def _text_only(row: Row, tokenizer: Any, model_type: str, most: int) -> Sample:
    if row.images:
        raise InvalidCalibration(f"calibration row {row.number}: it has an image, but {model_type} takes text only")
    messages = [{"role": message["role"], "content": "".join(texts_of(message))} for message in row.messages]
    # A base model has no chat template; its rows are running text.
    templated = bool(tokenizer.chat_template)
    text = _render(row, tokenizer, messages) if templated else "\n".join(message["content"] for message in messages)
    # The template has written the special tokens already; twice, the model would see two beginnings.
    encoded = tokenizer([text], return_tensors="pt", return_token_type_ids=False, add_special_tokens=not templated)
    inputs = dict(encoded)
    tokens = inputs["input_ids"].shape[1]
    if tokens > most:
        raise TooLong(f"{tokens} tokens, at most {most}")
    return Sample(row.number, inputs, torch.zeros(tokens, dtype=torch.bool), False)


def _render(row: Row, template_holder: Any, messages: list[dict[str, Any]]) -> str:
    try:
        return str(template_holder.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))
    except (jinja2.TemplateError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidCalibration(
            f"calibration row {row.number}: the model's chat template refuses it: {reason}"
        ) from error
