"""Calibration rows for tests: small pictures made here, and text."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLOURS = ("red", "green", "blue", "yellow")


def picture(*, seed: int = 0, size: tuple[int, int] = (84, 84), kind: str = "PNG") -> bytes:
    """An encoded image of coloured noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format=kind)
    return out.getvalue()


def data_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


def image_row(index: int, image: Any = None) -> dict[str, Any]:
    source = image if image is not None else data_uri(picture(seed=index))
    question = {"type": "text", "text": f"Which colour is the square at place {index}?"}
    return {
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": source}, question]},
            {"role": "assistant", "content": f"The square is {COLOURS[index % 4]}."},
        ]
    }


def video_row(
    index: int, *, frames: int = 4, size: tuple[int, int] = (84, 84), fps: float | None = 2.0
) -> dict[str, Any]:
    clip = {"type": "video", "video": [data_uri(picture(seed=7 * index + i, size=size)) for i in range(frames)]}
    question = {"type": "text", "text": f"Which colour is the square at place {index}?"}
    return {
        "messages": [
            {"role": "user", "content": [clip if fps is None else {**clip, "fps": fps}, question]},
            {"role": "assistant", "content": f"The square is {COLOURS[index % 4]}."},
        ]
    }


def text_row(index: int) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": f"Which colour is the square at place {index}?"},
            {"role": "assistant", "content": f"The square at place {index} is {COLOURS[index % 4]}."},
        ]
    }


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
