"""Jobs: as they stand, their events, layers, attempts and files."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from quant_experts.client.views.base import View

JobStatus = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
FINISHED = ("succeeded", "failed", "cancelled")
TERMINAL = frozenset({"job.succeeded", "job.failed", "job.cancelled"})
"""Types of the events after which a job's stream ends, unless the job was retried."""


class ModelRef(View):
    id: str
    revision: str | None = None


class Calibration(View):
    dataset: str
    split: str = "train"


class Progress(View):
    blocks_done: int
    blocks_total: int | None
    seconds_per_block: float | None
    fraction: float | None = None
    """Share of the job's time that has passed, all phases together, 0 to 1; None while it is not known, and of an
    earlier service."""
    eta_seconds: float | None
    """Seconds until the end of the job; None while it is not known."""
    current: dict[str, Any]


class Resolved(View):
    model_commit: str | None = None
    dataset_commit: str | None = None


class JobError(View):
    code: str
    message: str
    retryable: bool = False


class Waiting(View):
    code: str
    message: str


class Deleted(View):
    deleted: list[str]
    has_more: bool


class JobView(View):
    id: str
    object: Literal["job"] = "job"
    name: str | None
    alias: str | None = None
    labels: dict[str, str]
    model: ModelRef
    calibration: Calibration
    resolved: Resolved
    scheme: str
    method: str
    options: dict[str, Any]
    target: dict[str, Any] | None
    accept_if: dict[str, Any] | None
    exports: list[str] | None = None
    """Other formats in which its checkpoint is written too."""
    evaluation: dict[str, Any] | None = None
    """The task that it generates replies for, before and after."""
    timeout_s: int
    max_wait_s: int | None = None
    """Seconds that it may wait for a worker, each time."""
    priority: int = 0
    device: str | None = None
    status: JobStatus
    phase: str | None
    progress: Progress
    attempts: int
    worker: str | None
    waiting: Waiting | None = None
    """Why no living worker can take it."""
    forked_from: str | None = None
    comparison_id: str | None = None
    summary: dict[str, Any] | None
    warnings: list[str] = Field(default_factory=list)
    """The warnings as the job's report groups them; before it has one, those of its plan."""
    verdict: Literal["accepted", "rejected"] | None
    error: JobError | None
    created_at: datetime
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def finished(self) -> bool:
        return self.status in FINISHED


class EventView(View):
    seq: int
    type: str
    data: dict[str, Any]
    created_at: datetime


class EventPage(View):
    data: list[EventView]
    has_more: bool
    next_after: int


class LayerView(View):
    """A finished block; ``stack`` and ``index`` in it where the model has several stacks."""

    block: int
    stack: str | None = None
    index: int | None = None
    part: str | None = None
    """What lies behind the stack's blocks, where ``index`` is None: ``merger``, ``projector``."""
    attempt: int
    seconds: float
    seconds_by_phase: dict[str, float]
    groups: list[dict[str, Any]]
    created_at: datetime


class LayerPage(View):
    data: list[LayerView]
    has_more: bool


class AttemptView(View):
    """One worker's hold on a job."""

    attempt: int
    worker: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    error: dict[str, Any] | None
    resumed_from_block: int | None
    blocks_done: int


class AttemptList(View):
    data: list[AttemptView]


class ArtifactView(View):
    name: str
    bytes: int
    sha256: str
    media_type: str
    url: str
    created_at: datetime


class ArtifactList(View):
    data: list[ArtifactView]
