"""One worker's life with jobs: claim, bring the files, run, relay, keep the lease, end it, and look for the next.

The supervisor is an ordinary process without torch. It computes nothing: the runner does, a fresh process per attempt
without database, broker or storage. Whatever happens to either, the ledger says what is true.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from pydantic import BaseModel

from app.contract.crash_points import reach
from app.contract.errors import FailureCode
from app.contract.spec import JobSpec
from app.contract.states import AttemptOutcome, JobStatus
from app.logs import said_of
from app.settings import Settings
from app.storage import Storage
from app.tracing import OFF, Span, Tracing, part
from worker import blocks, claims, fetch, ledger, memory, metrics, process, protocol
from worker.fitness import unfit
from worker.lease import CancelRequested, Lease, Lost, TimedOut, kept, monotonic
from worker.patient_storage import NO_SPACE, PatientStorage, StorageFailed
from worker.pen import RETRY_SECONDS, Pen
from worker.publish import Incomplete, publish, summary_of
from worker.relay import Relay
from worker.spans import attempt_span

logger = logging.getLogger(__name__)

RUNNER = (sys.executable, "-m", "worker.runner")

Ending = Callable[[ledger.Connection, ledger.Hold], JobStatus]
"""One fenced transaction that ends the attempt and says what the job is then."""


@dataclass(frozen=True)
class Hands:
    """What a supervisor works with."""

    settings: Settings
    storage: Storage
    worker: str
    """Who we are, in the ledger."""
    draining: Callable[[], bool]
    """True as soon as this worker is to stop: the block in hand is finished, the job handed back."""
    ring: Callable[[str], None]
    """Tells other workers that a job waits; never raises."""
    runner: tuple[str, ...] = RUNNER
    """The command that computes; the path of the job file is appended."""
    oom_kills: Callable[[], int] = memory.oom_kills
    """The kernel's count of kills for want of memory."""
    tracing: Tracing = OFF


@dataclass(frozen=True)
class Run:
    """How a runner ended."""

    last: protocol.LastWord | None
    """Its last word; None when it died without one."""
    status: int
    out_of_memory: bool
    """The kernel killed it for want of memory."""


def work(hands: Hands) -> int:
    """Take jobs, without a bell in between, until none waits or the worker drains; returns the number of attempts.

    Raises psycopg.OperationalError when the ledger cannot be reached for a claim.
    """
    attempts = 0
    while not hands.draining():
        if reason := unfit(hands.settings):
            logger.error("this worker takes no job: %s", reason)
            break
        claim = _claim(hands)
        if claim is None:
            break
        attempts += 1
        reach("claim.after_commit")
        attempt(hands, claim)
    return attempts


