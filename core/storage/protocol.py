"""What every store can do.

A key is a relative path of safe segments chosen by us, never by a client. Objects are immutable: written once, read
many times, deleted. They appear whole or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
CHUNK = 1 << 20


class ObjectMissing(Exception):
    """No object has this key."""


class StorageUnavailable(OSError):
    """The store did not answer or refused. ``errno`` is EACCES where no waiting helps; the message names no secret."""


@dataclass(frozen=True)
class Presentation:
    """How a browser is to take an object that it fetches itself."""

    media_type: str
    disposition: str


class Storage(Protocol):
    """Every method may raise StorageUnavailable, or another OSError of a local disk."""

    def put(self, key: str, source: Path) -> None:
        """Store the file's bytes under ``key``, durably, all or nothing. Putting again replaces it."""

    def fetch(self, key: str, target: Path) -> None:
        """Bring the object to ``target`` (its folder exists). Raises ObjectMissing."""

    def open(self, key: str, start: int = 0) -> BinaryIO:
        """A reader from byte ``start``; the caller closes it. Raises ObjectMissing."""

    def size(self, key: str) -> int:
        """Bytes of the object. Raises ObjectMissing."""

    def delete(self, key: str) -> None:
        """Remove the object; no error when it is gone already."""

    def delete_under(self, prefix: str) -> None:
        """Remove every object whose key starts with the folder ``prefix``."""

    def keys(self, prefix: str) -> Iterator[str]:
        """Keys below the folder ``prefix``, or all of them for an empty one, in no order."""

    def link(self, key: str, presentation: Presentation) -> str | None:
        """A URL from which anyone may GET the object for an hour; None where the store gives out none."""


def checked(key: str) -> str:
    """``key`` itself. Raises ValueError when a segment could mean something to a file system."""
    if not all(SEGMENT.fullmatch(segment) for segment in key.split("/")):
        raise ValueError(f"storage key {key!r}: each segment must match {SEGMENT.pattern}")
    return key
