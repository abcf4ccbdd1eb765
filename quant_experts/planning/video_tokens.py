"""Placeholders that videos become: what each family's processor computes from the number and size of their frames.

As in a run, the frames of a row are those that are shown; nothing is sampled. ``tests/planning/test_video_tokens.py``
holds it to the processors of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quant_experts.planning.image_tokens import Size, image_tokens, number_in, part_of, within_pixels

QWEN2, QWEN3 = ("qwen2_vl", "qwen2_5_vl"), ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
TEMPORAL_PATCH = 2
"""Frames that Qwen's patches span."""
ASSUMED_FPS = 24
"""By transformers, where a row does not say."""
LEAST_PIXELS, MOST_PIXELS = {True: 128 * 28 * 28, False: 128 * 32 * 32}, {True: 28 * 28 * 768, False: 32 * 32 * 768}
"""Of Qwen's video processors where no file says, by whether it is one of ``QWEN2``."""
BUDGET = {True: 128_000, False: 768}
"""``max_video_tokens``, of all frames or of each."""


@dataclass(frozen=True)
class Clip:
    """A video: how many frames, their size, and how many of them a second, if the row says it."""

    frames: int
    size: Size
    fps: float | None = None


@dataclass(frozen=True)
class Shown:
    """What the processor puts in the place of a video's placeholder: ``text``, in which one token stands for each of
    ``runs`` runs of placeholders, and how many placeholders there are in all."""

    text: str
    runs: int
    tokens: int


def shown(clip: Clip, config: Mapping[str, Any], processor: Mapping[str, Any]) -> Shown:
    """``processor``: as ``headers.processor_of`` gives it. Of other families frames count as images."""
    kind, own = str(config.get("model_type")), part_of(processor, "video_processor") or processor
    vision = part_of(config, "vision_config")
    if kind in QWEN2:
        return Shown("<|video_pad|>", 1, _steps(clip) * _qwen2_patches(clip, vision, own))
    if kind in QWEN3:
        each = "<{:.1f} seconds><|vision_start|><|video_pad|><|vision_end|>"
        times = _times(clip)
        return Shown("".join(map(each.format, times)), len(times), len(times) * _qwen3_patches(clip, vision, own))
    if kind == "internvl":
        frames = (f"Frame{number}: <img><IMG_CONTEXT></img>" for number in range(1, clip.frames + 1))
        return Shown("\n".join(frames), clip.frames, clip.frames * number_in(processor, "image_seq_length", 256))
    if kind == "llava_onevision":
        side = math.isqrt(number_in(processor, "num_image_tokens", 729))
        return Shown("<video>", 1, clip.frames * math.ceil(side / 2) ** 2 + 1)
    each_frame = image_tokens([clip.size], config, processor)[0]
    return Shown("", 0, clip.frames * each_frame)


def _steps(clip: Clip) -> int:
    return -(-clip.frames // TEMPORAL_PATCH)


def _times(clip: Clip) -> list[float]:
    """Seconds in the middle of each step."""
    seconds = [frame / (clip.fps or ASSUMED_FPS) for frame in range(clip.frames)]
    seconds += seconds[-1:] * (-len(seconds) % TEMPORAL_PATCH)
    starts = range(0, len(seconds), TEMPORAL_PATCH)
    return [(seconds[start] + seconds[start + TEMPORAL_PATCH - 1]) / 2 for start in starts]


def _bounds(own: Mapping[str, Any], *, is_qwen2: bool) -> tuple[int, int]:
    size = part_of(own, "size")
    least = number_in(own, "min_pixels", number_in(size, "shortest_edge", LEAST_PIXELS[is_qwen2]))
    return least, number_in(own, "max_pixels", number_in(size, "longest_edge", MOST_PIXELS[is_qwen2]))


def _side(vision: Mapping[str, Any], own: Mapping[str, Any], patch: int) -> int:
    return number_in(own, "patch_size", number_in(vision, "patch_size", patch)) * number_in(own, "merge_size", 2)


def _qwen2_patches(clip: Clip, vision: Mapping[str, Any], own: Mapping[str, Any]) -> int:
    """Merged patches of one step: every frame keeps to the bounds by itself."""
    side = _side(vision, own, 14)
    least, most = _bounds(own, is_qwen2=True)
    if own.get("cap_pixels_per_frame"):
        budget = int(number_in(own, "max_video_tokens", BUDGET[True]) * side**2 * 0.9)
        most = max(min(most, budget * TEMPORAL_PATCH // clip.frames), int(least * 1.05))
    return within_pixels(clip.size, side, least, most)


def _qwen3_patches(clip: Clip, vision: Mapping[str, Any], own: Mapping[str, Any]) -> int:
    """Merged patches of one step: all frames together keep to the bounds."""
    side = _side(vision, own, 16)
    least, most = _bounds(own, is_qwen2=False)
    if own.get("cap_pixels_per_frame"):
        each = min(number_in(own, "max_video_tokens", BUDGET[False]) * side**2, most // clip.frames)
        most = max(each, int(least * 1.05)) * clip.frames
    width, height = clip.size
    if min(width, height) < side:
        scale = max(side / width, side / height)
        width, height = int(width * scale), int(height * scale)
    steps = round(clip.frames / TEMPORAL_PATCH) * TEMPORAL_PATCH
    rows, columns = round(height / side), round(width / side)
    if steps * rows * columns * side**2 > most:
        share = math.sqrt(clip.frames * width * height / most)
        rows, columns = (max(1, math.floor(length / share / side)) for length in (height, width))
    elif steps * rows * columns * side**2 < least:
        share = math.sqrt(least / (clip.frames * width * height))
        rows, columns = (math.ceil(length * share / side) for length in (height, width))
    return rows * columns
