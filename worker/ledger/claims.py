"""How a worker claims a job: tenants take turns, and each gives its first job.

A tenant that holds enough workers is passed over. So is a job that this worker has no room for or does not understand,
one that it has just failed while other workers live, and one that fits an idle worker with a smaller device.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psycopg
from psycopg.rows import DictRow

from core.contract.events import EventType
from core.contract.versions import UNDERSTOOD
from core.crash_points import reach
from core.ledger import transitions
from core.ledger.placement import UNBOUNDED, WorkerResources
from core.ledger.states import Phase
from worker.ledger.attempts import AttemptRef, append_event
from worker.ledger.connection import Connection


@dataclass(frozen=True)
class Claim:
    ref: AttemptRef
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
        super().__init__(claim.ref.job_id)
        self.claim = claim


TURN = """
WITH RECURSIVE waiting AS (
    (SELECT tenant FROM jobs WHERE status = 'queued' AND waiting IS NULL
        ORDER BY tenant, priority DESC, created_at LIMIT 1)
    UNION ALL SELECT (SELECT tenant FROM jobs WHERE status = 'queued' AND waiting IS NULL AND tenant > before.tenant
        ORDER BY tenant, priority DESC, created_at LIMIT 1) FROM waiting AS before WHERE before.tenant IS NOT NULL
), held AS (
    SELECT tenant, count(*) AS jobs FROM jobs WHERE lease_until IS NOT NULL GROUP BY tenant
)
SELECT turn.tenant, coalesce(limits.max_running_jobs, %(most)s::integer) AS most
FROM tenant_turns AS turn JOIN waiting USING (tenant) LEFT JOIN held USING (tenant)
    LEFT JOIN tenant_limits AS limits USING (tenant)
WHERE turn.tenant <> ALL(%(skip)s)
    AND coalesce(coalesce(held.jobs, 0) < coalesce(limits.max_running_jobs, %(most)s::integer), true)
ORDER BY coalesce(held.jobs, 0) / greatest(coalesce(limits.weight, 1), 1)::float8, turn.served_at NULLS FIRST,
    turn.tenant
LIMIT 1 FOR UPDATE OF turn"""
"""The tenant that holds the fewest workers for its weight, and of those the one that was served longest ago. One step
of ``ix_jobs_turn`` for each tenant with jobs that wait, however many they are."""
LOOKS = (20, 2000)
"""How many of the tenant's first jobs ``CLAIM`` looks at for one that this worker can take: few, and if none of them
fits, many."""
SERVED = "UPDATE tenant_turns SET served_at = clock_timestamp() WHERE tenant = %s"
SAY_UNDERSTOOD = "SELECT set_config('qe.spec_version', %s, true)"
"""For this transaction: a trigger refuses the claims of old code, which does not look at the version."""


def claim(
    connection: Connection,
    *,
    worker: str,
    lease: float,
    max_running: int | None = None,
    skip: Collection[str] = (),
    understood: int = UNDERSTOOD,
    resources: WorkerResources = UNBOUNDED,
) -> Claim | None:
    """Take a job that waits, with a lease of ``lease`` seconds; None when nothing waits that this worker may have.

    Tenants take turns by weight; of a tenant's jobs comes the one with the highest priority, and then the oldest. A
    tenant that holds ``max_running`` workers, or what ``tenant_limits`` says of it, is passed over, as those in
    ``skip`` are. Raises Unconfirmed when the connection breaks at the end.
    """
    values = {"worker": worker, "lease": lease, "most": max_running, "understood": understood, **asdict(resources)}
    skip = list(skip)
    while True:
        new: Claim | None = None
        try:
            # Whatever needs no answer waits for the next statement that does: three round trips instead of ten.
            with connection.pipeline(), connection.transaction():
                turn = _turn(connection, values, skip)
                if turn is None:
                    return None
                row = _take(connection, {**values, **turn})
                if row is not None:
                    connection.execute(SERVED, (turn["tenant"],))
                    new = _begin_attempt(connection, row, worker=worker)
        except psycopg.OperationalError as error:
            if new is None:
                raise
            raise Unconfirmed(new) from error
        if new is not None:
            return new
        skip.append(turn["tenant"])


def _turn(connection: Connection, values: Mapping[str, Any], skip: Sequence[str]) -> DictRow | None:
    """The row ``tenant most`` of the tenant whose turn it is, locked. A tenant for whom another worker claims at this
    moment is passed over, unless there is no other."""
    connection.execute(SAY_UNDERSTOOD, (str(values["understood"]),))
    parameters = {"most": values["most"], "skip": list(skip)}
    return (
        connection.execute(f"{TURN} SKIP LOCKED".encode(), parameters).fetchone()
        or connection.execute(TURN.encode(), parameters).fetchone()
    )


def _take(connection: Connection, values: Mapping[str, Any]) -> DictRow | None:
    for look in LOOKS:
        row = connection.execute(transitions.CLAIM.encode(), {**values, "look": look}).fetchone()
        if row is not None:
            return row
    return None


def waits(connection: Connection, job_id: str) -> bool:
    """Whether the job could be taken now by a worker that may have it."""
    row = connection.execute(
        "SELECT 1 FROM jobs WHERE id = %s AND status = 'queued' AND run_after <= clock_timestamp()", (job_id,)
    ).fetchone()
    return row is not None


def confirm(connection: Connection, ref: AttemptRef, *, worker: str, lease: float) -> bool:
    """Whether a claim whose end we did not hear is ours; if so its lease begins anew."""
    values = {"lease": lease, "job_id": ref.job_id, "attempt": ref.attempt, "worker": worker}
    return connection.execute(transitions.CONFIRM_CLAIM, values).rowcount == 1


def _begin_attempt(connection: Connection, row: DictRow, *, worker: str) -> Claim:
    ref = AttemptRef(row["id"], row["attempt"])
    connection.execute(
        "INSERT INTO attempts (job_id, attempt, worker, resumed_from_block, device)"
        " VALUES (%(job)s, %(attempt)s, %(worker)s, 0, (SELECT device FROM workers WHERE id = %(worker)s))",
        {"job": ref.job_id, "attempt": ref.attempt, "worker": worker},
    )
    connection.execute("UPDATE workers SET job_id = %s, seen_at = clock_timestamp() WHERE id = %s", (row["id"], worker))
    data = {"attempt": ref.attempt, "worker": worker, "resumed_from_block": row["blocks_done"]}
    append_event(connection, ref.job_id, EventType.STARTED, data)
    append_event(connection, ref.job_id, EventType.PHASE, {"phase": Phase.PREPARING.value})
    reach("claim.before_commit")
    return Claim(ref, row["tenant"], row["spec"], row["progress"], row["elapsed"], row["waited"], row["trace_context"])
