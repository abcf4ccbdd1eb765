"""The event types of a job, as clients see them in ``GET /v1/jobs/{id}/events``."""

from __future__ import annotations

from enum import StrEnum


class EventType(StrEnum):
    CREATED = "job.created"
    STARTED = "job.started"
    """An attempt began: ``{"attempt", "worker", "resumed_from_block"}``."""
    PHASE = "job.phase"
    """``{"phase"}``; this and the next also have ``"fraction"`` and ``"eta_seconds"`` of the whole job where they are
    known, as in the job's ``progress``."""
    BLOCK = "job.block"
    """A block is fitted and durable: ``{"block", "blocks", "seconds", "error"}``; of a model with several stacks of
    blocks also ``"stack"`` (``vision``, ``encoder`` …) and ``"index"`` in it, null behind its blocks, where ``"part"``
    says what it is (``merger``, ``projector``)."""
    WARNING = "job.warning"
    REQUEUED = "job.requeued"
    """The attempt ended without a result and the job waits again: ``{"attempt", "reason"}``."""
    CANCEL_REQUESTED = "job.cancel_requested"
    RETRIED = "job.retried"
    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    CANCELLED = "job.cancelled"
    PUSHED = "job.pushed"
    """The files are at a destination: ``{"push", "to", "export", "url"}``, and of a repository ``"commit"``."""
    PUSH_FAILED = "job.push_failed"
    """Given up: ``{"push", "to", "export", "error"}``."""


TERMINAL = frozenset({EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELLED})
AFTER_SUCCESS = frozenset({EventType.PUSHED, EventType.PUSH_FAILED})
"""They come after the end of a job that succeeded, and change nothing about it."""
