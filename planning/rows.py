"""How many tokens the calibration rows will make: counted by eye, from text lengths and image headers.

No tokenizer and no processor runs, so that this is an estimate, and a plan's minutes are a range.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from planning.families import text_config

MOST_TOKENS = 2048
"""Of one row; the library makes images smaller, or skips the row, beyond that."""
CHARACTERS_PER_TOKEN = 3.6
TOKENS_PER_MESSAGE = 5
"""Role, turn marks."""
ASSUMED = {True: 800.0, False: 300.0}
"""Tokens of a row nothing is known about, of a model that takes images or not."""
ASSUMED_SPREAD, SAMPLED_SPREAD = 3.0, 1.5
LARGEST_PIXELS = 12_845_056
"""What Qwen2-VL's processor allows where preprocessor_config.json does not say."""


@dataclass(frozen=True)
class Rows:
    """``rows``: of the dataset, None where nobody knows before the job runs. ``tokens``: of one row, ``spread`` the
    factor that it may be off either way. ``images``: per row; ``image_tokens``: of a row, among its tokens."""

    rows: int | None
    tokens: float
    spread: float
    images: float
    image_tokens: float = 0.0

    def used(self, samples: int) -> int:
        return samples if self.rows is None else min(samples, self.rows)


def unknown_rows(*, vision: bool, rows: int | None = None) -> Rows:
    of_images = ASSUMED[True] - ASSUMED[False] if vision else 0.0
    return Rows(rows, ASSUMED[vision], ASSUMED_SPREAD, 1.0 if vision else 0.0, of_images)


def sampled_rows(
    sample: Iterable[Mapping[str, Any]], *, rows: int | None, config: Mapping[str, Any], processor: Mapping[str, Any]
) -> Rows:
    """From some parsed rows of the dataset. ``processor``: preprocessor_config.json, or nothing."""
    tokens, image_tokens_seen, images, seen = 0.0, 0.0, 0, 0
    for row in sample:
        found = list(_pictures(row))
        of_images = sum(image_tokens(size, config, processor) for size in found) if "vision_config" in config else 0
        tokens += min(MOST_TOKENS, _text_tokens(row) + of_images)
        image_tokens_seen += min(MOST_TOKENS, of_images)
        images += len(found)
        seen += 1
    if not seen:
        return unknown_rows(vision="vision_config" in config, rows=rows)
    return Rows(rows, tokens / seen, SAMPLED_SPREAD, images / seen, image_tokens_seen / seen)


def parsed_lines(lines: Iterable[bytes], most: int) -> list[dict[str, Any]]:
    """The first rows of JSONL; a line that is none is left out."""
    rows: list[dict[str, Any]] = []
    for line in lines:
        if len(rows) == most:
            break
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def image_tokens(size: tuple[int, int], config: Mapping[str, Any], processor: Mapping[str, Any]) -> int:
    """Placeholders that an image of ``size`` (width, height) becomes."""
    kind, vision = config.get("model_type"), config.get("vision_config") or {}
    if kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        return _qwen_tokens(size, vision, processor)
    if kind == "gemma3":
        return _number(config, "mm_tokens_per_image", 256)
    if kind in ("internvl", "internvl_chat"):
        tiles = _number(processor, "max_patches", 12) if processor.get("crop_to_patches") else 1
        return _number(config, "image_seq_length", 256) * (1 if tiles == 1 else min(tiles, _tiles(size) + 1))
    if kind == "llava_onevision":
        return _grid(vision, 729) * 2
    return _number(config, "image_seq_length", _grid(vision, 576))


def _qwen_tokens(size: tuple[int, int], vision: Mapping[str, Any], processor: Mapping[str, Any]) -> int:
    side = _number(vision, "patch_size", 14) * _number(vision, "spatial_merge_size", 2)
    bounds = processor.get("size")
    bounds = bounds if isinstance(bounds, dict) else {}
    most = _number(processor, "max_pixels", _number(bounds, "longest_edge", LARGEST_PIXELS))
    least = _number(processor, "min_pixels", _number(bounds, "shortest_edge", 56 * 56))
    pixels = min(max(size[0] * size[1], least), most)
    return min(MOST_TOKENS, max(1, round(pixels / side**2)))


def _tiles(size: tuple[int, int]) -> int:
    return max(1, round(size[0] * size[1] / 448**2))


def _grid(vision: Mapping[str, Any], otherwise: int) -> int:
    image, patch = vision.get("image_size"), vision.get("patch_size")
    return (image // patch) ** 2 if type(image) is int and type(patch) is int and patch > 0 else otherwise


def _number(part: Mapping[str, Any], name: str, otherwise: int) -> int:
    value = part.get(name)
    return value if type(value) is int and value > 0 else otherwise


def _text_tokens(row: Mapping[str, Any]) -> float:
    messages = row.get("messages")
    messages = messages if isinstance(messages, list) else []
    return sum(TOKENS_PER_MESSAGE + len(text) / CHARACTERS_PER_TOKEN for text in map(_text, messages))


def _text(message: Any) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return " ".join(str(part.get("text") or "") for part in parts if isinstance(part, dict))


def _pictures(row: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Widths and heights; of an image that cannot be read from outside, a guess."""
    offered = row.get("images") or row.get("image") or []
    sources = list(offered) if isinstance(offered, list) else [offered]
    messages = row.get("messages")
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else []:
            if isinstance(part, dict) and part.get("type") in ("image", "image_url"):
                source = part.get("image") or part.get("image_url") or part.get("url")
                if source is not None:
                    sources.append(source["url"] if isinstance(source, dict) and "url" in source else source)
    for source in sources:
        yield _picture_size(source)


def _picture_size(source: Any) -> tuple[int, int]:
    from PIL import Image

    try:
        if isinstance(source, dict):
            source = source.get("bytes")
        if isinstance(source, str):
            source = base64.b64decode(source.partition(",")[2])
        with Image.open(io.BytesIO(source), formats=("PNG", "JPEG", "WEBP")) as image:
            return image.size
    except (OSError, ValueError, TypeError, binascii.Error, Image.DecompressionBombError):
        return 448, 448


def context_of(config: Mapping[str, Any]) -> int:
    """Tokens of a row at most."""
    return min(MOST_TOKENS, _number(text_config(config), "max_position_embeddings", MOST_TOKENS))
