"""The connection to PostgreSQL, and the wall around a tenant's transactions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from sqlalchemy import Connection, ExceptionContext, event, make_url
from sqlalchemy.exc import DataError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, SessionTransaction, sessionmaker

READ_ONLY = "25006"
"""SQLSTATE of a write to a replica: a failover is under way."""
Sessions = async_sessionmaker[AsyncSession]
OpenSession = Callable[[], AbstractAsyncContextManager[AsyncSession]]

API_ROLE = "qe_api"
"""The role of a tenant's transactions. It owns nothing: row-level security binds it even where we log in as owner."""
WALL = f"SELECT set_config('role', '{API_ROLE}', true), set_config('app.tenant', %s, true)"
TENANT = "tenant"


class WallMissing(Exception):
    """This login cannot work as the role that row-level security binds; the message says what to do."""


def create_engine(database_url: str) -> AsyncEngine:
    """An engine on psycopg 3. Raises ValueError for anything that is not PostgreSQL."""
    url = make_url(database_url)
    if url.get_backend_name() != "postgresql":
        raise ValueError(f"QE_DATABASE_URL: only postgresql://… is supported, not {url.get_backend_name()}://")
    engine = create_async_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=10,
        max_overflow=20,
        pool_timeout=10,
        pool_pre_ping=True,  # a restarted server costs one round trip, not one failed request
        connect_args={"connect_timeout": 5, "options": "-c timezone=utc -c statement_timeout=30s"},
    )
    event.listen(engine.sync_engine, "handle_error", _leave_replicas)
    return engine


def _leave_replicas(context: ExceptionContext) -> None:
    """A session on a server that is no longer the primary answers every ping, and would refuse every write for ever."""
    if getattr(context.original_exception, "sqlstate", None) == READ_ONLY:
        context.is_disconnect = True  # the whole pool is made anew


def create_sessions(engine: AsyncEngine) -> Sessions:
    """Sessions of the service itself, which see every tenant: for keys by digest and for sums over all."""
    ledger = sessionmaker()
    event.listen(ledger, "after_begin", _go_behind_the_wall)
    return async_sessionmaker(engine, sync_session_class=ledger, expire_on_commit=False)


def tenant_session(sessions: Sessions, tenant: Callable[[], str], **info: object) -> AsyncSession:
    """A session each transaction of which sees only the rows of ``tenant()``, asked for when the transaction begins.

    ``info`` is what else who has the session may want to know.
    """
    return sessions(info={TENANT: tenant, **info})


def _go_behind_the_wall(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    """The one statement that a transaction costs more; local to it, so a pooled connection carries nothing over."""
    tenant = session.info.get(TENANT)
    if tenant is None:
        return
    try:
        connection.exec_driver_sql(WALL, (tenant(),))
    except (DataError, ProgrammingError) as error:
        raise WallMissing(
            f"the database role {API_ROLE} is missing or not granted: run `alembic upgrade head`"
        ) from error
