"""Blocking work in threads of its own, apart from the threads of the storage."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

MOST_THREADS = 100
Result = TypeVar("Result")


async def run_in_thread(work: Callable[[], Result], *, stop: Callable[[], None] | None = None) -> Result:
    """Run ``work`` in a thread. ``app.web.limiter`` bounds the number of callers, so none waits here.

    A cancelled caller waits until the thread ends, because a thread cannot be cancelled. ``stop`` makes it end soon.
    """
    task = asyncio.ensure_future(anyio.to_thread.run_sync(work, limiter=_limiter()))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if stop is not None:
            stop()
        await asyncio.wait({task})
        raise


@functools.cache
def _limiter() -> anyio.CapacityLimiter:
    return anyio.CapacityLimiter(MOST_THREADS)
