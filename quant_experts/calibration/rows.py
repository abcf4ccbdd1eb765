"""One calibration row in the chat convention: checked, with its images and audio read but not decoded.

A row is ``{"messages": [{"role", "content"}], "images"?: [...]}``; other formats are brought to it by
``quant_experts.planning.row_formats``. Content is a string or a list of text, image, video and audio parts. An image
part carries its source (relative path or data URI), or takes the next one of ``images``, as Hugging Face image datasets
have it. A video part carries the list of its frames, each like an image, and may say their ``fps``. An audio part
carries its source, and may name the ``language`` that is spoken. Everything else that a message or row has for the chat
template is passed on unchanged: ``tool_calls``, ``name``, ``reasoning_content``; ``tools`` and ``documents`` of the
row.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quant_experts.errors import InvalidCalibration
from quant_experts.planning.row_files import UnreadableRow, file_beside, shown
from quant_experts.planning.row_formats import UnknownRow, canonical, kind_of, problem_of_video
from quant_experts.spec.limits import MOST_MEDIA_BYTES

ROLES = ("system", "user", "assistant", "tool")
OF_TEMPLATES = ("tools", "documents")
"""Entries of a row that chat templates read beside the messages."""


@dataclass(frozen=True)
class Video:
    """``frames``: encoded images. ``fps``: frames a second, None where the row does not say."""

    frames: tuple[bytes, ...]
    fps: float | None = None


@dataclass(frozen=True)
class Row:
    """``messages``: for the chat template; content is a string or a list of parts of type text, image, video or audio,
    or None beside ``tool_calls``. ``images``, ``audio``: encoded bytes, in the order of their parts; ``videos``
    in that of theirs. ``template``: what else the chat template reads, by name. ``choices``: as the row has them,
    unchecked; only an evaluation reads them, so that they are not in the digest."""

    number: int
    messages: tuple[dict[str, Any], ...]
    images: tuple[bytes, ...]
    audio: tuple[bytes, ...] = ()
    template: dict[str, Any] = field(default_factory=dict)
    videos: tuple[Video, ...] = ()
    choices: Any = None

    @property
    def digest(self) -> str:
        """Differs between rows that differ, also in images, videos or audio."""
        return self._digest([self.number, self.messages])

    @property
    def content_digest(self) -> str:
        """The same for rows with the same content, wherever they stand."""
        return self._digest([self.messages])

    def _digest(self, content: list[Any]) -> str:
        clips = [[len(video.frames), video.fps] for video in self.videos]
        content += [*([self.template] if self.template else []), *clips]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode())
        for file in (*self.images, *(frame for video in self.videos for frame in video.frames), *self.audio):
            digest.update(hashlib.sha256(file).digest())
        return digest.hexdigest()


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used; ``reason`` names it."""

    number: int
    reason: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.number} {self.reason}".encode()).hexdigest()


def parse_row(number: int, content: Any, base: Path, *, follow_links: bool = True) -> Row:
    """Check one row. ``base``: the directory that relative image paths start from and may not leave; ``follow_links``:
    out of it as well, for a file whose links are the caller's own.

    Raises InvalidCalibration, naming the row, for everything that the convention does not have.
    """
    try:
        content = canonical(content)
    except UnknownRow as error:
        raise InvalidCalibration(f"calibration row {number}: {error}") from error
    own_images = list(content.get("images") or ())
    count = len(own_images)
    sources: list[Any] = []
    clips: list[dict[str, Any]] = []
    sounds: list[Any] = []
    messages = []
    for position, message in enumerate(content["messages"], start=1):
        where = f"calibration row {number}, message {position}"
        messages.append(_message(where, message, own_images, sources, clips, sounds))
    if own_images:
        raise InvalidCalibration(
            f"calibration row {number}: {count} images but {count - len(own_images)} image parts in messages"
        )
    if not any(text.strip() for message in messages for text in texts_of(message)):
        raise InvalidCalibration(f"calibration row {number}: no text in any message")
    images = tuple(
        _load(f"calibration row {number}, image {i}", source, base, follow_links)
        for i, source in enumerate(sources, start=1)
    )
    videos = tuple(
        _video(f"calibration row {number}, video {i}", clip, base, follow_links)
        for i, clip in enumerate(clips, start=1)
    )
    audio = tuple(
        _load(f"calibration row {number}, audio {i}", source, base, follow_links)
        for i, source in enumerate(sounds, start=1)
    )
    return Row(number, tuple(messages), images, audio, _of_template(number, content), videos, content.get("choices"))


