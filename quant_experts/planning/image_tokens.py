"""Placeholders that images become: what each family's processor computes from their widths and heights.

Nothing is resized here; ``tests/planning/test_image_tokens.py`` holds it to the processors of transformers, size by
size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Size = tuple[int, int]
"""Width and height, in pixels."""

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
MOST_RATIO = 200
"""Of an image's sides; Qwen's processors refuse more."""
LEAST_PIXELS, MOST_PIXELS = 56 * 56, 28 * 28 * 1280
"""What Qwen's processors keep to where preprocessor_config.json does not say."""
MOST_TILES = 128
"""Of an image. No model has as many, and their arrangements grow with the square."""
MOST_PINPOINTS = 1000
LARGEST_NUMBER = 10**9
"""That a file may give. JSON knows no bound, and arithmetic with floats does."""


def image_tokens(sizes: Sequence[Size], config: Mapping[str, Any], processor: Mapping[str, Any]) -> list[int]:
    """Of every image of one row. ``processor``: preprocessor_config.json and processor_config.json, or nothing.

    Some families treat several images of a row otherwise than one.
    """
    if "vision_config" not in config:
        return [0 for _ in sizes]
    kind = config.get("model_type")
    vision = config["vision_config"] if isinstance(config["vision_config"], dict) else {}
    if kind in QWEN:
        return [_qwen(size, vision, processor) for size in sizes]
    if kind == "gemma3":
        each = number_in(processor, "image_seq_length", number_in(config, "mm_tokens_per_image", 256))
        return [each for _ in sizes]
    if kind == "internvl":
        each = number_in(processor, "image_seq_length", 256)
        return [each * _tiles(size, *_side(processor), *_bounds(processor)) for size in sizes]
    if kind == "internvl_chat":
        return [_original_internvl(size, config, vision) for size in sizes]
    if kind == "llava_onevision":
        return [_onevision(size, vision, processor, alone=len(sizes) == 1) for size in sizes]
    return [_llava(config, vision, processor) for _ in sizes]


def is_too_long(size: Size, config: Mapping[str, Any]) -> bool:
    """Whether the family's processor refuses an image for its shape."""
    return config.get("model_type") in QWEN and max(size) > MOST_RATIO * min(size)


def _qwen(size: Size, vision: Mapping[str, Any], processor: Mapping[str, Any]) -> int:
    """The image keeps its shape, with sides that are multiples of ``side`` and an area within bounds."""
    patch = number_in(processor, "patch_size", number_in(vision, "patch_size", 14))
    side = patch * number_in(processor, "merge_size", number_in(vision, "spatial_merge_size", 2))
    bounds = part_of(processor, "size")
    most = number_in(processor, "max_pixels", number_in(bounds, "longest_edge", MOST_PIXELS))
    least = number_in(processor, "min_pixels", number_in(bounds, "shortest_edge", LEAST_PIXELS))
    return within_pixels(size, side, least, most)


def within_pixels(size: Size, side: int, least: int, most: int) -> int:
    """Squares of ``side`` pixels that an image has after its area was brought within bounds."""
    width, height = size
    rows, columns = round(height / side), round(width / side)
    if rows * columns * side**2 > most:
        share = math.sqrt(width * height / most)
        rows = max(1, math.floor(height / share / side))
        columns = max(1, math.floor(width / share / side))
    elif rows * columns * side**2 < least:
        share = math.sqrt(least / (width * height))
        rows, columns = math.ceil(height * share / side), math.ceil(width * share / side)
    return rows * columns


def _tiles(size: Size, width: int, height: int, least: int, most: int) -> int:
    """Tiles of ``width`` × ``height`` that an image is cut into; more than one bring a thumbnail along."""
    if most <= 1:
        return 1
    shape, area = size[0] / size[1], size[0] * size[1]
    nearest, best = math.inf, (1, 1)
    for grid in _grids(least, most):
        off = abs(shape - grid[0] / grid[1])
        if off < nearest or (off == nearest and area > 0.5 * width * height * grid[0] * grid[1]):
            nearest, best = off, grid
    tiles = best[0] * best[1]
    return tiles if tiles == 1 else tiles + 1


@functools.lru_cache(maxsize=16)
def _grids(least: int, most: int) -> list[Size]:
    sides = range(1, most + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if least <= columns * rows <= most]
    return sorted(grids, key=lambda grid: grid[0] * grid[1])


def _bounds(processor: Mapping[str, Any]) -> tuple[int, int]:
    """The native processor cuts into tiles whatever preprocessor_config.json says of it."""
    return number_in(processor, "min_patches", 1), min(MOST_TILES, number_in(processor, "max_patches", 12))


