"""Every statement by which a worker changes the ledger. PostgreSQL decides; nothing here trusts another clock.

A claim gives a worker a :class:`Hold`: the job and the number of the attempt, which is the fencing token. Every later
write first locks the job's row where id, attempt and status still match, in the same transaction, so that a worker that
lost the job, and may not know it yet, changes nothing: it gets :class:`NotHeld`. Each function is one transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb

from app.contract.crash_points import reach
from app.contract.errors import RETRYABLE, FailureCode
from app.contract.events import EventType
from app.contract.outbox import APPEND_EVENT
from app.contract.states import LEASED, AttemptOutcome, JobStatus, Phase

Connection = psycopg.Connection[DictRow]

CONNECT_SECONDS = 5
STATEMENT_SECONDS = 20
NEWEST_WEIGHT = 0.3
"""Weight of the newest block in the moving average of seconds per block."""


CALLS_FILES = ("calls.safetensors", "calls.json")
"""Names of the files in which the library keeps the language model's calls."""


class NotHeld(Exception):
    """The job is no longer this attempt's to write: it was reaped, cancelled, or has ended."""


@dataclass(frozen=True)
class Hold:
    """A claimed job. ``job_id`` and ``attempt`` travel in every write."""

    job_id: str
    attempt: int


AWAY = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.ReadOnlySqlTransaction)
"""The database is not there, or another one is now the primary: connect again and try again."""


@dataclass(frozen=True)
class Claim:
    hold: Hold
    tenant: str
    spec: dict[str, Any]
    """A ``JobSpec`` as JSON."""
    progress: dict[str, Any]
    elapsed: float
    """Seconds since a worker first took the job after it was (last) asked for."""
    waited: float
    """Seconds that it could have been taken and was not."""
    trace_context: dict[str, str] | None
    """The span of the request that made the job."""


class Unconfirmed(Exception):
    """The connection broke while ``claim`` was committed: it may be ours, or nobody's."""

    def __init__(self, claim: Claim) -> None:
        super().__init__(claim.hold.job_id)
        self.claim = claim


def connect(database_url: str) -> Connection:
    """A connection on which no statement hangs for long: a worker that cannot write must notice it.

    Raises psycopg.OperationalError.
    """
    return psycopg.connect(
        database_url,
        row_factory=dict_row,
        autocommit=True,
        connect_timeout=CONNECT_SECONDS,
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=3,
        tcp_user_timeout=STATEMENT_SECONDS * 1000,
        options=f"-c statement_timeout={STATEMENT_SECONDS}s -c lock_timeout={STATEMENT_SECONDS}s "
        "-c idle_in_transaction_session_timeout=60s",
    )


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
    EXTRACT(EPOCH FROM clock_timestamp() - started_at)::float8 AS elapsed,
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


def beat(connection: Connection, hold: Hold, *, lease: float) -> JobStatus:
    """Extend the lease. The answer is ``running``, or ``cancelling`` when someone asked to stop. Raises NotHeld."""
    row = connection.execute(
        "UPDATE jobs SET lease_until = clock_timestamp() + make_interval(secs => %s)"
        " WHERE id = %s AND attempt = %s AND status IN ('running', 'cancelling') RETURNING status",
        (lease, hold.job_id, hold.attempt),
    ).fetchone()
    if row is None:
        raise NotHeld(f"{hold.job_id} is no longer attempt {hold.attempt}'s")
    return JobStatus(row["status"])


def peek(connection: Connection, hold: Hold) -> JobStatus:
    """The job's status, without touching the lease. Raises NotHeld."""
    row = connection.execute(
        "SELECT status FROM jobs WHERE id = %s AND attempt = %s AND status IN ('running', 'cancelling')",
        (hold.job_id, hold.attempt),
    ).fetchone()
    if row is None:
        raise NotHeld(f"{hold.job_id} is no longer attempt {hold.attempt}'s")
    return JobStatus(row["status"])


def set_phase(connection: Connection, hold: Hold, phase: str) -> None:
    with connection.transaction():
        lock(connection, hold)
        connection.execute("UPDATE jobs SET phase = %s WHERE id = %s", (phase, hold.job_id))
        append_event(connection, hold.job_id, EventType.PHASE, {"phase": phase})


def set_progress(connection: Connection, hold: Hold, progress: Mapping[str, Any], *, blocks: int | None = None) -> None:
    """Lay ``progress`` over what the job last said of itself; ``blocks`` is the model's number of decoder blocks."""
    with connection.transaction():
        lock(connection, hold)
        connection.execute(
            "UPDATE jobs SET progress = progress || %s, blocks_total = coalesce(%s, blocks_total) WHERE id = %s",
            (Jsonb(dict(progress)), blocks, hold.job_id),
        )


