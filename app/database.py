"""The connection to PostgreSQL."""

from __future__ import annotations

from sqlalchemy import ExceptionContext, event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

READ_ONLY = "25006"
"""SQLSTATE of a write to a replica: a failover is under way."""
Sessions = async_sessionmaker[AsyncSession]


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
    return async_sessionmaker(engine, expire_on_commit=False)
