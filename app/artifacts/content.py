"""The bytes of a stored object, read in a thread, a megabyte at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from app.storage import Storage

CHUNK = 1 << 20
log = logging.getLogger(__name__)


class ObjectTruncated(Exception):
    """The object is shorter than its row says. The response breaks off: no client takes it for the whole."""


async def read_object(storage: Storage, key: str, *, start: int, length: int) -> AsyncIterator[bytes]:
    """Exactly ``length`` bytes from ``start``. Raises ObjectMissing or ObjectTruncated."""
    reader = await asyncio.to_thread(storage.open, key, start)
    try:
        while length > 0:
            chunk = await asyncio.to_thread(reader.read, min(CHUNK, length))
            if not chunk:
                raise ObjectTruncated(f"object {key}: {length} bytes are missing")
            length -= len(chunk)
            yield chunk
    finally:
        reader.close()