def add_warning(connection: Connection, hold: Hold, message: str) -> None:
    with connection.transaction():
        lock(connection, hold)
        append_event(connection, hold.job_id, EventType.WARNING, {"message": clean(message)})


def record_block(
    connection: Connection,
    hold: Hold,
    *,
    block: int,
    blocks: int,
    seconds: float,
    report: Mapping[str, Any],
    files: Sequence[Mapping[str, Any]],
    superseded: Sequence[str],
    event: Mapping[str, Any],
) -> list[str]:
    """Make a finished block part of the job; it survives this attempt from here on.

    ``files`` are in storage already: ``name bytes sha256 key``. ``superseded`` are names of earlier blocks' files that
    no resume needs any more. Returns the storage keys that nothing refers to now, for the caller to delete. Raises
    NotHeld.
    """
    with connection.transaction():
        lock(connection, hold)
        before = _files_by_block(connection, hold.job_id)
        connection.execute(
            "INSERT INTO layers (job_id, block, attempt, seconds, report, files) VALUES (%s, %s, %s, %s, %s, %s)"
            " ON CONFLICT (job_id, block) DO UPDATE SET attempt = excluded.attempt, seconds = excluded.seconds,"
            " report = excluded.report, files = excluded.files, created_at = excluded.created_at",
            (hold.job_id, block, hold.attempt, seconds, Jsonb(dict(report)), Jsonb([dict(file) for file in files])),
        )
        after = {**before, block: [dict(file) for file in files]}
        dropped = set(superseded)
        for number, kept in after.items():
            left = [file for file in kept if file["name"] not in dropped]
            if len(left) != len(kept):
                after[number] = left
                connection.execute(
                    "UPDATE layers SET files = %s WHERE job_id = %s AND block = %s", (Jsonb(left), hold.job_id, number)
                )
        new = not before.get(block)
        connection.execute(
            "UPDATE jobs SET blocks_done = %(done)s, blocks_total = %(blocks)s, block_seconds ="
            " coalesce(block_seconds * (1 - %(weight)s) + %(seconds)s * %(weight)s, %(seconds)s) WHERE id = %(id)s",
            {"done": block + 1, "blocks": blocks, "weight": NEWEST_WEIGHT, "seconds": seconds, "id": hold.job_id},
        )
        if new:
            connection.execute(
                "UPDATE attempts SET blocks_done = blocks_done + 1 WHERE job_id = %s AND attempt = %s",
                (hold.job_id, hold.attempt),
            )
            append_event(connection, hold.job_id, EventType.BLOCK, event)
        reach("layer.before_commit")
    return sorted(_keys(before) - _keys(after))


def record_resumed(connection: Connection, hold: Hold, *, block: int, blocks: int) -> None:
    """``block`` was found finished by an earlier attempt and was not computed again."""
    with connection.transaction():
        lock(connection, hold)
        connection.execute(
            "UPDATE attempts SET resumed_from_block = %s WHERE job_id = %s AND attempt = %s",
            (block + 1, hold.job_id, hold.attempt),
        )
        connection.execute(
            "UPDATE jobs SET blocks_done = %s, blocks_total = %s WHERE id = %s", (block + 1, blocks, hold.job_id)
        )


def block_files(connection: Connection, job_id: str) -> list[dict[str, Any]]:
    """``name bytes sha256 key`` of every file that finished blocks left for a resume, in the order of the blocks."""
    return [file for _, files in sorted(_files_by_block(connection, job_id).items()) for file in files]


def files_to_take_over(connection: Connection, job_id: str) -> list[dict[str, Any]]:
    """What other jobs left that this one may take over, as :func:`block_files` has it: of the job it was forked from
    everything, of the oldest of its comparison the language model's calls. The library verifies what fits."""
    sources = connection.execute(
        "SELECT other.id, other.id = mine.forked_from AS forked FROM jobs mine JOIN jobs other"
        " ON other.tenant = mine.tenant AND other.id <> mine.id"
        " AND (other.id = mine.forked_from OR other.comparison_id = mine.comparison_id)"
        " WHERE mine.id = %s AND EXISTS (SELECT FROM layers WHERE job_id = other.id AND files <> '[]'::jsonb)"
        " ORDER BY (other.id = mine.forked_from) DESC NULLS LAST, other.created_at, other.id LIMIT 1",
        (job_id,),
    ).fetchall()
    return [
        file
        for source in sources
        for file in block_files(connection, source["id"])
        if source["forked"] or file["name"] in CALLS_FILES
    ]


