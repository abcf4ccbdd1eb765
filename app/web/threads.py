"""Blocking work in threads, without a connection in the hand and without a thread of the storage."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

MOST_THREADS = 100
Found = TypeVar("Found")


async def aside(work: Callable[[], Found], *, stop: Callable[[], None] | None = None) -> Found:
    """Run ``work`` in a thread. ``app.web.turns`` bounds how many there are: none waits here.

    Who is cancelled keeps its turn until the thread ends, which nothing can cancel; ``stop`` is to make it end soon.
    """
    running = asyncio.ensure_future(anyio.to_thread.run_sync(work, limiter=_limiter()))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if stop is not None:
            stop()
        await asyncio.wait({running})
        raise


@functools.cache
def _limiter() -> anyio.CapacityLimiter:
    return anyio.CapacityLimiter(MOST_THREADS)
