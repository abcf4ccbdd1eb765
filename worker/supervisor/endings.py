"""How an attempt ends: what came of the run, or an error, becomes one fenced transaction."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import psycopg

from core.contract.errors import FailureCode
from core.ledger.states import AttemptOutcome, JobStatus
from core.settings import Settings
from quant_experts.files import NO_SPACE
from worker.ledger import attempts as ledger
from worker.ledger.connection import Connection
from worker.runner import protocol
from worker.supervisor.attempt import Attempt
from worker.supervisor.fenced_writer import FencedWriter
from worker.supervisor.fetch import FetchFailed
from worker.supervisor.hub_download import Draining
from worker.supervisor.lease import CancelRequested, TimedOut
from worker.supervisor.publish import Incomplete
from worker.supervisor.retrying_storage import StorageFailed
from worker.supervisor.running import Run, out_of_memory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ending:
    """``write`` ends the attempt and returns the job's status after it. ``error``: code and message, of an attempt that
    failed. ``retried``: another attempt follows unless too many in a row made no progress."""

    write: Callable[[Connection, ledger.AttemptRef], JobStatus]
    error: tuple[FailureCode, str] | None = None
    retried: bool = False

    @property
    def fault_of_worker(self) -> str | None:
        """The message of an attempt that failed by what may be this worker's fault."""
        return self.error[1] if self.error is not None and self.retried and self.error[0] in OWN_FAULTS else None


CANCELLED = Ending(ledger.cancel)
OWN_FAULTS = (FailureCode.INTERNAL, FailureCode.NO_PROGRESS, FailureCode.OUT_OF_DISK)
"""Codes of attempts that another worker might have carried further."""


def end(writer: FencedWriter, ending: Ending) -> JobStatus:
    """Commit ``ending``, or what the ledger accepts in its place. Raises Lost."""
    try:
        return writer.write(ending.write)
    except CancelRequested:  # it came after the last check of the lease
        return writer.write(ledger.cancel)
    except psycopg.Error as error:  # a lasting one, which the next attempt would meet too
        logger.exception("the end of the job was refused")
        message = f"the ledger does not take the job's end: {error}"
        return writer.write(ledger.fail, code=FailureCode.INTERNAL, message=message)


def try_elsewhere(
    settings: Settings,
    code: FailureCode,
    reason: str,
    *,
    outcome: AttemptOutcome = AttemptOutcome.FAILED,
    budget: int | None = None,
) -> Ending:
    """What may be this worker's fault fails the job only when ``budget`` attempts in a row make no progress."""
    write = partial(
        ledger.give_up_attempt,
        outcome=outcome,
        reason=reason,
        budget=settings.barren_attempts if budget is None else budget,
        code=code,
        delay=settings.retry_delay,
    )
    return Ending(write, (code, reason), retried=True)


def fail(code: FailureCode, message: str) -> Ending:
    """End the job with an error."""
    return Ending(partial(ledger.fail, code=code, message=message), (code, message))


def hand_back(reason: str) -> Ending:
    """Queue the job again because this worker stops."""
    return Ending(partial(ledger.hand_back, reason=reason))


def ending_of_run(settings: Settings, run: Run) -> Ending:
    """The ending after a runner that did not finish the checkpoint."""
    match run.last:
        case protocol.ErrorLine(code=text, message=message):
            code = FailureCode.of(text)
            if code in OWN_FAULTS:
                return try_elsewhere(settings, code, message)
            return fail(code, message)
        case None if run.given_up:
            return hand_back(run.how)
        case None if run.out_of_memory:
            # Without a new block the same would happen again; with one, the next attempt begins after it.
            return try_elsewhere(
                settings,
                FailureCode.OUT_OF_MEMORY,
                out_of_memory(),
                outcome=AttemptOutcome.RUNNER_DIED,
                budget=1,
            )
        case None:
            reason = f"the computing process {run.how}"
            return try_elsewhere(settings, FailureCode.NO_PROGRESS, reason, outcome=AttemptOutcome.RUNNER_DIED)
        case _:
            return hand_back("the worker was stopped")


def ending_of_error(attempt: Attempt, error: Exception) -> Ending:
    """The ending after an error in the supervisor. The job always ends with a code, and the worker lives on."""
    match error:
        case CancelRequested():
            return CANCELLED
        case TimedOut():
            message = f"the job took longer than its timeout_s of {attempt.spec.timeout_s} seconds"
            return fail(FailureCode.TIMEOUT, message)
        case FetchFailed(code=code) | StorageFailed(code=code):
            return fail(code, str(error))
        case Draining():
            return hand_back(str(error))
        case Incomplete():
            return fail(FailureCode.INVALID_CHECKPOINT, str(error))
        case OSError(errno=number) if number in NO_SPACE:
            message = f"the worker has no space left: {error}"
            return try_elsewhere(attempt.settings, FailureCode.OUT_OF_DISK, message)
    logger.error("%s: attempt %d failed in the supervisor", attempt.ref.job_id, attempt.ref.attempt, exc_info=error)
    message = f"{type(error).__name__} in the worker: {error}"
    return try_elsewhere(attempt.settings, FailureCode.INTERNAL, message)
