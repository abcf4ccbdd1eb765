"""SQL text sent directly to the driver, several statements in one round trip, for the most frequent requests.

SQLAlchemy's session takes five times the processor time of a small statement (decision 0025). So the frequent
statements are text: look up a key, read a job, list jobs, create a job. Statements that are sent together take one
round trip (libpq's pipeline), and the server plans each text once per connection. All other code uses the session;
``transaction_of`` runs these texts in the transaction of a session.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import psycopg
from psycopg.rows import class_row
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.util import greenlet_spawn

from app.db.engine import API_ROLE, RLS_CONTEXT, ApiRoleMissing, Sessions

Row = TypeVar("Row")
Values = Mapping[str, Any]
Connection = psycopg.AsyncConnection[Any]
NO_SUCH_ROLE = ("22023", "42501", "42704")
"""SQLSTATEs of a login that cannot use the role: it is missing, or not granted."""


@dataclass(frozen=True)
class Statement:
    """``of``: the dataclass of its rows, with a field per column; None where it returns no rows."""

    text: str
    values: Values = field(default_factory=dict)
    of: type[Any] | None = None


def columns_of(row: type) -> str:
    """The column list of a SELECT or RETURNING whose rows become ``row``, a dataclass."""
    return ", ".join(column.name for column in fields(row))


class Transaction:
    """A transaction of one tenant. Every method raises psycopg.Error, and ApiRoleMissing."""

    def __init__(self, connection: Connection, tenant: str | None) -> None:
        """``tenant``: whose rows it sees; None for a transaction that has begun."""
        self._connection = connection
        self._prologue = () if tenant is None else (Statement("BEGIN"), _rls_context(tenant))

    async def rows(self, text: str, values: Values, *, of: type[Row]) -> list[Row]:
        (result,) = await self.run(Statement(text, values, of))
        return result

    async def run(self, *statements: Statement) -> list[list[Any]]:
        """The rows of each statement. One round trip."""
        prologue, self._prologue = self._prologue, ()
        return (await _run_with_rls(self._connection, prologue, *statements))[len(prologue) :]

    async def commit(self) -> None:
        await self._connection.commit()


def _rls_context(tenant: str) -> Statement:
    return Statement(RLS_CONTEXT.format("%(tenant)s"), {"tenant": tenant})


async def _run_with_rls(connection: Connection, wall: Sequence[Statement], *statements: Statement) -> list[list[Any]]:
    try:
        return await _run(connection, *wall, *statements)
    except psycopg.Error as error:
        if wall and error.sqlstate in NO_SUCH_ROLE and API_ROLE in (error.diag.message_primary or ""):
            raise ApiRoleMissing from error
        raise


async def _run(connection: Connection, *statements: Statement) -> list[list[Any]]:
    cursors = []
    async with connection.pipeline():
        for statement in statements:
            cursor = connection.cursor(row_factory=class_row(statement.of or object))
            await cursor.execute(statement.text.encode(), statement.values)
            cursors.append(cursor)
    return [
        await cursor.fetchall() if statement.of else [] for cursor, statement in zip(cursors, statements, strict=True)
    ]


@asynccontextmanager
async def transaction(sessions: Sessions, tenant: str) -> AsyncIterator[Transaction]:
    """A transaction that the end of the block commits, and an exception rolls back."""
    async with _connection(sessions) as connection:
        new = Transaction(connection, tenant)
        yield new
        await new.commit()


async def transaction_of(session: AsyncSession) -> Transaction:
    """The transaction of ``session``, after a flush."""
    await session.flush()
    raw = await (await session.connection()).get_raw_connection()
    assert raw.driver_connection is not None
    return Transaction(raw.driver_connection, tenant=None)


async def read(sessions: Sessions, text: str, values: Values, *, of: type[Row], tenant: str) -> list[Row]:
    """The rows of one SELECT that sees the rows of ``tenant``. One round trip: a pipeline outside of a transaction is a
    transaction of its own, and the RLS context ends with it."""

    async def ask() -> list[Row]:
        async with _connection(sessions) as connection:
            _, rows = await _run_with_rls(connection, (_rls_context(tenant),), Statement(text, values, of))
            return rows

    return await _retry_if_disconnected(ask)


async def read_across_tenants(sessions: Sessions, text: str, values: Values, *, of: type[Row]) -> list[Row]:
    """The rows of one SELECT of the service itself, which sees every tenant. Raises psycopg.Error."""

    async def ask() -> list[Row]:
        async with _connection(sessions) as connection, connection.cursor(row_factory=class_row(of)) as cursor:
            await cursor.execute(text.encode(), values)
            return await cursor.fetchall()

    return await _retry_if_disconnected(ask)


async def _retry_if_disconnected(ask: Callable[[], Awaitable[list[Row]]]) -> list[Row]:
    """Run ``ask``, and again on another connection when the first breaks, as at a failover. A SELECT is repeatable."""
    try:
        return await ask()
    except _Disconnected:
        return await ask()


class _Disconnected(psycopg.OperationalError):
    """The connection broke while it was in use."""


@asynccontextmanager
async def _connection(sessions: Sessions) -> AsyncIterator[Connection]:
    """A connection of the pool; a broken one is not returned to it."""
    engine: AsyncEngine = sessions.kw["bind"]
    raw = await engine.raw_connection()
    connection = raw.driver_connection
    assert isinstance(connection, psycopg.AsyncConnection)
    try:
        yield connection
    except psycopg.Error as error:
        if connection.closed:
            await greenlet_spawn(raw.invalidate, error)
            raise _Disconnected(str(error)) from error
        raise
    finally:
        await greenlet_spawn(raw.close)  # rolls back an open transaction
