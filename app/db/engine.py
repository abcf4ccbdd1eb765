"""The connection to PostgreSQL, and the wall around a tenant's transactions."""

from __future__ import annotations

import json
import select
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from psycopg import sql
from pydantic_core import from_json
from sqlalchemy import Connection, ExceptionContext, event, make_url
from sqlalchemy.exc import DataError, DisconnectionError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from core import pooler

READ_ONLY = "25006"
"""SQLSTATE of a write to a replica: a failover is under way."""
Sessions = async_sessionmaker[AsyncSession]
OpenSession = Callable[[], AbstractAsyncContextManager[AsyncSession]]

API_ROLE = "qe_api"
"""The role of a tenant's transactions. It owns nothing: row-level security binds it even where we log in as owner."""
WALL = f"SELECT set_config('role', '{API_ROLE}', true), set_config('app.tenant', {{}}, true)"
OPENING = f"BEGIN; {WALL}"
TENANT = "tenant"
CONNECTIONS = 20
"""Of one process, kept open: PostgreSQL allows 100 in all by default. What comes beyond them is closed after use."""


class WallMissing(Exception):
    """This login cannot work as the role that row-level security binds; the message says what to do."""

    def __init__(self) -> None:
        super().__init__(f"the database role {API_ROLE} is missing or not granted: run `qe migrate`")


def create_engine(database_url: str, *, connections: int = CONNECTIONS, more: int = 10) -> AsyncEngine:
    """An engine on psycopg 3; ``more``: connections beyond those that are kept open.

    Raises ValueError for anything that is not PostgreSQL.
    """
    url = make_url(pooler.plain(database_url))
    if url.get_backend_name() != "postgresql":
        raise ValueError(f"QE_DATABASE_URL: only postgresql://… is supported, not {url.get_backend_name()}://")
    engine = create_async_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=connections,
        max_overflow=more,
        pool_timeout=10,
        json_deserializer=_loads,
        use_native_hstore=False,  # no column has that type, and asking for it costs each new process a transaction
        connect_args={
            "autocommit": True,  # for the driver: `_begin` says BEGIN, and what goes with it, in one round trip
            "connect_timeout": 5,
            **pooler.of_session(database_url, "-c timezone=utc -c statement_timeout=30s"),
        },
    )
    event.listen(engine.sync_engine, "checkout", _refuse_broken)
    event.listen(engine.sync_engine, "begin", _begin)
    event.listen(engine.sync_engine, "handle_error", _leave_replicas)
    return engine


def _loads(data: bytes | str) -> Any:
    """``json.loads``, in a third of the time for the small objects of a row."""
    try:
        return from_json(data)
    except ValueError:  # nested deeper than it goes
        return json.loads(data)


def _refuse_broken(connection: Any, record: Any, proxy: Any) -> None:
    """A connection that the server has left is replaced before anybody uses it. Raises DisconnectionError.

    A server that restarts or cuts a session says so, or closes, and the socket of an idle connection has something to
    read. Looking costs no round trip, which asking would.
    """
    socket = select.poll()
    socket.register(connection.driver_connection.fileno(), select.POLLIN)
    if socket.poll(0):
        raise DisconnectionError("the server has closed this connection")


def _begin(connection: Connection) -> None:
    """BEGIN, and the tenant's wall with it; local to the transaction, so a pooled connection carries nothing over."""
    tenant = connection.get_execution_options().get(TENANT)
    if tenant is None:
        connection.exec_driver_sql("BEGIN")
        return
    try:
        # Two statements in one text take no arguments; psycopg looks for places for them all the same.
        connection.exec_driver_sql(OPENING.format(sql.quote(tenant()).replace("%", "%%")))
    except (DataError, ProgrammingError) as error:
        raise WallMissing from error


def _leave_replicas(context: ExceptionContext) -> None:
    """A server that is no longer the primary keeps its sessions, and would refuse every write for ever."""
    if getattr(context.original_exception, "sqlstate", None) == READ_ONLY:
        context.is_disconnect = True  # the whole pool is made anew


def create_sessions(engine: AsyncEngine) -> Sessions:
    """Sessions of the service itself, which see every tenant: for keys by digest and for sums over all."""
    return async_sessionmaker(engine, expire_on_commit=False)


def tenant_session(sessions: Sessions, tenant: Callable[[], str], **info: object) -> AsyncSession:
    """A session each transaction of which sees only the rows of ``tenant()``, asked for when the transaction begins.

    ``info`` is what else who has the session may want to know.
    """
    engine: AsyncEngine = sessions.kw["bind"]
    return sessions(bind=engine.execution_options(**{TENANT: tenant}), info=info)


async def release(session: AsyncSession) -> None:
    """Commit, and give the connection back before work that takes long; the next statement begins a transaction anew.

    Thirty slow readings of files would otherwise hold every connection there is, and the API with them.
    """
    await session.commit()
