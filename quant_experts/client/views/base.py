"""A view keeps the fields that this version does not know; a page is one part of a listing."""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict

T = TypeVar("T")


class View(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


class Page(View, Generic[T]):
    """One page of a listing; ``next_cursor`` is None on the last."""

    data: list[T]
    has_more: bool
    next_cursor: str | None
