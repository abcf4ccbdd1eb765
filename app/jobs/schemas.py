"""What clients see of a job."""

from __future__ import annotations

import time
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from app.jobs.rows import JobRow
from app.web.paging import PageQuery
from app.web.schemas import OfRow
from app.web.timestamps import Timestamp
from core.contract import patterns
from core.contract.events import EventType
from core.contract.forecast import FORECAST, Forecast
from core.contract.spec import Calibration, JobEvaluation, JobSpec, ModelRef, Options
from core.ledger.states import LEASED, AttemptOutcome, JobStatus, Phase
from core.ledger.tables import FinishedBlock, Job
from quant_experts.planning.cautions import cautions_of_scheme
from quant_experts.planning.recipe import Recipe
from quant_experts.spec.choices import AcceptIf, Target
from quant_experts.spec.exports import ExportFormat

Printable = Annotated[str, StringConstraints(max_length=200, pattern=patterns.LINE)]


class JobFilter(BaseModel):
    """Which jobs; what is left out does not matter."""

    status: list[JobStatus] = Field(default_factory=list, max_length=6, description="Any of these.")
    label: list[Printable] = Field(
        default_factory=list, max_length=32, description="`key=value`, or `key` alone; repeated: all of them."
    )
    model: Printable | None = Field(default=None, description="Exactly this model id.")
    scheme: Printable | None = None
    alias: Printable | None = Field(default=None, description="Jobs that carry this alias.")
    created_after: Timestamp | None = Field(default=None, description="Created at this time or later.")
    created_before: Timestamp | None = Field(default=None, description="Created before this time.")


class JobQuery(JobFilter, PageQuery):
    pass


