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
from worker.machine.context import Hands
from worker.runner import protocol
from worker.supervisor import fetch
from worker.supervisor.fenced_writer import RETRY_SECONDS, Pen
from worker.supervisor.lease import CancelRequested, Lease, Lost, TimedOut, kept, monotonic
from worker.supervisor.preparing import prepare, write_job
from worker.supervisor.publish import Incomplete, publish, summary_of
from worker.supervisor.relay import Relay
from worker.supervisor.retrying_storage import NO_SPACE, PatientStorage, StorageFailed
from worker.supervisor.running import out_of_memory, run

logger = logging.getLogger(__name__)

PASSED = "+"
MOST_PASSES = 5
PASS_SECONDS = 1.0
OWN_FAULTS = (FailureCode.INTERNAL, FailureCode.NO_PROGRESS, FailureCode.OUT_OF_DISK)
"""Codes of attempts that another worker might have carried further."""
Ending = Callable[[Connection, ledger.Hold], JobStatus]
"""One fenced transaction that ends the attempt and says what the job is then."""


def work(hands: Hands, *, most: int | None = None) -> int:
    """Take jobs, ``most`` of them, without a bell in between, until none waits or the worker drains.

    Returns the number of attempts.

    Raises psycopg.OperationalError when the ledger cannot be reached for a claim.
    """
    attempts = 0
    while attempts != most and not hands.draining():
        if not _may_claim(hands):
            break
        claim = _claim(hands)
        if claim is None:
            break
        attempts += 1
        reach("claim.after_commit")
        attempt(hands, claim)
    return attempts


def pass_on(hands: Hands, bell: str) -> None:
    """We heard the bell of a job that is not for us: too new, failed here, or we take none. Ring again, a few times,
    for others; not at once, so that they hear it and not we."""
    job_id, _, passed = bell.partition(PASSED)
    number = int(passed) + 1 if passed.isdecimal() else 1
    if number > MOST_PASSES or hands.draining():
        return
    with connect(hands.settings.database_url or "") as connection:
        waits = claims.waits(connection, job_id)
    if waits:
        time.sleep(PASS_SECONDS)
        hands.ring(f"{job_id}{PASSED}{number}")


def _may_claim(hands: Hands) -> bool:
    """Whether this worker is well enough; the ledger is told when that changes. Raises psycopg.OperationalError."""
    health = hands.health
    reason = health.reason(hands.settings, hands.device)
    if reason is None and health.suspicious(hands.settings):
        with connect(hands.settings.database_url or "") as connection:
            further = workers.went_on_elsewhere(connection, worker=hands.worker, jobs=list(health.failures))
        if further >= hands.settings.sick_after:
            health.stop(f"{further} jobs that failed here, one after the other, went on elsewhere")
            reason = health.stopped
    resting = health.resting()
    _tell(hands, ("stopped", reason) if reason else ("resting", resting) if resting else ("ready", None))
    return reason is None


def _tell(hands: Hands, state: tuple[str, str | None]) -> None:
    if hands.health.told == state:
        return
    metrics.STOPPED.set(state[0] == "stopped")
    if state[1] is not None:
        logger.error("this worker is %s: %s", *state)
    with connect(hands.settings.database_url or "") as connection:
        workers.set_state(connection, worker=hands.worker, state=state[0], reason=state[1])
    hands.health.told = state


def _claim(hands: Hands) -> claims.Claim | None:
    """Raises psycopg.OperationalError."""
    try:
        with connect(hands.settings.database_url or "") as connection:
            return claims.claim(
                connection,
                worker=hands.worker,
                lease=hands.settings.lease,
                max_running=hands.settings.max_running_jobs,
                passed=hands.health.passed_over(),
                place=device.place(hands.device, hands.settings, sharing=hands.sharing),
            )
    except claims.Unconfirmed as unsure:
        # The connection broke at COMMIT. A job that is ours by now and that we do not know of would wait for the end of
        # its lease, and count as an attempt without progress.
        logger.warning("%s: whether we have claimed it is not known, asking again", unsure.claim.hold.job_id)
        return unsure.claim if _confirmed(hands, unsure.claim.hold) else _claim(hands)


