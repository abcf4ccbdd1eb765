"""Alembic's entry: one connection, one transaction, one migrator at a time.

The address comes from ``QE_DATABASE_URL``, or from ``config.attributes["database_url"]`` for a caller inside Python.
"""

from __future__ import annotations

import logging
import time

from alembic import context
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

from core.ledger.tables import Base
from core.settings import Settings

LOCK = 0x7165_6D69  # "qemi": any number that nothing else locks
LOCK_SECONDS = 2
PAUSE_SECONDS = 1.0
TRIES = 60
LOCK_NOT_AVAILABLE = "55P03"
log = logging.getLogger("alembic.env")


def database_url() -> str:
    url = context.config.attributes.get("database_url") or Settings().database_url
    if url is None:
        raise SystemExit("QE_DATABASE_URL is not set: migrations need the address of the database, postgresql://…")
    return str(url)


def migrate(engine: Engine) -> None:
    with engine.begin() as connection:
        # Two deployments starting at once: the second waits here, then finds nothing left to do.
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        # A change of a table that waits behind a long query makes every later query wait behind itself. So it waits
        # for a moment only, lets the service go on, and comes again.
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
        context.configure(
            connection=connection, target_metadata=Base.metadata, compare_type=True, compare_server_default=True
        )
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    context.configure(url=database_url(), target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    engine = create_engine(database_url(), poolclass=NullPool)
    for attempt in range(1, TRIES + 1):
        try:
            migrate(engine)
            break
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE or attempt == TRIES:
                raise
            log.warning("a table is in use, the migration tries again (%d of %d)", attempt, TRIES)
            time.sleep(PAUSE_SECONDS)
    engine.dispose()
