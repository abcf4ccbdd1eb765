"""A limiter for expensive requests: those that read files or inspect models.

A few requests of a tenant run and the others wait, before they take a database connection or a thread. Free slots go to
the tenants in turn. A client that disconnects gives its slot back at once.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import Request
from starlette.requests import ClientDisconnect

from app.web import problems
from app.web.problems import Problem

RETRY_SECONDS = "2"


class TenantLimiter:
    """Runs ``most`` requests at once, ``each`` of one tenant. ``most_waiting``: requests of a tenant that may queue."""

    def __init__(self, *, most: int, each: int, most_waiting: int = 100) -> None:
        self._most = most
        self._each = each
        self._most_waiting = most_waiting
        self._running: Counter[str] = Counter()
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}
        self._numbers = itertools.count()
        self._last: dict[str, int] = {}
        """Number of the last slot of each tenant that runs or waits."""

    @asynccontextmanager
    async def slot(self, tenant: str) -> AsyncIterator[None]:
        """Hold a slot for the block. Raises Problem 429 when too many requests of the tenant wait."""
        await self._take(tenant)
        try:
            yield
        finally:
            self._give(tenant)

    async def _take(self, tenant: str) -> None:
        if self._may_work(tenant):
            self._begin(tenant)
            return
        queue = self._queues.setdefault(tenant, deque())
        if len(queue) >= self._most_waiting:
            raise Problem(
                problems.BUSY,
                f"{len(queue)} requests of {tenant} wait for files to be read: send fewer at once, and come back in"
                f" {RETRY_SECONDS} s",
                headers={"Retry-After": RETRY_SECONDS},
            )
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._give(tenant)
            else:
                self._leave(tenant, future)
            raise

    def _may_work(self, tenant: str) -> bool:
        return self._running.total() < self._most and self._running[tenant] < self._each

    def _begin(self, tenant: str) -> None:
        self._running[tenant] += 1
        self._last[tenant] = next(self._numbers)

    def _give(self, tenant: str) -> None:
        self._running[tenant] -= 1
        while next_ones := [name for name in self._queues if self._may_work(name)]:
            longest_ago = min(next_ones, key=lambda name: self._last.get(name, -1))
            future = self._queues[longest_ago].popleft()
            if not future.cancelled():  # its task has not run yet
                self._begin(longest_ago)
                future.set_result(None)
            self._forget(longest_ago)
        self._forget(tenant)

    def _leave(self, tenant: str, future: asyncio.Future[None]) -> None:
        queue = self._queues.get(tenant, ())
        if future in queue:
            self._queues[tenant].remove(future)
        self._forget(tenant)

    def _forget(self, tenant: str) -> None:
        """Drop the state of a tenant that neither runs nor waits."""
        if not self._queues.get(tenant):
            self._queues.pop(tenant, None)
            if not self._running[tenant]:
                del self._running[tenant]
                self._last.pop(tenant, None)


@asynccontextmanager
async def limited(request: Request, turns: TenantLimiter, tenant: str) -> AsyncIterator[None]:
    """Hold a slot while the client is connected. Raises Problem 429, and ClientDisconnect."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(while_connected(request))
        await stack.enter_async_context(turns.slot(tenant))
        yield


@asynccontextmanager
async def while_connected(request: Request) -> AsyncIterator[None]:
    """Cancel the block when the client disconnects. The body has been read before. Raises ClientDisconnect."""
    task = asyncio.current_task()
    assert task is not None
    is_gone = False

    async def listen() -> None:
        nonlocal is_gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        task.cancel()

    listener = asyncio.create_task(listen())
    try:
        yield
    except asyncio.CancelledError:
        if is_gone and task.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        listener.cancel()