def _confirmed(hands: Hands, hold: ledger.Hold) -> bool:
    """Ask until the ledger answers, as long as the lease may be good. Raises psycopg.OperationalError."""
    deadline = monotonic() + hands.settings.self_kill
    while True:
        try:
            with connect(hands.settings.database_url or "") as connection:
                return claims.confirm(connection, hold, worker=hands.worker, lease=hands.settings.lease)
        except psycopg.OperationalError:
            if hands.draining() or monotonic() > deadline:
                raise
            time.sleep(RETRY_SECONDS)


def attempt(hands: Hands, claim: claims.Claim) -> JobStatus | None:
    """Carry one claimed job as far as it goes. The job's status afterwards; None when it was lost to another worker."""
    metrics.CLAIM_WAIT.observe(max(0.0, claim.waited))
    try:
        spec = JobSpec.model_validate(claim.spec)
    except ValidationError as error:
        status = _refuse(hands, claim.hold, error)
    else:
        status = _traced(hands, claim, spec)
    metrics.ATTEMPTS.labels(metrics.LOST if status is None else status.value).inc()
    return status


def _traced(hands: Hands, claim: claims.Claim, spec: JobSpec) -> JobStatus | None:
    hold = claim.hold
    span = attempt_span(
        hands.tracing,
        hold,
        tenant=claim.tenant,
        worker=hands.worker,
        model=spec.model.id,
        scheme=spec.scheme,
        method=spec.method,
        carrier=claim.trace_context,
    )
    ids = {"job_id": hold.job_id, "attempt": hold.attempt, "worker": hands.worker, **span.ids}
    with said_of(**ids), metrics.BUSY.track_inprogress():
        return _attempt(hands, claim, spec, span)


def _refuse(hands: Hands, hold: ledger.Hold, error: ValidationError) -> JobStatus | None:
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    message = f"this worker does not understand {where}: {first['msg']}; is it older than the API? Upgrade the workers"
    logger.error("%s: %s", hold.job_id, message)
    try:
        with (
            kept(hands.settings, hold, seconds_left=hands.settings.lease) as lease,
            Pen(hands.settings.database_url or "", hold, lease) as pen,
        ):
            return _end(pen, _try_elsewhere(hands.settings, FailureCode.INVALID_SPEC, message))
    except Lost:
        metrics.LEASES_LOST.inc()
        return None


def _attempt(hands: Hands, claim: claims.Claim, spec: JobSpec, span: Span) -> JobStatus | None:
    hold, settings = claim.hold, hands.settings
    directory = settings.work_directory / hold.job_id / f"a{hold.attempt}"
    logger.info("%s: attempt %d begins", hold.job_id, hold.attempt)
    try:
        with (
            kept(settings, hold, seconds_left=spec.timeout_s - claim.elapsed) as lease,
            Pen(settings.database_url or "", hold, lease) as pen,
        ):
            ending = _outcome(hands, claim, spec, lease, pen, directory, span)
            status = _end(pen, ending)
            reach("end.after_commit")
    except Lost:
        metrics.LEASES_LOST.inc()  # not where the lease is refused: that happens to a job that has just ended, too
        # Nor is its span: the keeper ends it when it takes the job from us.
        logger.warning("%s: attempt %d is not ours any more", hold.job_id, hold.attempt)
        return None
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    _end_span(span, ending, status)
    _judge(hands, claim, ending, status)
    logger.info("%s: attempt %d ended, the job is %s", hold.job_id, hold.attempt, status)
    if status == JobStatus.QUEUED:
        hands.ring(hold.job_id)
    return status


def _end(pen: Pen, ending: Ending) -> JobStatus:
    try:
        return pen.write(ending)
    except CancelRequested:  # it came between the last look and the end
        return pen.write(ledger.cancel)
    except psycopg.Error as error:  # not one that passes, and the next attempt would end in it too
        logger.exception("the end of the job was refused")
        message = f"the ledger does not take the job's end: {error}"
        return pen.write(ledger.fail, code=FailureCode.INTERNAL, message=message)


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


def _judge(hands: Hands, claim: claims.Claim, ending: Ending, status: JobStatus) -> None:
    """Remember what the attempt says of this worker."""
    if status == JobStatus.SUCCEEDED:
        hands.health.went_well()
    elif (
        isinstance(ending, partial) and ending.func is ledger.give_up_attempt and ending.keywords["code"] in OWN_FAULTS
    ):
        reason = ending.keywords["reason"]
        hands.health.failed(hands.settings, hands.device, job_id=claim.hold.job_id, tenant=claim.tenant, reason=reason)


