"""Alembic's entry: one connection, one transaction, one migrator at a time.

The address comes from ``QE_DATABASE_URL``, or from ``config.attributes["database_url"]`` for a caller inside Python.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import NullPool, create_engine, text

from app.contract.tables import Base
from app.settings import Settings

LOCK = 0x7165_6D69  # "qemi": any number that nothing else locks


def database_url() -> str:
    url = context.config.attributes.get("database_url") or Settings().database_url
    if url is None:
        raise SystemExit("QE_DATABASE_URL is not set: migrations need the address of the database, postgresql://…")
    return str(url)


if context.is_offline_mode():
    context.configure(url=database_url(), target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    engine = create_engine(database_url(), poolclass=NullPool)
    with engine.begin() as connection:
        # Two deployments starting at once: the second waits here, then finds nothing left to do.
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        context.configure(
            connection=connection, target_metadata=Base.metadata, compare_type=True, compare_server_default=True
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()
