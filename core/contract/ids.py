"""Prefixed, time-ordered identifiers: ``job_`` + uuid7 without hyphens."""

from __future__ import annotations

import os
import threading
import time
import uuid

PARTS_OF_A_MILLISECOND = 4096


class _Clock:
    """Time in parts of a millisecond, of which no two calls get the same and each gets a later one than the last, also
    when the machine's clock is set back."""

    def __init__(self) -> None:
        self._last = 0
        self._turn = threading.Lock()

    def next(self) -> int:
        with self._turn:
            self._last = max(time.time_ns() * PARTS_OF_A_MILLISECOND // 1_000_000, self._last + 1)
            return self._last


_clock = _Clock()


def uuid7() -> uuid.UUID:
    """A version 7 UUID (RFC 9562): 48 bits of Unix milliseconds, 12 of their fraction (section 6.2, method 3), and 62
    random ones. Those of a process are in the order in which they were made: a comparison's jobs are read in it."""
    milliseconds, part = divmod(_clock.next(), PARTS_OF_A_MILLISECOND)
    random = int.from_bytes(os.urandom(8), "big")
    value = (milliseconds & 0xFFFF_FFFF_FFFF) << 80 | 0x7 << 76 | part << 64
    return uuid.UUID(int=value | 0b10 << 62 | random & 0x3FFF_FFFF_FFFF_FFFF)


def made_at(identifier: str) -> float:
    """Unix seconds at which an id of ours was made. Raises ValueError for any other text."""
    parsed = uuid.UUID(hex=identifier.rpartition("_")[2])
    if parsed.version != 7:
        raise ValueError(f"{identifier!r} is not an id of ours")
    return (parsed.int >> 80) / 1000


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid7().hex}"
