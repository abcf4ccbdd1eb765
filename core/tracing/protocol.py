"""Spans as the service makes them, and the tracing that makes none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

Attributes = Mapping[str, str | int | float | bool | None]
"""Values by name; those that are None are left out."""
Carrier = dict[str, str]
"""The headers of W3C Trace Context that name a span: ``traceparent``, and ``tracestate`` where a client sent one."""


class Span(Protocol):
    """Something that takes time. It is sent when it has ended, and never when it has not."""

    @property
    def ids(self) -> Mapping[str, str]:
        """``trace_id``, for log lines; nothing when there is no trace."""

    @property
    def carrier(self) -> Carrier | None:
        """Names this span to another process, whenever that may come to it."""

    def child(self, name: str, attributes: Attributes | None = None, *, began: float | None = None) -> Span:
        """A part of it; ``began``: Unix seconds, for one that is already over."""

    def note(self, attributes: Attributes) -> None: ...

    def rename(self, name: str) -> None: ...

    def link(self, carrier: Mapping[str, str] | None) -> None:
        """Link the span to another one, which may belong to another trace."""

    def fail(self, why: str) -> None: ...

    def end(self, at: float | None = None) -> None:
        """``at``: Unix seconds, for one that ended before it was heard of."""


class Tracing(Protocol):
    def request(self, method: str, headers: Mapping[str, str]) -> Span:
        """The span of a request, below the span that its ``traceparent`` names."""

    def attempt(
        self,
        job_id: str,
        number: int,
        attributes: Attributes,
        *,
        carrier: Mapping[str, str] | None,
        began: float | None = None,
    ) -> Span:
        """The span of one attempt at a job. Its parent is a short span ``attempt started``, whose parent is the request
        that made the job. Without ``began`` the attempt begins now and its start is sent at once, so that the trace of
        a running job hangs together. The ids of both spans follow from job and number. So whoever learns that an
        attempt is over can end its span, although its worker is gone (``began``: Unix seconds). That span lies below
        the request itself, because nobody knows whether the worker's start was sent."""

    def close(self) -> None:
        """Send what is left, if that is a matter of moments."""


class _Nothing:
    """Both a span and a tracing, and does nothing."""

    ids: Mapping[str, str] = {}
    carrier: Carrier | None = None

    def child(self, name: str, attributes: Attributes | None = None, *, began: float | None = None) -> Span:
        return self

    def note(self, attributes: Attributes) -> None: ...

    def rename(self, name: str) -> None: ...

    def link(self, carrier: Mapping[str, str] | None) -> None: ...

    def fail(self, why: str) -> None: ...

    def end(self, at: float | None = None) -> None: ...

    def request(self, method: str, headers: Mapping[str, str]) -> Span:
        return self

    def attempt(
        self,
        job_id: str,
        number: int,
        attributes: Attributes,
        *,
        carrier: Mapping[str, str] | None,
        began: float | None = None,
    ) -> Span:
        return self

    def close(self) -> None: ...


OFF = _Nothing()
_current: ContextVar[Span] = ContextVar("span", default=OFF)


def current() -> Span:
    """The span of the request that is being answered."""
    return _current.get()


@contextmanager
def within(span: Span) -> Iterator[None]:
    """Inside, ``span`` is the current one."""
    token = _current.set(span)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def part(span: Span, name: str, attributes: Attributes | None = None) -> Iterator[Span]:
    """A child that lasts as long as the block, and has failed when the block has."""
    child = span.child(name, attributes)
    try:
        yield child
    except BaseException as error:
        child.fail(f"{type(error).__name__}: {error}")
        raise
    finally:
        child.end()
