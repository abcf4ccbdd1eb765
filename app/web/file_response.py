"""A response body of immutable pieces: literal bytes and parts of stored objects. Any range of it can be sent.

``app.web.kernel_copy`` sends a stored object that is a local file. Otherwise a thread reads it, a megabyte at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.web.kernel_copy import SendFile, sender_of
from core.storage import LocalStorage, ObjectMissing, Storage

CHUNK = 1 << 20


@dataclass(frozen=True)
class ObjectPart:
    """``length`` bytes of the object ``key`` from ``start``."""

    key: str
    start: int
    length: int


Piece = bytes | ObjectPart


class ObjectTruncated(Exception):
    """The object is shorter than its row says. The response breaks off, so the client notices."""


def length_of(pieces: Sequence[Piece]) -> int:
    return sum(len(piece) if isinstance(piece, bytes) else piece.length for piece in pieces)


def cut(pieces: Sequence[Piece], *, start: int, length: int) -> list[Piece]:
    """The pieces of the range of ``length`` bytes from ``start``."""
    pieces_of_range: list[Piece] = []
    for piece in pieces:
        size = len(piece) if isinstance(piece, bytes) else piece.length
        first, last = max(0, start), min(size, start + length)
        if first < last:
            if isinstance(piece, bytes):
                pieces_of_range.append(piece[first:last])
            else:
                pieces_of_range.append(replace(piece, start=piece.start + first, length=last - first))
        start -= size
    return pieces_of_range


class PiecesResponse(StreamingResponse):
    """Sends the pieces, with their Content-Length."""

    def __init__(
        self,
        storage: Storage,
        pieces: Sequence[Piece],
        *,
        status_code: int,
        headers: Mapping[str, str],
        media_type: str,
    ) -> None:
        content = _read(storage, pieces)
        super().__init__(
            content,
            status_code=status_code,
            headers={**headers, "Content-Length": str(length_of(pieces))},
            media_type=media_type,
        )
        self._storage = storage
        self._pieces = pieces
        self._send_file: SendFile | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send_file = sender_of(scope)
        await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        if self._send_file is None or not isinstance(self._storage, LocalStorage):
            await super().stream_response(send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in self._pieces:
            if isinstance(piece, bytes):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                continue
            try:
                file = await asyncio.to_thread(self._storage.open, piece.key)
            except ObjectMissing:
                raise ObjectTruncated(f"object {piece.key} is gone") from None
            with file:
                await self._send_file(file, piece.start, piece.length)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _read(storage: Storage, pieces: Sequence[Piece]) -> AsyncIterator[bytes]:
    """Raises ObjectMissing or ObjectTruncated."""
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
            continue
        remaining = piece.length
        reader = await asyncio.to_thread(storage.open, piece.key, piece.start)
        try:
            while remaining > 0:
                chunk = await asyncio.to_thread(reader.read, min(CHUNK, remaining))
                if not chunk:
                    raise ObjectTruncated(f"object {piece.key}: {remaining} bytes are missing")
                remaining -= len(chunk)
                yield chunk
        finally:
            reader.close()
