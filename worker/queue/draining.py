"""One bit that the Celery parent sets and its pool child reads: the worker was asked to stop."""

from __future__ import annotations

import mmap


class Draining:
    """Shared memory, made before the pool forks; a signal or a pipe would not reach a child that is busy."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1)

    def begin(self) -> None:
        self._memory[0] = 1

    def asked(self) -> bool:
        return self._memory[0] == 1
