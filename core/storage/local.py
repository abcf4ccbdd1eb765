"""Objects as files of one directory, which every API process and worker must see."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from core.storage.protocol import ObjectMissing, Presentation, checked
from quant_experts.files import sync_directory


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
            sync_directory(target.parent)
        finally:
            part.unlink(missing_ok=True)

    def fetch(self, key: str, target: Path) -> None:
        source = self._path(key)
        if not source.is_file():
            raise ObjectMissing(key)
        target.unlink(missing_ok=True)
        try:
            _link_or_copy(source, target)
        except FileNotFoundError:
            if source.is_file():  # it is the target's folder that is not there
                raise
            raise ObjectMissing(key) from None

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
        # Not rglob: it fails when a folder that it has seen is removed before it comes there, and others remove some.
        for folder, _, names in os.walk(self._path(prefix) if prefix else self.root, onerror=_unless_gone):
            for path in (Path(folder) / name for name in names if not name.startswith(".")):
                if path.is_file():
                    yield path.relative_to(self.root).as_posix()

    def drop_unfinished(self, *, older_than: float) -> int:
        """Remove what killed processes were about to ``put`` before the Unix time ``older_than``; returns how many."""
        count = 0
        for path in self.root.rglob(".*.part"):
            with contextlib.suppress(FileNotFoundError):
                # Not mtime: a hard link has that of its source, which may be old when it is put.
                if path.stat().st_ctime < older_than:
                    path.unlink()
                    count += 1
        return count

    def link(self, key: str, presentation: Presentation) -> str | None:
        return None

    def local_path(self, key: str) -> Path:
        """The file itself."""
        return self._path(key)

    def _path(self, key: str) -> Path:
        return self.root / checked(key)


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
    with target.open("rb") as handle:
        os.fsync(handle.fileno())
