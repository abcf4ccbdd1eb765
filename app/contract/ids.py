"""Prefixed, time-ordered identifiers: ``job_`` + uuid7 without hyphens."""

from __future__ import annotations

import os
import time
import uuid


def uuid7() -> uuid.UUID:
    """A version 7 UUID (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then random bits."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & 0xFFFF_FFFF_FFFF) << 80
    value |= 0x7 << 76 | (random >> 68 & 0xFFF) << 64
    value |= 0b10 << 62 | random & 0x3FFF_FFFF_FFFF_FFFF
    return uuid.UUID(int=value)


def made_at(identifier: str) -> float:
    """Unix seconds at which an id of ours was made. Raises ValueError for any other text."""
    made = uuid.UUID(hex=identifier.rpartition("_")[2])
    if made.version != 7:
        raise ValueError(f"{identifier!r} is not an id of ours")
    return (made.int >> 80) / 1000


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid7().hex}"
