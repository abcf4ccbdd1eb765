"""Every statement that changes a job's status, by name, and the writes that belong to a job that runs.

``core.ledger.states`` lists the legal moves; a trigger in PostgreSQL refuses all others. No other module writes
``jobs.status`` (``tests/worker/test_transitions.py`` checks it). Two modules update other columns of ``jobs``:
``core.ledger.outbox`` numbers the events, and ``worker.keeper.waiting`` writes why a job waits.

The statements are in psycopg's style. The API runs them through ``app.db.pipeline``, the worker through
``worker.ledger``. Unless its sentence says otherwise, a statement does not check the current status: the caller holds
the lock on the row and has checked it in the same transaction.
"""

from __future__ import annotations

from core.ledger.placement import FITS_HERE, fits_worker

CREATE = """
INSERT INTO jobs (id, tenant, name, alias, labels, spec, spec_version, progress, plan, forked_from, comparison_id,
    model_id, method, scheme, trace_context, max_wait_s, priority, device, needs_host_cpu, needs_host_cuda,
    needs_device, needs_disk, event_seq)
VALUES (%(job_id)s, %(tenant)s, %(name)s, %(alias)s, %(labels)s, %(spec)s, %(spec_version)s, %(progress)s, %(plan)s,
    %(forked_from)s, %(comparison_id)s, %(model_id)s, %(method)s, %(scheme)s, %(trace_context)s,
    %(max_wait_s)s, %(priority)s, %(device)s, %(needs_host_cpu)s, %(needs_host_cuda)s, %(needs_device)s,
    %(needs_disk)s, 1)
"""
"""→ queued. Inserts a job; ``event_seq`` is 1 because the caller writes the first event in the same transaction."""

SMALLER = f"""EXISTS (SELECT FROM workers AS smaller WHERE smaller.device_memory_bytes < %(device_memory)s::bigint
    AND smaller.job_id IS NULL AND smaller.state = 'ready' AND smaller.id <> ALL(avoid)
    AND smaller.spec_version >= jobs.spec_version
    AND smaller.seen_at > clock_timestamp() - make_interval(secs => %(lease)s) AND {fits_worker("smaller")})"""
"""A condition of ``CLAIM``: the job fits an idle worker with a smaller device, which should take it."""
SMALLER_FIRST_SECONDS = 5.0
"""For this long a job waits for such a worker."""
CLAIM = f"""
UPDATE jobs SET status = 'running', attempt = attempt + 1, worker = %(worker)s, phase = 'preparing',
    lease_until = clock_timestamp() + make_interval(secs => %(lease)s), waiting = NULL,
    started_at = CASE WHEN started_at >= queued_at THEN started_at ELSE clock_timestamp() END,
    blocks_done = (SELECT count(*) FROM layers WHERE job_id = jobs.id AND files <> '[]'::jsonb)
WHERE id = (
    SELECT id FROM jobs WHERE id IN (
        SELECT id FROM jobs WHERE tenant = %(tenant)s AND status = 'queued' AND waiting IS NULL
        ORDER BY priority DESC, created_at LIMIT %(look)s
    ) AND status = 'queued' AND run_after <= clock_timestamp() AND spec_version <= %(understood)s AND {FITS_HERE}
        AND (%(worker)s <> ALL(avoid) OR NOT EXISTS (SELECT FROM workers WHERE state <> 'stopped' AND id <> ALL(avoid)
            AND id <> %(worker)s AND seen_at > clock_timestamp() - make_interval(secs => %(lease)s)
            AND workers.spec_version >= jobs.spec_version AND {fits_worker("workers")}))
        AND (needs_device IS NULL OR NOT {SMALLER}
            OR greatest(queued_at, run_after) < clock_timestamp() - make_interval(secs => {SMALLER_FIRST_SECONDS}))
    ORDER BY priority DESC, created_at LIMIT 1 FOR UPDATE SKIP LOCKED
) AND coalesce((SELECT count(*) FROM jobs AS held WHERE held.tenant = %(tenant)s AND held.lease_until IS NOT NULL)
    < %(most)s::integer, true)
RETURNING id, tenant, spec, attempt, progress, blocks_done, trace_context,
    (SELECT coalesce(EXTRACT(EPOCH FROM sum(ended_at - started_at)), 0)::float8 FROM attempts
        WHERE job_id = jobs.id AND started_at >= jobs.queued_at) AS elapsed,
    EXTRACT(EPOCH FROM clock_timestamp() - greatest(queued_at, run_after))::float8 AS waited
"""  # noqa: S608 -- every part is ours
"""queued → running. Takes the tenant's next job that this worker can run: the highest priority, then the oldest. At
most one worker gets a job (``SKIP LOCKED``), and the new ``attempt`` fences every later write. Returns no row when
nothing fits or the tenant holds its ``most`` workers. That count is exact: the caller holds the tenant's turn."""

