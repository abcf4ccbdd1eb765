"""``AsyncClient``: the client for an event loop, with the methods of ``Client``, to be awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Self, TypeVar

import httpx

from quant_experts.client import configuration
from quant_experts.client.async_transport import AwaitedTransport
from quant_experts.client.comparisons import AsyncComparisons
from quant_experts.client.datasets import AsyncDatasets
from quant_experts.client.jobs import AsyncJobs
from quant_experts.client.keys import AsyncKeys
from quant_experts.client.operation import Awaited
from quant_experts.client.requests.base import Request
from quant_experts.client.retries import RetryPolicy
from quant_experts.client.service import ServiceOperations
from quant_experts.client.transport import TIMEOUT
from quant_experts.client.views.base import Page
from quant_experts.client.webhooks import AsyncWebhooks

T = TypeVar("T")


class AsyncClient(Awaited, ServiceOperations):
    """A client of one service with one key. Close it, or use it as an asynchronous context manager."""

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

    async def send(self, request: Request[T]) -> T:
        """Send a request, again where that may help. Raises ApiError or ConnectionFailed."""
        return await self._transport.run(self._send(request))

    def pages(self, request: Request[Page[T]]) -> AsyncIterator[T]:
        """Every entry of a listing, page after page as they are needed."""
        return self._transport.iterate(self._pages(request))

    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
