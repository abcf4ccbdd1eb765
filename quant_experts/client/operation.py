"""Operations written once and typed for both clients: who carries one out decides whether it is called or awaited.

A method that returns steps becomes an operation by ``@operation``, one that returns a stream by ``@listing``. On an
object that is ``Blocking`` the first returns its result and the second an iterator; on one that is ``Awaited`` they
return a coroutine and an asynchronous iterator, of the same types and with the same arguments. ``mypy`` reads that from
the overloads of ``__get__``.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

import httpx

from quant_experts.client import steps
from quant_experts.client.calls import Call
from quant_experts.client.configuration import Access
from quant_experts.client.retrying import RetryPolicy
from quant_experts.client.steps import Steps, Stream
from quant_experts.client.views import Page

P = ParamSpec("P")
T = TypeVar("T")
Bound = TypeVar("Bound", bound="Operations")


class Operations:
    """Base of whatever has operations."""

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

    def _send(self, call: Call[T]) -> Steps[T]:
        return steps.send(call, access=self._access, policy=self._policy)

    def _pages(self, call: Call[Page[T]]) -> Stream[T]:
        return steps.pages(call, access=self._access, policy=self._policy)


class Blocking:
    """Its operations return when they are done."""


class Awaited:
    """Its operations are awaited."""


class operation(Generic[P, T]):  # noqa: N801 -- a decorator, like property
    def __init__(self, method: Callable[Concatenate[Any, P], Steps[T]]) -> None:
        self._method = method
        self.__doc__ = method.__doc__
        self.__wrapped__ = method

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
        def carried_out(*arguments: P.args, **named: P.kwargs) -> Any:
            return instance._transport.run(self._method(instance, *arguments, **named))

        return carried_out

    def steps(self, instance: Any, *arguments: P.args, **named: P.kwargs) -> Steps[T]:
        """As a part of another operation."""
        return self._method(instance, *arguments, **named)


class listing(Generic[P, T]):  # noqa: N801
    def __init__(self, method: Callable[Concatenate[Any, P], Stream[T]]) -> None:
        self._method = method
        self.__doc__ = method.__doc__
        self.__wrapped__ = method

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
        def iterated(*arguments: P.args, **named: P.kwargs) -> Any:
            return instance._transport.iterate(self._method(instance, *arguments, **named))

        return iterated

    def stream(self, instance: Any, *arguments: P.args, **named: P.kwargs) -> Stream[T]:
        """As a part of another operation."""
        return self._method(instance, *arguments, **named)


def bound(asker: Operations, call: Call[Bound]) -> Steps[Bound]:
    """The answer, which does what it can do with the transport of whoever asked."""
    found = yield from asker._send(call)
    found._transport = asker._transport
    return found


def bound_entries(asker: Operations, call: Call[Page[Bound]]) -> Stream[Bound]:
    """The same for every entry of a listing."""

    def read(response: httpx.Response) -> Page[Bound]:
        page = call.read(response)
        for entry in page.data:
            entry._transport = asker._transport
        return page

    return asker._pages(replace(call, read=read))
