"""Pushes in the ledger: which are due, and what became of an attempt.

A push is taken with a lease, so that any number of keepers may push at once and one that dies loses nothing: another
goes on, and what has arrived at the destination is not sent again. Whoever writes the end locks first the job's row,
then the push's, as a deletion does.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psycopg.types.json import Jsonb

from core.contract.destination import TRACKING, PushStatus
from core.contract.events import EventType
from core.crash_points import reach
from quant_experts.spec.exports import EXPORTS_FOLDER
from worker import metrics
from worker.ledger.attempts import append_event, clean
from worker.ledger.connection import Connection

SCHEDULE = (0, 30, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600)
"""Seconds before each attempt, counted from the one before. One that a keeper's death cuts off counts for none."""
JITTER = 0.1
LEASE_SECONDS = 300.0
"""Longer than the largest file takes from our own storage: nothing is said to the ledger meanwhile."""
REPORTS = ("quality_report.json", "quality_report.html")
"""They go with an export too."""

RETRY_HOURS = 24
"""For this long pushes wait for a job that failed or was cancelled: somebody may retry it."""

SETTLE = """
WITH ripe AS (
    SELECT pushes.id, CASE WHEN deleted_at IS NOT NULL THEN 'the job was deleted'
        WHEN jobs.status <> 'succeeded' THEN 'the job is ' || jobs.status || ', and nobody has retried it'
        WHEN if_accepted AND verdict = 'rejected' THEN 'the checkpoint misses its accept_if' END AS reason
    FROM pushes JOIN jobs ON jobs.id = job_id
    WHERE pushes.finished_at IS NULL AND pushes.status IN ('waiting', 'queued') AND (deleted_at IS NOT NULL
        OR pushes.status = 'waiting' AND (jobs.status = 'succeeded' OR jobs.status IN ('failed', 'cancelled')
            AND jobs.finished_at < clock_timestamp() - make_interval(hours => %(hours)s)))
    LIMIT 1000
)
UPDATE pushes SET error = reason, status = CASE WHEN reason IS NULL THEN 'queued' ELSE 'cancelled' END,
    due_at = CASE WHEN reason IS NULL THEN clock_timestamp() END,
    finished_at = CASE WHEN reason IS NOT NULL THEN clock_timestamp() END
FROM ripe WHERE pushes.id = ripe.id AND pushes.status IN ('waiting', 'queued') RETURNING pushes.status
"""
"""What has become of the jobs that pushes wait for."""

TAKE = """
WITH chosen AS (
    SELECT id FROM pushes WHERE due_at <= clock_timestamp()
    ORDER BY (SELECT count(*) FROM pushes AS other WHERE other.tenant = pushes.tenant AND other.finished_at IS NULL
        AND other.status = 'running' AND other.due_at > clock_timestamp()), due_at
    LIMIT 1 FOR UPDATE SKIP LOCKED
)
UPDATE pushes SET status = 'running', attempts = attempts + 1,
    due_at = clock_timestamp() + make_interval(secs => %(lease)s)
FROM chosen WHERE pushes.id = chosen.id
RETURNING pushes.id, tenant, job_id, destination, export, private, attempts, step
"""
"""Tenants take turns: the one goes first of whose pushes the fewest are on their way."""

BEAT = """
UPDATE pushes SET due_at = clock_timestamp() + make_interval(secs => %(lease)s), files_done = %(files_done)s,
    bytes_done = %(bytes_done)s, files_total = %(files_total)s, bytes_total = %(bytes_total)s
WHERE id = %(id)s AND attempts = %(attempts)s AND status = 'running'
RETURNING (SELECT deleted_at IS NOT NULL FROM jobs WHERE jobs.id = job_id) AS is_deleted,
    EXISTS (SELECT FROM artifacts WHERE artifacts.job_id = pushes.job_id) AS has_files
"""


class Over(Exception):
    """There is nothing to push any more: why the push ends, shown to its owner."""


class NotOurs(Exception):
    """The push was cancelled, or another keeper has it."""


@dataclass(frozen=True)
class Due:
    """A push that is ours to carry now. ``attempts`` is its fencing token."""

    id: str
    tenant: str
    job_id: str
    destination: str
    export: str
    private: bool
    attempts: int
    step: int


@dataclass(frozen=True)
class File:
    """A file of the job. ``name`` at the destination, ``key`` in our storage."""

    name: str
    key: str
    bytes: int
    sha256: str
    media_type: str


@dataclass
class Progress:
    """Files and bytes that are at the destination, of how many."""

    files_total: int
    bytes_total: int
    files_done: int = 0
    bytes_done: int = 0


