"""The keeper: looks after jobs that nobody looks after. Any number of copies may run; one at a time works.

    python -m worker.keeper

Each duty is one sentence. *Notify again*: wake workers for queued jobs that nobody took. *Reap*: take jobs from workers
that were not heard of. *End waiting*: fail jobs that waited for as long as they may. *Sweep*: remove what is not needed
any more. The sweeps, the webhook deliveries and the pushes have threads of their own, so that a slow store or endpoint
delays no reaping.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg

from core import pooler, preflight
from core.crash_points import reach
from core.ledger import transitions
from core.ledger.states import LEASED, AttemptOutcome, JobStatus
from core.liveness_file import touch
from core.logs import configure_logging
from core.settings import Settings, read_settings
from core.storage import Storage, storage_from_url
from core.tracing import OFF, Tracing, open_tracing
from worker import metrics
from worker.attempt_span import attempt_span
from worker.keeper import removal, sweep
from worker.keeper.waiting import end_waiting, explain_waiting
from worker.ledger import attempts as ledger
from worker.ledger.attempts import AttemptRef
from worker.ledger.connection import Connection, connect
from worker.machine import hub_copies
from worker.notify import notify_workers
from worker.pushes.pushing import push_regularly
from worker.webhooks.delivery import deliver

logger = logging.getLogger(__name__)

LOCK = 0x7165_6B70
"""``qekp``: the advisory lock of the keeper at work; it goes with its connection."""
SWEEP_LOCK = 0x7165_7377
"""``qesw``: of the one that sweeps."""
SWEEP_SECONDS = 600.0
EXPLAIN_SECONDS = 15.0
JOIN_SECONDS = 5.0
"""A sweep that is under way when the keeper stops has this long to end; it is safe to break off anywhere."""

Notify = Callable[[str], object]
"""False: nobody hears."""


def notify_again(connection: Connection, notify: Notify, *, after: float) -> list[str]:
    """Notify workers of queued jobs whose last wake-up is ``after`` seconds old or missing; returns the job ids."""
    rows = connection.execute(transitions.NOTIFY_AGAIN, {"after": after}).fetchall()
    metrics.NOTIFIED_AGAIN.inc(len(rows))
    job_ids = [row["id"] for row in rows]
    _notify_all(notify, job_ids)
    return job_ids


def reap(
    connection: Connection, notify: Notify, *, grace: float, budget: int, delay: float = 0.0, tracing: Tracing = OFF
) -> dict[str, JobStatus]:
    """Take jobs from workers whose lease ran out ``grace`` seconds ago; returns what each job is now."""
    states: dict[str, JobStatus] = {}
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
            states[row["id"]] = ledger.end_dead_attempt(
                connection,
                AttemptRef(row["id"], row["attempt"]),
                row,
                outcome=AttemptOutcome.LEASE_EXPIRED,
                reason=reason,
                budget=budget,
                delay=delay,
            )
            reach("reap.before_commit")
        reach("reap.after_commit")
        metrics.REAPED.inc()
        _end_span(tracing, row, reason)
        logger.warning("%s: attempt %d reaped: %s", row["id"], row["attempt"], reason)
    _notify_all(notify, [job_id for job_id, status in states.items() if status == JobStatus.QUEUED])
    return states


def _notify_all(notify: Notify, job_ids: Sequence[str]) -> None:
    """Stop at the first failure: when the broker hangs each message costs seconds, and the keeper has other duties."""
    for job_id in job_ids:
        if notify(job_id) is False:
            return


def _end_span(tracing: Tracing, row: Mapping[str, Any], reason: str) -> None:
    """The worker that began it cannot, or must not."""
    span = attempt_span(
        tracing,
        AttemptRef(row["id"], row["attempt"]),
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
    """Every sweep once; what one cannot do keeps no other from its work."""
    sweeps: dict[str, Callable[[], int]] = {
        "idempotency records": lambda: sweep.forget_idempotency(connection),
        "plans": lambda: sweep.forget_plans(connection),
        "workers that are gone": lambda: sweep.forget_workers(connection),
        "jobs' block files": lambda: sweep.drop_block_files(connection, storage),
        "expired datasets": lambda: sweep.expire_datasets(connection, storage),
        "expired uploads": lambda: sweep.drop_expired_uploads(storage),
        "half stored files": lambda: sweep.drop_unfinished_puts(storage),
        "uploads without a dataset": lambda: sweep.drop_unnamed_uploads(connection, storage),
        "work directories": lambda: sweep.drop_work_directories(connection, settings.work_directory),
        "directories of pushes": lambda: sweep.drop_push_directories(settings.work_directory),
        "downloads that nobody took up": lambda: hub_copies.drop_stale_downloads(settings.resolved_home),
        "rows that were kept long enough": lambda: removal.retire(connection, settings),
        "deleted jobs": lambda: removal.remove_deleted_jobs(connection, storage),
        "artifacts of deleted jobs": lambda: removal.remove_artifacts_of_deleted(connection, storage),
        "deleted artifacts": lambda: removal.remove_objects(connection, storage),
        "logs": lambda: sweep.drop_logs(settings.resolved_home / "logs"),
        "objects of dead attempts": lambda: sweep.drop_dead_artifacts(connection, storage),
    }
    for what, sweep_once in sweeps.items():
        try:
            count = sweep_once()
        except (OSError, psycopg.errors.QueryCanceled) as error:
            logger.warning("could not remove %s: %s", what, error)
            continue
        if count:
            logger.info("removed %d %s", count, what)


def run_duties(settings: Settings, notify: Notify, stop: threading.Event, tracing: Tracing = OFF) -> None:
    """Do every duty in turn until ``stop``. A database that is away is waited for."""
    with _sweeping(settings, stop):
        while not stop.is_set():
            touch(settings.heartbeat_file)
            try:
                with connect(settings.database_url or "") as connection:
                    _run_duties_connected(connection, settings, notify, stop, tracing)
            except psycopg.Error as error:
                logger.warning("the ledger cannot be reached, trying again: %s", error)
                stop.wait(settings.keeper_interval)


def _run_duties_connected(
    connection: Connection, settings: Settings, notify: Notify, stop: threading.Event, tracing: Tracing
) -> None:
    is_ours, next_explanation = False, 0.0
    while not stop.is_set():
        touch(settings.heartbeat_file)
        is_ours = is_ours or _is_ours(connection, LOCK)
        if is_ours:
            budget, delay = settings.barren_attempts, settings.retry_delay
            reap(connection, notify, grace=settings.grace, budget=budget, delay=delay, tracing=tracing)
            if time.monotonic() >= next_explanation:
                explain_waiting(connection, alive=settings.lease)
                end_waiting(connection)
                next_explanation = time.monotonic() + EXPLAIN_SECONDS
            notify_again(connection, notify, after=settings.ring_again)
        stop.wait(settings.keeper_interval)


@contextmanager
def _sweeping(settings: Settings, stop: threading.Event) -> Iterator[None]:
    """Sweep beside the other duties: a slow store must delay no reaping."""
    thread = threading.Thread(target=_sweep_regularly, args=(settings, stop), name="sweeper", daemon=True)
    thread.start()
    yield
    thread.join(JOIN_SECONDS)


def _sweep_regularly(settings: Settings, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            storage = storage_from_url(settings.resolved_storage_url)
            with connect(settings.database_url or "") as connection:
                _sweep_connected(connection, storage, settings, stop)
        except Exception as error:  # a thread that is gone would sweep nothing any more, and nobody would notice
            logger.warning("the sweep failed, trying again: %s", error, exc_info=not isinstance(error, psycopg.Error))
            stop.wait(settings.keeper_interval)


def _sweep_connected(connection: Connection, storage: Storage, settings: Settings, stop: threading.Event) -> None:
    is_ours, next_sweep = False, time.monotonic()
    while not stop.is_set():
        is_ours = is_ours or _is_ours(connection, SWEEP_LOCK)
        if is_ours and time.monotonic() >= next_sweep:
            sweep_away(connection, storage, settings)
            next_sweep = time.monotonic() + SWEEP_SECONDS
        stop.wait(settings.keeper_interval)


def _is_ours(connection: Connection, lock: int) -> bool:
    answer = connection.execute("SELECT pg_try_advisory_lock(%s) AS locked", (lock,)).fetchone()
    return answer is not None and bool(answer["locked"])


def main() -> None:
    settings = pooler.direct(read_settings(), "the keeper, which holds its lock in it,")
    configure_logging(settings.log_format)
    if settings.redis_url is None or settings.database_url is None:
        raise SystemExit("the keeper needs QE_DATABASE_URL and QE_REDIS_URL (`qe serve` brings its own servers)")
    preflight.check(settings, models=False, secret=True)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    tracing = open_tracing(settings, "keeper")
    metrics.serve_metrics(settings.metrics_port)
    logger.info("keeper at work")
    delivery = threading.Thread(target=deliver, args=(settings, stop), name="webhook delivery", daemon=True)
    delivery.start()
    pushers = [
        threading.Thread(target=push_regularly, args=(settings, stop), name=f"pusher {number}", daemon=True)
        for number in range(settings.pushers)
    ]
    for pusher in pushers:
        pusher.start()
    run_duties(settings, partial(notify_workers, settings), stop, tracing)
    tracing.close()
    delivery.join(settings.webhook_timeout)
    for pusher in pushers:
        pusher.join(JOIN_SECONDS)


if __name__ == "__main__":
    main()
