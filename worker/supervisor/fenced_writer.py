"""Fenced writes that are tried again through a restart of PostgreSQL, as long as the lease is held."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

import psycopg

from worker import metrics
from worker.ledger import attempts as ledger
from worker.ledger.connection import AWAY, Connection, connect
from worker.supervisor.lease import Lease, LeaseState, Lost

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

RETRY_SECONDS = 1.0
REFUSALS = 5
"""Tries of a write that breaks a constraint, before the error counts as lasting."""


class FencedWriter:
    """Writes for one attempt over one connection. A write is tried again until it is committed or the job is lost."""

    def __init__(self, database_url: str, ref: ledger.AttemptRef, lease: Lease) -> None:
        self._database_url = database_url
        self._ref = ref
        self._lease = lease
        self._connection: Connection | None = None

    def write(
        self,
        statement: Callable[Concatenate[Connection, ledger.AttemptRef, P], T],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> T:
        """Run a function of ``worker.ledger.attempts`` on this hold.

        Raises Lost, CancelRequested or TimedOut when the ledger refuses it, psycopg.IntegrityError when that breaks a
        constraint again and again: once may be a row that went in the same moment.
        """
        refusals = 0
        while True:
            if self._lease.state is LeaseState.LOST:
                raise Lost(self._ref.job_id)
            try:
                return statement(self._connected(), self._ref, *arguments, **options)
            except ledger.NotHeld:
                try:
                    self._learn_why()
                except Lost:
                    metrics.FENCED.inc()
                    raise
            except psycopg.IntegrityError as error:
                refusals += 1
                if refusals == REFUSALS:
                    raise
                logger.warning("%s: the ledger refused a write, trying again: %s", self._ref.job_id, error)
                self._lease.wait(RETRY_SECONDS / REFUSALS)
            except AWAY as error:
                logger.warning("%s: the ledger cannot be written, trying again: %s", self._ref.job_id, error)
                self._disconnect()
                self._lease.wait(RETRY_SECONDS)

    def read(self, query: Callable[Concatenate[Connection, P], T], *arguments: P.args, **options: P.kwargs) -> T:
        """Run a query of ``worker.ledger.attempts``, tried again like a write."""
        while True:
            if self._lease.state is LeaseState.LOST:
                raise Lost(self._ref.job_id)
            try:
                return query(self._connected(), *arguments, **options)
            except AWAY as error:
                logger.warning("%s: the ledger cannot be read, trying again: %s", self._ref.job_id, error)
                self._disconnect()
                self._lease.wait(RETRY_SECONDS)

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = connect(self._database_url)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _learn_why(self) -> None:
        """Read why a write was refused, and raise it."""
        try:
            self._lease.look_again(self._connected())
        except AWAY:
            self._disconnect()
            self._lease.wait(RETRY_SECONDS)
            return
        self._lease.check()
        raise Lost(self._ref.job_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._disconnect()
