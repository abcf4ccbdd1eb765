"""What an attempt writes to the ledger, fenced by its number. Every time comes from the database's clock.

A claim (``ledger.claims``) gives a worker an ``AttemptRef``: the job and the attempt's number, the fencing token.
Every later write is one transaction that first locks the job's row where id, attempt and status still match. A worker
that has lost the job changes nothing and gets ``NotHeld``. Finished blocks are in ``worker.ledger.blocks``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from core.contract.errors import RETRYABLE, FailureCode
from core.contract.events import EventType
from core.crash_points import reach
from core.ledger import transitions
from core.ledger.outbox import APPEND_EVENT
from core.ledger.states import LEASED, AttemptOutcome, JobStatus
from worker.ledger.connection import Connection

LONGEST_DELAY = 300.0
"""Seconds between two attempts that brought nothing."""


class NotHeld(Exception):
    """This attempt may no longer write the job: it was reaped, cancelled, or has ended."""


@dataclass(frozen=True)
class AttemptRef:
    """A claimed job. ``job_id`` and ``attempt`` travel in every write."""

    job_id: str
    attempt: int

    @property
    def prefix(self) -> str:
        """The folder in storage that belongs to this attempt alone."""
        return f"jobs/{self.job_id}/a{self.attempt}"


def extend_lease(connection: Connection, ref: AttemptRef, *, lease: float) -> JobStatus:
    """Extend the lease. The answer is ``running``, or ``cancelling`` when someone asked to stop. Raises NotHeld."""
    values = {"lease": lease, "job_id": ref.job_id, "attempt": ref.attempt}
    row = connection.execute(transitions.EXTEND_LEASE, values).fetchone()
    if row is None:
        raise NotHeld(f"{ref.job_id} is no longer attempt {ref.attempt}'s")
    return JobStatus(row["status"])


def read_status(connection: Connection, ref: AttemptRef) -> JobStatus:
    """The job's status, without touching the lease. Raises NotHeld."""
    row = connection.execute(
        "SELECT status FROM jobs WHERE id = %s AND attempt = %s AND status IN ('running', 'cancelling')",
        (ref.job_id, ref.attempt),
    ).fetchone()
    if row is None:
        raise NotHeld(f"{ref.job_id} is no longer attempt {ref.attempt}'s")
    return JobStatus(row["status"])


def set_phase(
    connection: Connection, ref: AttemptRef, phase: str, *, forecast: Mapping[str, Any] | None = None
) -> None:
    """Set the phase and append its event, with the ``forecast`` of the whole job (``core.contract.forecast``)."""
    with connection.transaction():
        lock(connection, ref)
        connection.execute(transitions.SET_PHASE, {"phase": phase, "job_id": ref.job_id})
        append_event(connection, ref.job_id, EventType.PHASE, {"phase": phase, **(forecast or {})})


def set_progress(
    connection: Connection, ref: AttemptRef, progress: Mapping[str, Any], *, blocks: int | None = None
) -> None:
    """Merge ``progress`` into what the job has; ``blocks`` is the model's number of decoder blocks."""
    with connection.transaction():
        lock(connection, ref)
        values = {"progress": Jsonb(dict(progress)), "blocks": blocks, "job_id": ref.job_id}
        connection.execute(transitions.MERGE_PROGRESS, values)


def add_warning(connection: Connection, ref: AttemptRef, message: str) -> None:
    with connection.transaction():
        lock(connection, ref)
        append_event(connection, ref.job_id, EventType.WARNING, {"message": clean(message)})


def dataset(connection: Connection, *, tenant: str, dataset_id: str) -> dict[str, Any] | None:
    """``format key sha256`` of the tenant's uploaded dataset."""
    return connection.execute(
        "SELECT format, key, sha256 FROM datasets"
        " WHERE id = %s AND tenant = %s AND status = 'ready' AND key IS NOT NULL",
        (dataset_id, tenant),
    ).fetchone()


def hub_token(connection: Connection, *, tenant: str) -> str | None:
    """The tenant's own token for the hub, sealed."""
    row = connection.execute("SELECT sealed FROM hub_tokens WHERE tenant = %s", (tenant,)).fetchone()
    return row["sealed"] if row else None


