"""Stream one file of a ``multipart/form-data`` body to disk, and hash it on the way.

Starlette's form parser would spool to the system's temporary directory, which is memory in a container, before the key
is checked. Here the key is checked first, and the file lies beside the storage, where ``put`` is a hard link.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from pydantic import TypeAdapter, ValidationError
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.datasets.expiry import expiry_of_new
from app.web import problems
from app.web.problems import Problem
from app.web.timestamps import Timestamp
from core.settings import Settings

FLUSH = 1 << 20
MOST_FIELD_BYTES = 1024
ABANDONED_SECONDS = 24 * 3600.0
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
MOST_NAME = 120
MOMENT: TypeAdapter[datetime] = TypeAdapter(Timestamp)


@dataclass(frozen=True)
class Upload:
    """A received file. It is removed when the request ends."""

    path: Path
    bytes: int
    sha256: str
    name: str | None
    expires_at: datetime | None


@dataclass(frozen=True)
class ExpiryFields:
    """The fields of a form that hold the expiry of a dataset. ``parse`` turns their values into the expiry, None for
    never; it raises Problem 422.
    """

    names: tuple[str, ...]
    parse: Callable[[Mapping[str, str], Settings], datetime | None]


def _checked_text(fields: Mapping[str, str], settings: Settings) -> datetime | None:
    """``expires_at`` of the form; an empty field counts as absent."""
    value = fields.get("expires_at", "").strip()
    try:
        return expiry_of_new(MOMENT.validate_python(value) if value else None, settings)
    except ValidationError as error:
        raise _unwanted("/expires_at", error.errors()[0]["msg"]) from None


EXPIRES_AT = ExpiryFields(("expires_at",), _checked_text)


def uploads_directory(settings: Settings) -> Path:
    return settings.resolved_home / "uploads"


def sweep_abandoned(settings: Settings) -> None:
    """Remove files that a killed process left behind. Files of running uploads are younger."""
    for path in uploads_directory(settings).glob("*.part"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()


@contextmanager
def scratch_file(settings: Settings) -> Iterator[Path]:
    """The path of a temporary file beside the storage."""
    directory = uploads_directory(settings)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{uuid.uuid4().hex}.part"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@asynccontextmanager
async def received(request: Request, settings: Settings, end: ExpiryFields = EXPIRES_AT) -> AsyncIterator[Upload]:
    """The file of the form. Raises Problem for a body that is not a form with exactly one part ``file``."""
    with scratch_file(settings) as path:
        with path.open("xb") as file:
            form = _Form(_boundary(request), file, settings.max_dataset_bytes, ("name", *end.names))
            try:
                async for chunk in request.stream():
                    form.feed(chunk)
                    if len(form.pending) >= FLUSH:
                        await asyncio.to_thread(form.flush)
                await asyncio.to_thread(form.finish)
            except MultipartParseError as error:
                raise Problem(problems.MALFORMED_REQUEST, f"the multipart body is broken: {error}") from None
        yield Upload(
            path=path,
            bytes=form.bytes,
            sha256=form.digest.hexdigest(),
            name=form.name(),
            expires_at=end.parse(form.fields(), settings),
        )


def _boundary(request: Request) -> bytes:
    content_type, parameters = parse_options_header(request.headers.get("content-type", ""))
    boundary = parameters.get(b"boundary", b"")
    if content_type != b"multipart/form-data" or not 1 <= len(boundary) <= 200:
        detail = "send the rows as multipart/form-data with a part named file: curl -F file=@rows.jsonl"
        raise Problem(problems.UNSUPPORTED_MEDIA_TYPE, detail)
    return boundary


class _Form:
    """Callbacks of the parser: ``file`` goes to disk, short fields to memory, everything else is refused."""

    def __init__(self, boundary: bytes, file: BinaryIO, limit: int, optional: tuple[str, ...]) -> None:
        self.digest = hashlib.sha256()
        self.bytes = 0
        self.pending = bytearray()
        self._file = file
        self._limit = limit
        self._optional = optional
        self._fields: dict[str, bytearray] = {}
        self._filename: str | None = None
        self._headers: dict[bytes, bytes] = {}
        self._header = b""
        self._part = ""
        self._is_at_end = False
        callbacks: dict[str, Callable[..., None]] = {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._open_part,
            "on_part_data": self._data,
            "on_end": self._end,
        }
        self._parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]

    def feed(self, chunk: bytes) -> None:
        self._parser.write(chunk)

    def flush(self) -> None:
        self.digest.update(self.pending)
        self._file.write(self.pending)
        self.pending.clear()

    def finish(self) -> None:
        """Raises Problem when the body ended early or had no file."""
        self.flush()
        if not self._is_at_end:
            raise Problem(problems.MALFORMED_REQUEST, "the multipart body is cut off before its last boundary")
        if "file" not in self._fields:
            raise _unwanted("/file", "the form has no part named file")

    def name(self) -> str | None:
        """The field ``name``, else the name of the file."""
        name = self.fields().get("name") or self._filename or ""
        return CONTROL.sub("", name).strip()[:MOST_NAME] or None

    def fields(self) -> dict[str, str]:
        """The fields beside the file."""
        return {name: bytes(value).decode("utf-8", "replace") for name, value in self._fields.items() if name != "file"}

    def _begin(self) -> None:
        self._headers = {}
        self._header = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        name = self._header.lower()
        self._headers[name] = self._headers.get(name, b"") + data[start:end]

    def _header_end(self) -> None:
        self._header = b""

    def _open_part(self) -> None:
        _, parameters = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._part = parameters.get(b"name", b"").decode("utf-8", "replace")
        if self._part not in ("file", *self._optional):
            optional = " and ".join(f"one named {name}" for name in self._optional)
            detail = f"the form takes one part named file, and optionally {optional}"
            raise _unwanted(f"/{self._part[:60]}", detail)
        if self._part in self._fields:
            raise _unwanted(f"/{self._part}", f"the form has two parts named {self._part}; one upload is one file")
        self._fields[self._part] = bytearray()
        if self._part == "file":
            self._filename = parameters.get(b"filename", b"").decode("utf-8", "replace")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part == "file":
            self.bytes += end - start
            if self.bytes > self._limit:
                raise Problem(problems.BODY_TOO_LARGE, f"at most {self._limit} bytes of rows are accepted")
            self.pending += data[start:end]
            return
        field = self._fields[self._part]
        field += data[start:end]
        if len(field) > MOST_FIELD_BYTES:
            raise _unwanted(f"/{self._part}", f"longer than {MOST_FIELD_BYTES} bytes")

    def _end(self) -> None:
        self._is_at_end = True


def _unwanted(pointer: str, detail: str) -> Problem:
    return Problem(problems.INVALID_REQUEST, detail, errors=[{"pointer": pointer, "detail": detail}])
