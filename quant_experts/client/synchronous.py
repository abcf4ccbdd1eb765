"""``Client``: the API for programs that block. What its operations do is in the modules of their nouns."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from typing import Any, Self, TypeVar

import httpx

from quant_experts.client import configuration, steps
from quant_experts.client.calls import Call
from quant_experts.client.comparisons import Comparisons
from quant_experts.client.configuration import Access
from quant_experts.client.datasets import Datasets
from quant_experts.client.jobs import Jobs
from quant_experts.client.keys import Keys
from quant_experts.client.operation import Blocking
from quant_experts.client.retrying import RetryPolicy
from quant_experts.client.sending import CountedStream
from quant_experts.client.service import ServiceOperations
from quant_experts.client.steps import CAUGHT, Block, Chunk, Effect, Exchange, Item, Listen, Pause, Steps, Stream
from quant_experts.client.views import Page
from quant_experts.client.webhooks import Webhooks

T = TypeVar("T")

TIMEOUT = httpx.Timeout(60.0, connect=10.0)
STREAM_TIMEOUT = httpx.Timeout(45.0, connect=10.0)
"""The service says something every 15 seconds; three times that and the connection is dead."""


class Client(Blocking, ServiceOperations):
    """Speaks to one service with one key. Safe to share between threads. Close it, or use it as a context manager."""

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

    def send(self, call: Call[T]) -> T:
        """Carry out one call, again where that may help. Raises ApiError or ConnectionFailed."""
        return self._transport.run(self._send(call))

    def pages(self, call: Call[Page[T]]) -> Iterator[T]:
        """Every entry of a listing, page after page as they are needed."""
        return self._transport.iterate(self._pages(call))

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


class BlockingTransport:
    """Carries out steps with a blocking HTTP client."""

    def __init__(
        self,
        access: Access,
        policy: RetryPolicy,
        *,
        timeout: httpx.Timeout | float = TIMEOUT,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.access = access
        self.policy = policy
        self._http = configuration.connected(httpx.Client, access, timeout=timeout, transport=transport)

    def send(self, call: Call[T]) -> T:
        return self.run(steps.send(call, access=self.access, policy=self.policy))

    def run(self, work: Steps[T]) -> T:
        with closing(self.iterate(steps.whole(work))) as results:
            return next(results)

    def iterate(self, stream: Stream[T]) -> Generator[T, None, None]:
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
                    answer = self._perform(effect, listening)
                except CAUGHT as error:
                    failure = error
        finally:
            stream.close()
            listening.close()

    def stream(
        self, path: str, headers: Mapping[str, str], *, timeout: httpx.Timeout = STREAM_TIMEOUT
    ) -> AbstractContextManager[httpx.Response]:
        return self._http.stream("GET", path, headers=headers, timeout=timeout, follow_redirects=True)

    def close(self) -> None:
        self._http.close()

    def _perform(self, effect: Effect, listening: _Listening) -> Any:
        match effect:
            case Exchange(call):
                return self._http.send(request_of(self._http, call))
            case Pause(seconds):
                time.sleep(seconds)
            case Listen(path, headers):
                return listening.open(path, headers)
            case Chunk():
                return next(listening.chunks, b"")
            case Block(work):
                return work(self, threading.Event())
        return None


def request_of(http: httpx.Client | httpx.AsyncClient, call: Call[Any]) -> httpx.Request:
    request = http.build_request(call.method, call.path, **call.sent())
    if call.on_sent is not None:
        request.stream = CountedStream(request.stream, call.on_sent)
    return request


class _Listening:
    """The one response that is open."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._response: httpx.Response | None = None
        self.chunks: Iterator[bytes] = iter(())

    def open(self, path: str, headers: Mapping[str, str]) -> httpx.Response:
        self.close()
        request = self._http.build_request("GET", path, headers=headers, timeout=STREAM_TIMEOUT)
        self._response = response = self._http.send(request, stream=True, follow_redirects=True)
        if not response.is_success:
            response.read()
        self.chunks = response.iter_bytes()
        return response

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
