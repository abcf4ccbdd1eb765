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
    fraction: float | None = None
    """Of the job's time, all phases together, 0 to 1; None while it is not known, and of an earlier service."""
    eta_seconds: float | None
    """Until the end of the job; None while it is not known."""
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
    warnings: list[str] = []
    """As its report has them, grouped; before it has one, those of its plan."""
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


class DatasetView(View):
    id: str
    object: Literal["dataset"] = "dataset"
    name: str | None
    format: str
    bytes: int
    sha256: str
    rows: int
    images: int
    status: str = "ready"
    """Only a ``ready`` one can be used."""
    expires_at: datetime | None = None
    created_at: datetime


class PartView(View):
    number: int
    bytes: int
    sha256: str


class UploadView(View):
    """A large file on its way."""

    id: str
    parts: list[PartView]
    most_parts: int = 1000
    most_part_bytes: int = 64 << 20
    most_bytes: int
    expires_at: datetime


class ImageView(View):
    format: str
    width: int
    height: int
    bytes: int
    url: str


class AudioView(View):
    format: str
    channels: int
    rate: int
    """Samples per second."""
    seconds: float | None
    bytes: int
    url: str


class RowView(View):
    """A row of a dataset; an image or audio part of its messages has the ``index`` of its file."""

    number: int
    messages: list[dict[str, Any]]
    images: list[ImageView]
    audio: list[AudioView] = []


class RowPage(View):
    data: list[RowView]
    has_more: bool
    next_after: int


class SpreadView(View):
    least: float
    median: float
    most: float


class TotalView(SpreadView):
    total: float


class TokensView(View):
    """Tokens of a dataset's rows. ``model``: whose they are, None for an estimate; ``text_by``, ``images_by``,
    ``turns_by``: how text, images and what the chat template writes around messages are known."""

    model: str | None
    commit: str | None = None
    rows: int
    row: TotalView | None
    text: TotalView | None
    image: TotalView | None
    text_by: str
    images_by: str
    turns_by: str
    limit: int
    rows_over: int
    """Longer than ``limit``, which is what a job takes of one row."""
    note: str | None


class FiguresView(View):
    """Of all rows of a dataset."""

    rows: int
    rows_with_images: int
    rows_text_only: int = 0
    rows_with_audio: int = 0
    audio: int = 0
    audio_seconds: TotalView | None = None
    tokens: TokensView | None = None
    """None of a service that does not say."""
    images: int
    image_formats: dict[str, int]
    image_pixels: SpreadView | None
    image_bytes: SpreadView | None
    characters: SpreadView | None
    roles: dict[str, int]


class RefusalView(View):
    code: str
    detail: str
    pointer: str


class GroupKind(View):
    """Linear layers that are quantized together; ``*`` in the name stands for the number of the block. ``stack``: where
    several are walked; ``behind``: it lies behind the blocks of its stack."""

    name: str
    layers: list[str]
    width: int
    outs: list[int]
    blocks: int
    stack: str | None = None
    behind: bool = False


class SkippedKind(View):
    name: str
    layers: int
    weights: int
    reason: str


class BlockSize(View):
    block: int
    stack: str | None = None
    index: int | None = None
    bytes_before: int
    bytes_after: int


class WarningView(View):
    """What a job would do all the same, and its owner may not want."""

    code: str
    detail: str
    pointer: str


class SizeView(View):
    """``bytes_after`` and ``effective_bits``: at most, unless ``exact``."""

    exact: bool
    bytes_before: int
    bytes_after: int
    effective_bits: float
    blocks: list[BlockSize]


class Duration(View):
    """Seconds. ``basis``: ``measured`` on your workers, or ``shipped``."""

    least: float
    likely: float
    most: float
    basis: str
    blocks_measured: int


class PlacementView(View):
    """The run on one kind of device."""

    device: str
    peak_host_bytes: int
    peak_device_bytes: int
    peak_phase: str
    seconds: Duration


class RowsView(View):
    """Rows as a plan judged them. ``tokens_off_by``: a factor, either way; ``tokens_counted``: by the tokenizer."""

    rows: int | None
    rows_used: int
    tokens_per_row: float
    tokens_off_by: float
    tokens_counted: bool = False


class Estimate(View):
    model_type: str = ""
    blocks: int
    quantized_weights: int
    quantized: list[GroupKind]
    skipped: list[SkippedKind]
    size: SizeView
    rows: RowsView
    placements: list[PlacementView]
    disk_bytes: int
    download_bytes: int


class ResolvedInputs(View):
    """What names that can move point to now; a job made of the plan keeps to it."""

    model_commit: str | None
    model_fingerprint: str | None
    dataset_commit: str | None
    dataset_sha256: str | None


class WorkerFit(View):
    """A kind of worker that is alive. ``fits``: None where it does not say what it has."""

    device: str
    workers: int
    memory_bytes: int | None
    device_memory_bytes: int | None
    fits: bool | None
    reason: str | None


