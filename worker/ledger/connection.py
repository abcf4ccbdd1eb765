"""Connections of workers and keepers to the database."""

from __future__ import annotations

import psycopg
from psycopg.rows import DictRow, dict_row

from core import pooler

Connection = psycopg.Connection[DictRow]

CONNECT_SECONDS = 5
STATEMENT_SECONDS = 20
AWAY = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.IdleInTransactionSessionTimeout,
)
"""The database is not there, another one is now the primary, or it has ended a session whose machine stood still:
connect again and try again."""


def connect(database_url: str) -> Connection:
    """A connection on which no statement hangs for long: a worker that cannot write must notice it.

    Raises psycopg.OperationalError.
    """
    limits = f"-c statement_timeout={STATEMENT_SECONDS}s -c lock_timeout={STATEMENT_SECONDS}s"
    limits += " -c idle_in_transaction_session_timeout=60s"
    return psycopg.connect(
        pooler.plain(database_url),
        row_factory=dict_row,
        autocommit=True,
        connect_timeout=CONNECT_SECONDS,
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=3,
        tcp_user_timeout=STATEMENT_SECONDS * 1000,
        **pooler.of_session(database_url, limits),
    )
