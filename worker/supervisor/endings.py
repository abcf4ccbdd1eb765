"""How an attempt ends: what came of the run, or an error, becomes one fenced transaction (an ``Ending``)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import psycopg

from core.contract.errors import FailureCode
from core.ledger.states import AttemptOutcome, JobStatus
from core.settings import Settings
from quant_experts.files import NO_SPACE
from worker.ledger import attempts as ledger
from worker.ledger.connection import Connection
from worker.runner import protocol
from worker.supervisor import fetch
from worker.supervisor.attempt import Attempt
from worker.supervisor.fenced_writer import FencedWriter
from worker.supervisor.lease import CancelRequested, TimedOut
from worker.supervisor.publish import Incomplete
from worker.supervisor.retrying_storage import StorageFailed
from worker.supervisor.running import Run, out_of_memory

logger = logging.getLogger(__name__)

Ending = Callable[[Connection, ledger.AttemptRef], JobStatus]
"""Ends the attempt and returns the job's status after it."""
OWN_FAULTS = (FailureCode.INTERNAL, FailureCode.NO_PROGRESS, FailureCode.OUT_OF_DISK)
"""Codes of attempts that another worker might have carried further."""


def end(writer: FencedWriter, ending: Ending) -> JobStatus:
    """Commit ``ending``, or what the ledger accepts in its place. Raises Lost."""
    try:
        return writer.write(ending)
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
    return partial(
        ledger.give_up_attempt,
        outcome=outcome,
        reason=reason,
        budget=settings.barren_attempts if budget is None else budget,
        code=code,
        delay=settings.retry_delay,
    )


def fault_of_worker(ending: Ending) -> str | None:
    """The reason of an attempt that failed by what may be this worker's fault."""
    if isinstance(ending, partial) and ending.func is ledger.give_up_attempt and ending.keywords["code"] in OWN_FAULTS:
        return str(ending.keywords["reason"])
    return None


def failure(ending: Ending) -> tuple[FailureCode, str] | None:
    """Code and message of an ending that is an error."""
    if isinstance(ending, partial) and ending.func in (ledger.fail, ledger.give_up_attempt):
        return ending.keywords["code"], ending.keywords.get("message") or ending.keywords["reason"]
    return None


def ending_of_run(settings: Settings, run: Run) -> Ending:
    """The ending after a runner that did not finish the checkpoint."""
    match run.last:
        case protocol.ErrorLine(code=text, message=message):
            code = _failure_code(text)
            if code in OWN_FAULTS:
                return try_elsewhere(settings, code, message)
            return partial(ledger.fail, code=code, message=message)
        case None if run.given_up:
            return partial(ledger.hand_back, reason=run.how)
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
            return partial(ledger.hand_back, reason="the worker was stopped")


def ending_of_error(attempt: Attempt, error: Exception) -> Ending:
    """The ending after an error in the supervisor. The job always ends with a code, and the worker lives on."""
    match error:
        case CancelRequested():
            return ledger.cancel
        case TimedOut():
            message = f"the job took longer than its timeout_s of {attempt.spec.timeout_s} seconds"
            return partial(ledger.fail, code=FailureCode.TIMEOUT, message=message)
        case fetch.FetchFailed(code=code) | StorageFailed(code=code):
            return partial(ledger.fail, code=code, message=str(error))
        case fetch.Draining():
            return partial(ledger.hand_back, reason=str(error))
        case Incomplete():
            return partial(ledger.fail, code=FailureCode.INVALID_CHECKPOINT, message=str(error))
        case OSError(errno=number) if number in NO_SPACE:
            message = f"the worker has no space left: {error}"
            return try_elsewhere(attempt.settings, FailureCode.OUT_OF_DISK, message)
    logger.error("%s: attempt %d failed in the supervisor", attempt.ref.job_id, attempt.ref.attempt, exc_info=error)
    message = f"{type(error).__name__} in the worker: {error}"
    return try_elsewhere(attempt.settings, FailureCode.INTERNAL, message)


def _failure_code(text: str) -> FailureCode:
    try:
        return FailureCode(text)
    except ValueError:
        return FailureCode.INTERNAL
