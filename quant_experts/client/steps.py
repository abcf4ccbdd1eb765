"""What the client does, without doing it: generators that ask for an effect and are sent what came of it.

An operation is written once, here and in the modules of its noun, as steps: it yields an effect, whoever runs it
(``synchronous``, ``asynchronous``) carries that out, and sends in the outcome or throws what went wrong.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import httpx
from pydantic import ValidationError

from quant_experts.client import calls
from quant_experts.client.calls import Call
from quant_experts.client.configuration import Access
from quant_experts.client.errors import LOST_ANSWER, ClientError, error_of
from quant_experts.client.following import Following
from quant_experts.client.retrying import RetryPolicy, unreachable
from quant_experts.client.views import EventView, Page

if TYPE_CHECKING:
    from quant_experts.client.synchronous import BlockingTransport

T = TypeVar("T")
SILENCE = 600.0
"""Seconds without a word for which ``follow`` and ``wait`` go on trying to reach the service."""


@dataclass(frozen=True)
class Exchange:
    """Send one request; the answer is the response with its body."""

    call: Call[Any]


@dataclass(frozen=True)
class Pause:
    seconds: float


@dataclass(frozen=True)
class Listen:
    """Open a response whose body is read as it comes, in the place of one that is open. The answer is the response; the
    body of a refusal has been read."""

    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Chunk:
    """The answer is what came next of the open response; empty at its end."""


@dataclass(frozen=True)
class Block:
    """Work that reads and writes files, and may use threads: ``work(transport, stop)``; beside an event loop it runs in
    a thread, and ``stop`` is set when its task is cancelled. The answer is what it returns."""

    work: Callable[[BlockingTransport, threading.Event], Any]


@dataclass(frozen=True)
class Item(Generic[T]):
    """Not an effect: something for the caller who iterates."""

    value: T


Effect = Exchange | Pause | Listen | Chunk | Block
CAUGHT = (httpx.RequestError, ClientError)
"""What an effect may end with and steps may deal with."""
Steps = Generator[Effect, Any, T]
"""Ends with a T."""
Stream = Generator[Effect | Item[T], Any, None]
"""Hands out any number of T."""


def send(call: Call[T], *, access: Access, policy: RetryPolicy) -> Steps[T]:
    """Carry out one call, again where that may help. Raises ApiError or ConnectionFailed."""
    attempt = 0
    while True:
        failure: Exception | None
        try:
            response: httpx.Response = yield Exchange(call)
            failure = error_of(response)
            if failure is None:
                return _read(call, response)
        except httpx.RequestError as error:
            failure = error
        pause = policy.pause(failure, attempt=attempt, repeatable=call.repeatable)
        if pause is None:
            if isinstance(failure, httpx.RequestError):
                raise unreachable(failure, f"{call.method} {access.url}{call.path}") from failure
            raise failure
        yield Pause(pause)
        attempt += 1


def _read(call: Call[T], response: httpx.Response) -> T:
    """Raises ClientError for an answer that something else has given, or another version of the service."""
    try:
        return call.read(response)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _foreign(response, f"{'/'.join(map(str, first['loc']))} {first['msg']}".strip()) from error
    except ValueError as error:
        raise _foreign(response, str(error)) from error


def _foreign(response: httpx.Response, why: str) -> ClientError:
    kind = response.headers.get("content-type", "of no type")
    return ClientError(
        f"{response.request.method} {response.url}: the answer ({kind}) is not one that this client reads: {why}; "
        "is QE_URL the address of a Quant Experts service?"
    )


def pages(call: Call[Page[T]], *, access: Access, policy: RetryPolicy) -> Stream[T]:
    """Every entry of a listing, page after page as they are needed."""
    following: Call[Page[T]] | None = call
    while following is not None:
        page = yield from send(following, access=access, policy=policy)
        for entry in page.data:
            yield Item(entry)
        following = calls.next_page(following, page)


def follow(job_id: str, *, after: int, silence: float, policy: RetryPolicy) -> Stream[EventView]:
    """Raises ApiError, or ConnectionFailed when the service was not heard of for ``silence`` seconds."""
    following = Following(after=after, patience=silence, policy=policy)
    while not following.ended:
        failure: Exception | None = None
        try:
            response: httpx.Response = yield Listen(calls.events_path(job_id), following.headers())
            if response.status_code == 204:
                following.nothing_left()
            elif not response.is_success:
                failure = error_of(response)
            elif not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise _foreign(response, "no events")
            else:
                while chunk := (yield Chunk()):
                    for event in following.feed(chunk):
                        yield Item(event)
                following.closed()
        except httpx.RequestError as error:
            failure = error
        if not following.ended:
            yield Pause(following.pause(failure))


def block(work: Callable[[BlockingTransport, threading.Event], T]) -> Steps[T]:
    done: T = yield Block(work)
    return done


def changes_of(ask: Callable[[], Steps[T]], *, ended: Callable[[T], bool], every: float, silence: float) -> Stream[T]:
    """What ``ask`` finds, each time that it differs, every so many seconds until it has ended.

    Raises ApiError, or ConnectionFailed when the service was not heard of for ``silence`` seconds.
    """
    before: T | None = None
    heard = time.monotonic()
    while True:
        try:
            found = yield from ask()
        except LOST_ANSWER:
            if time.monotonic() - heard > silence:
                raise
        else:
            heard = time.monotonic()
            if found != before:
                yield Item(found)
            before = found
            if ended(found):
                return
        yield Pause(every)


def drained(stream: Stream[T]) -> Steps[T | None]:
    """The last thing that ``stream`` hands out."""
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


def whole(steps: Steps[T]) -> Stream[T]:
    """Steps as a stream that hands out their end."""
    end = yield from steps
    yield Item(end)
