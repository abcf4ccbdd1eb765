"""One worker's life with jobs: claim, bring the files, run, relay, keep the lease, end it, and look for the next.

The supervisor is an ordinary process without torch. It computes nothing: the runner does, a fresh process per attempt
without database, broker or storage. Whatever happens to either, the ledger says what is true.
"""

from __future__ import annotations

import logging
import time

import psycopg

from core.crash_points import reach
from worker import metrics
from worker.ledger import attempts as ledger
from worker.ledger import claims, workers
from worker.ledger.connection import connect
from worker.machine import device
from worker.machine.context import WorkerContext
from worker.supervisor.fenced_writer import RETRY_SECONDS
from worker.supervisor.lease import monotonic
from worker.supervisor.run_attempt import run_attempt

logger = logging.getLogger(__name__)

PASSED = "+"
MOST_PASSES = 5
PASS_SECONDS = 1.0


def work(context: WorkerContext, *, most: int | None = None) -> int:
    """Claim and run jobs, at most ``most``, until none waits or the worker drains.

    Returns the number of attempts.

    Raises psycopg.OperationalError when the ledger cannot be reached for a claim.
    """
    attempts = 0
    while attempts != most and not context.draining():
        if not _may_claim(context):
            break
        claim = _claim(context)
        if claim is None:
            break
        attempts += 1
        reach("claim.after_commit")
        run_attempt(context, claim)
    return attempts


def pass_on(context: WorkerContext, message: str) -> None:
    """Repeat a wake-up for other workers, up to ``MOST_PASSES`` times: this one cannot take its job (too new, failed
    here, or the worker is stopped). Waits first, so that another worker gets the message."""
    job_id, _, passes = message.partition(PASSED)
    number = int(passes) + 1 if passes.isdecimal() else 1
    if number > MOST_PASSES or context.draining():
        return
    with connect(context.settings.database_url or "") as connection:
        waits = claims.waits(connection, job_id)
    if waits:
        time.sleep(PASS_SECONDS)
        context.notify(f"{job_id}{PASSED}{number}")


def _may_claim(context: WorkerContext) -> bool:
    """Whether this worker is well enough; the ledger is told when that changes. Raises psycopg.OperationalError."""
    health = context.health
    reason = health.reason(context.settings, context.device)
    if reason is None and health.suspicious(context.settings):
        with connect(context.settings.database_url or "") as connection:
            further = workers.count_recovered_elsewhere(connection, worker=context.worker, jobs=list(health.failures))
        if further >= context.settings.sick_after:
            health.stop(f"{further} jobs that failed here, one after the other, went on elsewhere")
            reason = health.stopped
    pause = health.resting()
    _tell(context, ("stopped", reason) if reason else ("resting", pause) if pause else ("ready", None))
    return reason is None


def _tell(context: WorkerContext, state: tuple[str, str | None]) -> None:
    if context.health.reported == state:
        return
    metrics.STOPPED.set(state[0] == "stopped")
    if state[1] is not None:
        logger.error("this worker is %s: %s", *state)
    with connect(context.settings.database_url or "") as connection:
        workers.set_state(connection, worker=context.worker, state=state[0], reason=state[1])
    context.health.reported = state


def _claim(context: WorkerContext) -> claims.Claim | None:
    """Raises psycopg.OperationalError."""
    try:
        with connect(context.settings.database_url or "") as connection:
            return claims.claim(
                connection,
                worker=context.worker,
                lease=context.settings.lease,
                max_running=context.settings.max_running_jobs,
                skip=context.health.passed_over(),
                resources=device.resources(context.device, context.settings, sharing=context.sharing),
            )
    except claims.Unconfirmed as unsure:
        # The connection broke at COMMIT. A job that is ours by now and that we do not know of would wait for the end of
        # its lease, and count as an attempt without progress.
        logger.warning("%s: whether we have claimed it is not known, asking again", unsure.claim.ref.job_id)
        return unsure.claim if _confirmed(context, unsure.claim.ref) else _claim(context)


def _confirmed(context: WorkerContext, ref: ledger.AttemptRef) -> bool:
    """Ask until the ledger answers, as long as the lease may be good. Raises psycopg.OperationalError."""
    deadline = monotonic() + context.settings.self_kill
    while True:
        try:
            with connect(context.settings.database_url or "") as connection:
                return claims.confirm(connection, ref, worker=context.worker, lease=context.settings.lease)
        except psycopg.OperationalError:
            if context.draining() or monotonic() > deadline:
                raise
            time.sleep(RETRY_SECONDS)
