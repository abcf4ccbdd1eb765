"""``AsyncClient``: the API for programs that run in an event loop. The same methods as ``Client``, to be awaited."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any, Self, TypeVar

import httpx

from quant_experts.client import configuration, steps
from quant_experts.client.calls import Call
from quant_experts.client.comparisons import AsyncComparisons
from quant_experts.client.configuration import Access
from quant_experts.client.datasets import AsyncDatasets
from quant_experts.client.jobs import AsyncJobs
from quant_experts.client.keys import AsyncKeys
from quant_experts.client.operation import Awaited
from quant_experts.client.retrying import RetryPolicy
from quant_experts.client.service import ServiceOperations
from quant_experts.client.steps import CAUGHT, Block, Chunk, Effect, Exchange, Item, Listen, Pause, Steps, Stream
from quant_experts.client.synchronous import STREAM_TIMEOUT, TIMEOUT, BlockingTransport, request_of
from quant_experts.client.views import Page
from quant_experts.client.webhooks import AsyncWebhooks

T = TypeVar("T")


class AsyncClient(Awaited, ServiceOperations):
    """Speaks to one service with one key. Close it, or use it as an asynchronous context manager."""

    _transport: AwaitedTransport

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        retry: RetryPolicy | None = None,
        timeout: httpx.Timeout | float = TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Without ``url`` and ``api_key``: QE_URL and QE_API_KEY, then the config file. ``transport`` does not carry
        what is uploaded and pulled, which blocking connections in threads do. Raises MisconfiguredClient."""
        self.access = configuration.resolve(url, api_key)
        self.policy = retry or RetryPolicy()
        self._transport = AwaitedTransport(self.access, self.policy, timeout=timeout, transport=transport)
        self.jobs = AsyncJobs(self._transport)
        self.datasets = AsyncDatasets(self._transport)
        self.comparisons = AsyncComparisons(self._transport)
        self.webhooks = AsyncWebhooks(self._transport)
        self.keys = AsyncKeys(self._transport)

    async def send(self, call: Call[T]) -> T:
        """Carry out one call, again where that may help. Raises ApiError or ConnectionFailed."""
        return await self._transport.run(self._send(call))

    def pages(self, call: Call[Page[T]]) -> AsyncIterator[T]:
        """Every entry of a listing, page after page as they are needed."""
        return self._transport.iterate(self._pages(call))

    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AwaitedTransport:
    """Carries out steps in an event loop."""

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

    async def run(self, work: Steps[T]) -> T:
        async with aclosing(self.iterate(steps.whole(work))) as results:
            return await anext(results)

    async def iterate(self, stream: Stream[T]) -> AsyncGenerator[T, None]:
        listening = _Listening(self._http)
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
                    answer = await self._perform(effect, listening)
                except CAUGHT as error:
                    failure = error
        finally:
            stream.close()
            await listening.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def _perform(self, effect: Effect, listening: _Listening) -> Any:
        match effect:
            case Exchange(call):
                return await self._http.send(request_of(self._http, call))
            case Pause(seconds):
                await asyncio.sleep(seconds)
            case Listen(path, headers):
                return await listening.open(path, headers)
            case Chunk():
                return await anext(listening.chunks, b"")
            case Block(work):
                return await self._in_thread(work)
        return None

    async def _in_thread(self, work: Callable[[BlockingTransport, threading.Event], Any]) -> Any:
        """Beside the event loop, with a blocking client of its own; a cancelled task stops it."""
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


class _Listening:
    """The one response that is open."""

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
