"""What the service answers, as typed data. ``tests/app/test_client_contract.py`` holds it against ``openapi.json``.

A field that this version does not know is kept (``model_extra``), and words that may grow in number within ``v1``
(event types, phases, failure codes) are plain strings: a newer service does not break an older client.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

JobStatus = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
FINISHED = ("succeeded", "failed", "cancelled")
TERMINAL = frozenset({"job.succeeded", "job.failed", "job.cancelled"})
"""Types of the events after which a job's stream ends, unless the job was retried."""

T = TypeVar("T")


class View(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


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
    eta_seconds: float | None
    """For the blocks that are left; None when not known yet."""
    current: dict[str, Any]


class Resolved(View):
    model_commit: str | None = None
    dataset_commit: str | None = None


class JobError(View):
    code: str
    message: str
    retryable: bool = False


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
    timeout_s: int
    status: JobStatus
    phase: str | None
    progress: Progress
    attempts: int
    worker: str | None
    summary: dict[str, Any] | None
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
    """A finished decoder block."""

    block: int
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


class DatasetView(View):
    id: str
    object: Literal["dataset"] = "dataset"
    name: str | None
    format: str
    bytes: int
    sha256: str
    rows: int
    images: int
    created_at: datetime


class KeyView(View):
    id: str
    object: Literal["key"] = "key"
    name: str
    tenant: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class CreatedKey(KeyView):
    key: str
    """The key itself, which the service shows this once."""


class WorkerView(View):
    id: str
    host: str
    device: str
    alive: bool
    busy: bool
    job_id: str | None
    started_at: datetime
    seen_at: datetime


class WorkerList(View):
    data: list[WorkerView]


class Schemes(View):
    """What a job may ask for."""

    schemes: list[dict[str, Any]]
    group_sizes: list[int | str]
    methods: list[dict[str, Any]]
    smoothings: list[str]
    roundings: list[str]
    reconstructions: list[str]


class Page(View, Generic[T]):
    """One page of a listing; ``next_cursor`` is None on the last."""

    data: list[T]
    has_more: bool
    next_cursor: str | None
