"""What the client does, without doing it: generators yield effects, and a transport carries them out.

An operation is written once, as a generator that yields an effect and is sent its outcome. A blocking or an
asynchronous transport runs the generator; it throws what went wrong into it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import httpx

from quant_experts.client.configuration import Access
from quant_experts.client.errors import ClientError
from quant_experts.client.requests.base import Request
from quant_experts.client.retries import RetryPolicy

T = TypeVar("T")


class FileTransport(Protocol):
    """What work with files needs of a blocking transport."""

    access: Access
    policy: RetryPolicy

    def send(self, request: Request[T]) -> T: ...
    def stream(self, path: str, headers: Mapping[str, str]) -> AbstractContextManager[httpx.Response]: ...


@dataclass(frozen=True)
class SendRequest:
    """Send one request. The outcome is the response with its body."""

    request: Request[Any]


@dataclass(frozen=True)
class Sleep:
    seconds: float


@dataclass(frozen=True)
class OpenStream:
    """Open a response whose body is read as it comes, in place of the one that is open. The outcome is the response;
    the body of a refusal has been read."""

    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class ReadChunk:
    """The outcome is the next chunk of the open response; empty at its end."""


@dataclass(frozen=True)
class RunBlocking:
    """Run ``work(transport, stop)``, which reads and writes files and may use threads. An asynchronous transport
    runs it in a thread, and sets ``stop`` when its task is cancelled. The outcome is what it returns."""

    work: Callable[[FileTransport, threading.Event], Any]


@dataclass(frozen=True)
class Item(Generic[T]):
    """Not an effect: a value for the caller who iterates."""

    value: T


Effect = SendRequest | Sleep | OpenStream | ReadChunk | RunBlocking
CAUGHT = (httpx.RequestError, ClientError)
"""Errors of an effect that are thrown into its generator."""
Operation = Generator[Effect, Any, T]
"""Returns a T."""
Stream = Generator[Effect | Item[T], Any, None]
"""Yields any number of T."""


def run_blocking(work: Callable[[FileTransport, threading.Event], T]) -> Operation[T]:
    result: T = yield RunBlocking(work)
    return result


def last_of(stream: Stream[T]) -> Operation[T | None]:
    """The last value of ``stream``; None where it has none."""
    last: T | None = None
    answer: Any = None
    failure: Exception | None = None
    while True:
        try:
            effect = stream.send(answer) if failure is None else stream.throw(failure)
        except StopIteration:
            return last
        answer = failure = None
        if isinstance(effect, Item):
            last = effect.value
            continue
        try:
            answer = yield effect
        except CAUGHT as error:
            failure = error


def as_stream(operation: Operation[T]) -> Stream[T]:
    """A stream of one value: what ``operation`` returns."""
    result = yield from operation
    yield Item(result)
