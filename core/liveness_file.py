"""A file that says "alive" by its age, for health checks that cost milliseconds:

    test -n "$(find "$QE_HEARTBEAT_FILE" -mmin -1)"

The API's event loop, the keeper's round and the worker's parent process touch it; one that hangs lets it grow old.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

SECONDS = 5.0


def touch(file: Path | None) -> None:
    """Now is when this process was alive last. A disk that refuses is what the check then reports."""
    if file is not None:
        with contextlib.suppress(OSError):
            file.touch()


async def keep_touching(file: Path | None) -> None:
    """The body of a task of the event loop, until it is cancelled."""
    while file is not None:
        touch(file)
        await asyncio.sleep(SECONDS)


@contextlib.contextmanager
def touched_by_thread(file: Path | None) -> Iterator[None]:
    """While inside, from a thread."""
    over = threading.Event()

    def body() -> None:
        touch(file)
        while not over.wait(SECONDS):
            touch(file)

    if file is not None:
        threading.Thread(target=body, name="heartbeat-file", daemon=True).start()
    try:
        yield
    finally:
        over.set()
