"""What clients see of a comparison: one table, and which of its jobs nothing beats."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, StringConstraints, ValidationError, model_validator

from app.jobs.fork import merge
from app.jobs.rows import JobRow
from app.jobs.schemas import JobError, Verdict
from app.web.schemas import Strict
from core.contract import patterns
from core.contract.spec import Calibration, JobEvaluation, JobSpec, ModelRef, Options
from core.ledger.states import FINISHED, JobStatus
from core.ledger.tables import Comparison, Job
from quant_experts.spec.choices import WHOLE, AcceptIf, Target
from quant_experts.spec.methods import DEFAULT_METHOD

MOST_CANDIDATES = 16
Label = Annotated[str, StringConstraints(min_length=1, max_length=80, pattern=patterns.LINE)]


class Candidate(Strict):
    """One way to quantize the model. ``options`` are laid over those of the comparison."""

    scheme: str
    method: str = DEFAULT_METHOD
    options: Options = Options()
    target: Target | None = None
    label: Label | None = Field(default=None, description="`scheme method` when absent.")

    @property
    def name(self) -> str:
        return self.label or f"{self.scheme} {self.method}"


class NewComparison(Strict):
    """Several schemes or methods on one model and dataset."""

    model: ModelRef
    calibration: Calibration
    candidates: list[Candidate] = Field(min_length=2, max_length=MOST_CANDIDATES)
    options: Options = Field(default=Options(), description="Options of every candidate.")
    evaluation: JobEvaluation | None = Field(default=None, description="The same task for every candidate.")
    accept_if: AcceptIf | None = None
    name: Label | None = None
    labels: dict[str, str] = Field(default_factory=dict, max_length=32)
    timeout_s: Annotated[int, Field(strict=True, ge=60, le=7 * 24 * 3600), WHOLE] = 24 * 3600
    max_wait_s: Annotated[int, Field(strict=True, ge=60, le=7 * 24 * 3600), WHOLE] | None = None
    priority: Annotated[int, Field(strict=True, ge=-100, le=100), WHOLE] = 0

    @model_validator(mode="after")
    def _every_candidate_is_a_job_and_has_a_name_of_its_own(self) -> Self:
        names = [candidate.name for candidate in self.candidates]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two candidates are called {twice!r}: give one of them a label")
        for index, candidate in enumerate(self.candidates):
            try:
                self.job_of(candidate)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                where = "/".join(map(str, ("candidates", index, *first["loc"])))
                raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
        return self

    def job_of(self, candidate: Candidate) -> JobSpec:
        """Raises ValueError for what no job may be."""
        shared, own = (part.model_dump(mode="json", exclude_none=True) for part in (self.options, candidate.options))
        name = f"{self.name}: {candidate.name}" if self.name else candidate.name
        return JobSpec(
            model=self.model,
            calibration=self.calibration,
            scheme=candidate.scheme,
            method=candidate.method,
            options=Options.model_validate(merge(shared, own)),
            target=candidate.target,
            evaluation=self.evaluation,
            accept_if=self.accept_if,
            name=name[:120],
            labels=self.labels,
            timeout_s=self.timeout_s,
            max_wait_s=self.max_wait_s,
            priority=self.priority,
        )


class ComparedJob(BaseModel):
    """A row of the table. Figures are null until its job has succeeded."""

    label: str
    job_id: str
    status: JobStatus
    scheme: str
    method: str
    kl: float | None = Field(description="To the full-precision model, nats per token on held-out rows.")
    top1_agreement: float | None
    effective_bits: float | None
    bytes_after: int | None
    seconds: float | None
    scores: dict[str, float] | None = Field(
        default=None, description="Of the evaluation's replies, 0 to 1, by the name of the score."
    )
    verdict: Verdict | None
    frontier: bool = Field(description="No other job of the comparison is as small and closer to full precision.")
    error: JobError | None

    @classmethod
    def of(cls, job: Job | JobRow, label: str) -> ComparedJob:
        figures: dict[str, Any] = job.summary or {}
        return cls(
            label=label,
            job_id=job.id,
            status=JobStatus(job.status),
            scheme=job.scheme,
            method=job.method,
            **{
                name: figures.get(name) for name in ("kl", "top1_agreement", "effective_bits", "bytes_after", "seconds")
            },
            scores=_scores(figures),
            verdict=Verdict(job.verdict) if job.verdict is not None else None,
            frontier=False,
            error=JobError.model_validate(job.error) if job.error is not None else None,
        )


def _scores(figures: dict[str, Any]) -> dict[str, float] | None:
    evaluation = figures.get("evaluation")
    return {score["name"]: score["quantized"]["value"] for score in evaluation["scores"]} if evaluation else None


class ComparisonView(BaseModel):
    id: str = Field(examples=["cmp_0198a1b2c3d47e5f8a9b0c1d2e3f4a5b"])
    object: Literal["comparison"] = "comparison"
    name: str | None
    model: ModelRef
    calibration: Calibration
    finished: bool = Field(description="No job of it is queued or running.")
    bytes_before: int | None
    jobs: list[ComparedJob] = Field(description="In the order of the candidates.")
    frontier: list[str] = Field(description="Ids of the jobs that nothing beats, smallest first.")
    created_at: datetime

    @classmethod
    def of(cls, comparison: Comparison, jobs: Sequence[Job | JobRow]) -> ComparisonView:
        request = NewComparison.model_validate(comparison.request)
        labels = [candidate.name for candidate in request.candidates]
        rows = [ComparedJob.of(job, label) for job, label in zip(jobs, labels, strict=False)]
        best = frontier_of(rows)
        for row in rows:
            row.frontier = row.job_id in best
        summaries = [job.summary or {} for job in jobs]
        before = next((summary["bytes_before"] for summary in summaries if summary.get("bytes_before")), None)
        return cls(
            id=comparison.id,
            name=comparison.name,
            model=request.model,
            calibration=request.calibration,
            finished=all(row.status in FINISHED for row in rows),
            bytes_before=before,
            jobs=rows,
            frontier=best,
            created_at=comparison.created_at,
        )


def frontier_of(rows: list[ComparedJob]) -> list[str]:
    """Ids of the jobs on the Pareto frontier of size and KL, smallest first."""
    points = [
        (row.bytes_after, row.kl, row.job_id) for row in rows if row.bytes_after is not None and row.kl is not None
    ]
    best = [
        (size, kl, job_id)
        for size, kl, job_id in points
        if not any(s <= size and k <= kl and (s, k) != (size, kl) for s, k, _ in points)
    ]
    return [job_id for _, _, job_id in sorted(best)]
