"""The keeper: looks after jobs that nobody looks after. Any number of copies may run; one at a time works.

    python -m worker.keeper

Each duty is one sentence: *ring again* for queued jobs that nobody took, *reap* jobs whose worker was not heard of,
*sweep* away what is not needed any more. Beside them, in a thread of its own so that no slow endpoint delays a
reaping, it *delivers webhooks*.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import psycopg

from app.contract.crash_points import reach
from app.contract.states import LEASED, AttemptOutcome, JobStatus
from app.logs import configure_logging
from app.settings import Settings, read_settings
from app.storage import Storage, storage_from_url
from app.tracing import OFF, Tracing, open_tracing
from worker import ledger, metrics, sweep
from worker.ledger import Connection, Hold
from worker.postman import deliver
from worker.ring import ring_quietly
from worker.spans import attempt_span
from worker.webhooks import forget_deliveries

logger = logging.getLogger(__name__)

LOCK = 0x7165_6B70
"""``qekp``: the advisory lock of the keeper at work; it goes with its connection."""
SWEEP_SECONDS = 600.0
DELIVERY_DAYS = 30
"""For this long a finished webhook delivery stays in the log."""

Ring = Callable[[str], None]


def ring_again(connection: Connection, ring: Ring, *, after: float) -> list[str]:
    """Ring for queued jobs whose last bell is ``after`` seconds old or was never rung; returns their ids."""
    rows = connection.execute(
        "UPDATE jobs SET rung_at = clock_timestamp() WHERE id IN ("
        " SELECT id FROM jobs WHERE status = 'queued' AND run_after <= clock_timestamp()"
        " AND coalesce(rung_at, queued_at) < clock_timestamp() - make_interval(secs => %s)"
        " ORDER BY priority DESC, created_at LIMIT 100 FOR UPDATE SKIP LOCKED) RETURNING id",
        (after,),
    ).fetchall()
    metrics.RUNG_AGAIN.inc(len(rows))
    for row in rows:
        ring(row["id"])
    return [row["id"] for row in rows]


def reap(
    connection: Connection, ring: Ring, *, grace: float, budget: int, tracing: Tracing = OFF
) -> dict[str, JobStatus]:
    """Take jobs from workers whose lease ran out ``grace`` seconds ago; returns what each job is now."""
    reaped: dict[str, JobStatus] = {}
    while True:
        with connection.transaction():
            row = connection.execute(
                "SELECT id, attempt, status, barren_attempts, worker, tenant, model_id, scheme, method, trace_context,"
                " (SELECT EXTRACT(EPOCH FROM started_at)::float8 FROM attempts WHERE job_id = jobs.id"
                "  AND attempt = jobs.attempt) AS began FROM jobs WHERE status = ANY(%s)"
                " AND lease_until < clock_timestamp() - make_interval(secs => %s)"
                " ORDER BY lease_until LIMIT 1 FOR UPDATE SKIP LOCKED",
                ([status.value for status in LEASED], grace),
            ).fetchone()
            if row is None:
                break
            reason = f"worker {row['worker']} was not heard of"
            reaped[row["id"]] = ledger.end_dead_attempt(
                connection,
                Hold(row["id"], row["attempt"]),
                row,
                outcome=AttemptOutcome.LEASE_EXPIRED,
                reason=reason,
                budget=budget,
            )
            reach("reap.before_commit")
        reach("reap.after_commit")
        metrics.REAPED.inc()
        _end_span(tracing, row, reason)
        logger.warning("%s: attempt %d reaped: %s", row["id"], row["attempt"], reason)
    for job_id, status in reaped.items():
        if status == JobStatus.QUEUED:
            ring(job_id)
    return reaped


def _end_span(tracing: Tracing, row: Mapping[str, Any], reason: str) -> None:
    """The worker that began it cannot, or must not."""
    span = attempt_span(
        tracing,
        Hold(row["id"], row["attempt"]),
        tenant=row["tenant"],
        worker=row["worker"],
        model=row["model_id"],
        scheme=row["scheme"],
        method=row["method"],
        carrier=row["trace_context"],
        began=row["began"],
    )
    span.note({"error.type": AttemptOutcome.LEASE_EXPIRED.value})
    span.fail(reason)
    span.end()


def sweep_away(connection: Connection, storage: Storage, settings: Settings) -> None:
    """Every sweep once."""
    counts = {
        "idempotency records": sweep.forget_idempotency(connection),
        "plans": sweep.forget_plans(connection),
        "workers that are gone": sweep.forget_workers(connection),
        "jobs' block files": sweep.drop_block_files(connection, storage),
        "expired datasets": sweep.expire_datasets(connection, storage),
        "expired uploads": sweep.drop_expired_uploads(storage),
        "half stored files": sweep.drop_unfinished_puts(storage),
        "uploads without a dataset": sweep.drop_unnamed_uploads(connection, storage),
        "work directories": sweep.drop_work_directories(connection, settings.work_directory),
        "downloads that nobody took up": sweep.drop_stale_downloads(settings.resolved_home),
        "webhook deliveries": forget_deliveries(connection, days=DELIVERY_DAYS),
        "logs": sweep.drop_logs(settings.resolved_home / "logs"),
    }
    sweep.drop_dead_artifacts(connection, storage)
    for what, count in counts.items():
        if count:
            logger.info("swept away: %d %s", count, what)


def keep(settings: Settings, ring: Ring, stop: threading.Event, tracing: Tracing = OFF) -> None:
    """Do every duty in turn until ``stop``. A database that is away is waited for."""
    storage = storage_from_url(settings.resolved_storage_url)
    while not stop.is_set():
        try:
            with ledger.connect(settings.database_url or "") as connection:
                _keep_connected(connection, settings, storage, ring, stop, tracing)
        except psycopg.Error as error:
            logger.warning("the ledger is away, trying again: %s", error)
            stop.wait(settings.keeper_interval)


def _keep_connected(
    connection: Connection,
    settings: Settings,
    storage: Storage,
    ring: Ring,
    stop: threading.Event,
    tracing: Tracing,
) -> None:
    locked = False
    next_sweep = time.monotonic()
    while not stop.is_set():
        if not locked:
            answer = connection.execute("SELECT pg_try_advisory_lock(%s) AS locked", (LOCK,)).fetchone()
            locked = answer is not None and answer["locked"]
        if locked:
            reap(connection, ring, grace=settings.grace, budget=settings.barren_attempts, tracing=tracing)
            ring_again(connection, ring, after=settings.ring_again)
            if time.monotonic() >= next_sweep:
                try:
                    sweep_away(connection, storage, settings)
                except OSError as error:
                    logger.warning("could not sweep: %s", error)
                next_sweep = time.monotonic() + SWEEP_SECONDS
        stop.wait(settings.keeper_interval)


def main() -> None:
    settings = read_settings()
    configure_logging(settings.log_format)
    if settings.redis_url is None or settings.database_url is None:
        raise SystemExit("the keeper needs QE_DATABASE_URL and QE_REDIS_URL (`qe serve` brings its own servers)")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        tracing = open_tracing(settings, "keeper")
    except ValueError as error:
        raise SystemExit(str(error)) from error
    metrics.serve_metrics(settings.metrics_port)
    logger.info("keeper at work")
    postman = threading.Thread(target=deliver, args=(settings, stop), name="postman", daemon=True)
    postman.start()
    keep(settings, partial(ring_quietly, settings), stop, tracing)
    tracing.close()
    postman.join(settings.webhook_timeout)


if __name__ == "__main__":
    main()