CONFIRM_CLAIM = """UPDATE jobs SET lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
WHERE id = %(job_id)s AND attempt = %(attempt)s AND worker = %(worker)s AND status IN ('running', 'cancelling')"""
"""Renews the lease when a claim whose commit was not confirmed is this worker's; changes no row otherwise."""

EXTEND_LEASE = """UPDATE jobs SET lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
WHERE id = %(job_id)s AND attempt = %(attempt)s AND status IN ('running', 'cancelling') RETURNING status"""
"""The heartbeat. Returns the status; no row when the attempt has lost the job."""

SET_PHASE = "UPDATE jobs SET phase = %(phase)s WHERE id = %(job_id)s"
"""What a running job is doing (``core.ledger.states.Phase``)."""

MERGE_PROGRESS = """UPDATE jobs SET progress = progress || %(progress)s,
    blocks_total = coalesce(%(blocks)s, blocks_total) WHERE id = %(job_id)s"""
"""Merges ``progress`` (JSONB) into what the job has; ``blocks`` is the number of decoder blocks or null."""

FINISH_BLOCK = """UPDATE jobs SET avoid = '{}', blocks_done = %(done)s, blocks_total = %(blocks)s, block_seconds =
    coalesce(block_seconds * (1 - %(weight)s) + %(seconds)s * %(weight)s, %(seconds)s) WHERE id = %(job_id)s"""
"""Counts a block that was computed and averages its time. The job progresses, so it avoids no worker any more."""

SKIP_BLOCK = "UPDATE jobs SET blocks_done = %(done)s, blocks_total = %(blocks)s WHERE id = %(job_id)s"
"""Counts a block that an earlier attempt had finished."""

AVOID_WORKER = "UPDATE jobs SET avoid = array_append(array_remove(avoid, worker), worker) WHERE id = %(job_id)s"
"""Offers the job to other workers first: the one that holds it has just failed it."""

NOTIFY_AGAIN = """UPDATE jobs SET rung_at = clock_timestamp() WHERE id IN (
    SELECT id FROM jobs WHERE status = 'queued' AND run_after <= clock_timestamp()
        AND (coalesce(rung_at, queued_at) < clock_timestamp() - make_interval(secs => %(after)s)
            OR (rung_at IS NULL AND run_after > queued_at + interval '1 s'))
    ORDER BY priority DESC, created_at LIMIT 100 FOR UPDATE SKIP LOCKED) RETURNING id"""
"""Selects queued jobs whose last wake-up is ``after`` seconds old. A job that waited between two attempts has had
none. Returns their ids."""

REQUEUE = """UPDATE jobs SET status = 'queued', lease_until = NULL, phase = NULL, worker = NULL, rung_at = NULL,
    run_after = clock_timestamp() + make_interval(secs => %(wait)s),
    barren_attempts = coalesce(%(attempts_without_progress)s, barren_attempts) WHERE id = %(job_id)s"""
"""running → queued. Ends an attempt but not the job, which nobody may claim for ``wait`` seconds."""

END = """UPDATE jobs SET status = %(status)s, lease_until = NULL, phase = NULL, finished_at = clock_timestamp(),
    summary = %(summary)s, verdict = %(verdict)s, error = %(error)s,
    artifact_bytes = coalesce(%(artifact_bytes)s, artifact_bytes),
    barren_attempts = coalesce(%(attempts_without_progress)s, barren_attempts) WHERE id = %(job_id)s"""
"""running, cancelling or queued → succeeded, failed or cancelled. The lease ends with the job."""

CANCEL_QUEUED = "UPDATE jobs SET status = 'cancelled', finished_at = clock_timestamp() WHERE id = %(job_id)s"
"""queued → cancelled. No worker holds the job, so it ends at once."""

REQUEST_CANCEL = "UPDATE jobs SET status = 'cancelling' WHERE id = %(job_id)s"
"""running → cancelling. The worker keeps its lease, learns of the request from its heartbeat, and ends the job."""

RETRY = """UPDATE jobs SET status = 'queued', phase = NULL, worker = NULL, error = NULL, started_at = NULL,
    finished_at = NULL, rung_at = NULL, queued_at = clock_timestamp(), run_after = clock_timestamp(),
    barren_attempts = 0, avoid = '{}' WHERE id = %(job_id)s"""
"""failed or cancelled → queued. Finished blocks and ``progress``, with its pinned commits, stay."""
