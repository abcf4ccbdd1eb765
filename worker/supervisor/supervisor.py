"""One worker's life with jobs: claim, bring the files, run, relay, keep the lease, end it, and look for the next.

The supervisor is an ordinary process without torch. It computes nothing: the runner does, a fresh process per attempt
without database, broker or storage. Whatever happens to either, the ledger says what is true.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psycopg
from pydantic import ValidationError

from core.contract.errors import FailureCode
from core.contract.spec import JobSpec
from core.crash_points import reach
from core.ledger.states import AttemptOutcome, JobStatus
from core.logs import said_of
from core.settings import Settings
from core.tracing import Span, part
from worker import metrics
from worker.attempt_span import attempt_span
from worker.ledger import attempts as ledger
from worker.ledger import blocks, claims, workers
from worker.ledger.connection import Connection, connect
from worker.machine import device
from worker.machine.context import WorkerContext
from worker.runner import protocol
from worker.supervisor import fetch
from worker.supervisor.fenced_writer import RETRY_SECONDS, FencedWriter
from worker.supervisor.lease import CancelRequested, Lease, Lost, TimedOut, hold_lease, monotonic
from worker.supervisor.preparing import prepare, write_job
from worker.supervisor.publish import Incomplete, publish, summary_of
from worker.supervisor.relay import Relay
from worker.supervisor.retrying_storage import NO_SPACE, RetryingStorage, StorageFailed
from worker.supervisor.running import out_of_memory, run

logger = logging.getLogger(__name__)

PASSED = "+"
MOST_PASSES = 5
PASS_SECONDS = 1.0
OWN_FAULTS = (FailureCode.INTERNAL, FailureCode.NO_PROGRESS, FailureCode.OUT_OF_DISK)
"""Codes of attempts that another worker might have carried further."""
Ending = Callable[[Connection, ledger.AttemptRef], JobStatus]
"""One fenced transaction that ends the attempt and says what the job is then."""


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
        attempt(context, claim)
    return attempts


def pass_on(context: WorkerContext, message: str) -> None:
    """Repeat a wake-up for other workers, up to ``MOST_PASSES`` times: this one cannot take its job (too new, failed
    here, or the worker is stopped). Waits first, so that another worker gets the message."""
    job_id, _, passed = message.partition(PASSED)
    number = int(passed) + 1 if passed.isdecimal() else 1
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
            further = workers.went_on_elsewhere(connection, worker=context.worker, jobs=list(health.failures))
        if further >= context.settings.sick_after:
            health.stop(f"{further} jobs that failed here, one after the other, went on elsewhere")
            reason = health.stopped
    resting = health.resting()
    _tell(context, ("stopped", reason) if reason else ("resting", resting) if resting else ("ready", None))
    return reason is None


def _tell(context: WorkerContext, state: tuple[str, str | None]) -> None:
    if context.health.told == state:
        return
    metrics.STOPPED.set(state[0] == "stopped")
    if state[1] is not None:
        logger.error("this worker is %s: %s", *state)
    with connect(context.settings.database_url or "") as connection:
        workers.set_state(connection, worker=context.worker, state=state[0], reason=state[1])
    context.health.told = state


def _claim(context: WorkerContext) -> claims.Claim | None:
    """Raises psycopg.OperationalError."""
    try:
        with connect(context.settings.database_url or "") as connection:
            return claims.claim(
                connection,
                worker=context.worker,
                lease=context.settings.lease,
                max_running=context.settings.max_running_jobs,
                passed=context.health.passed_over(),
                place=device.place(context.device, context.settings, sharing=context.sharing),
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


def attempt(context: WorkerContext, claim: claims.Claim) -> JobStatus | None:
    """Carry one claimed job as far as it goes. The job's status afterwards; None when it was lost to another worker."""
    metrics.CLAIM_WAIT.observe(max(0.0, claim.waited))
    try:
        spec = JobSpec.model_validate(claim.spec)
    except ValidationError as error:
        status = _refuse(context, claim.ref, error)
    else:
        status = _traced(context, claim, spec)
    metrics.ATTEMPTS.labels(metrics.LOST if status is None else status.value).inc()
    return status