def dataset(connection: Connection, *, tenant: str, dataset_id: str) -> dict[str, Any] | None:
    """``format key sha256`` of the tenant's uploaded dataset."""
    return connection.execute(
        "SELECT format, key, sha256 FROM datasets"
        " WHERE id = %s AND tenant = %s AND status = 'ready' AND key IS NOT NULL",
        (dataset_id, tenant),
    ).fetchone()


def succeed(
    connection: Connection, hold: Hold, *, summary: Mapping[str, Any], artifacts: Sequence[Mapping[str, Any]]
) -> JobStatus:
    """End the job and make its artifacts visible, both or neither.

    ``artifacts``: ``name key bytes sha256 media_type`` each. The summary's ``verdict`` becomes the job's; a rejected
    checkpoint is published like any other.
    """
    with connection.transaction():
        lock(connection, hold)
        connection.execute("DELETE FROM artifacts WHERE job_id = %s", (hold.job_id,))
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO artifacts (job_id, name, attempt, key, bytes, sha256, media_type) VALUES"
                " (%(job_id)s, %(name)s, %(attempt)s, %(key)s, %(bytes)s, %(sha256)s, %(media_type)s)",
                [{**artifact, "job_id": hold.job_id, "attempt": hold.attempt} for artifact in artifacts],
            )
        connection.execute(
            "UPDATE jobs SET artifact_bytes = %s WHERE id = %s",
            (sum(artifact["bytes"] for artifact in artifacts), hold.job_id),
        )
        reach("artifacts.before_commit")
        data = {
            "attempt": hold.attempt,
            "artifacts": len(artifacts),
            "verdict": summary.get("verdict"),
            "summary": dict(summary),
        }
        _end_job(connection, hold, JobStatus.SUCCEEDED, summary=summary)
        _end_attempt(connection, hold, AttemptOutcome.SUCCEEDED)
        append_event(connection, hold.job_id, EventType.SUCCEEDED, data)
        reach("end.before_commit")
    return JobStatus.SUCCEEDED


def fail(connection: Connection, hold: Hold, *, code: FailureCode, message: str) -> JobStatus:
    """End the job with an error that the same attempt repeated would meet again, or that its owner must judge."""
    with connection.transaction():
        lock(connection, hold)
        _fail(connection, hold, AttemptOutcome.FAILED, code, message)
    return JobStatus.FAILED


def cancel(connection: Connection, hold: Hold) -> JobStatus:
    """End a job that someone asked to stop. Raises NotHeld when nobody did."""
    with connection.transaction():
        lock(connection, hold, JobStatus.CANCELLING)
        _cancel(connection, hold, AttemptOutcome.CANCELLED)
    return JobStatus.CANCELLED


def hand_back(connection: Connection, hold: Hold, *, reason: str) -> JobStatus:
    """Queue the job again because this worker was asked to stop; that counts against no budget."""
    with connection.transaction():
        lock(connection, hold)
        _end_attempt(connection, hold, AttemptOutcome.HANDED_BACK)
        _requeue(connection, hold, reason, barren=None)
    return JobStatus.QUEUED


def give_up_attempt(
    connection: Connection,
    hold: Hold,
    *,
    outcome: AttemptOutcome,
    reason: str,
    budget: int,
    code: FailureCode = FailureCode.NO_PROGRESS,
) -> JobStatus:
    """End an attempt that died. The job waits again, unless ``budget`` attempts in a row brought no new block: then it
    has failed with ``code``; a job that was to be cancelled is. Returns the job's status. Raises NotHeld.
    """
    with connection.transaction():
        job = lock(connection, hold, *LEASED)
        return end_dead_attempt(connection, hold, job, outcome=outcome, reason=reason, budget=budget, code=code)


def end_dead_attempt(
    connection: Connection,
    hold: Hold,
    job: Mapping[str, Any],
    *,
    outcome: AttemptOutcome,
    reason: str,
    budget: int,
    code: FailureCode = FailureCode.NO_PROGRESS,
) -> JobStatus:
    """The same inside the caller's transaction, which holds the lock on the row ``job``."""
    if job["status"] == JobStatus.CANCELLING:
        _cancel(connection, hold, outcome)
        return JobStatus.CANCELLED
    attempt = connection.execute(
        "SELECT blocks_done FROM attempts WHERE job_id = %s AND attempt = %s", (hold.job_id, hold.attempt)
    ).fetchone()
    barren = 0 if attempt is not None and attempt["blocks_done"] > 0 else job["barren_attempts"] + 1
    if barren >= budget:
        tried = f"{barren} attempts in a row ended without a new block; the last: "
        message = reason if budget == 1 else tried + reason
        connection.execute("UPDATE jobs SET barren_attempts = %s WHERE id = %s", (barren, hold.job_id))
        _fail(connection, hold, outcome, code, message)
        return JobStatus.FAILED
    _end_attempt(connection, hold, outcome, error={"message": clean(reason)})
    _requeue(connection, hold, reason, barren=barren)
    return JobStatus.QUEUED


