"""Operations written once and typed for both clients: the owner decides whether one is called or awaited.

A method that returns an ``Operation`` is decorated with ``@operation``, one that returns a ``Stream`` with
``@listing``. On a ``Blocking`` object the first returns its result and the second an iterator. On an ``Awaited`` object
they return a coroutine and an asynchronous iterator, with the same types and arguments; ``mypy`` reads that from the
overloads of ``__get__``.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

import httpx

from quant_experts.client.configuration import Access
from quant_experts.client.effects import Operation, Stream
from quant_experts.client.polling import paginate, send_request
from quant_experts.client.requests.base import Request
from quant_experts.client.retries import RetryPolicy
from quant_experts.client.views.base import Page

P = ParamSpec("P")
T = TypeVar("T")
Effects = TypeVar("Effects")
Bound = TypeVar("Bound", bound="Operations")


class Operations:
    """Base of every class with operations."""

    if TYPE_CHECKING:
        _transport: Any

    @property
    def _access(self) -> Access:
        access: Access = self._transport.access
        return access

    @property
    def _policy(self) -> RetryPolicy:
        policy: RetryPolicy = self._transport.policy
        return policy

    def _send(self, request: Request[T]) -> Operation[T]:
        return send_request(request, access=self._access, policy=self._policy)

    def _pages(self, request: Request[Page[T]]) -> Stream[T]:
        return paginate(request, access=self._access, policy=self._policy)


class Blocking:
    """Its operations return when they are done."""


class Awaited:
    """Its operations are awaited."""


class _Decorator(Generic[P, Effects]):
    def __init__(self, method: Callable[Concatenate[Any, P], Effects]) -> None:
        self._method = method
        self.__doc__ = method.__doc__
        self.__wrapped__ = method


class operation(Generic[P, T], _Decorator[P, Operation[T]]):  # noqa: N801 -- a decorator, like property
    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Blocking, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, instance: Awaited, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self

        @functools.wraps(self._method)
        def run(*arguments: P.args, **keywords: P.kwargs) -> Any:
            return instance._transport.run(self._method(instance, *arguments, **keywords))

        return run


class listing(Generic[P, T], _Decorator[P, Stream[T]]):  # noqa: N801
    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Blocking, owner: type) -> Callable[P, Iterator[T]]: ...
    @overload
    def __get__(self, instance: Awaited, owner: type) -> Callable[P, AsyncIterator[T]]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self

        @functools.wraps(self._method)
        def iterate(*arguments: P.args, **keywords: P.kwargs) -> Any:
            return instance._transport.iterate(self._method(instance, *arguments, **keywords))

        return iterate


def bound(owner: Operations, request: Request[Bound]) -> Operation[Bound]:
    """The answer, as an object whose operations use the transport of ``owner``."""
    answer = yield from owner._send(request)
    answer._transport = owner._transport
    return answer


def bound_entries(owner: Operations, request: Request[Page[Bound]]) -> Stream[Bound]:
    """Every entry of a listing, as ``bound``."""

    def read(response: httpx.Response) -> Page[Bound]:
        page = request.read(response)
        for entry in page.data:
            entry._transport = owner._transport
        return page

    return owner._pages(replace(request, read=read))