def _traced(context: WorkerContext, claim: claims.Claim, spec: JobSpec) -> JobStatus | None:
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
    with said_of(**ids), metrics.BUSY.track_inprogress():
        return _attempt(context, claim, spec, span)


def _refuse(context: WorkerContext, ref: ledger.AttemptRef, error: ValidationError) -> JobStatus | None:
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    message = f"this worker does not understand {where}: {first['msg']}; is it older than the API? Upgrade the workers"
    logger.error("%s: %s", ref.job_id, message)
    try:
        with (
            hold_lease(context.settings, ref, seconds_left=context.settings.lease) as lease,
            FencedWriter(context.settings.database_url or "", ref, lease) as writer,
        ):
            return _end(writer, _try_elsewhere(context.settings, FailureCode.INVALID_SPEC, message))
    except Lost:
        metrics.LEASES_LOST.inc()
        return None


def _attempt(context: WorkerContext, claim: claims.Claim, spec: JobSpec, span: Span) -> JobStatus | None:
    ref, settings = claim.ref, context.settings
    directory = settings.work_directory / ref.job_id / f"a{ref.attempt}"
    logger.info("%s: attempt %d begins", ref.job_id, ref.attempt)
    try:
        with (
            hold_lease(settings, ref, seconds_left=spec.timeout_s - claim.elapsed) as lease,
            FencedWriter(settings.database_url or "", ref, lease) as writer,
        ):
            ending = _outcome(context, claim, spec, lease, writer, directory, span)
            status = _end(writer, ending)
            reach("end.after_commit")
    except Lost:
        metrics.LEASES_LOST.inc()  # not where the lease is refused: that happens to a job that has just ended, too
        # Nor is its span: the keeper ends it when it takes the job from us.
        logger.warning("%s: attempt %d is not ours any more", ref.job_id, ref.attempt)
        return None
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    _end_span(span, ending, status)
    _judge(context, claim, ending, status)
    logger.info("%s: attempt %d ended, the job is %s", ref.job_id, ref.attempt, status)
    if status == JobStatus.QUEUED:
        context.notify(ref.job_id)
    return status


def _end(writer: FencedWriter, ending: Ending) -> JobStatus:
    try:
        return writer.write(ending)
    except CancelRequested:  # it came between the last look and the end
        return writer.write(ledger.cancel)
    except psycopg.Error as error:  # not one that passes, and the next attempt would end in it too
        logger.exception("the end of the job was refused")
        message = f"the ledger does not take the job's end: {error}"
        return writer.write(ledger.fail, code=FailureCode.INTERNAL, message=message)


def _try_elsewhere(
    settings: Settings,
    code: FailureCode,
    reason: str,
    *,
    outcome: AttemptOutcome = AttemptOutcome.FAILED,
    budget: int | None = None,
) -> partial[JobStatus]:
    """What may be this worker's fault fails the job only when further attempts, on others, bring nothing either."""
    return partial(
        ledger.give_up_attempt,
        outcome=outcome,
        reason=reason,
        budget=settings.barren_attempts if budget is None else budget,
        code=code,
        delay=settings.retry_delay,
    )


def _judge(context: WorkerContext, claim: claims.Claim, ending: Ending, status: JobStatus) -> None:
    """Remember what the attempt says of this worker."""
    if status == JobStatus.SUCCEEDED:
        context.health.went_well()
    elif (
        isinstance(ending, partial) and ending.func is ledger.give_up_attempt and ending.keywords["code"] in OWN_FAULTS
    ):
        reason = ending.keywords["reason"]
        context.health.failed(
            context.settings, context.device, job_id=claim.ref.job_id, tenant=claim.tenant, reason=reason
        )


def _end_span(span: Span, ending: Ending, status: JobStatus) -> None:
    span.note({"qe.job.status": status.value})
    if isinstance(ending, partial) and ending.func in (ledger.fail, ledger.give_up_attempt):
        span.note({"error.type": ending.keywords.get("code")})
        span.fail(ending.keywords.get("message") or ending.keywords["reason"])
    span.end()