def _original_internvl(size: Size, config: Mapping[str, Any], vision: Mapping[str, Any]) -> int:
    """As ``quant_experts.model.families.internvl_chat`` sets the native processor up."""
    side = number_in(config, "force_image_size", number_in(vision, "image_size", 448))
    ratio = config.get("downsample_ratio", 0.5)
    ratio = float(ratio) if isinstance(ratio, int | float) and 0 < ratio <= 1 else 0.5
    each = round((side // number_in(vision, "patch_size", 14)) ** 2 * ratio**2)
    most = number_in(config, "max_dynamic_patch", 6) if config.get("dynamic_image_size") else 1
    return each * _tiles(size, side, side, number_in(config, "min_dynamic_patch", 1), min(MOST_TILES, most))


def _onevision(size: Size, vision: Mapping[str, Any], processor: Mapping[str, Any], *, alone: bool) -> int:
    """The whole image once, and, when it is the only one of its row, cut into tiles whose padding is taken off."""
    base = number_in(processor, "num_image_tokens", _grid(vision, 729))
    less = processor.get("vision_feature_select_strategy") == "default"
    if not alone:
        return base + 1 - less
    side = math.isqrt(base)
    pinpoints = list(_pinpoints(processor))
    best = _best_resolution(size, pinpoints) if pinpoints else _side(processor)
    width, height = size
    across, down = side * max(1, best[0] // _side(processor)[0]), side * max(1, best[1] // _side(processor)[1])
    if width / height > across / down:
        down -= 2 * ((down - int(round(height * (across / width), 7))) // 2)
    else:
        across -= 2 * ((across - int(round(width * (down / height), 7))) // 2)
    most = str(processor.get("vision_aspect_ratio", "anyres_max_9")).removeprefix("anyres_max_")
    tiles = int(most) if most.isdecimal() and len(most) < 6 and int(most) else 9
    share = math.sqrt(across * down / (tiles * side**2))
    if share > 1.1:
        down, across = int(down // share), int(across // share)
    return base + down * across + down - less


def _pinpoints(processor: Mapping[str, Any]) -> Iterator[Size]:
    """Widths and heights; in the file heights come first."""
    pinpoints = processor.get("image_grid_pinpoints")
    for pair in pinpoints[:MOST_PINPOINTS] if isinstance(pinpoints, list) else []:
        if isinstance(pair, list) and len(pair) == 2 and all(type(side) is int and side > 0 for side in pair):
            yield pair[1], pair[0]


def _best_resolution(size: Size, sizes: Sequence[Size]) -> Size:
    """The one that keeps the most of the image's pixels, and of those alike the one that wastes the least."""

    def worth(resolution: Size) -> tuple[int, int]:
        scale = min(resolution[0] / size[0], resolution[1] / size[1])
        area = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return area, area - resolution[0] * resolution[1]

    return max(sizes, key=worth)


def _llava(config: Mapping[str, Any], vision: Mapping[str, Any], processor: Mapping[str, Any]) -> int:
    patch = number_in(processor, "patch_size", number_in(vision, "patch_size", 14))
    side = number_in(vision, "image_size", 336)
    crop = part_of(processor, "crop_size") if processor.get("do_center_crop") is not False else {}
    width, height = _side({"size": crop or part_of(processor, "size")}, otherwise=side)
    more = processor.get("num_additional_image_tokens", 0)
    strategy = processor.get("vision_feature_select_strategy", config.get("vision_feature_select_strategy"))
    more = more if type(more) is int and 0 <= more <= LARGEST_NUMBER else 0
    return (width // patch) * (height // patch) + int(more) - int(strategy == "default")


def _side(processor: Mapping[str, Any], *, otherwise: int = 384) -> Size:
    bounds = part_of(processor, "size")
    shortest = number_in(bounds, "shortest_edge", otherwise)
    return number_in(bounds, "width", shortest), number_in(bounds, "height", shortest)


def _grid(vision: Mapping[str, Any], otherwise: int) -> int:
    image, patch = number_in(vision, "image_size", 0), number_in(vision, "patch_size", 0)
    return (image // patch) ** 2 if image and patch else otherwise


def part_of(whole: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = whole.get(name)
    if type(part) is int:
        return {"shortest_edge": part}
    return part if isinstance(part, dict) else {}


def number_in(part: Mapping[str, Any], name: str, otherwise: int) -> int:
    value = part.get(name)
    return value if type(value) is int and 0 < value <= LARGEST_NUMBER else otherwise