def succeed(
    connection: Connection, ref: AttemptRef, *, summary: Mapping[str, Any], artifacts: Sequence[Mapping[str, Any]]
) -> JobStatus:
    """End the job and make its artifacts visible, both or neither.

    ``artifacts``: ``name key bytes sha256 media_type`` each. The summary's ``verdict`` becomes the job's; a rejected
    checkpoint is published like any other.
    """
    with connection.transaction():
        lock(connection, ref)
        connection.execute("DELETE FROM artifacts WHERE job_id = %s", (ref.job_id,))
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO artifacts (job_id, name, attempt, key, bytes, sha256, media_type) VALUES"
                " (%(job_id)s, %(name)s, %(attempt)s, %(key)s, %(bytes)s, %(sha256)s, %(media_type)s)",
                [{**artifact, "job_id": ref.job_id, "attempt": ref.attempt} for artifact in artifacts],
            )
        reach("artifacts.before_commit")
        data = {
            "attempt": ref.attempt,
            "artifacts": len(artifacts),
            "verdict": summary.get("verdict"),
            "summary": dict(summary),
        }
        size = sum(artifact["bytes"] for artifact in artifacts)
        _end_job(connection, ref, JobStatus.SUCCEEDED, summary=summary, artifact_bytes=size)
        _end_attempt(connection, ref, AttemptOutcome.SUCCEEDED)
        append_event(connection, ref.job_id, EventType.SUCCEEDED, data)
        reach("end.before_commit")
    return JobStatus.SUCCEEDED


def fail(connection: Connection, ref: AttemptRef, *, code: FailureCode, message: str) -> JobStatus:
    """End the job with an error that another attempt would meet again, or that its owner must judge."""
    with connection.transaction():
        lock(connection, ref)
        _fail(connection, ref, AttemptOutcome.FAILED, code, message)
    return JobStatus.FAILED


def fail_waiting(connection: Connection, ref: AttemptRef, *, message: str) -> None:
    """End a job that no worker holds, inside the caller's transaction, which holds the lock on its row. ``ref``: its
    last attempt; 0 for none."""
    error = _error(FailureCode.NO_WORKER, message)
    _end_job(connection, ref, JobStatus.FAILED, error=error)
    append_event(connection, ref.job_id, EventType.FAILED, {"attempt": ref.attempt, "error": error})


def cancel(connection: Connection, ref: AttemptRef) -> JobStatus:
    """End a job that someone asked to stop. Raises NotHeld when nobody did."""
    with connection.transaction():
        lock(connection, ref, JobStatus.CANCELLING)
        _cancel(connection, ref, AttemptOutcome.CANCELLED)
    return JobStatus.CANCELLED


def hand_back(connection: Connection, ref: AttemptRef, *, reason: str) -> JobStatus:
    """Queue the job again because this worker was asked to stop. The attempt does not count as one without progress."""
    with connection.transaction():
        lock(connection, ref)
        _end_attempt(connection, ref, AttemptOutcome.HANDED_BACK)
        _requeue(connection, ref, reason)
    return JobStatus.QUEUED


def give_up_attempt(
    connection: Connection,
    ref: AttemptRef,
    *,
    outcome: AttemptOutcome,
    reason: str,
    budget: int,
    code: FailureCode = FailureCode.NO_PROGRESS,
    delay: float = 0.0,
) -> JobStatus:
    """End an attempt that died, or failed by what may be its worker's fault. The job waits again, for another worker
    where one lives, unless ``budget`` attempts in a row brought no new block: then it has failed with ``code``; a job
    that was to be cancelled is. ``delay``: seconds before the second attempt in such a row, twice as long before each
    further one. Returns the job's status. Raises NotHeld.
    """
    with connection.transaction():
        job = lock(connection, ref, *LEASED)
        return end_dead_attempt(
            connection, ref, job, outcome=outcome, reason=reason, budget=budget, code=code, delay=delay
        )


def end_dead_attempt(
    connection: Connection,
    ref: AttemptRef,
    job: Mapping[str, Any],
    *,
    outcome: AttemptOutcome,
    reason: str,
    budget: int,
    code: FailureCode = FailureCode.NO_PROGRESS,
    delay: float = 0.0,
) -> JobStatus:
    """The same inside the caller's transaction, which holds the lock on the row ``job``."""
    if job["status"] == JobStatus.CANCELLING:
        _cancel(connection, ref, outcome)
        return JobStatus.CANCELLED
    attempt = connection.execute(
        "SELECT blocks_done FROM attempts WHERE job_id = %s AND attempt = %s", (ref.job_id, ref.attempt)
    ).fetchone()
    made_progress = attempt is not None and attempt["blocks_done"] > 0
    attempts_without_progress = 0 if made_progress else job["barren_attempts"] + 1
    if outcome != AttemptOutcome.LEASE_EXPIRED:  # its process is gone, and who comes back under its name is another
        connection.execute(transitions.AVOID_WORKER, {"job_id": ref.job_id})
    if attempts_without_progress >= budget:
        row_of_failures = f"{attempts_without_progress} attempts in a row ended without a new block; the last: "
        message = reason if budget == 1 else row_of_failures + reason
        _fail(connection, ref, outcome, code, message, attempts_without_progress=attempts_without_progress)
        return JobStatus.FAILED
    _end_attempt(connection, ref, outcome, error={"message": clean(reason)})
    wait = min(delay * 2 ** (attempts_without_progress - 1), LONGEST_DELAY) if attempts_without_progress else 0.0
    _requeue(connection, ref, reason, attempts_without_progress=attempts_without_progress, wait=wait)
    return JobStatus.QUEUED