def _end_span(span: Span, ending: Ending, status: JobStatus) -> None:
    span.note({"qe.job.status": status.value})
    if isinstance(ending, partial) and ending.func in (ledger.fail, ledger.give_up_attempt):
        span.note({"error.type": ending.keywords.get("code")})
        span.fail(ending.keywords.get("message") or ending.keywords["reason"])
    span.end()


def _outcome(
    hands: Hands, claim: claims.Claim, spec: JobSpec, lease: Lease, pen: Pen, directory: Path, span: Span
) -> Ending:
    """Run the attempt, and say how it is to end. Raises Lost only."""
    try:
        directory.mkdir(parents=True, mode=0o700)
        return _compute(hands, claim, spec, lease, pen, directory, span)
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
            return _try_elsewhere(hands.settings, FailureCode.OUT_OF_DISK, f"the worker has no space left: {error}")
        logger.exception("%s: attempt %d failed in the supervisor", claim.hold.job_id, claim.hold.attempt)
        message = f"{type(error).__name__} in the worker: {error}"
        return _try_elsewhere(hands.settings, FailureCode.INTERNAL, message)


def _compute(
    hands: Hands, claim: claims.Claim, spec: JobSpec, lease: Lease, pen: Pen, directory: Path, span: Span
) -> Ending:
    hold = claim.hold
    log = hands.settings.resolved_home / "logs" / f"runner-{hold.job_id}-a{hold.attempt}.log"
    storage = PatientStorage(hands.storage, partial(_wait, lease))
    known = pen.read(blocks.block_files, hold.job_id)
    with part(span, "fetch"):
        job = prepare(hands, claim, spec, lease, pen, storage, directory, log)
        (directory / "work").mkdir()
        # Also when blocks are known: an attempt may have ended before it had taken over all.
        own = {file["name"] for file in known}
        others = [file for file in pen.read(blocks.files_to_take_over, hold.job_id) if file["name"] not in own]
        fetch.finished_blocks([*known, *others], storage, directory / "work")
        lease.check()

    relay = Relay(pen, storage, job_id=hold.job_id, work=directory / "work", known=known, span=span)
    ended = run(hands, lease, relay, write_job(directory, job), log)
    lease.check()
    match ended.last:
        case protocol.FinishedLine(output=output, files=files):
            if relay.phase != "publishing":
                pen.write(ledger.set_phase, "publishing")
            artifacts = []
            with part(span, "publish", {"qe.bytes": sum(file.bytes for file in files)}):
                for artifact in publish(storage, hold, Path(output), files):
                    lease.check()
                    artifacts.append(artifact)
            return partial(ledger.succeed, summary=summary_of(Path(output)), artifacts=artifacts)
        case protocol.StoppedLine():
            return partial(ledger.hand_back, reason="the worker was stopped")
        case protocol.ErrorLine(code=code, message=message) if _failure_code(code) in OWN_FAULTS:
            return _try_elsewhere(hands.settings, _failure_code(code), message)
        case protocol.ErrorLine(code=code, message=message):
            return partial(ledger.fail, code=_failure_code(code), message=message)
        case None if ended.given_up:
            return partial(ledger.hand_back, reason=ended.how)
        case None if ended.out_of_memory:
            # Without a new block the same would happen again; with one, the next attempt begins after it.
            code, reason, budget = FailureCode.OUT_OF_MEMORY, out_of_memory(), 1
            return _try_elsewhere(hands.settings, code, reason, outcome=AttemptOutcome.RUNNER_DIED, budget=budget)
        case None:
            reason = f"the computing process {ended.how}"
            return _try_elsewhere(hands.settings, FailureCode.NO_PROGRESS, reason, outcome=AttemptOutcome.RUNNER_DIED)


def _wait(lease: Lease, seconds: float) -> None:
    lease.wait(seconds)
    lease.check()


def _failure_code(text: str) -> FailureCode:
    try:
        return FailureCode(text)
    except ValueError:
        return FailureCode.INTERNAL