def _claim(hands: Hands) -> claims.Claim | None:
    """Raises psycopg.OperationalError."""
    try:
        with ledger.connect(hands.settings.database_url or "") as connection:
            return claims.claim(
                connection,
                worker=hands.worker,
                lease=hands.settings.lease,
                max_running=hands.settings.max_running_jobs,
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
            with ledger.connect(hands.settings.database_url or "") as connection:
                return claims.confirm(connection, hold, worker=hands.worker, lease=hands.settings.lease)
        except psycopg.OperationalError:
            if hands.draining() or monotonic() > deadline:
                raise
            time.sleep(RETRY_SECONDS)


def attempt(hands: Hands, claim: claims.Claim) -> JobStatus | None:
    """Carry one claimed job as far as it goes. The job's status afterwards; None when it was lost to another worker."""
    hold = claim.hold
    metrics.CLAIM_WAIT.observe(max(0.0, claim.waited))
    spec = JobSpec.model_validate(claim.spec)
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
        status = _attempt(hands, claim, spec, span)
    metrics.ATTEMPTS.labels("lost" if status is None else status.value).inc()
    return status


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
        # Nor is its span: the keeper ends it when it takes the job from us.
        logger.warning("%s: attempt %d is not ours any more", hold.job_id, hold.attempt)
        return None
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    _end_span(span, ending, status)
    logger.info("%s: attempt %d ended, the job is %s", hold.job_id, hold.attempt, status)
    if status == JobStatus.QUEUED:
        hands.ring(hold.job_id)
    return status


def _end(pen: Pen, ending: Ending) -> JobStatus:
    try:
        return pen.write(ending)
    except CancelRequested:  # it came between the last look and the end
        return pen.write(ledger.cancel)


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
            return partial(ledger.fail, code=FailureCode.OUT_OF_DISK, message=f"the worker has no space left: {error}")
        logger.exception("%s: attempt %d failed in the supervisor", claim.hold.job_id, claim.hold.attempt)
        message = f"{type(error).__name__} in the worker: {error}"
        return partial(ledger.fail, code=FailureCode.INTERNAL, message=message)


def _compute(
    hands: Hands, claim: claims.Claim, spec: JobSpec, lease: Lease, pen: Pen, directory: Path, span: Span
) -> Ending:
    hold = claim.hold
    log = hands.settings.resolved_home / "logs" / f"runner-{hold.job_id}-a{hold.attempt}.log"
    storage = PatientStorage(hands.storage, partial(_wait, lease))
    known = pen.read(blocks.block_files, hold.job_id)
    with part(span, "fetch"):
        job = _prepare(hands, claim, spec, lease, pen, storage, directory, log)
        (directory / "work").mkdir()
        fetch.finished_blocks(known or pen.read(blocks.files_to_take_over, hold.job_id), storage, directory / "work")
        lease.check()

    relay = Relay(pen, storage, job_id=hold.job_id, work=directory / "work", known=known, span=span)
    run = _run(hands, lease, relay, _write_job(directory, job), log)
    lease.check()
    match run.last:
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
        case protocol.ErrorLine(code=code, message=message):
            return partial(ledger.fail, code=_failure_code(code), message=message)
        case None if run.out_of_memory:
            return partial(
                ledger.give_up_attempt,
                outcome=AttemptOutcome.RUNNER_DIED,
                reason=_out_of_memory(),
                # Without a new block the same would happen again; with one, the next attempt begins after it.
                budget=1,
                code=FailureCode.OUT_OF_MEMORY,
            )
        case None:
            return partial(
                ledger.give_up_attempt,
                outcome=AttemptOutcome.RUNNER_DIED,
                reason=f"the computing process {process.describe_end(run.status)}",
                budget=hands.settings.barren_attempts,
            )


def _wait(lease: Lease, seconds: float) -> None:
    lease.wait(seconds)
    lease.check()


def _out_of_memory() -> str:
    limit = memory.limit()
    bound = "" if limit is None else f" beside the worker's limit of {limit / 2**30:.1f} GiB"
    return (
        f"the kernel killed the computing process for want of memory{bound}: give the worker more, run fewer workers on"
        " the machine, or ask for fewer calibration samples (options.samples)"
    )


def _run(hands: Hands, lease: Lease, relay: Relay, job_file: Path, log: Path) -> Run:
    home = job_file.parent / "home"
    (home / "tmp").mkdir(parents=True)
    kills = hands.oom_kills()
    reach("spawn.before")
    child = process.start(
        [*hands.runner, str(job_file)],
        # Temporary files too: what a killed runner leaves goes with the attempt's directory.
        environment=process.scrubbed_environment(home, {"TMPDIR": str(home / "tmp")}),
        log=log,
        directory=job_file.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    memory.give_up_first(child)
    reach("spawn.after")
    assert child.stdin is not None
    assert child.stdout is not None
    with lease.guarding(child), child.stdout, child.stdin:
        try:
            last = relay.follow(child, draining=hands.draining)
        except BaseException:
            process.kill_group(child)
            raise
        finally:
            status = process.reap(child)
    return Run(last, status, out_of_memory=status == -signal.SIGKILL and hands.oom_kills() > kills)


def _prepare(
    hands: Hands,
    claim: claims.Claim,
    spec: JobSpec,
    lease: Lease,
    pen: Pen,
    storage: PatientStorage,
    directory: Path,
    log: Path,
) -> protocol.RunnerJob:
    """Everything that the runner reads, on local disk."""
    settings = hands.settings
    hub = fetch.Hub(settings, lease, log, hands.draining)
    commit: str | None = None
    if spec.model.id.startswith(fetch.LOCAL):
        model = fetch.local_model(spec.model.id, settings.model_root)
        fetch.check_fingerprint(spec.model.id, model, claim.progress.get("model_fingerprint"))
    else:
        # An attempt that goes on must go on with the same weights, wherever the branch points now.
        revision = claim.progress.get("model_commit") or spec.model.revision
        model, commit = hub.bring("model", spec.model.id, revision, partial(_pin, pen, "model_commit"))
    dataset = spec.calibration.dataset
    if dataset.startswith(fetch.UPLOADED):
        row = pen.read(ledger.dataset, tenant=claim.tenant, dataset_id=dataset)
        rows = fetch.uploaded_rows(dataset, row, storage, directory)
    else:
        revision = claim.progress.get("dataset_commit")
        rows, _ = hub.bring("dataset", dataset, revision, partial(_pin, pen, "dataset_commit"))
    return protocol.RunnerJob(
        model=str(model),
        model_id=spec.model.id,
        model_commit=commit,
        calibration=str(rows),
        split=spec.calibration.split,
        output=str(directory / "output"),
        work=str(directory / "work"),
        scheme=spec.scheme,
        method=spec.method,
        options=_given(spec.options),
        target=_given(spec.target) if spec.target else None,
        accept_if=_given(spec.accept_if) if spec.accept_if else None,
    )


def _given(part: BaseModel) -> dict[str, Any]:
    """What the client said; the library has the defaults."""
    return part.model_dump(mode="json", exclude_none=True)


def _pin(pen: Pen, name: str, commit: str) -> None:
    pen.write(ledger.set_progress, {name: commit})


def _write_job(directory: Path, job: protocol.RunnerJob) -> Path:
    path = directory / "job.json"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(job.model_dump(mode="json"), file)
    return path


def _failure_code(text: str) -> FailureCode:
    try:
        return FailureCode(text)
    except ValueError:
        return FailureCode.INTERNAL
