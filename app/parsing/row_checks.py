"""Check that a calibration row follows the chat convention. Every problem says where it is and what to do.

The rules are those of ``quant_experts.calibration.rows``, which reads the rows when the job runs, without paths and
URLs, which an upload cannot use. This check gathers all problems of a row; the job stops at the first. Both get the row
from ``quant_experts.planning.row_formats``, in the chat convention.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Any

from app.parsing.audio import BadAudio
from app.parsing.audio import read_header as read_audio_header
from app.parsing.images import BadImage, read_header
from core.settings import Settings
from quant_experts.planning.row_files import shown
from quant_experts.planning.row_formats import UnknownRow, canonical, kind_of, problem_of_video

EXAMPLES = {"image": "image/png", "audio": "audio/wav"}
NAMED = {"image": "image", "audio": "audio file"}
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class RowProblem:
    """``pointer``: JSON pointer within the row."""

    pointer: str
    detail: str


@dataclass
class RowCheck:
    """The contents and problems of one row. ``images``: frames of videos among them."""

    images: int = 0
    texts: int = 0
    problems: list[RowProblem] = field(default_factory=list)

    def refuse(self, pointer: str, detail: str) -> None:
        self.problems.append(RowProblem(pointer, detail))


def check_row(row: Any, settings: Settings) -> RowCheck:
    """``row``: the parsed value."""
    check = RowCheck()
    try:
        row = canonical(row)
    except UnknownRow as error:
        check.refuse(error.pointer, str(error))
        return check
    images = offered_images(row)
    count = len(images)
    for index, message in enumerate(row["messages"]):
        _check_message(f"/messages/{index}", message, images, check, settings)
    if images:
        check.refuse("/images", f"{count} images but {count - len(images)} image parts in messages")
    if not check.texts:
        check.refuse("/messages", "no text in any message")
    return check


def offered_images(row: dict[str, Any]) -> list[tuple[str, Any]]:
    """``[(pointer, image)]`` of the column ``images``: image parts without a source take them in order."""
    return [(f"/images/{index}", image) for index, image in enumerate(row.get("images") or ())]


def _check_message(
    pointer: str, message: Any, images: list[tuple[str, Any]], check: RowCheck, settings: Settings
) -> None:
    if not isinstance(message, dict):
        check.refuse(pointer, "expected an object with role and content")
        return
    if message.get("role") not in ROLES:
        check.refuse(f"{pointer}/role", f"{shown(message.get('role'))} is not one of {', '.join(ROLES)}")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return
    if isinstance(content, str):
        _check_text(f"{pointer}/content", content, check)
    elif isinstance(content, list):
        for index, part in enumerate(content):
            _check_part(f"{pointer}/content/{index}", part, images, check, settings)
    else:
        check.refuse(f"{pointer}/content", f"a {kind_of(content)}; expected a string or a list of parts")


def _check_part(pointer: str, part: Any, images: list[tuple[str, Any]], check: RowCheck, settings: Settings) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        if isinstance(part.get("text"), str):
            _check_text(f"{pointer}/text", part["text"], check)
        else:
            check.refuse(f"{pointer}/text", "a text part without a text")
    elif kind == "image":
        check.images += 1
        source = part.get("image")
        if source is not None:
            _check_image(f"{pointer}/image", source, check, settings)
        elif images:
            _check_image(*images.pop(0), check, settings)
        else:
            check.refuse(pointer, "an image part without an image, and no further entry in images")
    elif kind == "video":
        _check_video(pointer, part, check, settings)
    elif kind == "audio":
        _check_audio(pointer, part, check, settings)
    else:
        check.refuse(f"{pointer}/type", f"{shown(kind)}; expected text, image, video or audio")


def _check_video(pointer: str, part: dict[str, Any], check: RowCheck, settings: Settings) -> None:
    problem = problem_of_video(part)
    if problem is not None:
        check.refuse(f"{pointer}/{problem[0]}", problem[1])
        return
    for index, frame in enumerate(part["video"]):
        check.images += 1
        _check_image(f"{pointer}/video/{index}", frame, check, settings)


def _check_audio(pointer: str, part: dict[str, Any], check: RowCheck, settings: Settings) -> None:
    if _audio_source(part) is None:
        check.refuse(pointer, "an audio part without audio")
        return
    if part.get("language") is not None and not isinstance(part["language"], str):
        check.refuse(f"{pointer}/language", f"a {kind_of(part['language'])}; expected a string such as 'en'")
    try:
        read_audio_header(audio_bytes(part, settings.max_audio_bytes))
    except (BadFile, BadAudio) as error:
        check.refuse(f"{pointer}/audio", str(error))


def _check_text(pointer: str, text: str, check: RowCheck) -> None:
    if text.isascii() or text.encode("utf-8", "replace").decode() == text:
        check.texts += bool(text.strip())
    else:
        check.refuse(pointer, "half of a surrogate pair, which is not a character")


def _check_image(pointer: str, source: Any, check: RowCheck, settings: Settings) -> None:
    try:
        data = image_bytes(source, settings.max_image_bytes)
        header = read_header(data)
    except BadImage as error:
        check.refuse(pointer, str(error))
        return
    pixels = header.width * header.height
    if pixels > settings.max_image_pixels:
        millions = f"{pixels / 1e6:.0f} million pixels ({header.width}x{header.height})"
        check.refuse(pointer, f"{millions}; at most {settings.max_image_pixels / 1e6:g} million: make it smaller")


def image_bytes(source: Any, limit: int) -> bytes:
    """The bytes of an image. Raises BadImage when they are not in the row, or too many."""
    try:
        return _embedded(source, limit, "image")
    except BadFile as error:
        raise BadImage(str(error)) from None


def audio_bytes(part: dict[str, Any], limit: int) -> bytes:
    """The bytes of an audio part. Raises BadFile when they are not in the row, or too many."""
    return _embedded(_audio_source(part), limit, "audio")


def _audio_source(part: dict[str, Any]) -> Any:
    return next((part[name] for name in ("audio", "path", "url") if part.get(name)), None)


class BadFile(Exception):
    """The message says why the bytes of an image or audio file cannot be read from a row."""


def _embedded(source: Any, limit: int, what: str) -> bytes:
    """``what``: ``image`` or ``audio``. Raises BadFile when the bytes are not in the row, or too many."""
    if isinstance(source, dict):  # a column of Hugging Face datasets: {"bytes", "path"}
        if not isinstance(source.get("bytes"), bytes):
            raise BadFile(f"no bytes beside the path: embed the {what} in the Parquet file")
        source = source["bytes"]
    if isinstance(source, str):
        source = _data_uri(source, limit, what)
    if not isinstance(source, bytes):
        raise BadFile(f"a {kind_of(source)}; expected a data URI")
    if len(source) > limit:
        raise BadFile(f"{len(source)} bytes; at most {limit} for one {NAMED[what]}")
    return source


def _data_uri(source: str, limit: int, what: str) -> bytes:
    if not source.startswith("data:"):
        if "://" in source[:32]:
            raise BadFile(f"{shown(source)} is a URL and nothing is fetched: embed the {what} as a data URI")
        raise BadFile(f"{shown(source)} is a path and an upload has no files: embed the {what} as a data URI")
    head, comma, data = source.partition(",")
    if not comma or not head.endswith(";base64"):
        raise BadFile(f"the data URI is not of the form data:{EXAMPLES[what]};base64,…")
    if len(data) > limit // 3 * 4 + 4:
        raise BadFile(f"about {len(data) // 4 * 3} bytes; at most {limit} for one {NAMED[what]}")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadFile(f"the data URI is not base64: {error}") from None
