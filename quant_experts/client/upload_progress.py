"""Progress of an upload, counted as bytes are sent: it advances within a part and stays right over retries."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import httpx

CHUNK = 64 << 10
"""Bytes that are handed to the network at once."""


@dataclass(frozen=True)
class UploadProgress:
    """Progress of an upload. Parts that the service has already count as done."""

    done: int
    total: int
    """Bytes."""
    parts_done: int
    parts: int
    again: int = 0
    """Number of restarts: of a part whose connection broke, after which ``done`` stays, or of the whole upload when the
    service has lost it. Only then ``done`` decreases."""


OnUploadProgress = Callable[[UploadProgress], None]


class Progress:
    """Counts what was sent of each part and calls ``on_progress``. Thread-safe."""

    def __init__(self, total: int, on_progress: OnUploadProgress | None) -> None:
        self._total = total
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._most: dict[int, int] = {}
        """Part → most bytes that any attempt has sent."""
        self._now: dict[int, int] = {}
        self._complete: set[int] = set()
        self._parts = 0
        self._again = 0

    def begin(self, parts: int) -> None:
        """Set the number of parts."""
        self._parts = parts

    def lost(self) -> None:
        """The service has lost the upload: start from zero."""
        with self._lock:
            self._most.clear()
            self._now.clear()
            self._complete.clear()
            self._again += 1
            self._tell()

    def moved(self, part: int, bytes_: int) -> None:
        """An attempt at a part has sent ``bytes_``. Fewer than before: it is a new attempt."""
        with self._lock:
            if bytes_ < self._now.get(part, 0):
                self._again += 1
            self._now[part] = bytes_
            before = self._most.get(part, -1)
            self._most[part] = max(before, bytes_)
            if bytes_ > before:
                self._tell()

    def finished(self, part: int, bytes_: int) -> None:
        """The service has the part."""
        with self._lock:
            self._now[part] = self._most[part] = bytes_
            self._complete.add(part)
            self._tell()

    def _tell(self) -> None:
        if self._on_progress is not None:
            total = min(self._total, sum(self._most.values()))
            self._on_progress(UploadProgress(total, self._total, len(self._complete), self._parts, self._again))


class CountedStream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of one request in small chunks. ``on_sent`` gets the number of sent bytes, from 0 on."""

    def __init__(self, stream: httpx.SyncByteStream | httpx.AsyncByteStream, on_sent: Callable[[int], None]) -> None:
        self._stream = stream
        self._on_sent = on_sent

    def __iter__(self) -> Iterator[bytes]:
        assert isinstance(self._stream, httpx.SyncByteStream)
        count = 0
        self._on_sent(0)
        for whole in self._stream:
            for chunk in _cut(whole):
                yield chunk
                count += len(chunk)
                self._on_sent(count)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert isinstance(self._stream, httpx.AsyncByteStream)
        count = 0
        self._on_sent(0)
        async for whole in self._stream:
            for chunk in _cut(whole):
                yield chunk
                count += len(chunk)
                self._on_sent(count)


def _cut(whole: bytes) -> Iterator[bytes]:
    for start in range(0, len(whole), CHUNK):
        yield whole[start : start + CHUNK]