class PlanView(View):
    digest: str
    accepted: bool
    """Nothing is known that would refuse the job."""
    refusals: list[RefusalView]
    warnings: list[WarningView] = []
    model: ModelRef
    calibration: Calibration
    scheme: str
    method: str
    resolved: ResolvedInputs
    estimate: Estimate | None
    """None when the service cannot read the model."""
    workers: list[WorkerFit]
    created_at: datetime
    expires_at: datetime


class KeptPlanView(View):
    """A plan that was made before, and that a job can still be made of."""

    digest: str
    accepted: bool
    refusals: list[RefusalView]
    warnings: list[WarningView] = []
    model: ModelRef
    calibration: Calibration
    scheme: str
    method: str
    options: dict[str, Any]
    target: dict[str, Any] | None
    resolved: ResolvedInputs
    created_at: datetime
    expires_at: datetime


class ComparedJob(View):
    """A row of the table. Figures are None until its job has succeeded."""

    label: str
    job_id: str
    status: JobStatus
    scheme: str
    method: str
    kl: float | None
    top1_agreement: float | None
    effective_bits: float | None
    bytes_after: int | None
    seconds: float | None
    verdict: Literal["accepted", "rejected"] | None
    frontier: bool
    """No other job of the comparison is as small and closer to full precision."""
    error: JobError | None


class ComparisonView(View):
    id: str
    object: Literal["comparison"] = "comparison"
    name: str | None
    model: ModelRef
    calibration: Calibration
    finished: bool
    bytes_before: int | None
    jobs: list[ComparedJob]
    """In the order of the candidates."""
    frontier: list[str]
    """Ids of the jobs that nothing beats, smallest first."""
    created_at: datetime


class WebhookView(View):
    id: str
    url: str
    event_types: list[str]
    description: str
    status: Literal["enabled", "disabled"]
    disabled_reason: str | None
    previous_secret_until: datetime | None
    created_at: datetime
    updated_at: datetime


class WebhookWithSecret(WebhookView):
    secret: str
    """Shown this once."""


class DeliveryView(View):
    id: str
    webhook_id: str
    message_id: str
    event_type: str
    status: Literal["pending", "delivered", "failed"]
    attempts: int
    next_attempt_at: datetime | None
    created_at: datetime
    finished_at: datetime | None


class DeliveryAttempt(View):
    number: int
    at: datetime
    status_code: int | None
    error: str | None
    milliseconds: int


class DeliveryDetail(DeliveryView):
    payload: dict[str, Any]
    log: list[DeliveryAttempt]


class Period(View):
    """A day or month in UTC that had any use."""

    start: datetime
    jobs_created: int = 0
    jobs_succeeded: int = 0
    jobs_failed: int = 0
    jobs_cancelled: int = 0
    worker_seconds: float = 0.0
    gpu_seconds: float = 0.0
    bytes_added: int = 0


class Stored(View):
    """Bytes, now."""

    datasets: int
    artifacts: int
    uploads: int
    """Parts that have not become datasets."""
    total: int


class Unfinished(View):
    """Jobs, now."""

    queued: int
    running: int


class Limits(View):
    """What the tenant may have; None: no limit."""

    stored_bytes: int
    queued_jobs: int
    running_jobs: int | None
    requests_per_minute: int | None
    """Of one key."""


class Usage(View):
    """``unfinished`` and ``limits`` are None where an older service does not say them."""

    since: datetime
    until: datetime
    by: str
    periods: list[Period]
    stored: Stored
    unfinished: Unfinished | None = None
    limits: Limits | None = None


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
    state: str = "ready"
    """``stopped``: it takes no job until somebody has looked at it."""
    state_reason: str | None = None
    job_id: str | None
    started_at: datetime
    seen_at: datetime


class WorkerList(View):
    data: list[WorkerView]


class RetentionView(View):
    """In days; None: until somebody deletes it."""

    jobs_days: int | None
    events_days: int | None
    layers_days: int | None
    audit_days: int | None
    deliveries_days: int | None
    own: list[str]
    """Fields that the tenant has set; the others are the service's defaults."""


class HubTokenView(View):
    """Whose token models and datasets of the hub are fetched with."""

    source: str
    """``tenant``: its own; ``service``: the operator's, for all tenants without one; ``none``."""
    set_at: datetime | None
    """When the tenant's own was set."""


class Schemes(View):
    """What a job may ask for."""

    schemes: list[dict[str, Any]]
    group_sizes: list[int | str]
    methods: list[dict[str, Any]]
    smoothings: list[str]
    roundings: list[str]
    reconstructions: list[str]


class LocalModel(View):
    id: str
    model_type: str | None
    problem: str | None
    """Why a job would refuse it."""


class ModelList(View):
    """What a job may name: the service's local models, and every hub model of the families."""

    data: list[LocalModel]
    families: list[str]
    note: str | None
    """Why ``data`` may not be all."""


class Page(View, Generic[T]):
    """One page of a listing; ``next_cursor`` is None on the last."""

    data: list[T]
    has_more: bool
    next_cursor: str | None
