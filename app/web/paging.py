"""Keyset paging, newest first, with opaque signed cursors.

A cursor names the last row of a page, so rows that appear or vanish in between never repeat or skip one. It is signed
because it goes straight into a query, and bound to the listing's filters because with others it would mean nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.auth import Keyring
from app.db.tenancy import Owned
from app.web import problems
from app.web.problems import Problem

SIGNATURE = 16
T = TypeVar("T")


class PageQuery(BaseModel):
    """The query parameters of every listing. A parameter that does not exist is refused, not ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: int = Field(default=20, ge=1, le=100)
    cursor: str | None = Field(default=None, max_length=400, description="`next_cursor` of the page before.")


class Page(BaseModel, Generic[T]):
    data: list[T]
    has_more: bool
    next_cursor: str | None


class Placed(Protocol):
    """A row that a cursor can name."""

    @property
    def id(self) -> str: ...
    @property
    def created_at(self) -> datetime: ...


RowT = TypeVar("RowT", bound=Placed)


async def page_of(
    session: AsyncSession, statement: Select[Owned], table: type[Owned], *, query: PageQuery, keyring: Keyring
) -> tuple[Sequence[Owned], str | None]:
    """The rows of one page and the cursor of the next. Raises Problem for a cursor of another listing."""
    last = last_seen(query, keyring, table.__tablename__)
    if last is not None:
        statement = statement.where(tuple_(table.created_at, table.id) < tuple_(*last))
    statement = statement.order_by(table.created_at.desc(), table.id.desc()).limit(query.limit + 1)
    return cut((await session.scalars(statement)).all(), query, keyring, table.__tablename__)


def last_seen(query: PageQuery, keyring: Keyring, table: str) -> tuple[datetime, str] | None:
    """Time and id of the row that the page comes after; None for the first page. Raises Problem as ``page_of``."""
    return None if query.cursor is None else _decode(keyring, query.cursor, _fingerprint(table, query))


def cut(rows: Sequence[RowT], query: PageQuery, keyring: Keyring, table: str) -> tuple[Sequence[RowT], str | None]:
    """``rows``: one more than a page holds, if there are so many. The page, and the cursor of the next."""
    if len(rows) <= query.limit:
        return rows, None
    last = rows[query.limit - 1]
    return rows[: query.limit], _encode(keyring, last.created_at, last.id, _fingerprint(table, query))


def _fingerprint(table: str, query: PageQuery) -> str:
    filters: dict[str, Any] = query.model_dump(mode="json", exclude={"limit", "cursor"})
    return hashlib.sha256(json.dumps([table, filters], sort_keys=True).encode()).hexdigest()[:16]


def _encode(keyring: Keyring, created_at: datetime, row_id: str, listing: str) -> str:
    payload = json.dumps([created_at.isoformat(), row_id, listing], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(keyring.sign(payload) + payload).rstrip(b"=").decode()


def _decode(keyring: Keyring, cursor: str, listing: str) -> tuple[datetime, str]:
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    signature, payload = raw[:SIGNATURE], raw[SIGNATURE:]
    if not hmac.compare_digest(signature, keyring.sign(payload)):
        raise Problem(problems.INVALID_CURSOR, "the cursor is not one that this service gave out: start without it")
    created_at, row_id, its_listing = json.loads(payload)
    if its_listing != listing:
        raise Problem(problems.INVALID_CURSOR, "the cursor belongs to other filters: keep them while paging")
    return datetime.fromisoformat(created_at), row_id
