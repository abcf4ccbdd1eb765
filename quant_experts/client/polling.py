"""Operations of several requests: one request with retries, a listing page by page, polling, following events."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import httpx
from pydantic import ValidationError

from quant_experts.client.configuration import Access
from quant_experts.client.effects import Item, OpenStream, Operation, ReadChunk, SendRequest, Sleep, Stream
from quant_experts.client.errors import LOST_ANSWER, ClientError, error_of
from quant_experts.client.event_stream import EventStream
from quant_experts.client.requests.base import Request, next_page
from quant_experts.client.requests.jobs import events_path
from quant_experts.client.retries import RetryPolicy, unreachable
from quant_experts.client.views.base import Page
from quant_experts.client.views.jobs import EventView

T = TypeVar("T")
SILENCE = 600.0
"""Seconds without an answer after which ``follow`` and ``wait`` give up."""


def send_request(request: Request[T], *, access: Access, policy: RetryPolicy) -> Operation[T]:
    """Send a request, again where that may help. Raises ApiError or ConnectionFailed."""
    attempt = 0
    while True:
        failure: Exception | None
        try:
            response: httpx.Response = yield SendRequest(request)
            failure = error_of(response)
            if failure is None:
                return _read(request, response)
        except httpx.RequestError as error:
            failure = error
        pause = policy.pause(failure, attempt=attempt, repeatable=request.repeatable)
        if pause is None:
            if isinstance(failure, httpx.RequestError):
                raise unreachable(failure, f"{request.method} {access.url}{request.path}") from failure
            raise failure
        yield Sleep(pause)
        attempt += 1


def _read(request: Request[T], response: httpx.Response) -> T:
    """Raises ClientError for an answer that something else has given, or another version of the service."""
    try:
        return request.read(response)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _unreadable_answer(response, f"{'/'.join(map(str, first['loc']))} {first['msg']}".strip()) from error
    except ValueError as error:
        raise _unreadable_answer(response, str(error)) from error


def _unreadable_answer(response: httpx.Response, why: str) -> ClientError:
    kind = response.headers.get("content-type", "of no type")
    return ClientError(
        f"{response.request.method} {response.url}: the answer ({kind}) is not one that this client reads: {why}; "
        "is QE_URL the address of a Quant Experts service?"
    )


def paginate(request: Request[Page[T]], *, access: Access, policy: RetryPolicy) -> Stream[T]:
    """Every entry of a listing, page after page as they are needed."""
    next_request: Request[Page[T]] | None = request
    while next_request is not None:
        page = yield from send_request(next_request, access=access, policy=policy)
        for entry in page.data:
            yield Item(entry)
        next_request = next_page(next_request, page)


def follow_events(job_id: str, *, after: int, silence: float, policy: RetryPolicy) -> Stream[EventView]:
    """Raises ApiError, or ConnectionFailed when the service was not heard of for ``silence`` seconds."""
    events = EventStream(after=after, patience=silence, policy=policy)
    while not events.ended:
        failure: Exception | None = None
        try:
            response: httpx.Response = yield OpenStream(events_path(job_id), events.headers())
            if response.status_code == 204:
                events.nothing_left()
            elif not response.is_success:
                failure = error_of(response)
            elif not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise _unreadable_answer(response, "no events")
            else:
                while chunk := (yield ReadChunk()):
                    for event in events.feed(chunk):
                        yield Item(event)
                events.closed()
        except httpx.RequestError as error:
            failure = error
        if not events.ended:
            yield Sleep(events.pause(failure))


def poll(ask: Callable[[], Operation[T]], *, is_over: Callable[[T], bool], every: float, silence: float) -> Stream[T]:
    """The answers of ``ask``, asked every ``every`` seconds until one ``is_over``. Equal answers in a row count once.

    Raises ApiError, or ConnectionFailed when the service was not heard of for ``silence`` seconds.
    """
    before: T | None = None
    last_answer_at = time.monotonic()
    while True:
        try:
            answer = yield from ask()
        except LOST_ANSWER:
            if time.monotonic() - last_answer_at > silence:
                raise
        else:
            last_answer_at = time.monotonic()
            if answer != before:
                yield Item(answer)
            before = answer
            if is_over(answer):
                return
        yield Sleep(every)
