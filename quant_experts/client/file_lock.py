"""A lock on a file between threads and processes."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from quant_experts.client.errors import Stopped
from quant_experts.client.threads import POLL_SECONDS


@contextlib.contextmanager
def locked_file(part: Path, stop: threading.Event) -> Iterator[BinaryIO]:
    """The file, created if necessary, under an exclusive lock. Two writers of one partial file could discard what the
    other is about to rename. Raises Stopped."""
    while True:
        part.parent.mkdir(parents=True, exist_ok=True)  # the last writer removes it
        try:
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except FileNotFoundError:
            continue
        with os.fdopen(descriptor, "r+b") as file:
            while not _locked(file):
                if stop.wait(POLL_SECONDS):
                    raise Stopped(part.name)
            if _is_at(part, file):
                yield file
                return


def _locked(file: BinaryIO) -> bool:
    """Lock the file until it is closed. True without a lock where the system has none."""
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
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
