"""Comparisons: one row for each candidate."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from quant_experts.client.views.base import View
from quant_experts.client.views.jobs import Calibration, JobError, JobStatus, ModelRef


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
    scores: dict[str, float] | None = None
    """Of the evaluation's replies, 0 to 1, by the name of the score."""
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