def _of_template(number: int, content: dict[str, Any]) -> dict[str, Any]:
    entries = {}
    for name in OF_TEMPLATES:
        value = content.get(name)
        if isinstance(value, str) and value.strip():  # columns of datasets hold them as JSON
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise InvalidCalibration(f"calibration row {number}: {name} is a string that is not JSON") from None
        if not value:
            continue
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise InvalidCalibration(f"calibration row {number}: {name} is {shown(value)}, expected a list of objects")
        entries[name] = value
    return entries


def texts_of(message: dict[str, Any]) -> Iterator[str]:
    """The texts of one checked message."""
    content = message["content"]
    if isinstance(content, str):
        yield content
    else:
        yield from (part["text"] for part in content or () if part["type"] == "text")


def _message(
    where: str,
    message: Any,
    own_images: list[Any],
    sources: list[Any],
    clips: list[dict[str, Any]],
    sounds: list[Any],
) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise InvalidCalibration(f"{where}: expected an object with role and content")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise InvalidCalibration(f"{where}: role {shown(role)} is not one of {', '.join(ROLES)}")
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return {**message, "content": content}
    if not isinstance(content, list):
        raise InvalidCalibration(f"{where}: content is a {kind_of(content)}, expected a string or a list of parts")
    return {**message, "content": [_part(where, part, own_images, sources, clips, sounds) for part in content]}


def _part(
    where: str,
    part: Any,
    own_images: list[Any],
    sources: list[Any],
    clips: list[dict[str, Any]],
    sounds: list[Any],
) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise InvalidCalibration(f"{where}: a text part without a text")
        return {"type": "text", "text": part["text"]}
    if kind == "image":
        sources.append(_source(where, part, own_images))
        return {"type": "image"}
    if kind == "video":
        clips.append(part)
        return {"type": "video"}
    if kind == "audio":
        return _audio(where, part, sounds)
    raise InvalidCalibration(f"{where}: part of type {shown(kind)}, expected text, image, video or audio")


def _video(where: str, part: dict[str, Any], base: Path, follow_links: bool) -> Video:
    problem = problem_of_video(part)
    if problem is not None:
        raise InvalidCalibration(f"{where}: {problem[1]}")
    frames = (_load(f"{where}, frame {i}", frame, base, follow_links) for i, frame in enumerate(part["video"], start=1))
    return Video(tuple(frames), part.get("fps"))


def _audio(where: str, part: dict[str, Any], sounds: list[Any]) -> dict[str, str]:
    source = part.get("audio") or part.get("path") or part.get("url")
    if source is None:
        raise InvalidCalibration(f"{where}: an audio part without audio: give a relative path or a data URI")
    language = part.get("language")
    if language is not None and not isinstance(language, str):
        raise InvalidCalibration(f"{where}: language {shown(language)} is not a string such as 'en'")
    sounds.append(source)
    return {"type": "audio"} if language is None else {"type": "audio", "language": language}


def _source(where: str, part: dict[str, Any], own_images: list[Any]) -> Any:
    if part.get("image") is not None:
        return part["image"]
    if not own_images:
        raise InvalidCalibration(f"{where}: an image part without an image, and no further entry in images")
    return own_images.pop(0)


def _load(where: str, source: Any, base: Path, follow_links: bool) -> bytes:
    """The encoded bytes of one image or audio file."""
    if isinstance(source, dict):  # Hugging Face image or audio column: {"bytes", "path"}
        if isinstance(source.get("bytes"), bytes):
            return _bounded(where, source["bytes"])
        source = source.get("path")
    if isinstance(source, bytes):
        return _bounded(where, source)
    if not isinstance(source, str):
        raise InvalidCalibration(f"{where}: neither a path nor a data URI nor bytes")
    if source.startswith("data:"):
        return _bounded(where, _from_data_uri(where, source))
    if "://" in source:
        raise InvalidCalibration(
            f"{where}: {shown(source)} is a URL; nothing is fetched, give a relative path or a data URI"
        )
    return _from_file(where, source, base, follow_links)


def _from_data_uri(where: str, source: str) -> bytes:
    head, comma, data = source.partition(",")
    if not comma or not head.endswith(";base64"):
        raise InvalidCalibration(f"{where}: the data URI is not of the form data:<type>;base64,...")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidCalibration(f"{where}: the data URI is not base64 ({error})") from error


def _from_file(where: str, source: str, base: Path, follow_links: bool) -> bytes:
    try:
        return file_beside(base, source, follow_links=follow_links).read_bytes()
    except UnreadableRow as error:
        raise InvalidCalibration(f"{where}: {error}") from error
    except OSError as error:
        raise InvalidCalibration(f"{where}: {shown(source)} cannot be read ({error.strerror})") from error


def _bounded(where: str, data: bytes) -> bytes:
    if len(data) > MOST_MEDIA_BYTES:
        raise InvalidCalibration(f"{where}: {len(data)} bytes, at most {MOST_MEDIA_BYTES} are accepted")
    return data
