"""Jobs that no living worker can take: the reason goes into the job's row, where its owner reads it. A job that has
waited for too long fails.

A job that only waits for its turn has no reason. No job has one while no worker lives: the service tells that once, and
not for every job.
"""

from __future__ import annotations

import logging

from core.ledger.placement import fits, fits_worker
from worker.ledger.attempts import AttemptRef, fail_waiting
from worker.ledger.connection import Connection

logger = logging.getLogger(__name__)

AT_ONCE = 5000
WAITED_ENOUGH = """
SELECT id, attempt, max_wait_s, waiting FROM jobs WHERE status = 'queued' AND max_wait_s IS NOT NULL
    AND greatest(queued_at, run_after) < clock_timestamp() - make_interval(secs => max_wait_s)
LIMIT %(at_once)s FOR UPDATE SKIP LOCKED"""
CLASS = fits(
    "kinds", device="alive.device", memory="NULL::bigint", device_memory="NULL::bigint", free_disk="NULL::bigint"
)


def size_text(size: str) -> str:
    """SQL of a size in words."""
    return f"coalesce(pg_size_pretty(({size})::bigint), '?')"


def columns(table: str) -> str:
    return ", ".join(f"{table}.{name}" for name in KIND.split(", "))


KIND = "spec_version, device, needs_host_cpu, needs_host_cuda, needs_device, needs_disk"
"""Jobs that are alike in these wait for the same."""
EXPLAIN = f"""
WITH alive AS MATERIALIZED (
    SELECT * FROM workers WHERE state <> 'stopped' AND seen_at > clock_timestamp() - make_interval(secs => %(alive)s)
), kinds AS MATERIALIZED (
    SELECT DISTINCT {KIND} FROM jobs WHERE status = 'queued'
), reasons AS (
    SELECT kinds.*, CASE
        WHEN NOT EXISTS (SELECT FROM alive WHERE alive.spec_version >= kinds.spec_version) THEN jsonb_build_object(
            'code', 'workers_too_old', 'message', format('version %%s of the spec is needed, and the newest worker'
            ' alive understands %%s: upgrade the workers', spec_version, (SELECT max(spec_version) FROM alive)))
        WHEN kinds.device IS NOT NULL AND NOT EXISTS (SELECT FROM alive WHERE {CLASS}) THEN jsonb_build_object(
            'code', 'no_such_device', 'message', format('a device of class %%s is asked for, and no worker alive has'
            ' one; there are: %%s', kinds.device, (SELECT string_agg(DISTINCT alive.device, ', ') FROM alive)))
        WHEN NOT EXISTS (SELECT FROM alive WHERE {fits_worker("alive", "kinds")}) THEN jsonb_build_object(
            'code', 'no_worker_fits', 'message', format('no worker alive is large enough: the job needs about %%s of'
            ' device memory, %%s of memory and %%s of disk; the most that one has is %%s, %%s and %%s',
            {size_text("needs_device")}, {size_text("coalesce(needs_host_cuda, needs_host_cpu)")},
            {size_text("needs_disk")}, {size_text("(SELECT max(device_memory_bytes) FROM alive)")},
            {size_text("(SELECT max(memory_bytes) FROM alive)")},
            {size_text("(SELECT max(free_disk_bytes) FROM alive)")}))
    END AS reason FROM kinds WHERE EXISTS (SELECT FROM alive)
)
UPDATE jobs SET waiting = found.reason FROM (
    SELECT jobs.id, reasons.reason FROM jobs JOIN reasons
        ON ({columns("jobs")}) IS NOT DISTINCT FROM ({columns("reasons")})
    WHERE status = 'queued' AND waiting IS DISTINCT FROM reason
    ORDER BY created_at LIMIT %(at_once)s FOR UPDATE OF jobs SKIP LOCKED
) AS found WHERE jobs.id = found.id AND status = 'queued'
"""  # noqa: S608 -- every part is ours


def explain_waiting(connection: Connection, *, alive: float) -> int:
    """Set or clear the reason of every job that waits; workers not heard of for ``alive`` seconds do not count."""
    return connection.execute(EXPLAIN, {"alive": alive, "at_once": AT_ONCE}).rowcount


def end_waiting(connection: Connection) -> list[str]:
    """Fail every job that has waited for longer than its ``max_wait_s``; returns their ids."""
    with connection.transaction():
        rows = connection.execute(WAITED_ENOUGH, {"at_once": AT_ONCE}).fetchall()
        for row in rows:
            reason = f": {row['waiting']['message']}" if row["waiting"] else ""
            message = f"no worker took it within {row['max_wait_s']} seconds{reason}"
            fail_waiting(connection, AttemptRef(row["id"], row["attempt"]), message=message)
            logger.warning("%s: %s", row["id"], message)
    return [row["id"] for row in rows]