def _outcome(
    context: WorkerContext,
    claim: claims.Claim,
    spec: JobSpec,
    lease: Lease,
    writer: FencedWriter,
    directory: Path,
    span: Span,
) -> Ending:
    """Run the attempt, and say how it is to end. Raises Lost only."""
    try:
        directory.mkdir(parents=True, mode=0o700)
        return _compute(context, claim, spec, lease, writer, directory, span)
    except Lost:
        raise
    except CancelRequested:
        return ledger.cancel
    except TimedOut:
        message = f"the job took longer than its timeout_s of {spec.timeout_s} seconds"
        return partial(ledger.fail, code=FailureCode.TIMEOUT, message=message)
    except fetch.FetchFailed as failure:
        return partial(ledger.fail, code=failure.code, message=str(failure))
    except StorageFailed as failure:
        return partial(ledger.fail, code=failure.code, message=str(failure))
    except fetch.Draining as reason:
        return partial(ledger.hand_back, reason=str(reason))
    except Incomplete as failure:
        return partial(ledger.fail, code=FailureCode.INVALID_CHECKPOINT, message=str(failure))
    except Exception as error:  # whatever it is, the job must end with a code and the worker live on
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            return _try_elsewhere(context.settings, FailureCode.OUT_OF_DISK, f"the worker has no space left: {error}")
        logger.exception("%s: attempt %d failed in the supervisor", claim.ref.job_id, claim.ref.attempt)
        message = f"{type(error).__name__} in the worker: {error}"
        return _try_elsewhere(context.settings, FailureCode.INTERNAL, message)


def _compute(
    context: WorkerContext,
    claim: claims.Claim,
    spec: JobSpec,
    lease: Lease,
    writer: FencedWriter,
    directory: Path,
    span: Span,
) -> Ending:
    ref = claim.ref
    log = context.settings.resolved_home / "logs" / f"runner-{ref.job_id}-a{ref.attempt}.log"
    storage = RetryingStorage(context.storage, partial(_wait, lease))
    known = writer.read(blocks.block_files, ref.job_id)
    with part(span, "fetch"):
        job = prepare(context, claim, spec, lease, writer, storage, directory, log)
        (directory / "work").mkdir()
        # Also when blocks are known: an attempt may have ended before it had taken over all.
        own = {file["name"] for file in known}
        others = [file for file in writer.read(blocks.files_to_take_over, ref.job_id) if file["name"] not in own]
        fetch.finished_blocks([*known, *others], storage, directory / "work")
        lease.check()

    relay = Relay(writer, storage, job_id=ref.job_id, work=directory / "work", known=known, span=span)
    ended = run(context, lease, relay, write_job(directory, job), log)
    lease.check()
    match ended.last:
        case protocol.FinishedLine(output=output, files=files):
            if relay.phase != "publishing":
                writer.write(ledger.set_phase, "publishing")
            artifacts = []
            with part(span, "publish", {"qe.bytes": sum(file.bytes for file in files)}):
                for artifact in publish(storage, ref, Path(output), files):
                    lease.check()
                    artifacts.append(artifact)
            return partial(ledger.succeed, summary=summary_of(Path(output)), artifacts=artifacts)
        case protocol.StoppedLine():
            return partial(ledger.hand_back, reason="the worker was stopped")
        case protocol.ErrorLine(code=code, message=message) if _failure_code(code) in OWN_FAULTS:
            return _try_elsewhere(context.settings, _failure_code(code), message)
        case protocol.ErrorLine(code=code, message=message):
            return partial(ledger.fail, code=_failure_code(code), message=message)
        case None if ended.given_up:
            return partial(ledger.hand_back, reason=ended.how)
        case None if ended.out_of_memory:
            # Without a new block the same would happen again; with one, the next attempt begins after it.
            code, reason, budget = FailureCode.OUT_OF_MEMORY, out_of_memory(), 1
            return _try_elsewhere(context.settings, code, reason, outcome=AttemptOutcome.RUNNER_DIED, budget=budget)
        case None:
            reason = f"the computing process {ended.how}"
            return _try_elsewhere(context.settings, FailureCode.NO_PROGRESS, reason, outcome=AttemptOutcome.RUNNER_DIED)


def _wait(lease: Lease, seconds: float) -> None:
    lease.wait(seconds)
    lease.check()


def _failure_code(text: str) -> FailureCode:
    try:
        return FailureCode(text)
    except ValueError:
        return FailureCode.INTERNAL