def take_due(connection: Connection) -> Due | None:
    """The next push, if one is due."""
    for settled in connection.execute(SETTLE, {"hours": RETRY_HOURS}).fetchall():
        if settled["status"] == PushStatus.CANCELLED:
            metrics.PUSHES.labels(settled["status"]).inc()
    row = connection.execute(TAKE, {"lease": LEASE_SECONDS}).fetchone()
    if row is None:
        return None
    reach("push.taken")
    return Due(**row)


def files_of(connection: Connection, due: Due) -> list[File]:
    """The files to push: the checkpoint's, those of its export with the report, or the report alone. The largest first,
    and last ``config.json``, without which nothing loads a half-pushed folder. Raises Over when they were deleted."""
    rows = connection.execute(
        "SELECT name, key, bytes, sha256, media_type FROM artifacts WHERE job_id = %s", (due.job_id,)
    ).fetchall()
    files = [File(**row) for row in rows]
    if due.destination == TRACKING:
        return [each for each in files if each.name in REPORTS]
    folder = f"{EXPORTS_FOLDER}/{due.export}/"
    if due.export:
        exported = [
            File(**{**vars(each), "name": each.name.removeprefix(folder)})
            for each in files
            if each.name.startswith(folder)
        ]
        names = {each.name for each in exported}
        chosen = exported + [each for each in files if exported and each.name in REPORTS and each.name not in names]
    else:
        chosen = [each for each in files if not each.name.startswith(f"{EXPORTS_FOLDER}/")]
    if not chosen:
        raise Over(f"the export {due.export} was not made" if files else "the files of the job were deleted")
    return sorted(chosen, key=lambda each: (each.name == "config.json", -each.bytes, each.name))


def beat(connection: Connection, due: Due, progress: Progress) -> None:
    """Extend the lease and tell how far it is. Raises Over when the job or its files were deleted, and NotOurs."""
    values = {"lease": LEASE_SECONDS, "id": due.id, "attempts": due.attempts, **vars(progress)}
    row = connection.execute(BEAT, values).fetchone()
    if row is None:
        raise NotOurs(f"{due.id} was cancelled, or another keeper has it")
    if row["is_deleted"] is not False:
        raise Over("the job was deleted")
    if not row["has_files"]:
        raise Over("the files of the job were deleted")


def succeed(connection: Connection, due: Due, result: Mapping[str, Any]) -> None:
    """End it, with ``job.pushed``."""
    with connection.transaction():
        if _end(connection, due, PushStatus.SUCCEEDED, error=None, result=result):
            data = {"push": due.id, "to": due.destination, "export": due.export or None, **result}
            append_event(connection, due.job_id, EventType.PUSHED, data)
        reach("push.before_commit")


def fail(connection: Connection, due: Due, reason: str, *, is_final: bool) -> None:
    """Try again later; after the last attempt, or when no waiting helps, it has failed, with ``job.push_failed``."""
    message = clean(reason)
    if not is_final and due.step + 1 < len(SCHEDULE):
        delay = SCHEDULE[due.step + 1] * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 -- spreads load only
        connection.execute(
            "UPDATE pushes SET status = 'queued', step = step + 1, error = %s,"
            " due_at = clock_timestamp() + make_interval(secs => %s)"
            " WHERE id = %s AND attempts = %s AND status = 'running'",
            (message, delay, due.id, due.attempts),
        )
        return
    with connection.transaction():
        if _end(connection, due, PushStatus.FAILED, error=message):
            data = {"push": due.id, "to": due.destination, "export": due.export or None, "error": message}
            append_event(connection, due.job_id, EventType.PUSH_FAILED, data)


def cancel(connection: Connection, due: Due, reason: str) -> None:
    """End it because there is nothing to push any more."""
    with connection.transaction():
        _end(connection, due, PushStatus.CANCELLED, error=reason)


def release(connection: Connection, due: Due) -> None:
    """Another keeper may go on at once: this one was asked to stop."""
    connection.execute(
        "UPDATE pushes SET status = 'queued', due_at = clock_timestamp()"
        " WHERE id = %s AND attempts = %s AND status = 'running'",
        (due.id, due.attempts),
    )


def _end(
    connection: Connection, due: Due, status: PushStatus, *, error: str | None, result: Mapping[str, Any] | None = None
) -> bool:
    """False when it was cancelled or taken by another keeper meanwhile."""
    connection.execute("SELECT FROM jobs WHERE id = %s FOR UPDATE", (due.job_id,))
    update = connection.execute(
        "UPDATE pushes SET status = %s, due_at = NULL, finished_at = clock_timestamp(), error = %s, result = %s"
        " WHERE id = %s AND attempts = %s AND status = 'running'",
        (status.value, error, None if result is None else Jsonb(dict(result)), due.id, due.attempts),
    )
    if update.rowcount:
        metrics.PUSHES.labels(status.value).inc()
    return update.rowcount == 1
