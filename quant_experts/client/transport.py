"""A transport that blocks: runs operations with an ``httpx.Client``."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing
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
from quant_experts.client.polling import send_request
from quant_experts.client.requests.base import Request
from quant_experts.client.retries import RetryPolicy
from quant_experts.client.upload_progress import CountedStream

T = TypeVar("T")
TIMEOUT = httpx.Timeout(60.0, connect=10.0)
STREAM_TIMEOUT = httpx.Timeout(45.0, connect=10.0)
"""The service says something every 15 seconds; three times that and the connection is dead."""


class BlockingTransport:
    """Runs operations with a blocking HTTP client."""

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

    def send(self, request: Request[T]) -> T:
        return self.run(send_request(request, access=self.access, policy=self.policy))

    def run(self, operation: Operation[T]) -> T:
        with closing(self.iterate(as_stream(operation))) as results:
            return next(results)

    def iterate(self, stream: Stream[T]) -> Generator[T, None, None]:
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
                    answer = self._perform(effect, response)
                except CAUGHT as error:
                    failure = error
        finally:
            stream.close()
            response.close()

    def stream(
        self, path: str, headers: Mapping[str, str], *, timeout: httpx.Timeout = STREAM_TIMEOUT
    ) -> AbstractContextManager[httpx.Response]:
        return self._http.stream("GET", path, headers=headers, timeout=timeout, follow_redirects=True)

    def close(self) -> None:
        self._http.close()

    def _perform(self, effect: Effect, response: _OpenResponse) -> Any:
        match effect:
            case SendRequest(request):
                return self._http.send(request_of(self._http, request))
            case Sleep(seconds):
                time.sleep(seconds)
            case OpenStream(path, headers):
                return response.open(path, headers)
            case ReadChunk():
                return next(response.chunks, b"")
            case RunBlocking(work):
                return work(self, threading.Event())
        return None


def request_of(http: httpx.Client | httpx.AsyncClient, request: Request[Any]) -> httpx.Request:
    new = http.build_request(request.method, request.path, **request.arguments())
    if request.on_sent is not None:
        new.stream = CountedStream(new.stream, request.on_sent)
    return new


class _OpenResponse:
    """The response that is open, of which chunks are read."""

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
