"""``Client``: the blocking client. The modules of the nouns have its operations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Self, TypeVar

import httpx

from quant_experts.client import configuration
from quant_experts.client.comparisons import Comparisons
from quant_experts.client.datasets import Datasets
from quant_experts.client.jobs import Jobs
from quant_experts.client.keys import Keys
from quant_experts.client.operation import Blocking
from quant_experts.client.requests.base import Request
from quant_experts.client.retries import RetryPolicy
from quant_experts.client.service import ServiceOperations
from quant_experts.client.transport import STREAM_TIMEOUT, TIMEOUT, BlockingTransport
from quant_experts.client.views.base import Page
from quant_experts.client.webhooks import Webhooks

T = TypeVar("T")


class Client(Blocking, ServiceOperations):
    """A client of one service with one key, safe to share between threads. Close it, or use it as a context manager."""

    _transport: BlockingTransport

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        retry: RetryPolicy | None = None,
        timeout: httpx.Timeout | float = TIMEOUT,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Without ``url`` and ``api_key``: QE_URL and QE_API_KEY, then the config file. Raises MisconfiguredClient."""
        self.access = configuration.resolve(url, api_key)
        self.policy = retry or RetryPolicy()
        self._transport = BlockingTransport(self.access, self.policy, timeout=timeout, transport=transport)
        self.jobs = Jobs(self._transport)
        self.datasets = Datasets(self._transport)
        self.comparisons = Comparisons(self._transport)
        self.webhooks = Webhooks(self._transport)
        self.keys = Keys(self._transport)

    def send(self, request: Request[T]) -> T:
        """Send a request, again where that may help. Raises ApiError or ConnectionFailed."""
        return self._transport.run(self._send(request))

    def pages(self, request: Request[Page[T]]) -> Iterator[T]:
        """Every entry of a listing, page after page as they are needed."""
        return self._transport.iterate(self._pages(request))

    def stream(
        self, path: str, headers: Mapping[str, str], *, timeout: httpx.Timeout = STREAM_TIMEOUT
    ) -> AbstractContextManager[httpx.Response]:
        """One GET whose body is read as it comes. A redirect, as to an object store, is followed without our key."""
        return self._transport.stream(path, headers, timeout=timeout)

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
