"""The rows of a dataset, with their images and audio separated.

Nothing is decoded: format and size come from the first bytes, and the bytes are returned unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from app.parsing.audio import AudioHeader
from app.parsing.audio import read_header as read_audio_header
from app.parsing.images import ImageHeader, read_header
from app.parsing.row_checks import audio_bytes, image_bytes, offered_images
from app.parsing.validation import rows_of
from core.settings import Settings
from quant_experts.planning.row_formats import canonical
from quant_experts.planning.video_tokens import Clip


@dataclass(frozen=True)
class Image:
    header: ImageHeader
    size: int
    data: bytes | None
    """Only of a requested image: the images of a page of rows may be as large as the dataset."""


@dataclass(frozen=True)
class Audio:
    header: AudioHeader
    size: int
    data: bytes | None
    """Only of a requested file."""


MediaKey = tuple[Literal["image", "audio"], int]
"""The file of a row whose data is returned, by its index among those of its kind."""


@dataclass
class Row:
    """``number``: the line of a JSONL file, or the row of a Parquet file, counted from 1."""

    number: int
    messages: list[dict[str, Any]]
    """As in the file, but an image part has ``index``, its position in ``images``, instead of the image; an audio part
    has its position in ``audio``, and a video part in ``indices`` those of its frames in ``images``."""
    images: list[Image] = field(default_factory=list)
    audio: list[Audio] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)
    frames: set[int] = field(default_factory=set)
    """Positions of the images that are frames of a video."""

    @property
    def characters(self) -> int:
        parts = (part for message in self.messages for part in message["content"])
        return sum(len(part["text"]) for part in parts if part["type"] == "text")


def page(path: Path, settings: Settings, *, after: int, limit: int) -> list[Row]:
    """Rows whose number is greater than ``after``."""
    later = (_row(number, row, settings) for number, row in rows_of(path, settings) if number > after)
    return list(islice(later, limit))


def image_of(path: Path, settings: Settings, *, number: int, index: int) -> Image | None:
    """One image of one row, with its data; None when there is none."""
    row = _row_with(path, settings, number=number, media=("image", index))
    return row.images[index] if row is not None and index < len(row.images) else None


def audio_of(path: Path, settings: Settings, *, number: int, index: int) -> Audio | None:
    """One audio file of one row, with its data; None when there is none."""
    row = _row_with(path, settings, number=number, media=("audio", index))
    return row.audio[index] if row is not None and index < len(row.audio) else None


def all_rows(path: Path, settings: Settings) -> Iterator[Row]:
    """One at a time, of images and audio their headers alone."""
    for number, row in rows_of(path, settings):
        yield _row(number, row, settings)


def _row_with(path: Path, settings: Settings, *, number: int, media: MediaKey) -> Row | None:
    row = next((row for at, row in rows_of(path, settings) if at == number), None)
    return None if row is None else _row(number, row, settings, media)


def _row(number: int, row: dict[str, Any], settings: Settings, media: MediaKey | None = None) -> Row:
    """``row`` was valid when it was uploaded."""
    row = canonical(row)
    images = offered_images(row)
    result = Row(number, [])
    for message in row["messages"]:
        content, calls = message.get("content"), message.get("tool_calls")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())
        if calls:  # shown as text
            parts.append({"type": "text", "text": json.dumps(calls, ensure_ascii=False)})
        result.messages.append(
            {
                "role": message["role"],
                "content": [_part(part, images, result, settings, media) for part in parts],
            }
        )
    return result


def _part(
    part: dict[str, Any], images: list[tuple[str, Any]], row: Row, settings: Settings, media: MediaKey | None
) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] == "audio":
        data = audio_bytes(part, settings.max_audio_bytes)
        index = len(row.audio)
        row.audio.append(Audio(read_audio_header(data), len(data), data if media == ("audio", index) else None))
        fields = {name: part[name] for name in ("type", "language") if part.get(name) is not None}
        return {**fields, "index": index}
    if part["type"] == "video":
        indices = [_image(frame, row, settings, media) for frame in part["video"]]
        first = row.images[indices[0]].header
        row.frames.update(indices)
        row.clips.append(Clip(len(indices), (first.width, first.height), part.get("fps")))
        return {"type": "video", "indices": indices, "fps": part.get("fps")}
    source = part.get("image")
    return {"type": "image", "index": _image(images.pop(0)[1] if source is None else source, row, settings, media)}


def _image(source: Any, row: Row, settings: Settings, media: MediaKey | None) -> int:
    """Add the image to the row; its position."""
    data = image_bytes(source, settings.max_image_bytes)
    index = len(row.images)
    row.images.append(Image(read_header(data), len(data), data if media == ("image", index) else None))
    return index
