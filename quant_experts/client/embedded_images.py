"""Embed the images that rows name by path, because a service accepts only rows with the images inside.

A copy of the rows is written with every path replaced by a data URI, one row in memory at a time. The same files make
the same bytes, so that an upload of them goes on where it was cut.
"""

from __future__ import annotations

import base64
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from quant_experts.client.errors import ClientError, Stopped
from quant_experts.planning.complaints import Complaints
from quant_experts.planning.row_files import RawRow, UnreadableFile, UnreadableRow, file_beside, opened, raw_rows, shown
from quant_experts.planning.row_formats import UnknownRow, canonical

PARQUET = b"PAR1"
MEDIA = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"RIFF": "image/webp",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
}
"""Magic bytes of the accepted files. Others are not sent: rows of an untrusted author may name any file."""


class InvalidRows(ClientError):
    """Rows that cannot be sent. The message has the first error of each kind, and their number."""

    code = "invalid_rows"


@dataclass(frozen=True)
class EmbeddingProgress:
    """Progress of the copy: rows, embedded images and bytes written."""

    rows: int
    images: int
    bytes: int


OnEmbeddingProgress = Callable[[EmbeddingProgress], None]


@contextmanager
def embed_images(path: Path, *, on_progress: OnEmbeddingProgress | None, stop: threading.Event) -> Iterator[Path]:
    """``path`` itself when no row names a file, or for Parquet; else a temporary copy.

    Raises InvalidRows for images that are not there, Stopped.
    """
    with path.open("rb") as file:
        is_parquet = file.read(4) == PARQUET
    if is_parquet or not _names_files(path, stop):
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="qe-rows-", suffix=".jsonl") as copy:
        _Copy(path, copy, on_progress, stop).write()
        copy.flush()
        yield Path(copy.name)


def _names_files(path: Path, stop: threading.Event) -> bool:
    try:
        with opened(path) as text:
            for raw in raw_rows(text):
                if stop.is_set():
                    raise Stopped(path.name)
                if any(_is_path(holder[key]) for _, holder, key in _sources(_row(raw))):
                    return True
    except UnreadableFile:
        return False  # the service reports what it is
    return False


def _row(raw: RawRow) -> dict[str, Any]:
    """Empty for an invalid row, which is sent as it is; the service reports it."""
    try:
        return canonical(raw.parsed())
    except (UnreadableRow, UnknownRow):
        return {}


def _sources(row: dict[str, Any]) -> Iterator[tuple[Literal["image", "audio"], Any, Any]]:
    """Places of the row's images and audio: ``holder[key]`` is the source."""
    images = row.get("images") or []
    for index in range(len(images)):
        yield "image", images, index
    for message in row.get("messages") or []:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else []:
            if isinstance(part, dict) and part.get("image") is not None:
                yield "image", part, "image"
            if isinstance(part, dict) and part.get("type") == "video" and isinstance(part.get("video"), list):
                yield from (("image", part["video"], index) for index in range(len(part["video"])))
            for key in ("audio", "path", "url"):
                if isinstance(part, dict) and part.get("type") == "audio" and part.get(key) is not None:
                    yield "audio", part, key
                    break


def _is_path(source: Any) -> bool:
    if isinstance(source, dict):
        source = source.get("path") if source.get("bytes") is None else None
    return isinstance(source, str) and not source.startswith("data:") and "://" not in source[:32]


class _Copy:
    def __init__(
        self, path: Path, to: IO[bytes], on_progress: OnEmbeddingProgress | None, stop: threading.Event
    ) -> None:
        self._path, self._to, self._on_progress, self._stop = path, to, on_progress, stop
        self._complaints = Complaints()
        self._rows = self._images = self._bytes = 0

    def write(self) -> None:
        """Write one row per line, at the line of its number. Raises InvalidRows, Stopped."""
        line = 1
        with opened(self._path) as text:
            for raw in raw_rows(text):
                if self._stop.is_set():
                    raise Stopped(self._path.name)
                line_text = b"\n" * (raw.number - line) + self._line(raw) + b"\n"
                line = raw.number + 1
                self._to.write(line_text)
                self._rows += 1
                self._bytes += len(line_text)
                if self._on_progress is not None:
                    self._on_progress(EmbeddingProgress(self._rows, self._images, self._bytes))
        if self._complaints:
            complaints = "; ".join(each["detail"] for each in self._complaints.errors())
            raise InvalidRows(f"{self._path.name}: {complaints}")

    def _line(self, raw: RawRow) -> bytes:
        row = _row(raw)
        if not row:
            return b"" if isinstance(raw.text, UnreadableRow) else b" ".join(raw.text.split(b"\n"))
        for kind, holder, key in _sources(row):
            if _is_path(holder[key]):
                self._embed(raw.number, kind, holder, key)
        return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")

    def _embed(self, row: int, kind: Literal["image", "audio"], holder: Any, key: Any) -> None:
        source = holder[key]["path"] if isinstance(holder[key], dict) else holder[key]
        try:
            data = file_beside(self._path.parent, source).read_bytes()
            media = _media_type(kind, source, data)
        except UnreadableRow as error:
            self._complaints.add(row, f"/{kind}", str(error))
            return
        except OSError as error:
            self._complaints.add(row, f"/{kind}", f"{shown(source)} cannot be read ({error.strerror})")
            return
        holder[key] = f"data:{media};base64,{base64.b64encode(data).decode()}"
        self._images += 1


def _media_type(kind: Literal["image", "audio"], source: str, data: bytes) -> str:
    """Raises UnreadableRow for a file of another kind."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        media_type = "audio/wav"
    else:
        media_type = next((media for magic, media in MEDIA.items() if data.startswith(magic)), "")
    if not media_type.startswith(kind):
        formats = "a PNG, JPEG or WEBP image" if kind == "image" else "a WAV file"
        raise UnreadableRow(f"{shown(source)} is not {formats}")
    return media_type
