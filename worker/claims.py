"""How a worker comes by a job: the one that waits first, with a lease, unless its tenant holds enough workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import DictRow

from app.contract.crash_points import reach
from app.contract.events import EventType
from app.contract.states import Phase
from worker.ledger import Connection, Hold, append_event


@dataclass(frozen=True)
class Claim:
    hold: Hold
    tenant: str
    spec: dict[str, Any]
    """A ``JobSpec`` as JSON."""
    progress: dict[str, Any]
    elapsed: float
    """Seconds that workers have held the job since it was (last) asked for; what it waited in between is not in it."""
    waited: float
    """Seconds that it could have been taken and was not."""
    trace_context: dict[str, str] | None
    """The span of the request that made the job."""


class Unconfirmed(Exception):
    """The connection broke while ``claim`` was committed: it may be ours, or nobody's."""

    def __init__(self, claim: Claim) -> None:
        super().__init__(claim.hold.job_id)
        self.claim = claim


CLAIM = """
WITH full_tenants AS (
    SELECT tenant FROM jobs LEFT JOIN tenant_limits USING (tenant) WHERE lease_until IS NOT NULL
    GROUP BY tenant, max_running_jobs HAVING count(*) >= coalesce(max_running_jobs, %(most)s::integer)
)
UPDATE jobs SET status = 'running', attempt = attempt + 1, worker = %(worker)s, phase = 'preparing',
    lease_until = clock_timestamp() + make_interval(secs => %(lease)s),
    started_at = CASE WHEN started_at >= queued_at THEN started_at ELSE clock_timestamp() END,
    blocks_done = (SELECT count(*) FROM layers WHERE job_id = jobs.id AND files <> '[]'::jsonb)
WHERE id = (
    SELECT id FROM jobs WHERE status = 'queued' AND run_after <= clock_timestamp()
        AND tenant NOT IN (SELECT tenant FROM full_tenants) AND tenant <> ALL(%(passed)s)
    ORDER BY priority DESC, created_at LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING id, tenant, spec, attempt, progress, blocks_done, trace_context,
    (SELECT coalesce(EXTRACT(EPOCH FROM sum(ended_at - started_at)), 0)::float8 FROM attempts
        WHERE job_id = jobs.id AND started_at >= jobs.queued_at) AS elapsed,
    EXTRACT(EPOCH FROM clock_timestamp() - greatest(queued_at, run_after))::float8 AS waited,
    coalesce((SELECT max_running_jobs FROM tenant_limits WHERE tenant = jobs.tenant), %(most)s::integer) AS most
"""
RUNNING_LOCK = 0x7165_7275
"""``qeru``: the first half of the advisory locks under which a tenant's running jobs are counted."""


class _Full(Exception):
    """Others of the same tenant claimed in the same moment, and it now holds as many workers as it may."""


def claim(connection: Connection, *, worker: str, lease: float, max_running: int | None = None) -> Claim | None:
    """Take the job that waits first, with a lease of ``lease`` seconds; None when nothing waits.

    A tenant that holds ``max_running`` workers, or what ``tenant_limits`` says of it, is passed over. Raises
    Unconfirmed when the connection breaks at the end.
    """
    made: Claim | None = None
    passed: list[str] = []
    while True:
        tenant = ""
        try:
            with connection.transaction():
                row = connection.execute(
                    CLAIM, {"worker": worker, "lease": lease, "most": max_running, "passed": passed}
                ).fetchone()
                if row is None:
                    return None
                tenant = row["tenant"]
                _check_place(connection, tenant, row["most"])
                made = _begin_attempt(connection, row, worker=worker)
        except _Full:
            passed.append(tenant)
            continue
        except psycopg.OperationalError as error:
            if made is None:
                raise
            raise Unconfirmed(made) from error
        return made


def _check_place(connection: Connection, tenant: str, most: int | None) -> None:
    """Raises _Full. The claim's own count cannot see claims that have not committed; under the lock they have."""
    if most is None:
        return
    connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (RUNNING_LOCK, tenant))
    row = connection.execute(
        "SELECT count(*) AS running FROM jobs WHERE tenant = %s AND lease_until IS NOT NULL", (tenant,)
    ).fetchone()
    if row is not None and row["running"] > most:
        raise _Full


def confirm(connection: Connection, hold: Hold, *, worker: str, lease: float) -> bool:
    """Whether a claim whose end we did not hear is ours; if so its lease begins anew."""
    return (
        connection.execute(
            "UPDATE jobs SET lease_until = clock_timestamp() + make_interval(secs => %s)"
            " WHERE id = %s AND attempt = %s AND worker = %s AND status IN ('running', 'cancelling')",
            (lease, hold.job_id, hold.attempt, worker),
        ).rowcount
        == 1
    )


def _begin_attempt(connection: Connection, row: DictRow, *, worker: str) -> Claim:
    hold = Hold(row["id"], row["attempt"])
    connection.execute(
        "INSERT INTO attempts (job_id, attempt, worker, resumed_from_block, device)"
        " VALUES (%(job)s, %(attempt)s, %(worker)s, 0, (SELECT device FROM workers WHERE id = %(worker)s))",
        {"job": hold.job_id, "attempt": hold.attempt, "worker": worker},
    )
    connection.execute("UPDATE workers SET job_id = %s, seen_at = clock_timestamp() WHERE id = %s", (row["id"], worker))
    started = {"attempt": hold.attempt, "worker": worker, "resumed_from_block": row["blocks_done"]}
    append_event(connection, hold.job_id, EventType.STARTED, started)
    append_event(connection, hold.job_id, EventType.PHASE, {"phase": Phase.PREPARING.value})
    reach("claim.before_commit")
    return Claim(hold, row["tenant"], row["spec"], row["progress"], row["elapsed"], row["waited"], row["trace_context"])
