"""How far an upload is: counted where bytes leave, so that it moves within a part and is right over retries."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import httpx

CHUNK = 64 << 10
"""Bytes that are handed to the network at once."""


@dataclass(frozen=True)
class Sent:
    """How far an upload is; parts that the service has from before count as done."""

    done: int
    total: int
    """Bytes."""
    parts_done: int
    parts: int
    again: int = 0
    """How often something was sent anew: a part whose connection broke, of which ``done`` keeps what it had counted, or
    all of it because the service had lost the upload. Only then does ``done`` go back."""


OnSent = Callable[[Sent], None]


class Progress:
    """What has been sent of each part, told to the caller. Its methods are called from several threads."""

    def __init__(self, total: int, on_progress: OnSent | None) -> None:
        self._total = total
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._most: dict[int, int] = {}
        """Of each part the most bytes that any attempt at it has sent."""
        self._now: dict[int, int] = {}
        self._finished: set[int] = set()
        self._parts = 0
        self._again = 0

    def begin(self, parts: int) -> None:
        """So many parts follow. What was counted before stays counted."""
        self._parts = parts

    def lost(self) -> None:
        """Nothing of what was sent is there any more."""
        with self._lock:
            self._most.clear()
            self._now.clear()
            self._finished.clear()
            self._again += 1
            self._tell()

    def moved(self, part: int, bytes_: int) -> None:
        """An attempt at a part has sent so many bytes; fewer than before: it is another attempt."""
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
            self._finished.add(part)
            self._tell()

    def _tell(self) -> None:
        if self._on_progress is not None:
            done = min(self._total, sum(self._most.values()))
            self._on_progress(Sent(done, self._total, len(self._finished), self._parts, self._again))


class CountedStream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of one request in small chunks; ``on_sent`` hears how many of its bytes have left, from 0 on."""

    def __init__(self, stream: httpx.SyncByteStream | httpx.AsyncByteStream, on_sent: Callable[[int], None]) -> None:
        self._stream = stream
        self._on_sent = on_sent

    def __iter__(self) -> Iterator[bytes]:
        assert isinstance(self._stream, httpx.SyncByteStream)
        sent = 0
        self._on_sent(0)
        for whole in self._stream:
            for chunk in _cut(whole):
                yield chunk
                sent += len(chunk)
                self._on_sent(sent)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert isinstance(self._stream, httpx.AsyncByteStream)
        sent = 0
        self._on_sent(0)
        async for whole in self._stream:
            for chunk in _cut(whole):
                yield chunk
                sent += len(chunk)
                self._on_sent(sent)


def _cut(whole: bytes) -> Iterator[bytes]:
    for start in range(0, len(whole), CHUNK):
        yield whole[start : start + CHUNK]
