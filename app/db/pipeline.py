"""Statements as text, straight to the driver, for the requests that come most often.

SQLAlchemy's session takes five times the processor time of a small statement itself (decision 0025). So what platforms
ask all day long is written as text: whose key this is, a job, a page of jobs, and the making of one. What goes out
together goes in one round trip (libpq's pipeline), and the server plans each text once for a connection. All other
code uses the session; ``joined`` lets it run these texts in its own transaction.
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

from app.db.engine import API_ROLE, WALL, Sessions, WallMissing

Row = TypeVar("Row")
Values = Mapping[str, Any]
Connection = psycopg.AsyncConnection[Any]
NO_SUCH_ROLE = ("22023", "42501", "42704")
"""SQLSTATEs of a wall that this login cannot build: no role, or not granted."""


@dataclass(frozen=True)
class Statement:
    """``of``: the dataclass of its rows, whose fields are its columns; None where it returns none."""

    text: str
    values: Values = field(default_factory=dict)
    of: type[Any] | None = None


def columns_of(row: type) -> str:
    """What a SELECT or RETURNING names so that its rows become ``row``, a dataclass."""
    return ", ".join(column.name for column in fields(row))


class Transaction:
    """A transaction of one tenant. Every method raises psycopg.Error, and WallMissing."""

    def __init__(self, connection: Connection, tenant: str | None) -> None:
        """``tenant``: whose rows it sees; None where it has begun before."""
        self._connection = connection
        self._opening = () if tenant is None else (Statement("BEGIN"), _wall(tenant))

    async def rows(self, text: str, values: Values, *, of: type[Row]) -> list[Row]:
        (found,) = await self.run(Statement(text, values, of))
        return found

    async def run(self, *statements: Statement) -> list[list[Any]]:
        """The rows of each statement. One round trip."""
        opening, self._opening = self._opening, ()
        return (await _run_behind_wall(self._connection, opening, *statements))[len(opening) :]

    async def commit(self) -> None:
        await self._connection.commit()


def _wall(tenant: str) -> Statement:
    return Statement(WALL.format("%(tenant)s"), {"tenant": tenant})


async def _run_behind_wall(
    connection: Connection, wall: Sequence[Statement], *statements: Statement
) -> list[list[Any]]:
    try:
        return await _run(connection, *wall, *statements)
    except psycopg.Error as error:
        if wall and error.sqlstate in NO_SUCH_ROLE and API_ROLE in (error.diag.message_primary or ""):
            raise WallMissing from error
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
    """Committed at the end of the block; rolled back when it raises."""
    async with _connection(sessions) as connection:
        opened = Transaction(connection, tenant)
        yield opened
        await opened.commit()


async def joined(session: AsyncSession) -> Transaction:
    """The transaction of ``session``, with what it has flushed."""
    await session.flush()
    pooled = await (await session.connection()).get_raw_connection()
    assert pooled.driver_connection is not None
    return Transaction(pooled.driver_connection, tenant=None)


async def read(sessions: Sessions, text: str, values: Values, *, of: type[Row], tenant: str) -> list[Row]:
    """The rows of one SELECT that sees the rows of ``tenant``. One round trip: what is in one pipeline outside of a
    transaction is a transaction of its own, which ends with it, and the wall with that."""

    async def ask() -> list[Row]:
        async with _connection(sessions) as connection:
            _, found = await _run_behind_wall(connection, (_wall(tenant),), Statement(text, values, of))
            return found

    return await _once_more_if_gone(ask)


async def look_up(sessions: Sessions, text: str, values: Values, *, of: type[Row]) -> list[Row]:
    """The rows of one SELECT of the service itself, which sees every tenant. Raises psycopg.Error."""

    async def ask() -> list[Row]:
        async with _connection(sessions) as connection, connection.cursor(row_factory=class_row(of)) as cursor:
            await cursor.execute(text.encode(), values)
            return await cursor.fetchall()

    return await _once_more_if_gone(ask)


async def _once_more_if_gone(ask: Callable[[], Awaitable[list[Row]]]) -> list[Row]:
    """A SELECT has no effect: when its connection goes before the answer comes, as at a failover, another is asked."""
    try:
        return await ask()
    except _Gone:
        return await ask()


class _Gone(psycopg.OperationalError):
    """The connection broke while it was in use."""


@asynccontextmanager
async def _connection(sessions: Sessions) -> AsyncIterator[Connection]:
    """One of the pool's connections; a broken one does not go back."""
    engine: AsyncEngine = sessions.kw["bind"]
    pooled = await engine.raw_connection()
    connection = pooled.driver_connection
    assert isinstance(connection, psycopg.AsyncConnection)
    try:
        yield connection
    except psycopg.Error as error:
        if connection.closed:
            await greenlet_spawn(pooled.invalidate, error)
            raise _Gone(str(error)) from error
        raise
    finally:
        await greenlet_spawn(pooled.close)  # rolls back what an error has left open
