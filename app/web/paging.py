"""Keyset paging, newest first, with opaque signed cursors.

A cursor names the last row of a page, so rows that are added or deleted in between cause no repeated or skipped row. It
is signed because it goes into a query, and bound to the filters of its listing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, Field
from sqlalchemy import Select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.tenancy import OwnedRow
from app.web import problems
from app.web.problems import Problem
from app.web.schemas import Strict

SIGNATURE = 16
T = TypeVar("T")


class Signer(Protocol):
    """Signs cursors under the service's secret."""

    def sign(self, payload: bytes) -> bytes: ...


class PageQuery(Strict):
    """The query parameters of every listing. Unknown parameters are refused."""

    limit: int = Field(default=20, ge=1, le=100)
    cursor: str | None = Field(default=None, max_length=400, description="`next_cursor` of the page before.")


class Page(BaseModel, Generic[T]):
    data: list[T]
    has_more: bool
    next_cursor: str | None


class PageRow(Protocol):
    """A row that a cursor can refer to."""

    @property
    def id(self) -> str: ...
    @property
    def created_at(self) -> datetime: ...


RowT = TypeVar("RowT", bound=PageRow)


def as_page(rows: Iterable[RowT], cursor: str | None, view: Callable[[RowT], T]) -> Page[T]:
    """``view`` of each row. ``cursor``: of the next page; None on the last page."""
    return Page(data=[view(row) for row in rows], has_more=cursor is not None, next_cursor=cursor)


async def page_of(
    session: AsyncSession, statement: Select[OwnedRow], table: type[OwnedRow], *, query: PageQuery, signer: Signer
) -> tuple[Sequence[OwnedRow], str | None]:
    """The rows of one page and the cursor of the next. Raises Problem for a cursor of another listing."""
    last = last_seen(query, signer, table.__tablename__)
    if last is not None:
        statement = statement.where(tuple_(table.created_at, table.id) < tuple_(*last))
    statement = statement.order_by(table.created_at.desc(), table.id.desc()).limit(query.limit + 1)
    return cut((await session.scalars(statement)).all(), query, signer, table.__tablename__)


def last_seen(query: PageQuery, signer: Signer, table: str) -> tuple[datetime, str] | None:
    """Time and id of the row that the page comes after; None for the first page. Raises Problem as ``page_of``."""
    return None if query.cursor is None else _decode(signer, query.cursor, _fingerprint(table, query))


def cut(rows: Sequence[RowT], query: PageQuery, signer: Signer, table: str) -> tuple[Sequence[RowT], str | None]:
    """The page, and the cursor of the next. ``rows``: one more than ``query.limit``, if there are that many."""
    if len(rows) <= query.limit:
        return rows, None
    last = rows[query.limit - 1]
    return rows[: query.limit], _encode(signer, last.created_at, last.id, _fingerprint(table, query))


def _fingerprint(table: str, query: PageQuery) -> str:
    filters: dict[str, Any] = query.model_dump(mode="json", exclude={"limit", "cursor"})
    return hashlib.sha256(json.dumps([table, filters], sort_keys=True).encode()).hexdigest()[:16]


def _encode(signer: Signer, created_at: datetime, row_id: str, listing: str) -> str:
    payload = json.dumps([created_at.isoformat(), row_id, listing], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(signer.sign(payload) + payload).rstrip(b"=").decode()


def _decode(signer: Signer, cursor: str, listing: str) -> tuple[datetime, str]:
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    signature, payload = raw[:SIGNATURE], raw[SIGNATURE:]
    if not hmac.compare_digest(signature, signer.sign(payload)):
        raise Problem(problems.INVALID_CURSOR, "the cursor is not one that this service gave out: start without it")
    created_at, row_id, own_listing = json.loads(payload)
    if own_listing != listing:
        raise Problem(problems.INVALID_CURSOR, "the cursor belongs to other filters: keep them while paging")
    return datetime.fromisoformat(created_at), row_id
