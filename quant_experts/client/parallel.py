"""Work on several things at once, in threads that nobody has to wait for."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from quant_experts.client.errors import Stopped

T = TypeVar("T")
LOOK = 0.1
"""Seconds between two looks at ``stop``."""
LEAVING = 2.0
"""Seconds that the other threads have to end after an error."""


def each(
    work: Callable[[T, threading.Event], None],
    things: Sequence[T],
    *,
    parallel: int,
    stop: threading.Event,
    name: str,
) -> None:
    """``work`` on every thing, in their order, ``parallel`` at once. The first error ends all and is raised; Stopped
    when somebody has set ``stop``. What ``work`` is given beside its thing is set when it is to end.

    No pool: nobody who presses Ctrl-C is to wait for an answer that may not come, so threads that do not end are left
    behind, and end with what they do or with the process.
    """
    left = queue.SimpleQueue[T]()
    for thing in things:
        left.put(thing)
    ends = queue.SimpleQueue[BaseException | None]()
    over = threading.Event()

    def run() -> None:
        try:
            while not over.is_set():
                work(left.get_nowait(), over)
        except queue.Empty:
            ends.put(None)
        except BaseException as error:  # noqa: BLE001 -- raised below, by who waits
            ends.put(error)
        else:
            ends.put(None)

    threads = [
        threading.Thread(target=run, name=f"{name}-{number}", daemon=True)
        for number in range(max(1, min(parallel, len(things))))
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            if (failure := _next(ends, stop)) is not None:
                raise failure
    except Exception:
        over.set()
        last = time.monotonic() + LEAVING
        for thread in threads:
            thread.join(max(0.0, last - time.monotonic()))
        raise
    except BaseException:
        over.set()
        raise


def _next(ends: queue.SimpleQueue[BaseException | None], stop: threading.Event) -> BaseException | None:
    """How the next thread ended; Stopped, once somebody else wants the end and none does."""
    while True:
        try:
            return ends.get(timeout=LOOK)
        except queue.Empty:
            if stop.is_set():
                return Stopped("stopped from outside")
