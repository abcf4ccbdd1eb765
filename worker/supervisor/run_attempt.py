"""An attempt from its claim to its end, in the order in which it happens."""

from __future__ import annotations

import logging
import shutil
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from core.contract.errors import FailureCode
from core.contract.spec import JobSpec
from core.crash_points import reach
from core.ledger.states import JobStatus
from core.logs import log_context
from core.tracing import Span, part
from worker import metrics
from worker.attempt_span import attempt_span
from worker.ledger import attempts as ledger
from worker.ledger import blocks
from worker.ledger.claims import Claim
from worker.machine.context import WorkerContext
from worker.runner import protocol
from worker.supervisor import fetch
from worker.supervisor.attempt import Attempt, directory_of, hold_writer, open_attempt
from worker.supervisor.endings import (
    Ending,
    end,
    ending_of_error,
    ending_of_run,
    try_elsewhere,
)
from worker.supervisor.lease import Lost
from worker.supervisor.preparing import prepare, write_job
from worker.supervisor.publish import publish, summary_of
from worker.supervisor.relay import Relay
from worker.supervisor.running import run

logger = logging.getLogger(__name__)


def run_attempt(context: WorkerContext, claim: Claim) -> JobStatus | None:
    """Carry one claimed job as far as it goes. The job's status afterwards; None when another worker has it.

    1. Read the spec. A worker that does not understand it leaves the job to another (``_refuse``).
    2. Start the span, hold the lease, open the fenced writer (``_traced``, ``open_attempt``).
    3. Fetch the model, the rows and the blocks that are finished (``_fetch``).
    4. Run the confined runner; its relay stores each block before the runner begins the next (``_compute``).
    5. Store the files of the checkpoint (``_publish``).
    6. End the attempt in one fenced transaction (``endings.end``).
    7. Delete the scratch directory, end the span, judge this worker, wake another when the job waits again
       (``_conclude``).
    """
    metrics.CLAIM_WAIT.observe(max(0.0, claim.waited))
    try:
        spec = JobSpec.model_validate(claim.spec)
    except ValidationError as error:
        status = _refuse(context, claim.ref, error)
    else:
        status = _traced(context, claim, spec)
    metrics.ATTEMPTS.labels(metrics.LOST if status is None else status.value).inc()
    return status


def _refuse(context: WorkerContext, ref: ledger.AttemptRef, error: ValidationError) -> JobStatus | None:
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    message = f"this worker does not understand {where}: {first['msg']}; is it older than the API? Upgrade the workers"
    logger.error("%s: %s", ref.job_id, message)
    try:
        with hold_writer(context.settings, ref, seconds_left=context.settings.lease) as (_, writer):
            return end(writer, try_elsewhere(context.settings, FailureCode.INVALID_SPEC, message))
    except Lost:
        metrics.LEASES_LOST.inc()
        return None


def _traced(context: WorkerContext, claim: Claim, spec: JobSpec) -> JobStatus | None:
    ref = claim.ref
    span = attempt_span(
        context.tracing,
        ref,
        tenant=claim.tenant,
        worker=context.worker,
        model=spec.model.id,
        scheme=spec.scheme,
        method=spec.method,
        carrier=claim.trace_context,
    )
    ids = {"job_id": ref.job_id, "attempt": ref.attempt, "worker": context.worker, **span.ids}
    with log_context(**ids), metrics.BUSY.track_inprogress():
        return _attempt(context, claim, spec, span)


def _attempt(context: WorkerContext, claim: Claim, spec: JobSpec, span: Span) -> JobStatus | None:
    ref = claim.ref
    logger.info("%s: attempt %d begins", ref.job_id, ref.attempt)
    try:
        with open_attempt(context, claim, spec, span) as attempt:
            ending = _steps(attempt)
            status = end(attempt.writer, ending)
            reach("end.after_commit")
    except Lost:
        # Counted here and not where the lease is refused, which also happens to a job that has just ended. The keeper
        # ends the span when it takes the job.
        metrics.LEASES_LOST.inc()
        logger.warning("%s: attempt %d has lost its lease", ref.job_id, ref.attempt)
        return None
    finally:
        shutil.rmtree(directory_of(context.settings, ref), ignore_errors=True)
    _conclude(attempt, ending, status)
    return status


def _steps(attempt: Attempt) -> Ending:
    """Fetch, compute and publish; returns how the attempt is to end. Raises Lost only."""
    try:
        attempt.directory.mkdir(parents=True, mode=0o700)
        job_file, relay = _fetch(attempt)
        return _compute(attempt, job_file, relay)
    except Lost:
        raise
    except Exception as error:  # noqa: BLE001 -- every error ends the job with a code
        return ending_of_error(attempt, error)


def _fetch(attempt: Attempt) -> tuple[Path, Relay]:
    writer, job_id = attempt.writer, attempt.ref.job_id
    own = writer.read(blocks.block_files, job_id)
    with part(attempt.span, "fetch"):
        job = prepare(attempt)
        attempt.work.mkdir()
        # Also when own blocks exist: an attempt may have ended before it had taken over all.
        names = {file["name"] for file in own}
        others = [file for file in writer.read(blocks.files_to_take_over, job_id) if file["name"] not in names]
        fetch.finished_blocks([*own, *others], attempt.storage, attempt.work)
        attempt.lease.check()
    relay = Relay(writer, attempt.storage, job_id=job_id, work=attempt.work, stored_files=own, span=attempt.span)
    return write_job(attempt.directory, job), relay


def _compute(attempt: Attempt, job_file: Path, relay: Relay) -> Ending:
    result = run(attempt, relay, job_file)
    attempt.lease.check()
    if isinstance(result.last, protocol.FinishedLine):
        if relay.phase != "publishing":
            attempt.writer.write(ledger.set_phase, "publishing")
        return _publish(attempt, result.last)
    return ending_of_run(attempt.settings, result)


def _publish(attempt: Attempt, line: protocol.FinishedLine) -> Ending:
    output, artifacts = Path(line.output), []
    with part(attempt.span, "publish", {"qe.bytes": sum(file.bytes for file in line.files)}):
        for artifact in publish(attempt.storage, attempt.ref, output, line.files):
            attempt.lease.check()
            artifacts.append(artifact)
    return Ending(partial(ledger.succeed, summary=summary_of(output) | {"exports": line.exports}, artifacts=artifacts))


def _conclude(attempt: Attempt, ending: Ending, status: JobStatus) -> None:
    context, ref, span = attempt.context, attempt.ref, attempt.span
    span.note({"qe.job.status": status.value})
    if ending.error is not None:
        code, message = ending.error
        span.note({"error.type": code})
        span.fail(message)
    span.end()
    if status == JobStatus.SUCCEEDED:
        context.health.record_success()
    elif reason := ending.fault_of_worker:
        tenant = attempt.claim.tenant
        context.health.record_failure(context.settings, context.device, job_id=ref.job_id, tenant=tenant, reason=reason)
    logger.info("%s: attempt %d ended, the job is %s", ref.job_id, ref.attempt, status)
    if status == JobStatus.QUEUED:
        context.notify(ref.job_id)
