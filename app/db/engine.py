"""The connection to PostgreSQL, and the row-level security (RLS) context of a tenant's transactions."""

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
"""SQLSTATE of a write to a replica, as during a failover."""
Sessions = async_sessionmaker[AsyncSession]
OpenSession = Callable[[], AbstractAsyncContextManager[AsyncSession]]

API_ROLE = "qe_api"
"""The role of a tenant's transactions. It owns no table, so RLS binds it even where we log in as the owner."""
RLS_CONTEXT = f"SELECT set_config('role', '{API_ROLE}', true), set_config('app.tenant', {{}}, true)"
BEGIN_WITH_RLS = f"BEGIN; {RLS_CONTEXT}"
TENANT = "tenant"
CONNECTIONS = 20
"""Connections of one process that stay open; PostgreSQL allows 100 in all by default. Others are closed after use."""


class ApiRoleMissing(Exception):
    """This login cannot use the role that RLS binds; the message says what to do."""

    def __init__(self) -> None:
        super().__init__(f"the database role {API_ROLE} is missing or not granted: run `qe migrate`")


def create_engine(database_url: str, *, connections: int = CONNECTIONS, more: int = 10) -> AsyncEngine:
    """An engine on psycopg 3. ``more``: connections beyond those that stay open. Raises ValueError for a URL of another
    database than PostgreSQL."""
    url = make_url(pooler.plain(database_url))
    if url.get_backend_name() != "postgresql":
        raise ValueError(f"QE_DATABASE_URL: only postgresql://… is supported, not {url.get_backend_name()}://")
    engine = create_async_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=connections,
        max_overflow=more,
        pool_timeout=10,
        json_deserializer=_loads,
        use_native_hstore=False,  # no column has that type, and the check costs each new process a transaction
        connect_args={
            "autocommit": True,  # `_begin` sends BEGIN and the RLS context in one round trip
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
    except ValueError:  # nested too deeply for pydantic_core
        return json.loads(data)


def _refuse_broken(connection: Any, record: Any, proxy: Any) -> None:
    """Replace a connection that the server has closed. Raises DisconnectionError.

    When a server restarts or ends a session, the socket of an idle connection becomes readable. Polling it costs no
    round trip.
    """
    socket = select.poll()
    socket.register(connection.driver_connection.fileno(), select.POLLIN)
    if socket.poll(0):
        raise DisconnectionError("the server has closed this connection")


def _begin(connection: Connection) -> None:
    """BEGIN with the RLS context of the tenant. The context ends with the transaction."""
    tenant = connection.get_execution_options().get(TENANT)
    if tenant is None:
        connection.exec_driver_sql("BEGIN")
        return
    try:
        # Two statements in one text take no parameters, but psycopg still parses placeholders.
        connection.exec_driver_sql(BEGIN_WITH_RLS.format(sql.quote(tenant()).replace("%", "%%")))
    except (DataError, ProgrammingError) as error:
        raise ApiRoleMissing from error


def _leave_replicas(context: ExceptionContext) -> None:
    """A server that is no longer the primary keeps its sessions and refuses every write."""
    if getattr(context.original_exception, "sqlstate", None) == READ_ONLY:
        context.is_disconnect = True  # replaces the whole pool


def create_sessions(engine: AsyncEngine) -> Sessions:
    """Sessions of the service itself. They see every tenant: for keys by digest, and for sums over all tenants."""
    return async_sessionmaker(engine, expire_on_commit=False)


def tenant_session(sessions: Sessions, tenant: Callable[[], str], **info: object) -> AsyncSession:
    """A session whose transactions see only the rows of ``tenant()``, called when a transaction begins.

    ``info``: values for the code that uses the session.
    """
    engine: AsyncEngine = sessions.kw["bind"]
    return sessions(bind=engine.execution_options(**{TENANT: tenant}), info=info)


async def release(session: AsyncSession) -> None:
    """Commit and give the connection back, before slow work. The next statement begins a new transaction.

    Thirty slow reads of files would otherwise hold every connection of the API.
    """
    await session.commit()
