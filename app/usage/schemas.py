"""What clients see of their usage."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, Field, model_validator

from app.web.schemas import Strict
from app.web.timestamps import Timestamp

MOST_DAYS = 400


class By(StrEnum):
    DAY = "day"
    MONTH = "month"


class UsageQuery(Strict):
    since: Timestamp | None = Field(
        default=None, description="30 days before `until` when left out. Of jobs, whole days in UTC."
    )
    until: Timestamp | None = Field(default=None, description="Now when left out.")
    by: By = By.DAY

    @model_validator(mode="after")
    def _a_bounded_range(self) -> Self:
        since, until = self.span()
        if not timedelta() < until - since <= timedelta(days=MOST_DAYS):
            raise ValueError(f"since must lie before until, by at most {MOST_DAYS} days")
        return self

    def span(self) -> tuple[datetime, datetime]:
        until = self.until or datetime.now(UTC)
        if self.since is not None:
            return self.since, until
        return max(until, datetime.min.replace(tzinfo=UTC) + timedelta(days=30)) - timedelta(days=30), until


class Period(BaseModel):
    """A day or month in UTC that had any use at all."""

    start: datetime
    jobs_created: int = 0
    jobs_succeeded: int = Field(default=0, description="Jobs that ended in this period, like the next two.")
    jobs_failed: int = 0
    jobs_cancelled: int = 0
    worker_seconds: float = Field(default=0.0, description="Seconds of attempts that began in this period.")
    gpu_seconds: float = Field(default=0.0, description="The part of it on workers with a GPU.")
    bytes_added: int = Field(default=0, description="Datasets that are still there, and artifacts.")


class Stored(BaseModel):
    datasets: int
    artifacts: int
    uploads: int = Field(description="Parts that have not become datasets.")
    total: int = Field(description="What the quota is held against.")


class Unfinished(BaseModel):
    queued: int
    running: int = Field(description="On a worker, also while it is being cancelled.")


class Limits(BaseModel):
    """What the tenant may have; null: no limit."""

    stored_bytes: int
    queued_jobs: int
    running_jobs: int | None = Field(description="More than that wait; none is refused.")
    requests_per_minute: int | None = Field(description="Requests of one key.")


class Usage(BaseModel):
    since: datetime
    until: datetime
    by: By
    periods: list[Period]
    stored: Stored = Field(description="Bytes, now.")
    unfinished: Unfinished = Field(description="Jobs, now.")
    limits: Limits