class JobDeletion(JobFilter):
    """Which finished jobs go: those named, or all that the filter lets through. Others stay."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ids: Annotated[list[Printable], Field(min_length=1, max_length=1000)] | None = Field(
        default=None, description="These jobs; no filter goes with it."
    )
    finished_before: Timestamp | None = Field(default=None, description="Ended before this time.")

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        filters = {name for name in self.model_fields_set if getattr(self, name) not in (None, [])} - {"ids"}
        if bool(filters) == (self.ids is not None):
            raise ValueError("give either ids or at least one filter")
        return self


class Deleted(BaseModel):
    """What one request deleted."""

    deleted: list[str] = Field(description="Ids of the jobs; at most a thousand.")
    has_more: bool = Field(description="There are more of them: ask again.")


class Progress(BaseModel):
    blocks_done: int
    blocks_total: int | None = Field(description="Blocks that are walked; null until the model is opened.")
    seconds_per_block: float | None = Field(description="Moving average over this job's finished blocks.")
    fraction: float | None = Field(
        description="Share of the job's time that has passed, all phases together: 0 to 1. Null while it is not known."
    )
    eta_seconds: float | None = Field(
        description="Until the end of the job, all phases together. Null while it is not known."
    )
    current: dict[str, Any] = Field(
        description="What the runner last said, for example the input group in hand; empty when none runs."
    )


class Resolved(BaseModel):
    """What the first attempt found behind names that can move; every later attempt keeps to it."""

    model_commit: str | None = None
    model_fingerprint: str | None = Field(default=None, description="Fingerprint of a local model that was planned.")
    dataset_commit: str | None = None
    evaluation_commit: str | None = Field(default=None, description="Of the dataset that is evaluated on.")


class JobError(BaseModel):
    code: str = Field(examples=["invalid_calibration"])
    message: str
    retryable: bool = False


class Waiting(BaseModel):
    code: str = Field(examples=["workers_too_old"])
    message: str


class Verdict(StrEnum):
    """Does the checkpoint keep the limits of `accept_if`?"""

    ACCEPTED = "accepted"
    REJECTED = "rejected"


class JobView(BaseModel):
    id: str = Field(examples=["job_0198a1b2c3d47e5f8a9b0c1d2e3f4a5b"])
    object: Literal["job"] = "job"
    name: str | None
    alias: str | None = Field(description="`/hub` serves the newest succeeded job with this alias under it.")
    labels: dict[str, str]
    model: ModelRef
    calibration: Calibration
    resolved: Resolved
    scheme: str
    method: str
    options: Options
    target: Target | None = Field(description="What scheme `auto` searches for.")
    accept_if: AcceptIf | None
    exports: list[ExportFormat] | None
    evaluation: JobEvaluation | None
    timeout_s: int
    max_wait_s: int | None = Field(description="Seconds that it may wait for a worker, each time.")
    priority: int
    device: str | None = Field(description="The class of device that it asks for.")
    status: JobStatus
    phase: Phase | None = Field(description="What a running job is doing.")
    progress: Progress
    attempts: int = Field(description="How often a worker took the job.")
    worker: str | None
    waiting: Waiting | None = Field(
        description="Why no worker that is alive can take the queued job; null while it only waits for its turn."
    )
    forked_from: str | None = Field(description="The job whose results this one takes over where they fit.")
    comparison_id: str | None
    plan: dict[str, Any] | None = Field(
        description="What was estimated when the job was made: bytes (exact where the scheme decides them), memory, "
        "seconds per block by device. Null for a hub model without a plan."
    )
    summary: dict[str, Any] | None = Field(description="Figures of a finished run; the report has all of them.")
    warnings: list[str] = Field(
        default=[],
        description="Those of a finished run, grouped as in its report; before that, those of its plan, or without a "
        "plan what is certain of its scheme.",
    )
    verdict: Verdict | None = Field(
        description="Whether a finished job keeps its `accept_if`; it has artifacts either way. Null without limits."
    )
    error: JobError | None
    created_at: datetime
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, job: Job | JobRow) -> JobView:
        return cls.model_validate(
            {
                **_SPEC_DEFAULTS,
                **job.spec,
                **{name: getattr(job, name) for name in COLUMNS},
                "resolved": job.progress,
                "progress": _progress(job),
                "attempts": job.attempt,
                "waiting": job.waiting if job.status == JobStatus.QUEUED else None,
                "warnings": _warnings(job),
            }
        )


COLUMNS = (
    *("id", "alias", "max_wait_s", "priority", "device", "status", "phase", "worker", "forked_from", "comparison_id"),
    *("plan", "summary", "verdict", "error", "created_at", "queued_at", "started_at", "finished_at"),
)
"""Columns of a job that its view shows unchanged."""


def _warnings(job: Job | JobRow) -> list[str]:
    if job.summary is not None:
        return list(job.summary.get("warning_list") or [])
    if job.plan is None:
        scheme, method = job.spec["scheme"], job.spec.get("method", "qe")
        return [caution.message for caution in cautions_of_scheme(Recipe.of(method, scheme=scheme))]
    return [str(each["detail"]) for each in job.plan.get("warnings", [])]


_SPEC_DEFAULTS = {
    name: field.get_default(call_default_factory=True)
    for name, field in JobSpec.model_fields.items()
    if not field.is_required()
}
"""Defaults of fields that are younger than a job."""


def _progress(job: Job | JobRow) -> Progress:
    forecast = Forecast.of(job.progress) if job.status == JobStatus.RUNNING else None
    of_all = forecast.as_of(time.time()) if forecast else {}
    return Progress(
        blocks_done=job.blocks_done,
        blocks_total=job.blocks_total,
        seconds_per_block=job.block_seconds,
        fraction=1.0 if job.status == JobStatus.SUCCEEDED else of_all.get("fraction"),
        eta_seconds=of_all.get("eta_seconds"),
        current=_current(job),
    )


def _current(job: Job | JobRow) -> dict[str, Any]:
    if job.status not in LEASED:
        return {}
    return {name: value for name, value in job.progress.items() if name not in (*Resolved.model_fields, FORECAST)}


class EventView(OfRow):
    seq: int
    type: EventType
    data: dict[str, Any]
    created_at: datetime


class EventPage(BaseModel):
    data: list[EventView]
    has_more: bool
    next_after: int = Field(description="Pass as `after` for the events that come next.")


class LayerView(BaseModel):
    """A finished block."""

    block: int = Field(description="Number among all blocks that are walked.")
    stack: str | None = Field(
        default=None, description="Where the model has several stacks of blocks: `vision`, `encoder` …"
    )
    index: int | None = Field(default=None, description="Within its stack; null for what lies behind its blocks.")
    part: str | None = Field(default=None, description="What lies behind them: `merger`, `projector`.")
    attempt: int
    seconds: float
    seconds_by_phase: dict[str, float]
    groups: list[dict[str, Any]] = Field(description="One report per input group: errors by stage, bits, warnings.")
    created_at: datetime

    @classmethod
    def of(cls, block: FinishedBlock) -> LayerView:
        return cls(
            block=block.block,
            stack=block.report.get("stack"),
            index=block.report.get("index"),
            part=block.report.get("part"),
            attempt=block.attempt,
            seconds=block.seconds,
            seconds_by_phase=block.report.get("seconds_by_phase", {}),
            groups=block.report.get("groups", []),
            created_at=block.created_at,
        )


class LayerPage(BaseModel):
    data: list[LayerView]
    has_more: bool


class AttemptView(OfRow):
    """One worker's hold on the job."""

    attempt: int
    worker: str
    started_at: datetime
    ended_at: datetime | None
    outcome: AttemptOutcome | None
    error: dict[str, Any] | None
    resumed_from_block: int | None = Field(description="Blocks that earlier attempts had finished.")
    blocks_done: int = Field(description="New blocks of this attempt.")


class AttemptList(BaseModel):
    data: list[AttemptView]
