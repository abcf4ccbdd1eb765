"""A real store that fails or hangs to order, inside a supervisor of a test."""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from pathlib import Path

from core.storage import LocalStorage


class TroubledStorage(LocalStorage):
    """``puts fetches deletes``: errnos of the next calls, 0 for one that works. ``slow``: puts wait for it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.puts: deque[int] = deque()
        self.fetches: deque[int] = deque()
        self.deletes: deque[int] = deque()
        self.slow: threading.Event | None = None
        self.waiting = threading.Event()

    def put(self, key: str, source: Path) -> None:
        if self.slow is not None and not self.slow.is_set():
            self.waiting.set()
            self.slow.wait(60)
        _next(self.puts)
        super().put(key, source)

    def fetch(self, key: str, target: Path) -> None:
        _next(self.fetches)
        super().fetch(key, target)

    def delete(self, key: str) -> None:
        _next(self.deletes)
        super().delete(key)


def _next(orders: deque[int]) -> None:
    number = orders.popleft() if orders else 0
    if number:
        raise OSError(number, os.strerror(number))


FULL, READ_ONLY, DROPPED = errno.ENOSPC, errno.EROFS, errno.EIO
