"""Work on several items at once, in threads that the caller need not wait for."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from quant_experts.client.errors import Stopped

T = TypeVar("T")
POLL_SECONDS = 0.1
"""Seconds between two checks of ``stop``."""
JOIN_SECONDS = 2.0
"""Seconds that the other threads have for their end after an error."""


def run_parallel(
    work: Callable[[T, threading.Event], None],
    items: Sequence[T],
    *,
    parallel: int,
    stop: threading.Event,
    name: str,
) -> None:
    """``work(item, over)`` on every item, in their order, ``parallel`` at once. The first error sets ``over``, ends the
    others and is raised; Stopped when ``stop`` was set.

    No pool: Ctrl-C must not wait for an answer that may not come. Threads that do not end are left behind, and end with
    their work or with the process.
    """
    pending = queue.SimpleQueue[T]()
    for item in items:
        pending.put(item)
    results = queue.SimpleQueue[BaseException | None]()
    over = threading.Event()
    threads = [
        threading.Thread(target=_run, args=(work, pending, results, over), name=f"{name}-{number}", daemon=True)
        for number in range(max(1, min(parallel, len(items))))
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            if (failure := _next(results, stop)) is not None:
                raise failure
    except Exception:
        over.set()
        _join(threads)
        raise
    except BaseException:
        over.set()
        raise


def _run(
    work: Callable[[T, threading.Event], None],
    items: queue.SimpleQueue[T],
    results: queue.SimpleQueue[BaseException | None],
    over: threading.Event,
) -> None:
    """One thread. Its result is the error that ended it, or None."""
    result: BaseException | None = None
    try:
        while not over.is_set():
            work(items.get_nowait(), over)
    except queue.Empty:
        pass
    except BaseException as error:  # noqa: BLE001 -- raised by the caller's thread
        result = error
    results.put(result)


def _join(threads: Sequence[threading.Thread]) -> None:
    deadline = time.monotonic() + JOIN_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _next(results: queue.SimpleQueue[BaseException | None], stop: threading.Event) -> BaseException | None:
    """The result of the next thread that ends; Stopped when ``stop`` is set and none has ended."""
    while True:
        try:
            return results.get(timeout=POLL_SECONDS)
        except queue.Empty:
            if stop.is_set():
                return Stopped("stopped from outside")
