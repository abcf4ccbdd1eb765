"""Where datasets, block files and artifacts live: one small protocol, one implementation per kind of store.

A key is a relative path of safe segments chosen by us, never by a client. Objects are immutable: written once, read
many times, deleted.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
CHUNK = 1 << 20


class ObjectMissing(Exception):
    """No object has this key."""


class Storage(Protocol):
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


class LocalStorage:
    """Objects as files below ``root``. On one file system ``put`` and ``fetch`` are hard links: nothing is copied."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.root.mkdir(parents=True, exist_ok=True)

    def put(self, key: str, source: Path) -> None:
        target = self._path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.parent / f".{uuid.uuid4().hex}.part"
        try:
            _link_or_copy(source, part)
            part.replace(target)
            _sync_directory(target.parent)
        finally:
            part.unlink(missing_ok=True)

    def fetch(self, key: str, target: Path) -> None:
        source = self._path(key)
        if not source.is_file():
            raise ObjectMissing(key)
        target.unlink(missing_ok=True)
        _link_or_copy(source, target)

    def open(self, key: str, start: int = 0) -> BinaryIO:
        try:
            reader = self._path(key).open("rb")
        except FileNotFoundError:
            raise ObjectMissing(key) from None
        reader.seek(start)
        return reader

    def size(self, key: str) -> int:
        try:
            return self._path(key).stat().st_size
        except FileNotFoundError:
            raise ObjectMissing(key) from None

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def delete_under(self, prefix: str) -> None:
        shutil.rmtree(self._path(prefix), ignore_errors=True)

    def keys(self, prefix: str) -> Iterator[str]:
        for path in (self._path(prefix) if prefix else self.root).rglob("*"):
            if path.is_file() and not path.name.startswith("."):
                yield path.relative_to(self.root).as_posix()

    def drop_unfinished(self, *, older_than: float) -> int:
        """Remove what killed processes were about to ``put`` before the Unix time ``older_than``; returns how many."""
        dropped = 0
        for path in self.root.rglob(".*.part"):
            if path.stat().st_mtime < older_than:
                path.unlink(missing_ok=True)
                dropped += 1
        return dropped

    def local_path(self, key: str) -> Path:
        """The file itself, for a server that can send it without our help."""
        return self._path(key)

    def _path(self, key: str) -> Path:
        segments = key.split("/")
        if not all(SEGMENT.fullmatch(segment) for segment in segments):
            raise ValueError(f"storage key {key!r}: each segment must match {SEGMENT.pattern}")
        return self.root.joinpath(*segments)


def storage_from_url(url: str) -> Storage:
    """``file:///var/lib/qe/storage`` → the store. Raises ValueError for a scheme that does not exist."""
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc == "":
        return LocalStorage(Path(unquote(parts.path)))
    raise ValueError(f"QE_STORAGE_URL {url!r}: only file:///absolute/directory is supported")


def sha256_file(path: Path) -> str:
    with path.open("rb") as reader:
        return hashlib.file_digest(reader, "sha256").hexdigest()


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
    with target.open("rb") as handle:
        os.fsync(handle.fileno())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
