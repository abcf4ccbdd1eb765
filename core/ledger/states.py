"""The states of a job and the only moves between them.

The same table is a trigger in PostgreSQL (see migrations), so that no code path, ours or an operator's, can make a move
that is not listed here.
"""

from __future__ import annotations

from enum import StrEnum


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    """Asked to stop while running; the worker learns it with its next heartbeat."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset(
        {JobStatus.RUNNING, JobStatus.CANCELLED, JobStatus.FAILED}  # failed: it waited for longer than it may
    ),
    JobStatus.RUNNING: frozenset(
        {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLING, JobStatus.QUEUED}  # queued: handed back or reaped
    ),
    JobStatus.CANCELLING: frozenset({JobStatus.CANCELLED, JobStatus.FAILED}),
    JobStatus.FAILED: frozenset({JobStatus.QUEUED}),  # retry
    JobStatus.CANCELLED: frozenset({JobStatus.QUEUED}),  # retry
    JobStatus.SUCCEEDED: frozenset(),
}

LEASED = frozenset({JobStatus.RUNNING, JobStatus.CANCELLING})
"""States in which a worker holds the job, and only these have a lease."""

FINISHED = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})
"""States that nothing but a retry leaves."""


class Phase(StrEnum):
    """What a running job is doing, in the order of a run."""

    PREPARING = "preparing"
    CALIBRATING = "calibrating"
    FITTING = "fitting"
    EVALUATING = "evaluating"
    PACKING = "packing"
    VERIFYING = "verifying"
    GENERATING = "generating"
    EXPORTING = "exporting"
    PUBLISHING = "publishing"


class AttemptOutcome(StrEnum):
    """Why one worker's hold on a job ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    HANDED_BACK = "handed_back"
    """The worker was asked to stop and gave the job back after a block."""
    RUNNER_DIED = "runner_died"
    """The computing process ended without a word; the job is queued again or failed by its budget."""
    LEASE_EXPIRED = "lease_expired"
    """The worker was not heard of; the keeper took the job from it."""
