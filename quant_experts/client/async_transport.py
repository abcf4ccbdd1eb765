"""A transport for an event loop: runs operations with an ``httpx.AsyncClient``."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import httpx

from quant_experts.client import configuration
from quant_experts.client.configuration import Access
from quant_experts.client.effects import (
    CAUGHT,
    Effect,
    Item,
    OpenStream,
    Operation,
    ReadChunk,
    RunBlocking,
    SendRequest,
    Sleep,
    Stream,
    as_stream,
)
from quant_experts.client.retries import RetryPolicy
from quant_experts.client.transport import STREAM_TIMEOUT, TIMEOUT, BlockingTransport, request_of

T = TypeVar("T")


class AwaitedTransport:
    """Runs operations in an event loop."""

    def __init__(
        self,
        access: Access,
        policy: RetryPolicy,
        *,
        timeout: httpx.Timeout | float = TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.access = access
        self.policy = policy
        self._timeout = timeout
        self._http = configuration.connected(httpx.AsyncClient, access, timeout=timeout, transport=transport)

    async def run(self, operation: Operation[T]) -> T:
        async with aclosing(self.iterate(as_stream(operation))) as results:
            return await anext(results)

    async def iterate(self, stream: Stream[T]) -> AsyncGenerator[T, None]:
        response = _OpenResponse(self._http)
        answer: Any = None
        failure: Exception | None = None
        try:
            while True:
                try:
                    effect = stream.send(answer) if failure is None else stream.throw(failure)
                except StopIteration:
                    return
                answer = failure = None
                if isinstance(effect, Item):
                    yield effect.value
                    continue
                try:
                    answer = await self._perform(effect, response)
                except CAUGHT as error:
                    failure = error
        finally:
            stream.close()
            await response.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def _perform(self, effect: Effect, response: _OpenResponse) -> Any:
        match effect:
            case SendRequest(request):
                return await self._http.send(request_of(self._http, request))
            case Sleep(seconds):
                await asyncio.sleep(seconds)
            case OpenStream(path, headers):
                return await response.open(path, headers)
            case ReadChunk():
                return await anext(response.chunks, b"")
            case RunBlocking(work):
                return await self._in_thread(work)
        return None

    async def _in_thread(self, work: Callable[[BlockingTransport, threading.Event], Any]) -> Any:
        """Run the work beside the event loop, with a blocking client of its own; a cancelled task stops it."""
        stop = threading.Event()

        def run() -> Any:
            transport = BlockingTransport(self.access, self.policy, timeout=self._timeout)
            try:
                return work(transport, stop)
            finally:
                transport.close()

        try:
            return await asyncio.to_thread(run)
        except asyncio.CancelledError:
            stop.set()
            raise


class _OpenResponse:
    """The response that is open, of which chunks are read."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._response: httpx.Response | None = None
        self.chunks: AsyncIterator[bytes] = _nothing()

    async def open(self, path: str, headers: Mapping[str, str]) -> httpx.Response:
        await self.close()
        request = self._http.build_request("GET", path, headers=headers, timeout=STREAM_TIMEOUT)
        self._response = response = await self._http.send(request, stream=True, follow_redirects=True)
        if not response.is_success:
            await response.aread()
        self.chunks = response.aiter_bytes()
        return response

    async def close(self) -> None:
        if self._response is not None:
            await self._response.aclose()


async def _nothing() -> AsyncIterator[bytes]:
    nothing: tuple[bytes, ...] = ()
    for chunk in nothing:
        yield chunk
