"""The connection to PostgreSQL."""

from __future__ import annotations

from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

Sessions = async_sessionmaker[AsyncSession]


def create_engine(database_url: str) -> AsyncEngine:
    """An engine on psycopg 3. Raises ValueError for anything that is not PostgreSQL."""
    url = make_url(database_url)
    if url.get_backend_name() != "postgresql":
        raise ValueError(f"QE_DATABASE_URL: only postgresql://… is supported, not {url.get_backend_name()}://")
    return create_async_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=10,
        max_overflow=20,
        pool_timeout=10,
        pool_pre_ping=True,  # a restarted server costs one round trip, not one failed request
        connect_args={"connect_timeout": 5, "options": "-c timezone=utc -c statement_timeout=30s"},
    )


def create_sessions(engine: AsyncEngine) -> Sessions:
    return async_sessionmaker(engine, expire_on_commit=False)