def lock(connection: Connection, hold: Hold, *statuses: JobStatus) -> DictRow:
    """Lock the job's row for the rest of the transaction: the fence before every write. Raises NotHeld."""
    row = connection.execute(
        "SELECT status, barren_attempts FROM jobs WHERE id = %s AND attempt = %s AND status = ANY(%s) FOR UPDATE",
        (hold.job_id, hold.attempt, [status.value for status in statuses or (JobStatus.RUNNING,)]),
    ).fetchone()
    if row is None:
        raise NotHeld(f"{hold.job_id} is no longer attempt {hold.attempt}'s to write")
    return row


def append_event(connection: Connection, job_id: str, kind: EventType, data: Mapping[str, Any]) -> None:
    """Append to the job's events, and to what its webhooks are to be told, inside the caller's transaction."""
    connection.execute(APPEND_EVENT, {"job_id": job_id, "type": kind.value, "data": Jsonb(dict(data))})


def clean(message: str) -> str:
    """One line that PostgreSQL can store."""
    return " ".join(message.replace("\x00", "").split())[:2000]


def _fail(connection: Connection, hold: Hold, outcome: AttemptOutcome, code: FailureCode, message: str) -> None:
    error = {"code": code.value, "message": clean(message), "retryable": code in RETRYABLE}
    _end_job(connection, hold, JobStatus.FAILED, error=error)
    _end_attempt(connection, hold, outcome, error=error)
    append_event(connection, hold.job_id, EventType.FAILED, {"attempt": hold.attempt, "error": error})


def _cancel(connection: Connection, hold: Hold, outcome: AttemptOutcome) -> None:
    _end_job(connection, hold, JobStatus.CANCELLED)
    _end_attempt(connection, hold, outcome)
    append_event(connection, hold.job_id, EventType.CANCELLED, {"attempt": hold.attempt})


def _end_job(
    connection: Connection,
    hold: Hold,
    status: JobStatus,
    *,
    summary: Mapping[str, Any] | None = None,
    error: Mapping[str, Any] | None = None,
) -> None:
    connection.execute(
        "UPDATE jobs SET status = %s, lease_until = NULL, phase = NULL, finished_at = clock_timestamp(), summary = %s,"
        " verdict = %s, error = %s WHERE id = %s",
        (
            status.value,
            None if summary is None else Jsonb(dict(summary)),
            None if summary is None else summary.get("verdict"),
            None if error is None else Jsonb(dict(error)),
            hold.job_id,
        ),
    )


def _requeue(connection: Connection, hold: Hold, reason: str, *, barren: int | None) -> None:
    connection.execute(
        "UPDATE jobs SET status = 'queued', lease_until = NULL, phase = NULL, worker = NULL, rung_at = NULL,"
        " run_after = clock_timestamp(), barren_attempts = coalesce(%s, barren_attempts) WHERE id = %s",
        (barren, hold.job_id),
    )
    append_event(connection, hold.job_id, EventType.REQUEUED, {"attempt": hold.attempt, "reason": clean(reason)})


def _end_attempt(
    connection: Connection, hold: Hold, outcome: AttemptOutcome, error: Mapping[str, Any] | None = None
) -> None:
    connection.execute(
        "UPDATE attempts SET ended_at = clock_timestamp(), outcome = %s, error = %s WHERE job_id = %s AND attempt = %s",
        (outcome.value, None if error is None else Jsonb(dict(error)), hold.job_id, hold.attempt),
    )
    connection.execute("UPDATE workers SET job_id = NULL WHERE job_id = %s", (hold.job_id,))


def _files_by_block(connection: Connection, job_id: str) -> dict[int, list[dict[str, Any]]]:
    rows = connection.execute("SELECT block, files FROM layers WHERE job_id = %s ORDER BY block", (job_id,)).fetchall()
    return {row["block"]: row["files"] for row in rows}


def _keys(files: Mapping[int, Sequence[Mapping[str, Any]]]) -> set[str]:
    return {file["key"] for kept in files.values() for file in kept}