def lock(connection: Connection, ref: AttemptRef, *statuses: JobStatus) -> DictRow:
    """Lock the job's row for the rest of the transaction: the fence before every write. Raises NotHeld."""
    row = connection.execute(
        "SELECT status, barren_attempts FROM jobs WHERE id = %s AND attempt = %s AND status = ANY(%s) FOR UPDATE",
        (ref.job_id, ref.attempt, [status.value for status in statuses or (JobStatus.RUNNING,)]),
    ).fetchone()
    if row is None:
        raise NotHeld(f"{ref.job_id} is no longer attempt {ref.attempt}'s to write")
    return row


def append_event(connection: Connection, job_id: str, kind: EventType, data: Mapping[str, Any]) -> None:
    """Append to the job's events, and to what its webhooks are to be told, inside the caller's transaction."""
    connection.execute(APPEND_EVENT, {"job_id": job_id, "type": kind.value, "data": Jsonb(dict(data))})


def clean(message: str) -> str:
    """One line that PostgreSQL can store."""
    return " ".join(message.replace("\x00", "").split())[:2000]


def _fail(
    connection: Connection,
    ref: AttemptRef,
    outcome: AttemptOutcome,
    code: FailureCode,
    message: str,
    *,
    attempts_without_progress: int | None = None,
) -> None:
    error = _error(code, message)
    _end_job(connection, ref, JobStatus.FAILED, error=error, attempts_without_progress=attempts_without_progress)
    _end_attempt(connection, ref, outcome, error=error)
    append_event(connection, ref.job_id, EventType.FAILED, {"attempt": ref.attempt, "error": error})


def _error(code: FailureCode, message: str) -> dict[str, Any]:
    return {"code": code.value, "message": clean(message), "retryable": code in RETRYABLE}


def _cancel(connection: Connection, ref: AttemptRef, outcome: AttemptOutcome) -> None:
    _end_job(connection, ref, JobStatus.CANCELLED)
    _end_attempt(connection, ref, outcome)
    append_event(connection, ref.job_id, EventType.CANCELLED, {"attempt": ref.attempt})


def _end_job(
    connection: Connection,
    ref: AttemptRef,
    status: JobStatus,
    *,
    summary: Mapping[str, Any] | None = None,
    error: Mapping[str, Any] | None = None,
    artifact_bytes: int | None = None,
    attempts_without_progress: int | None = None,
) -> None:
    connection.execute(
        transitions.END,
        {
            "status": status.value,
            "summary": None if summary is None else Jsonb(dict(summary)),
            "verdict": None if summary is None else summary.get("verdict"),
            "error": None if error is None else Jsonb(dict(error)),
            "artifact_bytes": artifact_bytes,
            "attempts_without_progress": attempts_without_progress,
            "job_id": ref.job_id,
        },
    )


def _requeue(
    connection: Connection,
    ref: AttemptRef,
    reason: str,
    *,
    attempts_without_progress: int | None = None,
    wait: float = 0.0,
) -> None:
    values = {"wait": wait, "attempts_without_progress": attempts_without_progress, "job_id": ref.job_id}
    connection.execute(transitions.REQUEUE, values)
    data = {"attempt": ref.attempt, "reason": clean(reason), **({"wait_seconds": wait} if wait else {})}
    append_event(connection, ref.job_id, EventType.REQUEUED, data)


def _end_attempt(
    connection: Connection, ref: AttemptRef, outcome: AttemptOutcome, error: Mapping[str, Any] | None = None
) -> None:
    connection.execute(
        "UPDATE attempts SET ended_at = clock_timestamp(), outcome = %s, error = %s WHERE job_id = %s AND attempt = %s",
        (outcome.value, None if error is None else Jsonb(dict(error)), ref.job_id, ref.attempt),
    )
    connection.execute("UPDATE workers SET job_id = NULL WHERE job_id = %s", (ref.job_id,))
