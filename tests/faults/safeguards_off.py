"""Negative controls: the service without its fence, and without its self-kill. A suite that cannot fail proves nothing.

They replace functions from outside, and exist in the tests only, which no package contains: an installed service has no
setting, flag or line of code that turns either off.
"""

from __future__ import annotations

from typing import Any

from core.ledger.states import JobStatus
from worker.ledger import attempts as ledger
from worker.ledger.connection import Connection
from worker.supervisor.lease import Lease


def drop_the_fence() -> None:
    """A job's row is locked and answered whoever holds it: what a ledger without fencing tokens does."""

    def lock(connection: Connection, ref: ledger.AttemptRef, *_: JobStatus) -> Any:
        return connection.execute(
            "SELECT status, barren_attempts FROM jobs WHERE id = %s FOR UPDATE", (ref.job_id,)
        ).fetchone()

    def beat(connection: Connection, ref: ledger.AttemptRef, *, lease: float) -> JobStatus:
        connection.execute(
            "UPDATE jobs SET lease_until = clock_timestamp() + make_interval(secs => %s)"
            " WHERE id = %s AND status IN ('running', 'cancelling')",
            (lease, ref.job_id),
        )
        return JobStatus.RUNNING

    ledger.lock = lock
    ledger.extend_lease = beat
    ledger.read_status = lambda connection, ref: JobStatus.RUNNING


def drop_the_self_kill() -> None:
    """A worker without heartbeats goes on computing."""
    Lease.watch = lambda self: None  # type: ignore[method-assign]


WITHOUT = {"fence": drop_the_fence, "self-kill": drop_the_self_kill}
