"""A file that one at a time writes, of all threads and processes that want to."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from quant_experts.client.errors import Stopped
from quant_experts.client.parallel import LOOK


@contextlib.contextmanager
def to_oneself(part: Path, stop: threading.Event) -> Iterator[BinaryIO]:
    """The file, made if need be. Whoever else brings the same bytes, a thread or a process, is waited for, because two
    that write into one file could throw away what the other is about to rename."""
    while True:
        part.parent.mkdir(parents=True, exist_ok=True)  # who has brought the last part removes it
        try:
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except FileNotFoundError:
            continue
        with os.fdopen(descriptor, "r+b") as file:
            while not _locked(file):
                if stop.wait(LOOK):
                    raise Stopped(part.name)
            if _is_at(part, file):
                yield file
                return


def _locked(file: BinaryIO) -> bool:
    """Until it is closed. Where there are no such locks nobody is kept out."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_at(path: Path, file: BinaryIO) -> bool:
    """Nobody has renamed or removed it since it was opened."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
